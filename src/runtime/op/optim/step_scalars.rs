//! The scalars that change from step to step: written by the host before a step, read by the loss and by Adam.

use crate::runtime::tensor::shape::Spec;

/// The operand `step` of the operations that need it: eight numbers, laid out by [`StepScalars::to_array`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepScalars {
    /// Learning rate.
    pub lr: f32,
    /// Weight of the KL term in the total loss.
    pub beta: f32,
    /// `1 - beta1^t`, t counted from 1: undoes the bias of Adam's first moment towards its zero start.
    pub bias_correction1: f32,
    /// `1 - beta2^t`, the same for the second moment.
    pub bias_correction2: f32,
    /// Decoupled weight decay; a step multiplies every parameter by `1 - lr * weight_decay`.
    pub weight_decay: f32,
    /// Largest global gradient norm, above which gradients are scaled down; 0 is off.
    pub clip: f32,
}

impl StepScalars {
    /// Numbers in the operand.
    pub const LEN: usize = 8;
    /// BufferRange of [`StepScalars::lr`].
    pub const LR: usize = 0;
    /// BufferRange of [`StepScalars::beta`].
    pub const BETA: usize = 1;
    /// BufferRange of [`StepScalars::bias_correction1`].
    pub const BIAS_CORRECTION1: usize = 2;
    /// BufferRange of [`StepScalars::bias_correction2`].
    pub const BIAS_CORRECTION2: usize = 3;
    /// BufferRange of [`StepScalars::weight_decay`].
    pub const WEIGHT_DECAY: usize = 4;
    /// BufferRange of [`StepScalars::clip`].
    pub const CLIP: usize = 5;

    /// Shape and layout of the operand `step`.
    #[must_use]
    pub const fn spec() -> Spec {
        Spec::flat(Self::LEN)
    }

    /// The numbers in the order in which kernels find them. Shaders get the places as defines, so this is the only list.
    #[must_use]
    pub const fn to_array(self) -> [f32; Self::LEN] {
        let mut array = [0.0; Self::LEN];
        array[Self::LR] = self.lr;
        array[Self::BETA] = self.beta;
        array[Self::BIAS_CORRECTION1] = self.bias_correction1;
        array[Self::BIAS_CORRECTION2] = self.bias_correction2;
        array[Self::WEIGHT_DECAY] = self.weight_decay;
        array[Self::CLIP] = self.clip;
        array
    }
}
