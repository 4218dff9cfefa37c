//! Results of checks, and the report on a device that is written for an issue.

use std::fmt::{self, Write as _};

use super::{Check, CheckOutcome, Comparison};
use crate::error::Result;
use crate::runtime::gpu::Gpu;
use crate::runtime::plan;
use crate::vae::model::{Mode, VaeConfig};

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All tensors are within their limits.
    Passed,
    /// A tensor is not, or the check ended with an error.
    Failed,
    /// The device does not support the kernel.
    NotApplicable,
}

impl Verdict {
    /// Returns `ok`, `FAILED` or `not applicable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// Result of a check.
#[derive(Clone, Debug)]
pub struct CheckResult {
    /// Name of the check: `op/case/pass/variant`.
    pub name: String,
    /// What it found.
    pub verdict: Verdict,
    /// Why the check is not applicable, or the error that ended it.
    pub why: Option<String>,
    /// One comparison per tensor.
    pub tensors: Vec<Comparison>,
}

impl CheckResult {
    /// Runs a check.
    #[must_use]
    pub fn of(check: &Check, gpu: Option<&Gpu>) -> Self {
        Self::new(check, check.run(gpu))
    }

    /// Like [`CheckResult::of`], for a browser.
    pub async fn of_async(check: &Check, gpu: Option<&Gpu>) -> Self {
        Self::new(check, check.run_async(gpu).await)
    }

    fn new(check: &Check, outcome: Result<CheckOutcome>) -> Self {
        let (verdict, tensors, why) = match outcome {
            Ok(CheckOutcome::Ran(tensors)) if !tensors.is_empty() && tensors.iter().all(Comparison::passed) => {
                (Verdict::Passed, tensors, None)
            }
            Ok(CheckOutcome::Ran(tensors)) => (Verdict::Failed, tensors, None),
            Ok(CheckOutcome::NotApplicable(why)) => (Verdict::NotApplicable, Vec::new(), Some(why)),
            Err(error) => (Verdict::Failed, Vec::new(), Some(error.to_string())),
        };
        Self { name: check.to_string(), verdict, why, tensors }
    }

    /// Returns the largest error of a tensor in percent of its limit.
    #[must_use]
    pub fn worst(&self) -> f64 {
        self.tensors.iter().map(|tensor| tensor.share).fold(0.0, f64::max)
    }
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14} {}", self.verdict.name(), self.name)?;
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => write!(f, " ({:.0} % of the error limit)", self.worst()),
        }
    }
}

/// Numbers of checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checks that passed.
    pub passed: usize,
    /// Checks that failed.
    pub failed: usize,
    /// Checks that the device does not support.
    pub not_applicable: usize,
}

impl Tally {
    /// Counts the results.
    #[must_use]
    pub fn of(results: &[CheckResult]) -> Self {
        let count = |verdict| results.iter().filter(|result| result.verdict == verdict).count();
        Self {
            passed: count(Verdict::Passed),
            failed: count(Verdict::Failed),
            not_applicable: count(Verdict::NotApplicable),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, not_applicable } = self;
        write!(f, "{passed} passed, {failed} failed, {not_applicable} not applicable")
    }
}

/// A row of a table of the report.
pub type Fact = (&'static str, String);

/// A report on a device, which is displayed as Markdown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Program, system and adapter.
    pub about: Vec<Fact>,
    /// Measured rates and times.
    pub speed: Vec<Fact>,
    /// Kernels of a training step: name, variant, and number of dispatches.
    pub kernels: Vec<(&'static str, &'static str, usize)>,
    /// Limits of the adapter.
    pub limits: Vec<(&'static str, u64)>,
    /// Results of the checks so far.
    pub results: Vec<CheckResult>,
    /// Number of checks to run, and the one that runs now; `None` when all have run.
    pub running: Option<(usize, String)>,
}

/// Batch size of the training step whose kernels a report lists.
pub const REPORTED_BATCH: usize = 32;

impl Report {
    /// Adds the adapter, its limits, and the kernels of a training step of the default model.
    ///
    /// # Errors
    /// Those of planning the step.
    pub fn add_device(&mut self, gpu: &Gpu) -> Result<()> {
        let (info, profile) = (gpu.adapter_info(), gpu.profile());
        let subgroups = profile.subgroup.map_or("none".to_owned(), |(min, max)| format!("{min} to {max} invocations"));
        self.about.extend([
            ("adapter", info.name.clone()),
            ("type", info.device_type.to_owned()),
            ("backend", info.backend.to_owned()),
            ("driver", info.driver_and_version()),
            ("vendor and device", format!("{:#06x}, {:#06x}", info.vendor, info.device)),
            ("features", info.features.join(", ")),
            ("subgroups", subgroups),
        ]);
        self.limits = info.limits.iter().map(|(name, value)| (*name, *value)).collect();
        let config = VaeConfig::default();
        let (_, plan) = config.plan(REPORTED_BATCH, Mode::Train, profile, &plan::Options::default())?;
        self.kernels = plan.kernels().into_iter().map(|((kernel, variant), count)| (kernel, variant, count)).collect();
        Ok(())
    }

    fn outcome(&self) -> String {
        let tally = Tally::of(&self.results);
        match &self.running {
            None => tally.to_string(),
            Some((planned, name)) => format!(
                "**incomplete**: the program ended at check {} of {planned} or soon after (`{name}`); {tally}",
                self.results.len() + 1
            ),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# vae-wgpu check report\n\n| | |\n| --- | --- |\n| checks | {} |", self.outcome())?;
        for (name, value) in &self.about {
            writeln!(f, "| {name} | {} |", cell(value))?;
        }
        if !self.speed.is_empty() {
            writeln!(f, "\n## Speed\n\n| | |\n| --- | --- |")?;
            for (name, value) in &self.speed {
                writeln!(f, "| {name} | {} |", cell(value))?;
            }
        }
        let failed = || self.results.iter().filter(|result| result.verdict == Verdict::Failed);
        writeln!(f, "\n## Failed checks\n")?;
        if failed().next().is_none() {
            writeln!(f, "None.")?;
        } else {
            let mut text = String::new();
            for result in failed() {
                writeln!(text, "{result}")?;
                for tensor in result.tensors.iter().filter(|tensor| !tensor.passed()) {
                    writeln!(text, "    {tensor}")?;
                }
            }
            block(f, &text)?;
        }
        if !self.kernels.is_empty() {
            writeln!(f, "\n## Kernels of a training step\n\n| kernel | variant | dispatches |\n| --- | --- | --- |")?;
            for (kernel, variant, dispatches) in &self.kernels {
                writeln!(f, "| {kernel} | {variant} | {dispatches} |")?;
            }
        }
        if !self.limits.is_empty() {
            writeln!(f, "\n## Limits of the adapter\n\n| limit | value |\n| --- | --- |")?;
            for (limit, value) in &self.limits {
                writeln!(f, "| {limit} | {value} |")?;
            }
        }
        writeln!(f, "\n## All checks\n\nThe largest error of a tensor, in percent of the error limit.\n")?;
        let mut text = String::new();
        for result in &self.results {
            writeln!(text, "{result}")?;
        }
        block(f, &text)
    }
}

/// Writes lines as they are, as a block of code.
fn block(f: &mut fmt::Formatter<'_>, lines: &str) -> fmt::Result {
    // Messages of drivers may contain the marks of a block.
    writeln!(f, "```text\n{}```", lines.replace("```", "'''"))
}

/// Text in a cell of a table: on one line and without the mark between columns.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(name: &str, verdict: Verdict, why: Option<&str>, shares: &[f64]) -> CheckResult {
        let tensor = |share: &f64| Comparison {
            share: *share,
            error: *share,
            limit: 100.0,
            ..Comparison::new(format!("{name}.dx"))
        };
        CheckResult {
            name: name.to_owned(),
            verdict,
            why: why.map(str::to_owned),
            tensors: shares.iter().map(tensor).collect(),
        }
    }

    fn report() -> Report {
        Report {
            about: vec![("adapter", "Voodoo | 2\n3000".to_owned())],
            speed: vec![("copy", "1 GB/s".to_owned())],
            kernels: vec![("conv2d.forward", "tiled", 3)],
            limits: vec![("max_buffer_size", 7)],
            results: vec![
                result("add/small", Verdict::Passed, None, &[3.0, 12.0]),
                result("add/odd", Verdict::Failed, None, &[50.0, 307.0]),
                result("relu/small", Verdict::NotApplicable, Some("no subgroups"), &[]),
                result("relu/odd", Verdict::Failed, Some("device lost ```"), &[]),
            ],
            running: None,
        }
    }

    #[test]
    fn report_has_every_check_and_the_tensors_that_failed() {
        let text = report().to_string();
        for part in [
            "| checks | 1 passed, 2 failed, 1 not applicable |\n| adapter | Voodoo \\| 2 3000 |\n",
            "## Speed\n\n| | |\n| --- | --- |\n| copy | 1 GB/s |\n",
            "| conv2d.forward | tiled | 3 |\n",
            "| max_buffer_size | 7 |\n",
            "ok             add/small (12 % of the error limit)\n",
            "FAILED         add/odd (307 % of the error limit)\n    FAILED add/odd.dx[0]: ",
            "not applicable relu/small: no subgroups\n",
            "FAILED         relu/odd: device lost '''\n",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        // Once among the failed ones and once among all; the tensor that passed is not listed.
        assert_eq!(text.matches("add/odd (307").count(), 2, "{text}");
        assert_eq!(text.matches("add/odd.dx").count(), 1, "{text}");
        assert_eq!(text.matches("```").count(), 4, "{text}");
    }

    #[test]
    fn unfinished_report_names_the_check_that_ran() {
        let text = Report { running: Some((9, "relu/large".to_owned())), ..report() }.to_string();
        assert!(text.contains("ended at check 5 of 9 or soon after (`relu/large`)"), "{text}");
        let none = Report::default().to_string();
        assert!(none.contains("| checks | 0 passed, 0 failed, 0 not applicable |") && none.contains("None."), "{none}");
    }
}
