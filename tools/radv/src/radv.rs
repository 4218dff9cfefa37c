//! RADV without a GPU: with `RADV_FORCE_FAMILY` set, a device compiles pipelines but runs nothing.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr::null_mut;

use anyhow::{Context, Result, bail};
use ash::vk;
use vae_wgpu::runtime::kernel::Access;

use crate::isa::{Loop, inner_loop};
use crate::kernels::Specialised;

/// Manifest of the driver on Debian and Ubuntu; `VK_DRIVER_FILES` overrides it.
const DRIVER: &str = "/usr/share/vulkan/icd.d/radeon_icd.x86_64.json";

/// Compiler statistics of a pipeline.
pub struct Statistics {
    pub vgprs: u64,
    pub sgprs: u64,
    /// Spilled registers of both kinds.
    pub spills: u64,
    /// Scratch memory per wave in bytes.
    pub scratch: u64,
    /// Workgroup memory in bytes.
    pub lds: u64,
    /// Waves that fit on a SIMD at the same time.
    pub waves: u64,
    pub instructions: u64,
    pub inner: Option<Loop>,
}

pub struct Device {
    /// Device name and driver version, for the report.
    pub name: String,
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    executables: ash::khr::pipeline_executable_properties::Device,
}

impl Device {
    pub fn open(family: &str) -> Result<Self> {
        // SAFETY: no other thread exists yet that could access the environment. The Vulkan calls follow the specification, and
        // every pointer stays valid until its call returns.
        unsafe {
            std::env::set_var("RADV_FORCE_FAMILY", family);
            std::env::set_var("MESA_SHADER_CACHE_DISABLE", "true");
            if std::env::var_os("VK_DRIVER_FILES").is_none() {
                std::env::set_var("VK_DRIVER_FILES", DRIVER);
                std::env::set_var("VK_ICD_FILENAMES", DRIVER);
            }
            let entry = ash::Entry::load().context("no Vulkan loader (Debian: libvulkan1)")?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let descriptor = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&descriptor, None).context("no Vulkan instance")?;
            let adapters = instance.enumerate_physical_devices().unwrap_or_default();
            let Some(&adapter) = adapters.first() else {
                bail!("RADV is missing (Debian: mesa-vulkan-drivers) or does not support `{family}`");
            };
            let mut driver = vk::PhysicalDeviceVulkan12Properties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(adapter, &mut properties);
            let name = properties.properties.device_name_as_c_str()?.to_string_lossy().into_owned();
            if driver.driver_id != vk::DriverId::MESA_RADV {
                bail!("VK_DRIVER_FILES selects {name}, not RADV");
            }
            let version = driver.driver_info_as_c_str()?.to_string_lossy().into_owned();

            // Features that wgpu enables and that change the generated code.
            let mut executable =
                vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
            let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
            let mut vulkan13 = vk::PhysicalDeviceVulkan13Features::default()
                .robust_image_access(true)
                .subgroup_size_control(true)
                .shader_zero_initialize_workgroup_memory(true);
            let features = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
            let extensions =
                [ash::khr::pipeline_executable_properties::NAME.as_ptr(), ash::ext::robustness2::NAME.as_ptr()];
            let priorities = [1.0];
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priorities)];
            let descriptor = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&extensions)
                .enabled_features(&features)
                .push_next(&mut executable)
                .push_next(&mut robust)
                .push_next(&mut vulkan13);
            let device =
                instance.create_device(adapter, &descriptor, None).with_context(|| format!("opening {name}"))?;
            let executables = ash::khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Self { name: format!("{name}, {version}"), _entry: entry, instance, device, executables })
        }
    }

    pub fn compile(&self, kernel: &Specialised) -> Result<Statistics> {
        let words = kernel.spirv()?;
        let entry = std::ffi::CString::new(kernel.kernel.entry)?;
        let kind = |access: &Access| match access {
            Access::Texture => vk::DescriptorType::STORAGE_IMAGE,
            Access::Read | Access::ReadWrite => vk::DescriptorType::STORAGE_BUFFER,
        };
        let params = (kernel.params > 0).then_some(vk::DescriptorType::UNIFORM_BUFFER);
        let kinds = kernel.kernel.bindings.iter().map(|(_, access)| kind(access)).chain(params);
        let bindings: Vec<_> = (0..)
            .zip(kinds)
            .map(|(at, kind)| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(at)
                    .descriptor_count(1)
                    .descriptor_type(kind)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        // SAFETY: no handle is used after it is destroyed, and every pointer stays valid until its call returns.
        unsafe {
            let device = &self.device;
            let module = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&words), None)?;
            let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&set, None)?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = device.create_pipeline_layout(&layout, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE)
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let capture = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let descriptor = [vk::ComputePipelineCreateInfo::default().layout(layout).flags(capture).stage(stage)];
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &descriptor, None);
            let pipelines = made.map_err(|(_, error)| error).context("compiling")?;
            let statistics = pipelines.first().context("no pipeline").and_then(|pipeline| self.statistics(*pipeline));
            for pipeline in pipelines {
                device.destroy_pipeline(pipeline, None);
            }
            device.destroy_pipeline_layout(layout, None);
            sets.into_iter().for_each(|set| device.destroy_descriptor_set_layout(set, None));
            device.destroy_shader_module(module, None);
            statistics
        }
    }

    /// # Safety
    ///
    /// The pipeline must belong to this device and must have been created with the capture flags.
    unsafe fn statistics(&self, pipeline: vk::Pipeline) -> Result<Statistics> {
        let executable = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: guaranteed by the caller.
        let found = unsafe { self.executables.get_pipeline_executable_statistics(&executable) }?;
        let mut numbers = BTreeMap::new();
        for statistic in found {
            // SAFETY: all statistics of RADV are 64-bit integers, and every bit pattern is a valid `u64`.
            let value = unsafe { statistic.value.u64 };
            numbers.insert(statistic.name_as_c_str()?.to_string_lossy().into_owned(), value);
        }
        let number = |name: &str| {
            numbers.get(name).copied().with_context(|| format!("no statistic `{name}` among {:?}", numbers.keys()))
        };
        // SAFETY: guaranteed by the caller.
        let assembly = unsafe { self.assembly(&executable) }?;
        Ok(Statistics {
            vgprs: number("VGPRs")?,
            sgprs: number("SGPRs")?,
            spills: number("Spilled VGPRs")? + number("Spilled SGPRs")?,
            scratch: number("Scratch size")?,
            lds: number("LDS size")?,
            waves: number("Subgroups per SIMD")?,
            instructions: number("Instructions")?,
            inner: inner_loop(&assembly),
        })
    }

    /// # Safety
    ///
    /// As for [`Self::statistics`].
    unsafe fn assembly(&self, executable: &vk::PipelineExecutableInfoKHR<'_>) -> Result<String> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let mut count = 0;
        // SAFETY: the three calls return the number of texts, their lengths, and the texts. Each buffer has the length that the
        // second call returned.
        unsafe {
            get(self.device.handle(), executable, &mut count, null_mut()).result()?;
            let mut texts = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            get(self.device.handle(), executable, &mut count, texts.as_mut_ptr()).result()?;
            let mut bytes: Vec<Vec<u8>> = texts.iter().map(|text| vec![0; text.data_size]).collect();
            for (text, bytes) in texts.iter_mut().zip(&mut bytes) {
                text.p_data = bytes.as_mut_ptr().cast();
            }
            get(self.device.handle(), executable, &mut count, texts.as_mut_ptr()).result()?;
            for (text, bytes) in texts.iter().zip(&bytes) {
                if text.name_as_c_str()?.to_bytes() == b"Assembly" {
                    return Ok(CStr::from_bytes_until_nul(bytes)?.to_string_lossy().into_owned());
                }
            }
        }
        bail!("the driver does not return assembly")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: `compile` destroys all objects that it creates, so the device has none left.
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}
