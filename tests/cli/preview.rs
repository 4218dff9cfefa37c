//! `--preview` on a terminal, and everywhere else.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::iter;
use std::process::{Command, Stdio};

use console::strip_ansi_codes;

use crate::runs::{command, ok, run_in, small};
use crate::trained::{Stage, text};

/// A terminal of 80 columns with 24-bit colours.
const TERMINAL: [(&str, &str); 5] =
    [("TERM", "xterm-256color"), ("COLORTERM", "truecolor"), ("TERM_PROGRAM", ""), ("TMUX", ""), ("STY", "")];

/// Runs a command on a terminal of 80 columns, which `script` of util-linux makes, and returns what it writes there.
fn on_terminal(command: &Command) -> String {
    let output = on_script(command).stdin(Stdio::null()).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    said
}

/// As [`on_terminal`], with Ctrl-C typed when `mark` appears.
fn interrupted_on_terminal(command: &Command, mark: &str) -> String {
    let mut script = on_script(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keyboard, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let (mut said, mut chunk, mut typed) = (Vec::new(), [0; 4096], false);
    loop {
        let count = screen.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        said.extend(&chunk[..count]);
        if !typed && text(&said).contains(mark) {
            keyboard.write_all(b"\x03").unwrap();
            typed = true;
        }
    }
    script.wait().unwrap();
    text(&said)
}

/// The command as `script` runs it.
fn on_script(command: &Command) -> Command {
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
    let words: Vec<_> = iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
    let mut script = Command::new("script");
    // Background jobs ignore Ctrl-C, and so do their children.
    script.args([
        "-qec",
        &format!("stty cols 80 rows 50 && exec env --default-signal=INT {}", words.join(" ")),
        "/dev/null",
    ]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    command.get_current_dir().map(|folder| script.current_dir(folder));
    script
}

/// Whether four images of half blocks follow a title.
fn has_images_below(said: &str, title: &str) -> bool {
    // The title replaces the bar, which stands before it in the same line of output.
    let mut lines = said.split("\r\n").map(strip_ansi_codes).skip_while(|line| !line.ends_with(title)).skip(1);
    let image = ["▀".repeat(16).as_str(); 4].join(" ");
    (0..8).all(|_| lines.next().is_some_and(|line| line == image))
}

/// What stays of a line of output: the part behind the last code that erases it.
fn remains(line: &str) -> &str {
    line.rsplit("\x1b[2K").next().unwrap_or_default()
}

#[test]
fn no_bar_remains_above_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let mut train = command(&small(&run_in(&dir, "run"), "cpu", "1000000"));
    // With steps so long that the message comes before the end. Without a bar the run ends by itself, and the test fails.
    train.args(["--channels", "32", "--max-time", "60s"]).envs(TERMINAL);
    let said = interrupted_on_terminal(&train, "━");
    let lines: Vec<_> = said.split("\r\n").map(|line| strip_ansi_codes(remains(line))).collect();
    assert!(lines.iter().any(|line| line.starts_with("stopping after this step")), "{said}");
    assert!(said.contains('━') && lines.iter().all(|line| !line.contains('━')), "{said}");
}

#[test]
fn images_are_shown_above_the_progress_bar() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let mut train = command(&small(&run, "cpu", "2"));
    train.arg("--preview").envs(TERMINAL);
    let said = on_terminal(&train);
    for title in ["originals", "epoch 1: reconstructions", "epoch 1: samples", "epoch 2: samples"] {
        assert!(has_images_below(&said, title), "{title}: {said}");
    }
    assert!(said.contains("\x1b[38;2;"), "{said}");
    // Also when the run continues.
    let mut train = command(&["train", "--resume", &run, "--epochs", "3", "--device", "cpu", "--preview=blocks"]);
    train.envs(TERMINAL).env("COLORTERM", "");
    let said = on_terminal(&train);
    for title in ["originals", "epoch 3: reconstructions"] {
        assert!(has_images_below(&said, title), "{title}: {said}");
    }
    assert!(said.contains("\x1b[38;5;") && !said.contains("\x1b[38;2;"), "{said}");
}

#[test]
fn images_are_shown_on_terminals_only() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let args = [&small(&run, "cpu", "1")[..], &["--force", "--preview"]].concat();
    let piped = text(&ok(&args).stderr);
    assert!(piped.contains("done: 1 epoch") && !piped.contains('\x1b') && !piped.contains("originals"), "{piped}");
    let shown = |term: &str, option: &str| {
        let mut train = command(&args);
        train.envs(TERMINAL).env("TERM", term).args((!option.is_empty()).then_some(option));
        on_terminal(&train)
    };
    for (term, option) in [("dumb", ""), ("xterm", "--json"), ("xterm", "--quiet")] {
        let said = shown(term, option);
        assert!(!said.contains('▀') && !said.contains("originals"), "{term} {option}: {said}");
    }
}

#[test]
fn samples_and_reconstructions_are_shown_in_the_way_of_the_terminal() {
    let stage = Stage::new();
    let shown = |line: &str, term: &str| {
        let mut command = stage.command(line);
        command.envs(TERMINAL).env("TERM", term);
        on_terminal(&command)
    };
    let said = shown("sample run -n 13 --preview", "xterm");
    let lines = said.lines().filter(|line| line.contains('▀')).count();
    assert_eq!(lines, 3 * 8, "three rows of four: {said}");
    let said = shown("reconstruct run -n 2 --preview", "xterm-kitty");
    assert_eq!(said.matches("\x1b_Ga=T,f=100,q=2,c=33,r=8,").count(), 2, "{said}");
    assert!(shown("sample run -n 1 --preview=sixel", "xterm").contains("\x1bP0;1;0q"));
    assert!(!shown("sample run -n 1 --preview --quiet", "xterm").contains('▀'));
}
