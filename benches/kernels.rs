//! Every distinct operation, direction and shape of the default model, relative to the measured roofline of the adapter.
//!
//! `cargo bench` runs batch 32 and 128, `cargo bench -- conv2d` the benches that match, `VAE_WGPU_BENCH_SHORT=1` a few seconds of them.
//! After criterion's output comes a table with GFLOP/s, GB/s and the share of the roofline.

#![expect(clippy::expect_used, reason = "a bench stops where it fails")]

use std::cell::{Cell, OnceCell};
use std::time::Duration;

use criterion::{Criterion, Throughput};
use vae_wgpu::app::bench::{PassBench, ProductSummary, RooflineRow, Workload, workloads};
use vae_wgpu::runtime::gpu::{Gpu, Options, roofline};
use vae_wgpu::runtime::plan;
use vae_wgpu::vae::model::{Mode, VaeConfig};

fn main() {
    let gpu = match Gpu::open(&Options { pin_driver_threads: true, ..Options::default() }) {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let short = std::env::var_os("VAE_WGPU_BENCH_SHORT").is_some();
    let roof = roofline(&gpu).expect("the roof");
    println!("adapter: {}", gpu.adapter_info());
    println!("roof: {:.1} GFLOP/s multiply-add, {:.2} GB/s copy (read + write)", roof.gflops, roof.copy_gb_s);
    let (samples, seconds) = if short { (10, 0.05) } else { (10, 0.5) };
    let mut criterion = Criterion::default()
        .sample_size(samples)
        .warm_up_time(Duration::from_secs_f64(seconds / 5.0))
        .measurement_time(Duration::from_secs_f64(seconds))
        .without_plots()
        .configure_from_args();
    let mut lines = Vec::new();
    for batch in if short { vec![8] } else { vec![32, 128] } {
        let options = plan::Options::default();
        let planned = VaeConfig::default().plan(batch, Mode::Train, gpu.profile(), &options);
        let (graph, _) = planned.expect("the default model");
        let all = workloads(&graph).expect("its kernels");
        // The short mode only shows that everything runs, with one shape of each pass.
        let mut seen = Vec::new();
        let mut wanted = |s: &&Workload| {
            let key = (s.op.kind(), s.pass.name);
            let fresh = !seen.contains(&key);
            seen.push(key);
            !short || fresh
        };
        let mut group = criterion.benchmark_group(format!("batch {batch}"));
        for workload in all.iter().filter(|s| wanted(s)) {
            group.throughput(Throughput::Elements(workload.cost.flop as u64));
            // Created once, and only if the filter matches; criterion calls the closure for every sample.
            let bench = OnceCell::new();
            let best = Cell::new(f64::INFINITY);
            group.bench_function(&workload.name, |b| {
                let bench = bench.get_or_init(|| PassBench::new(&gpu, workload, None).expect("a kernel of the model"));
                b.iter_custom(|times| {
                    let time = bench.run(times).expect("a run");
                    best.set(best.get().min(time.as_secs_f64() / times as f64));
                    time
                });
            });
            if let Some(bench) = bench.get() {
                let product = PassBench::of_product(&gpu, workload, None).expect("a kernel of the model");
                let least = Duration::from_secs_f64(seconds / 10.0);
                let product = product.map(|bench| bench.time(samples, least).expect("a run"));
                lines.push(RooflineRow::new(workload, &bench.variant, best.get(), product, &roof));
            }
        }
        group.finish();
    }
    criterion.final_summary();
    println!("\nbest times; roof% is the share of the measured multiply-add rate or copy bandwidth, whichever binds");
    println!("{}", RooflineRow::heading());
    for line in &lines {
        println!("{line}");
    }
    if let Some(summary) = ProductSummary::of(&lines) {
        println!("{summary}");
    }
}
