//! What the observers print: the header, steps, the table of epochs, the end of a run.

use crate::app::figures::{clock, counted, grouped, roughly};
use crate::app::io::run_config::quoted;
use crate::vae::train::events::{Event, Start};
use crate::vae::train::rows::{EpochRow, StepRow};

/// Runs of at least this many seconds are announced.
const LONG: f64 = 1800.0;
/// Steps after the first one whose times a forecast needs.
const MEASURED: u64 = 5;

/// What later lines repeat of [`Event::Started`], and the times of steps.
#[derive(Debug, Default)]
pub(super) struct Report {
    epochs: u64,
    pub(super) steps: u64,
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
    pub(super) fn update(&mut self, event: &Event<'_>) {
        match event {
            Event::Started(start) => {
                (self.epochs, self.steps, self.first_step) = (start.epochs, start.steps, start.first_step);
                self.images_per_step = start.batch_size.saturating_mul(start.accumulate).min(start.images);
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
    pub(super) fn step(&self, row: &StepRow, width: usize) -> String {
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
    pub(super) fn lines(&mut self, event: &Event<'_>, width: usize) -> Vec<String> {
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
    let Start { run, model, parameters, images, validation_images, batch_size, accumulate, .. } = start;
    let Start { epochs, steps, first_step, memory, .. } = start;
    let ranks = if start.ranks > 1 { format!(" on {} ranks", start.ranks) } else { String::new() };
    let of = match accumulate {
        1 => batch_size.min(images).to_string(),
        _ => format!("{accumulate} x {batch_size}"),
    };
    let resumed =
        if *first_step > 1 { format!(", resuming after {}", counted(*first_step - 1, "step")) } else { String::new() };
    let memory = memory.map(|bytes| format!("memory  {:.0} MiB on the device", bytes as f64 / f64::from(1 << 20)));
    let lines = [
        format!("model   {model}, {} parameters", grouped(*parameters as u64)),
        format!(
            "train   {} and {} to validate, {}, {} of {of}{ranks}{resumed}",
            counted(*images as u64, "image"),
            grouped(*validation_images as u64),
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
pub(super) fn fitted(parts: &[(u8, String)], width: usize) -> String {
    let with = |most: u8| {
        let kept = parts.iter().filter(|(rank, text)| *rank <= most && !text.is_empty()).map(|(_, text)| text.as_str());
        kept.collect::<Vec<_>>().join("  ")
    };
    let largest = parts.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
    (0..=largest).rev().map(with).find(|text| text.chars().count() <= width).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::app::cli::progress::fixture::start;

    #[test]
    fn header_shows_micro_batches() {
        let lines = |accumulate| header(&Start { accumulate, ..start() });
        assert_eq!(lines(1)[1], "train   50,000 images and 10,000 to validate, 25 epochs, 9,775 steps of 128");
        let few = header(&Start { images: 11, ..start() });
        assert!(few[1].ends_with("steps of 11"), "{few:?}");
        assert_eq!(lines(4)[1], "train   50,000 images and 10,000 to validate, 25 epochs, 9,775 steps of 4 x 128");
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
    fn step_of_few_images_counts_those_that_there_are() {
        let mut report = Report::default();
        report.update(&Event::Started(Start { images: 11, batch_size: 128, steps: 100, epochs: 100, ..start() }));
        for step in 1..=20 {
            let row = StepRow { step, epoch: step, images_per_s: 11.0, ..StepRow::default() };
            report.update(&Event::Step(&row));
        }
        let row = StepRow { step: 20, epoch: 20, images_per_s: 11.0, ..StepRow::default() };
        assert!((report.left(&row).unwrap() - 80.0).abs() < 1.0);
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
