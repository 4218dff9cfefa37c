//! Random geometry: operations of zero, very large and unusual sizes are valid or return an error, and small ones agree with finite
//! differences.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proptest::prelude::*;
use vae_wgpu::Error;
use vae_wgpu::app::check::PreparedCase;
use vae_wgpu::runtime::kernel::Profile;
use vae_wgpu::runtime::op::{
    Add, BatchNorm, BatchNormConfig, Case, Conv, Elbo, ElboConfig, GlobalAvgPool, ImageDecode, Likelihood, Op,
    PositionNorm, PositionNormConfig, Relu, Reparameterize, Target, Upsample,
};
use vae_wgpu::runtime::tensor::{MAX_ELEMENTS, Shape};

use crate::cases::{case, fused, parts, runner, small};

fn elbo(likelihood: Likelihood, training: bool) -> ElboConfig {
    ElboConfig { likelihood, training }
}

/// Sizes of every kind: zero, small, near powers of two, the largest.
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

/// Asserts that shapes are consistent and that costs and dispatches can be computed or return an error.
fn sound(op: &dyn Op) -> Result<(), TestCaseError> {
    for operand in op.operands() {
        let padded = elements(operand.spec.shape);
        prop_assert!(padded > 0 && padded <= MAX_ELEMENTS as u128, "{}: {}", op.kind(), operand.spec.shape);
        prop_assert_eq!(operand.spec.len() as u128, {
            let Shape { n, c, h, w } = operand.spec.shape;
            [n, c, h, w].iter().map(|&size| size as u128).product::<u128>()
        });
        prop_assert!(operand.spec.device_bytes() >= operand.spec.len() / 4);
    }
    let passes = op.passes();
    for pass in passes.iter() {
        let cost = op.cost(pass).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(cost.flop.is_finite() && cost.flop >= 0.0 && cost.bytes > 0.0, "{cost:?}");
        for variant in op.variants(pass.name) {
            let accumulate = vec![false; pass.writes.len()];
            let target = Target { profile: &Profile::WEBGPU, variant: Some(variant), accumulate: &accumulate };
            match op.lower(pass.name, &target) {
                Ok(lowered) => prop_assert!(lowered.dispatches.iter().all(|dispatch| dispatch.workgroups > 0)),
                Err(error) => refused(&error)?,
            }
        }
    }
    Ok(())
}

/// Asserts that an error is about shapes or limits, not a bug.
fn refused(error: &Error) -> Result<(), TestCaseError> {
    let answer = matches!(
        error,
        Error::InvalidArgument { .. } | Error::Shape { .. } | Error::DoesNotFit { .. } | Error::Unsupported { .. }
    );
    prop_assert!(answer, "{error:?}");
    Ok(())
}

fn check(op: Result<impl Op, Error>) -> Result<bool, TestCaseError> {
    match op {
        Ok(op) => sound(&op).map(|()| true),
        Err(error) => refused(&error).map(|()| false),
    }
}

#[test]
fn arbitrary_convolutions_are_valid_or_rejected() {
    let (made, others, whole) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let window = (size(), size(), size(), size());
    let result = runner(20_000).run(&(shape(), window), |(x, (out, kernel, stride, padding))| {
        let conv = Conv::conv2d(x, out, kernel, stride, padding);
        if let Ok(conv) = &conv {
            let y = conv.operands().pop().unwrap().spec.shape;
            let formula = |size: usize| {
                let (size, kernel, stride) = (size as i128, kernel as i128, stride as i128);
                (size + 2 * padding as i128 - kernel) / stride + 1
            };
            prop_assert_eq!((y.n, y.c), (x.n, out));
            prop_assert_eq!((y.h as i128, y.w as i128), (formula(x.h), formula(x.w)));
        }
        let transposed = Conv::conv_transpose2d(x, out, kernel, stride, padding);
        if let Ok(transposed) = &transposed {
            let y = transposed.operands().pop().unwrap().spec.shape;
            let formula = |size: usize| (size as i128 - 1) * stride as i128 + kernel as i128 - 2 * padding as i128;
            prop_assert_eq!((y.n, y.c), (x.n, out));
            prop_assert_eq!((y.h as i128, y.w as i128), (formula(x.h), formula(x.w)));
        }
        let fused = |fused: Conv| -> Result<Conv, Error> {
            let config = BatchNormConfig { training: true, relu: true, ..BatchNormConfig::default() };
            Ok(fused.with_norm(BatchNorm::new(x, config)?)?.with_residual().with_y_partials())
        };
        for conv in [conv.as_ref().ok(), transposed.as_ref().ok()] {
            let Some(conv) = conv else { continue };
            whole.set(whole.get() + u32::from(check(fused(*conv))?));
        }
        for verdict in [check(conv)?, check(transposed)?] {
            let counter = if verdict { &made } else { &others };
            counter.set(counter.get() + 1);
        }
        Ok(())
    });
    result.unwrap();
    assert!(made.get() > 500 && others.get() > 500, "{made:?} operations, {others:?} errors");
    assert!(whole.get() > 500, "{whole:?} fused operations");
}

#[test]
fn arbitrary_operations_are_valid_or_rejected() {
    // For each operation, how many were created and how many rejected.
    let counts = RefCell::new(BTreeMap::<&str, [u32; 2]>::new());
    let result = runner(4_000).run(&(shape(), shape()), |(x, y)| {
        let twice = |size: usize| size.saturating_mul(2);
        for (name, made) in [
            ("linear", check(Conv::linear(x, y))?),
            ("add of two", check(Add::new(x, y))?),
            ("add", check(Add::new(x, x))?),
            ("relu", check(Relu::new(x))?),
            ("upsample", check(Upsample::new(x))?),
            ("pixels", check(ImageDecode::new(x))?),
            ("global_avg_pool", check(GlobalAvgPool::new(x))?),
            ("batch_norm", check(BatchNorm::new(x, BatchNormConfig::default()))?),
            ("position_norm", check(PositionNorm::new(x, PositionNormConfig::default()))?),
            (
                "reparameterize",
                check(Reparameterize::new(Shape::new(x.n, twice(x.c), 1, 1), Shape::new(x.n, x.c, 1, 1)))?,
            ),
            ("reparameterize of two", check(Reparameterize::new(x, y))?),
            ("elbo", check(Elbo::new(x, x, Shape::new(x.n, twice(y.c), 1, 1), elbo(Likelihood::Optimal, true)))?),
            ("elbo of three", check(Elbo::new(x, y, y, elbo(Likelihood::Unit, false)))?),
        ] {
            counts.borrow_mut().entry(name).or_default()[usize::from(!made)] += 1;
        }
        Ok(())
    });
    result.unwrap();
    for (name, [made, refused]) in counts.into_inner() {
        // Random shapes rarely match.
        let least = if name.contains(" of ") { 0 } else { 100 };
        assert!(made >= least && refused > 500, "{name}: {made} operations, {refused} errors");
    }
}

/// Compares the gradients of a case with finite differences; returns whether it has any.
fn differentiated(case: Case) -> Result<bool, TestCaseError> {
    if !case.differentiable {
        return Ok(false);
    }
    let name = case.name.clone();
    let lines =
        PreparedCase::new(case).finite_differences().map_err(|e| TestCaseError::fail(format!("{name}: {e}")))?;
    prop_assert!(!lines.is_empty());
    for line in lines {
        prop_assert!(line.passed(), "{name}: {line}");
    }
    Ok(true)
}

#[test]
fn gradients_of_random_convolutions_match_finite_differences() {
    let done = Cell::new(0);
    let result = runner(200).run(&small(), |sizes| {
        let Some(case) = case(sizes) else { return Ok(()) };
        done.set(done.get() + u32::from(differentiated(case)?));
        Ok(())
    });
    result.unwrap();
    assert!(done.get() > 100, "only {done:?} convolutions");
}

#[test]
fn gradients_of_random_fused_convolutions_match_finite_differences() {
    let done = Cell::new(0);
    let result = runner(200).run(&(small(), parts()), |(sizes, parts)| {
        let Some(case) = case(sizes).and_then(|conv| fused(&conv, parts)) else { return Ok(()) };
        done.set(done.get() + u32::from(differentiated(case)?));
        Ok(())
    });
    result.unwrap();
    assert!(done.get() > 50, "only {done:?} convolutions");
}
