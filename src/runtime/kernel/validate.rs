//! Validation of expanded shaders with naga, the compiler that wgpu uses, and translation of its messages to our files and lines.

use std::error::Error as _;

use naga::Module;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

use crate::error::{Error, Result};
use crate::runtime::kernel::Kernel;
use crate::runtime::kernel::preprocess::Expanded;

impl Kernel {
    /// Parses and validates the expanded source of the kernel. Features that the kernel does not declare are errors.
    ///
    /// # Errors
    /// [`Error::Shader`] with the file and line below `shaders/` that naga rejects.
    pub fn validate(&self, expanded: &Expanded) -> Result<(Module, ModuleInfo)> {
        let wgsl = &expanded.wgsl;
        let error = |line: Option<u32>, message: String| {
            let line = line.map_or(0, |line| line as usize - 1);
            let &(file, number) = expanded.origins.get(line).unwrap_or(&(self.file, 0));
            let source = wgsl.lines().nth(line).unwrap_or_default().trim();
            let message = format!("{message} in `{source}` ({}/{})", self.name, self.variant);
            Error::Shader { file: file.to_owned(), line: number, message }
        };
        let module = naga::front::wgsl::parse_str(wgsl)
            .map_err(|e| error(e.location(wgsl).map(|at| at.line_number), e.message().to_owned()))?;
        let capabilities = if self.subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
        let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|e| {
            let mut message = e.as_inner().to_string();
            let mut source = e.as_inner().source();
            while let Some(cause) = source {
                message += &format!(": {cause}");
                source = cause.source();
            }
            error(e.location(wgsl).map(|at| at.line_number), message)
        })?;
        Ok((module, info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKEN: Kernel = Kernel { name: "broken", variant: "test", file: "test/broken.wgsl", ..Kernel::DEFAULT };

    fn message(source: &'static str) -> String {
        let kernel = Kernel { source, ..BROKEN };
        kernel.validate(&kernel.expand(&[]).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_our_file_and_line() {
        let unknown = message("#import grid\n#for i in 0..2\nfn f$i() -> u32 {\n    return ${i}u + wat;\n}\n#endfor\n");
        assert!(unknown.contains("test/broken.wgsl:4: no definition in scope for identifier"), "{unknown}");
        assert!(unknown.contains("`return 0u + wat;` (broken/test)"), "{unknown}");
        let mistyped = message("#import grid\n\nfn f() -> u32 {\n    let x: f32 = 1u;\n    return 1u;\n}\n");
        assert!(mistyped.contains("test/broken.wgsl:4: "), "{mistyped}");
        let invalid = message("#import grid\n\nfn f(x: u32) -> f32 {\n    return x;\n}\n");
        assert!(invalid.contains("test/broken.wgsl:") && invalid.contains("return"), "{invalid}");
    }
}
