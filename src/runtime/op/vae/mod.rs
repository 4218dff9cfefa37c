//! The operations that are specific to a variational autoencoder.

pub(crate) mod cases;
pub mod elbo;
pub mod reparameterize;

pub use elbo::{Elbo, ElboConfig, Likelihood};
pub use reparameterize::Reparameterize;
