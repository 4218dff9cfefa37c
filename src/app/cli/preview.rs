//! `--preview`: images in the terminal.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use console::Term;

use super::is_quiet;
use super::terminal::{draws_bars, terminal_width};
use crate::app::viz::image_grid::ImageBatch;
use crate::app::viz::terminal::{Protocol, fitting, row};

#[derive(Args, Debug, Clone)]
pub(super) struct PreviewArgs {
    /// Show images in the terminal: as pictures in terminals that are known to show them, else in half blocks. KIND chooses instead.
    /// Without a terminal and with --quiet, nothing is shown.
    #[arg(long, value_name = "KIND", value_enum, num_args = 0..=1, default_missing_value = "auto", require_equals = true)]
    preview: Option<Kind>,
}

// No doc comments: clap would turn the help texts into the long form.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Auto,
    Kitty,
    Iterm2,
    Sixel,
    Blocks,
}

impl PreviewArgs {
    /// Returns a preview on stderr, if one was asked for and stderr is a terminal that can show one.
    pub(super) fn get(&self) -> Option<Preview> {
        let kind = self.preview.filter(|_| draws_bars() && !is_quiet())?;
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let true_color = console::true_colors_enabled_stderr();
        Some(Preview { protocol: protocol(kind, variable, true_color), width: || terminal_width(&Term::stderr()) })
    }
}

/// Returns the protocol for a kind. Terminals are recognised by their environment variables: a question to the terminal would take time, and
/// its answer could mix with what the user types.
fn protocol(kind: Kind, variable: impl Fn(&str) -> String, true_color: bool) -> Protocol {
    let blocks = if true_color { Protocol::TrueColor } else { Protocol::Cube };
    let [term, program] = ["TERM", "TERM_PROGRAM"].map(&variable);
    // tmux and screen hide the protocols of the terminal around them, whose variables they inherit.
    let is_nested = ["TMUX", "STY"].iter().any(|name| !variable(name).is_empty());
    match kind {
        Kind::Kitty => Protocol::Kitty,
        Kind::Iterm2 => Protocol::Iterm2,
        Kind::Sixel => Protocol::Sixel,
        Kind::Blocks => blocks,
        Kind::Auto if is_nested => blocks,
        Kind::Auto if ["xterm-kitty", "xterm-ghostty"].contains(&term.as_str()) => Protocol::Kitty,
        Kind::Auto if ["iTerm.app", "WezTerm"].contains(&program.as_str()) => Protocol::Iterm2,
        Kind::Auto if term == "mlterm" || term.split('-').next() == Some("foot") => Protocol::Sixel,
        Kind::Auto => blocks,
    }
}

/// A terminal that shows images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preview {
    pub(super) protocol: Protocol,
    /// Returns the width of the terminal, which may change.
    pub(super) width: fn() -> usize,
}

impl Preview {
    /// Draws as many of the first images as fit into `rows` rows. Where not even one fits, the text is empty.
    pub(super) fn draw(&self, images: &ImageBatch, rows: usize) -> crate::Result<String> {
        let columns = fitting((self.width)());
        if columns == 0 {
            return Ok(String::new());
        }
        images.images().chunks(columns).take(rows).map(|images| row(images, self.protocol)).collect()
    }
}

/// Writes a drawn image to stderr, and ignores errors, because stderr may be closed.
pub(super) fn show(drawn: &str) {
    let _ = io::stderr().write_all(drawn.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_follows_from_the_terminal() {
        let found = |variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
                    .unwrap_or_default()
            };
            protocol(Kind::Auto, variable, true)
        };
        for (variables, expected) in [
            ([("TERM", "xterm-kitty"), ("TERM_PROGRAM", "")], Protocol::Kitty),
            ([("TERM", "xterm-ghostty"), ("TERM_PROGRAM", "ghostty")], Protocol::Kitty),
            ([("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")], Protocol::Iterm2),
            ([("TERM", "xterm-256color"), ("TERM_PROGRAM", "WezTerm")], Protocol::Iterm2),
            ([("TERM", "foot"), ("TERM_PROGRAM", "")], Protocol::Sixel),
            ([("TERM", "foot-extra"), ("TERM_PROGRAM", "")], Protocol::Sixel),
            ([("TERM", "mlterm"), ("TERM_PROGRAM", "")], Protocol::Sixel),
            ([("TERM", "xterm-256color"), ("TERM_PROGRAM", "vscode")], Protocol::TrueColor),
            ([("TERM", "xterm-kitty"), ("TMUX", "/tmp/tmux-1000/default,1,0")], Protocol::TrueColor),
            ([("TERM_PROGRAM", "WezTerm"), ("STY", "123.pts-0")], Protocol::TrueColor),
            ([("TERM", "linux"), ("TERM_PROGRAM", "")], Protocol::TrueColor),
        ] {
            assert_eq!(found(&variables), expected, "{variables:?}");
        }
        let nothing = |_: &str| String::new();
        assert_eq!(protocol(Kind::Auto, nothing, false), Protocol::Cube);
        assert_eq!(protocol(Kind::Blocks, |_| "xterm-kitty".to_owned(), true), Protocol::TrueColor);
        assert_eq!(protocol(Kind::Sixel, nothing, false), Protocol::Sixel);
    }

    #[test]
    fn rows_are_limited_by_width_and_number() {
        let images = ImageBatch::from_bytes(&[90; 9 * 4], [1, 2, 2]).unwrap();
        let lines = |width: fn() -> usize, rows| {
            let preview = Preview { protocol: Protocol::Cube, width };
            let drawn = preview.draw(&images, rows).unwrap();
            let widths: Vec<_> = drawn.lines().map(console::measure_text_width).collect();
            (widths.len(), widths.first().copied().unwrap_or_default())
        };
        assert_eq!(lines(|| 80, 1), (8, 67));
        assert_eq!(lines(|| 80, 3), (24, 67));
        assert_eq!(lines(|| 80, 4), (24, 67));
        assert_eq!(lines(|| 200, 3), (8, 152));
        assert_eq!(lines(|| 15, 3), (0, 0));
    }
}
