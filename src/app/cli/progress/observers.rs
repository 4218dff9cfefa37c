//! The observers of a run: JSON, plain lines, a progress bar.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{Report, fitted};
use crate::app::cli::eprintln_lossy;
use crate::app::cli::preview::{Preview, show};
use crate::app::cli::terminal::wrapped;
use crate::app::figures::grouped;
use crate::app::viz::image_grid::ImageBatch;
use crate::error::{Error, Result};
use crate::vae::train::events::{Event, Observer};
use crate::vae::train::store::DecodedImages;

/// A writer of lines that ignores everything after a broken pipe.
#[derive(Debug)]
struct Lines<W> {
    to: Option<W>,
}

impl<W: Write> Lines<W> {
    fn line(&mut self, text: &str) -> Result<()> {
        let Some(to) = &mut self.to else { return Ok(()) };
        match to.write_all(format!("{text}\n").as_bytes()).and_then(|()| to.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.to = None;
                Ok(())
            }
            other => other.map_err(Error::file("write to", Path::new("the terminal"))),
        }
    }
}

/// Writes warnings only.
#[derive(Debug)]
pub(super) struct Warnings;

impl Observer for Warnings {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Warning { message } = event {
            eprintln_lossy(format_args!("warning: {message}"));
        }
        Ok(())
    }
}

/// Writes one JSON object per event and line.
#[derive(Debug)]
pub(super) struct Json<W> {
    lines: Lines<W>,
}

impl<W: Write> Json<W> {
    pub(super) fn new(to: W) -> Self {
        Self { lines: Lines { to: Some(to) } }
    }
}

impl<W: Write> Observer for Json<W> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        let json = serde_json::to_string(event).map_err(|e| Error::bug(format!("an event as JSON: {e}")))?;
        self.lines.line(&json)
    }
}

/// Width of plain lines in a pipe or a file: that of a table with all columns.
const PLAIN_WIDTH: usize = 100;

/// Writes plain lines: steps at intervals, every epoch.
#[derive(Debug)]
pub(super) struct Plain<W> {
    lines: Lines<W>,
    every: Duration,
    last: Option<Instant>,
    /// Width of the terminal, if it is one.
    width: Option<usize>,
    report: Report,
}

impl<W: Write> Plain<W> {
    /// Writes to `to`, with at most one step line per interval `every`.
    pub(super) fn new(to: W, every: Duration, width: Option<usize>) -> Self {
        Self { lines: Lines { to: Some(to) }, every, last: None, width, report: Report::default() }
    }
}

impl<W: Write> Observer for Plain<W> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.report.update(event);
        for line in self.report.lines(event, self.width.unwrap_or(PLAIN_WIDTH)) {
            self.lines.line(&readable(event, line, self.width.unwrap_or(usize::MAX)))?;
        }
        if let Event::Step(row) = event
            && self.last.is_none_or(|last| last.elapsed() >= self.every)
        {
            self.last = Some(Instant::now());
            let width = self.width.map_or(usize::MAX, |width| width.saturating_sub("step ".len()));
            self.lines.line(&format!("step {}", self.report.step(row, width)))?;
        }
        Ok(())
    }
}

/// Breaks a line between words, unless it has a command to copy.
fn readable(event: &Event<'_>, line: String, width: usize) -> String {
    match event {
        Event::Started(_) | Event::Epoch { .. } | Event::Warning { .. } | Event::Finished { .. } => {
            wrapped(&line, width)
        }
        Event::Step(_) | Event::Profile(_) | Event::Interrupted { .. } => line,
    }
}

/// A progress bar, with one line per epoch above it.
pub(super) struct Bar {
    pub(super) bar: ProgressBar,
    /// Returns the width of the terminal, which may change.
    width: fn() -> usize,
    preview: Option<Preview>,
    report: Report,
}

impl std::fmt::Debug for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bar").field("report", &self.report).finish_non_exhaustive()
    }
}

impl Bar {
    pub(super) fn new(target: ProgressDrawTarget, width: fn() -> usize, preview: Option<Preview>) -> Self {
        Self { bar: ProgressBar::with_draw_target(None, target), width, preview, report: Report::default() }
    }

    /// Shows `text` beside the bar, which is narrow in a narrow terminal.
    fn show(&self, text: &dyn Fn(usize) -> String) -> Result<()> {
        let width = (self.width)();
        let columns = if width < 90 { 10 } else { 24 };
        let style =
            ProgressStyle::with_template(&format!("{{bar:{columns}.cyan/blue}} {{msg}}")).map_err(Error::bug)?;
        self.bar.set_style(style.progress_chars("━━─"));
        self.bar.set_message(text(width.saturating_sub(columns + 2)));
        Ok(())
    }
}

impl Observer for Bar {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.report.update(event);
        match event {
            Event::Started(start) => {
                self.bar.set_length(start.steps);
                self.bar.set_position(start.first_step - 1);
                self.show(&|_| "starting".to_owned())?;
            }
            Event::Step(row) => {
                self.bar.set_position(row.step);
                self.show(&|width| self.report.step(row, width))?;
            }
            Event::Finished { .. } | Event::Interrupted { .. } => self.bar.finish_and_clear(),
            Event::Epoch { .. } | Event::Warning { .. } | Event::Profile(_) => {}
        }
        let width = (self.width)();
        for line in self.report.lines(event, width) {
            let line = readable(event, line, width);
            if self.bar.is_finished() {
                // A finished bar prints nothing.
                eprintln_lossy(line);
            } else {
                self.bar.println(line);
            }
        }
        Ok(())
    }

    fn waiting(&mut self, what: &str) {
        let counts = format!("{}/{}", grouped(self.bar.position()), grouped(self.report.steps));
        // The bar shows nothing worse than an old message if this fails.
        let _ = self.show(&|width| fitted(&[(0, counts.clone()), (1, what.to_owned())], width));
    }

    fn images(&mut self, epoch: u64, what: &str, images: DecodedImages<'_>) -> Result<()> {
        let Some(preview) = self.preview else { return Ok(()) };
        let drawn = preview_of(&preview, epoch, what, images)?;
        self.bar.suspend(|| show(&drawn));
        Ok(())
    }
}

/// Draws a row of images with a title; of images in rows, the first of each row.
fn preview_of(preview: &Preview, epoch: u64, what: &str, images: DecodedImages<'_>) -> Result<String> {
    let [channels, height, width] = images.size;
    let all = images.values.chunks_exact(channels * height * width);
    let every = if images.rows.is_empty() { 1 } else { all.len() / images.rows.len() };
    let shown: Vec<f32> = all.step_by(every.max(1)).flatten().copied().collect();
    let drawn = preview.draw(&ImageBatch::from_floats(&shown, images.size)?, 1)?;
    let title = if epoch == 0 { what.to_owned() } else { format!("epoch {epoch}: {what}") };
    Ok(if drawn.is_empty() { drawn } else { format!("{title}\n{drawn}") })
}

#[cfg(test)]
mod tests {
    use std::io;

    use serde_json::{Value, json};

    use super::*;
    use crate::app::cli::progress::fixture::start;
    use crate::vae::train::events::{Quiet, Start};
    use crate::vae::train::rows::{EpochRow, StepRow};

    fn send_events(observer: &mut dyn Observer) {
        let step = StepRow {
            step: 5,
            epoch: 1,
            total: 0.95,
            recon: 0.9375,
            kl: 0.0125,
            images_per_s: 61.5,
            ..StepRow::default()
        };
        let epoch = EpochRow {
            epoch: 1,
            val_total: 0.9818,
            active_units: 16,
            seconds: 725.0,
            best: true,
            ..EpochRow::default()
        };
        let run = Path::new("runs/2026-01-31-1");
        for event in [
            Event::Started(start()),
            Event::Step(&step),
            Event::Step(&StepRow { step: 6, total: f32::NAN, grad_norm: f32::INFINITY, ..step }),
            Event::Epoch { row: &epoch, advice: &[], communication_s: None },
            Event::Warning { message: "metrics.csv was missing" },
            Event::Interrupted { step: 6, run },
            Event::Finished {
                epochs: 25,
                steps: 9775,
                seconds: 7.25,
                best: None,
                best_epoch: None,
                communication_s: None,
                run,
            },
        ] {
            observer.observe(&event).unwrap();
        }
    }

    #[test]
    fn json_is_one_object_per_event() {
        let mut json = Json::new(Vec::new());
        send_events(&mut json);
        let text = String::from_utf8(json.lines.to.unwrap()).unwrap();
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<_> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["started", "step", "step", "epoch", "warning", "interrupted", "finished"]);
        assert_eq!(events[0]["parameters"], 1_721_891);
        assert_eq!((&events[0]["first_step"], &events[0]["settings"]["batch_size"]), (&json!(1), &json!(128)));
        let step = json!({"event": "step", "step": 5, "epoch": 1, "total": 0.95, "recon": 0.9375, "kl": 0.0125,
            "grad_norm": 0.0, "lr": 0.0, "images_per_s": 61.5, "elapsed_s": 0.0});
        assert_eq!(events[1], step);
        assert_eq!((&events[2]["total"], &events[2]["grad_norm"]), (&Value::Null, &Value::Null));
        assert_eq!((&events[3]["best"], &events[3]["val_total"]), (&json!(true), &json!(0.9818)));
        assert_eq!(
            events[6],
            json!({"event": "finished", "epochs": 25, "steps": 9775, "seconds": 7.25, "best": null, "best_epoch": null,
            "run": "runs/2026-01-31-1"})
        );
    }

    #[test]
    fn plain_lines_skip_steps_and_keep_epochs() {
        let mut plain = Plain::new(Vec::new(), Duration::from_secs(3600), None);
        send_events(&mut plain);
        let text = String::from_utf8(plain.lines.to.unwrap()).unwrap();
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "model   32 channels, 4 blocks, latent 16, batch norm, 1,721,891 parameters",
                "train   50,000 images and 10,000 to validate, 25 epochs, 9,775 steps of 128",
                "run     runs/2026-01-31-1",
                "memory  86 MiB on the device",
                "step 5/9,775  epoch 1/25  loss 0.9500  (recon 0.9375, kl 0.0125)  62 images/s",
                "  epoch    train    valid    recon      kl     mse  bits/dim  active     time",
                "   1/25   0.0000   0.9818   0.0000  0.0000  0.0000     0.000      16    12:05  best",
                "warning: metrics.csv was missing",
                "interrupted after 6 steps; checkpoint saved. Resume with: vae-wgpu train --resume runs/2026-01-31-1",
                "done: 25 epochs, 9,775 steps in 7.2 s. Results: runs/2026-01-31-1",
            ]
        );
        let mut plain = Plain::new(Vec::new(), Duration::ZERO, None);
        plain.observe(&Event::Started(Start { first_step: 9776, ..start() })).unwrap();
        let run = Path::new("c1");
        plain
            .observe(&Event::Finished {
                epochs: 25,
                steps: 9775,
                seconds: 0.0,
                best: None,
                best_epoch: None,
                communication_s: None,
                run,
            })
            .unwrap();
        let text = String::from_utf8(plain.lines.to.unwrap()).unwrap();
        assert!(
            text.ends_with("run c1 is complete: 25 epochs. Pass --epochs with a larger number to train further\n"),
            "{text}"
        );
        let mut plain = Plain::new(Vec::new(), Duration::ZERO, None);
        send_events(&mut plain);
        let text = String::from_utf8(plain.lines.to.unwrap()).unwrap();
        assert!(text.contains("step 6/9,775  epoch 1/25  loss NaN"), "{text}");
    }

    #[test]
    fn broken_pipe_is_ok_but_write_errors_are_not() {
        struct Broken(ErrorKind, usize);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                assert!(self.1 == 1, "written to again");
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        send_events(&mut Json::new(Broken(ErrorKind::BrokenPipe, 0)));
        send_events(&mut Plain::new(Broken(ErrorKind::BrokenPipe, 0), Duration::ZERO, None));
        let full = Json::new(Broken(ErrorKind::StorageFull, 0)).observe(&Event::Warning { message: "x" });
        assert!(matches!(full, Err(Error::File { .. })));
    }

    #[test]
    fn progress_bar_follows_the_steps() {
        let mut bar = Bar::new(ProgressDrawTarget::hidden(), || 100, None);
        bar.observe(&Event::Started(Start { first_step: 392, ..start() })).unwrap();
        assert_eq!((bar.bar.position(), bar.bar.length()), (391, Some(9775)));
        bar.observe(&Event::Step(&StepRow { step: 401, epoch: 2, ..StepRow::default() })).unwrap();
        assert_eq!(bar.bar.position(), 401);
        assert!(bar.bar.message().starts_with("401/9,775  epoch 2/25  loss 0.0000"), "{}", bar.bar.message());
        bar.waiting("validating 1/2");
        assert_eq!(bar.bar.message(), "401/9,775  validating 1/2");
        send_events(&mut bar);
        assert!(bar.bar.is_finished());
        send_events(&mut Quiet);
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        let line = "model   ResNet VAE, 32 channels, 3 groups of 4 blocks";
        assert_eq!(wrapped(line, 80), line);
        assert_eq!(wrapped(line, 53), line);
        assert_eq!(wrapped(line, 52), "model   ResNet VAE, 32 channels, 3 groups of 4\n        blocks");
        assert_eq!(wrapped(line, 28).lines().count(), 3);
        // What has no space is not broken.
        assert_eq!(wrapped("done: runs/with/a/long/name", 10), "done: runs/with/a/long/name");
        for width in [50, 60, 80] {
            let mut plain = Plain::new(Vec::new(), Duration::ZERO, Some(width));
            send_events(&mut plain);
            let text = String::from_utf8(plain.lines.to.unwrap()).unwrap();
            let fits = |line: &&str| line.chars().count() > width && !line.contains("--resume");
            assert_eq!(text.lines().find(fits), None, "{width}: {text}");
        }
    }
}
