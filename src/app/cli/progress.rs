//! Output of a training run: one stream of events, shown as a progress bar, plain lines, JSON, or nothing.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::app::cli::eprintln_lossy;
use crate::app::cli::preview::{Preview, show};
use crate::app::figures::{clock, counted, grouped, roughly};
use crate::app::io::run_config::quoted;
use crate::app::viz::image_grid::ImageBatch;
use crate::error::{Error, Result};
use crate::vae::train::events::{Event, Observer, Quiet, Start};
use crate::vae::train::rows::{EpochRow, StepRow};
use crate::vae::train::store::DecodedImages;

/// Returns the observer for the options: JSON on stdout, nothing, or on stderr a progress bar (on a terminal) or plain lines. Only beside the
/// bar are images shown.
#[must_use]
pub(super) fn observer(json: bool, quiet: bool, preview: Option<Preview>) -> Box<dyn Observer> {
    if json {
        Box::new(Json::new(io::stdout()))
    } else if quiet {
        Box::new(Quiet)
    } else if draws_bars() {
        let bar = Bar::new(ProgressDrawTarget::stderr_with_hz(10), || terminal_width(&Term::stderr()), preview);
        shows(&bar.bar);
        Box::new(bar)
    } else {
        Box::new(Plain::new(io::stderr(), Duration::from_secs(10), stderr_width()))
    }
}

/// Returns whether stderr is a terminal that can draw a progress bar.
pub(super) fn draws_bars() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The progress bar that was shown last.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Makes [`eprintln_above_bar`] print above `bar`.
pub(super) fn shows(bar: &ProgressBar) {
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
}

/// Prints a line to stderr, from any thread, without breaking a progress bar.
pub(super) fn eprintln_above_bar(text: impl std::fmt::Display) {
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar.filter(|bar| !bar.is_finished()) {
        Some(bar) => bar.suspend(|| eprintln_lossy(text)),
        None => eprintln_lossy(text),
    }
}

/// Columns of stderr, if it is a terminal.
pub(super) fn stderr_width() -> Option<usize> {
    io::stderr().is_terminal().then(|| terminal_width(&Term::stderr()))
}

/// Columns of a terminal, and 80 if they are unknown.
pub(super) fn terminal_width(terminal: &Term) -> usize {
    terminal.size_checked().map_or(80, |(_, columns)| columns.into())
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

/// Breaks a line between words where it would be wider than a terminal. What follows is indented like the text after a label of the header.
pub(super) fn wrapped(line: &str, width: usize) -> String {
    const INDENT: usize = 8;
    let mut lines = String::new();
    let mut column = 0;
    for word in line.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if column > INDENT && column + length > width {
            lines.truncate(lines.trim_end().len());
            lines += "\n";
            lines += &" ".repeat(INDENT);
            column = INDENT;
        }
        lines += word;
        column += word.chars().count();
    }
    lines
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
    bar: ProgressBar,
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

/// Runs of at least this many seconds are announced.
const LONG: f64 = 1800.0;
/// Steps after the first one whose times a forecast needs.
const MEASURED: u64 = 5;

/// What later lines repeat of [`Event::Started`], and the times of steps.
#[derive(Debug, Default)]
struct Report {
    epochs: u64,
    steps: u64,
    first_step: u64,
    images_per_step: usize,
    /// Path of the run, quoted for a shell.
    run: String,
    software: bool,
    /// Steps that were measured, and seconds of a step, averaged with more weight on late ones.
    measured: u64,
    step_seconds: f64,
    /// Seconds of the steps of this epoch, and of validation and images after the last one.
    epoch_steps: f64,
    epoch_rest: f64,
    /// Whether the header of the table of epochs and the announcement of a long run have been printed.
    has_header: bool,
    announced: bool,
}

impl Report {
    fn update(&mut self, event: &Event<'_>) {
        match event {
            Event::Started(start) => {
                (self.epochs, self.steps, self.first_step) = (start.epochs, start.steps, start.first_step);
                self.images_per_step = start.batch_size.saturating_mul(start.accumulate);
                (self.run, self.software) = (quoted(&start.run.to_string_lossy()), start.software);
            }
            Event::Step(row) => {
                let seconds = self.images_per_step as f64 / f64::from(row.images_per_s);
                self.epoch_steps += seconds;
                self.measured += 1;
                // The first one may compile.
                self.step_seconds = match self.measured {
                    1 | 2 => seconds,
                    _ => 0.9 * self.step_seconds + 0.1 * seconds,
                };
            }
            Event::Epoch { row, .. } => {
                self.epoch_rest = (row.seconds - self.epoch_steps).max(0.0);
                self.epoch_steps = 0.0;
            }
            _ => {}
        }
    }

    /// Seconds until the end of the run after a step, once there are measurements.
    fn left(&self, row: &StepRow) -> Option<f64> {
        let epochs = (self.epochs + 1).saturating_sub(row.epoch) as f64;
        let left = self.steps.saturating_sub(row.step) as f64 * self.step_seconds + epochs * self.epoch_rest;
        (self.measured > MEASURED && left.is_finite()).then_some(left)
    }

    /// Describes a step within `width` columns.
    fn step(&self, row: &StepRow, width: usize) -> String {
        let left = self.left(row).map(|left| format!("{} left", clock(left)));
        let parts = [
            (0, format!("{}/{}", grouped(row.step), grouped(self.steps))),
            (1, left.unwrap_or_default()),
            (3, format!("epoch {}/{}", row.epoch, self.epochs)),
            (2, format!("loss {:.4}", row.total)),
            (5, format!("(recon {:.4}, kl {:.4})", row.recon, row.kl)),
            (4, format!("{:.0} images/s", row.images_per_s)),
        ];
        fitted(&parts, width)
    }

    /// Returns the lines that an event adds.
    fn lines(&mut self, event: &Event<'_>, width: usize) -> Vec<String> {
        match event {
            Event::Step(row) => self.announcement(row).into_iter().collect(),
            Event::Started(start) => header(start),
            Event::Epoch { row, advice, .. } => {
                let mut lines = Vec::new();
                if !std::mem::replace(&mut self.has_header, true) {
                    lines.push(table_line(&EPOCH.map(|column| column.name.to_owned()), width));
                }
                let cells = EPOCH.map(|column| (column.cell)(row, self.epochs));
                lines.push(table_line(&cells, width) + if row.best { "  best" } else { "" });
                lines.extend(advice.iter().map(|advice| format!("  {advice}")));
                lines
            }
            Event::Warning { message } => vec![format!("warning: {message}")],
            Event::Profile(summary) => vec![summary.to_string()],
            Event::Finished { epochs, run, .. } if self.first_step > self.steps => {
                let (run, epochs) = (run.display(), counted(*epochs, "epoch"));
                vec![format!("run {run} is complete: {epochs}. Pass --epochs with a larger number to train further")]
            }
            Event::Finished { epochs, steps, seconds, best, best_epoch, communication_s, run } => {
                let of = best_epoch.map(|epoch| format!(" (epoch {epoch})")).unwrap_or_default();
                let best = best.map(|best| format!(", best validation loss {best:.4}{of}")).unwrap_or_default();
                let (epochs, steps) = (counted(*epochs, "epoch"), counted(*steps, "step"));
                let share =
                    communication_s.map(|spent| format!("; {:.0} % communication", 100.0 * spent / seconds.max(1e-9)));
                let time = clock(*seconds) + &share.unwrap_or_default();
                vec![format!("done: {epochs}, {steps} in {time}{best}. Results: {}", run.display())]
            }
            Event::Interrupted { step, run } => vec![format!(
                "interrupted after {}; checkpoint saved. Resume with: vae-wgpu train --resume {}",
                counted(*step, "step"),
                quoted(&run.to_string_lossy())
            )],
        }
    }

    /// Announces the time of a long run, once.
    fn announcement(&mut self, row: &StepRow) -> Option<String> {
        let left = self.left(row).filter(|left| !self.announced && *left >= LONG)?;
        self.announced = true;
        let hint = if self.software {
            " This device is a software driver; fewer --channels, --blocks or images take less time."
        } else {
            ""
        };
        Some(format!(
            "time    about {}; Ctrl-C saves, `vae-wgpu train --resume {}` continues.{hint}",
            roughly(left),
            self.run
        ))
    }
}

/// The lines at the start of a run.
fn header(start: &Start<'_>) -> Vec<String> {
    // The device has been shown before kernels were compiled for it.
    let Start { run, model, parameters, images, batch_size, accumulate, epochs, steps, first_step, memory, .. } = start;
    let ranks = if start.ranks > 1 { format!(" on {} ranks", start.ranks) } else { String::new() };
    let of = match accumulate {
        1 => batch_size.to_string(),
        _ => format!("{accumulate} x {batch_size}"),
    };
    let resumed =
        if *first_step > 1 { format!(", resuming after {}", counted(*first_step - 1, "step")) } else { String::new() };
    let memory = memory.map(|bytes| format!("memory  {:.0} MiB on the device", bytes as f64 / f64::from(1 << 20)));
    let lines = [
        format!("model   {model}, {} parameters", grouped(*parameters as u64)),
        format!(
            "train   {}, {}, {} of {of}{ranks}{resumed}",
            counted(*images as u64, "image"),
            counted(*epochs, "epoch"),
            counted(*steps, "step")
        ),
        format!("run     {}", run.display()),
    ];
    lines.into_iter().chain(memory).collect()
}

/// A column of the table of epochs.
struct Column {
    name: &'static str,
    width: usize,
    /// Narrower terminals do without it.
    from_width: usize,
    cell: fn(&EpochRow, u64) -> String,
}

const EPOCH: [Column; 9] = [
    Column { name: "epoch", width: 7, from_width: 0, cell: |row, epochs| format!("{}/{epochs}", row.epoch) },
    Column { name: "train", width: 9, from_width: 0, cell: |row, _| format!("{:.4}", row.train_total) },
    Column { name: "valid", width: 9, from_width: 0, cell: |row, _| format!("{:.4}", row.val_total) },
    Column { name: "recon", width: 9, from_width: 89, cell: |row, _| format!("{:.4}", row.val_recon) },
    Column { name: "kl", width: 8, from_width: 80, cell: |row, _| format!("{:.4}", row.val_kl) },
    Column { name: "mse", width: 8, from_width: 0, cell: |row, _| format!("{:.4}", row.val_mse) },
    Column { name: "bits/dim", width: 10, from_width: 71, cell: |row, _| format!("{:.3}", row.val_bits) },
    Column { name: "active", width: 8, from_width: 61, cell: |row, _| row.active_units.to_string() },
    Column { name: "time", width: 9, from_width: 0, cell: |row, _| clock(row.seconds) },
];

/// A line of the table of epochs.
fn table_line(cells: &[String; EPOCH.len()], width: usize) -> String {
    let shown = EPOCH.iter().zip(cells).filter(|(column, _)| width >= column.from_width);
    shown.map(|(column, cell)| format!("{cell:>0$}", column.width)).collect()
}

/// Joins the parts that fit into `width` columns. Those with the largest numbers are left out first.
fn fitted(parts: &[(u8, String)], width: usize) -> String {
    let with = |most: u8| {
        let kept = parts.iter().filter(|(rank, text)| *rank <= most && !text.is_empty()).map(|(_, text)| text.as_str());
        kept.collect::<Vec<_>>().join("  ")
    };
    let largest = parts.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
    (0..=largest).rev().map(with).find(|text| text.chars().count() <= width).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use serde_json::{Value, json};

    use crate::vae::train::Settings;

    static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::default);

    fn start() -> Start<'static> {
        Start {
            run: Path::new("runs/2026-01-31-1"),
            device: "llvmpipe (Vulkan)",
            model: "32 channels, 4 blocks, latent 16, batch norm",
            parameters: 1_721_891,
            images: 50_000,
            batch_size: 128,
            accumulate: 1,
            ranks: 1,
            epochs: 25,
            steps: 9775,
            first_step: 1,
            software: false,
            memory: Some(86 << 20),
            settings: &SETTINGS,
        }
    }

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
                "train   50,000 images, 25 epochs, 9,775 steps of 128",
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
    fn header_shows_micro_batches() {
        let lines = |accumulate| header(&Start { accumulate, ..start() });
        assert_eq!(lines(1)[1], "train   50,000 images, 25 epochs, 9,775 steps of 128");
        assert_eq!(lines(4)[1], "train   50,000 images, 25 epochs, 9,775 steps of 4 x 128");
    }

    /// A run in which each step of 100 images takes two seconds.
    fn measured(steps: u64, software: bool) -> (Report, Vec<String>) {
        let mut report = Report::default();
        let start = Start { batch_size: 25, accumulate: 4, epochs: 10, steps: 10_000, software, ..start() };
        let mut lines = Vec::new();
        report.update(&Event::Started(start));
        for step in 1..=steps {
            let row = StepRow { step, epoch: 1, total: 0.5, images_per_s: 50.0, ..StepRow::default() };
            report.update(&Event::Step(&row));
            lines.extend(report.lines(&Event::Step(&row), 80));
        }
        (report, lines)
    }

    #[test]
    fn long_runs_are_announced_once() {
        let (_, lines) = measured(20, false);
        let line = "time    about 5.6 h; Ctrl-C saves, `vae-wgpu train --resume runs/2026-01-31-1` continues.";
        assert_eq!(lines, [line]);
        let (_, lines) = measured(20, true);
        assert!(lines[0].starts_with(line) && lines[0].contains("software driver"), "{lines:?}");
        let (_, lines) = measured(5, false);
        assert!(lines.is_empty(), "{lines:?}");
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

    #[test]
    fn commands_to_copy_are_quoted() {
        let run = Path::new("my runs/it's");
        let mut report = Report::default();
        let lines = report.lines(&Event::Interrupted { step: 6, run }, 80);
        assert!(lines[0].ends_with(r"train --resume 'my runs/it'\''s'"), "{lines:?}");
        report.update(&Event::Started(Start { run, batch_size: 1, steps: 1_000_000, ..start() }));
        let row = StepRow { step: 1, epoch: 1, images_per_s: 1.0, ..StepRow::default() };
        (0..=MEASURED).for_each(|_| report.update(&Event::Step(&row)));
        let lines = report.lines(&Event::Step(&row), 80);
        assert!(lines[0].contains(r"`vae-wgpu train --resume 'my runs/it'\''s'` continues"), "{lines:?}");
    }

    #[test]
    fn time_left_includes_validations_but_not_the_first_step() {
        let (mut report, _) = measured(1000, false);
        let row = StepRow { step: 1000, epoch: 1, images_per_s: 50.0, ..StepRow::default() };
        assert!((report.left(&row).unwrap() - 18_000.0).abs() < 1.0);
        let epoch = EpochRow { epoch: 1, seconds: 2060.0, ..EpochRow::default() };
        report.update(&Event::Epoch { row: &epoch, advice: &[], communication_s: None });
        let row = StepRow { step: 1001, epoch: 2, images_per_s: 50.0, ..StepRow::default() };
        assert!((report.left(&row).unwrap() - 17_998.0 - 9.0 * 60.0).abs() < 1.0);
        let first = StepRow { step: 1, epoch: 1, images_per_s: 0.01, ..StepRow::default() };
        let mut report = Report { steps: 10, epochs: 1, images_per_step: 100, ..Report::default() };
        report.update(&Event::Step(&first));
        assert_eq!(report.left(&first), None);
    }

    #[test]
    fn steps_and_epochs_fit_the_terminal() {
        let (report, _) = measured(10, false);
        let row =
            StepRow { step: 10, epoch: 1, total: 0.5, recon: 0.25, kl: 0.25, images_per_s: 50.0, ..StepRow::default() };
        let texts = [100, 80, 62, 40, 10].map(|width| (width, report.step(&row, width)));
        for (width, text) in &texts {
            assert!(text.chars().count() <= *width, "{width}: {text}");
        }
        let [(_, full), (_, at_80), (_, at_62), (_, at_40), (_, at_10)] = &texts;
        assert_eq!(full, "10/10,000  5:33:00 left  epoch 1/10  loss 0.5000  (recon 0.2500, kl 0.2500)  50 images/s");
        assert_eq!(at_80, "10/10,000  5:33:00 left  epoch 1/10  loss 0.5000  50 images/s");
        assert_eq!(at_62, at_80);
        assert_eq!(at_40, "10/10,000  5:33:00 left  loss 0.5000");
        assert_eq!(at_10, "10/10,000");
        let epoch = EpochRow {
            epoch: 1,
            val_total: 0.9818,
            active_units: 64,
            seconds: 725.0,
            best: true,
            ..EpochRow::default()
        };
        for width in [50, 60, 70, 80, 90, 200] {
            let mut report = Report { epochs: 25, ..Report::default() };
            let lines = report.lines(&Event::Epoch { row: &epoch, advice: &[], communication_s: None }, width);
            let lengths: Vec<_> = lines.iter().map(|line| line.chars().count()).collect();
            assert!(lengths.len() == 2 && lengths.iter().all(|length| *length <= width), "{width}: {lines:?}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_left_out_by_rank() {
        let parts = [(0, "aaaa".to_owned()), (2, "bbbb".to_owned()), (1, "cccc".to_owned())];
        let at = |width| fitted(&parts, width);
        assert_eq!([20, 12, 10, 4, 3].map(at), ["aaaa  bbbb  cccc", "aaaa  cccc", "aaaa  cccc", "aaaa", ""]);
    }
}
