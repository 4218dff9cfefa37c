//! Cases of the optimizer's operations. None is differentiated: an update is no part of the loss.

use crate::error::Result;
use crate::runtime::op::optim::grad_norm::SPAN;
use crate::runtime::op::{
    Accumulate, Adam, AdamConfig, Case, Distribution, GradNorm, MicroBatch, ReplayStates, RestoreStates, Scale,
    StepScalars,
};

const ACCEPTED: &[f32] = &[9.0, 1.0, 0.0, 0.0];
const REJECTED: &[f32] = &[9.0, 0.0, 0.0, 0.0];

const ZERO: Distribution = Distribution::Constant(0.0);

/// The third step of a run.
const STEP: StepScalars =
    StepScalars { lr: 1e-2, bias_correction1: 0.271, bias_correction2: 0.002_997_001, weight_decay: 0.1, clip: 0.0 };
pub(super) const UNCLIPPED: [f32; StepScalars::LEN] = STEP.to_array();
const CLIPPED: [f32; StepScalars::LEN] = StepScalars { clip: 2.0, ..STEP }.to_array();

pub(crate) fn adam() -> Result<Vec<Case>> {
    let case = |name: &str, len: usize, norm: &'static [f32], step: &'static [f32]| {
        let case = Case::new(name, Adam::new(len, AdamConfig::default())?)
            .fill("v", Distribution::Uniform(0.0, 1.0))
            .fill("norm", Distribution::Values(norm))
            .fill("hyperparams", Distribution::Values(step));
        Ok(case.not_differentiated())
    };
    Ok(vec![
        case("one", 1, ACCEPTED, &UNCLIPPED)?,
        case("odd", 259, ACCEPTED, &UNCLIPPED)?,
        case("clipped", 259, ACCEPTED, &CLIPPED)?,
        case("below_the_clip", 259, &[1.5, 1.0, 0.0, 0.0], &CLIPPED)?,
        case("first_step", 259, ACCEPTED, &UNCLIPPED)?.fill("m", ZERO).fill("v", ZERO),
        case("rejected", 259, REJECTED, &CLIPPED)?,
        case("model", 1_721_891, ACCEPTED, &CLIPPED)?,
    ])
}

pub(crate) fn grad_norm() -> Result<Vec<Case>> {
    let case = |name: &str, len| Ok(Case::new(name, GradNorm::new(len)?).not_differentiated());
    Ok(vec![
        case("one", 1)?,
        case("odd", 251)?,
        case("tail", 4 * SPAN + 7)?,
        case("partials_tail", 4 * SPAN * 3 - 1)?,
        case("model", 1_721_891)?,
        case("huge", 5000)?.fill("grads", Distribution::Normal(0.0, 1e17)),
        case("infinite_loss", 100)?.fill("terms", Distribution::Values(&[1.0, f32::NEG_INFINITY, 1.0, 1.0])),
        case("nan_loss", 100)?.fill("terms", Distribution::Values(&[1.0, 1.0, f32::NAN, 1.0])),
    ])
}

pub(crate) fn restore_states() -> Result<Vec<Case>> {
    let case = |name: &str, len, norm: &'static [f32]| {
        Ok(Case::new(name, RestoreStates::new(len)?).fill("norm", Distribution::Values(norm)).not_differentiated())
    };
    Ok(vec![case("one", 1, ACCEPTED)?, case("accepted", 259, ACCEPTED)?, case("rejected", 259, REJECTED)?])
}

pub(crate) fn replay_states() -> Result<Vec<Case>> {
    let case = |name: &str, len, most, count: &'static [f32]| {
        let op = ReplayStates::new(len, most, 0.1)?;
        Ok(Case::new(name, op).fill("count", Distribution::Values(count)).not_differentiated())
    };
    Ok(vec![case("one", 4, 1, &[1.0])?, case("all", 260, 3, &[3.0])?, case("fewer", 260, 5, &[2.0])?])
}

/// A third of the images; add at level 0, store at level 1, keep the others.
const SECOND_OF_THREE: &[f32; MicroBatch::LEN] = &[1.0 / 3.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];

pub(crate) fn scale() -> Result<Vec<Case>> {
    let case = |name: &str, len| {
        let fill = Distribution::Values(SECOND_OF_THREE);
        Ok(Case::new(name, Scale::new(len)?).fill("micro_batch", fill).not_differentiated())
    };
    Ok(vec![case("one", 1)?, case("odd", 259)?, case("terms", 4)?, case("model", 1_721_891)?])
}

pub(crate) fn accumulate() -> Result<Vec<Case>> {
    let case = |name: &str, len, level| {
        let fill = Distribution::Values(SECOND_OF_THREE);
        Ok(Case::new(name, Accumulate::new(len, level)?).fill("micro_batch", fill).not_differentiated())
    };
    Ok(vec![
        case("one", 1, 0)?,
        case("add", 259, 0)?,
        case("store", 259, 1)?,
        case("keep", 259, 2)?,
        case("last_level", 259, 9)?,
        case("model", 1_721_891, 0)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_is_the_second_micro_batch_of_three() {
        assert_eq!(MicroBatch { index: 1, count: 3, images: 1, of: 3 }.to_array(), *SECOND_OF_THREE);
    }
}
