//! `config.json`: the settings, the device and the starts of a run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Version of the format of `config.json`.
const FORMAT: u32 = 1;

/// The content of `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig<S> {
    /// Version of the file format.
    pub format: u32,
    /// Version of vae-wgpu.
    pub version: String,
    /// The start of the run, then each `--resume`. Empty for a run of version 0.1.0.
    #[serde(default)]
    pub starts: Vec<Start>,
    /// Adapter, driver and backend.
    pub device: String,
    /// Settings of the run.
    pub settings: S,
    /// Variant of each kernel.
    pub kernels: BTreeMap<String, String>,
}

/// A start of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Local time with its offset, e.g. `2026-01-31T12:00:00+01:00`.
    pub time: String,
    /// Version of vae-wgpu.
    pub version: String,
    /// The command line, quoted for a shell.
    pub command: String,
}

impl Start {
    /// Describes the start of this process, now.
    #[must_use]
    pub fn now() -> Self {
        let args: Vec<_> = std::env::args_os().map(|arg| quoted(&arg.to_string_lossy())).collect();
        Self {
            time: jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: args.join(" "),
        }
    }
}

/// Quotes an argument for a POSIX shell if it needs quotes.
pub(crate) fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.to_owned() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

impl<S> RunConfig<S> {
    /// Creates the configuration for this version of the program.
    pub fn new(device: String, kernels: BTreeMap<String, String>, settings: S) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, version, starts: Vec::new(), device, settings, kernels }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let cases = [
            ("--lr=0.01", "--lr=0.01"),
            ("runs/2026-01-31-1", "runs/2026-01-31-1"),
            ("my photos", "'my photos'"),
            ("", "''"),
            ("it's $5", r"'it'\''s $5'"),
        ];
        for (arg, expected) in cases {
            assert_eq!(quoted(arg), expected);
        }
    }

    #[test]
    fn config_of_an_earlier_version_has_no_starts() {
        let old = r#"{"format": 1, "version": "0.1.0", "device": "llvmpipe", "kernels": {}, "settings": 5}"#;
        let config = RunConfig::<u32>::from_json(old.as_bytes(), Path::new("config.json")).unwrap();
        assert_eq!((config.settings, config.starts.len()), (5, 0));
        let start = Start::now();
        assert!(start.time.len() == 25 && start.time.starts_with("20") && !start.command.is_empty(), "{start:?}");
        // What a reader looks for comes first.
        let text = serde_json::to_string(&RunConfig { starts: vec![start], ..config }).unwrap();
        let at = |key: &str| text.find(&format!("\"{key}\"")).unwrap();
        assert!(
            at("command") < at("device") && at("device") < at("settings") && at("settings") < at("kernels"),
            "{text}"
        );
    }
}
