//! Graphs without a device: names, errors, gradients, fusion, memory plans.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vae_wgpu::runtime::exec::{CpuExecutor, Data, Executor};
use vae_wgpu::runtime::graph::{Arena, Builder, Graph, Root, ValueId};
use vae_wgpu::runtime::kernel::{DeviceKind, Profile};
use vae_wgpu::runtime::op::{
    Add, BatchNorm, BatchNormConfig, Conv, Likelihood, PositionNorm, PositionNormConfig, Relu, Upsample,
};
use vae_wgpu::runtime::plan;
use vae_wgpu::runtime::plan::Options;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::runtime::tensor::{Shape, Spec};
use vae_wgpu::vae::model::{Head, Mode, Norm, Scale, VaeConfig, norm_relu, residual_block};
use vae_wgpu::vae::train::Recipe;

use crate::random;

fn tiny() -> VaeConfig {
    VaeConfig { channels: 4, blocks: 1, groups: 2, latent_dim: 3, image_size: 8, ..VaeConfig::default() }
}

#[test]
fn the_models_of_the_recipes_have_the_documented_sizes() {
    let sharp = VaeConfig::default().graph(128, Mode::Train).unwrap();
    assert_eq!(sharp.parameter_count(), 2_434_691);
    assert_eq!(Recipe::Sharp.settings().model, VaeConfig::default());
    let seed = Recipe::Seed.settings().model;
    assert_eq!(seed.graph(128, Mode::Train).unwrap().parameter_count(), 1_721_891);
    let macs = seed.graph(1, Mode::Evaluate).unwrap();
    let conv = |g: &Graph| -> f64 {
        let product = |family: &str| matches!(family, "conv2d" | "conv_transpose2d" | "linear");
        let nodes = g.nodes().iter().filter(|n| product(n.op.kind()) && n.pass.name != "backward_bias");
        nodes.map(|n| n.op.cost(&n.pass).unwrap().flop / 2.0).sum()
    };
    assert_eq!(conv(&macs), 87_760_896.0);
    let step = seed.graph(1, Mode::Train).unwrap();
    assert_eq!(conv(&step), 262_397_952.0);
}

#[test]
fn parameter_names_match_pytorch() {
    let graph = VaeConfig::default().graph(2, Mode::Train).unwrap();
    for name in [
        "encoder.stem.weight",
        "encoder.groups.2.blocks.0.skip_norm.running_var",
        "encoder.norm.bias",
        "encoder.fc.weight",
        "decoder.fc.bias",
        "decoder.groups.0.blocks.0.conv2.weight",
        "decoder.out.weight",
    ] {
        assert!(graph.tensor(name).is_ok(), "{name}");
    }
    let message = graph.tensor("encoder.stam.weight").unwrap_err().to_string();
    assert!(message.contains("unknown tensor `encoder.stam.weight`"), "{message}");
}

#[test]
fn only_biases_before_a_batch_norm_have_zero_gradients() {
    let graph = VaeConfig::default().graph(4, Mode::Train).unwrap();
    let null: Vec<&str> = graph.zero_grad_params().iter().map(|&i| graph.params()[i].name.as_str()).collect();
    for param in graph.params() {
        let conv_bias = param.name.ends_with("bias") && (param.name.contains("conv") || param.name.contains("stem"));
        assert_eq!(null.contains(&param.name.as_str()), conv_bias, "{}", param.name);
    }
    let position = VaeConfig { norm: Norm::Position, ..VaeConfig::default() }.graph(4, Mode::Train).unwrap();
    assert!(position.zero_grad_params().is_empty());
}

#[test]
fn shape_errors_name_the_node() {
    let mut b = Builder::new();
    let x = b.input("x", Spec::nhwc(Shape::new(1, 3, 8, 8))).unwrap();
    b.scope("encoder", |b| {
        let error = b.apply("stem", &[x], |s| Conv::conv2d(s[0], 8, 11, 1, 1)).unwrap_err().to_string();
        assert!(error.contains("encoder.stem") && error.contains("conv2d"), "{error}");
        let y = b.apply("up", &[x], |s| Upsample::new(s[0])).unwrap();
        let error = b.apply("add", &[x, y], |s| Add::new(s[0], s[1])).unwrap_err().to_string();
        assert!(error.contains("encoder.add: add") && error.contains("[1, 3, 8, 8]"), "{error}");
    });
    assert!(b.input("x", Spec::flat(3)).is_err());
    assert!(b.input("huge", Spec::nhwc(Shape::new(usize::MAX, 2, 3, 4))).is_err());
}

#[test]
fn a_parameter_without_gradient_is_a_build_error() {
    let mut b = Builder::new();
    let x = b.input("x", Spec::nhwc(Shape::new(2, 4, 4, 4))).unwrap();
    let dy = b.input("dy", Spec::nhwc(Shape::new(2, 4, 4, 4))).unwrap();
    let _dead = b.apply("dead", &[x], |s| Conv::conv2d(s[0], 4, 1, 1, 0)).unwrap();
    let y = b.apply("alive", &[x], |s| Conv::conv2d(s[0], 4, 1, 1, 0)).unwrap();
    let error = b.build().with_gradients(&[Root::Seeded(y, dy)], &[]).unwrap_err().to_string();
    assert!(error.contains("`dead.weight` has no gradient"), "{error}");
}

#[test]
fn oversized_batch_is_rejected_with_the_largest_that_fits() {
    let profile = Profile { max_binding: 4 << 20, max_buffer: 4 << 20, ..Profile::WEBGPU };
    let config = VaeConfig { channels: 8, ..VaeConfig::default() };
    let error = config.plan(100_000, Mode::Train, &profile, &Options::default()).unwrap_err().to_string();
    let largest: usize = error.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(config.plan(largest, Mode::Train, &profile, &Options::default()).is_ok(), "{error}");
    assert!(config.plan(largest + 1, Mode::Train, &profile, &Options::default()).is_err(), "{error}");
    let budget = Options { budget: Some(1 << 20), ..Options::default() };
    let error = VaeConfig::default().plan(1, Mode::Train, &Profile::WEBGPU, &budget).unwrap_err().to_string();
    assert!(error.contains("Not even a batch of 1 fits"), "{error}");
}

#[test]
fn the_default_model_fits_webgpus_default_limits() {
    let (graph, plan) = VaeConfig::default().plan(128, Mode::Train, &Profile::WEBGPU, &Options::default()).unwrap();
    plan.verify(&graph).unwrap();
    assert!(plan.memory.largest <= 128 << 20);
    assert!(plan.memory.slots * 2 < plan.memory.unshared, "{}", plan.memory);
    for placed in &plan.dispatches {
        assert!(placed.dispatch.kernel.bindings.len() <= 8, "{}", placed.label);
    }
}

#[test]
fn bindings_that_webgpu_rejects_are_found() {
    let (graph, plan) = tiny().plan(2, Mode::Train, &Profile::WEBGPU, &Options::default()).unwrap();
    plan.verify(&graph).unwrap();
    let fault = |kernel: &str, binding: &str, like: &str| {
        let mut plan = plan.clone();
        let found = plan.dispatches.iter_mut().find(|bound| bound.dispatch.kernel.name == kernel).unwrap();
        let at = |name| found.dispatch.kernel.bindings.iter().position(|(known, _)| *known == name).unwrap();
        let (to, from) = (at(binding), at(like));
        found.ranges[to] = found.ranges[from];
        plan.verify(&graph).unwrap_err().to_string()
    };
    let both = fault("adam.forward", "grads", "params");
    assert!(both.contains("adam.forward.vec4: one buffer is read and written"), "{both}");
    let twice = fault("adam.forward", "m", "params");
    assert!(twice.contains("adam.forward.vec4: one range is written twice"), "{twice}");
}

#[test]
fn model_gradient_matches_directional_derivatives() {
    for (norm, likelihood, head) in
        [(Norm::Batch, Likelihood::Unit, Head::Pool), (Norm::Position, Likelihood::Optimal, Head::Flatten)]
    {
        let config = VaeConfig { norm, likelihood, head, ..tiny() };
        let batch = 3;
        // Without the optimizer, so that a run leaves the parameters as they are.
        let graph = config.gradient_graph(batch).unwrap();
        let mut exec = CpuExecutor::<f64>::new();
        let program = exec.add(graph.clone()).unwrap();
        let mut noise = rng::stream(7, Stream::Check, 0);
        let images: Vec<u8> = (0..config.images(batch).len()).map(|i| (i * 37 % 251) as u8).collect();
        exec.write(exec.input(program, "images").unwrap(), Data::U8(&images)).unwrap();
        exec.write(
            exec.input(program, "eps").unwrap(),
            Data::F32(&rng::normals(&mut noise, batch * config.latent_dim)),
        )
        .unwrap();
        exec.write(exec.input(program, "objective").unwrap(), Data::F32(&[0.7, 0.0])).unwrap();
        exec.upload(Arena::States, &vae_wgpu::runtime::graph::initial(&graph, Arena::States, 0).unwrap()).unwrap();
        exec.upload(Arena::Params, &vae_wgpu::runtime::graph::initial(&graph, Arena::Params, 3).unwrap()).unwrap();
        let start = exec.tensors(Arena::Params).to_vec();
        let mut loss = |params: Vec<Vec<f64>>| -> (f64, Vec<Vec<f64>>) {
            exec.tensors(Arena::Params).clone_from_slice(&params);
            exec.run(program, &[]).unwrap();
            let terms = exec.value(program, graph.output("terms").unwrap()).unwrap();
            (terms[0], exec.tensors(Arena::Grads).to_vec())
        };
        let (_, grads) = loss(start.clone());
        for direction in 0..8 {
            let mut noise = rng::stream(11, Stream::Check, direction);
            let along: Vec<Vec<f32>> = start.iter().map(|p| rng::normals(&mut noise, p.len())).collect();
            let slope: f64 = grads.iter().flatten().zip(along.iter().flatten()).map(|(g, d)| g * f64::from(*d)).sum();
            let step = 1e-7;
            let shifted = |sign: f64| -> Vec<Vec<f64>> {
                let tensor = |(p, d): (&Vec<f64>, &Vec<f32>)| {
                    p.iter().zip(d).map(|(p, d)| p + sign * step * f64::from(*d)).collect()
                };
                start.iter().zip(&along).map(tensor).collect()
            };
            let difference = (loss(shifted(1.0)).0 - loss(shifted(-1.0)).0) / (2.0 * step);
            let error = (difference - slope).abs() / slope.abs().max(1e-2);
            println!(
                "{norm:?} direction {direction}: {difference:.9e} against {slope:.9e}, relative error {error:.1e}"
            );
            assert!(error <= 1e-6, "{norm:?} direction {direction}: {difference} against {slope} ({error})");
        }
    }
}

#[test]
fn outputs_are_readable_only_after_the_last_run() {
    let graph = || {
        let mut b = Builder::new();
        let x = b.input("x", Spec::nhwc(Shape::new(1, 1, 1, 1))).unwrap();
        let y = b.apply("relu", &[x], |s| Relu::new(s[0])).unwrap();
        b.output("y", y).build()
    };
    let mut exec = CpuExecutor::<f32>::new();
    let programs = [graph(), graph()].map(|graph| exec.add(graph).unwrap());
    for (program, x) in programs.into_iter().zip([2.0, 3.0]) {
        assert!(exec.read(exec.output(program, "y").unwrap()).is_err());
        exec.write(exec.input(program, "x").unwrap(), Data::F32(&[x])).unwrap();
        exec.run(program, &[]).unwrap();
        assert_eq!(exec.read(exec.output(program, "y").unwrap()).unwrap(), [x]);
    }
    assert!(exec.read(exec.output(programs[0], "y").unwrap()).unwrap_err().to_string().contains("last run"));
}

/// A graph to fuse, and its operations after fusion.
type Rule = (&'static str, fn() -> vae_wgpu::Result<(Builder, ValueId)>, &'static [(&'static str, usize)]);

fn norm(training: bool) -> BatchNormConfig {
    BatchNormConfig { training, ..BatchNormConfig::default() }
}

fn of_input() -> vae_wgpu::Result<(Builder, ValueId)> {
    let mut b = Builder::new();
    let x = b.input("x", Spec::nhwc(Shape::new(3, 6, 8, 8)))?;
    Ok((b, x))
}

fn of_block(scale: Scale, kind: Norm) -> vae_wgpu::Result<(Builder, ValueId)> {
    let (mut b, x) = of_input()?;
    let out = match scale {
        Scale::Same => 6,
        Scale::Down => 12,
        Scale::Up => 4,
    };
    let y = residual_block(&mut b, x, out, scale, kind, true)?;
    Ok((b, y))
}

/// A graph for each fusion rule, then all rules together in residual blocks.
const RULES: &[Rule] = &[
    (
        "norm and ReLU",
        || {
            let (mut b, x) = of_input()?;
            let y = b.apply("norm", &[x], |s| BatchNorm::new(s[0], norm(true)))?;
            let y = b.apply("relu", &[y], |s| Relu::new(s[0]))?;
            Ok((b, y))
        },
        &[("batch_norm", 1)],
    ),
    (
        "position norm and ReLU",
        || {
            let (mut b, x) = of_input()?;
            let y =
                b.apply("norm", &[x], |s| PositionNorm::new(s[0], PositionNormConfig { eps: 1e-5, relu: false }))?;
            let y = b.apply("relu", &[y], |s| Relu::new(s[0]))?;
            Ok((b, y))
        },
        &[("position_norm", 1)],
    ),
    (
        "load",
        || {
            let (mut b, x) = of_input()?;
            let y = b.apply("norm", &[x], |s| BatchNorm::new(s[0], norm(true)))?;
            let y = b.apply("relu", &[y], |s| Relu::new(s[0]))?;
            let y = b.apply("conv", &[y], |s| Conv::conv2d(s[0], 5, 3, 2, 1))?;
            Ok((b, y))
        },
        &[("fused_conv", 1)],
    ),
    (
        "load of a transposed convolution, in evaluation",
        || {
            let (mut b, x) = of_input()?;
            let y = b.apply("norm", &[x], |s| BatchNorm::new(s[0], norm(false)))?;
            let y = b.apply("relu", &[y], |s| Relu::new(s[0]))?;
            let y = b.apply("conv", &[y], |s| Conv::conv_transpose2d(s[0], 5, 4, 2, 1))?;
            Ok((b, y))
        },
        &[("fused_conv", 1)],
    ),
    (
        "store",
        || {
            let (mut b, x) = of_input()?;
            let y = b.apply("conv", &[x], |s| Conv::conv2d(s[0], 6, 3, 1, 1))?;
            let y = b.apply("add", &[x, y], |s| Add::new(s[0], s[1]))?;
            Ok((b, y))
        },
        &[("fused_conv", 1)],
    ),
    (
        "statistics, shared by two norms",
        || {
            let (mut b, x) = of_input()?;
            let stem = b.apply("stem", &[x], |s| Conv::conv2d(s[0], 7, 3, 1, 1))?;
            let mut branches = Vec::new();
            for name in ["left", "right"] {
                branches.push(b.scope(name, |b| {
                    let h = norm_relu(b, "norm", stem, Norm::Batch, true)?;
                    b.apply("conv", &[h], |s| Conv::conv2d(s[0], 4, 1, 1, 0))
                })?);
            }
            let y = b.apply("add", &branches, |s| Add::new(s[0], s[1]))?;
            Ok((b, y))
        },
        &[("fused_conv", 3)],
    ),
    (
        "an activation that something else reads stays",
        || {
            let (mut b, x) = of_input()?;
            let h = norm_relu(&mut b, "norm", x, Norm::Batch, true)?;
            let y = b.apply("conv", &[h], |s| Conv::conv2d(s[0], 6, 3, 1, 1))?;
            let y = b.apply("again", &[y, h], |s| Add::new(s[0], s[1]))?;
            Ok((b, y))
        },
        &[("batch_norm", 1), ("fused_conv", 1)],
    ),
    (
        "a convolution takes the norm next to it and no other",
        || {
            let (mut b, x) = of_input()?;
            let h = norm_relu(&mut b, "first", x, Norm::Batch, true)?;
            let h = norm_relu(&mut b, "second", h, Norm::Batch, true)?;
            let y = b.apply("conv", &[h], |s| Conv::conv2d(s[0], 6, 3, 1, 1))?;
            Ok((b, y))
        },
        &[("batch_norm", 1), ("fused_conv", 1)],
    ),
    ("block that keeps the size", || of_block(Scale::Same, Norm::Batch), &[("fused_conv", 3)]),
    ("block that halves it", || of_block(Scale::Down, Norm::Batch), &[("fused_conv", 4)]),
    ("block that doubles it", || of_block(Scale::Up, Norm::Batch), &[("fused_conv", 4), ("upsample", 1)]),
    (
        "block with position norm",
        || of_block(Scale::Same, Norm::Position),
        &[("position_norm", 3), ("conv2d", 2), ("fused_conv", 1)],
    ),
];

/// Outputs, gradients of all parameters and of x, and running statistics of a graph, in double precision.
fn results(graph: &Graph, seed: u64) -> Vec<Vec<f64>> {
    let mut noise = rng::stream(seed, Stream::Check, 0);
    let mut exec = CpuExecutor::<f64>::new();
    let program = exec.add(graph.clone()).unwrap();
    for arena in [Arena::Params, Arena::States] {
        exec.upload(arena, &vae_wgpu::runtime::graph::initial(graph, arena, seed).unwrap()).unwrap();
    }
    for (name, id) in graph.inputs() {
        exec.write(
            exec.input(program, name).unwrap(),
            Data::F32(&rng::normals(&mut noise, graph.value(*id).spec.len())),
        )
        .unwrap();
    }
    exec.run(program, &[]).unwrap();
    let mut found: Vec<_> =
        ["y", "dx"].iter().map(|o| exec.value(program, graph.output(o).unwrap()).unwrap().to_vec()).collect();
    for arena in [Arena::Grads, Arena::States] {
        found.extend(exec.tensors(arena).iter().cloned());
    }
    found
}

fn assert_same(what: &str, fused: &[Vec<f64>], unfused: &[Vec<f64>]) {
    assert_eq!(fused.len(), unfused.len(), "{what}");
    for (i, (a, b)) in fused.iter().zip(unfused).enumerate() {
        let scale = b.iter().fold(0.0f64, |max, v| max.max(v.abs()));
        assert_eq!(a.len(), b.len(), "{what}");
        for (a, b) in a.iter().zip(b) {
            let error = (a - b).abs();
            assert!(error <= 1e-10 * scale + 1e-13, "{what}, tensor {i}: {a} fused, {b} as defined");
        }
    }
}

#[test]
fn fusion_rules_preserve_the_results() {
    for (what, make, expected) in RULES {
        let build = |fuse: bool| {
            let (mut b, y) = make().unwrap();
            let dy = b.input("dy", Spec::nhwc(b.shape(y))).unwrap();
            let graph = b.output("y", y).build();
            // Twice: a fused graph must stay as it is.
            let graph = if fuse { graph.fused().unwrap().fused().unwrap() } else { graph };
            let mut counts = BTreeMap::new();
            for node in graph.nodes() {
                *counts.entry(node.op.kind()).or_insert(0) += 1;
            }
            (graph.with_gradients(&[Root::Seeded(y, dy)], &["x"]).unwrap(), counts)
        };
        let ((fused, counts), (unfused, _)) = (build(true), build(false));
        assert_eq!(counts, expected.iter().copied().collect(), "{what}");
        assert_eq!(fused.params(), unfused.params(), "{what}");
        assert_eq!(fused.zero_grad_params(), unfused.zero_grad_params(), "{what}");
        for seed in 0..3 {
            assert_same(what, &results(&fused, seed), &results(&unfused, seed));
        }
    }
}

#[test]
fn fusion_reduces_traffic_and_memory() {
    // On a GPU, separate dispatches compute the statistics.
    let software = Profile { kind: DeviceKind::Software, subgroup: Some((8, 8)), ..Profile::WEBGPU };
    for (profile, share) in [(software, 0.6), (Profile::WEBGPU, 0.7)] {
        let plan = |fuse| {
            let options = Options { fuse, ..Options::default() };
            VaeConfig::default().plan(128, Mode::Train, &profile, &options).unwrap().1
        };
        let (fused, unfused) = (plan(true), plan(false));
        let moved = |plan: &plan::Plan| (plan.traffic().loaded + plan.traffic().stored) as f64;
        assert!(moved(&fused) <= share * moved(&unfused), "{} of {} bytes moved", moved(&fused), moved(&unfused));
        assert!(fused.traffic().total() < unfused.traffic().total());
        assert!(2 * fused.memory.slots <= unfused.memory.unshared);
        assert!(fused.dispatches.len() < unfused.dispatches.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn plans_of_random_graphs_never_alias(choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64), 1..24)) {
        for (fuse, share) in [(true, true), (true, false), (false, true), (false, false)] {
            let graph = random::graph(&choices, fuse);
            let plan = plan::plan(&graph, &Profile::WEBGPU, &Options { reuse_buffers: share, ..Options::default() }).unwrap();
            plan.verify(&graph).unwrap();
        }
    }

    #[test]
    fn fusion_of_random_graphs_preserves_the_results(
        choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64), 1..16), seed in any::<u64>()
    ) {
        let (fused, unfused) = (random::graph(&choices, true), random::graph(&choices, false));
        assert_same("a random graph", &results(&fused, seed), &results(&unfused, seed));
    }

    #[test]
    fn gradients_of_random_graphs_match_differences(
        choices in prop::collection::vec((any::<u8>(), 0usize..64, 0usize..64), 1..10), seed in any::<u64>()
    ) {
        let graph = random::graph(&choices, false);
        let len = random::SHAPE.len();
        let mut noise = rng::stream(seed, Stream::Check, 0);
        let (x, dy) = (rng::normals(&mut noise, len), rng::normals(&mut noise, len));
        let along = rng::normals(&mut noise, len);
        let params = vae_wgpu::runtime::graph::initial(&graph, Arena::Params, seed).unwrap();
        let mut exec = CpuExecutor::<f64>::new();
    let program = exec.add(graph.clone()).unwrap();
        exec.upload(Arena::Params, &params).unwrap();
        let mut loss = |x: &[f32]| -> (f64, Vec<f64>) {
            exec.write(exec.input(program, "x").unwrap(), Data::F32(x)).unwrap();
            exec.write(exec.input(program, "dy").unwrap(), Data::F32(&dy)).unwrap();
            exec.run(program, &[]).unwrap();
            let y = exec.value(program, graph.output("y").unwrap()).unwrap();
            let loss = y.iter().zip(&dy).map(|(y, d)| y * f64::from(*d)).sum();
            (loss, exec.value(program, graph.output("dx").unwrap()).unwrap().to_vec())
        };
        let step = 2.0f32.powi(-14);
        let shifted = |sign: f32| -> Vec<f32> { x.iter().zip(&along).map(|(x, d)| x + sign * step * d).collect() };
        let (up, down) = (shifted(1.0), shifted(-1.0));
        let (_, dx) = loss(&x);
        let expected: f64 = dx.iter().zip(up.iter().zip(&down)).map(|(g, (u, d))| g * (f64::from(*u) - f64::from(*d))).sum();
        let scale: f64 = dx.iter().zip(up.iter().zip(&down)).map(|(g, (u, d))| (g * (f64::from(*u) - f64::from(*d))).abs()).sum();
        let found = loss(&up).0 - loss(&down).0;
        // Random graphs have kinks between the two points, which few of the 120 inputs cross.
        prop_assert!((found - expected).abs() <= 0.02 * scale.max(1e-12), "{found} {expected} {scale}");
    }
}

#[test]
fn submissions_are_short_on_a_slow_gpu() {
    for (batch, least) in [(1, 1), (128, 5)] {
        let (graph, plan) =
            VaeConfig::default().plan(batch, Mode::Train, &Profile::WEBGPU, &Options::default()).unwrap();
        let parts = plan.submissions.clone();
        assert!(parts.len() >= least && (batch > 1 || parts.len() == 1), "batch {batch}: {}", parts.len());
        // Every dispatch once, in order, and no node in two submissions.
        assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..plan.dispatches.len()).collect::<Vec<_>>());
        let node = |i: usize| plan.dispatches[i].node;
        assert!(parts.windows(2).all(|pair| node(pair[0].end - 1) != node(pair[1].start)));
        let seconds = |nodes: BTreeSet<usize>| -> f64 {
            let of = |node: &usize| graph.nodes()[*node].op.cost(&graph.nodes()[*node].pass).unwrap();
            nodes.iter().map(of).map(|cost| (cost.flop / 20e9).max(cost.bytes / 4e9)).sum()
        };
        for part in parts {
            let nodes: BTreeSet<usize> = part.map(node).collect();
            assert!(seconds(nodes.clone()) <= 0.5, "{nodes:?}");
        }
    }
}
