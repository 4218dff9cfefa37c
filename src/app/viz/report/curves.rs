//! Charts of losses, learning rate, gradient norm and speed.

use std::collections::BTreeMap;

use super::Report;
use super::chart::{Chart, Series};
use crate::app::viz::canvas::Point;
use crate::app::viz::plots::{finite, moving_mean};
use crate::vae::train::rows::{EpochRow, StepRow};

impl Report<'_> {
    pub(super) fn curves(&self) -> String {
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
}

/// The horizontal axis: epochs, or steps while the length of an epoch is unknown.
pub(super) struct Axis {
    pub(super) name: &'static str,
    /// Steps on the axis per unit.
    per_unit: f64,
    /// Length of an epoch.
    epoch: f64,
    /// First step of each epoch.
    first: BTreeMap<u64, u64>,
}

impl Axis {
    pub(super) fn of(steps: &[StepRow], epochs: &[EpochRow]) -> Self {
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
    pub(super) fn step(&self, row: &StepRow) -> f64 {
        let within = row.step.saturating_sub(self.first.get(&row.epoch).copied().unwrap_or(row.step)) + 1;
        self.end(row.epoch) - self.epoch + within as f64 / self.per_unit
    }

    /// Position of the end of an epoch.
    pub(super) fn end(&self, epoch: u64) -> f64 {
        epoch as f64 * self.epoch
    }
}
