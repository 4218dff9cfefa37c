//! The formulas that the references of the norms share. The device side is `shaders/lib/norm.wgsl`.

use crate::runtime::tensor::real::Real;

/// The map of one value: y = ((x - pivot) - offset) * rstd * weight + bias, then the ReLU if there is one.
pub(super) struct Normalize<T> {
    pub(super) pivot: T,
    pub(super) offset: T,
    pub(super) rstd: T,
    pub(super) weight: T,
    pub(super) bias: T,
    pub(super) relu: bool,
}

impl<T: Real> Normalize<T> {
    #[inline]
    fn normalized(&self, x: T) -> T {
        (x - self.pivot - self.offset) * self.rstd
    }

    #[inline]
    pub(super) fn output(&self, x: T) -> T {
        let y = self.normalized(x) * self.weight + self.bias;
        if self.relu { y.relu() } else { y }
    }

    /// The normalized x, and the gradient before the ReLU: dy, or 0 where the ReLU cuts it off.
    #[inline]
    pub(super) fn masked(&self, x: T, dy: T) -> (T, T) {
        let xhat = self.normalized(x);
        let cut = self.relu && xhat * self.weight + self.bias <= T::zero();
        (xhat, if cut { T::zero() } else { dy })
    }
}
