//! Tables of settings, environment and kernels.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Report;
use super::html::{Escaped, group};
use crate::vae::train::Recipe;

impl Report<'_> {
    pub(super) fn settings(&self) -> String {
        let Some(own) = self.config.get("settings").map(flat).filter(|own| !own.is_empty()) else {
            return String::new();
        };
        let recipes = [("sharp", Recipe::Sharp), ("seed", Recipe::Seed)].map(|(name, recipe)| {
            let defaults = serde_json::to_value(recipe.settings()).map(|value| flat(&value)).unwrap_or_default();
            let keys: BTreeSet<&String> = own.keys().chain(defaults.keys()).collect();
            let rows = keys.into_iter().map(|key| {
                let of = |settings: &BTreeMap<String, String>| {
                    settings.get(key).cloned().unwrap_or_else(|| absent(key).to_owned())
                };
                (key.clone(), (of(&own), of(&defaults)))
            });
            (name, rows.collect::<BTreeMap<_, _>>())
        });
        // The file does not name the recipe: the run has that from which it differs least.
        let changes =
            |rows: &BTreeMap<String, (String, String)>| rows.values().filter(|(own, base)| own != base).count();
        let Some((recipe, mut rows)) = recipes.into_iter().min_by_key(|(_, rows)| changes(rows)) else {
            return String::new();
        };
        let row = |label: &str, (own, base): (String, String)| {
            let (own_text, label) = (Escaped(&own), Escaped(label));
            if own == base {
                return format!("<tr><th scope=\"row\">{label}</th><td>{own_text}</td></tr>\n");
            }
            let base = Escaped(base);
            format!(
                "<tr class=\"changed\"><th scope=\"row\">{label}</th><td>{own_text} <small>default: {base}</small></td></tr>\n"
            )
        };
        let mut out = format!(
            "<p class=\"note\">Bold: differs from the default of <code>--recipe {recipe}</code>.</p>\n<div class=\"groups\">\n"
        );
        for (title, settings) in GROUPS {
            let known = settings.iter().filter_map(|(key, label)| Some(row(label, rows.remove(*key)?)));
            out += &group(title, &known.collect::<String>());
        }
        let others: String = rows.into_iter().map(|(key, values)| row(&humanized(&key), values)).collect();
        out + &group("Other", &others) + "</div>\n"
    }

    pub(super) fn environment(&self) -> String {
        let Some(config) = self.config.as_object() else { return String::new() };
        let own = config.iter().filter(|(key, _)| !["format", "kernels", "settings", "starts"].contains(&key.as_str()));
        let own: Value = own.map(|(key, value)| (key.clone(), value.clone())).collect();
        let row = |(key, value): (String, String)| {
            let label = match key.rsplit('.').next().unwrap_or_default() {
                "device" => "adapter and driver".to_owned(),
                "version" => "vae-wgpu".to_owned(),
                "os" => "operating system".to_owned(),
                "cpu" => "processor".to_owned(),
                "command" => "command line".to_owned(),
                other => humanized(other),
            };
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", Escaped(label), Escaped(value))
        };
        let starts = self.config.get("starts").and_then(Value::as_array).into_iter().flatten().map(|start| {
            let part = |name: &str| start.get(name).and_then(Value::as_str).unwrap_or_default();
            // To the minute: 2026-01-31T12:34.
            let time = part("time").get(..16).unwrap_or_default().replace('T', " ");
            ("started".to_owned(), format!("{time}: {}", part("command")))
        });
        let rows: String = flat(&own).into_iter().chain(starts).map(row).collect();
        if rows.is_empty() { rows } else { format!("<table class=\"list wide\">\n{rows}</table>\n") }
    }

    pub(super) fn kernels(&self) -> String {
        let Some(kernels) = self.config.get("kernels").and_then(Value::as_object).filter(|k| !k.is_empty()) else {
            return String::new();
        };
        let row = |(name, variant): (&String, &Value)| {
            format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", Escaped(name), Escaped(text(variant)))
        };
        let half = kernels.len().div_ceil(2);
        let list = |rows: String| if rows.is_empty() { rows } else { group("", &rows) };
        format!(
            "<details>\n<summary>Kernel variants</summary>\n<div class=\"groups\">\n{}{}</div>\n</details>\n",
            list(kernels.iter().take(half).map(row).collect()),
            list(kernels.iter().skip(half).map(row).collect())
        )
    }
}

/// Settings by group, with their labels. Settings that are not listed form the last group.
const GROUPS: [(&str, &[(&str, &str)]); 4] = [
    (
        "Data",
        &[
            ("data", "data set"),
            ("image_size", "image size"),
            ("train_limit", "training images"),
            ("val_limit", "test images"),
            ("val_split", "validation split"),
            ("flip", "random flips"),
            ("crop", "random shifts"),
        ],
    ),
    (
        "Model",
        &[
            ("model.channels", "channels"),
            ("model.blocks", "blocks per group"),
            ("model.groups", "groups"),
            ("model.latent_dim", "latent dimensions"),
            ("model.norm", "normalization"),
            ("model.head", "head of the encoder"),
            ("model.likelihood", "likelihood"),
            ("model.image_size", "image size"),
            ("model.image_channels", "image channels"),
            ("model.classes", "classes"),
        ],
    ),
    (
        "Optimizer",
        &[
            ("epochs", "epochs"),
            ("batch_size", "batch size"),
            ("accumulate", "batches per step"),
            ("sync_batch_norm", "synchronized batch norm"),
            ("lr", "learning rate"),
            ("warmup", "warm-up steps"),
            ("schedule", "schedule"),
            ("weight_decay", "weight decay"),
            ("clip_grad", "gradient clipping"),
            ("early_stop", "early stop"),
            ("seed", "seed"),
        ],
    ),
    (
        "Loss",
        &[
            ("beta", "beta"),
            ("beta_warmup", "beta warm-up steps"),
            ("beta_cycle", "beta cycle"),
            ("free_bits", "free bits"),
            ("posterior_std", "posterior std at start"),
        ],
    ),
];

/// Value of a setting that is not in the file, or null.
fn absent(key: &str) -> &'static str {
    match key {
        "model.likelihood" => "unit",
        "posterior_std" | "accumulate" => "1",
        "val_split" | "beta_cycle" | "free_bits" | "early_stop" | "model.classes" => "0",
        "data" => "CIFAR-10",
        "train_limit" | "val_limit" => "all",
        "sync_batch_norm" => "false",
        _ => "not set",
    }
}

/// Returns the values in nested objects as text, by their path.
fn flat(value: &Value) -> BTreeMap<String, String> {
    let Some(fields) = value.as_object() else { return BTreeMap::new() };
    let nested = fields.iter().flat_map(|(key, value)| match value {
        Value::Object(_) => flat(value).into_iter().map(|(inner, text)| (format!("{key}.{inner}"), text)).collect(),
        Value::Null => vec![(key.clone(), absent(key).to_owned())],
        other => vec![(key.clone(), text(other))],
    });
    nested.collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Bool(on) => if *on { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        // 1 and 1.0 are the same value.
        Value::Number(number) => number.to_string().trim_end_matches(".0").to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Null | Value::Object(_) => value.to_string(),
    }
}

fn humanized(key: &str) -> String {
    key.replace('_', " ")
}
