//! Measuring kernels: every distinct operation, direction and shape of a model, alone on a device.
//!
//! The work of a pass comes from its operation ([`crate::runtime::op::Op::cost`]), so that FLOP and bytes are counted in one place, all operands
//! included. Times are of many dispatches in one submission, divided: submission and wake-up are shared between them.

pub mod tune;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::runtime::exec::entry::PassProgram;
use crate::runtime::gpu::{Gpu, Roofline};
use crate::runtime::graph::Graph;
use crate::runtime::kernel::{Arg, Bind, Kernel, KernelRole};
use crate::runtime::op::{Cost, Op, Pass, Target, spec_of};
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

/// A pass of an operation that a graph runs, once for all nodes with the same operation and shapes.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `family.pass shapes`.
    pub name: String,
    /// A node that runs it.
    pub example: String,
    /// How many nodes run it.
    pub count: usize,
    /// The operation.
    pub op: Arc<dyn Op>,
    /// Which pass.
    pub pass: Pass,
    /// Its work.
    pub cost: Cost,
}

impl Subject {
    /// Whether it is a matrix product at heart, bound by multiply-adds where the model is of a useful size: convolutions and linear
    /// layers, but not their bias gradients, which are sums.
    #[must_use]
    pub fn is_product(&self) -> bool {
        self.product_flop().is_some()
    }

    /// Floating-point operations of the product alone, without the norms and sums that are fused with it: two a multiply-add.
    #[must_use]
    pub fn product_flop(&self) -> Option<f64> {
        self.op.product_flop(&self.pass)
    }
}

/// The distinct passes of a graph, in order of first use.
pub fn subjects(graph: &Graph) -> Result<Vec<Subject>> {
    let mut found: Vec<Subject> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for node in graph.nodes() {
        let key = format!("{:?}.{}", node.op, node.pass.name);
        if let Some(subject) = at.get(&key).and_then(|&i| found.get_mut(i)) {
            subject.count += 1;
            continue;
        }
        let shapes = |args: &[Arg]| args.first().map(|arg| spec_of(node.op.as_ref(), *arg).map(|s| s.to_string()));
        let (from, to) = (shapes(&node.pass.reads).transpose()?, shapes(&node.pass.writes).transpose()?);
        let arrow = [from, to].into_iter().flatten().collect::<Vec<_>>().join(" -> ");
        at.insert(key, found.len());
        found.push(Subject {
            name: format!("{}.{} {arrow}", node.op.kind(), node.pass.name),
            example: node.name.clone(),
            count: 1,
            op: Arc::clone(&node.op),
            pass: node.pass.clone(),
            cost: node.op.cost(&node.pass)?,
        });
    }
    Ok(found)
}

/// Operands of up to so many numbers are scalars of a step and flags: ones, so that Adam does not take the update for poisoned.
const SCALARS: usize = 8;

/// A pass with buffers of its own, ready to run again and again.
#[derive(Debug)]
pub struct Rig<'a> {
    gpu: &'a Gpu,
    program: PassProgram,
    /// The variants of its dispatches, without repetition.
    pub variant: String,
}

impl<'a> Rig<'a> {
    /// Lowers, allocates, fills with random numbers and compiles. `variant`: asked for by name, or chosen.
    pub fn new(gpu: &'a Gpu, subject: &Subject, variant: Option<&str>) -> Result<Self> {
        Self::of(gpu, subject, variant, |_| true)
    }

    /// The same without the passes of a norm that a pass makes beside its product (merging statistics, the norm's gradient), where
    /// it has a product.
    pub fn of_product(gpu: &'a Gpu, subject: &Subject, variant: Option<&str>) -> Result<Option<Self>> {
        let keep = |kernel: &Kernel| kernel.role == KernelRole::Main;
        subject.is_product().then(|| Self::of(gpu, subject, variant, keep)).transpose()
    }

    fn of(gpu: &'a Gpu, subject: &Subject, variant: Option<&str>, keep: fn(&Kernel) -> bool) -> Result<Self> {
        let (op, pass) = (subject.op.as_ref(), &subject.pass);
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

    /// Runs the pass `times` times in one submission and waits; the time of all of them.
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

    /// The median seconds of one run over `rounds` samples of at least `least` each, after one that is not counted.
    pub fn time(&self, rounds: usize, least: Duration) -> Result<f64> {
        self.run(1)?;
        let one = self.run(1)?.max(Duration::from_nanos(1));
        let times = (least.as_secs_f64() / one.as_secs_f64()).ceil().clamp(1.0, 1000.0) as u64;
        let mut samples = Vec::new();
        for _ in 0..rounds.max(1) {
            samples.push(self.run(times)?.as_secs_f64() / times as f64);
        }
        samples.sort_by(f64::total_cmp);
        median(&samples).ok_or_else(|| Error::bug("no sample"))
    }
}

/// A line of the roofline table.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Line {
    /// `family.pass shapes`.
    pub name: String,
    /// Variant of its kernels.
    pub variant: String,
    /// How many nodes of the model run it.
    pub count: usize,
    /// Time of one run in milliseconds.
    pub ms: f64,
    /// 10^9 floating-point operations a second.
    pub gflops: f64,
    /// 10^9 bytes of operands a second.
    pub gb_s: f64,
    /// Share of the bound that binds: measured multiply-add rate or measured copy bandwidth, in percent.
    pub roof_pct: f64,
    /// Which of the two binds.
    pub bound: &'static str,
    /// Floating-point operations of one run.
    pub flop: f64,
    /// The matrix product in it, where there is one ([`Subject::is_product`]).
    pub product: Option<Product>,
}

/// The matrix product of a pass, without the passes of a norm beside it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Product {
    /// Two floating-point operations a multiply-add.
    pub flop: f64,
    /// Time of one run in milliseconds.
    pub ms: f64,
    /// 10^9 of those operations a second.
    pub gflops: f64,
}

impl Line {
    /// From a subject's work and the seconds that it took, and its product alone, where it has one.
    #[must_use]
    pub fn new(subject: &Subject, variant: &str, seconds: f64, product: Option<f64>, roof: &Roofline) -> Self {
        let Cost { flop, bytes } = subject.cost;
        let compute = flop / (roof.gflops * 1e9);
        let memory = bytes / (roof.copy_gb_s * 1e9);
        let (ideal, bound) = if compute > memory { (compute, "compute") } else { (memory, "memory") };
        Self {
            name: subject.name.clone(),
            variant: variant.to_owned(),
            count: subject.count,
            ms: seconds * 1e3,
            gflops: flop / seconds / 1e9,
            gb_s: bytes / seconds / 1e9,
            roof_pct: 100.0 * ideal / seconds,
            bound,
            flop,
            product: subject.product_flop().zip(product).map(|(flop, seconds)| Product {
                flop,
                ms: seconds * 1e3,
                gflops: flop / seconds / 1e9,
            }),
        }
    }

    /// Heading of the table.
    #[must_use]
    pub fn heading() -> String {
        format!(
            "{:<74} {:<12} {:>5} {:>9} {:>9} {:>8} {:>6} {:<7} {:>10} {:>9}",
            "kernel", "variant", "count", "ms", "GFLOP/s", "GB/s", "roof%", "bound", "product ms", "GFLOP/s"
        )
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<74} {:<12} {:>5} {:>9.3} {:>9.2} {:>8.2} {:>6.1} {:<7}",
            self.name, self.variant, self.count, self.ms, self.gflops, self.gb_s, self.roof_pct, self.bound
        )?;
        match &self.product {
            Some(product) => write!(f, " {:>10.3} {:>9.2}", product.ms, product.gflops),
            None => Ok(()),
        }
    }
}

/// The rates of the products among some lines.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// How many lines are of products.
    pub products: usize,
    /// The median of their 10^9 floating-point operations a second.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The mean, weighted with the work of each in the model: all floating-point operations over all time.
    pub mean: f64,
}

impl Summary {
    /// `None` without products.
    #[must_use]
    pub fn of(lines: &[Line]) -> Option<Self> {
        let products: Vec<(f64, Product)> =
            lines.iter().filter_map(|line| Some((line.count as f64, line.product?))).collect();
        let mut rates: Vec<f64> = products.iter().map(|(_, product)| product.gflops).collect();
        rates.sort_by(f64::total_cmp);
        let sum = |of: fn(&Product) -> f64| products.iter().map(|(count, product)| count * of(product)).sum::<f64>();
        Some(Self {
            products: products.len(),
            median: median(&rates)?,
            min: *rates.first()?,
            mean: sum(|product| product.flop) / sum(|product| product.ms) / 1e6,
        })
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { products, median, min, mean } = self;
        write!(
            f,
            "{products} convolutions and linear layers: median {median:.2} GFLOP/s, min {min:.2}, weighted by their work {mean:.2}"
        )
    }
}

/// The middle of sorted numbers, between the two middle ones where their count is even.
#[must_use]
pub fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::model::{Mode, VaeConfig};

    #[test]
    fn every_node_is_counted_once_and_products_are_told_from_sums() {
        let graph = VaeConfig::default().graph(2, Mode::Train).unwrap();
        let subjects = subjects(&graph).unwrap();
        assert_eq!(subjects.iter().map(|s| s.count).sum::<usize>(), graph.nodes().len());
        let flop: f64 = subjects.iter().map(|s| s.cost.flop * s.count as f64).sum();
        assert!((flop / graph.cost().unwrap().flop - 1.0).abs() < 1e-12);
        let products = subjects.iter().filter(|s| s.is_product()).map(|s| s.cost.flop * s.count as f64).sum::<f64>();
        assert!(products > 0.8 * flop, "{products} of {flop}");
    }

    #[test]
    fn the_summary_weighs_by_work() {
        let line = |count, ms: f64, flop: f64, product: bool| Line {
            name: String::new(),
            variant: String::new(),
            count,
            ms,
            gflops: flop / ms / 1e6,
            gb_s: 1.0,
            roof_pct: 1.0,
            bound: "compute",
            flop,
            product: product.then_some(Product { flop, ms, gflops: flop / ms / 1e6 }),
        };
        let lines = [line(3, 1.0, 1e6, true), line(1, 1.0, 5e6, true), line(9, 1.0, 9e6, false)];
        let summary = Summary::of(&lines).unwrap();
        assert_eq!(summary, Summary { products: 2, median: 3.0, min: 1.0, mean: 2.0 });
        assert_eq!(Summary::of(&lines[2..]), None);
    }
}
