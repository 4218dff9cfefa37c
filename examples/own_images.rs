//! Trains a tiny VAE on images that the program generates, and draws samples from it: `cargo run --release --example own_images`.

use std::sync::Arc;

use vae_wgpu::prelude::*;

fn main() -> Result<()> {
    // 256 grayscale 16x16 images of stripes. Pixels are in the order [image, channel, row, column].
    let pixel = |i: usize, y: usize| (if (y / 4).is_multiple_of(2) { 255 - i % 16 * 8 } else { i / 16 * 8 }) as u8;
    let pixels = (0..256 * 256).map(|p| pixel(p / 256, p / 16 % 16)).collect();
    let images = InMemoryImages::new((1, 16, 16), vec!["stripes".into()], vec![0; 256], pixels)?;

    let size = VaeConfig { image_size: 16, image_channels: 1, groups: 2, ..VaeConfig::default() };
    let config = VaeConfig { channels: 8, blocks: 1, latent_dim: 4, ..size };
    let device = Gpu::open(&GpuOptions::default()).map_or(Device::Cpu, |gpu| Device::Gpu(Arc::new(gpu)));
    let mut runner = Runner::new(config, &[(64, Mode::Train)], &device, &PlanOptions::default())?;
    runner.init(0)?;
    let hyper = Hyperparams { lr: 3e-3, clip: 1.0, ..Hyperparams::default() };
    for epoch in 0..20 {
        for batch in data::batches(&images, 64, 0, epoch) {
            runner.train(&batch?, &hyper)?;
        }
        if let Some(report) = runner.reports(true)?.last() {
            println!("epoch {epoch:>2}: total {:.4}, recon {:.4}, kl {:.4}", report.total, report.recon, report.kl);
        }
    }
    for row in runner.sample(4, 1)?.chunks(16).take(16) {
        println!("{}", row.iter().map(|v| format!("{:4.0}", (v + 1.0) * 127.5)).collect::<String>());
    }
    Ok(())
}
