//! NaN in the kernels: non-finite values raise the flag, a raised flag stops the update, and no ReLU hides NaN. The checks of
//! `tests/gpu/kernels.rs` cannot show this, because they expect finite results.

use std::sync::Arc;

use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::op::{
    Adam, AdamConfig, BatchNorm, BatchNormConfig, Conv, Elbo, ElboConfig, GradNorm, Likelihood, Op, PositionNorm,
    PositionNormConfig, Relu, Role, StepScalars, operand,
};
use vae_wgpu::runtime::tensor::Shape;

use crate::harness::{self, Suite, everything};
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

/// Operations with a ReLU or with another value that is cut off below, alone and fused.
fn cut_off_below() -> vae_wgpu::Result<Vec<(&'static str, Box<dyn Op>)>> {
    let x = Shape::new(2, 5, 5, 7);
    let norm = |training| BatchNorm::new(x, BatchNormConfig { training, relu: true, ..BatchNormConfig::default() });
    let conv = || Conv::conv2d(x, 6, 3, 1, 1);
    let up = Conv::conv_transpose2d(x, 6, 4, 2, 1)?;
    let position = PositionNormConfig { relu: true, ..PositionNormConfig::default() };
    let loss = ElboConfig { likelihood: Likelihood::Optimal, training: true };
    Ok(vec![
        ("relu", Box::new(Relu::new(x)?)),
        ("batch norm in training", Box::new(norm(true)?)),
        ("batch norm in evaluation", Box::new(norm(false)?)),
        ("position norm", Box::new(PositionNorm::new(x, position)?)),
        ("norm in training and convolution", Box::new(conv()?.with_norm(norm(true)?)?)),
        ("norm in evaluation and convolution", Box::new(conv()?.with_norm(norm(false)?)?)),
        ("norm in evaluation and transposed convolution", Box::new(up.with_norm(norm(false)?)?)),
        ("convolution and statistics", Box::new(conv()?.with_y_partials())),
        ("loss", Box::new(Elbo::new(x, x, Shape::new(x.n, 4, 1, 1), loss)?)),
    ])
}

/// Values of all operands and of the gradients of the outputs. Those that the forward pass computes are the reference's.
fn values_of(op: &dyn Op) -> anyhow::Result<Values> {
    let mut values = Values::new();
    for (i, operand) in op.operands().into_iter().enumerate() {
        let wave = |k: usize| (1.7 * k as f64 + i as f64).sin();
        let wave: Vec<f64> = (0..operand.spec.len()).map(wave).collect();
        let (name, value) = match operand.role {
            Role::Saved => continue,
            Role::Output => (format!("d{}", operand.name), wave),
            // Variances, too.
            Role::State(_) => (operand.name.to_owned(), wave.into_iter().map(|v| 1.5 + v).collect()),
            Role::Input | Role::Constant | Role::Param(_) => (operand.name.to_owned(), wave),
        };
        values.insert(name, value);
    }
    Engine::F32.run(op, &op.passes().forward, "reference", &mut values)?;
    Ok(values)
}

/// A NaN in x arrives wherever the reference has it, although compilers may assume that floats are never NaN. Elsewhere results are the
/// reference's: a NaN that a ReLU lets pass is a gradient that is not cut off. (A kernel that multiplies NaN by padding has more of them.)
fn no_relu_hides_nan(gpu: &Arc<Gpu>) {
    let engine = Engine::Gpu(gpu);
    for (name, op) in cut_off_below().unwrap() {
        let op = op.as_ref();
        let mut values = values_of(op).unwrap();
        let x = values.get_mut("x").unwrap();
        let middle = x.len() / 2;
        x[middle] = f64::NAN;
        for pass in op.passes().iter().filter(|pass| pass.reads.contains(&operand("x"))) {
            let mut wanted = values.clone();
            Engine::F32.run(op, pass, "reference", &mut wanted).unwrap();
            for variant in engine.variants(op, pass.name) {
                // A software driver takes seconds to compile these.
                if !everything() && ["tiled", "register_tiled"].contains(&variant) {
                    continue;
                }
                let mut found = values.clone();
                engine.run(op, pass, variant, &mut found).unwrap();
                for tensor in pass.writes.iter().chain(&pass.updates).map(ToString::to_string) {
                    for (i, (want, got)) in wanted[&tensor].iter().zip(&found[&tensor]).enumerate() {
                        let near = got.is_nan() || (got - want).abs() <= 1e-3 * (1.0 + want.abs());
                        let same = if want.is_nan() { got.is_nan() } else { near };
                        assert!(same, "{name}, {}, {variant}: {tensor}[{i}] is {got} instead of {want}", pass.name);
                    }
                }
            }
        }
    }
}

pub(crate) fn register(tests: &mut Suite) {
    harness::tests!(
        tests,
        single_non_finite_value_raises_the_flag,
        gradient_norm_overflow_raises_the_flag,
        raised_flag_stops_the_update,
        no_relu_hides_nan,
    );
}
