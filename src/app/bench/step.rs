//! Times whole training steps on random images.

use std::collections::VecDeque;
use std::time::Instant;

use crate::app::figures::median;
use crate::error::{Error, Result};
use crate::runtime::plan;
use crate::runtime::tensor::rng::{self, Stream, StreamRng};
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::{Device, Hyperparams, Runner};

/// Steps that are submitted before the oldest is waited for: as many as in training.
pub const IN_FLIGHT: usize = 2;

/// A model on a device, with random images to train it on.
#[derive(Debug)]
pub struct StepBench {
    runner: Runner,
    images: Vec<u8>,
    noise: StreamRng,
    hyper: Hyperparams,
    /// Number of normal values that a step takes.
    eps: usize,
}

/// Measurements of one step.
#[derive(Clone, Copy, Debug)]
pub struct TimedStep {
    /// Milliseconds until the loss was read back, since that of the step before was, or since the step was started if none was running.
    pub ms: f64,
    /// Milliseconds to encode and submit.
    pub encode_ms: f64,
    /// The loss.
    pub loss: f32,
}

impl StepBench {
    /// Prepares steps of `batch` images.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub fn new(config: VaeConfig, batch: usize, lr: f64, device: &Device, options: &plan::Options) -> Result<Self> {
        let mut runner = Runner::new(config, &[(batch, Mode::Train)], device, options)?;
        runner.init(0)?;
        let mut noise = rng::stream(1, Stream::Check, 0);
        let pixels = rng::uniforms(&mut noise, config.images(batch).len(), 1.0)?;
        Ok(Self {
            runner,
            images: pixels.iter().map(|v| (v * 127.5 + 127.5) as u8).collect(),
            noise,
            hyper: Hyperparams { lr, weight_decay: 1e-2, ..Hyperparams::default() },
            eps: batch * config.latent_dim,
        })
    }

    /// Runs several steps as training does: while the device works on one, the next is already submitted.
    ///
    /// # Errors
    /// Those of the device.
    pub fn steps(&mut self, count: u32) -> Result<Vec<TimedStep>> {
        let (mut timed, mut encoding) = (Vec::new(), VecDeque::new());
        let mut last = Instant::now();
        for _ in 0..count {
            if encoding.len() >= IN_FLIGHT {
                self.finish(&mut encoding, &mut timed, &mut last)?;
            }
            let eps = rng::normals(&mut self.noise, self.eps);
            let started = Instant::now();
            if encoding.is_empty() {
                last = started;
            }
            self.runner.train_with_noise(&self.images, &eps, &self.hyper)?;
            encoding.push_back(started.elapsed().as_secs_f64() * 1e3);
        }
        while !encoding.is_empty() {
            self.finish(&mut encoding, &mut timed, &mut last)?;
        }
        Ok(timed)
    }

    /// Waits for the oldest step. `encoding`: for each step in flight, the milliseconds that it took to start it. `last`: when the step
    /// before ended.
    fn finish(&mut self, encoding: &mut VecDeque<f64>, timed: &mut Vec<TimedStep>, last: &mut Instant) -> Result<()> {
        let reports = self.runner.oldest_reports()?;
        let elapsed = last.elapsed().as_secs_f64() * 1e3;
        *last = Instant::now();
        let lost = || Error::bug("a step returned no report");
        if reports.is_empty() {
            return Err(lost());
        }
        // Steps that ended at the same time share it.
        let ms = elapsed / reports.len() as f64;
        for report in reports {
            let encode_ms = encoding.pop_front().ok_or_else(lost)?;
            timed.push(TimedStep { ms, encode_ms, loss: report.total });
        }
        Ok(())
    }

    /// Returns the runner of the steps.
    #[must_use]
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// Returns the rate of a step that takes `ms` milliseconds, in 10^9 floating-point operations per second.
    ///
    /// # Errors
    /// Those of [`Op::cost`](crate::runtime::op::Op::cost).
    pub fn gflops(&self, ms: f64) -> Result<f64> {
        Ok(self.runner.graph()?.cost()?.flop / ms / 1e6)
    }
}

/// Times of several steps in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTimes {
    /// Median from the end of one step to that of the next.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// Median to encode and submit.
    pub encode: f64,
}

impl StepTimes {
    /// Summarises the steps; `None` if there are none.
    #[must_use]
    pub fn of(steps: &[TimedStep]) -> Option<Self> {
        let sorted = |part: fn(&TimedStep) -> f64| {
            let mut values: Vec<f64> = steps.iter().map(part).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (times, encode) = (sorted(|step| step.ms), sorted(|step| step.encode_ms));
        Some(Self { median: median(&times)?, min: *times.first()?, encode: median(&encode)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_steps_are_summarised() {
        let step = |ms, encode_ms| TimedStep { ms, encode_ms, loss: 0.0 };
        let times = StepTimes::of(&[step(9.0, 1.0), step(4.0, 2.0), step(5.0, 6.0)]);
        assert_eq!(times, Some(StepTimes { median: 5.0, min: 4.0, encode: 2.0 }));
        assert_eq!(StepTimes::of(&[]), None);
    }
}
