//! The report: a table for each GPU generation, with a row for each kernel.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::isa::Loop;
use crate::kernels::{BATCH, Specialised};
use crate::radv::Statistics;

/// Waves per SIMD below which a kernel needs a [`Reason`]: fewer cannot hide memory latency.
pub const FEWEST_WAVES: u64 = 4;

/// Accepted exceptions from [`FEWEST_WAVES`].
pub const REASONS: &[Reason] = &[
    Reason {
        family: "vega10",
        kernels: &["conv2d.forward/tiled", "conv2d.backward_input/tiled", "conv2d.backward_weight/tiled"],
        waves: 2,
        why: "A SIMD of this generation has 256 vector registers per lane. Four waves would leave 64 for each, which is what the \
              accumulators of an 8x8 tile take alone. Smaller tiles would do fewer multiply-adds per load. Not measured on such a GPU.",
    },
    Reason {
        family: "vega10",
        kernels: &["batch_norm.backward.sums/channel_reduce"],
        waves: 3,
        why: "Needs a few registers more than 64. It is one dispatch of a training step; the other norms are fused into convolutions.",
    },
];

/// An accepted exception: kernels that may have few waves on one family of GPUs.
pub struct Reason {
    family: &'static str,
    /// Prefixes of `name/variant`.
    kernels: &'static [&'static str],
    /// The fewest waves that are accepted.
    waves: u64,
    why: &'static str,
}

/// The statistics of all kernels on one family of GPUs, in the order of the kernels.
pub struct Generation {
    pub family: String,
    /// Device name and driver version.
    pub device: String,
    pub statistics: Vec<Statistics>,
}

pub struct Report {
    pub text: String,
    /// Kernels that break a rule.
    pub faults: Vec<String>,
}

const HEAD: &str = "\
# Kernels compiled for AMD GPUs

This page is written by

    cargo run --release -p radv-report -- docs/gpu-report.md

It shows what Mesa's ACO compiler generates for AMD GPUs. No AMD hardware is needed: with `RADV_FORCE_FAMILY` set, Mesa's RADV driver
compiles for a GPU that is not present and runs nothing. The figures describe code, not speed.
";

const LEGEND: &str = "\
A row is a kernel in one variant, compiled for each of its shapes. Where shapes differ, the cell gives minimum and maximum.

| column | meaning |
| --- | --- |
| step | dispatches per training step; empty for kernels that only `--variant`, evaluation or a run without fusion uses |
| shapes | number of specializations |
| VGPRs, SGPRs | vector and scalar registers |
| spills | spilled registers of both kinds |
| LDS | workgroup memory in bytes |
| waves | waves that fit on a SIMD at the same time |
| instructions | instructions of the whole kernel |
| loop | instructions of the innermost loop with the most multiply-adds |
| multiply-adds, LDS loads | multiply-adds per lane and loads from workgroup memory in that loop |
";

pub fn write(kernels: &[Specialised], generations: &[Generation]) -> Report {
    let mut text = format!(
        "{HEAD}\nThe tables list {} pipelines of the default model at batch size {BATCH}: those of its plan for GPUs, and the other variants made for \
         GPUs.\n\n{LEGEND}",
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
    text.push_str("\n## Rules\n\n");
    let _ = writeln!(
        text,
        "A kernel of the plan may not spill registers or use scratch memory. It must have at least {FEWEST_WAVES} waves per SIMD, with these \
         exceptions:\n"
    );
    for Reason { family, kernels, waves, why } in REASONS {
        let _ = writeln!(text, "- {family}, at least {waves} waves: `{}`. {why}", kernels.join("`, `"));
    }
    text.push_str(if faults.is_empty() { "\nAll kernels comply.\n" } else { "\nThese kernels do not comply:\n\n" });
    for fault in &faults {
        let _ = writeln!(text, "- {fault}");
    }
    Report { text, faults }
}

/// A kernel in one variant, in all its specializations.
struct Row<'a> {
    name: String,
    /// Dispatches per training step.
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

    /// Returns which rule the kernel breaks, if it is in the plan.
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
            what.push(format!("has {waves} wave{} per SIMD", if waves == 1 { "" } else { "s" }));
        }
        (!what.is_empty()).then(|| format!("{family}: `{}` {}", self.name, what.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    /// Returns the fault of a kernel with these figures.
    fn fault(family: &str, spills: u64, scratch: u64, waves: u64, planned: bool) -> Option<String> {
        let all = kernels::all().unwrap();
        let kernel = all.into_iter().find(|k| k.kernel.variant.starts_with("tiled")).unwrap();
        let kernel = Specialised { dispatches: usize::from(planned), ..kernel };
        let found = Statistics { vgprs: 0, sgprs: 0, spills, scratch, lds: 0, waves, instructions: 0, inner: None };
        let generation = Generation { family: family.into(), device: String::new(), statistics: vec![found] };
        let report = write(&[kernel], &[generation]);
        assert_eq!(report.text.contains("do not comply"), !report.faults.is_empty());
        report.faults.into_iter().next()
    }

    #[test]
    fn planned_kernels_may_not_spill_or_have_few_waves() {
        assert_eq!(fault("navi21", 0, 0, 4, true), None);
        assert!(fault("navi21", 1, 0, 4, true).unwrap().contains("spills up to 1"));
        assert!(fault("navi21", 0, 8, 4, true).unwrap().contains("scratch"));
        assert!(fault("navi21", 0, 0, 3, true).unwrap().contains("3 waves"));
        assert_eq!(fault("navi21", 9, 9, 0, false), None);
        // With an accepted reason.
        assert_eq!(fault("vega10", 0, 0, 2, true), None);
        assert!(fault("vega10", 0, 0, 1, true).is_some());
    }
}
