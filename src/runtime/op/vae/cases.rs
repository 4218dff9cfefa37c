//! Cases of the operations of the VAE.

use crate::error::Result;
use crate::runtime::op::{Case, Distribution, Elbo, ElboConfig, Likelihood, Reparameterize};
use crate::runtime::tensor::Shape;

pub(crate) fn elbo() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for likelihood in [Likelihood::Unit, Likelihood::Optimal] {
        let case = |name: &str, x: Shape, latent: usize, training: bool, objective: &'static [f32]| {
            let (config, suffix) = match likelihood {
                Likelihood::Unit => (ElboConfig { likelihood, training }, ""),
                Likelihood::Optimal => (ElboConfig { likelihood, training }, "_optimal"),
            };
            let elbo = Elbo::new(x, x, Shape::new(x.n, 2 * latent, 1, 1), config)?;
            let case = Case::new(format!("{name}{suffix}"), elbo);
            Ok(case.fill("objective", Distribution::Values(objective)).fill("variance", Distribution::Constant(0.06)))
        };
        cases.extend([
            case("one", Shape::new(1, 1, 1, 1), 1, true, &[0.75, 0.0])?,
            case("odd", Shape::new(3, 5, 7, 9), 5, true, &[0.75, 0.0])?,
            // One vec4 more than a workgroup sums, and more elements of h than the last workgroup has invocations.
            case("tail", Shape::new(41, 4, 5, 5), 7, true, &[0.75, 0.0])?,
            case("evaluate", Shape::new(2, 3, 8, 8), 16, false, &[0.75, 0.0])?,
            // More images than `divergence` and more dimensions than `finish` has invocations.
            case("many", Shape::new(130, 1, 2, 2), 300, true, &[1.5, 0.0])?,
            // Some dimensions have less.
            case("free_bits", Shape::new(6, 3, 4, 4), 21, true, &[0.75, 2.5])?,
            case("model", Shape::new(16, 3, 32, 32), 16, true, &[0.75, 0.0])?,
        ]);
    }
    // Exact reconstructions: the variance stops at its smallest value.
    let x = Shape::new(2, 3, 4, 4);
    let config = ElboConfig { likelihood: Likelihood::Optimal, training: true };
    let exact = Elbo::new(x, x, Shape::new(2, 8, 1, 1), config)?;
    let exact = Case::new("exact_optimal", exact).fill("objective", Distribution::Values(&[1.0, 0.0]));
    let images = Distribution::Values(&[-0.5, 0.25, 0.75]);
    cases.push(exact.fill("x", images).fill("mean", images).not_differentiated());
    Ok(cases)
}

pub(crate) fn reparameterize() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, latent) in [("one", 1, 1), ("odd", 7, 5), ("even_padded", 3, 6), ("model", 32, 16)] {
        let z = Shape::new(n, latent, 1, 1);
        cases.push(Case::new(name, Reparameterize::new(z.with_c(2 * latent), z)?));
    }
    Ok(cases)
}
