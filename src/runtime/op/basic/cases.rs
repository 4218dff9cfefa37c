//! Cases of the basic operations.

use crate::error::Result;
use crate::runtime::op::{Add, Case, Distribution, GlobalAvgPool, ImageDecode, Relu, Upsample};
use crate::runtime::tensor::Shape;

pub(crate) fn add() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 9), ("wide", 2, 64, 8, 8)] {
        let shape = Shape::new(n, c, h, w);
        cases.push(Case::new(name, Add::new(shape, shape)?));
    }
    Ok(cases)
}

pub(crate) fn relu() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 9), ("wide", 2, 64, 8, 8)] {
        cases.push(Case::new(name, Relu::new(Shape::new(n, c, h, w))?).fill("x", Distribution::AwayFromZero(1e-3)));
    }
    // 65,540 workgroups of 64 vec4s: more than a dimension of the grid may have.
    cases.push(Case::new("folded_grid", Relu::new(Shape::new(1, 4, 65_540, 64))?).not_differentiated());
    Ok(cases)
}

pub(crate) fn upsample() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 3, 5), ("wide", 2, 64, 4, 4)] {
        cases.push(Case::new(name, Upsample::new(Shape::new(n, c, h, w))?));
    }
    Ok(cases)
}

pub(crate) fn global_avg_pool() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 3), ("head", 5, 256, 4, 4)] {
        cases.push(Case::new(name, GlobalAvgPool::new(Shape::new(n, c, h, w))?));
    }
    Ok(cases)
}

pub(crate) fn image_decode() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 3), ("cifar", 4, 3, 32, 32)] {
        let op = ImageDecode::new(Shape::new(n, c, h, w))?;
        cases.push(Case::new(name, op).fill("bytes", Distribution::Bytes).not_differentiated());
    }
    Ok(cases)
}
