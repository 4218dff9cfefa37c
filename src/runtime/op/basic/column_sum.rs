//! Sums over the rows of a matrix in a fixed order: bias gradients, and the second half of sums that are split into partial sums.

use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, workgroups};

/// Up to this many rows are summed by one dispatch.
const ONE_STAGE: usize = 128;

impl Lowered {
    /// Appends the dispatches for `to = ` sum of the rows of `from` (`+ to` where `acc` is 1), a matrix of `rows` times `columns`
    /// quadruples.
    pub(crate) fn column_sum(&mut self, from: Bind, to: Bind, rows: usize, columns: usize, acc: f64) {
        if rows <= ONE_STAGE {
            self.dispatches.push(stage(from, to, rows, columns, 1, acc));
        } else {
            let splits = rows.isqrt();
            let partial = Bind::Scratch(self.scratch.len());
            self.scratch.push(16 * splits * columns);
            self.dispatches.push(stage(from, partial, rows, columns, splits, 0.0));
            self.column_sum(partial, to, splits, columns, acc);
        }
    }
}

fn stage(from: Bind, to: Bind, rows: usize, columns: usize, splits: usize, acc: f64) -> Dispatch {
    Dispatch {
        flags: vec![],
        kernel: &KERNEL,
        bindings: vec![from, to],
        overrides: vec![("ACC", acc)],
        params: Params { rows: rows as u32, columns: columns as u32, splits: splits as u32 }.bytes(),
        workgroups: workgroups(splits * columns, 64),
    }
}

crate::kernel_params! {
    /// See `shaders/column_sum.wgsl`.
    Params { rows: u32, columns: u32, splits: u32 }
}

/// The kernel of every stage.
pub(crate) static KERNEL: Kernel = Kernel {
    name: "column_sum",
    variant: "vec4",
    file: "basic/column_sum.wgsl",
    source: include_str!("../../../../shaders/basic/column_sum.wgsl"),
    entry: "column_sum",
    defines: &[],
    flags: &[],
    bindings: &[("x", Access::Read), ("out", Access::ReadWrite)],
    params: Params::FIELDS,
    overrides: &["ACC"],
    workgroup: [64, 1, 1],
    subgroups: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sums_take_stages_of_the_square_root() {
        for (rows, stages) in [(1, 1), (ONE_STAGE, 1), (ONE_STAGE + 1, 2), (16_384, 2), (131_072, 3)] {
            let mut lowered = Lowered::default();
            lowered.column_sum(Bind::Operand("dy"), Bind::Operand("dbias"), rows, 8, 1.0);
            assert_eq!(lowered.dispatches.len(), stages, "{rows}");
            assert_eq!(lowered.scratch.len(), stages - 1);
            // Only the last stage adds to what is there, and each stage reads what the one before wrote.
            for (i, dispatch) in lowered.dispatches.iter().enumerate() {
                assert_eq!(dispatch.overrides, [("ACC", if i + 1 == stages { 1.0 } else { 0.0 })]);
                if i > 0 {
                    assert_eq!(dispatch.bindings[0], lowered.dispatches[i - 1].bindings[1]);
                }
            }
        }
    }
}
