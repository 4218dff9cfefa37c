//! `config.json`: the settings and the device of a run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Version of the format of `config.json`.
const FORMAT: u32 = 1;

/// The content of `config.json`: the settings and the device that a run was started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig<S> {
    /// Version of the file format.
    pub format: u32,
    /// Version of vae-wgpu.
    pub version: String,
    /// Adapter, driver and backend.
    pub device: String,
    /// Variant of each kernel.
    pub kernels: BTreeMap<String, String>,
    /// Settings of the run.
    pub settings: S,
}

impl<S> RunConfig<S> {
    /// Creates the configuration for this version of the program.
    pub fn new(device: String, kernels: BTreeMap<String, String>, settings: S) -> Self {
        Self { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned(), device, kernels, settings }
    }
}

impl<S: DeserializeOwned> RunConfig<S> {
    /// Parses the bytes of `config.json`; `path` is used in errors.
    ///
    /// # Errors
    /// [`Error::File`] for malformed JSON or unknown fields, [`Error::Checkpoint`] for another format.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let malformed = |error: serde_json::Error| Error::malformed("parse", path, error);
        let Version { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format != FORMAT {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                what: "format".to_owned(),
                expected: FORMAT.to_string(),
                found: format.to_string(),
                hint: "the run was written by another version of vae-wgpu".to_owned(),
            });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }
}
