//! Adam's hyperparameters of one step.

/// The operand `hyperparams` of [`Adam`](crate::runtime::op::Adam), which the host writes before each step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepScalars {
    /// Learning rate.
    pub lr: f32,
    /// `1 - beta1^t`, t counted from 1: corrects the bias of the first moment towards zero, its initial value.
    pub bias_correction1: f32,
    /// `1 - beta2^t`: corrects the bias of the second moment.
    pub bias_correction2: f32,
    /// Decoupled weight decay: a step multiplies every parameter by `1 - lr * weight_decay`.
    pub weight_decay: f32,
    /// Upper limit of the global gradient norm, above which gradients are scaled down; 0 disables clipping.
    pub clip: f32,
}

impl StepScalars {
    /// Number of values.
    pub const LEN: usize = 5;

    /// The values in the order of the fields, which is the layout of the operand.
    #[must_use]
    pub const fn to_array(self) -> [f32; Self::LEN] {
        [self.lr, self.bias_correction1, self.bias_correction2, self.weight_decay, self.clip]
    }
}
