//! The report of a run: one HTML page with its figures, curves, images and settings. The page needs no other file, no network and no
//! scripts, so that it can be sent by mail.

mod chart;
mod curves;
mod html;
mod settings;

use std::fmt::Write;

use serde_json::Value;

pub use self::html::Encoded;
use self::html::{Escaped, section, strip};
use super::image_grid::ImageBatch;
use crate::app::figures::{counted, duration, median};
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
        let speeds = self.steps.iter().rev().take(100).map(|row| f64::from(row.images_per_s));
        let mut speeds: Vec<f64> = speeds.filter(|speed| speed.is_finite()).collect();
        speeds.sort_by(f64::total_cmp);
        if let Some(speed) = median(&speeds) {
            add("Speed", format!("{speed:.0}"), "images per second".to_owned());
        }
        if !self.epochs.is_empty() {
            let seconds = self.epochs.iter().map(|row| row.seconds).filter(|s| s.is_finite()).sum();
            add("Time", duration(seconds), counted(self.epochs.len() as u64, "epoch"));
        }
        if figures.is_empty() {
            return String::new();
        }
        let cell = |(name, value, note): &(String, String, String)| {
            format!("<div><dt>{name}</dt><dd>{value} <small>{note}</small></dd></div>\n")
        };
        format!("<dl class=\"key\">\n{}</dl>\n", figures.iter().map(cell).collect::<String>())
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
}

/// The status of a run: its color, a word, and the rest of the sentence.
struct Status {
    class: &'static str,
    word: &'static str,
    details: String,
}

#[cfg(test)]
mod tests {
    use super::curves::Axis;
    use super::*;
    use crate::vae::train::Recipe;
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
