//! The terminal at stderr: its width, and lines above a progress bar.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use console::Term;
use indicatif::ProgressBar;

use super::eprintln_lossy;

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

/// Columns of stdout, if it is a terminal.
pub(super) fn stdout_width() -> Option<usize> {
    io::stdout().is_terminal().then(|| terminal_width(&Term::stdout()))
}

/// Cuts a line to `width` columns.
pub(super) fn cut(line: &str, width: usize) -> String {
    const DOTS: &str = "...";
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width.saturating_sub(DOTS.len())).collect::<String>() + DOTS
}

/// Columns of a terminal, and 80 if they are unknown.
pub(super) fn terminal_width(terminal: &Term) -> usize {
    terminal.size_checked().map_or(80, |(_, columns)| columns.into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut() {
        assert_eq!([3, 4, 8, 9].map(|width| cut("abcdefgh", width)), ["...", "a...", "abcdefgh", "abcdefgh"]);
    }
}
