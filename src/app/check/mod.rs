//! Checks of operations: gradients against finite differences, kernels against the CPU reference.
//!
//! The backward passes of the reference are compared with central differences of its forward pass, both in `f64`. Every kernel in every
//! variant is compared with the reference in [`Tracked`](crate::runtime::tensor::real::Tracked) arithmetic, which estimates the rounding error
//! of each element. Values and upstream gradients are random: ramps would hide swapped axes, and a gradient of all ones vanishes in a batch
//! norm.
//!
//! A broken kernel must not pass. Outputs and scratch buffers are filled with a NaN pattern that must disappear, a sentinel after each
//! tensor must survive, padding must be zero, and a comparison fails unless `error <= limit`. The mutants in `tests/gpu/mutants.rs` break
//! kernels on purpose with a [`Patch`], and each must fail its checks.
//!
//! [`bisect`] finds the first wrong tensor of a whole training step, for errors that no single kernel shows.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::gpu::Gpu;
use crate::runtime::kernel::Profile;
use crate::runtime::op::{Case, OPS, OpInfo, Target};
use crate::runtime::sys::platform::block_on;

mod bisect;
mod case;
mod comparison;
mod differences;
mod kernel;
mod report;

pub use bisect::{Distance, bisect};
pub use case::PreparedCase;
pub use comparison::Comparison;
pub use kernel::Patch;
pub use report::{CheckResult, Fact, REPORTED_BATCH, Report, Tally, Verdict};

/// Outcome of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum CheckOutcome {
    /// The check ran; one comparison per tensor, at least one.
    Ran(Vec<Comparison>),
    /// The device does not support the kernel, for this reason.
    NotApplicable(String),
}

/// A check of one operation.
#[derive(Clone, Debug)]
pub struct Check {
    /// Kind of the operation.
    pub op: &'static str,
    /// The case, shared by its checks.
    pub case: Arc<PreparedCase>,
    /// What the check compares.
    pub kind: CheckKind,
}

/// The comparison that a check makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Gradients of the reference with finite differences.
    FiniteDifferences,
    /// A kernel with the reference.
    Gpu {
        /// Pass of the operation.
        pass: &'static str,
        /// Variant of the pass.
        variant: &'static str,
    },
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.op, self.case.case.name)?;
        match &self.kind {
            CheckKind::FiniteDifferences => f.write_str("finite_differences"),
            CheckKind::Gpu { pass, variant } => write!(f, "{pass}/{variant}"),
        }
    }
}

impl Check {
    /// Returns whether the check needs a device.
    #[must_use]
    pub fn needs_gpu(&self) -> bool {
        self.kind != CheckKind::FiniteDifferences
    }

    /// Returns the reason if the check cannot run on a device of this profile.
    ///
    /// # Errors
    /// Those of lowering the pass.
    pub fn not_applicable(&self, profile: &Profile) -> Result<Option<String>> {
        let CheckKind::Gpu { pass, variant } = self.kind else { return Ok(None) };
        let target = Target { profile, variant: Some(variant), accumulate: &[] };
        match self.case.op().lower(pass, &target) {
            Err(lacking @ Error::Unsupported { .. }) => Ok(Some(lacking.to_string())),
            lowered => lowered.map(|_| None),
        }
    }

    /// Runs the check. Without a device, a check of a kernel is not applicable.
    ///
    /// # Errors
    /// Those of the device, and [`Error::Bug`] for an operation with contradictory passes.
    pub fn run(&self, gpu: Option<&Gpu>) -> Result<CheckOutcome> {
        block_on(self.run_async(gpu))
    }

    /// Like [`Check::run`], for a browser.
    ///
    /// # Errors
    /// As [`Check::run`].
    pub async fn run_async(&self, gpu: Option<&Gpu>) -> Result<CheckOutcome> {
        match (&self.kind, gpu) {
            (CheckKind::FiniteDifferences, _) => self.case.finite_differences().map(CheckOutcome::Ran),
            (CheckKind::Gpu { .. }, None) => Ok(CheckOutcome::NotApplicable("there is no device".into())),
            (CheckKind::Gpu { pass, variant }, Some(gpu)) => {
                self.case.gpu_vs_reference_async(gpu, pass, variant, None).await
            }
        }
    }
}

/// Returns the checks of all operations: for each case, finite differences where they apply, and every pass in every variant.
///
/// # Errors
/// Those of building the cases.
pub fn suite() -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for info in OPS {
        for case in (info.cases)()? {
            checks.extend(checks_of(info, case));
        }
    }
    Ok(checks)
}

fn checks_of(info: &OpInfo, case: Case) -> Vec<Check> {
    let passes = case.op.passes();
    let mut kinds = Vec::new();
    if case.differentiable && !(passes.backward.is_empty() && passes.aliases.is_empty()) {
        kinds.push(CheckKind::FiniteDifferences);
    }
    for pass in passes.iter() {
        let variants = case.op.variants(pass.name).iter();
        kinds.extend(variants.map(|&variant| CheckKind::Gpu { pass: pass.name, variant }));
    }
    let case = Arc::new(PreparedCase::new(case));
    kinds.into_iter().map(|kind| Check { op: info.name, case: Arc::clone(&case), kind }).collect()
}
