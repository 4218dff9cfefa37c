//! Measures the kernels of a model one by one: every distinct operation, pass and shape.
//!
//! The cost of a pass comes from its operation ([`Op::cost`]), so FLOP and bytes of all operands are counted in one place. A time is the
//! mean over many dispatches in one submission, which share the cost of submission and wake-up.

pub mod step;
pub mod tune;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::figures::median;
use crate::error::{Error, Result};
use crate::runtime::exec::entry::PassProgram;
use crate::runtime::gpu::{Gpu, Roofline};
use crate::runtime::graph::Graph;
use crate::runtime::kernel::{Arg, Bind, Kernel, KernelRole};
use crate::runtime::op::{Cost, Op, Pass, Target, spec_of};
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

/// A distinct pass of a graph; it stands for all nodes with the same operation and shapes.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Name and shapes, e.g. `conv2d.forward [1, 3, 8, 8] -> [1, 4, 8, 8]`.
    pub name: String,
    /// Name of the first node that runs it.
    pub example: String,
    /// Number of nodes that run it.
    pub count: usize,
    /// The operation.
    pub op: Arc<dyn Op>,
    /// The pass.
    pub pass: Pass,
    /// Cost of one run.
    pub cost: Cost,
}

impl Workload {
    /// Returns whether the pass is a matrix product: a convolution or linear layer, but not its bias gradient.
    #[must_use]
    pub fn is_product(&self) -> bool {
        self.product_flop().is_some()
    }

    /// Returns the floating-point operations of the matrix product, two per multiply-add, without the norms and sums fused with it.
    #[must_use]
    pub fn product_flop(&self) -> Option<f64> {
        self.op.product_flop(&self.pass)
    }
}

/// Returns the distinct passes of a graph, in order of first use.
///
/// # Errors
/// Those of [`Op::cost`].
pub fn workloads(graph: &Graph) -> Result<Vec<Workload>> {
    let mut found: Vec<Workload> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for node in graph.nodes() {
        let key = format!("{:?}.{}", node.op, node.pass.name);
        if let Some(workload) = at.get(&key).and_then(|&i| found.get_mut(i)) {
            workload.count += 1;
            continue;
        }
        let shapes = |args: &[Arg]| args.first().map(|arg| spec_of(node.op.as_ref(), *arg).map(|s| s.to_string()));
        let (from, to) = (shapes(&node.pass.reads).transpose()?, shapes(&node.pass.writes).transpose()?);
        let arrow = [from, to].into_iter().flatten().collect::<Vec<_>>().join(" -> ");
        let fused = if node.op.kind() == node.op.unfused_kind() { "" } else { ", fused" };
        at.insert(key, found.len());
        found.push(Workload {
            name: format!("{}.{} {arrow}{fused}", node.op.unfused_kind(), node.pass.name),
            example: node.name.clone(),
            count: 1,
            op: Arc::clone(&node.op),
            pass: node.pass.clone(),
            cost: node.op.cost(&node.pass)?,
        });
    }
    Ok(found)
}

/// Returns the workloads whose name contains `part`, or all without one.
///
/// # Errors
/// [`Error::Unknown`] with the names of all kernels if there is none.
pub fn matching(workloads: Vec<Workload>, part: Option<&str>) -> Result<Vec<Workload>> {
    let Some(part) = part else { return Ok(workloads) };
    let (found, others): (Vec<_>, Vec<_>) = workloads.into_iter().partition(|workload| workload.name.contains(part));
    if found.is_empty() {
        let kernels: BTreeSet<_> = others.iter().filter_map(|workload| workload.name.split(' ').next()).collect();
        let known = kernels.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::Unknown { kind: "kernel", name: part.to_owned(), known });
    }
    Ok(found)
}

/// Operands of up to this many values are step scalars and flags. They are set to one, so that Adam does not skip its update.
const SCALARS: usize = 8;

/// A compiled pass with its own buffers, for repeated runs.
#[derive(Debug)]
pub struct PassBench<'a> {
    gpu: &'a Gpu,
    program: PassProgram,
    /// The distinct variants of its dispatches, joined by `+`.
    pub variant: String,
}

impl<'a> PassBench<'a> {
    /// Lowers and compiles the pass, and fills its buffers with random values. Without `variant`, the operation chooses one.
    ///
    /// # Errors
    /// Those of lowering and of the device.
    pub fn new(gpu: &'a Gpu, workload: &Workload, variant: Option<&str>) -> Result<Self> {
        Self::of(gpu, workload, variant, |_| true)
    }

    /// The same without the dispatches for a fused norm; `None` if the pass is not a matrix product.
    ///
    /// # Errors
    /// As [`PassBench::new`].
    pub fn of_product(gpu: &'a Gpu, workload: &Workload, variant: Option<&str>) -> Result<Option<Self>> {
        let keep = |kernel: &Kernel| kernel.role == KernelRole::Main;
        workload.is_product().then(|| Self::of(gpu, workload, variant, keep)).transpose()
    }

    fn of(gpu: &'a Gpu, workload: &Workload, variant: Option<&str>, keep: fn(&Kernel) -> bool) -> Result<Self> {
        let (op, pass) = (workload.op.as_ref(), &workload.pass);
        let accumulate = vec![false; pass.writes.len()];
        let target = Target { profile: gpu.profile(), variant, accumulate: &accumulate };
        let mut lowered = op.lower(pass.name, &target)?;
        lowered.dispatches.retain(|dispatch| keep(dispatch.kernel));
        let chunk = rng::normals(&mut rng::stream(0, Stream::Check, 0), 1 << 14);
        let allocate = |bind: Bind, bytes: usize| {
            let buffer = gpu.buffer(&format!("{bind:?}"), bytes as u64)?;
            let pattern: &[u8] = bytemuck::cast_slice(&chunk);
            for offset in (0..bytes).step_by(pattern.len()) {
                gpu.write(&buffer, offset as u64, &pattern[..pattern.len().min(bytes - offset)])?;
            }
            if let Bind::Arg(arg) = bind
                && spec_of(op, arg)?.len() <= SCALARS
            {
                gpu.write(&buffer, 0, &1.0f32.to_le_bytes().repeat(bytes / 4))?;
            }
            Ok(buffer)
        };
        let program = PassProgram::new(gpu, op, pass, &lowered, None, allocate)?;
        let mut variants: Vec<&str> = Vec::new();
        for dispatch in &lowered.dispatches {
            if !variants.contains(&dispatch.kernel.variant) {
                variants.push(dispatch.kernel.variant);
            }
        }
        Ok(Self { gpu, program, variant: variants.join("+") })
    }

    /// Runs the pass `times` times in one submission, waits, and returns the total time.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(&self, times: u64) -> Result<Duration> {
        let started = Instant::now();
        let mut encoder = self.gpu.encoder("bench");
        for _ in 0..times {
            self.program.program().encode(&mut encoder, None);
        }
        self.gpu.submit(encoder)?;
        self.gpu.wait()?;
        Ok(started.elapsed())
    }

    /// Returns the median seconds per run over `rounds` samples of at least `least` each, after a warm-up run.
    ///
    /// # Errors
    /// Those of the device.
    pub fn time(&self, rounds: usize, least: Duration) -> Result<f64> {
        self.run(1)?;
        let one = self.run(1)?.max(Duration::from_nanos(1));
        let times = (least.as_secs_f64() / one.as_secs_f64()).ceil().clamp(1.0, 1000.0) as u64;
        let mut samples = Vec::new();
        for _ in 0..rounds.max(1) {
            samples.push(self.run(times)?.as_secs_f64() / times as f64);
        }
        samples.sort_by(f64::total_cmp);
        median(&samples).ok_or_else(|| Error::bug("no sample was timed"))
    }
}

/// A row of the roofline table.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RooflineRow {
    /// Name and shapes, e.g. `conv2d.forward [1, 3, 8, 8] -> [1, 4, 8, 8]`.
    pub name: String,
    /// Variant of the kernels.
    pub variant: String,
    /// Number of nodes that run it.
    pub count: usize,
    /// Time of one run in milliseconds.
    pub ms: f64,
    /// Rate in 10^9 floating-point operations per second.
    pub gflops: f64,
    /// Rate in 10^9 bytes of operands per second.
    pub gb_s: f64,
    /// Share of the binding limit (measured multiply-add rate or copy bandwidth), in percent.
    pub roof_pct: f64,
    /// The binding limit: `compute` or `memory`.
    pub bound: &'static str,
    /// Floating-point operations of one run.
    pub flop: f64,
    /// Timing of the matrix product, if the pass is one ([`Workload::is_product`]).
    pub product: Option<ProductTiming>,
}

/// Timing of the matrix product of a pass, without the dispatches for a fused norm.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct ProductTiming {
    /// Floating-point operations, two per multiply-add.
    pub flop: f64,
    /// Time of one run in milliseconds.
    pub ms: f64,
    /// Rate in 10^9 of these operations per second.
    pub gflops: f64,
}

impl RooflineRow {
    /// Creates a row from the seconds of one run, and those of the matrix product alone.
    #[must_use]
    pub fn new(workload: &Workload, variant: &str, seconds: f64, product: Option<f64>, roof: &Roofline) -> Self {
        let Cost { flop, bytes } = workload.cost;
        let compute = flop / (roof.gflops * 1e9);
        let memory = bytes / (roof.copy_gb_s * 1e9);
        let (ideal, bound) = if compute > memory { (compute, "compute") } else { (memory, "memory") };
        Self {
            name: workload.name.clone(),
            variant: variant.to_owned(),
            count: workload.count,
            ms: seconds * 1e3,
            gflops: flop / seconds / 1e9,
            gb_s: bytes / seconds / 1e9,
            roof_pct: 100.0 * ideal / seconds,
            bound,
            flop,
            product: workload.product_flop().zip(product).map(|(flop, seconds)| ProductTiming {
                flop,
                ms: seconds * 1e3,
                gflops: flop / seconds / 1e9,
            }),
        }
    }

    /// Returns the heading of the table.
    #[must_use]
    pub fn heading() -> String {
        format!(
            "{:<74} {:<14} {:>5} {:>9} {:>9} {:>8} {:>6} {:<7} {:>10} {:>9}",
            "kernel", "variant", "count", "ms", "GFLOP/s", "GB/s", "roof%", "bound", "product ms", "GFLOP/s"
        )
    }
}

impl std::fmt::Display for RooflineRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<74} {:<14} {:>5} {:>9.3} {:>9.2} {:>8.2} {:>6.1} {:<7}",
            self.name, self.variant, self.count, self.ms, self.gflops, self.gb_s, self.roof_pct, self.bound
        )?;
        match &self.product {
            Some(product) => write!(f, " {:>10.3} {:>9.2}", product.ms, product.gflops),
            None => Ok(()),
        }
    }
}

/// Rates of the matrix products in a table.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct ProductSummary {
    /// Number of rows that are products.
    pub products: usize,
    /// Median rate in GFLOP/s.
    pub median: f64,
    /// Lowest rate in GFLOP/s.
    pub min: f64,
    /// Mean rate in GFLOP/s, weighted by the work in the model: total operations over total time.
    pub mean: f64,
}

impl ProductSummary {
    /// Summarises the rows; `None` without products.
    #[must_use]
    pub fn of(rows: &[RooflineRow]) -> Option<Self> {
        let products: Vec<(f64, ProductTiming)> =
            rows.iter().filter_map(|row| Some((row.count as f64, row.product?))).collect();
        let mut rates: Vec<f64> = products.iter().map(|(_, product)| product.gflops).collect();
        rates.sort_by(f64::total_cmp);
        let sum =
            |of: fn(&ProductTiming) -> f64| products.iter().map(|(count, product)| count * of(product)).sum::<f64>();
        Some(Self {
            products: products.len(),
            median: median(&rates)?,
            min: *rates.first()?,
            mean: sum(|product| product.flop) / sum(|product| product.ms) / 1e6,
        })
    }
}

impl std::fmt::Display for ProductSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { products, median, min, mean } = self;
        write!(
            f,
            "{products} convolutions and linear layers: median {median:.2} GFLOP/s, min {min:.2}, mean weighted by work {mean:.2}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::model::{Mode, VaeConfig};

    #[test]
    fn every_node_is_counted_once_and_products_dominate_the_work() {
        let graph = VaeConfig::default().graph(2, Mode::Train).unwrap();
        let workloads = workloads(&graph).unwrap();
        assert_eq!(workloads.iter().map(|s| s.count).sum::<usize>(), graph.nodes().len());
        let flop: f64 = workloads.iter().map(|s| s.cost.flop * s.count as f64).sum();
        assert!((flop / graph.cost().unwrap().flop - 1.0).abs() < 1e-12);
        let products = workloads.iter().filter(|s| s.is_product()).map(|s| s.cost.flop * s.count as f64).sum::<f64>();
        assert!(products > 0.8 * flop, "{products} of {flop}");
    }

    #[test]
    fn summary_is_weighted_by_work() {
        let line = |count, ms: f64, flop: f64, product: bool| RooflineRow {
            name: String::new(),
            variant: String::new(),
            count,
            ms,
            gflops: flop / ms / 1e6,
            gb_s: 1.0,
            roof_pct: 1.0,
            bound: "compute",
            flop,
            product: product.then_some(ProductTiming { flop, ms, gflops: flop / ms / 1e6 }),
        };
        let lines = [line(3, 1.0, 1e6, true), line(1, 1.0, 5e6, true), line(9, 1.0, 9e6, false)];
        let summary = ProductSummary::of(&lines).unwrap();
        assert_eq!(summary, ProductSummary { products: 2, median: 3.0, min: 1.0, mean: 2.0 });
        assert_eq!(ProductSummary::of(&lines[2..]), None);
    }
}
