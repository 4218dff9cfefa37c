//! Random geometry on the adapter: every kernel in every variant agrees with the reference, and so do random graphs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use vae_wgpu::Error;
use vae_wgpu::app::check::{CheckOutcome, PreparedCase};
use vae_wgpu::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor};
use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::graph::{Arena, Graph};
use vae_wgpu::runtime::op::{
    Add, BatchNorm, BatchNormConfig, Case, Conv, Distribution, Elbo, ElboConfig, GlobalAvgPool, ImageDecode,
    Likelihood, PositionNorm, PositionNormConfig, Relu, Reparameterize, Upsample,
};
use vae_wgpu::runtime::plan;
use vae_wgpu::runtime::tensor::Shape;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;

use crate::cases::{case, fused, parts, runner, small};
use crate::harness::{self, Suite};
use crate::random;

/// Compares every pass and variant that the adapter can run with the reference, and counts them in `ran`.
fn agrees(gpu: &Gpu, case: Case, ran: &RefCell<BTreeMap<String, u32>>) -> Result<(), TestCaseError> {
    let passes = case.op.passes();
    let kernels: Vec<_> = passes
        .iter()
        .flat_map(|pass| case.op.variants(pass.name).iter().map(|variant| (pass.name, *variant)))
        .collect();
    let (family, name, subject) = (case.op.kind(), case.name.clone(), PreparedCase::new(case));
    for (pass, variant) in kernels {
        match subject.gpu_stores_reference(gpu, pass, variant, None) {
            Ok(CheckOutcome::Ran(lines)) => {
                for line in lines {
                    prop_assert!(line.passed(), "{family} {name}: {pass}/{variant}: {line}");
                }
                *ran.borrow_mut().entry(format!("{family}.{pass}/{variant}")).or_default() += 1;
            }
            Ok(CheckOutcome::NotApplicable(_)) => {}
            Err(error) => return Err(TestCaseError::fail(format!("{family} {name}: {pass}/{variant}: {error}"))),
        }
    }
    Ok(())
}

/// Runs `cases` random cases; returns how often each kernel ran, as `op.pass/variant`.
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

/// Asserts that every variant without subgroup operations ran.
fn every_product_ran(ran: &BTreeMap<String, u32>, families: &[&str]) {
    for family in families {
        for pass in ["forward", "backward_input", "backward_weight"] {
            for variant in ["naive", "tiled", "register_tiled"] {
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

/// Another operation with small sizes.
fn other((kind, x, y, flag): (u8, Shape, Shape, bool)) -> Option<Case> {
    let name = format!("{x} and {y}, {flag}");
    let vector = |n, c| Shape::new(n, c, 1, 1);
    let elbo = |optimal, training| {
        let likelihood = if optimal { Likelihood::Optimal } else { Likelihood::Unit };
        ElboConfig { likelihood, training }
    };
    Some(match kind {
        0 => Case::new(name, Conv::linear(x, y.with_n(1)).ok()?),
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
        _ => Case::new(name, Elbo::new(x, x, vector(x.n, 2 * y.c), elbo(y.h % 2 == 0, flag)).ok()?)
            .fill("objective", Distribution::Values(&[0.75, 0.1]))
            .fill("variance", Distribution::Constant(0.06)),
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
    let program = exec.add(graph.clone())?;
    for arena in [Arena::Params, Arena::States] {
        exec.upload(arena, &vae_wgpu::runtime::graph::initial(graph, arena, seed)?)?;
    }
    for (name, id) in graph.inputs() {
        exec.write(exec.input(program, name)?, Data::F32(&rng::normals(&mut noise, graph.value(*id).spec.len())))?;
    }
    exec.run(program, &[])?;
    let mut found = vec![exec.read(exec.output(program, "y")?)?, exec.read(exec.output(program, "dx")?)?];
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
        let mut exec = CpuExecutor::<f64>::new();
        let expected = results(&mut exec, &defined, seed).map_err(failed)?;
        for fuse in [false, true] {
            let graph = random::graph(&choices, fuse);
            nodes.set(nodes.get() + graph.nodes().len());
            fusions.set(fusions.get() + graph.nodes().iter().filter(|n| n.op.kind() == "fused_conv").count());
            let mut exec = GpuExecutor::new(Arc::clone(gpu), &plan::Options::default()).map_err(failed)?;
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

pub(crate) fn register(tests: &mut Suite) {
    harness::tests!(
        tests,
        random_convolutions_agree_with_the_reference_in_every_variant,
        random_fused_convolutions_agree_with_the_reference_in_every_variant,
        random_other_operations_agree_with_the_reference,
        random_graphs_agree_with_the_reference,
    );
}
