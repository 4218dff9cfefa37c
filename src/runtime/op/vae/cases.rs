//! Cases of the operations of the VAE.

use crate::error::Result;
use crate::runtime::op::{Case, Distribution, Elbo, Reparameterize};
use crate::runtime::tensor::Shape;

pub(crate) fn elbo() -> Result<Vec<Case>> {
    let case = |name: &str, x: Shape, latent: usize, seeds: bool| {
        let elbo = Elbo::new(x, x, Shape::new(x.n, 2 * latent, 1, 1), seeds)?;
        Ok(Case::new(name, elbo).fill("beta", Distribution::Constant(0.75)))
    };
    Ok(vec![
        case("one", Shape::new(1, 1, 1, 1), 1, true)?,
        case("odd", Shape::new(3, 5, 7, 9), 5, true)?,
        // One vec4 more than a workgroup sums, and more elements of h than the last workgroup has invocations.
        case("tail", Shape::new(41, 4, 5, 5), 7, true)?,
        case("evaluate", Shape::new(2, 3, 8, 8), 16, false)?,
        case("model", Shape::new(16, 3, 32, 32), 16, true)?,
    ])
}

pub(crate) fn reparameterize() -> Result<Vec<Case>> {
    let mut cases = vec![];
    for (name, n, latent) in [("one", 1, 1), ("odd", 7, 5), ("even_padded", 3, 6), ("model", 32, 16)] {
        let z = Shape::new(n, latent, 1, 1);
        cases.push(Case::new(name, Reparameterize::new(z.with_c(2 * latent), z)?));
    }
    Ok(cases)
}
