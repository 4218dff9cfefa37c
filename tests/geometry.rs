//! Random geometry of operations: sizes of zero, enormous sizes and odd ones give an error or an operation that is sound, and what is
//! small enough to run agrees with finite differences and, on an adapter, in every variant with the reference; so do random graphs.

#![expect(clippy::unwrap_used, reason = "a test without libtest's harness")]

#[path = "common/gpu.rs"]
mod common;
#[path = "common/random.rs"]
mod random;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vae_wgpu::Error;
use vae_wgpu::app::check::{Outcome, Subject};
use vae_wgpu::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor, ProgramId};
use vae_wgpu::runtime::gpu::{Gpu, Options};
use vae_wgpu::runtime::graph::{Arena, Graph};
use vae_wgpu::runtime::kernel::Profile;
use vae_wgpu::runtime::op::{
    Add, BatchNorm, BatchNormConfig, Case, Conv2d, ConvTranspose2d, Distribution, Elbo, FusedConv, GlobalAvgPool,
    ImageDecode, Linear, Op, PositionNorm, PositionNormConfig, Relu, Reparameterize, Target, Upsample,
};
use vae_wgpu::runtime::plan;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::runtime::tensor::shape::{MAX_ELEMENTS, Shape};

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

/// Errors of shapes and limits are answers; bugs are not.
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

fn any_convolution_is_an_error_or_sound() {
    let (made, others, whole) = (Cell::new(0), Cell::new(0), Cell::new(0));
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
        let fused = |fused: FusedConv| -> Result<FusedConv, Error> {
            let config = BatchNormConfig { training: true, relu: true, ..BatchNormConfig::default() };
            Ok(fused.with_norm(BatchNorm::new(x, config)?)?.with_residual().with_y_partials())
        };
        for conv in [conv.as_ref().ok().map(Conv2d::fusible), transposed.as_ref().ok().map(ConvTranspose2d::fusible)] {
            let Some(conv) = conv else { continue };
            whole.set(whole.get() + u32::from(check(fused(conv))?));
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

fn any_other_operation_is_an_error_or_sound() {
    // Of each operation, how many were made and how many refused.
    let counts = RefCell::new(BTreeMap::<&str, [u32; 2]>::new());
    let result = runner(4_000).run(&(shape(), shape()), |(x, y)| {
        let twice = |size: usize| size.saturating_mul(2);
        for (name, made) in [
            ("linear", check(Linear::new(x, y))?),
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
            ("elbo", check(Elbo::new(x, x, Shape::new(x.n, twice(y.c), 1, 1), true))?),
            ("elbo of three", check(Elbo::new(x, y, y, false))?),
        ] {
            counts.borrow_mut().entry(name).or_default()[usize::from(!made)] += 1;
        }
        Ok(())
    });
    result.unwrap();
    for (name, [made, refused]) in counts.into_inner() {
        // Random shapes seldom fit each other.
        let least = if name.contains(" of ") { 0 } else { 100 };
        assert!(made >= least && refused > 500, "{name}: {made} operations, {refused} errors");
    }
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

/// What may be fused with a convolution: a norm (in training or not), a residual, statistics given and handed on.
type Parts = (Option<bool>, bool, bool, bool);

fn parts() -> impl Strategy<Value = Parts> {
    let norm = prop_oneof![Just(None), Just(Some(true)), Just(Some(true)), Just(Some(false))];
    (norm, any::<bool>(), any::<bool>(), any::<bool>())
}

/// The convolution with its parts, where there is one.
fn fused(conv: &Case, (training, residual, given, handed_on): Parts) -> Option<Case> {
    let plain = conv.op.downcast_ref().map(Conv2d::fusible);
    let mut op = plain.or_else(|| conv.op.downcast_ref().map(ConvTranspose2d::fusible))?;
    if let Some(training) = training {
        let x = conv.op.operands().first()?.spec.shape;
        let config = BatchNormConfig { training, relu: true, ..BatchNormConfig::default() };
        op = op.with_norm(BatchNorm::new(x, config).ok()?).ok()?;
    }
    let given = given && training == Some(true);
    op = if residual { op.with_residual() } else { op };
    op = if given { op.with_partials().ok()? } else { op };
    op = if handed_on { op.with_y_partials() } else { op };
    let name = format!("{} with norm {training:?}, {residual}, {given}, {handed_on}", conv.name);
    let case = Case::new(name, op)
        .fill("running_var", Distribution::Uniform(0.5, 2.0))
        .fill("partials", Distribution::Uniform(0.5, 1.5));
    // No difference in x moves statistics that are given, and those that are handed on have no gradient.
    Some(if given || handed_on { case.not_differentiated() } else { case })
}

/// The difference quotients of a case agree with its gradients; whether there were any.
fn differentiated(case: Case) -> Result<bool, TestCaseError> {
    if !case.differentiable {
        return Ok(false);
    }
    let name = case.name.clone();
    let lines = Subject::new(case).finite_differences().map_err(|e| TestCaseError::fail(format!("{name}: {e}")))?;
    prop_assert!(!lines.is_empty());
    for line in lines {
        prop_assert!(line.passed(), "{name}: {line}");
    }
    Ok(true)
}

fn random_convolutions_have_the_gradients_of_finite_differences() {
    let done = Cell::new(0);
    let result = runner(200).run(&small(), |sizes| {
        let Some(case) = case(sizes) else { return Ok(()) };
        done.set(done.get() + u32::from(differentiated(case)?));
        Ok(())
    });
    result.unwrap();
    assert!(done.get() > 100, "only {done:?} convolutions");
}

fn random_fused_convolutions_have_the_gradients_of_finite_differences() {
    let done = Cell::new(0);
    let result = runner(200).run(&(small(), parts()), |(sizes, parts)| {
        let Some(case) = case(sizes).and_then(|conv| fused(&conv, parts)) else { return Ok(()) };
        done.set(done.get() + u32::from(differentiated(case)?));
        Ok(())
    });
    result.unwrap();
    assert!(done.get() > 50, "only {done:?} convolutions");
}

/// Adds to `ran` what of the case runs on the adapter, by pass and variant; all of it must agree with the reference.
fn agrees(gpu: &Gpu, case: Case, ran: &RefCell<BTreeMap<String, u32>>) -> Result<(), TestCaseError> {
    let passes = case.op.passes();
    let kernels: Vec<_> = passes
        .iter()
        .flat_map(|pass| case.op.variants(pass.name).iter().map(|variant| (pass.name, *variant)))
        .collect();
    let (family, name, subject) = (case.op.kind(), case.name.clone(), Subject::new(case));
    for (pass, variant) in kernels {
        match subject.gpu_vs_reference(gpu, pass, variant, None) {
            Ok(Outcome::Ran(lines)) => {
                for line in lines {
                    prop_assert!(line.passed(), "{family} {name}: {pass}/{variant}: {line}");
                }
                *ran.borrow_mut().entry(format!("{family}.{pass}/{variant}")).or_default() += 1;
            }
            Ok(Outcome::NotApplicable(_)) => {}
            Err(error) => return Err(TestCaseError::fail(format!("{family} {name}: {pass}/{variant}: {error}"))),
        }
    }
    Ok(())
}

/// Runs as many cases as asked for; how often each kernel ran, as `family.pass/variant`.
fn agree<T: std::fmt::Debug>(
    gpu: &Gpu,
    cases: u32,
    draws: &impl Strategy<Value = T>,
    make: impl Fn(T) -> Option<Case>,
) -> BTreeMap<String, u32> {
    let ran = RefCell::default();
    let result = runner(cases).run(draws, |drawn| match make(drawn) {
        Some(case) => agrees(gpu, case, &ran),
        None => Err(TestCaseError::reject("not an operation")),
    });
    result.unwrap();
    ran.into_inner()
}

/// All that needs no subgroups did.
fn every_product_ran(ran: &BTreeMap<String, u32>, families: &[&str]) {
    for family in families {
        for pass in ["forward", "backward_input", "backward_weight"] {
            for variant in ["naive", "tiled", "lanes_plain"] {
                let kernel = format!("{family}.{pass}/{variant}");
                assert!(ran.get(&kernel).is_some_and(|times| *times > 0), "{kernel}: {ran:?}");
            }
        }
    }
}

fn random_convolutions_agree_with_the_reference_in_every_variant(gpu: &Arc<Gpu>) {
    let ran = agree(gpu, 5, &small(), case);
    every_product_ran(&ran, &["conv2d", "conv_transpose2d"]);
}

fn random_fused_convolutions_agree_with_the_reference_in_every_variant(gpu: &Arc<Gpu>) {
    let ran = agree(gpu, 4, &(small(), parts()), |(sizes, parts)| fused(&case(sizes)?, parts));
    every_product_ran(&ran, &["fused_conv"]);
}

/// Any other operation of small sizes.
fn other((kind, x, y, flag): (u8, Shape, Shape, bool)) -> Option<Case> {
    let name = format!("{x} and {y}, {flag}");
    let vector = |n, c| Shape::new(n, c, 1, 1);
    Some(match kind {
        0 => Case::new(name, Linear::new(x, y.with_n(1)).ok()?),
        1 => Case::new(name, Add::new(x, x).ok()?),
        2 => Case::new(name, Relu::new(x).ok()?),
        3 => Case::new(name, Upsample::new(x).ok()?),
        4 => Case::new(name, ImageDecode::new(x).ok()?).fill("bytes", Distribution::Bytes),
        5 => Case::new(name, GlobalAvgPool::new(x).ok()?),
        6 => {
            let config = BatchNormConfig { training: y.n > 1, relu: flag, ..BatchNormConfig::default() };
            Case::new(name, BatchNorm::new(x, config).ok()?).fill("running_var", Distribution::Uniform(0.5, 2.0))
        }
        7 => {
            let config = PositionNormConfig { relu: flag, ..PositionNormConfig::default() };
            Case::new(name, PositionNorm::new(x, config).ok()?)
        }
        8 => Case::new(name, Reparameterize::new(vector(x.n, 2 * x.c), vector(x.n, x.c)).ok()?),
        _ => Case::new(name, Elbo::new(x, x, vector(x.n, 2 * y.c), flag).ok()?)
            .fill("beta", Distribution::Constant(0.75)),
    })
}

fn random_other_operations_agree_with_the_reference(gpu: &Arc<Gpu>) {
    let shape = || (1usize..6, 1usize..40, 1usize..9, 1usize..9).prop_map(|(n, c, h, w)| Shape::new(n, c, h, w));
    let ran = agree(gpu, 40, &(0u8..10, shape(), shape(), any::<bool>()), other);
    let families: BTreeSet<&str> = ran.keys().filter_map(|kernel| kernel.split('.').next()).collect();
    assert!(families.len() == 10 && ran.len() > 20, "{ran:?}");
}

/// Outputs, gradients and states of a graph after a run.
fn results(exec: &mut dyn Executor, graph: &Graph, seed: u64) -> vae_wgpu::Result<Vec<Vec<f32>>> {
    let mut noise = rng::stream(seed, Stream::Check, 0);
    for arena in [Arena::Params, Arena::States] {
        exec.upload(arena, &vae_wgpu::runtime::graph::initial(graph, arena, seed)?)?;
    }
    for (name, id) in graph.inputs() {
        exec.write(ProgramId(0), name, Data::F32(&rng::normals(&mut noise, graph.value(*id).spec.len())))?;
    }
    exec.run(ProgramId(0), &[])?;
    let mut found = vec![exec.read(ProgramId(0), "y")?, exec.read(ProgramId(0), "dx")?];
    found.extend(exec.download(Arena::Grads)?);
    found.extend(exec.download(Arena::States)?);
    Ok(found)
}

fn random_graphs_agree_with_the_reference(gpu: &Arc<Gpu>) {
    let (nodes, fusions) = (Cell::new(0), Cell::new(0));
    let choices = prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64), 4..16);
    let result = runner(8).run(&(choices, any::<u64>()), |(choices, seed)| {
        let failed = |e: Error| TestCaseError::fail(e.to_string());
        let defined = random::graph(&choices, false);
        let mut exec = CpuExecutor::<f64>::new(vec![defined.clone()]).map_err(failed)?;
        let expected = results(&mut exec, &defined, seed).map_err(failed)?;
        for fuse in [false, true] {
            let graph = random::graph(&choices, fuse);
            nodes.set(nodes.get() + graph.nodes().len());
            fusions.set(fusions.get() + graph.nodes().iter().filter(|n| n.op.kind() == "fused_conv").count());
            let mut exec =
                GpuExecutor::new(Arc::clone(gpu), vec![graph.clone()], &plan::Options::default()).map_err(failed)?;
            let found = results(&mut exec, &graph, seed).map_err(failed)?;
            prop_assert_eq!(found.len(), expected.len());
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let size =
                    |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                let distance = size(&mut found.iter().zip(expected).map(|(a, b)| a - b));
                let size = size(&mut expected.iter().copied());
                prop_assert!(
                    found.len() == expected.len() && distance <= 1e-3 * size + 1e-5,
                    "tensor {i}, fused: {fuse}: {distance:e} away, of {size:e}"
                );
            }
        }
        Ok(())
    });
    result.unwrap();
    assert!(nodes.get() > 200 && fusions.get() > 20, "{nodes:?} nodes, {fusions:?} of them fused");
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let device = Gpu::open(&Options::default()).map(Arc::new);
    let mut trials = common::announce(&device, |gpu| gpu.adapter_info().to_string());
    let plain: [(&str, fn()); 4] = [
        ("any_convolution_is_an_error_or_sound", any_convolution_is_an_error_or_sound),
        ("any_other_operation_is_an_error_or_sound", any_other_operation_is_an_error_or_sound),
        (
            "random_convolutions_have_the_gradients_of_finite_differences",
            random_convolutions_have_the_gradients_of_finite_differences,
        ),
        (
            "random_fused_convolutions_have_the_gradients_of_finite_differences",
            random_fused_convolutions_have_the_gradients_of_finite_differences,
        ),
    ];
    trials.extend(plain.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    }));
    type Test = fn(&Arc<Gpu>);
    let on_adapter: [(&str, Test); 4] = [
        (
            "random_convolutions_agree_with_the_reference_in_every_variant",
            random_convolutions_agree_with_the_reference_in_every_variant,
        ),
        (
            "random_fused_convolutions_agree_with_the_reference_in_every_variant",
            random_fused_convolutions_agree_with_the_reference_in_every_variant,
        ),
        ("random_other_operations_agree_with_the_reference", random_other_operations_agree_with_the_reference),
        ("random_graphs_agree_with_the_reference", random_graphs_agree_with_the_reference),
    ];
    trials.extend(on_adapter.map(|(name, test)| common::trial(name, device.as_ref().ok().cloned(), test)));
    libtest_mimic::run(&arguments, trials).exit_code()
}
