//! Which adapters there are, what is known of them, and which one to take.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::Options;
use crate::error::{Error, Result};
use crate::runtime::kernel::TEXTURE_WIDTH;
use crate::runtime::kernel::{DeviceKind, Profile};

/// How an adapter is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// The best kind: discrete, integrated, virtual, then CPU.
    #[default]
    Auto,
    /// By its number in [`adapters`].
    Index(usize),
    /// By a part of its name, upper and lower case alike; of several the best kind.
    Name(String),
}

impl FromStr for Select {
    type Err = Error;

    /// Reads `auto`, a number, or a part of a name.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        Ok(match text.parse() {
            Ok(index) => Self::Index(index),
            Err(_) if text.is_empty() || text.eq_ignore_ascii_case("auto") => Self::Auto,
            Err(_) => Self::Name(text.to_owned()),
        })
    }
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What is known of an adapter.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterInfo {
    /// Number in [`adapters`].
    pub index: usize,
    /// Name, e.g. `llvmpipe (LLVM 15.0.6, 256 bits)`.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: &'static str,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub device_type: &'static str,
    /// Driver.
    pub driver: String,
    /// Version of the driver.
    pub driver_info: String,
    /// PCI vendor id, or what the backend has for it.
    pub vendor: u32,
    /// PCI device id, or what the backend has for it.
    pub device: u32,
    /// Optional features that this crate makes use of, where the adapter has them.
    pub features: Vec<&'static str>,
    /// The adapter's own limits that training may run into.
    pub limits: BTreeMap<&'static str, u64>,
    /// What kernels and plans may depend on, for a device opened with the given options.
    pub profile: Profile,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}", self.name, self.backend, self.device_type)?;
        match [self.driver.as_str(), self.driver_info.as_str()].join(" ").trim() {
            "" => f.write_str(")"),
            driver => write!(f, ", {driver})"),
        }
    }
}

/// Optional features in use, by the names under which they are listed.
const FEATURES: &[(&str, wgpu::Features)] = &[
    ("subgroups", wgpu::Features::SUBGROUP),
    ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
    ("timestamps_inside_encoders", wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
    ("timestamps_inside_passes", wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
    ("pipeline_cache", wgpu::Features::PIPELINE_CACHE),
];

impl AdapterInfo {
    fn new(index: usize, adapter: &wgpu::Adapter, options: &Options) -> Self {
        let info = adapter.get_info();
        let (features, limits) = (adapter.features(), adapter.limits());
        Self {
            index,
            backend: info.backend.to_str(),
            device_type: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => "discrete",
                wgpu::DeviceType::IntegratedGpu => "integrated",
                wgpu::DeviceType::VirtualGpu => "virtual",
                wgpu::DeviceType::Cpu => "cpu",
                wgpu::DeviceType::Other => "other",
            },
            vendor: info.vendor,
            device: info.device,
            features: FEATURES.iter().filter(|(_, f)| features.contains(*f)).map(|(name, _)| *name).collect(),
            limits: BTreeMap::from([
                ("max_buffer_size", limits.max_buffer_size),
                ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size),
                ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage.into()),
                ("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size.into()),
                ("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup.into()),
                ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into()),
            ]),
            profile: profile(&info, features_wanted(features, options), &limits_wanted(&limits, options), options),
            name: info.name,
            driver: info.driver,
            driver_info: info.driver_info,
        }
    }

    /// Sorts the better kinds first.
    fn rank(&self) -> (u8, Reverse<usize>) {
        let kind = match self.device_type {
            "discrete" => 4,
            "integrated" => 3,
            "virtual" => 2,
            "other" => 1,
            _ => 0,
        };
        (kind, Reverse(self.index))
    }
}

/// The optional features to ask for: none, or all of [`FEATURES`] that there are.
pub(super) fn features_wanted(there: wgpu::Features, options: &Options) -> wgpu::Features {
    if options.webgpu_defaults {
        return wgpu::Features::empty();
    }
    let wanted = FEATURES.iter().fold(wgpu::Features::empty(), |all, (_, feature)| all | *feature);
    there & if options.timestamps { wanted } else { wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE }
}

/// WebGPU's default limits, so that nothing in this crate comes to depend on more, but with buffers as large as they can be.
pub(super) fn limits_wanted(there: &wgpu::Limits, options: &Options) -> wgpu::Limits {
    let mut limits = wgpu::Limits::default();
    if !options.webgpu_defaults {
        limits.max_buffer_size = limits.max_buffer_size.max(there.max_buffer_size);
        limits.max_storage_buffer_binding_size =
            limits.max_storage_buffer_binding_size.max(there.max_storage_buffer_binding_size);
    }
    limits
}

fn profile(info: &wgpu::AdapterInfo, features: wgpu::Features, limits: &wgpu::Limits, options: &Options) -> Profile {
    let max_workgroups = limits.max_compute_workgroups_per_dimension;
    let (max_binding, max_buffer) = (limits.max_storage_buffer_binding_size, limits.max_buffer_size);
    Profile {
        kind: if info.device_type == wgpu::DeviceType::Cpu { DeviceKind::Software } else { DeviceKind::Gpu },
        subgroup: options.subgroup.or(features
            .contains(wgpu::Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size))),
        max_workgroups: options.max_workgroups.map_or(max_workgroups, |max| max.clamp(1, max_workgroups)),
        max_binding: options.max_buffer.map_or(max_binding, |max| max.min(max_binding)),
        max_buffer: options.max_buffer.map_or(max_buffer, |max| max.min(max_buffer)),
        offset_alignment: limits.min_storage_buffer_offset_alignment,
        max_texture: 16 * u64::from(TEXTURE_WIDTH) * u64::from(limits.max_texture_dimension_2d),
    }
}

/// An instance as the environment wants it (`WGPU_BACKEND`, `WGPU_VALIDATION`, `WGPU_DEBUG`, ...). Adapters that do not comply
/// with their own API, which some software drivers are, are let in.
pub(super) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.flags |= wgpu::InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER;
    wgpu::Instance::new(descriptor.with_env())
}

fn list(instance: &wgpu::Instance, options: &Options) -> Vec<(wgpu::Adapter, AdapterInfo)> {
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let facts = |(index, adapter): (usize, wgpu::Adapter)| {
        let facts = AdapterInfo::new(index, &adapter, options);
        (adapter, facts)
    };
    adapters.into_iter().enumerate().map(facts).collect()
}

/// All adapters, software ones included, on the backends that `WGPU_BACKEND` allows; none is no error.
#[must_use]
pub fn adapters() -> Vec<AdapterInfo> {
    list(&instance(), &Options::default()).into_iter().map(|(_, facts)| facts).collect()
}

/// The adapter that `options` ask for.
pub(super) fn choose(instance: &wgpu::Instance, options: &Options) -> Result<(wgpu::Adapter, AdapterInfo)> {
    let adapters = list(instance, options);
    let found = match adapters.as_slice() {
        [] => "none found".to_owned(),
        some => {
            let names: Vec<_> = some.iter().map(|(_, facts)| format!("{}: {facts}", facts.index)).collect();
            format!("found {}", names.join("; "))
        }
    };
    let hint = if adapters.is_empty() {
        "install a Vulkan driver (a software one on Debian and Ubuntu: `apt install mesa-vulkan-drivers`), or run with \
         `--device cpu`"
    } else {
        "choose one with --device, by number or by a part of its name"
    };
    let fits = |facts: &AdapterInfo| match &options.select {
        Select::Auto => true,
        Select::Index(index) => facts.index == *index,
        Select::Name(name) => facts.name.to_lowercase().contains(&name.to_lowercase()),
    };
    adapters
        .into_iter()
        .filter(|(_, facts)| fits(facts))
        .max_by_key(|(_, facts)| facts.rank())
        .ok_or_else(|| Error::NoAdapter { wanted: format!("asked for `{}`", options.select), found, hint: hint.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_read_and_printed() {
        for (text, select) in [
            ("auto", Select::Auto),
            ("AUTO", Select::Auto),
            ("", Select::Auto),
            ("2", Select::Index(2)),
            ("llvm", Select::Name("llvm".into())),
        ] {
            let read: Select = text.parse().unwrap();
            assert_eq!(read, select);
            assert_eq!(read.to_string().parse::<Select>().unwrap(), select);
        }
    }

    #[test]
    fn an_adapter_that_is_not_there_is_an_error_with_a_way_out() {
        let options = Options { select: Select::Name("no such adapter".into()), ..Options::default() };
        let error = choose(&instance(), &options).unwrap_err().to_string();
        assert!(
            error.contains("no such adapter") && error.contains(" found") && error.contains("Choose one")
                || error.contains("apt install"),
            "{error}"
        );
    }
}
