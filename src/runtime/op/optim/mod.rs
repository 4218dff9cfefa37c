//! The optimizer step: gradient norm, Adam, restoring the running statistics after a rejected step, the sum of gradients over the
//! micro-batches of a step, and the running statistics of a step of several processes.

pub mod accumulate;
pub mod adam;
pub(crate) mod cases;
pub mod grad_norm;
pub mod micro_batch;
pub mod replay_states;
pub mod restore_states;
pub mod scale;
pub mod step_scalars;

pub use accumulate::Accumulate;
pub use adam::{Adam, AdamConfig};
pub use grad_norm::GradNorm;
pub use micro_batch::{Carry, MAX_MICRO_BATCHES, MicroBatch};
pub use replay_states::ReplayStates;
pub use restore_states::RestoreStates;
pub use scale::Scale;
pub use step_scalars::StepScalars;
