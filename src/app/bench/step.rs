//! Times whole training steps on random images.

use std::time::Instant;

use crate::app::figures::median;
use crate::error::{Error, Result};
use crate::runtime::plan;
use crate::runtime::tensor::rng::{self, Stream, StreamRng};
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::{Device, Hyperparams, Runner};

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
    /// Milliseconds until the loss was read back.
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

    /// Runs a step and waits for its loss.
    ///
    /// # Errors
    /// Those of the device.
    pub fn step(&mut self) -> Result<TimedStep> {
        let eps = rng::normals(&mut self.noise, self.eps);
        let started = Instant::now();
        self.runner.train_with_noise(&self.images, &eps, &self.hyper)?;
        let encode_ms = started.elapsed().as_secs_f64() * 1e3;
        let report = self.runner.reports(true)?.pop().ok_or_else(|| Error::bug("the step returned no report"))?;
        Ok(TimedStep { ms: started.elapsed().as_secs_f64() * 1e3, encode_ms, loss: report.total })
    }

    /// Runs several steps.
    ///
    /// # Errors
    /// Those of the device.
    pub fn steps(&mut self, count: u32) -> Result<Vec<TimedStep>> {
        (0..count).map(|_| self.step()).collect()
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
    /// Median until the loss was read back.
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
