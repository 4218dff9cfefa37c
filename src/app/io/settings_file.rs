//! `train.toml`: the options of `vae-wgpu train` that repeat a run.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use toml::{Table, Value};

use crate::vae::train::Settings;

/// Returns the file that the weights of a run started from, according to its `train.toml`.
pub fn init(path: &Path) -> Option<String> {
    let table: Table = fs::read_to_string(path).ok()?.parse().ok()?;
    Some(table.get("init")?.as_str()?.to_owned())
}

/// Returns a TOML file for `vae-wgpu train --config` that repeats a run with these settings, under the comment `about`. `init` is the file
/// that the weights started from.
#[must_use]
pub fn to_toml(settings: &Settings, init: Option<&str>, about: &str) -> String {
    let Settings {
        model,
        data,
        image_size,
        train_limit,
        val_limit,
        val_split,
        batch_size,
        accumulate,
        sync_batch_norm,
        epochs,
        seed,
        lr,
        weight_decay,
        warmup,
        schedule,
        clip_grad,
        beta,
        beta_warmup,
        beta_cycle,
        free_bits,
        posterior_std,
        early_stop,
        flip,
        crop,
        variants,
    } = settings;
    let text = |value: &str| Some(Value::from(value));
    let count = |value: u64| i64::try_from(value).map_or_else(|_| text(&value.to_string()), |value| Some(value.into()));
    let size = |value: usize| count(value as u64);
    let number = |value: f64| Some(Value::Float(value));
    let variants: Vec<_> = variants.iter().map(|(op, name)| Value::from(format!("{op}={name}"))).collect();
    let groups = [
        vec![
            ("data", data.as_deref().and_then(text)),
            ("image-size", image_size.and_then(size)),
            ("train-limit", train_limit.and_then(size)),
            ("val-limit", val_limit.and_then(size)),
            ("val-split", number(*val_split)),
            ("flip", Some(Value::from(*flip))),
            ("crop", Some(Value::from(*crop))),
        ],
        vec![
            ("channels", size(model.channels)),
            ("blocks", size(model.blocks)),
            ("latent-dim", size(model.latent_dim)),
            ("norm", Value::try_from(model.norm).ok()),
            ("head", Value::try_from(model.head).ok()),
            ("likelihood", Value::try_from(model.likelihood).ok()),
            ("conditional", Some(Value::from(model.classes > 0))),
        ],
        vec![
            ("init", init.and_then(text)),
            ("epochs", count(*epochs)),
            ("batch-size", size(*batch_size)),
            // The total, which another number of processes shares.
            ("micro-batches", size(*accumulate)),
            ("sync-batch-norm", sync_batch_norm.then(|| Value::from(true))),
            ("seed", count(*seed)),
            ("lr", number(*lr)),
            ("warmup", count(*warmup)),
            ("schedule", Value::try_from(schedule).ok()),
            ("weight-decay", number(*weight_decay)),
            ("clip-grad", number(*clip_grad)),
            ("beta", number(*beta)),
            ("beta-warmup", count(*beta_warmup)),
            // Allowed only with a warm-up of beta.
            ("beta-cycle", (*beta_cycle > 0).then(|| count(*beta_cycle)).flatten()),
            ("free-bits", number(*free_bits)),
            ("posterior-std", number(*posterior_std)),
            ("early-stop", count(*early_stop)),
        ],
        vec![("variant", (!variants.is_empty()).then_some(Value::Array(variants)))],
    ];
    let mut file = about.lines().fold(String::new(), |file, line| file + "# " + line + "\n");
    for group in groups {
        let lines = group.into_iter().filter_map(|(option, value)| Some((option, value?)));
        for (at, (option, value)) in lines.enumerate() {
            let gap = if at == 0 { "\n" } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(file, "{gap}{option} = {value}");
        }
    }
    file
}
