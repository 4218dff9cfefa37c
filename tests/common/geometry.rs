//! Random convolutions, plain and fused, small enough to run in every variant.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vae_wgpu::runtime::op::{BatchNorm, BatchNormConfig, Case, Conv, Distribution};
use vae_wgpu::runtime::tensor::Shape;

/// The same cases in every run.
pub(crate) fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, proptest::test_runner::TestRng::deterministic_rng(Default::default()))
}

/// Convolutions small enough to run in every variant.
pub(crate) fn small() -> impl Strategy<Value = (Shape, usize, usize, usize, usize, bool)> {
    let x = (1usize..4, 1usize..14, 1usize..9, 1usize..9).prop_map(|(n, c, h, w)| Shape::new(n, c, h, w));
    (x, 1usize..14, 1usize..6, 1usize..4, 0usize..4, any::<bool>())
}

pub(crate) fn case(
    (x, out, kernel, stride, padding, transposed): (Shape, usize, usize, usize, usize, bool),
) -> Option<Case> {
    let name = format!("{x} to {out}, {kernel}, {stride}, {padding}, {transposed}");
    if transposed {
        Conv::conv_transpose2d(x, out, kernel, stride, padding).ok().map(|op| Case::new(name, op))
    } else {
        Conv::conv2d(x, out, kernel, stride, padding).ok().map(|op| Case::new(name, op))
    }
}

/// Parts to fuse with a convolution: a norm (in training or not), a residual, given statistics, statistics of the output.
pub(crate) type Parts = (Option<bool>, bool, bool, bool);

pub(crate) fn parts() -> impl Strategy<Value = Parts> {
    let norm = prop_oneof![Just(None), Just(Some(true)), Just(Some(true)), Just(Some(false))];
    (norm, any::<bool>(), any::<bool>(), any::<bool>())
}

/// The convolution with its parts; `None` if they do not fit.
pub(crate) fn fused(conv: &Case, (training, residual, given, handed_on): Parts) -> Option<Case> {
    let mut op = *conv.op.downcast_ref::<Conv>()?;
    if let Some(training) = training {
        let x = conv.op.operands().first()?.spec.shape;
        let config = BatchNormConfig { training, relu: true, ..BatchNormConfig::default() };
        op = op.with_norm(BatchNorm::new(x, config).ok()?).ok()?;
    }
    let given = given && training == Some(true);
    op = if residual { op.with_residual() } else { op };
    op = if given { op.with_partials()? } else { op };
    op = if handed_on { op.with_y_partials() } else { op };
    let name = format!("{} with norm {training:?}, {residual}, {given}, {handed_on}", conv.name);
    let case = Case::new(name, op)
        .fill("running_var", Distribution::Uniform(0.5, 2.0))
        .fill("partials", Distribution::Uniform(0.5, 1.5));
    // Given statistics do not depend on x, and those of the output have no gradient.
    Some(if given || handed_on { case.not_differentiated() } else { case })
}
