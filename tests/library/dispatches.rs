//! Rules for the dispatches of the default model on a GPU, without a device: no invocation works alone for long, tiles fit.

use vae_wgpu::runtime::kernel::{Dispatch, Profile};
use vae_wgpu::runtime::plan::{BoundDispatch, Options};
use vae_wgpu::vae::model::{Mode, VaeConfig};

/// Workgroups that a GPU should have at least.
const FILLS_GPU: usize = 96;

fn dispatches(batch: usize) -> Vec<BoundDispatch> {
    let (_, plan) = VaeConfig::default().plan(batch, Mode::Train, &Profile::WEBGPU, &Options::default()).unwrap();
    plan.dispatches
}

fn is_product(dispatch: &Dispatch) -> bool {
    dispatch.kernel.name.starts_with("conv2d.")
}

/// Statistics and sums of norms and their merges, sums of columns, the gradient norm: all kernels but the products, which have rules of
/// their own, and the loss. The last dispatch of the loss also writes the gradient of `h`, in one workgroup.
#[test]
fn no_invocation_of_a_gpu_sums_for_long() {
    let is_covered = |dispatch: &Dispatch| !is_product(dispatch) && !dispatch.kernel.name.starts_with("elbo.");
    for batch in [128, 256, 512, 1024] {
        for bound in dispatches(batch).iter().filter(|bound| is_covered(&bound.dispatch)) {
            let (workgroups, iterations) = (bound.dispatch.workgroups, bound.dispatch.work.iterations);
            assert!(
                iterations <= 32 || workgroups >= FILLS_GPU,
                "{} at batch {batch}: {iterations} iterations in {workgroups} workgroups",
                bound.label
            );
        }
    }
}

#[test]
fn products_compute_at_most_twice_what_they_need() {
    for batch in [128, 1024] {
        for bound in dispatches(batch).iter().filter(|bound| is_product(&bound.dispatch)) {
            let work = bound.dispatch.work;
            assert!(0 < work.useful && work.useful <= work.issued, "{}: {work:?}", bound.label);
            assert!(work.issued <= 2 * work.useful, "{} at batch {batch}: {work:?}", bound.label);
        }
    }
}

/// Convolutions of 8x8 and 4x4 images launch as many workgroups as a large GPU needs. The exceptions are products with 64 columns, or rows,
/// of 4x4 images in one block. Smaller tiles would leave invocations of a subgroup idle.
#[test]
fn products_of_small_images_fill_a_gpu() {
    let few: Vec<_> = dispatches(128)
        .iter()
        .filter(|bound| is_product(&bound.dispatch) && !bound.label.contains(".fc/"))
        .filter(|bound| bound.dispatch.workgroups < FILLS_GPU)
        .map(|bound| (bound.label.clone(), bound.dispatch.workgroups))
        .collect();
    let block = "encoder.groups.2.blocks.0";
    let allowed = [
        "conv2/conv2d.forward.tiled_4",
        "conv3/conv2d.backward_input.tiled_4",
        "conv3/conv2d.backward_weight.tiled_16",
    ];
    assert_eq!(few, allowed.map(|label| (format!("{block}.{label}"), 64)));
}

#[test]
fn the_sums_of_long_linear_layers_are_split() {
    let all = dispatches(128);
    let at = all.iter().position(|bound| bound.label.starts_with("decoder.fc/conv2d.backward_input")).unwrap();
    assert_eq!((all[at].dispatch.work.iterations, all[at].dispatch.workgroups), (8, 128));
    assert!(all[at + 1].label.starts_with("decoder.fc/column_sum"), "{}", all[at + 1].label);
}

#[test]
fn gradients_are_added_before_they_are_read() {
    let all = dispatches(128);
    let position = |name: &str| all.iter().position(|bound| bound.dispatch.kernel.name == name).unwrap();
    let last = all.iter().rposition(|bound| bound.dispatch.kernel.name == "joined_sums").unwrap();
    assert!(last < position("grad_norm.forward.partial"));
    let splits = |bound: &&BoundDispatch| bound.dispatch.kernel.name == "conv2d.backward_weight";
    assert!(all.iter().rposition(|bound| splits(&bound)).unwrap() < last);
}

#[test]
fn a_step_takes_few_dispatches() {
    let count = dispatches(128).len();
    assert!(count <= 490, "{count}");
}
