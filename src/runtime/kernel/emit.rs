//! Kernels in the languages that wgpu translates them to, to look at.

use std::fmt;

use naga::back::pipeline_constants::process_overrides;
use naga::back::{PipelineConstants, hlsl, msl, spv};
use naga::{ResourceBinding, ShaderStage};

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

/// Translates `kernel` with these values of its flags and overrides.
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
    let failed = |error: &dyn fmt::Display| Error::bug(format!("{}/{}: {error}", kernel.name, kernel.variant));
    let constants: PipelineConstants = overrides.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let entry = (ShaderStage::Compute, kernel.entry);
    let (module, info) = process_overrides(&module, &info, Some(entry), &constants).map_err(|e| failed(&e))?;
    let entry = Some((ShaderStage::Compute, kernel.entry.to_owned()));
    match language {
        Language::Wgsl => Ok(expanded.wgsl.into_bytes()),
        Language::Spirv => {
            let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
            let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: kernel.entry.into() };
            let words = spv::write_vec(&module, &info, &options, Some(&entry)).map_err(|e| failed(&e))?;
            Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
        }
        Language::Msl => {
            let options = msl_options(kernel);
            let pipeline = msl::PipelineOptions { entry_point: entry, ..msl::PipelineOptions::default() };
            let (text, _) = msl::write_string(&module, &info, &options, &pipeline).map_err(|e| failed(&e))?;
            Ok(text.into_bytes())
        }
        Language::Hlsl => {
            let options = hlsl_options(kernel);
            let pipeline = hlsl::PipelineOptions { entry_point: entry };
            let mut text = String::new();
            let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
            writer.write(&module, &info, None).map_err(|e| failed(&e))?;
            Ok(text.into_bytes())
        }
    }
}

/// The bindings of a kernel; `None` is `Params`.
fn resources(kernel: &Kernel) -> impl Iterator<Item = (ResourceBinding, u8, Option<Access>)> {
    let params = (!kernel.params.is_empty()).then_some(None);
    let all = kernel.bindings.iter().map(|(_, access)| Some(*access)).chain(params);
    (0u8..).zip(all).map(|(i, access)| (ResourceBinding { group: 0, binding: i.into() }, i, access))
}

fn msl_options(kernel: &Kernel) -> msl::Options {
    let target = |(at, slot, access)| {
        let (buffer, texture) = if access == Some(Access::Texture) { (None, Some(slot)) } else { (Some(slot), None) };
        let mutable = access == Some(Access::ReadWrite);
        (at, msl::BindTarget { buffer, texture, mutable, ..msl::BindTarget::default() })
    };
    let entry = msl::EntryPointResources {
        resources: resources(kernel).map(target).collect(),
        immediates_buffer: None,
        sizes_buffer: Some(kernel.bindings.len() as u8 + 1),
    };
    msl::Options {
        lang_version: if kernel.subgroups { (2, 4) } else { (2, 0) },
        per_entry_point_map: [(kernel.entry.to_owned(), entry)].into(),
        fake_missing_bindings: false,
        zero_initialize_workgroup_memory: false,
        ..msl::Options::default()
    }
}

fn hlsl_options(kernel: &Kernel) -> hlsl::Options {
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
    hlsl::Options {
        shader_model: if kernel.subgroups { hlsl::ShaderModel::V6_0 } else { hlsl::ShaderModel::V5_1 },
        binding_map: resources(kernel).map(target).collect(),
        fake_missing_bindings: false,
        zero_initialize_workgroup_memory: false,
        ..hlsl::Options::default()
    }
}
