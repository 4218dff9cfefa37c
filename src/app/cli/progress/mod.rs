//! Output of a training run: one stream of events, shown as a progress bar, plain lines, JSON, or nothing.

use std::io;
use std::time::Duration;

use console::Term;
use indicatif::ProgressDrawTarget;

use self::observers::{Bar, Json, Plain, Warnings};
use super::preview::Preview;
use super::terminal::{draws_bars, shows, stderr_width, terminal_width};
use crate::vae::train::events::Observer;

#[cfg(test)]
mod fixture;
mod observers;
mod report;

/// Returns the observer for the options: JSON on stdout, or on stderr warnings alone, a progress bar (on a terminal) or plain lines.
/// Images are shown only beside the bar.
#[must_use]
pub(super) fn observer(json: bool, quiet: bool, preview: Option<Preview>) -> Box<dyn Observer> {
    if json {
        Box::new(Json::new(io::stdout()))
    } else if quiet {
        Box::new(Warnings)
    } else if draws_bars() {
        let bar = Bar::new(ProgressDrawTarget::stderr_with_hz(10), || terminal_width(&Term::stderr()), preview);
        shows(&bar.bar);
        Box::new(bar)
    } else {
        Box::new(Plain::new(io::stderr(), Duration::from_secs(10), stderr_width()))
    }
}
