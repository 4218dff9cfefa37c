//! The executor of a model: the CPU reference, or a GPU.

use std::sync::Arc;

use super::device::Device;
use crate::error::Result;
use crate::runtime::exec::{CpuExecutor, Executor, GpuExecutor, OutputId, Report};
use crate::runtime::graph::Arena;
use crate::runtime::plan;

/// Executor of a model, with what it takes to add programs.
#[derive(Debug)]
pub(super) enum Engine {
    Cpu(CpuExecutor<f32>),
    Gpu(Box<GpuExecutor>, plan::Options),
}

impl Engine {
    pub(super) fn new(device: &Device, options: &plan::Options) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Cpu(CpuExecutor::within(options.budget)),
            Device::Gpu(gpu) => {
                let budget = [options.budget, gpu.available_memory()].into_iter().flatten().min();
                let options = plan::Options { budget, ..options.clone() };
                Self::Gpu(Box::new(GpuExecutor::new(Arc::clone(gpu), &options)?), options)
            }
        })
    }

    pub(super) fn get(&self) -> &dyn Executor {
        match self {
            Self::Cpu(exec) => exec,
            Self::Gpu(exec, _) => exec.as_ref(),
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut dyn Executor {
        match self {
            Self::Cpu(exec) => exec,
            Self::Gpu(exec, _) => exec.as_mut(),
        }
    }

    pub(super) async fn reports(&mut self, wait: bool) -> Result<Vec<Report>> {
        match self {
            Self::Cpu(exec) => exec.reports(wait),
            Self::Gpu(exec, _) => exec.reports_async(wait).await,
        }
    }

    pub(super) async fn oldest_reports(&mut self) -> Result<Vec<Report>> {
        match self {
            Self::Cpu(exec) => exec.oldest_reports(),
            Self::Gpu(exec, _) => exec.oldest_reports_async().await,
        }
    }

    pub(super) async fn read(&mut self, output: OutputId) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(exec) => exec.read(output),
            Self::Gpu(exec, _) => exec.read_async(output).await,
        }
    }

    pub(super) async fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(exec) => exec.download(arena),
            Self::Gpu(exec, _) => exec.download_async(arena).await,
        }
    }
}

#[cfg(feature = "statistics")]
impl Device {
    /// Returns an executor for graphs other than the model's.
    pub(crate) fn executor(&self, options: &plan::Options) -> Result<Box<dyn Executor>> {
        Ok(match Engine::new(self, options)? {
            Engine::Cpu(exec) => Box::new(exec),
            Engine::Gpu(exec, _) => exec,
        })
    }
}
