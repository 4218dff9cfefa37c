//! Gradient accumulation on the CPU reference, and its plan.

use vae_wgpu::Error;
use vae_wgpu::runtime::graph::{Arena, Storage};
use vae_wgpu::runtime::kernel::Profile;
use vae_wgpu::runtime::op::{AdamConfig, MAX_MICRO_BATCHES, MicroBatch};
use vae_wgpu::runtime::plan::{Options, Plan};
use vae_wgpu::vae::model::{Mode, VaeConfig};
use vae_wgpu::vae::runner::{Device, Hyperparams, Runner};

use crate::accumulated;

#[test]
fn shares_of_a_step_give_the_same_bits() {
    accumulated::shares_of_a_step_give_the_same_bits(&Device::Cpu);
}

#[test]
fn accumulated_steps_agree_with_one_batch() {
    accumulated::accumulated_steps_agree_with_one_batch(&Device::Cpu);
}

#[test]
fn batch_statistics_are_those_of_each_micro_batch() {
    accumulated::batch_statistics_are_those_of_each_micro_batch(&Device::Cpu);
}

#[test]
fn shared_steps_give_the_bits_of_one_process() {
    accumulated::shared_steps_give_the_bits_of_one_process(&Device::Cpu);
}

#[test]
fn synchronized_norms_are_those_of_one_batch() {
    accumulated::synchronized_norms_are_those_of_one_batch(&Device::Cpu);
}

#[test]
fn single_micro_batch_gives_the_bits_of_a_step() {
    accumulated::single_micro_batch_gives_the_bits_of_a_step(&Device::Cpu);
}

#[test]
fn non_finite_micro_batch_rejects_the_whole_step() {
    accumulated::non_finite_micro_batch_rejects_the_whole_step(&Device::Cpu);
}

fn tiny() -> VaeConfig {
    VaeConfig { channels: 4, blocks: 1, groups: 1, latent_dim: 3, image_size: 8, ..VaeConfig::default() }
}

#[test]
fn plan_has_the_memory_of_a_micro_batch_and_of_the_update() {
    let plan = |batch, mode| {
        let (graph, plan) = tiny().plan(batch, mode, &Profile::WEBGPU, &Options::default()).unwrap();
        plan.verify(&graph).unwrap();
        plan.memory
    };
    let (step, large) = (plan(16, Mode::Train), plan(64, Mode::Train));
    for (most, levels) in [(1, 0), (2, 1), (4, 2), (5, 3), (MAX_MICRO_BATCHES, 10)] {
        let part = plan(16, Mode::Accumulate(most));
        assert_eq!((part.params, part.optimizer, part.states), (step.params, step.optimizer, step.states));
        // A sum of gradients and one of loss terms for each level.
        assert_eq!(part.gradients, step.gradients + 256 + levels * (step.gradients + 256), "{most} micro-batches");
        assert!(part.slots <= step.slots && part.total() < large.total(), "{part}");
    }
    let update = plan(1, Mode::Update);
    assert_eq!((update.params, update.optimizer, update.states), (step.params, step.optimizer, step.states));
    assert!(update.inputs < 256 && update.slots < 64 << 10, "{update}");
}

#[test]
fn accumulated_graph_has_the_nodes_of_a_step() {
    let graph = |mode| tiny().graph(4, mode).unwrap();
    let nodes = |mode| graph(mode).nodes().iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    let (step, part, update) = (nodes(Mode::Train), nodes(Mode::Accumulate(3)), nodes(Mode::Update));
    assert_eq!(update, ["grad_norm", "adam", "restore_states"]);
    let (common, added) = part.split_at(step.len() - update.len());
    assert_eq!(common, &step[..common.len()]);
    let sums = ["gradients", "gradients.0", "gradients.1", "terms", "terms.0", "terms.1"];
    assert_eq!(added, sums.map(|name| format!("accumulate.{name}")));
    assert!(
        graph(Mode::Update).optimizer() == Some(AdamConfig::default())
            && graph(Mode::Accumulate(3)).optimizer().is_none()
    );
    assert!(tiny().graph(4, Mode::Accumulate(MAX_MICRO_BATCHES + 1)).is_err());
    assert_eq!(nodes(Mode::UpdateShares(3)), [&["replay_states".to_owned()][..], &update].concat());
}

#[test]
fn shared_gradients_are_summed_as_soon_as_they_are_complete() {
    let graph = tiny().graph(4, Mode::AccumulateShare(3)).unwrap();
    let names = |mode| tiny().graph(4, mode).unwrap().nodes().iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    let is_sum = |name: &String| name.starts_with("accumulate.");
    let others = |mode| names(mode).into_iter().filter(|name| !is_sum(name)).collect::<Vec<_>>();
    assert_eq!(others(Mode::AccumulateShare(3)), others(Mode::Accumulate(3)));

    let (buckets, terms) = graph.sums().split_at(graph.sums().len() - 1);
    assert!(buckets.len() > 2, "{buckets:?}");
    assert_eq!(graph.value(terms[0].1).storage, Storage::Tensor(Arena::Terms, 0));
    let last = graph.nodes().len() - 1;
    assert_eq!((buckets.last().unwrap().0, terms[0].0), (last, last));
    // From the last parameter to the first, without gaps.
    let mut before = graph.params().len();
    let mut earliest = last;
    for &(complete, bucket) in buckets {
        let Storage::Tensors(Arena::Grads, first, end) = graph.value(bucket).storage else { panic!("{bucket:?}") };
        assert!(first < end && end == before, "{first}..{end}");
        before = first;
        earliest = earliest.min(complete);
        // No node computes one of these gradients later.
        for node in &graph.nodes()[complete + 1..] {
            for value in node.touches() {
                let storage = graph.value(value).storage;
                assert!(
                    !matches!(storage, Storage::Tensor(Arena::Grads, i) if (first..end).contains(&i)),
                    "{}",
                    node.name
                );
            }
        }
    }
    assert_eq!(before, 0);
    // The first bucket can travel during a good part of the backward pass.
    assert!(graph.nodes()[earliest..].iter().filter(|node| !is_sum(&node.name)).count() > 20, "{earliest} of {last}");

    // A submission ends with each bucket. Memory is that of one process, but for the parts of gradients that wait to be added.
    let plan = |mode| {
        let (graph, plan) = tiny().plan(4, mode, &Profile::WEBGPU, &Options::default()).unwrap();
        plan.verify(&graph).unwrap();
        plan
    };
    let (shared, alone) = (plan(Mode::AccumulateShare(3)), plan(Mode::Accumulate(3)));
    assert_eq!((alone.submissions.len(), alone.sums.len()), (1, 1));
    assert_eq!((shared.submissions.len(), shared.sums.len()), (buckets.len(), buckets.len()));
    let arenas = |plan: &Plan| (plan.memory.params, plan.memory.gradients, plan.memory.optimizer, plan.memory.states);
    assert_eq!(arenas(&shared), arenas(&alone));
    assert!(shared.memory.slots <= alone.memory.slots, "{} and {}", shared.memory, alone.memory);
}

#[test]
fn micro_batches_out_of_order_are_rejected() {
    let mut runner = Runner::new(tiny(), &[(2, Mode::Accumulate(2))], &Device::Cpu, &Options::default()).unwrap();
    runner.init(0).unwrap();
    let (images, eps, hyper) = (vec![7; tiny().images(2).len()], vec![0.5; 2 * 3], Hyperparams::default());
    let part = |index, count| MicroBatch { index, count, images: 2, of: 2 * count };
    let refused = |result: Result<(), Error>, what: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }) && error.to_string().contains(what), "{error}");
    };
    refused(runner.update(&hyper).map(drop), "before the update");
    refused(runner.accumulate(&images, &eps, part(1, 2), &hyper), "next micro-batch");
    refused(
        runner.accumulate(&images, &eps, MicroBatch { images: 3, ..part(0, 2) }, &hyper),
        "images of a micro-batch",
    );
    runner.accumulate(&images, &eps, part(0, 2), &hyper).unwrap();
    refused(runner.update(&hyper).map(drop), "before the update");
    refused(runner.accumulate(&images, &eps, part(1, 3), &hyper), "next micro-batch");
    runner.accumulate(&images, &eps, part(1, 2), &hyper).unwrap();
    runner.update(&hyper).unwrap();
    refused(runner.update(&hyper).map(drop), "before the update");
    refused(runner.train_accumulated(&images, &eps, 0, &hyper).map(drop), "images of a micro-batch");
    refused(runner.train_accumulated(&images, &eps[1..], 1, &hyper).map(drop), "noise");
    // Another step drops one that was begun.
    runner.accumulate(&images, &eps, part(0, 2), &hyper).unwrap();
    runner.train_with_noise(&images, &eps, &hyper).unwrap();
    refused(runner.accumulate(&images, &eps, part(1, 2), &hyper), "next micro-batch");
    assert_eq!(runner.reports(true).unwrap().len(), 2);
}

#[test]
fn restarted_runner_trains_as_a_new_one() {
    let (images, hyper) = (vec![7; tiny().images(2).len()], Hyperparams::default());
    let programs = [(2, Mode::Train), (1, Mode::Accumulate(2))];
    let new = || Runner::new(tiny(), &programs, &Device::Cpu, &Options::default()).unwrap();
    let step = |runner: &mut Runner| {
        runner.init(5).unwrap();
        runner.train(&images, &hyper).unwrap();
        (runner.reports(true).unwrap(), runner.download(Arena::Params).unwrap())
    };
    let mut used = new();
    used.init(1).unwrap();
    for _ in 0..3 {
        used.train(&images, &hyper).unwrap();
    }
    let part = |index| MicroBatch { index, count: 2, images: 1, of: 2 };
    let (image, eps) = (images[..images.len() / 2].to_vec(), [0.5; 3]);
    used.accumulate(&image, &eps, part(0), &hyper).unwrap();
    assert_eq!(step(&mut used), step(&mut new()));
    // The micro-batch before the restart belongs to no step.
    assert!(used.accumulate(&image, &eps, part(1), &hyper).is_err());
}
