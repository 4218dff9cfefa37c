//! The device of a model.

use std::sync::Arc;

use crate::runtime::exec::{CpuExecutor, Executor};
use crate::runtime::gpu::Gpu;

/// Where a model runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU reference.
    Cpu,
    /// A GPU or a software driver.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// Returns device, driver and backend as text.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu => CpuExecutor::<f32>::within(None).describe(),
            Self::Gpu(gpu) => gpu.adapter_info().to_string(),
        }
    }

    /// Returns whether the device computes on the CPU: the reference, or a software driver.
    #[must_use]
    pub fn is_software(&self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Gpu(gpu) => gpu.adapter_info().device_type == "cpu",
        }
    }
}
