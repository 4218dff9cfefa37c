//! The worst element of a tensor.

use std::fmt;

use serde::Serialize;

/// Comparison of one tensor: its worst element, and faults.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Operand or gradient, followed by ` +=` if the pass accumulated.
    pub tensor: String,
    /// Logical index of the element with the largest share of its limit.
    pub index: usize,
    /// The value of the element.
    pub got: f64,
    /// The expected value.
    pub want: f64,
    /// Absolute difference.
    pub error: f64,
    /// Largest allowed difference.
    pub limit: f64,
    /// `error` in percent of `limit`; infinite for NaN, NaN if nothing was compared.
    pub share: f64,
    /// Another fault: elements never written, non-zero padding, writes beyond the tensor.
    pub fault: Option<String>,
}

impl Comparison {
    pub(super) fn new(tensor: String) -> Self {
        Self { tensor, index: 0, got: 0.0, want: 0.0, error: 0.0, limit: 0.0, share: f64::NAN, fault: None }
    }

    /// Compares an element and keeps the worst one.
    pub(super) fn compare(&mut self, index: usize, got: f64, want: f64, limit: f64) {
        let error = (got - want).abs();
        let share = match error / limit * 100.0 {
            _ if error == 0.0 && limit >= 0.0 => 0.0,
            share if share.is_nan() => f64::INFINITY,
            share => share,
        };
        if self.share.is_nan() || share > self.share {
            let tensor = std::mem::take(&mut self.tensor);
            *self = Self { tensor, index, got, want, error, limit, share, fault: self.fault.take() };
        }
    }

    pub(super) fn add_fault(&mut self, fault: impl Into<String>) {
        self.fault.get_or_insert(fault.into());
    }

    /// Returns whether every element is within its limit and there is no fault.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.fault.is_none() && self.share <= 100.0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, index, got, want, error, limit, share, fault } = self;
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        write!(f, "{verdict:6} {tensor}[{index}]: got {got:.9e}, want {want:.9e}, error {error:.2e}, ")?;
        write!(f, "limit {limit:.2e}, ")?;
        match share {
            0.0..1e4 => write!(f, "{share:.0} % used")?,
            _ => f.write_str("far over")?,
        }
        fault.as_ref().map_or(Ok(()), |fault| write!(f, "; {fault}"))
    }
}
