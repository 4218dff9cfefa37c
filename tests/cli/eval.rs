//! `vae-wgpu eval`: figures compared with a direct computation.

use std::process::Stdio;

use serde_json::Value;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::data::shapes;
use vae_wgpu::vae::pca::Pca;

use crate::trained::{DIMS, LATENT, Stage, test_pixels, text};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-5 * b.abs().max(1e-3)
}

#[test]
fn eval_matches_a_direct_computation() {
    let stage = Stage::new();
    let line = "eval run --data shapes --val-limit 5 --train-limit 60 --iwae 3 --seed 9 --json";
    let report: Value = serde_json::from_slice(&stage.ok(&format!("{line} --batch-size 2")).stdout).unwrap();
    let number =
        |name: &str| report.pointer(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name}: {report}"));

    let pixels = test_pixels(5);
    let mut runner = stage.runner(5);
    let eps: Vec<Vec<f32>> = (0..3).map(|k| rng::normals(&mut rng::stream(9, Stream::Sample, k), 5 * LATENT)).collect();
    let evaluated = runner.evaluate(&pixels, &eps[0], 1.0).unwrap();
    for (name, value) in [("total", evaluated.total), ("recon", evaluated.recon), ("kl", evaluated.kl)] {
        assert!(close(number(&format!("/{name}")), f64::from(value)), "{name} {value}: {report}");
        assert!(close(number(&format!("/{name}_nats")), f64::from(value) * DIMS as f64), "{name}: {report}");
    }
    let still = runner.evaluate(&pixels, &[0.0; 5 * LATENT], 1.0).unwrap();
    let x: Vec<f64> = pixels.iter().map(|b| f64::from(*b) / 127.5 - 1.0).collect();
    let mse = x.iter().zip(&still.mean).map(|(x, m)| (x - f64::from(*m)).powi(2)).sum::<f64>() / x.len() as f64;
    assert!(close(number("/mse"), mse), "{mse}: {report}");
    assert!(close(number("/psnr"), 10.0 * (4.0 / mse).log10()), "{report}");

    // log N(v; mean, std^2), summed.
    let normal =
        |v: f64, mean: f64, std: f64| -0.5 * ((v - mean) / std).powi(2) - std.ln() - 0.5 * std::f64::consts::TAU.ln();
    let mut bound = 0.0;
    let draws: Vec<Vec<f32>> = eps.iter().map(|e| runner.evaluate(&pixels, e, 1.0).unwrap().mean).collect();
    for i in 0..5 {
        let h = &evaluated.h[i * 2 * LATENT..][..2 * LATENT];
        let weight = |k: usize| -> f64 {
            let picture = i * DIMS..(i + 1) * DIMS;
            let means = &draws[k][picture.clone()];
            let likelihood: f64 = x[picture].iter().zip(means).map(|(x, m)| normal(*x, f64::from(*m), 1.0)).sum();
            let latent: f64 = (0..LATENT)
                .map(|j| {
                    let (mu, std) = (f64::from(h[j]), f64::from(h[LATENT + j]).exp());
                    let z = mu + std * f64::from(eps[k][i * LATENT + j]);
                    normal(z, 0.0, 1.0) - normal(z, mu, std)
                })
                .sum();
            likelihood + latent
        };
        let weights = [weight(0), weight(1), weight(2)];
        let most = weights.iter().copied().fold(f64::MIN, f64::max);
        bound -= (most + (weights.iter().map(|w| (w - most).exp()).sum::<f64>() / 3.0).ln()) / 5.0;
    }
    assert!(close(number("/iwae/nats"), bound), "{bound}: {report}");
    assert_eq!(number("/iwae/samples"), 3.0);

    let variance = |j: usize| {
        let mu: Vec<f64> = evaluated.h.chunks(2 * LATENT).map(|row| f64::from(row[j])).collect();
        let mean = mu.iter().sum::<f64>() / 5.0;
        mu.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5.0
    };
    let active = (0..LATENT).filter(|&j| variance(j) > 0.01).count();
    assert_eq!(number("/active_units"), active as f64);
    let values =
        |name: &str| -> Vec<f64> { report[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let (mut kl, sorted) = (values("kl_dims"), values("kl_sorted"));
    kl.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(kl, sorted);
    let most = |count: usize| sorted[..count].iter().sum::<f64>() >= 0.9 * sorted.iter().sum::<f64>();
    let count = number("/kl_90") as usize;
    assert!(most(count) && !most(count - 1), "{report}");

    let dataset = shapes::dataset().unwrap().limited(Some(60), Some(5)).unwrap();
    let pca = Pca::fit(dataset.train.as_ref(), LATENT, &mut |_| ()).unwrap();
    assert!(close(number("/pca/mse"), pca.mse(dataset.test.as_ref()).unwrap()), "{report}");
    assert_eq!((number("/pca/components"), number("/pca/images")), (LATENT as f64, 60.0));
    assert_eq!((number("/images"), number("/latent_dim")), (5.0, LATENT as f64));
    assert!(report["model"].is_string() && report["device"].is_string() && report["data"] == "shapes", "{report}");

    // Noise does not depend on the batch size.
    let whole: Value = serde_json::from_slice(&stage.ok(line).stdout).unwrap();
    assert!(close(number("/iwae/nats"), whole["iwae"]["nats"].as_f64().unwrap()), "{whole}");
    let short: Value =
        serde_json::from_slice(&stage.ok("eval run --data shapes --val-limit 2 --no-pca --json").stdout).unwrap();
    assert!(short["pca"].is_null() && short["iwae"].is_null(), "{short}");
}

#[test]
fn eval_prints_a_table_and_accepts_a_closed_pipe() {
    let stage = Stage::new();
    let line = "eval run --data shapes --val-limit 3 --train-limit 20 --iwae 2";
    let table = text(&stage.ok(line).stdout);
    for part in ["total", "recon", "kl", "2 draws", "decoded latent mean", "PCA, 4 components", "active units: "] {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
    let mut child = stage.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}
