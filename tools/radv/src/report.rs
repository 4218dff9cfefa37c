//! The report: a table for each generation, a row for each kernel.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::isa::Loop;
use crate::kernels::{BATCH, Specialised};
use crate::radv::Statistics;

/// Waves on a SIMD below which a kernel needs a reason: fewer cannot hide the latency of memory.
pub const FEWEST_WAVES: u64 = 4;

/// Why kernels, whose names and variants begin so, may have fewer.
pub const REASONS: &[Reason] = &[
    Reason {
        family: "vega10",
        kernels: &["conv2d.forward/tiled", "conv2d.backward_input/tiled", "conv2d.backward_weight/tiled"],
        waves: 2,
        why: "A SIMD of this generation has 256 vector registers a lane, so four waves would leave 64 to each, and the accumulators of a \
              tile of 8x8 alone are 64. Smaller tiles have fewer multiply-adds for each load. Not measured on such a GPU.",
    },
    Reason {
        family: "vega10",
        kernels: &["batch_norm.backward.sums/columns"],
        waves: 3,
        why: "A few registers over 64, in one dispatch of a training step; the other norms run in the convolutions.",
    },
];

/// A reason for few waves on a family.
pub struct Reason {
    family: &'static str,
    kernels: &'static [&'static str],
    /// How few.
    waves: u64,
    why: &'static str,
}

/// What one family of GPUs makes of the kernels, in their order.
pub struct Generation {
    pub family: String,
    /// Name and driver.
    pub device: String,
    pub statistics: Vec<Statistics>,
}

pub struct Report {
    pub text: String,
    /// What must not be.
    pub faults: Vec<String>,
}

const HEAD: &str = "\
# What AMD's shader compiler makes of the kernels

    cargo run --release --manifest-path tools/radv/Cargo.toml -- docs/gpu-report.md

writes this page. It needs no AMD hardware: Mesa's RADV compiles for a GPU that is not there (`RADV_FORCE_FAMILY`), and runs nothing. So
these are facts about code, not about speed.
";

const LEGEND: &str = "\
A row is a kernel in one variant, specialised for each of its shapes; where these differ, from the least to the most. `step`: dispatches
in a training step; none for what only `--variant`, evaluation or a run without fusion asks for. `shapes`: how many specialisations.
`spills`: registers of both kinds, the most. `LDS`: bytes of workgroup memory. `waves`: how many of them a SIMD holds at once.
`instructions`: in all; then those of the innermost loop with most multiply-adds, and among these the multiply-adds (each for every lane)
and the loads from workgroup memory.
";

pub fn write(kernels: &[Specialised], generations: &[Generation]) -> Report {
    let mut text = format!(
        "{HEAD}\nThe default model at batch {BATCH}, {} pipelines: what its plan runs on a GPU, and the other variants meant for GPUs.\n\n{LEGEND}",
        kernels.len()
    );
    let mut faults = Vec::new();
    for generation in generations {
        let _ = write!(text, "\n## {}\n\n{}\n\n| {} |\n", generation.family, generation.device, COLUMNS.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --: |".repeat(COLUMNS.len() - 1));
        for row in rows(kernels, generation) {
            row.write(&mut text);
            faults.extend(row.fault(&generation.family));
        }
    }
    text.push_str("\n## Reasons\n\n");
    let _ = writeln!(
        text,
        "No kernel of the plan may spill, and none may have fewer than {FEWEST_WAVES} waves without a reason.\n"
    );
    for Reason { family, kernels, waves, why } in REASONS {
        let _ = writeln!(text, "- {family}, {waves} waves: `{}`. {why}", kernels.join("`, `"));
    }
    text.push_str(if faults.is_empty() { "\nAll keep to it.\n" } else { "\nThese do not:\n\n" });
    for fault in &faults {
        let _ = writeln!(text, "- {fault}");
    }
    Report { text, faults }
}

/// A kernel in one variant, in all its specialisations.
struct Row<'a> {
    name: String,
    /// Dispatches in a training step.
    step: usize,
    all: Vec<(&'a Specialised, &'a Statistics)>,
}

fn rows<'a>(kernels: &'a [Specialised], generation: &'a Generation) -> Vec<Row<'a>> {
    let mut rows: BTreeMap<String, Vec<(&Specialised, &Statistics)>> = BTreeMap::new();
    for (kernel, statistics) in kernels.iter().zip(&generation.statistics) {
        let name = format!("{}/{}", kernel.kernel.name, kernel.kernel.variant);
        rows.entry(name).or_default().push((kernel, statistics));
    }
    let row = |(name, all): (String, Vec<(&'a Specialised, _)>)| Row {
        name,
        step: all.iter().map(|(kernel, _)| kernel.dispatches).sum(),
        all,
    };
    rows.into_iter().map(row).collect()
}

const COLUMNS: [&str; 12] = [
    "kernel",
    "step",
    "shapes",
    "VGPRs",
    "SGPRs",
    "spills",
    "LDS",
    "waves",
    "instructions",
    "loop",
    "multiply-adds",
    "LDS loads",
];

impl Row<'_> {
    fn write(&self, text: &mut String) {
        let range = |figure: &dyn Fn(&Statistics) -> Option<u64>| {
            let found: Vec<u64> = self.all.iter().filter_map(|(_, found)| figure(found)).collect();
            match (found.iter().min(), found.iter().max()) {
                (Some(least), Some(most)) if least < most => format!("{least}-{most}"),
                (Some(one), _) => one.to_string(),
                _ => String::new(),
            }
        };
        let inner = |figure: fn(&Loop) -> usize| range(&|found| found.inner.as_ref().map(|inner| figure(inner) as u64));
        let figures = [
            format!("`{}`", self.name),
            if self.step == 0 { String::new() } else { self.step.to_string() },
            self.all.len().to_string(),
            range(&|found| Some(found.vgprs)),
            range(&|found| Some(found.sgprs)),
            range(&|found| Some(found.spills)),
            range(&|found| Some(found.lds)),
            range(&|found| Some(found.waves)),
            range(&|found| Some(found.instructions)),
            inner(|inner| inner.instructions),
            inner(|inner| inner.multiply_adds),
            inner(|inner| inner.workgroup_loads),
        ];
        let _ = writeln!(text, "| {} |", figures.join(" | "));
    }

    /// What a kernel of the plan must not do.
    fn fault(&self, family: &str) -> Option<String> {
        let planned = || self.all.iter().filter(|(kernel, _)| kernel.dispatches > 0).map(|(_, found)| found);
        let spills = planned().map(|found| found.spills).max()?;
        let scratch = planned().map(|found| found.scratch).max()?;
        let waves = planned().map(|found| found.waves).min()?;
        let excuses =
            |reason: &&Reason| reason.family == family && reason.kernels.iter().any(|k| self.name.starts_with(k));
        let enough = REASONS.iter().find(excuses).map_or(FEWEST_WAVES, |reason| reason.waves);
        let mut what = Vec::new();
        if spills > 0 {
            what.push(format!("spills up to {spills} registers"));
        }
        if scratch > 0 {
            what.push(format!("uses up to {scratch} bytes of scratch memory a wave"));
        }
        if waves < enough {
            what.push(format!("has {waves} wave{} on a SIMD", if waves == 1 { "" } else { "s" }));
        }
        (!what.is_empty()).then(|| format!("{family}: `{}` {}", self.name, what.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    /// The fault of a first kernel of the plan with these figures.
    fn fault(family: &str, spills: u64, scratch: u64, waves: u64, planned: bool) -> Option<String> {
        let all = kernels::all().unwrap();
        let kernel = all.into_iter().find(|k| k.kernel.variant.starts_with("tiled")).unwrap();
        let kernel = Specialised { dispatches: usize::from(planned), ..kernel };
        let found = Statistics { vgprs: 0, sgprs: 0, spills, scratch, lds: 0, waves, instructions: 0, inner: None };
        let generation = Generation { family: family.into(), device: String::new(), statistics: vec![found] };
        let report = write(&[kernel], &[generation]);
        assert_eq!(report.text.contains("These do not"), !report.faults.is_empty());
        report.faults.into_iter().next()
    }

    #[test]
    fn spills_and_few_waves_of_the_plan_are_faults() {
        assert_eq!(fault("navi21", 0, 0, 4, true), None);
        assert!(fault("navi21", 1, 0, 4, true).unwrap().contains("spills up to 1"));
        assert!(fault("navi21", 0, 8, 4, true).unwrap().contains("scratch"));
        assert!(fault("navi21", 0, 0, 3, true).unwrap().contains("3 waves"));
        assert_eq!(fault("navi21", 9, 9, 0, false), None);
        // Where there is a reason.
        assert_eq!(fault("vega10", 0, 0, 2, true), None);
        assert!(fault("vega10", 0, 0, 1, true).is_some());
    }
}
