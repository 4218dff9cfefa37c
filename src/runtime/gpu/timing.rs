//! Device time of each dispatch.

use crate::error::{Error, Result};
use crate::runtime::gpu::Gpu;
use crate::runtime::gpu::program::StepName;

/// The most queries that WebGPU allows in a query set.
const SET: usize = 4096;

/// Writes a timestamp before and after each dispatch of the programs that are encoded with it.
///
/// Devices that cannot write timestamps inside a pass need a pass for each dispatch. [`Timer::resolve`] ends the encoding.
/// [`Timer::read`] returns the times after the submission; then the timer can be used again.
#[derive(Debug)]
pub struct Timer {
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    period_ns: f64,
    inside_passes: bool,
    names: Vec<StepName>,
}

/// The device time of a dispatch.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Span {
    /// Label of the step.
    pub label: String,
    /// Name of the kernel, e.g. `conv2d.forward`.
    pub kernel: &'static str,
    /// Variant of the kernel.
    pub variant: &'static str,
    /// Start in nanoseconds after the first start of the same read; `None` if `ns` is.
    pub begin_ns: Option<f64>,
    /// Duration in nanoseconds; `None` if the timestamps of the device are impossible (zero, or an end before the start).
    pub ns: Option<f64>,
}

impl Timer {
    /// Creates a timer for at most `steps` dispatches between two reads; `None` if the device has no timestamp queries.
    ///
    /// # Errors
    /// [`Error::Device`] if the queries cannot be created.
    pub fn new(gpu: &Gpu, steps: usize) -> Result<Option<Self>> {
        let features = gpu.device().features();
        if !features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(None);
        }
        let sets = gpu.scoped("creating timestamp queries", || {
            let count = (2 * steps).div_ceil(SET).max(1);
            let set = |i| wgpu::QuerySetDescriptor {
                label: Some("timer"),
                ty: wgpu::QueryType::Timestamp,
                count: (2 * steps).saturating_sub(i * SET).clamp(2, SET) as u32,
            };
            (0..count).map(|i| gpu.device().create_query_set(&set(i))).collect::<Vec<_>>()
        })?;
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        Ok(Some(Self {
            resolved: gpu.buffer_for("timer", (sets.len() * SET * 8) as u64, usage)?,
            sets,
            period_ns: f64::from(gpu.queue().get_timestamp_period()),
            inside_passes: features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
            names: Vec::new(),
        }))
    }

    /// Returns whether timed dispatches can share a pass.
    pub(super) fn inside_passes(&self) -> bool {
        self.inside_passes
    }

    /// Reserves two queries for a step: a set, and the number of the first query in it. `None` beyond the size of the timer.
    pub(super) fn next(&mut self, name: &StepName) -> Option<(&wgpu::QuerySet, u32)> {
        let first = 2 * self.names.len();
        let set = self.sets.get(first / SET)?;
        let at = (first % SET) as u32;
        if at + 2 > set.count() {
            return None;
        }
        self.names.push(name.clone());
        Some((set, at))
    }

    /// Encodes the copy of all timestamps into a buffer, once, after the programs.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut left = 2 * self.names.len();
        for (i, set) in self.sets.iter().enumerate() {
            let count = left.min(SET);
            if count > 0 {
                encoder.resolve_query_set(set, 0..count as u32, &self.resolved, (i * SET * 8) as u64);
            }
            left -= count;
        }
    }

    /// Waits, and returns the times of the steps that were encoded since the last read, in order.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn read(&mut self, gpu: &Gpu) -> Result<Vec<Span>> {
        let names = std::mem::take(&mut self.names);
        let bytes = gpu.read(&self.resolved, 0, 16 * names.len() as u64)?;
        let ticks: Vec<[u64; 2]> = bytemuck::pod_collect_to_vec(&bytes);
        if ticks.len() != names.len() {
            return Err(Error::bug("wrong number of timestamps"));
        }
        let possible = |[begin, end]: [u64; 2]| begin != 0 && end > begin;
        let first = ticks.iter().filter(|stamps| possible(**stamps)).map(|[begin, _]| *begin).min().unwrap_or(0);
        let ns = |ticks: u64| ticks as f64 * self.period_ns;
        let span = |(StepName { label, kernel, variant }, stamps): (StepName, [u64; 2])| {
            let [begin, end] = stamps;
            let possible = possible(stamps);
            Span {
                label,
                kernel,
                variant,
                begin_ns: possible.then(|| ns(begin - first)),
                ns: possible.then(|| ns(end - begin)),
            }
        };
        Ok(names.into_iter().zip(ticks).map(span).collect())
    }
}
