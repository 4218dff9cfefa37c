//! The operations that only a variational autoencoder needs.

pub mod elbo;
pub mod reparameterize;

pub use elbo::Elbo;
pub use reparameterize::Reparameterize;
