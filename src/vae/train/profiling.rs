//! Profiling a step of a run.

use std::path::PathBuf;

use web_time::Instant;

use super::Trainer;
use super::events::Event;
use super::profile::{HostSpan, Profile};
use crate::error::Result;

/// Number of warm-up steps before the step that is profiled.
const PROFILE_AFTER: u64 = 3;

/// The step to profile, and the file for its trace.
pub(super) struct ProfileRequest {
    /// Index of the step, from 0.
    step: u64,
    trace: Option<PathBuf>,
}

impl Trainer<'_> {
    /// Requests a profile of a step on the device: the first full batch after a few warm-up steps. The observer receives the summary;
    /// `trace` is the file for all times. Results do not change.
    pub fn profile(&mut self, trace: Option<PathBuf>) {
        let (first, per_epoch) = (self.runner.step(), self.steps_per_epoch());
        let steps = per_epoch * self.settings.epochs;
        let whole = |step: &u64| step % per_epoch + 1 < per_epoch;
        let after = first.saturating_add(PROFILE_AFTER);
        let step = (after..after + per_epoch.min(2)).find(whole).unwrap_or(after);
        self.profile = Some(ProfileRequest { step: step.min(steps.saturating_sub(1)), trace });
    }

    /// Waits for the steps before and starts timing, if this step is to be profiled.
    pub(super) fn start_profile(&mut self, step: u64) -> Result<Option<ProfileRequest>> {
        let Some(profile) = self.profile.take_if(|profile| profile.step == step) else { return Ok(None) };
        self.collect(true)?;
        if self.runner.time_next()? {
            return Ok(Some(profile));
        }
        self.warn("cannot profile: the device has no timestamp queries")?;
        Ok(None)
    }

    /// Reports a profiled step: the times of the device, and on the host those of preparing the batch and of encoding and submitting the
    /// step, both as start and end.
    pub(super) fn report_profile(
        &mut self,
        request: ProfileRequest,
        [prepared, ready]: [Instant; 2],
        [begun, submitted]: [Instant; 2],
    ) -> Result<()> {
        let span = |name, from: Instant, to: Instant| {
            let begin = from.saturating_duration_since(submitted).as_nanos() as f64
                - submitted.saturating_duration_since(from).as_nanos() as f64;
            HostSpan { name, begin_ns: begin, ns: (to - from).as_nanos() as f64 }
        };
        let host = vec![
            span("prepare", prepared, ready),
            span("encode and submit", begun, submitted),
            span("wait", submitted, Instant::now()),
        ];
        let profile =
            Profile { step: request.step + 1, device: self.runner.describe(), spans: self.runner.spans()?, host };
        self.notify(&Event::Profile(&profile.summary()))?;
        let Some(path) = request.trace else { return Ok(()) };
        // A trace that cannot be written does not end the run.
        match self.store.save_trace(&profile, &path) {
            Err(error) => self.warn(&format!("no trace was written: {error}")),
            Ok(()) => Ok(()),
        }
    }
}
