//! Reads PyTorch fixtures: `manifest.json` and the safetensors files beside it. The format is in `tests/fixtures/README.md`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// `$VAE_WGPU_ORACLE`, or the fixtures of the repository.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("VAE_WGPU_ORACLE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle"), PathBuf::from)
}

/// A tensor and its entry in the manifest.
#[derive(Clone, Debug)]
pub(crate) struct OracleTensor {
    /// In PyTorch's order, row-major.
    pub(crate) data: Vec<f32>,
    /// Fields of the manifest, such as `max_abs` and `f32_err`.
    facts: Value,
}

impl OracleTensor {
    /// A field of the manifest, 0 if it is missing.
    pub(crate) fn fact(&self, name: &str) -> f64 {
        self.facts[name].as_f64().unwrap_or(0.0)
    }

    /// Sizes of the dimensions.
    pub(crate) fn shape(&self) -> Result<Vec<usize>> {
        Ok(serde_json::from_value(self.facts["shape"].clone())?)
    }

    /// Raises the scale of the tolerance to the size of the inputs.
    pub(crate) fn raise_scale(&mut self, size: f64) {
        self.facts["max_abs"] = self.fact("max_abs").max(size).into();
    }

    /// Whether this is an output.
    pub(crate) fn is_output(&self) -> bool {
        self.facts["role"] == "output"
    }

    /// The error that a correct single-precision implementation may have.
    pub(crate) fn tolerance(&self) -> f64 {
        (8.0 * self.fact("f32_err")).max(4e-7 * self.fact("max_abs"))
    }
}

/// A case of the manifest with its tensors.
#[derive(Clone, Debug)]
pub(crate) struct OracleCase {
    pub(crate) name: String,
    /// `op` or `model`.
    pub(crate) kind: String,
    /// Operation, empty for a model.
    pub(crate) op: String,
    /// The entry of the manifest without the tensors.
    pub(crate) manifest: Value,
    pub(crate) tensors: BTreeMap<String, OracleTensor>,
}

impl OracleCase {
    /// A tensor by name.
    pub(crate) fn tensor(&self, name: &str) -> Result<&OracleTensor> {
        self.tensors.get(name).with_context(|| format!("{}: no tensor `{name}`", self.name))
    }

    /// An attribute.
    pub(crate) fn attr(&self, name: &str) -> Result<&Value> {
        self.manifest["attrs"].get(name).with_context(|| format!("{}: no attribute `{name}`", self.name))
    }

    /// An attribute that is a size.
    pub(crate) fn size(&self, name: &str) -> Result<usize> {
        let size = self.attr(name)?.as_u64().with_context(|| format!("{}: `{name}` is no size", self.name))?;
        Ok(usize::try_from(size)?)
    }

    /// An attribute that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<f64> {
        self.attr(name)?.as_f64().with_context(|| format!("{}: `{name}` is no number", self.name))
    }

    /// An attribute that is a list of numbers.
    pub(crate) fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let list = self.attr(name)?.as_array().with_context(|| format!("{}: `{name}` is no list", self.name))?;
        list.iter().map(|v| v.as_f64().with_context(|| format!("{}: `{name}`: {v}", self.name))).collect()
    }
}

/// All cases of a folder.
pub(crate) fn load(folder: &Path) -> Result<Vec<OracleCase>> {
    let path = folder.join("manifest.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Value = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let mut files = HashMap::new();
    let mut cases = Vec::new();
    for case in manifest["cases"].as_array().context("manifest without cases")? {
        let field = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
        let file = folder.join(field("file"));
        if !files.contains_key(&file) {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            files.insert(file.clone(), bytes);
        }
        let stored = SafeTensors::deserialize(&files[&file]).with_context(|| format!("{}", file.display()))?;
        let mut tensors = BTreeMap::new();
        for (name, facts) in case["tensors"].as_object().context("case without tensors")? {
            let view = stored.tensor(&format!("{}{name}", field("prefix")))?;
            if view.dtype() != Dtype::F32 {
                bail!("{}: {name} is {:?} and not F32", file.display(), view.dtype());
            }
            let data = bytemuck::pod_collect_to_vec(view.data());
            tensors.insert(name.clone(), OracleTensor { data, facts: facts.clone() });
        }
        let mut manifest = case.clone();
        manifest.as_object_mut().map(|fields| fields.remove("tensors"));
        cases.push(OracleCase { name: field("name"), kind: field("kind"), op: field("op"), manifest, tensors });
    }
    if cases.is_empty() {
        bail!("{}: no cases", path.display());
    }
    Ok(cases)
}
