//! `vae-wgpu man`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValue, Resettable};
use clap::{Arg, Args, Command, ValueHint};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::note;
use crate::app::figures::counted;
use crate::app::io::atomic;
use crate::error::Error;

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Folder for the pages, e.g. ~/.local/share/man/man1; it is created if it is missing.
    #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    folder: PathBuf,
}

impl ManArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let pages = pages(super::command())?;
        fs::create_dir_all(&self.folder).map_err(Error::file("create folder", &self.folder))?;
        for (name, page) in &pages {
            atomic::save_atomic(&self.folder.join(name), page.as_bytes())?;
        }
        note(format_args!("{}: {}", counted(pages.len() as u64, "manual page"), self.folder.display()));
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the page of a command and those of its subcommands, by file name.
fn pages(command: Command) -> anyhow::Result<BTreeMap<String, String>> {
    let mut command = without_help_command(command);
    command.build();
    let (mut pages, mut commands) = (BTreeMap::new(), vec![command]);
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        pages.insert(format!("{name}.1"), page(command)?);
    }
    Ok(pages)
}

/// Removes the subcommands `help`, which need no pages.
fn without_help_command(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help_command)
}

fn page(mut command: Command) -> anyhow::Result<String> {
    let examples = command.get_after_help().map(ToString::to_string);
    let is_root = command.get_name() == env!("CARGO_PKG_NAME");
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").split_whitespace().collect::<Vec<_>>().join(" ");
    let command = command.mut_args(complete).override_usage(usage).after_help(Resettable::Reset);
    // The crate writes an empty date without quotation marks, so that the source would stand in its place.
    let source = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).date("\"\"").source(source).manual("vae-wgpu manual");
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut more = Roff::new();
    if let Some(examples) = &examples {
        more.control("SH", ["EXAMPLES"]);
        more.control("EX", []);
        // The first line is the heading of the help text.
        for line in examples.lines().skip(1) {
            more.text([roman(line)]);
        }
        more.control("EE", []);
    }
    if is_root {
        more.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in EXIT_CODES {
            more.control("TP", []).text([bold(code)]).text([roman(meaning)]);
        }
    } else {
        more.control("SH", ["SEE ALSO"]).text([bold(env!("CARGO_PKG_NAME")), roman("(1)")]);
    }
    // One empty line above a list of values instead of two breaks around one.
    let page = String::from_utf8(page)?.replace(".br\n\n.br\n", ".sp\n");
    Ok(emphasized(&(page + &more.to_roff())))
}

/// Adds to the text of an option what clap adds in `--help`: the values, if they have no texts of their own. Shows texts that the short
/// help leaves out.
fn complete(arg: Arg) -> Arg {
    let arg = arg.hide_short_help(false);
    let values = arg.get_possible_values();
    let text = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string);
    let takes_values = arg.get_num_args().is_none_or(|number| number.takes_values());
    match text {
        Some(text) if takes_values && !values.is_empty() && values.iter().all(|value| value.get_help().is_none()) => {
            let names: Vec<_> = values.iter().map(PossibleValue::get_name).collect();
            arg.long_help(format!("{text} [possible values: {}]", names.join(", "))).hide_possible_values(true)
        }
        _ => arg,
    }
}

/// Exit codes of all commands, as in docs/run-folder.md.
const EXIT_CODES: [(&str, &str); 5] = [
    ("0", "Success."),
    ("1", "Failure: a file, a device, a failed check, a batch that does not fit."),
    ("2", "Usage: an unknown option, a value that an option does not accept, an unknown name."),
    ("3", "NaN or infinity in the training or in the output of a model."),
    ("130", "Interrupted."),
];

/// Sets text between backquotes in bold instead, which a formatter would print as quotation marks.
fn emphasized(page: &str) -> String {
    let mut text = String::new();
    for (at, part) in page.split('`').enumerate() {
        if at > 0 {
            text += if at % 2 == 1 { r"\fB" } else { r"\fR" };
        }
        text += part;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// File names of the pages of a command and its subcommands.
    fn expected(command: &Command, name: &str, names: &mut BTreeSet<String>) {
        names.insert(format!("{name}.1"));
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            expected(sub, &format!("{name}-{}", sub.get_name()), names);
        }
    }

    #[test]
    fn every_command_has_a_page_with_the_text_of_its_options() {
        let mut names = BTreeSet::new();
        expected(&super::super::command(), "vae-wgpu", &mut names);
        let pages = pages(super::super::command()).unwrap();
        assert_eq!(pages.keys().cloned().collect::<BTreeSet<_>>(), names);
        assert!(names.contains("vae-wgpu-bench-step.1") && names.len() >= 23, "{names:?}");
        for (name, page) in &pages {
            // The text of an option stands below its name: nothing is left out.
            let lines: Vec<_> = page.lines().collect();
            for (at, line) in lines.iter().enumerate().filter(|(_, line)| **line == ".TP") {
                let text = lines.get(at + 2).copied().unwrap_or_default();
                assert!(!text.is_empty() && !text.starts_with('.'), "{name}, line {}: {line} without text", at + 1);
            }
            let synopsis = lines.iter().position(|line| *line == ".SH SYNOPSIS").unwrap();
            assert!(lines[synopsis + 1].starts_with(r"\fBvae\-wgpu"), "{name}: {}", lines[synopsis + 1]);
            assert!(page.contains(".SH NAME") && !page.contains('`'), "{name}");
            let title =
                format!(".TH {} 1 \"\" \"vae-wgpu {}\" ", name.trim_end_matches(".1"), env!("CARGO_PKG_VERSION"));
            assert!(page.contains(&title), "{name}: {}", lines[2]);
        }
    }

    #[test]
    fn values_and_examples_are_listed() {
        let pages = pages(super::super::command()).unwrap();
        let train = &pages["vae-wgpu-train.1"];
        assert!(
            train.contains("[possible values: constant, cosine]") && train.contains(".SH EXAMPLES\n.EX\n"),
            "{train}"
        );
        assert!(pages["vae-wgpu-kernels.1"].contains("msl: Metal Shading Language"));
        assert!(pages["vae-wgpu.1"].contains(".SH \"EXIT STATUS\""));
    }

    #[test]
    fn words_between_backquotes_are_bold() {
        assert_eq!(emphasized("see `a` or `b\\-c`."), "see \\fBa\\fR or \\fBb\\-c\\fR.");
    }
}
