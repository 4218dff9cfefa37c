//! The table of operations.

use crate::error::Result;
use crate::runtime::kernel::Kernel;
use crate::runtime::op::{Case, OpInfo, basic, conv, norm, optim, vae};

/// The table of operations.
pub static OPS: &[OpInfo] = &[
    conv::CONV2D,
    conv::CONV_TRANSPOSE2D,
    conv::LINEAR,
    conv::FUSED_CONV,
    info(norm::batch::NAME, || norm::batch::KERNELS.to_vec(), norm::cases::batch_norm),
    info(norm::batch_moments::NAME, || norm::batch_moments::KERNELS.to_vec(), norm::cases::batch_moments),
    info(norm::moments_norm::NAME, || norm::moments_norm::KERNELS.to_vec(), norm::cases::moments_norm),
    info(norm::position::NAME, || norm::position::KERNELS.to_vec(), norm::cases::position_norm),
    info(basic::relu::NAME, || basic::relu::KERNELS.to_vec(), basic::cases::relu),
    info(basic::add::NAME, || basic::add::KERNELS.to_vec(), basic::cases::add),
    info(basic::upsample::NAME, || basic::upsample::KERNELS.to_vec(), basic::cases::upsample),
    info(basic::global_avg_pool::NAME, || basic::global_avg_pool::KERNELS.to_vec(), basic::cases::global_avg_pool),
    info(vae::reparameterize::NAME, || vae::reparameterize::KERNELS.to_vec(), vae::cases::reparameterize),
    info(basic::image_decode::NAME, || basic::image_decode::KERNELS.to_vec(), basic::cases::image_decode),
    info(vae::elbo::NAME, || vae::elbo::KERNELS.to_vec(), vae::cases::elbo),
    info(optim::grad_norm::NAME, || optim::grad_norm::KERNELS.to_vec(), optim::cases::grad_norm),
    info(optim::adam::NAME, || optim::adam::KERNELS.to_vec(), optim::cases::adam),
    info(optim::restore_states::NAME, || optim::restore_states::KERNELS.to_vec(), optim::cases::restore_states),
    info(optim::replay_states::NAME, || optim::replay_states::KERNELS.to_vec(), optim::cases::replay_states),
    info(optim::scale::NAME, || optim::scale::KERNELS.to_vec(), optim::cases::scale),
    info(optim::accumulate::NAME, || optim::accumulate::KERNELS.to_vec(), optim::cases::accumulate),
];

const fn info(name: &'static str, kernels: fn() -> Vec<&'static Kernel>, cases: fn() -> Result<Vec<Case>>) -> OpInfo {
    OpInfo { name, kernels, cases }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::{Profile, Target};

    #[test]
    fn dispatches_accumulate_exactly_when_a_write_does() {
        for case in OPS.iter().flat_map(|op| (op.cases)().unwrap()) {
            for pass in case.op.passes().backward {
                for on in [false, true] {
                    let accumulate = vec![on; pass.writes.len()];
                    for &variant in case.op.variants(pass.name) {
                        let profile = Profile { subgroup: Some((8, 8)), ..Profile::WEBGPU };
                        let target = Target { profile: &profile, variant: Some(variant), accumulate: &accumulate };
                        let lowered = case.op.lower(pass.name, &target).unwrap();
                        let any = lowered.dispatches.iter().any(|dispatch| dispatch.accumulate);
                        assert_eq!(any, on, "{} {} {variant}", case.name, pass.name);
                    }
                }
            }
        }
    }
}
