//! Images or latent vectors with their classes.

use crate::error::{Error, Result};

/// Images or latent vectors, with the class of each for a conditional model. Other models ignore the classes.
///
/// Slices and vectors convert to values without classes; a pair converts to values and classes.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a, T> {
    /// Values, one item after the other.
    pub values: &'a [T],
    /// Class of each item.
    pub labels: &'a [u8],
}

impl<'a, T> From<&'a [T]> for Labelled<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self { values, labels: &[] }
    }
}

impl<'a, T> From<&'a Vec<T>> for Labelled<'a, T> {
    fn from(values: &'a Vec<T>) -> Self {
        Self { values, labels: &[] }
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for Labelled<'a, T> {
    fn from(values: &'a [T; N]) -> Self {
        Self { values, labels: &[] }
    }
}

impl<'a, T> From<(&'a Vec<T>, &'a Vec<u8>)> for Labelled<'a, T> {
    fn from((values, labels): (&'a Vec<T>, &'a Vec<u8>)) -> Self {
        Self { values, labels }
    }
}

/// Classes as one-hot vectors, `[labels.len(), classes]`.
pub(crate) fn one_hot(labels: &[u8], classes: usize) -> Result<Vec<f32>> {
    let mut vectors = vec![0.0; labels.len() * classes];
    for (row, &label) in vectors.chunks_exact_mut(classes).zip(labels) {
        let cell = row.get_mut(usize::from(label));
        *cell.ok_or_else(|| Error::argument("class", format!("less than {classes}"), label))? = 1.0;
    }
    Ok(vectors)
}
