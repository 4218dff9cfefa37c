use std::sync::Arc;
use std::time::Duration;
use vae_wgpu::bench::{Rig, Subject};
use vae_wgpu::gpu::{Gpu, Options};
use vae_wgpu::op::*;
use vae_wgpu::shape::Shape;
fn conv(op: &dyn Op) -> FusedConv {
    match op.fusible() {
        Fusible::Conv(c) => c,
        _ => panic!(),
    }
}
fn cpu() -> f64 {
    let mut ns = 0.0;
    for t in std::fs::read_dir("/proc/self/task").unwrap() {
        if let Ok(s) = std::fs::read_to_string(t.unwrap().path().join("schedstat")) { ns += s.split(' ').next().unwrap().parse::<f64>().unwrap(); }
    }
    ns / 1e9
}
fn main() {
    let gpu = Gpu::open(&Options::default()).unwrap();
    let filter = std::env::args().nth(1).unwrap_or_default();
    let bn =
        |x: Shape| BatchNorm::new(x, BatchNormConfig { training: true, relu: true, ..Default::default() }).unwrap();
    let mut list: Vec<(String, FusedConv)> = vec![];
    for (name, n, c, hw, oc, k, s) in [
        ("3x3_16_32", 32, 16, 32, 16, 3, 1),
        ("3x3_32_16", 32, 32, 16, 32, 3, 1),
        ("3x3_64_8", 32, 64, 8, 64, 3, 1),
        ("3x3_128_4", 32, 128, 4, 128, 3, 1),
        ("1x1_16to32_32", 32, 16, 32, 32, 1, 1),
        ("1x1_32to16_32", 32, 32, 32, 16, 1, 1),
        ("1x1_64to32_16", 32, 64, 16, 32, 1, 1),
        ("1x1_256to128_4", 32, 256, 4, 128, 1, 1),
        ("1x1_128to256_4", 32, 128, 4, 256, 1, 1),
    ] {
        let x = Shape::new(n, c, hw, hw);
        let plain = conv(&Conv2d::new(x, oc, k, s, k / 2).unwrap());
        list.push((format!("{name} plain"), plain));
        list.push((format!("{name} norm"), plain.with_norm(bn(x)).unwrap().with_partials().unwrap()));
        list.push((
            format!("{name} norm+stats"),
            plain.with_norm(bn(x)).unwrap().with_partials().unwrap().with_y_partials(),
        ));
        list.push((
            format!("{name} norm+stats+res"),
            plain.with_norm(bn(x)).unwrap().with_partials().unwrap().with_y_partials().with_residual(),
        ));
    }
    for (name, op) in list {
        if !name.contains(&filter) {
            continue;
        }
        let e = op.entries();
        for entry in std::iter::once(e.forward).chain(e.backward.iter().copied()) {
            if entry.name == "backward_bias" || (name.contains("stats") && entry.name != "forward") {
                continue;
            }
            let cost = op.cost(&entry).unwrap();
            let s = Subject { name: name.clone(), example: String::new(), count: 1, op: Arc::new(op), entry, cost };
            let rig = Rig::new(&gpu, &s, None).unwrap();
            let mut best = f64::MAX;
            for _ in 0..5 {
                best = best.min(rig.time(1, Duration::from_millis(15)).unwrap());
            }
            println!(
                "{name:28} {:16} {:8.3} ms {:7.1} GFLOP/s  {}",
                entry.name,
                best * 1e3,
                cost.flop / best / 1e9,
                rig.variant
            );
        }
    }
}
