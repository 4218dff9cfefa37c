//! Trains a tiny VAE on pictures that the program makes itself, and draws from it: `cargo run --release --example own_images`.

use std::sync::Arc;

use vae_wgpu::runtime::gpu::{Gpu, Options};
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::data;
use vae_wgpu::vae::data::Memory;
use vae_wgpu::vae::model::{Mode, VaeConfig};
use vae_wgpu::vae::runner::{Device, Runner, StepInput};

fn main() -> vae_wgpu::Result<()> {
    // 256 grey 16x16 pictures of bars, bright and dark to different degrees: any `[u8]` in the order [image, channel, row,
    // column] will do.
    let pixel = |i: usize, y: usize| (if (y / 4).is_multiple_of(2) { 255 - i % 16 * 8 } else { i / 16 * 8 }) as u8;
    let pixels = (0..256 * 256).map(|p| pixel(p / 256, p / 16 % 16)).collect();
    let images = Memory::new((1, 16, 16), vec!["bars".into()], vec![0; 256], pixels)?;

    let config = VaeConfig {
        channels: 8,
        blocks: 1,
        groups: 2,
        latent_dim: 4,
        image_size: 16,
        image_channels: 1,
        ..VaeConfig::default()
    };
    let device = Gpu::open(&Options::default()).map_or(Device::Cpu, |gpu| Device::Gpu(Arc::new(gpu)));
    let mut runner = Runner::new(config, &[(64, Mode::Train), (4, Mode::Decode)], &device, &Default::default())?;
    runner.init(0)?;
    for epoch in 0..20 {
        let mut batch = Vec::new();
        for indices in data::epoch_order(0, epoch, 256).chunks(64) {
            data::batch(&images, indices, &mut batch)?;
            let eps = rng::normals(&mut rng::stream(0, Stream::Noise, runner.step()), 64 * config.latent_dim);
            let input = StepInput { images: &batch, eps: &eps, lr: 3e-3, weight_decay: 1e-4, beta: 1.0, clip: 1.0 };
            runner.train(64, &input)?;
        }
        if let Some(report) = runner.reports(true)?.last() {
            println!("epoch {epoch:>2}: total {:.4}, recon {:.4}, kl {:.4}", report.total, report.recon, report.kl);
        }
    }
    let z = rng::normals(&mut rng::stream(1, Stream::Noise, 0), 4 * config.latent_dim);
    for row in runner.decode(4, &z)?.chunks(16).take(16) {
        println!("{}", row.iter().map(|v| format!("{:4.0}", (v + 1.0) * 127.5)).collect::<String>());
    }
    Ok(())
}
