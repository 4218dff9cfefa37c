//! Output of a training run: one stream of events, shown as a progress bar, plain lines, JSON, or nothing.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::app::cli::eprintln_lossy;
use crate::error::{Error, Result};
use crate::vae::train::events::{Event, Observer, Quiet, Start};
use crate::vae::train::rows::StepRow;

/// Returns the observer for the options: JSON on stdout, nothing, or on stderr a progress bar (on a terminal) or plain lines.
#[must_use]
pub(super) fn observer(json: bool, quiet: bool) -> Box<dyn Observer> {
    if json {
        Box::new(Json::new(io::stdout()))
    } else if quiet {
        Box::new(Quiet)
    } else if io::stderr().is_terminal() {
        Box::new(Bar::new(ProgressDrawTarget::stderr_with_hz(10)))
    } else {
        Box::new(Plain::new(io::stderr(), Duration::from_secs(10)))
    }
}

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

/// Writes plain lines: steps at intervals, every epoch.
#[derive(Debug)]
pub(super) struct Plain<W> {
    lines: Lines<W>,
    every: Duration,
    last: Option<Instant>,
    totals: Totals,
}

impl<W: Write> Plain<W> {
    /// Writes to `to`, with at most one step line per interval `every`.
    pub(super) fn new(to: W, every: Duration) -> Self {
        Self { lines: Lines { to: Some(to) }, every, last: None, totals: Totals::default() }
    }
}

impl<W: Write> Observer for Plain<W> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.totals.update(event);
        if let Event::Step(row) = event {
            if self.last.is_some_and(|last| last.elapsed() < self.every) {
                return Ok(());
            }
            self.last = Some(Instant::now());
            return self.lines.line(&format!("step {}/{}  {}", row.step + 1, self.totals.steps, self.totals.step(row)));
        }
        self.totals.line(event).map_or(Ok(()), |text| self.lines.line(&text))
    }
}

/// A progress bar, with one line per epoch above it.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    totals: Totals,
}

impl Bar {
    pub(super) fn new(target: ProgressDrawTarget) -> Self {
        Self { bar: ProgressBar::with_draw_target(None, target), totals: Totals::default() }
    }
}

impl Observer for Bar {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        self.totals.update(event);
        match event {
            Event::Started(start) => {
                let template = "{bar:24.cyan/blue} {pos}/{len}  {eta} left  {wide_msg}";
                let style = ProgressStyle::with_template(template).map_err(Error::bug)?;
                self.bar.set_style(style.progress_chars("━━─"));
                self.bar.set_length(start.steps);
                // Steps from before a resume must not count as speed.
                self.bar.set_position(start.first_step);
                self.bar.reset_eta();
            }
            Event::Step(row) => {
                self.bar.set_message(self.totals.step(row));
                self.bar.set_position(row.step + 1);
            }
            Event::Finished { .. } | Event::Interrupted { .. } => self.bar.finish_and_clear(),
            Event::Epoch { .. } | Event::Warning { .. } | Event::Profile(_) => {}
        }
        if let Some(text) = self.totals.line(event) {
            if self.bar.is_finished() {
                // A finished bar prints nothing.
                eprintln_lossy(text);
            } else {
                self.bar.println(text);
            }
        }
        Ok(())
    }
}

/// Totals from [`Event::Started`], which later lines repeat.
#[derive(Debug, Default)]
struct Totals {
    epochs: u64,
    steps: u64,
}

impl Totals {
    fn update(&mut self, event: &Event<'_>) {
        if let Event::Started(start) = event {
            (self.epochs, self.steps) = (start.epochs, start.steps);
        }
    }

    fn step(&self, row: &StepRow) -> String {
        let StepRow { epoch, total, recon, kl, images_per_s, .. } = row;
        format!(
            "epoch {epoch}/{}  loss {total:.4} (recon {recon:.4}, kl {kl:.4})  {images_per_s:.0} images/s",
            self.epochs
        )
    }

    /// Returns the line for an event other than a step.
    fn line(&self, event: &Event<'_>) -> Option<String> {
        Some(match event {
            Event::Step(_) => return None,
            Event::Started(start) => {
                let Start { run, device, model, parameters, images, batch_size, epochs, steps, first_step } = start;
                let resumed = if *first_step > 0 { format!(", resuming at step {first_step}") } else { String::new() };
                format!(
                    "device  {device}\nmodel   {model}, {} parameters\ntrain   {} images, {epochs} epochs, {} steps of \
                     {batch_size}{resumed}\nrun     {}",
                    grouped(*parameters as u64),
                    grouped(*images as u64),
                    grouped(*steps),
                    run.display()
                )
            }
            Event::Epoch { row, best, advice } => format!(
                "epoch {:>2}/{}  train {:.4}  validation {:.4} (recon {:.4}, kl {:.4}, mse {:.4}, {:.3} bits/dim)  {} active units  {}{}{}",
                row.epoch,
                self.epochs,
                row.train_total,
                row.val_total,
                row.val_recon,
                row.val_kl,
                row.val_mse,
                row.val_bits,
                row.active_units,
                clock(row.seconds),
                if *best { "  best" } else { "" },
                advice.iter().map(|advice| format!("\n      {advice}")).collect::<String>()
            ),
            Event::Warning { message } => format!("warning: {message}"),
            Event::Profile(summary) => summary.to_string(),
            Event::Finished { epochs, steps, seconds, best, run } => {
                let best = best.map(|best| format!(", best validation loss {best:.4}")).unwrap_or_default();
                let time = clock(*seconds);
                format!("done: {epochs} epochs, {} steps in {time}{best}. Results: {}", grouped(*steps), run.display())
            }
            Event::Interrupted { step, run } => format!(
                "interrupted after {step} steps; checkpoint saved. Resume with: vae-wgpu train --resume {}",
                run.display()
            ),
        })
    }
}

/// Formats `1721891` as `1,721,891`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a duration as `7.5 s`, `12 m 05 s` or `3 h 20 m`.
fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} m {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} m", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::train::rows::EpochRow;
    use serde_json::{Value, json};

    fn start() -> Start<'static> {
        Start {
            run: Path::new("runs/2026-01-31-1"),
            device: "llvmpipe (Vulkan)",
            model: "32 channels, 4 blocks, latent 16, batch norm",
            parameters: 1_721_891,
            images: 50_000,
            batch_size: 128,
            epochs: 25,
            steps: 9775,
            first_step: 0,
        }
    }

    fn send_events(observer: &mut dyn Observer) {
        let step = StepRow {
            step: 4,
            epoch: 1,
            total: 0.95,
            recon: 0.9375,
            kl: 0.0125,
            images_per_s: 61.5,
            ..StepRow::default()
        };
        let epoch = EpochRow { epoch: 1, val_total: 0.9818, active_units: 16, seconds: 725.0, ..EpochRow::default() };
        let run = Path::new("runs/2026-01-31-1");
        for event in [
            Event::Started(start()),
            Event::Step(&step),
            Event::Step(&StepRow { step: 5, total: f32::NAN, grad_norm: f32::INFINITY, ..step }),
            Event::Epoch { row: &epoch, best: true, advice: &[] },
            Event::Warning { message: "metrics.csv was missing" },
            Event::Interrupted { step: 6, run },
            Event::Finished { epochs: 25, steps: 9775, seconds: 7.25, best: None, run },
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
        let step = json!({"event": "step", "step": 4, "epoch": 1, "total": 0.95, "recon": 0.9375, "kl": 0.0125,
            "grad_norm": 0.0, "lr": 0.0, "images_per_s": 61.5});
        assert_eq!(events[1], step);
        assert_eq!((&events[2]["total"], &events[2]["grad_norm"]), (&Value::Null, &Value::Null));
        assert_eq!((&events[3]["best"], &events[3]["val_total"]), (&json!(true), &json!(0.9818)));
        assert_eq!(
            events[6],
            json!({"event": "finished", "epochs": 25, "steps": 9775, "seconds": 7.25, "best": null,
            "run": "runs/2026-01-31-1"})
        );
    }

    #[test]
    fn plain_lines_skip_steps_and_keep_epochs() {
        let mut plain = Plain::new(Vec::new(), Duration::from_secs(3600));
        send_events(&mut plain);
        let text = String::from_utf8(plain.lines.to.unwrap()).unwrap();
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "device  llvmpipe (Vulkan)",
                "model   32 channels, 4 blocks, latent 16, batch norm, 1,721,891 parameters",
                "train   50,000 images, 25 epochs, 9,775 steps of 128",
                "run     runs/2026-01-31-1",
                "step 5/9775  epoch 1/25  loss 0.9500 (recon 0.9375, kl 0.0125)  62 images/s",
                "epoch  1/25  train 0.0000  validation 0.9818 (recon 0.0000, kl 0.0000, mse 0.0000, 0.000 bits/dim)  16 active units  12 m 05 s  best",
                "warning: metrics.csv was missing",
                "interrupted after 6 steps; checkpoint saved. Resume with: vae-wgpu train --resume runs/2026-01-31-1",
                "done: 25 epochs, 9,775 steps in 7.2 s. Results: runs/2026-01-31-1",
            ]
        );
        let mut plain = Plain::new(Vec::new(), Duration::ZERO);
        send_events(&mut plain);
        let text = String::from_utf8(plain.lines.to.unwrap()).unwrap();
        assert!(text.contains("step 6/9775  epoch 1/25  loss NaN"), "{text}");
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
        send_events(&mut Plain::new(Broken(ErrorKind::BrokenPipe, 0), Duration::ZERO));
        let full = Json::new(Broken(ErrorKind::StorageFull, 0)).observe(&Event::Warning { message: "x" });
        assert!(matches!(full, Err(Error::File { .. })));
    }

    #[test]
    fn progress_bar_follows_the_steps() {
        let mut bar = Bar::new(ProgressDrawTarget::hidden());
        bar.observe(&Event::Started(Start { first_step: 391, ..start() })).unwrap();
        assert_eq!((bar.bar.position(), bar.bar.length()), (391, Some(9775)));
        bar.observe(&Event::Step(&StepRow { step: 400, epoch: 2, ..StepRow::default() })).unwrap();
        assert_eq!(bar.bar.position(), 401);
        assert!(bar.bar.message().starts_with("epoch 2/25  loss 0.0000"));
        send_events(&mut bar);
        assert!(bar.bar.is_finished());
        send_events(&mut Quiet);
    }

    #[test]
    fn human_readable_formatting() {
        assert_eq!([0, 999, 1000, 1_721_891].map(grouped), ["0", "999", "1,000", "1,721,891"]);
        assert_eq!(
            [0.04, 59.4, 59.6, 3599.0, 12_000.0].map(clock),
            ["0.0 s", "59.4 s", "1 m 00 s", "59 m 59 s", "3 h 20 m"]
        );
    }
}
