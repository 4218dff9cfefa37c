//! Time on the device, dispatch by dispatch.

use super::Gpu;
use super::program::StepName;
use crate::error::{Error, Result};

/// The most queries that WebGPU allows in a set.
const SET: usize = 4096;

/// Writes a timestamp before and after each dispatch of the programs that are encoded with it.
///
/// Inside a pass where the device can do that, else with a pass for each dispatch. [`Timer::resolve`] closes the encoding,
/// and [`Timer::read`] takes the times after the submission; the timer can then be used again.
#[derive(Debug)]
pub struct Timer {
    sets: Vec<wgpu::QuerySet>,
    resolved: wgpu::Buffer,
    period_ns: f64,
    inside_passes: bool,
    names: Vec<StepName>,
}

/// Time that a dispatch took.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Span {
    /// Label of the step.
    pub label: String,
    /// Kernel, `family.entry`.
    pub kernel: &'static str,
    /// Variant of the kernel.
    pub variant: &'static str,
    /// Nanoseconds from the first beginning among the spans of a read; `None` where `ns` is.
    pub begin_ns: Option<f64>,
    /// Nanoseconds; `None` where the device's clock gave nothing possible (zero, or an end before its beginning).
    pub ns: Option<f64>,
}

impl Timer {
    /// A timer for at most `steps` dispatches between two reads; `None` without timestamp queries.
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

    /// Whether all dispatches of a program can stay in one pass.
    pub(super) fn inside_passes(&self) -> bool {
        self.inside_passes
    }

    /// Takes the queries for one more step: a set, and the numbers of the begin and end stamps in it. A step beyond the
    /// timer's size goes untimed.
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

    /// Encodes the way of the timestamps into memory; once, behind the programs.
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

    /// The times of the steps encoded since the last read, in order. Waits.
    pub fn read(&mut self, gpu: &Gpu) -> Result<Vec<Span>> {
        let names = std::mem::take(&mut self.names);
        let bytes = gpu.read(&self.resolved, 0, 16 * names.len() as u64)?;
        let ticks: Vec<[u64; 2]> = bytemuck::pod_collect_to_vec(&bytes);
        if ticks.len() != names.len() {
            return Err(Error::bug("timestamps went missing"));
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
