//! What a program that uses the library imports: `use vae_wgpu::prelude::*`.

pub use crate::error::{Error, Result};
pub use crate::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor};
pub use crate::runtime::gpu::{Gpu, Options as GpuOptions};
pub use crate::runtime::graph::{Arena, Builder, Graph, Root, ValueId, initial};
pub use crate::runtime::op::{
    Add, BatchNorm, BatchNormConfig, Conv, Elbo, ElboConfig, GlobalAvgPool, Likelihood, Op, PositionNorm,
    PositionNormConfig, Relu, Reparameterize, Upsample,
};
pub use crate::runtime::plan::Options as PlanOptions;
pub use crate::runtime::tensor::{Shape, Spec};
#[cfg(not(runtime_only))]
pub use crate::vae::{
    data::{self, Dataset, Images, InMemoryImages},
    model::{Mode, Norm, VaeConfig},
    runner::{Device, Hyperparams, Runner},
    train::{
        Settings, TrainContext, Trainer,
        events::{Event, Observer, Quiet},
        memory_store::InMemoryRun,
    },
};
