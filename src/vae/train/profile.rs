//! Profile of a training step: the time of its dispatches, summed by kernel.

use std::fmt;

use serde::Serialize;

use crate::runtime::gpu::Span;

/// Timings of one training step on the device and on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Number of the step, from 1.
    pub step: u64,
    /// Adapter, driver and backend.
    pub device: String,
    /// Dispatches in order.
    pub spans: Vec<Span>,
    /// Work on the host.
    pub host: Vec<HostSpan>,
}

/// Work of the host for the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostSpan {
    /// `prepare`, `encode and submit` or `wait`.
    pub name: &'static str,
    /// Start in nanoseconds, relative to the end of submission.
    pub begin_ns: f64,
    /// Duration in nanoseconds.
    pub ns: f64,
}

/// Total of the dispatches of one kernel and variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Kernel, e.g. `conv2d.forward`.
    pub kernel: &'static str,
    /// Variant of the kernel.
    pub variant: &'static str,
    /// Number of dispatches with a valid time.
    pub dispatches: usize,
    /// Total time in milliseconds.
    pub ms: f64,
    /// Share of the time of all dispatches, in percent.
    pub share: f64,
}

/// Profile by kernel, in order of decreasing time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Number of the step, from 1.
    pub step: u64,
    /// One row per kernel and variant.
    pub kernels: Vec<Row>,
    /// Number of dispatches with a valid time.
    pub dispatches: usize,
    /// Total time in milliseconds.
    pub ms: f64,
    /// Time from the start of the first dispatch to the end of the last in milliseconds, including copies and gaps.
    pub elapsed_ms: f64,
    /// Number of dispatches with invalid timestamps, which are in no row and no sum.
    pub invalid: usize,
    /// Name and milliseconds of the work on the host.
    pub host: Vec<(&'static str, f64)>,
}

impl Profile {
    /// Sums the dispatches by kernel and variant.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut kernels: Vec<Row> = Vec::new();
        let (mut dispatches, mut ms, mut last, mut invalid) = (0, 0.0, 0.0f64, 0);
        for Span { kernel, variant, begin_ns, ns, .. } in &self.spans {
            let (Some(begin), Some(ns)) = (begin_ns, ns) else {
                invalid += 1;
                continue;
            };
            last = last.max(begin + ns);
            dispatches += 1;
            ms += ns / 1e6;
            match kernels.iter_mut().find(|row| (row.kernel, row.variant) == (*kernel, *variant)) {
                Some(row) => {
                    row.dispatches += 1;
                    row.ms += ns / 1e6;
                }
                None => kernels.push(Row { kernel, variant, dispatches: 1, ms: ns / 1e6, share: 0.0 }),
            }
        }
        for row in &mut kernels {
            row.share = 100.0 * row.ms / ms;
        }
        kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let host = self.host.iter().map(|span| (span.name, span.ns / 1e6)).collect();
        Summary { step: self.step, kernels, dispatches, ms, elapsed_ms: last / 1e6, invalid, host }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "profile of step {}", self.step)?;
        writeln!(f, "{:<34} {:<16} {:>10} {:>10} {:>7}", "kernel", "variant", "dispatches", "ms", "share")?;
        for Row { kernel, variant, dispatches, ms, share } in &self.kernels {
            writeln!(f, "{kernel:<34} {variant:<16} {dispatches:>10} {ms:>10.3} {share:>5.1} %")?;
        }
        writeln!(
            f,
            "{:<34} {:<16} {:>10} {:>10.3} of {:.3} ms from first to last",
            "total on the device", "", self.dispatches, self.ms, self.elapsed_ms
        )?;
        if self.invalid > 0 {
            writeln!(f, "not counted: {} dispatches with invalid timestamps", self.invalid)?;
        }
        let host: Vec<_> = self.host.iter().map(|(name, ms)| format!("{name} {ms:.3} ms")).collect();
        write!(f, "host: {}", host.join(", "))
    }
}
