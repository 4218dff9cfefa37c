//! The kernels of the default model on a GPU, specialized for its shapes, and their SPIR-V as wgpu obtains it from naga.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use naga::ShaderStage;
use naga::back::{PipelineConstants, pipeline_constants::process_overrides, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use vae_wgpu::error::Error;
use vae_wgpu::runtime::kernel::{Dispatch, Kernel, Profile};
use vae_wgpu::runtime::op::Target;
use vae_wgpu::runtime::plan;
use vae_wgpu::vae::model::{Mode, VaeConfig};

/// Images per batch.
pub const BATCH: usize = 128;

/// A kernel with the values of its flags and overrides.
pub struct Specialised {
    pub kernel: &'static Kernel,
    pub flags: Vec<(&'static str, i64)>,
    pub overrides: Vec<(&'static str, f64)>,
    /// Size of the uniform buffer in bytes.
    pub params: usize,
    /// Dispatches per training step; 0 for kernels that only `--variant`, evaluation or a run without fusion uses.
    pub dispatches: usize,
}

/// Subgroup sizes as wgpu reports them for AMD GPUs, with WebGPU's default limits.
const PROFILE: Profile = Profile { subgroup: Some((32, 64)), ..Profile::WEBGPU };

/// Variants for software drivers.
const SOFTWARE: [&str; 3] = ["subgroup_tex", "subgroup", "register_tiled"];

/// Returns all specializations, sorted by name, variant, flags and overrides.
pub fn all() -> Result<Vec<Specialised>> {
    /// Name, variant, flags and bits of the overrides.
    type Key = (&'static str, &'static str, Vec<i64>, Vec<u64>);
    let mut found: BTreeMap<Key, Specialised> = BTreeMap::new();
    let mut add = |dispatch: Dispatch, planned: bool| {
        let Dispatch { kernel, flags, overrides, params, .. } = dispatch;
        let set = flags.iter().map(|(_, value)| *value).collect();
        let bits = overrides.iter().map(|(_, value)| value.to_bits()).collect();
        let entry = found.entry((kernel.name, kernel.variant, set, bits));
        let kernel = entry.or_insert(Specialised { kernel, flags, overrides, params: params.len(), dispatches: 0 });
        kernel.dispatches += usize::from(planned);
    };
    let config = VaeConfig::default();
    for mode in [Mode::Train, Mode::Evaluate, Mode::Encode, Mode::Decode] {
        let (_, plan) = config.plan(BATCH, mode, &PROFILE, &plan::Options::default())?;
        plan.dispatches.into_iter().for_each(|placed| add(placed.dispatch, mode == Mode::Train));
        // Kernels that options can select, without the variants for software adapters.
        for graph in [config.graph(BATCH, mode)?, config.fused_graph(BATCH, mode)?] {
            for node in graph.nodes() {
                let variants = node.op.variants(node.pass.name).iter().copied();
                for variant in variants.filter(|variant| !SOFTWARE.contains(variant)) {
                    let target = Target { profile: &PROFILE, variant: Some(variant), accumulate: &node.accumulate };
                    match node.op.lower(node.pass.name, &target) {
                        Ok(lowered) => lowered.dispatches.into_iter().for_each(|dispatch| add(dispatch, false)),
                        Err(Error::Unsupported { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
    Ok(found.into_values().collect())
}

impl Specialised {
    /// Returns SPIR-V 1.6, as for Vulkan 1.3 with robust buffer access: naga checks only the indices of arrays of known length.
    pub fn spirv(&self) -> Result<Vec<u32>> {
        let kernel = self.kernel;
        let wgsl = kernel.wgsl(&self.flags)?;
        let module = naga::front::wgsl::parse_str(&wgsl)?;
        let capabilities = if kernel.subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
        let info = Validator::new(ValidationFlags::all(), capabilities).validate(&module)?;
        let constants: PipelineConstants =
            self.overrides.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let entry = Some((ShaderStage::Compute, kernel.entry));
        let (module, info) = process_overrides(&module, &info, entry, &constants)?;
        let options = spv::Options {
            lang_version: (1, 6),
            flags: spv::WriterFlags::LABEL_VARYINGS,
            bounds_check_policies: BoundsCheckPolicies {
                index: BoundsCheckPolicy::Restrict,
                buffer: BoundsCheckPolicy::Unchecked,
                image_load: BoundsCheckPolicy::Unchecked,
                binding_array: BoundsCheckPolicy::Unchecked,
            },
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            ..Default::default()
        };
        let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.entry.into() };
        spv::write_vec(&module, &info, &options, Some(&pipeline)).context("naga to SPIR-V")
    }
}
