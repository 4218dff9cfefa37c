//! Kernels in the languages that wgpu translates them to, to look at.

use naga::back::pipeline_constants::process_overrides;
use naga::back::{PipelineConstants, hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use naga::{Module, ResourceBinding, ShaderStage};

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Kernel};

/// A shader language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// WGSL, after our preprocessor and before the pipeline-overridable constants are set.
    Wgsl,
    /// SPIR-V 1.3, as little-endian words: Vulkan.
    Spirv,
    /// Metal Shading Language.
    Msl,
    /// HLSL: Direct3D 12.
    Hlsl,
}

/// Translates `kernel` with these values of its flags and overrides, with the bounds checks that wgpu asks for.
///
/// # Errors
/// [`Error::Shader`] if the shader is invalid, [`Error::Bug`] if naga cannot translate it.
pub fn emit(
    kernel: &Kernel,
    flags: &[(&'static str, i64)],
    overrides: &[(&'static str, f64)],
    language: Language,
) -> Result<Vec<u8>> {
    let expanded = kernel.expand(flags)?;
    let (module, info) = kernel.validate(&expanded)?;
    if language == Language::Wgsl {
        return Ok(expanded.wgsl.into_bytes());
    }
    let failed = |error: String| Error::bug(format!("{}/{}: {error}", kernel.name, kernel.variant));
    let constants: PipelineConstants = overrides.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let entry = (ShaderStage::Compute, kernel.entry);
    let (module, info) =
        process_overrides(&module, &info, Some(entry), &constants).map_err(|e| failed(e.to_string()))?;
    match language {
        Language::Wgsl => Ok(expanded.wgsl.into_bytes()),
        Language::Spirv => {
            let words = spirv(kernel, &module, &info, (1, 3)).map_err(failed)?;
            Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
        }
        Language::Msl => metal(kernel, &module, &info).map(String::into_bytes).map_err(failed),
        Language::Hlsl => hlsl(kernel, &module, &info).map(|(text, _)| text.into_bytes()).map_err(failed),
    }
}

/// The strictest bounds checks that wgpu asks naga for.
const RESTRICT: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Restrict,
    buffer: BoundsCheckPolicy::Restrict,
    image_load: BoundsCheckPolicy::Restrict,
    binding_array: BoundsCheckPolicy::Unchecked,
};

/// The bindings of a kernel in order; `None` is `Params`.
fn resources(kernel: &Kernel) -> impl Iterator<Item = (ResourceBinding, u8, Option<Access>)> {
    let params = (!kernel.params.is_empty()).then_some(None);
    let all = kernel.bindings.iter().map(|(_, access)| Some(*access)).chain(params);
    (0u8..).zip(all).map(|(i, access)| (ResourceBinding { group: 0, binding: i.into() }, i, access))
}

/// Translates a module without overrides to SPIR-V of a version. Only the capabilities of a kernel's declared features are allowed.
///
/// # Errors
/// The message of naga.
pub fn spirv(kernel: &Kernel, module: &Module, info: &ModuleInfo, version: (u8, u8)) -> Result<Vec<u32>, String> {
    let mut capabilities = vec![
        spv::Capability::Shader,
        spv::Capability::Matrix,
        spv::Capability::Sampled1D,
        spv::Capability::Image1D,
        spv::Capability::ImageQuery,
        spv::Capability::DerivativeControl,
        spv::Capability::StorageImageExtendedFormats,
    ];
    if kernel.subgroups {
        capabilities.extend([
            spv::Capability::GroupNonUniform,
            spv::Capability::GroupNonUniformVote,
            spv::Capability::GroupNonUniformArithmetic,
            spv::Capability::GroupNonUniformBallot,
            spv::Capability::GroupNonUniformShuffle,
            spv::Capability::GroupNonUniformShuffleRelative,
        ]);
    }
    let bindings = resources(kernel)
        .map(|(at, i, _)| (at, spv::BindingInfo { descriptor_set: 0, binding: i.into(), binding_array_size: None }));
    let options = spv::Options {
        lang_version: version,
        flags: spv::WriterFlags::LABEL_VARYINGS,
        capabilities: Some(capabilities.into_iter().collect()),
        bounds_check_policies: RESTRICT,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        fake_missing_bindings: false,
        binding_map: bindings.collect(),
        ..Default::default()
    };
    let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.entry.into() };
    spv::write_vec(module, info, &options, Some(&entry)).map_err(|e| e.to_string())
}

/// Translates a module without overrides to the Metal Shading Language.
///
/// # Errors
/// The message of naga.
pub fn metal(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> Result<String, String> {
    let target = |(at, slot, access)| {
        let texture = access == Some(Access::Texture);
        let (buffer, texture) = if texture { (None, Some(slot)) } else { (Some(slot), None) };
        (at, msl::BindTarget { buffer, texture, mutable: access == Some(Access::ReadWrite), ..Default::default() })
    };
    let resources = resources(kernel).map(target).collect();
    let sizes = kernel.bindings.len() as u8 + 1;
    let entry = msl::EntryPointResources { resources, immediates_buffer: None, sizes_buffer: Some(sizes) };
    let options = msl::Options {
        lang_version: if kernel.subgroups { (2, 4) } else { (2, 0) },
        per_entry_point_map: [(kernel.entry.to_owned(), entry)].into(),
        fake_missing_bindings: false,
        spirv_cross_compatibility: false,
        bounds_check_policies: RESTRICT,
        zero_initialize_workgroup_memory: false,
        ..Default::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, kernel.entry.to_owned())),
        ..Default::default()
    };
    let (text, translated) = msl::write_string(module, info, &options, &pipeline).map_err(|e| e.to_string())?;
    translated.entry_point_names.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    Ok(text)
}

/// Translates a module without overrides to HLSL, and returns it with the name of its entry point.
///
/// # Errors
/// The message of naga.
pub fn hlsl(kernel: &Kernel, module: &Module, info: &ModuleInfo) -> Result<(String, String), String> {
    let target = |(at, slot, _): (_, u8, _)| {
        let target = hlsl::BindTarget {
            space: 0,
            register: slot.into(),
            binding_array_size: None,
            dynamic_storage_buffer_offsets_index: None,
            restrict_indexing: true,
        };
        (at, target)
    };
    let options = hlsl::Options {
        shader_model: if kernel.subgroups { hlsl::ShaderModel::V6_0 } else { hlsl::ShaderModel::V5_1 },
        binding_map: resources(kernel).map(target).collect(),
        fake_missing_bindings: false,
        special_constants_binding: None,
        // As in the crate's pipelines; glslang does not support the cast in naga's zero fill.
        zero_initialize_workgroup_memory: false,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, kernel.entry.to_owned())) };
    let mut text = String::new();
    let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
    let translated = writer.write(module, info, None).map_err(|e| e.to_string())?;
    let names: Vec<String> =
        translated.entry_point_names.into_iter().collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    match names.as_slice() {
        [name] => Ok((text, name.clone())),
        other => Err(format!("{} entry points", other.len())),
    }
}
