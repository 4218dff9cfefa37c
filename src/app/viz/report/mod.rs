//! The report of a run: one HTML page with its figures, curves, images and settings. The page needs no other file, no network and no
//! scripts, so that it can be sent by mail.

mod chart;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Write};
use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};
use serde_json::Value;

use self::chart::{Chart, Series};
use super::canvas::Point;
use super::image_grid::ImageBatch;
use super::plots::{finite, moving_mean};
use crate::vae::train::Recipe;
use crate::vae::train::rows::{EpochRow, StepRow};
use crate::vae::train::store::RunState;

const STYLE: &str = include_str!("style.css");

/// What a report shows.
#[derive(Debug)]
pub struct Report<'a> {
    /// Name of the run.
    pub name: &'a str,
    /// Whether the run is in progress, or how it ended.
    pub state: RunState<'a>,
    /// The content of `config.json`, as written by any version: missing fields are left out.
    pub config: &'a Value,
    /// Rows of steps.
    pub steps: &'a [StepRow],
    /// Rows of epochs.
    pub epochs: &'a [EpochRow],
    /// Images of the run.
    pub pictures: &'a Pictures,
}

/// Images in a report. There are none before the first epoch has ended.
#[derive(Debug, Default)]
pub struct Pictures {
    /// Images of the test set.
    pub originals: Option<ImageBatch>,
    /// Their reconstructions after some epochs, the latest first.
    pub reconstructions: Vec<(u64, ImageBatch)>,
    /// Samples after an epoch.
    pub samples: Option<(u64, Encoded)>,
}

/// An encoded image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    mime: &'static str,
    bytes: Vec<u8>,
}

/// Larger images are stored as JPEG, so that the page stays small.
const LOSSLESS: u32 = 32;
const JPEG_QUALITY: u8 = 90;

impl Encoded {
    /// Takes the bytes of a PNG file.
    #[must_use]
    pub fn png(bytes: Vec<u8>) -> Self {
        Self { mime: "image/png", bytes }
    }

    /// Encodes an image as JPEG, or without loss if it is at most 32 pixels wide. `None` if the encoder fails.
    #[must_use]
    pub fn new(image: &RgbImage) -> Option<Self> {
        let mut bytes = Cursor::new(Vec::new());
        if image.width() <= LOSSLESS {
            image.write_to(&mut bytes, ImageFormat::Png).ok()?;
            return Some(Self::png(bytes.into_inner()));
        }
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)).ok()?;
        Some(Self { mime: "image/jpeg", bytes: bytes.into_inner() })
    }

    fn tag(&self, alt: &str) -> String {
        format!("<img src=\"data:{};base64,{}\" alt=\"{}\">", self.mime, STANDARD.encode(&self.bytes), Escaped(alt))
    }
}

/// Text with the characters replaced that HTML gives a meaning, and control characters.
struct Escaped<T>(T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_string().chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            '\n' | '\t' => f.write_char(' '),
            c if c.is_control() => f.write_char(char::REPLACEMENT_CHARACTER),
            c => f.write_char(c),
        })
    }
}

impl Report<'_> {
    /// Returns the page.
    #[must_use]
    pub fn page(&self) -> String {
        let name = Escaped(self.name);
        let status = self.status();
        let sections = [
            self.figures(),
            section("Curves", &self.curves()),
            section("Images", &self.images()),
            section("Settings", &self.settings()),
            section("Environment", &self.environment()),
            self.kernels(),
        ];
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{name}: {}</title>\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n\
             <p class=\"status\"><b class=\"{}\">{}</b> {}</p>\n{}\
             <footer>Written by vae-wgpu {}</footer>\n</main>\n</body>\n</html>\n",
            status.word,
            status.class,
            status.word,
            Escaped(&status.details),
            sections.concat(),
            env!("CARGO_PKG_VERSION")
        )
    }

    fn setting(&self, name: &str) -> Option<u64> {
        self.config.get("settings")?.get(name)?.as_u64()
    }

    fn status(&self) -> Status {
        let done = self.epochs.last().map_or(0, |row| row.epoch);
        let all = self.setting("epochs");
        let epoch = format!("epoch {done}{}", all.map(|all| format!(" of {all}")).unwrap_or_default());
        let after = if done == 0 { "before the first epoch ended".to_owned() } else { format!("after {epoch}") };
        let (class, word, details) = match self.state {
            RunState::Running => ("good", "Running", epoch),
            RunState::Finished if all.is_none_or(|all| done >= all) => ("good", "Finished", epoch),
            RunState::Finished => ("good", "Finished early", format!("{after}: the validation loss no longer fell")),
            RunState::Interrupted => ("", "Interrupted", after),
            RunState::Failed(why) => ("bad", "Failed", format!("{after}: {why}")),
        };
        Status { class, word, details }
    }

    /// The key figures, of the epoch with the best validation loss.
    fn figures(&self) -> String {
        let mut figures = Vec::new();
        let mut add = |name: &str, value: String, note: String| figures.push((name.to_owned(), value, note));
        let finite = self.epochs.iter().filter(|row| row.val_total.is_finite());
        if let Some(best) = finite.min_by(|a, b| a.val_total.total_cmp(&b.val_total)) {
            let of_epoch = format!("epoch {}", best.epoch);
            add("Best validation loss", format!("{:.4}", best.val_total), format!("nats per dimension, {of_epoch}"));
            if best.val_mse.is_finite() {
                add("Squared error", format!("{:.4}", best.val_mse), format!("pixels from -1 to 1, {of_epoch}"));
            }
            if best.val_bits.is_finite() {
                add("Code length", format!("{:.3}", best.val_bits), format!("bits per dimension, {of_epoch}"));
            }
            let latent = self.config.pointer("/settings/model/latent_dim").and_then(Value::as_u64);
            let of = latent.map(|latent| format!("of {latent}, ")).unwrap_or_default();
            add("Active units", best.active_units.to_string(), format!("{of}{of_epoch}"));
        } else if let Some(last) = self.steps.last() {
            add("Training loss", format!("{:.4}", last.total), "nats per dimension, last step".to_owned());
        }
        let speed = median(self.steps.iter().rev().take(100).map(|row| row.images_per_s));
        if let Some(speed) = speed {
            add("Speed", format!("{speed:.0}"), "images per second".to_owned());
        }
        if !self.epochs.is_empty() {
            let seconds = self.epochs.iter().map(|row| row.seconds).filter(|s| s.is_finite()).sum();
            let count = self.epochs.len();
            add("Time", duration(seconds), format!("{count} epoch{}", if count == 1 { "" } else { "s" }));
        }
        if figures.is_empty() {
            return String::new();
        }
        let cell = |(name, value, note): &(String, String, String)| {
            format!("<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>\n")
        };
        format!("<dl class=\"key\">\n{}</dl>\n", figures.iter().map(cell).collect::<String>())
    }

    fn curves(&self) -> String {
        let axis = Axis::of(self.steps, self.epochs);
        let steps = |value: fn(&StepRow) -> f64| finite(self.steps.iter().map(|row| (axis.step(row), value(row))));
        let loss = |title, step: fn(&StepRow) -> f64, train: fn(&EpochRow) -> f64, val: fn(&EpochRow) -> f64| {
            // The mean over an epoch belongs to its middle.
            let epochs = |shift: f64, value: fn(&EpochRow) -> f64| {
                finite(self.epochs.iter().map(|row| (axis.end(row.epoch) - shift * axis.epoch, value(row))))
            };
            let series = vec![
                Series { class: "step", points: moving_mean(&steps(step)), dots: false },
                Series { class: "train", points: epochs(0.5, train), dots: true },
                Series { class: "val", points: epochs(0.0, val), dots: true },
            ];
            Chart { title, unit: "nats per dimension", x: axis.name, log: false, series }
        };
        let single = |title, unit, log, points: Vec<Point>| {
            let series = vec![Series { class: "train", points, dots: false }];
            Chart { title, unit, x: axis.name, log, series }
        };
        let charts = [
            loss("Total loss", |r| r.total.into(), |r| r.train_total, |r| r.val_total),
            loss("Reconstruction", |r| r.recon.into(), |r| r.train_recon, |r| r.val_recon),
            loss("KL divergence", |r| r.kl.into(), |r| r.train_kl, |r| r.val_kl),
            single("Learning rate", "", false, steps(|r| r.lr.into())),
            single(
                "Gradient norm",
                "before clipping, smoothed, log scale",
                true,
                moving_mean(&steps(|r| r.grad_norm.into())),
            ),
            single("Speed", "images per second, smoothed", false, moving_mean(&steps(|r| r.images_per_s.into()))),
        ];
        let charts: String = charts.into_iter().map(Chart::draw).collect();
        if charts.is_empty() {
            return charts;
        }
        let key = |class: &str, dot: &str, name: &str| {
            format!(
                "<li><svg viewBox=\"0 0 26 12\" aria-hidden=\"true\"><polyline class=\"{class}\" points=\"0,6 26,6\"/>{dot}</svg>{name}</li>"
            )
        };
        let dot = |class: &str| format!("<circle class=\"{class}\" cx=\"13\" cy=\"6\" r=\"3\"/>");
        let mut legend = key("step", "", "training steps, smoothed");
        if !self.epochs.is_empty() {
            legend += &key("train", &dot("train"), "training, mean of an epoch");
            legend += &key("val", &dot("val"), "validation after an epoch");
        }
        format!("<ul class=\"legend\">{legend}</ul>\n<div class=\"charts\">\n{charts}</div>\n")
    }

    fn images(&self) -> String {
        let Pictures { originals, reconstructions, samples } = self.pictures;
        let mut out = String::new();
        if let (Some(originals), Some((latest, _))) = (originals, reconstructions.first()) {
            let rows = reconstructions.iter().enumerate();
            let rows = rows.map(|(i, (epoch, images))| strip(&format!("epoch {epoch}"), images, i == 1));
            let _ = write!(
                out,
                "<figure><h3>Reconstructions</h3><figcaption>Test images above their reconstructions after epoch {latest}, \
                 then those of earlier epochs.</figcaption>\n<div class=\"scroll\"><table class=\"strip\">\n{}{}</table></div></figure>\n",
                strip("original", originals, false),
                rows.collect::<String>()
            );
        }
        if let Some((epoch, image)) = samples {
            let conditional = self.config.pointer("/settings/model/classes").and_then(Value::as_u64) > Some(0);
            let rows = if conditional { ", a row of each class" } else { "" };
            let _ = write!(
                out,
                "<figure class=\"samples\"><h3>Samples</h3><figcaption>After epoch {epoch}{rows}. The noise is the \
                 same in every epoch.</figcaption>\n{}</figure>\n",
                image.tag(&format!("samples after epoch {epoch}"))
            );
        }
        if out.is_empty() { out } else { format!("<div class=\"images\">\n{out}</div>\n") }
    }

    fn settings(&self) -> String {
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

    fn environment(&self) -> String {
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

    fn kernels(&self) -> String {
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

/// The status of a run: its color, a word, and the rest of the sentence.
struct Status {
    class: &'static str,
    word: &'static str,
    details: String,
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

fn section(title: &str, content: &str) -> String {
    if content.is_empty() { String::new() } else { format!("<h2>{title}</h2>\n{content}") }
}

/// A table with a title, which is omitted if it has no rows.
fn group(title: &str, rows: &str) -> String {
    let title = if title.is_empty() { String::new() } else { format!("<h3>{title}</h3>") };
    let table = format!("<div class=\"group\">{title}<table class=\"list\">\n{rows}</table></div>\n");
    if rows.is_empty() { String::new() } else { table }
}

/// A table row of images.
fn strip(label: &str, images: &ImageBatch, gap: bool) -> String {
    let cells = images.images().iter().enumerate().filter_map(|(i, image)| {
        Some(format!("<td>{}</td>", Encoded::new(image)?.tag(&format!("image {}, {label}", i + 1))))
    });
    let class = if gap { " class=\"gap\"" } else { "" };
    format!("<tr{class}><th scope=\"row\">{label}</th>{}</tr>\n", cells.collect::<String>())
}

fn median(values: impl Iterator<Item = f32>) -> Option<f32> {
    let mut values: Vec<f32> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Formats a duration with two units.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// The horizontal axis: epochs, or steps while the length of an epoch is unknown.
struct Axis {
    name: &'static str,
    /// Steps on the axis per unit.
    per_unit: f64,
    /// Length of an epoch.
    epoch: f64,
    /// First step of each epoch.
    first: BTreeMap<u64, u64>,
}

impl Axis {
    fn of(steps: &[StepRow], epochs: &[EpochRow]) -> Self {
        let mut first: BTreeMap<u64, u64> = BTreeMap::new();
        let mut longest = 1;
        for row in steps {
            let start = *first.entry(row.epoch).or_insert(row.step);
            longest = longest.max(row.step.saturating_sub(start) + 1);
        }
        if epochs.is_empty() && first.len() < 2 {
            return Self { name: "step", per_unit: 1.0, epoch: longest as f64, first };
        }
        Self { name: "epoch", per_unit: longest as f64, epoch: 1.0, first }
    }

    /// Position of the end of a step.
    fn step(&self, row: &StepRow) -> f64 {
        let within = row.step.saturating_sub(self.first.get(&row.epoch).copied().unwrap_or(row.step)) + 1;
        self.end(row.epoch) - self.epoch + within as f64 / self.per_unit
    }

    /// Position of the end of an epoch.
    fn end(&self, epoch: u64) -> f64 {
        epoch as f64 * self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(steps: u64, per_epoch: u64) -> (Vec<StepRow>, Vec<EpochRow>) {
        let row = |step: u64| {
            let total = 1.0 / (step + 1) as f32;
            let (epoch, recon) = (1 + step / per_epoch, total - 0.001);
            StepRow {
                step,
                epoch,
                total,
                recon,
                kl: 0.001,
                grad_norm: total,
                lr: 0.01,
                images_per_s: 62.0,
                elapsed_s: 1.0,
            }
        };
        let epoch = |epoch: u64| EpochRow {
            epoch,
            val_total: 0.125 / epoch as f64,
            val_recon: 0.1,
            val_mse: 0.0625,
            active_units: 7,
            seconds: 100.0,
            val_bits: 4.5,
            ..EpochRow::default()
        };
        ((0..steps).map(row).collect(), (1..=steps / per_epoch).map(epoch).collect())
    }

    fn config() -> Value {
        let settings = serde_json::to_value(Recipe::Sharp.settings()).unwrap();
        let mut config = json!({"format": 1, "version": "0.1.0", "device": "llvmpipe", "settings": settings});
        config["kernels"] = json!({"conv2d.forward": "tiled"});
        config["starts"] =
            json!([{"time": "2026-01-31T12:34:56+01:00", "version": "0.1.0", "command": "vae-wgpu train -q"}]);
        config["settings"]["model"]["latent_dim"] = 8.into();
        config["settings"]["lr"] = 0.02.into();
        config["settings"]["epochs"] = 3.into();
        config
    }

    fn page(
        config: &Value,
        (steps, epochs): (&[StepRow], &[EpochRow]),
        pictures: &Pictures,
        state: RunState<'_>,
    ) -> String {
        let page = Report { name: "demo", state, config, steps, epochs, pictures }.page();
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        // Every element is closed.
        for tag in
            ["table", "tr", "td", "th", "figure", "svg", "div", "ul", "li", "dl", "p", "details", "style", "main"]
        {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        // Nothing is loaded and nothing runs.
        for part in ["href", "<script", "<link", "url(", "@import", "http://", "https://"] {
            assert!(!page.contains(part), "{part} is in the page");
        }
        assert!(page.split("src=\"").skip(1).all(|rest| rest.starts_with("data:image/")));
        page
    }

    #[test]
    fn page_shows_figures_settings_and_images() {
        let (steps, epochs) = rows(30, 10);
        let images =
            |first: u8| ImageBatch::from_bytes(&(0..24).map(|i| first + i).collect::<Vec<_>>(), [3, 2, 2]).unwrap();
        let pictures = Pictures {
            originals: Some(images(0)),
            reconstructions: vec![(3, images(100)), (1, images(200))],
            samples: Some((3, Encoded::png(b"bytes".to_vec()))),
        };
        let page = page(&config(), (&steps, &epochs), &pictures, RunState::Finished);
        for part in [
            "<title>demo: Finished</title>",
            "epoch 3 of 3</p>",
            "<dd>0.0417 <small>nats per dimension, epoch 3",
            "<dd>0.0625 <small>pixels from -1 to 1, epoch 3",
            "<dd>4.500 <small>bits per dimension, epoch 3",
            "<dd>7 <small>of 8, epoch 3",
            "<dd>62 <small>images per second",
            "<dd>5 min 00 s <small>3 epochs",
            "--recipe sharp",
            "<tr class=\"changed\"><th scope=\"row\">learning rate</th><td>0.02 <small>default: 0.01</small></td></tr>",
            "<tr><th scope=\"row\">warm-up steps</th><td>500</td></tr>",
            "<th scope=\"row\">adapter and driver</th><td>llvmpipe</td>",
            "<th scope=\"row\">conv2d.forward</th><td>tiled</td>",
            "<th scope=\"row\">started</th><td>2026-01-31 12:34: vae-wgpu train -q</td>",
            "src=\"data:image/png;base64,Ynl0ZXM=\" alt=\"samples after epoch 3\"",
        ] {
            assert!(page.contains(part), "{part} is missing:\n{page}");
        }
        assert_eq!(page.matches("<img ").count(), 3 * 2 + 1);
        assert_eq!(page.matches("class=\"chart\"").count(), 6);
    }

    #[test]
    fn text_of_the_run_is_escaped() {
        let hostile = "<script>alert('1')</script>&\"\u{7}\n";
        let mut config = config();
        config["device"] = hostile.into();
        config["settings"]["data"] = hostile.into();
        config["settings"][hostile] = 1.into();
        config["kernels"][hostile] = hostile.into();
        let none = Pictures::default();
        let state = RunState::Failed(hostile);
        let report = Report { name: hostile, state, config: &config, steps: &[], epochs: &[], pictures: &none };
        let page = report.page();
        assert!(!page.contains("<script") && !page.contains('\u{7}'), "{page}");
        let escaped = "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\u{fffd} ";
        // In the title, the heading, the status, the device, and twice as a setting and as a kernel.
        assert!(page.matches(escaped).count() >= 8, "{page}");
    }

    #[test]
    fn page_of_a_run_without_epochs_or_settings_is_whole() {
        let none = Pictures::default();
        let (steps, _) = rows(4, 10);
        let interrupted = page(&config(), (&steps, &[]), &none, RunState::Interrupted);
        assert!(interrupted.contains("Interrupted</b> before the first epoch ended"), "{interrupted}");
        assert!(interrupted.contains(">step</text>") && !interrupted.contains("<img"));
        let empty = page(&Value::Null, (&[], &[]), &none, RunState::Running);
        assert!(empty.contains("Running") && !empty.contains("<h2>"), "{empty}");
        // Version 0.1.0 has neither bits nor the newer settings.
        let (steps, mut epochs) = rows(20, 10);
        epochs.iter_mut().for_each(|row| row.val_bits = f64::NAN);
        let mut old = serde_json::to_value(Recipe::Seed.settings()).unwrap();
        old["model"].as_object_mut().unwrap().remove("likelihood");
        let old = page(&json!({"settings": old}), (&steps, &epochs), &none, RunState::Interrupted);
        assert!(old.contains("after epoch 2 of 25") && !old.contains("NaN") && !old.contains("Code length"), "{old}");
        assert!(old.contains("--recipe seed") && !old.contains("class=\"changed\""), "{old}");
    }

    #[test]
    fn status_names_the_end_of_the_run() {
        let (steps, epochs) = rows(20, 10);
        for (state, expected) in [
            (RunState::Running, "Running</b> epoch 2 of 3</p>"),
            (RunState::Finished, "Finished early</b> after epoch 2 of 3: the validation loss no longer fell</p>"),
            (RunState::Interrupted, "Interrupted</b> after epoch 2 of 3</p>"),
            (RunState::Failed("a < b"), "Failed</b> after epoch 2 of 3: a &lt; b</p>"),
        ] {
            let page = page(&config(), (&steps, &epochs), &Pictures::default(), state);
            assert!(page.contains(expected), "{expected} is missing:\n{page}");
        }
    }

    #[test]
    fn only_small_images_are_stored_without_loss() {
        let start =
            |size| Encoded::new(&RgbImage::new(size, size)).map(|image| (image.mime, image.bytes[..2].to_vec()));
        assert_eq!(start(32), Some(("image/png", b"\x89P".to_vec())));
        assert_eq!(start(33), Some(("image/jpeg", b"\xff\xd8".to_vec())));
    }

    #[test]
    fn curves_end_where_the_epochs_do() {
        // Whatever the number of the first step is.
        for first in [0, 1] {
            let (mut steps, epochs) = rows(20, 10);
            steps.iter_mut().for_each(|row| row.step += first);
            let axis = Axis::of(&steps, &epochs);
            assert_eq!([9, 10, 19].map(|i: usize| axis.step(&steps[i])), [1.0, 1.1, 2.0]);
            let axis = Axis::of(&steps[..5], &[]);
            assert_eq!((axis.name, [0, 4].map(|i: usize| axis.step(&steps[i]))), ("step", [1.0, 5.0]));
        }
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!([0.04, 59.0, 61.0, 7500.0].map(duration), ["0.0 s", "59.0 s", "1 min 01 s", "2 h 05 min"]);
    }
}
