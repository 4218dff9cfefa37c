//! Hooks for tests. Not part of the public interface.

use crate::runtime::kernel::DeviceKind;

/// Changes to a device that make rare conditions common. All are off by default.
#[derive(Clone, Debug, Default)]
pub struct TestHooks {
    /// The kind of device for which kernels are chosen and cut into workgroups, instead of the adapter's.
    pub kind: Option<DeviceKind>,
    /// Upper limit of workgroups in one dimension of a dispatch, which tests the folding of grids.
    pub max_workgroups: Option<u32>,
    /// Smallest and largest subgroup size, whether or not the adapter has subgroups. For kernels that emulate them.
    pub subgroup: Option<(u32, u32)>,
    /// Upper limit of the size of a buffer in bytes.
    pub max_buffer: Option<u64>,
    /// Memory available for buffers in bytes.
    pub memory: Option<u64>,
    /// Reverses the order in which workgroups take their tiles. Results must not depend on it.
    pub reverse_workgroups: bool,
}

/// Numbers of live objects of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LiveObjects {
    pub buffers: usize,
    pub bind_groups: usize,
    pub bind_group_layouts: usize,
    pub pipeline_layouts: usize,
    pub textures: usize,
    pub texture_views: usize,
    pub shader_modules: usize,
    pub compute_pipelines: usize,
    pub query_sets: usize,
    pub command_encoders: usize,
    pub command_buffers: usize,
}

impl LiveObjects {
    /// A browser does not count objects.
    #[cfg(target_arch = "wasm32")]
    pub(super) fn of(_: &wgpu::Instance) -> Self {
        Self::default()
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(super) fn of(instance: &wgpu::Instance) -> Self {
        let Some(report) = instance.generate_report() else { return Self::default() };
        let hub = report.hub_report();
        Self {
            buffers: hub.buffers.num_allocated,
            bind_groups: hub.bind_groups.num_allocated,
            bind_group_layouts: hub.bind_group_layouts.num_allocated,
            pipeline_layouts: hub.pipeline_layouts.num_allocated,
            textures: hub.textures.num_allocated,
            texture_views: hub.texture_views.num_allocated,
            shader_modules: hub.shader_modules.num_allocated,
            compute_pipelines: hub.compute_pipelines.num_allocated,
            query_sets: hub.query_sets.num_allocated,
            command_encoders: hub.command_encoders.num_allocated,
            command_buffers: hub.command_buffers.num_allocated,
        }
    }
}
