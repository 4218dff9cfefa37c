//! The NaN guard in the kernels: non-finite values raise the flag, and a raised flag stops the update. The checks of
//! `tests/gpu/kernels.rs` cannot show this, because they expect finite results.

use std::sync::Arc;

use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::op::StepScalars;
use vae_wgpu::runtime::op::{Adam, AdamConfig, GradNorm, Op};

use crate::harness::{self, Suite};
use crate::pass::{Engine, Values};

/// Two workgroups of the first stage and a partial one.
const LEN: usize = 9001;
const NOT_FINITE: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// Runs the forward pass and returns `result`.
fn run(gpu: &Gpu, op: &dyn Op, values: &mut Values, result: &str) -> Vec<f64> {
    let forward = op.passes().forward;
    Engine::Gpu(gpu).run(op, &forward, op.variants(forward.name)[0], values).unwrap();
    values[result].clone()
}

/// Norm and flag of gradients of 1, with element `at` replaced.
fn norm(gpu: &Gpu, at: usize, value: f32, terms: [f32; 4]) -> (f64, f64) {
    let mut grads = vec![1.0; LEN];
    grads[at] = f64::from(value);
    let mut values = Values::from([("grads".into(), grads), ("terms".into(), terms.map(f64::from).to_vec())]);
    let norm = run(gpu, &GradNorm::new(LEN).unwrap(), &mut values, "norm");
    (norm[0], norm[1])
}

fn single_non_finite_value_raises_the_flag(gpu: &Arc<Gpu>) {
    for bad in NOT_FINITE {
        for at in [0, 63, 4095, 4096, LEN - 1] {
            assert_eq!(norm(gpu, at, bad, [1.0; 4]).1, 0.0, "{bad} at {at}");
        }
        for term in 0..4 {
            let mut terms = [1.0; 4];
            terms[term] = bad;
            assert_eq!(norm(gpu, 0, 1.0, terms).1, 0.0, "{bad} in term {term}");
        }
    }
}

fn gradient_norm_overflow_raises_the_flag(gpu: &Arc<Gpu>) {
    assert_eq!(norm(gpu, 7, f32::MAX, [1.0; 4]), (f64::INFINITY, 0.0));
    assert_eq!(norm(gpu, 7, f32::MIN, [1.0; 4]), (f64::INFINITY, 0.0));
    let (norm, flag) = norm(gpu, 7, 1e18, [f32::MAX; 4]);
    assert!((norm / 1e18 - 1.0).abs() < 1e-6 && flag == 1.0, "{norm} {flag}");
}

fn raised_flag_stops_the_update(gpu: &Arc<Gpu>) {
    let adam = Adam::new(LEN, AdamConfig::default()).unwrap();
    let step = StepScalars { lr: 0.1, bias_correction1: 0.1, bias_correction2: 0.001, clip: 1.0, weight_decay: 0.1 };
    let start = |scale: f64| (0..LEN).map(|i| f64::from((scale * i as f64) as f32)).collect::<Vec<_>>();
    for (flag, bad) in [(0.0, f64::NAN), (0.0, 1.0), (1.0, 1.0)] {
        let mut values = Values::from([
            ("grads".into(), vec![bad; LEN]),
            ("norm".into(), vec![bad, flag, 0.0, 0.0]),
            ("hyperparams".into(), step.to_array().map(f64::from).to_vec()),
            ("params".into(), start(0.1)),
            ("m".into(), start(0.2)),
            ("v".into(), start(0.3)),
        ]);
        run(gpu, &adam, &mut values, "params");
        for (name, scale) in [("params", 0.1), ("m", 0.2), ("v", 0.3)] {
            assert_eq!(values[name] == start(scale), flag == 0.0, "{name} with flag {flag} and gradients {bad}");
        }
    }
}

pub(crate) fn register(tests: &mut Suite) {
    harness::tests!(
        tests,
        single_non_finite_value_raises_the_flag,
        gradient_norm_overflow_raises_the_flag,
        raised_flag_stops_the_update,
    );
}
