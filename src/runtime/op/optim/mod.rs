//! The optimizer step: gradient norm, Adam, and restoring the running statistics after a rejected step.

pub mod adam;
pub(crate) mod cases;
pub mod grad_norm;
pub mod restore_states;
pub mod step_scalars;

pub use adam::{Adam, AdamConfig};
pub use grad_norm::GradNorm;
pub use restore_states::RestoreStates;
pub use step_scalars::StepScalars;
