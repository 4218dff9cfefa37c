//! Number types of the CPU reference: `f32`, `f64`, and [`Tracked`], which estimates its own rounding error.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// A number type that the CPU reference computes in.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + Sum
    + 'static
{
    /// Returns the nearest value of this type. Exact for every `f32`.
    fn from_f64(value: f64) -> Self;
    /// Returns the value, without the error estimate.
    fn to_f64(self) -> f64;
    /// Returns e to the power of `self`.
    fn exp(self) -> Self;
    /// Returns the natural logarithm.
    fn ln(self) -> Self;
    /// Returns the square root.
    fn sqrt(self) -> Self;

    /// Returns zero.
    #[inline]
    fn zero() -> Self {
        Self::default()
    }

    /// Converts a count. Exact up to the precision of the type.
    #[inline]
    fn from_usize(n: usize) -> Self {
        Self::from_f64(n as f64)
    }

    /// Returns the square of `self`.
    #[inline]
    fn squared(self) -> Self {
        self * self
    }

    /// Returns the larger of `self` and zero. NaN stays NaN, so that a ReLU does not hide it.
    #[inline]
    fn relu(self) -> Self {
        if self <= Self::zero() { Self::zero() } else { self }
    }
}

macro_rules! float {
    ($t:ty) => {
        impl Real for $t {
            #[inline]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            #[inline]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline]
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
            #[inline]
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            #[inline]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
        }
    };
}
float!(f32);
float!(f64);

/// Returns the sum of `terms`, from sixteen interleaved partial sums over each block of 4096.
///
/// Faster than one running sum, and its rounding error grows with the length of a block instead of the whole sequence, like that of
/// the tree sums in the kernels.
pub fn blocked_sum<T: Real>(mut terms: impl Iterator<Item = T>) -> T {
    let mut total = T::zero();
    loop {
        let mut sums = [T::zero(); 16];
        for i in 0..4096 {
            let Some(term) = terms.next() else {
                return total + sums.into_iter().sum();
            };
            sums[i % 16] += term;
        }
        total += sums.into_iter().sum();
    }
}

/// Largest relative error of one correctly rounded `f32` operation: half a unit in the last place.
pub const ROUNDING: f64 = 1.0 / 16_777_216.0;

/// A number with an estimate of the error that single-precision WGSL arithmetic accumulates in computing it.
///
/// `value` is computed in `f64`. `variance` is the sum of the squares of all rounding errors so far, in units of [`ROUNDING`] squared.
/// Later operations propagate each error to first order, and errors count as independent (Higham, *Accuracy and Stability of
/// Numerical Algorithms*, section 2.8).
///
/// For a sum of K products the variance is at most `K * S^2`, where S is the sum of the absolute products. A limit of a few times
/// [`Tracked::rms`] is therefore tighter than the usual `4 * sqrt(K) * 2^-24 * S`, and nobody has to count K and S. Operations that
/// WGSL does not round correctly (division, square root, `exp`, `log`) add the error that its specification allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracked {
    value: f64,
    variance: f64,
}

impl Tracked {
    /// Returns the estimated error of a single-precision computation of this value: the root of the sum of squares.
    #[must_use]
    pub fn rms(self) -> f64 {
        self.variance.sqrt() * ROUNDING
    }

    /// Returns `value` with the variance of its operands, `carried`, and a new error of `half_ulps` roundings.
    #[inline]
    fn rounded(value: f64, carried: f64, half_ulps: f64) -> Self {
        Self { value, variance: carried + (half_ulps * value).powi(2) }
    }
}

impl PartialEq for Tracked {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialOrd for Tracked {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.value.partial_cmp(&other.value)
    }
}

impl Add for Tracked {
    type Output = Self;
    #[inline]
    fn add(self, o: Self) -> Self {
        // Adding to an exact zero is exact. This is the first term of every sum.
        let exact = (self.value == 0.0 && self.variance == 0.0) || (o.value == 0.0 && o.variance == 0.0);
        Self::rounded(self.value + o.value, self.variance + o.variance, if exact { 0.0 } else { 1.0 })
    }
}

impl Sub for Tracked {
    type Output = Self;
    #[inline]
    fn sub(self, o: Self) -> Self {
        self + -o
    }
}

impl Mul for Tracked {
    type Output = Self;
    #[inline]
    fn mul(self, o: Self) -> Self {
        let carried = self.variance * o.value * o.value + o.variance * self.value * self.value;
        Self::rounded(self.value * o.value, carried, 1.0)
    }
}

impl Div for Tracked {
    type Output = Self;
    #[inline]
    fn div(self, o: Self) -> Self {
        let q = self.value / o.value;
        let carried = (self.variance + o.variance * q * q) / (o.value * o.value);
        Self::rounded(q, carried, 5.0) // 2.5 ulp
    }
}

impl Neg for Tracked {
    type Output = Self;
    #[inline]
    fn neg(self) -> Self {
        Self { value: -self.value, ..self }
    }
}

impl AddAssign for Tracked {
    #[inline]
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}

impl Sum for Tracked {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |a, b| a + b)
    }
}

impl Real for Tracked {
    #[inline]
    fn from_f64(value: f64) -> Self {
        Self { value, variance: 0.0 }
    }
    #[inline]
    fn to_f64(self) -> f64 {
        self.value
    }
    #[inline]
    fn exp(self) -> Self {
        let e = self.value.exp();
        Self::rounded(e, self.variance * e * e, 2.0 * (3.0 + 2.0 * self.value.abs())) // 3 + 2|x| ulp
    }
    #[inline]
    fn ln(self) -> Self {
        let carried = self.variance / (self.value * self.value);
        // From 0.5 to 2: an absolute error of 2^-21, which is eight roundings of 1. Elsewhere: 3 ulp.
        if (0.5..=2.0).contains(&self.value) {
            Self { value: self.value.ln(), variance: carried + 64.0 }
        } else {
            Self::rounded(self.value.ln(), carried, 6.0)
        }
    }
    #[inline]
    fn sqrt(self) -> Self {
        let root = self.value.sqrt();
        let carried = if root > 0.0 { self.variance / (4.0 * root * root) } else { 0.0 };
        Self::rounded(root, carried, 9.0) // as 1.0 / inverseSqrt(x): 2.5 + 2 ulp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_bound_f32_sums_and_stay_below_the_worst_case() {
        for k in [10usize, 1000, 100_000] {
            let term = |i: usize| ((i * 7919 % 1013) as f32 / 506.5 - 1.0, (i * 104_729 % 997) as f32 / 498.5 - 1.0);
            let single: f32 = (0..k).map(|i| term(i).0 * term(i).1).sum();
            let tracked: Tracked =
                (0..k).map(|i| Tracked::from_f64(f64::from(term(i).0)) * Tracked::from_f64(f64::from(term(i).1))).sum();
            let sum_abs: f64 = (0..k).map(|i| f64::from((term(i).0 * term(i).1).abs())).sum();
            let error = (f64::from(single) - tracked.to_f64()).abs();
            assert!(error <= 8.0 * tracked.rms(), "k {k}: {error} > 8 * {}", tracked.rms());
            assert!(tracked.rms() <= (k as f64).sqrt() * ROUNDING * sum_abs);
        }
    }

    #[test]
    fn blocked_sums_are_complete_and_round_less() {
        for len in [0usize, 1, 15, 16, 17, 4095, 4096, 4097, 10_000] {
            let sum: f64 = blocked_sum((1..=len).map(|i| i as f64));
            assert_eq!(sum, (len * (len + 1) / 2) as f64);
        }
        let terms = || std::iter::repeat_n(0.1f32, 1 << 20);
        let exact: f64 = terms().map(f64::from).sum();
        let error = |sum: f32| (f64::from(sum) - exact).abs() / exact;
        assert!(error(blocked_sum(terms())) < 1e-5, "{}", error(blocked_sum(terms())));
        assert!(error(terms().sum()) > 1e-3, "{}", error(terms().sum()));
    }

    #[test]
    fn a_missing_term_exceeds_the_limit() {
        let k = 20_000;
        let full: Tracked = (0..k).map(|i| Tracked::from_f64(((i * 31 % 17) as f64 - 8.0) / 8.0)).sum();
        assert!(8.0 * full.rms() < 0.5);
    }
}
