//! Cases of the norms.

use crate::error::Result;
use crate::runtime::op::{
    BatchMoments, BatchNorm, BatchNormConfig, Case, Distribution, MomentsNorm, PositionNorm, PositionNormConfig,
};
use crate::runtime::tensor::Shape;

const STANDARD: Distribution = Distribution::Normal(0.0, 1.0);

/// Large cases are not differentiated, and neither are inputs far from order one: difference quotients are inaccurate there. Few
/// elements may be near the ReLU's kink.
fn differentiated_if_smooth(case: Case, shape: Shape, x: Distribution) -> Case {
    let case = case.fill("x", x);
    if x == STANDARD && shape.len() < 2000 { case } else { case.not_differentiated() }
}

pub(crate) fn batch_norm() -> Result<Vec<Case>> {
    let mut cases = vec![];
    let mut add = |name: &str, shape: Shape, training: bool, relu: bool, x: Distribution| -> Result<()> {
        let op = BatchNorm::new(shape, BatchNormConfig { training, relu, ..BatchNormConfig::default() })?;
        let mode = if training { "training" } else { "evaluation" };
        let name = format!("{name}_{mode}{}", if relu { "_relu" } else { "" });
        let case = Case::new(name, op).fill("running_var", Distribution::Uniform(0.5, 2.0));
        cases.push(differentiated_if_smooth(case, shape, x));
        Ok(())
    };
    for training in [true, false] {
        for relu in [false, true] {
            add("odd", Shape::new(3, 5, 7, 3), training, relu, STANDARD)?;
            add("group_of_tiles", Shape::new(2, 35, 3, 5), training, relu, STANDARD)?;
        }
    }
    add("two_values", Shape::new(2, 1, 1, 1), true, false, STANDARD)?;
    add("one", Shape::new(1, 1, 1, 1), false, true, STANDARD)?;
    add("many_chunks", Shape::new(5, 3, 29, 31), true, true, STANDARD)?;
    add("model", Shape::new(8, 64, 16, 16), true, true, STANDARD)?;
    // A one-pass variance in f32 has no correct digits in these.
    add("mean_100_std_half", Shape::new(8, 6, 9, 9), true, false, Distribution::Normal(100.0, 0.5))?;
    add("mean_1000_std_hundredth", Shape::new(8, 6, 9, 9), true, false, Distribution::Normal(1000.0, 0.01))?;
    add("std_thousandth", Shape::new(8, 6, 9, 9), true, false, Distribution::Normal(0.0, 0.001))?;
    Ok(cases)
}

pub(crate) fn batch_moments() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, shape, x) in [
        ("odd", Shape::new(3, 5, 7, 3), STANDARD),
        ("group_of_tiles", Shape::new(2, 35, 3, 5), STANDARD),
        ("many_chunks", Shape::new(5, 3, 29, 31), STANDARD),
        ("model", Shape::new(4, 32, 16, 16), STANDARD),
        ("mean_1000_std_hundredth", Shape::new(8, 6, 9, 9), Distribution::Normal(1000.0, 0.01)),
    ] {
        let op = BatchMoments::of(BatchNorm::new(shape, BatchNormConfig::default())?);
        // Moments do not depend on their pivot, whose gradient is therefore left out; central differences have it.
        cases.push(Case::new(name, op).fill("x", x).not_differentiated());
    }
    Ok(cases)
}

pub(crate) fn moments_norm() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, shape, relu) in [
        ("odd", Shape::new(3, 5, 7, 3), false),
        ("odd_relu", Shape::new(3, 5, 7, 3), true),
        ("group_of_tiles_relu", Shape::new(2, 35, 3, 5), true),
        ("many_chunks", Shape::new(5, 3, 29, 31), true),
        ("model", Shape::new(4, 32, 16, 16), true),
    ] {
        let op = MomentsNorm::of(BatchNorm::new(shape, BatchNormConfig { relu, ..BatchNormConfig::default() })?);
        let case = Case::new(name, op).fill("running_var", Distribution::Uniform(0.5, 2.0));
        // Any positive values, with a count above one. Half of x is above the mean, pivot + offset.
        let case = case.fill("moments", Distribution::Uniform(2.0, 3.0));
        let case = case.fill("x", Distribution::Normal(5.0, 1.0));
        cases.push(if shape.len() < 2000 { case } else { case.not_differentiated() });
    }
    Ok(cases)
}

pub(crate) fn position_norm() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, shape, relu, x) in [
        ("odd", Shape::new(3, 5, 7, 3), false, STANDARD),
        ("odd_relu", Shape::new(3, 5, 7, 3), true, STANDARD),
        ("group_of_tiles", Shape::new(2, 35, 3, 5), false, STANDARD),
        ("group_of_tiles_relu", Shape::new(2, 35, 3, 5), true, STANDARD),
        ("two_channels", Shape::new(1, 2, 1, 1), false, STANDARD),
        ("one", Shape::new(1, 1, 1, 1), false, STANDARD),
        ("many_chunks", Shape::new(5, 3, 29, 31), true, STANDARD),
        ("model", Shape::new(2, 64, 16, 16), true, STANDARD),
        ("mean_100_std_half", Shape::new(2, 30, 9, 9), false, Distribution::Normal(100.0, 0.5)),
        ("mean_1000_std_hundredth", Shape::new(2, 30, 9, 9), false, Distribution::Normal(1000.0, 0.01)),
        ("std_thousandth", Shape::new(2, 30, 9, 9), false, Distribution::Normal(0.0, 0.001)),
    ] {
        let op = PositionNorm::new(shape, PositionNormConfig { relu, ..PositionNormConfig::default() })?;
        cases.push(differentiated_if_smooth(Case::new(name, op), shape, x));
    }
    Ok(cases)
}
