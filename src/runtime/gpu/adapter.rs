//! Adapters: their properties, and the choice of one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::gpu::Options;
use crate::runtime::kernel::{DeviceKind, Profile, TEXTURE_WIDTH};
use crate::runtime::sys::platform::{SUBGROUPS, block_on};

/// The adapter to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Select {
    /// The first of the best kind: discrete, then integrated, virtual, other, CPU.
    #[default]
    Auto,
    /// By its number in [`adapters`].
    Index(usize),
    /// By a part of its name, ignoring case. The best kind if several match.
    Name(String),
}

impl FromStr for Select {
    type Err = Error;

    /// Parses `auto`, a number, or a part of a name.
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

/// Properties of an adapter.
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
    /// Name of the driver.
    pub driver: String,
    /// Version of the driver.
    pub driver_info: String,
    /// PCI vendor id, or the identifier that the backend uses instead.
    pub vendor: u32,
    /// PCI device id, or the identifier that the backend uses instead.
    pub device: u32,
    /// Optional features of the adapter that this crate uses.
    pub features: Vec<&'static str>,
    /// Limits of the adapter that training may reach.
    pub limits: BTreeMap<&'static str, u64>,
    /// Properties that kernels and plans may depend on, for the options with which the device is opened.
    pub profile: Profile,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}", self.name, self.backend, self.device_type)?;
        match self.driver_and_version().as_str() {
            "" => f.write_str(")"),
            driver => write!(f, ", {driver})"),
        }
    }
}

/// Optional features in use, with their names in [`AdapterInfo::features`].
const FEATURES: &[(&str, wgpu::Features)] = &[
    ("subgroups", wgpu::Features::SUBGROUP),
    ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
    ("timestamps_inside_encoders", wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
    ("timestamps_inside_passes", wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
    ("pipeline_cache", wgpu::Features::PIPELINE_CACHE),
];

impl AdapterInfo {
    /// Returns name and version of the driver; empty if the backend reports neither.
    #[must_use]
    pub fn driver_and_version(&self) -> String {
        [self.driver.as_str(), self.driver_info.as_str()].join(" ").trim().to_owned()
    }

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

    /// Ranks better kinds higher; among equals, lower numbers.
    pub(crate) fn rank(&self) -> (u8, Reverse<usize>) {
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

/// Returns the optional features to request: none, or those of [`FEATURES`] that are available.
pub(super) fn features_wanted(available: wgpu::Features, options: &Options) -> wgpu::Features {
    if options.webgpu_defaults {
        return wgpu::Features::empty();
    }
    let available = if SUBGROUPS { available } else { available - wgpu::Features::SUBGROUP };
    let wanted = FEATURES.iter().fold(wgpu::Features::empty(), |all, (_, feature)| all | *feature);
    available & if options.timestamps { wanted } else { wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE }
}

/// Returns the limits to request: WebGPU's defaults, so that nothing depends on more, but buffers as large as the adapter allows.
pub(super) fn limits_wanted(available: &wgpu::Limits, options: &Options) -> wgpu::Limits {
    let mut limits = wgpu::Limits::default();
    if !options.webgpu_defaults {
        limits.max_buffer_size = limits.max_buffer_size.max(available.max_buffer_size);
        limits.max_storage_buffer_binding_size =
            limits.max_storage_buffer_binding_size.max(available.max_storage_buffer_binding_size);
    }
    limits
}

fn profile(info: &wgpu::AdapterInfo, features: wgpu::Features, limits: &wgpu::Limits, options: &Options) -> Profile {
    let max_workgroups = limits.max_compute_workgroups_per_dimension;
    let (max_binding, max_buffer) = (limits.max_storage_buffer_binding_size, limits.max_buffer_size);
    let kind = if info.device_type == wgpu::DeviceType::Cpu { DeviceKind::Software } else { DeviceKind::Gpu };
    Profile {
        kind: options.hooks.kind.unwrap_or(kind),
        subgroup: options.hooks.subgroup.or(features
            .contains(wgpu::Features::SUBGROUP)
            .then_some((info.subgroup_min_size, info.subgroup_max_size))),
        max_workgroups: options.hooks.max_workgroups.map_or(max_workgroups, |max| max.clamp(1, max_workgroups)),
        max_binding: options.hooks.max_buffer.map_or(max_binding, |max| max.min(max_binding)),
        max_buffer: options.hooks.max_buffer.map_or(max_buffer, |max| max.min(max_buffer)),
        offset_alignment: limits.min_storage_buffer_offset_alignment,
        max_texture: 16 * u64::from(TEXTURE_WIDTH) * u64::from(limits.max_texture_dimension_2d),
    }
}

/// Creates an instance with the settings of the environment (`WGPU_BACKEND`, `WGPU_VALIDATION`, `WGPU_DEBUG` and so on).
///
/// It allows adapters that do not conform to their API, as wgpu classifies some software drivers.
pub(super) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.flags |= wgpu::InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER;
    wgpu::Instance::new(descriptor.with_env())
}

async fn list(instance: &wgpu::Instance, options: &Options) -> Vec<(wgpu::Adapter, AdapterInfo)> {
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let info = |(index, adapter): (usize, wgpu::Adapter)| {
        let info = AdapterInfo::new(index, &adapter, options);
        (adapter, info)
    };
    adapters.into_iter().enumerate().map(info).collect()
}

/// Returns all adapters on the backends that `WGPU_BACKEND` allows, including software ones.
///
/// # Errors
/// [`Error::Device`] in a browser, where [`adapters_async`] lists them.
pub fn adapters() -> Result<Vec<AdapterInfo>> {
    block_on(async { Ok(adapters_async().await) })
}

/// Like [`adapters`], for a browser: the adapter that it offers, if any.
pub async fn adapters_async() -> Vec<AdapterInfo> {
    list(&instance(), &Options::default()).await.into_iter().map(|(_, info)| info).collect()
}

/// Chooses the adapter that matches `options`.
pub(super) async fn choose(instance: &wgpu::Instance, options: &Options) -> Result<(wgpu::Adapter, AdapterInfo)> {
    let adapters = list(instance, options).await;
    let found = match adapters.as_slice() {
        [] => "none found".to_owned(),
        some => {
            let names: Vec<_> = some.iter().map(|(_, info)| format!("adapter {}, {info}", info.index)).collect();
            format!("found {}", names.join("; "))
        }
    };
    let hint = if adapters.is_empty() {
        "install a Vulkan driver (on Debian and Ubuntu, `apt install mesa-vulkan-drivers` has a software one), or run with \
         `--device cpu`"
    } else {
        "choose one with --device, by number or by a part of its name"
    };
    let matches = |info: &AdapterInfo| match &options.select {
        Select::Auto => true,
        Select::Index(index) => info.index == *index,
        Select::Name(name) => info.name.to_lowercase().contains(&name.to_lowercase()),
    };
    adapters
        .into_iter()
        .filter(|(_, info)| matches(info))
        .max_by_key(|(_, info)| info.rank())
        .ok_or_else(|| Error::NoAdapter { wanted: format!("asked for `{}`", options.select), found, hint: hint.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_round_trip_through_text() {
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
    fn a_missing_adapter_is_an_error_with_a_hint() {
        let options = Options { select: Select::Name("no such adapter".into()), ..Options::default() };
        let error = block_on(choose(&instance(), &options)).unwrap_err().to_string();
        assert!(
            error.contains("no such adapter") && error.contains(" found") && error.contains("Choose one")
                || error.contains("apt install"),
            "{error}"
        );
    }
}
