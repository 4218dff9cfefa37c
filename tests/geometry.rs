//! Random geometry of operations: sizes of zero, enormous sizes and odd ones give an error or an operation that is sound, and what is
//! small enough to run agrees with finite differences and, on an adapter, in every variant with the reference.

#![expect(clippy::unwrap_used, reason = "a test without libtest's harness")]

#[path = "common/gpu.rs"]
mod common;

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vae_wgpu::Error;
use vae_wgpu::check::{Outcome, Subject};
use vae_wgpu::gpu::{Gpu, Options};
use vae_wgpu::op::{
    Add, BatchNorm, BatchNormConfig, Case, Conv2d, ConvTranspose2d, GlobalAvgPool, Linear, Op, Pixels, PositionNorm,
    PositionNormConfig, Profile, Relu, Target, Upsample,
};
use vae_wgpu::shape::{MAX_ELEMENTS, Shape};

/// The same cases in every run.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, proptest::test_runner::TestRng::deterministic_rng(Default::default()))
}

/// Sizes of every kind: nothing, small ones, powers of two and what lies beside them, the largest.
fn size() -> impl Strategy<Value = usize> {
    let beside = |power: u32| {
        let power = 1usize << power;
        prop_oneof![Just(power - 1), Just(power), Just(power + 1)]
    };
    prop_oneof![
        1 => Just(0usize),
        8 => 1usize..9,
        3 => (0u32..63).prop_flat_map(beside),
        1 => Just(usize::MAX),
        1 => any::<usize>(),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    (size(), size(), size(), size()).prop_map(|(n, c, h, w)| Shape::new(n, c, h, w))
}

/// Elements of a shape, padded as on the device, without overflow.
fn elements(shape: Shape) -> u128 {
    let sizes = [shape.n, shape.c.div_ceil(4).saturating_mul(4), shape.h, shape.w];
    sizes.iter().fold(1, |product: u128, &size| product.saturating_mul(size as u128))
}

/// An operation keeps what it promises of its shapes, and can be costed and lowered or says why not.
fn sound(op: &dyn Op) -> Result<(), TestCaseError> {
    for operand in op.operands() {
        let padded = elements(operand.spec.shape);
        prop_assert!(padded > 0 && padded <= MAX_ELEMENTS as u128, "{}: {}", op.family(), operand.spec.shape);
        prop_assert_eq!(operand.spec.len() as u128, {
            let Shape { n, c, h, w } = operand.spec.shape;
            [n, c, h, w].iter().map(|&size| size as u128).product::<u128>()
        });
        prop_assert!(operand.spec.device_bytes() >= operand.spec.len() / 4);
    }
    let entries = op.entries();
    for entry in std::iter::once(&entries.forward).chain(entries.backward) {
        let cost = op.cost(entry).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(cost.flop.is_finite() && cost.flop >= 0.0 && cost.bytes > 0.0, "{cost:?}");
        for variant in op.variants(entry.name) {
            let accumulate = vec![false; entry.writes.len()];
            let target = Target { profile: &Profile::WEBGPU, variant: Some(variant), accumulate: &accumulate };
            match op.lower(entry.name, &target) {
                Ok(lowered) => prop_assert!(lowered.dispatches.iter().all(|dispatch| dispatch.workgroups > 0)),
                Err(error) => refused(&error)?,
            }
        }
    }
    Ok(())
}

/// Errors of shapes and limits are answers; bugs are not.
fn refused(error: &Error) -> Result<(), TestCaseError> {
    let answer = matches!(error, Error::Shape { .. } | Error::DoesNotFit { .. } | Error::Unsupported { .. });
    prop_assert!(answer, "{error:?}");
    Ok(())
}

fn check(op: Result<impl Op, Error>) -> Result<bool, TestCaseError> {
    match op {
        Ok(op) => sound(&op).map(|()| true),
        Err(error) => refused(&error).map(|()| false),
    }
}

fn any_convolution_is_an_error_or_sound() {
    let (made, others) = (Cell::new(0), Cell::new(0));
    let window = (size(), size(), size(), size());
    let result = runner(20_000).run(&(shape(), window), |(x, (out, kernel, stride, padding))| {
        let conv = Conv2d::new(x, out, kernel, stride, padding);
        if let Ok(conv) = &conv {
            let y = conv.operands().pop().unwrap().spec.shape;
            let formula = |size: usize| {
                let (size, kernel, stride) = (size as i128, kernel as i128, stride as i128);
                (size + 2 * padding as i128 - kernel) / stride + 1
            };
            prop_assert_eq!((y.n, y.c), (x.n, out));
            prop_assert_eq!((y.h as i128, y.w as i128), (formula(x.h), formula(x.w)));
        }
        let transposed = ConvTranspose2d::new(x, out, kernel, stride, padding);
        if let Ok(transposed) = &transposed {
            let y = transposed.operands().pop().unwrap().spec.shape;
            let formula = |size: usize| (size as i128 - 1) * stride as i128 + kernel as i128 - 2 * padding as i128;
            prop_assert_eq!((y.n, y.c), (x.n, out));
            prop_assert_eq!((y.h as i128, y.w as i128), (formula(x.h), formula(x.w)));
        }
        for verdict in [check(conv)?, check(transposed)?] {
            let counter = if verdict { &made } else { &others };
            counter.set(counter.get() + 1);
        }
        Ok(())
    });
    result.unwrap();
    assert!(made.get() > 500 && others.get() > 500, "{made:?} operations, {others:?} errors");
}

fn any_other_operation_is_an_error_or_sound() {
    let shapes = (shape(), shape());
    let result = runner(4_000).run(&shapes, |(x, y)| {
        check(Linear::new(x, y))?;
        check(Add::new(x, y))?;
        check(Add::new(x, x))?;
        check(Relu::new(x))?;
        check(Upsample::new(x))?;
        check(Pixels::new(x))?;
        check(GlobalAvgPool::new(x))?;
        check(BatchNorm::new(x, BatchNormConfig::default()))?;
        check(PositionNorm::new(x, PositionNormConfig::default()))?;
        Ok(())
    });
    result.unwrap();
}

/// Convolutions small enough to be run in every way.
fn small() -> impl Strategy<Value = (Shape, usize, usize, usize, usize, bool)> {
    let x = (1usize..4, 1usize..14, 1usize..9, 1usize..9).prop_map(|(n, c, h, w)| Shape::new(n, c, h, w));
    (x, 1usize..14, 1usize..6, 1usize..4, 0usize..4, any::<bool>())
}

fn case((x, out, kernel, stride, padding, transposed): (Shape, usize, usize, usize, usize, bool)) -> Option<Case> {
    let name = format!("{x} to {out}, {kernel}, {stride}, {padding}, {transposed}");
    if transposed {
        ConvTranspose2d::new(x, out, kernel, stride, padding).ok().map(|op| Case::new(name, op))
    } else {
        Conv2d::new(x, out, kernel, stride, padding).ok().map(|op| Case::new(name, op))
    }
}

fn random_convolutions_have_the_gradients_of_finite_differences() {
    let result = runner(200).run(&small(), |sizes| {
        let Some(case) = case(sizes) else { return Ok(()) };
        let name = case.name.clone();
        let lines = Subject::new(case).finite_differences().map_err(|e| TestCaseError::fail(format!("{name}: {e}")))?;
        prop_assert!(!lines.is_empty());
        for line in lines {
            prop_assert!(line.passed(), "{name}: {line}");
        }
        Ok(())
    });
    result.unwrap();
}

fn random_convolutions_agree_with_the_reference_in_every_variant(gpu: &Arc<Gpu>) {
    let mut strategies = runner(5);
    let result = strategies.run(&small(), |sizes| {
        let Some(case) = case(sizes) else { return Ok(()) };
        let entries = case.op.entries();
        let kernels: Vec<_> = std::iter::once(&entries.forward)
            .chain(entries.backward)
            .flat_map(|entry| case.op.variants(entry.name).iter().map(|variant| (entry.name, *variant)))
            .collect();
        let (name, subject) = (case.name.clone(), Subject::new(case));
        for (entry, variant) in kernels {
            match subject.gpu_vs_reference(gpu, entry, variant, None) {
                Ok(Outcome::Ran(lines)) => {
                    for line in lines {
                        prop_assert!(line.passed(), "{name}: {entry}/{variant}: {line}");
                    }
                }
                Ok(Outcome::NotApplicable(_)) | Err(Error::Unsupported { .. }) => {}
                Err(error) => return Err(TestCaseError::fail(format!("{name}: {entry}/{variant}: {error}"))),
            }
        }
        Ok(())
    });
    result.unwrap();
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let device = Gpu::open(&Options::default()).map(Arc::new);
    let mut trials = common::announce(&device, |gpu| gpu.facts().to_string());
    let plain: [(&str, fn()); 3] = [
        ("any_convolution_is_an_error_or_sound", any_convolution_is_an_error_or_sound),
        ("any_other_operation_is_an_error_or_sound", any_other_operation_is_an_error_or_sound),
        (
            "random_convolutions_have_the_gradients_of_finite_differences",
            random_convolutions_have_the_gradients_of_finite_differences,
        ),
    ];
    trials.extend(plain.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    }));
    let gpu = device.as_ref().ok().cloned();
    let name = "random_convolutions_agree_with_the_reference_in_every_variant";
    trials.push(common::trial(name, gpu, random_convolutions_agree_with_the_reference_in_every_variant));
    libtest_mimic::run(&arguments, trials).exit_code()
}
