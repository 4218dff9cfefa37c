//! Measures all variants of every kernel of a model, for a table of the fastest.
//!
//! A table is created and used only on request, so results never depend on timings that the user did not ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{PassBench, Workload};
use crate::app::figures::median;
use crate::error::{Error, Result};
use crate::runtime::gpu::{AdapterInfo, Gpu};
use crate::runtime::kernel::{Lowered, Profile};
use crate::runtime::op::{OPS, Target, current_key, current_name};
use crate::runtime::plan;

/// Share of its time that a variant must save to be chosen over the default.
pub const MARGIN: f64 = 0.03;
/// A variant whose first runs take more than this many times as long as the fastest is not measured further, unless it is the default.
const SLOW: f64 = 4.0;
/// Largest number of first runs per variant.
const FIRST_RUNS: usize = 5;

/// Measured times of the variants of a pass.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Key of the table entry ([`plan::key`]).
    pub key: String,
    /// Number of nodes in the model that run it.
    pub count: usize,
    /// The variant chosen without a table.
    pub default: &'static str,
    /// The fastest variant, or the default if the fastest gains less than [`MARGIN`].
    pub best: &'static str,
    /// Median milliseconds per variant.
    pub ms: BTreeMap<&'static str, f64>,
}

impl Measured {
    fn new(key: String, count: usize, default: &'static str, ms: BTreeMap<&'static str, f64>) -> Result<Self> {
        let quickest = ms.iter().min_by(|a, b| a.1.total_cmp(b.1)).map(|(name, ms)| (*name, *ms));
        let (quickest, least) = quickest.ok_or_else(|| Error::bug("no variant was timed"))?;
        let tie = ms.get(default).is_some_and(|&ms| least > ms * (1.0 - MARGIN));
        Ok(Self { key, count, default, best: if tie { default } else { quickest }, ms })
    }

    /// Returns the milliseconds of the best and of the default variant.
    #[must_use]
    pub fn best_and_default(&self) -> (f64, f64) {
        let ms = |name| self.ms.get(name).copied().unwrap_or(f64::NAN);
        (ms(self.best), ms(self.default))
    }
}

/// Returns the variants of a pass that a device can run, and the default one; `None` if there is no choice.
///
/// # Errors
/// Those of lowering the pass.
pub fn candidates(profile: &Profile, workload: &Workload) -> Result<Option<(Vec<&'static str>, &'static str)>> {
    let (op, pass) = (workload.op.as_ref(), &workload.pass);
    let accumulate = vec![false; pass.writes.len()];
    let lower = |variant| op.lower(pass.name, &Target { profile, variant, accumulate: &accumulate });
    let kernels = |lowered: &Lowered| {
        let kernel =
            |d: &crate::runtime::kernel::Dispatch| (d.kernel.name, d.kernel.variant, d.overrides.clone(), d.workgroups);
        lowered.dispatches.iter().map(kernel).collect::<Vec<_>>()
    };
    let chosen = kernels(&lower(None)?);
    let (mut able, mut default) = (Vec::new(), None);
    for &variant in op.variants(pass.name) {
        match lower(Some(variant)) {
            Ok(lowered) => {
                if default.is_none() && kernels(&lowered) == chosen {
                    default = Some(variant);
                }
                able.push(variant);
            }
            Err(Error::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(default.filter(|_| able.len() > 1).map(|default| (able, default)))
}

/// Returns the passes with a choice of variants. Passes with the same key share a table entry; the first stands for all of them.
///
/// # Errors
/// As [`candidates`].
pub fn choices(profile: &Profile, workloads: Vec<Workload>) -> Result<Vec<Workload>> {
    let mut chosen: Vec<(String, Workload)> = Vec::new();
    for workload in workloads {
        if candidates(profile, &workload)?.is_none() {
            continue;
        }
        let key = plan::key(workload.op.as_ref(), &workload.pass)?;
        match chosen.iter_mut().find(|(known, _)| *known == key) {
            Some((_, first)) => first.count += workload.count,
            None => chosen.push((key, workload)),
        }
    }
    Ok(chosen.into_iter().map(|(_, workload)| workload).collect())
}

/// Times the variants of a pass, one after the other in each round, so that disturbances affect all of them alike.
///
/// # Errors
/// Those of compiling and running the kernels.
pub fn tune(gpu: &Gpu, workload: &Workload, rounds: usize, least: Duration) -> Result<Option<Measured>> {
    let Some((variants, default)) = candidates(gpu.profile(), workload)? else { return Ok(None) };
    let mut benches = Vec::new();
    for variant in variants {
        let bench = PassBench::new(gpu, workload, Some(variant))?;
        bench.run(1)?;
        // A single short run may be disturbed, so take the fastest of a few.
        let (mut once, mut sum) = (f64::INFINITY, 0.0);
        for _ in 0..FIRST_RUNS {
            let seconds = bench.run(1)?.max(Duration::from_nanos(1)).as_secs_f64();
            (once, sum) = (seconds.min(once), sum + seconds);
            if sum > least.as_secs_f64() {
                break;
            }
        }
        benches.push((variant, bench, once));
    }
    let quickest = benches.iter().map(|(.., once)| *once).fold(f64::INFINITY, f64::min);
    let mut samples: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let slow = |(variant, _, once): &&(&str, PassBench<'_>, f64)| *once > SLOW * quickest && *variant != default;
    for (variant, _, once) in benches.iter().filter(slow) {
        samples.insert(variant, vec![*once]);
    }
    benches.retain(|(variant, ..)| !samples.contains_key(variant));
    for _ in 0..rounds.max(1) {
        for (variant, bench, once) in &benches {
            let times = (least.as_secs_f64() / once).ceil().clamp(1.0, 1000.0) as u64;
            samples.entry(variant).or_default().push(bench.run(times)?.as_secs_f64() / times as f64);
        }
    }
    let ms = samples.into_iter().filter_map(|(variant, mut seconds)| {
        seconds.sort_by(f64::total_cmp);
        Some((variant, 1e3 * median(&seconds)?))
    });
    let key = plan::key(workload.op.as_ref(), &workload.pass)?;
    Measured::new(key, workload.count, default, ms.collect()).map(Some)
}

/// The fastest variants of the kernels of a model on an adapter: the content of a `--variants` file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantTable {
    /// Version of the file format.
    pub format: u32,
    /// Version of vae-wgpu.
    pub version: String,
    /// Name of the adapter.
    pub adapter: String,
    /// Name and version of the driver.
    pub driver: String,
    /// One entry per pass and shapes.
    pub entries: Vec<TableEntry>,
}

/// An entry of a [`VariantTable`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    /// Pass and shapes ([`plan::key`]).
    pub key: String,
    /// The fastest variant.
    pub variant: String,
    /// Its median milliseconds.
    pub ms: f64,
}

const FORMAT: u32 = 1;

impl VariantTable {
    /// Creates the table of the measured passes.
    #[must_use]
    pub fn new(adapter: &AdapterInfo, measured: &[Measured]) -> Self {
        let choice =
            |t: &Measured| TableEntry { key: t.key.clone(), variant: t.best.to_owned(), ms: t.best_and_default().0 };
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adapter: adapter.name.clone(),
            driver: adapter.driver_and_version(),
            entries: measured.iter().map(choice).collect(),
        }
    }

    /// Serializes the table.
    ///
    /// # Errors
    /// [`Error::Bug`] if serialization fails.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self).map_err(Error::bug)? + "\n")
    }

    /// Parses the bytes of a file.
    ///
    /// # Errors
    /// For malformed JSON, another format, and unknown operations or variants.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let table: Self = serde_json::from_slice(bytes)?;
        if table.format != FORMAT {
            let message =
                format!("its format is {}, expected {FORMAT}. Create it again with `vae-wgpu tune`", table.format);
            return Err(message.into());
        }
        let known = KnownVariants::new()?;
        for TableEntry { key, variant, .. } in &table.entries {
            let (pass, shapes) = key.split_once(' ').unwrap_or((key, ""));
            known.check_pass(pass, variant)?;
            if shapes.is_empty() {
                return Err(format!(
                    "`{key}` has no shapes. To choose a variant for all shapes, use --variant {key}={variant}"
                )
                .into());
            }
        }
        Ok(table)
    }

    /// Returns the difference if the table was made on another adapter or driver.
    #[must_use]
    pub fn adapter_mismatch(&self, adapter: &AdapterInfo) -> Option<String> {
        let here = (&adapter.name, &adapter.driver_and_version());
        let of = |(name, driver): (&String, &String)| format!("{name} ({driver})");
        let there = (&self.adapter, &self.driver);
        (here != there).then(|| format!("made on {}, but this is {}", of(there), of(here)))
    }
}

/// The variants of each pass, over all check cases of its operation.
#[derive(Debug)]
pub struct KnownVariants(BTreeMap<String, BTreeSet<&'static str>>);

impl KnownVariants {
    /// Collects the variants of all operations.
    ///
    /// # Errors
    /// Those of building the cases.
    pub fn new() -> Result<Self> {
        let mut known: BTreeMap<String, BTreeSet<&'static str>> = BTreeMap::new();
        for info in OPS {
            for case in (info.cases)()? {
                let passes = case.op.passes();
                for pass in passes.iter() {
                    let variants = known.entry(format!("{}.{}", info.name, pass.name)).or_default();
                    variants.extend(case.op.variants(pass.name));
                }
            }
        }
        Ok(Self(known))
    }

    /// Checks that `name` is an operation (`conv2d`) or a pass (`conv2d.forward`) and has this variant. Names of earlier releases count.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn check(&self, name: &str, variant: &str) -> Result<()> {
        let (name, variant) = (&*current_key(name), current_name(variant));
        if name.contains('.') {
            return self.check_pass(name, variant);
        }
        if !OPS.iter().any(|info| info.name == name) {
            let known = OPS.iter().map(|info| info.name).collect::<Vec<_>>().join(", ");
            return Err(Error::Unknown { kind: "operation", name: name.to_owned(), known });
        }
        let of_op = |pass: &&String| pass.split_once('.').is_some_and(|(op, _)| op == name);
        let variants = self.0.iter().filter(|(pass, _)| of_op(pass)).flat_map(|(_, variants)| variants);
        one_of(variants.copied().collect(), name, variant)
    }

    fn check_pass(&self, pass: &str, variant: &str) -> Result<()> {
        let (pass, variant) = (&*current_key(pass), current_name(variant));
        let known = || self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let unknown = || Error::Unknown { kind: "operation and pass", name: pass.to_owned(), known: known() };
        one_of(self.0.get(pass).ok_or_else(unknown)?.clone(), pass, variant)
    }
}

fn one_of(variants: BTreeSet<&'static str>, of: &str, variant: &str) -> Result<()> {
    if variants.contains(variant) {
        return Ok(());
    }
    let known = variants.into_iter().collect::<Vec<_>>().join(", ");
    Err(Error::Unknown { kind: "variant", name: format!("{variant}` of `{of}"), known })
}

#[cfg(test)]
mod tests {
    use super::super::workloads;
    use super::*;
    use crate::runtime::kernel::DeviceKind;
    use crate::vae::model::{Mode, VaeConfig};

    #[test]
    fn default_wins_ties() {
        let best = |ms: &[(&'static str, f64)]| {
            Measured::new("k".into(), 1, "tiled", ms.iter().copied().collect()).unwrap().best
        };
        assert_eq!(best(&[("tiled", 1.0), ("naive", 0.98), ("subgroup", 2.0)]), "tiled");
        assert_eq!(best(&[("tiled", 1.0), ("naive", 0.96), ("subgroup", 2.0)]), "naive");
        assert_eq!(best(&[("tiled", 1.0), ("naive", 3.0)]), "tiled");
        assert!(Measured::new("k".into(), 1, "tiled", BTreeMap::new()).is_err());
    }

    #[test]
    fn choices_of_a_model_have_defaults_and_unique_keys() {
        let profiles = [
            Profile::WEBGPU,
            Profile { kind: DeviceKind::Software, subgroup: Some((8, 8)), ..Profile::WEBGPU },
            Profile { kind: DeviceKind::Software, ..Profile::WEBGPU },
        ];
        let known = KnownVariants::new().unwrap();
        for profile in profiles {
            let options = plan::Options::default();
            let (graph, _) = VaeConfig::default().plan(4, Mode::Train, &profile, &options).unwrap();
            let all = workloads(&graph).unwrap();
            let mut nodes = 0;
            for workload in &all {
                let candidates = candidates(&profile, workload).unwrap();
                assert!(candidates.is_some() || !workload.is_product(), "{}", workload.name);
                nodes += candidates.map_or(0, |_| workload.count);
            }
            let choices = choices(&profile, all).unwrap();
            assert_eq!(choices.iter().map(|s| s.count).sum::<usize>(), nodes);
            let mut keys = BTreeSet::new();
            for workload in choices {
                let (variants, default) = candidates(&profile, &workload).unwrap().unwrap();
                assert!(variants.contains(&default));
                let key = plan::key(workload.op.as_ref(), &workload.pass).unwrap();
                let (pass, _) = key.split_once(' ').unwrap();
                assert!(variants.iter().all(|v| known.check(pass, v).is_ok()), "{key}");
                assert!(keys.insert(key.clone()), "{key} twice");
            }
            assert!(keys.len() > 20);
        }
    }

    #[test]
    fn tables_round_trip_and_invalid_ones_fail() {
        let choice = |key: &str, variant: &str| TableEntry { key: key.into(), variant: variant.into(), ms: 0.5 };
        let table = |format, entries: Vec<TableEntry>| VariantTable {
            format,
            version: "0.1.0".into(),
            adapter: "llvmpipe".into(),
            driver: "Mesa".into(),
            entries,
        };
        let good = table(1, vec![choice("conv2d.forward [1, 3, 8, 8] -> [1, 4, 8, 8]", "naive")]);
        assert_eq!(VariantTable::from_json(good.to_json().unwrap().as_bytes()).unwrap(), good);
        for (bad, part) in [
            (table(2, vec![]), "vae-wgpu tune"),
            (table(1, vec![choice("conv3d.forward [1]", "naive")]), "`conv3d.forward`"),
            (table(1, vec![choice("conv2d.sideways [1]", "naive")]), "`conv2d.sideways`"),
            (table(1, vec![choice("conv2d.forward [1]", "quick")]), "unknown variant `quick` of `conv2d.forward`"),
            (table(1, vec![choice("conv2d.forward", "naive")]), "--variant conv2d.forward=naive"),
        ] {
            let error = VariantTable::from_json(bad.to_json().unwrap().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let text = good.to_json().unwrap();
        for end in 0..text.trim_end().len() {
            assert!(VariantTable::from_json(&text.as_bytes()[..end]).is_err(), "{end}");
        }
    }
}
