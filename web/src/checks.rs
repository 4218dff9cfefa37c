//! Checks of the kernels on the visitor's device.

use serde_json::json;
use vae_wgpu::app::check::{Check, CheckResult, Report, Tally, suite};
use vae_wgpu::prelude::Gpu;
use wasm_bindgen::JsValue;

use crate::fault::Fault;
use crate::message::json;

/// Checks in progress.
pub(crate) struct Checks {
    checks: Vec<Check>,
    report: Report,
}

impl Checks {
    /// Chooses the checks that compare a kernel with the reference and whose name contains `filter`. The others need no device.
    pub(crate) fn new(gpu: &Gpu, filter: &str, [browser, name, date]: [&str; 3]) -> Result<Self, Fault> {
        let wanted = |check: &Check| check.needs_gpu() && check.to_string().contains(filter);
        let checks: Vec<_> = suite()?.into_iter().filter(wanted).collect();
        if checks.is_empty() {
            return Err(Fault::invalid(format!("no check matches `{filter}`: use a part of a name, such as conv2d")));
        }
        let mut report = Report::default();
        report.about.extend([
            ("date", date.to_owned()),
            ("version", format!("{}, in a browser", vae_wgpu::VERSION)),
            ("browser", browser.to_owned()),
            ("GPU", name.to_owned()),
        ]);
        if !filter.is_empty() {
            report.about.push(("filter", format!("only checks whose name contains `{filter}`")));
        }
        report.add_device(gpu)?;
        Ok(Self { checks, report })
    }

    /// Runs the next check and returns its event; `None` if all have run.
    pub(crate) async fn next(&mut self, gpu: &Gpu) -> Result<Option<JsValue>, Fault> {
        let Some(check) = self.checks.get(self.report.results.len()) else { return Ok(None) };
        let result = CheckResult::of_async(check, Some(gpu)).await;
        let event = json!({
            "event": "check",
            "done": self.report.results.len() + 1,
            "total": self.checks.len(),
            "name": result.name,
            "verdict": result.verdict.name().to_lowercase(),
            "share": result.worst(),
        });
        self.report.results.push(result);
        json(&event).map(Some)
    }

    /// Ends the checks, of which some may not have run, and returns the result of the request.
    pub(crate) fn finish(mut self) -> Result<JsValue, Fault> {
        let (ran, total) = (self.report.results.len(), self.checks.len());
        if ran < total {
            self.report.about.push(("ended early", format!("after {ran} of {total} checks")));
        }
        let Tally { passed, failed, not_applicable } = Tally::of(&self.report.results);
        let report = self.report.to_string();
        json(&json!({ "report": report, "passed": passed, "failed": failed, "notApplicable": not_applicable }))
    }
}
