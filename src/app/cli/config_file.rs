//! `train --config` and `train --like`: options from a file become arguments before those of the command line, where the last one wins.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction};
use toml::{Table, Value};

use super::{command, in_plain_words};
use crate::app::io::atomic;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::settings_file;
use crate::error::printable;
use crate::vae::train::Settings;

/// Names and contents of the presets.
const PRESETS: [(&str, &str); 3] = [
    ("demo", include_str!("../../../assets/presets/demo.toml")),
    ("small", include_str!("../../../assets/presets/small.toml")),
    ("seed", include_str!("../../../assets/presets/seed.toml")),
];

/// Options of `train` that a file cannot contain.
const COMMAND_LINE_ONLY: [&str; 6] = ["config", "like", "resume", "force", "help", "version"];

/// Returns the options in a TOML file, as arguments. A preset serves where no file has its name.
///
/// # Errors
/// If the file cannot be read or `train` does not accept its options.
pub(super) fn from_file(path: &Path) -> anyhow::Result<Vec<OsString>> {
    if !path.is_file() {
        if let Some((_, text)) = PRESETS.iter().find(|(name, _)| Path::new(name) == path) {
            return arguments(text);
        }
        if !path.exists() {
            let names = PRESETS.map(|(name, _)| name).join(", ");
            bail!("cannot find a file or preset `{}`. Presets: {names}", printable(path.display()));
        }
    }
    if RunFolder::is_run(path) {
        bail!("{0} is a run folder, not a file with options: use --like {0}", printable(path.display()));
    }
    let bytes = atomic::read(path)?;
    let text =
        String::from_utf8(bytes).map_err(|_| anyhow!("it is not a text file")).with_context(|| cannot_use(path))?;
    arguments(&text).with_context(|| cannot_use(path))
}

/// Returns the settings of a run as arguments.
///
/// # Errors
/// If its `config.json` cannot be read.
pub(super) fn from_run(run: &Path) -> anyhow::Result<Vec<OsString>> {
    let settings = RunFolder::view(run)?.load_config::<Settings>()?.settings;
    arguments(&settings_file::to_toml(&settings, None, "")).with_context(|| cannot_use(run))
}

fn cannot_use(path: &Path) -> String {
    format!("cannot use the options in {}", printable(path.display()))
}

/// Returns the options in a TOML file as arguments that `train` accepts.
fn arguments(text: &str) -> anyhow::Result<Vec<OsString>> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let message = error.message().replace('\n', ", ");
        let hint = match message.contains("duplicate key") {
            true => "",
            false => ". Text needs quotes, as in data = \"shapes\"; true and false are lower case",
        };
        let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return anyhow!("{message}") };
        let line = before.matches('\n').count();
        let content = printable(text.lines().nth(line).unwrap_or_default().trim());
        anyhow!("line {}, `{content}`: {message}{hint}", line + 1)
    })?;
    let mut command = command();
    // Adds the options of all commands, such as --quiet.
    command.build();
    let train = command.find_subcommand("train").context("no command `train`")?;
    let mut arguments = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        if COMMAND_LINE_ONLY.contains(&name.as_str()) {
            bail!("`{key}` belongs on the command line");
        }
        let named = |arg: &&Arg| {
            arg.get_long() == Some(&name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name.as_str()))
        };
        push(&mut arguments, &name, value, train.get_arguments().find(named))?;
    }
    // The options alone, so that a message is about the file.
    let alone = ["vae-wgpu".into(), "train".into()].into_iter().chain(arguments.iter().cloned());
    match super::command().try_get_matches_from(alone) {
        Ok(_) => Ok(arguments),
        Err(error) => {
            let similar = match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(option)) => format!("; there is {}", option.replace('_', "-")),
                _ => String::new(),
            };
            let message = in_plain_words(&error.to_string());
            // A list of missing options is in the lines below.
            let mut lines = message.trim_start_matches("error: ").lines();
            let mut first = lines.next().unwrap_or_default().to_owned();
            if first.ends_with(':') {
                let listed: Vec<_> = lines.take_while(|line| !line.is_empty()).map(str::trim).collect();
                first = format!("{first} {}", listed.join(", "));
            }
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(names)) if !names.is_empty() => format!(": expected {}", names.join(", ")),
                _ => String::new(),
            };
            bail!("{first}{similar}{known}")
        }
    }
}

/// Adds an option with its value, for which `arg` says what it accepts.
fn push(arguments: &mut Vec<OsString>, name: &str, value: &Value, arg: Option<&Arg>) -> anyhow::Result<()> {
    let action = arg.map(Arg::get_action);
    let text = match (value, action) {
        (Value::Boolean(on), Some(ArgAction::SetTrue)) => {
            arguments.extend(on.then(|| format!("--{name}").into()));
            return Ok(());
        }
        (Value::Boolean(on), _) if arg.is_some_and(may_lack_value) => {
            arguments.extend(on.then(|| format!("--{name}").into()));
            return Ok(());
        }
        (_, Some(ArgAction::SetTrue)) => bail!("`{name}` is `{value}`, expected true or false"),
        (Value::Array(values), Some(ArgAction::Append)) => {
            return values.iter().try_for_each(|value| push(arguments, name, value, arg));
        }
        (Value::String(text), _) => text.clone(),
        (Value::Integer(_) | Value::Float(_) | Value::Boolean(_), _) => value.to_string(),
        _ => bail!("`{name}` is {}, expected text, a number, true or false", value.type_str()),
    };
    arguments.push(format!("--{name}={text}").into());
    Ok(())
}

/// Whether the value of an option may be left out, other than one that is true or false.
fn may_lack_value(arg: &Arg) -> bool {
    let optional = arg.get_num_args().is_some_and(|number| number.min_values() == 0);
    optional && !arg.get_possible_values().iter().any(|value| value.matches("true", false))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::app::cli::{Cli, Command};
    use crate::runtime::op::Likelihood;
    use crate::vae::model::{Head, Norm, VaeConfig};
    use crate::vae::train::{Recipe, Schedule};
    use clap::FromArgMatches;

    /// The settings of `vae-wgpu train` with these options.
    fn settings(options: Vec<OsString>) -> Settings {
        let arguments = ["vae-wgpu".into(), "train".into()].into_iter().chain(options);
        let cli = Cli::from_arg_matches(&command().try_get_matches_from(arguments).unwrap()).unwrap();
        let Command::Train(train) = cli.command else { panic!("another command") };
        train.settings(true).unwrap().0
    }

    #[test]
    fn options_with_an_optional_value_are_switched_on_and_off() {
        let found = arguments("preview = true\nlr-find = false\nflip = false\njson = true").unwrap();
        assert_eq!(found, ["--flip=false", "--json", "--preview"]);
        assert_eq!(arguments("preview = \"sixel\"").unwrap(), ["--preview=sixel"]);
    }

    #[test]
    fn file_of_a_run_repeats_its_settings() {
        let every = Settings {
            model: VaeConfig {
                channels: 6,
                blocks: 3,
                latent_dim: 5,
                norm: Norm::Position,
                head: Head::Flatten,
                likelihood: Likelihood::Unit,
                ..VaeConfig::default()
            },
            data: Some("/pictures \"of\" cats\\".to_owned()),
            image_size: Some(64),
            train_limit: Some(1000),
            val_limit: Some(10),
            val_split: 0.3,
            batch_size: 7,
            accumulate: 3,
            sync_batch_norm: true,
            epochs: 3,
            seed: u64::MAX,
            lr: 1.0 / 3.0,
            weight_decay: 1e-9,
            warmup: 11,
            schedule: Schedule::Constant,
            clip_grad: 0.0,
            beta: 2.5,
            beta_warmup: 5,
            beta_cycle: 50,
            free_bits: 0.25,
            posterior_std: 0.5,
            early_stop: 4,
            flip: false,
            crop: true,
            variants: BTreeMap::from([
                ("conv2d.forward".to_owned(), "naive".to_owned()),
                ("linear".to_owned(), "naive".to_owned()),
            ]),
        };
        for run in [every, Recipe::Sharp.settings(), Recipe::Seed.settings()] {
            let variants = run.variants.iter().map(|(op, name)| (op.clone(), name.clone())).collect::<Vec<_>>();
            let options = arguments(&settings_file::to_toml(&run, None, "one\ntwo")).unwrap();
            let given = options.iter().filter(|option| option.to_string_lossy().starts_with("--variant=")).count();
            // Variants belong to the plan, which the trainer adds to the settings.
            assert_eq!(given, variants.len());
            assert_eq!(settings(options), Settings { variants: BTreeMap::new(), ..run });
        }
    }

    #[test]
    fn presets_are_valid() {
        for (name, _) in PRESETS {
            let settings = settings(from_file(Path::new(name)).unwrap());
            settings.check().unwrap();
            assert_eq!(settings == Recipe::Seed.settings(), name == "seed");
            assert!(settings != Settings::default(), "{name}");
        }
    }

    #[test]
    fn message_names_the_option_of_a_file() {
        for (text, message) in [
            ("lr = -1", "invalid value '-1' for '--lr <RATE>'"),
            ("\nlr = \n", "line 2, `lr =`: "),
            ("lr = 1\n\nlr = 2\n", "line 3, `lr = 2`: duplicate key"),
            ("seed = 1\nlr = fast", "line 2, `lr = fast`: "),
            ("norm = \"layer\"", "invalid value 'layer' for '--norm <NORM>': expected batch, position"),
            ("flip = \"yes\"", "for '--flip[=<BOOL>]': expected true, false"),
            ("lrate = 1", "unexpected argument '--lrate' found; there is --"),
            ("lr = [1, 2]", "`lr` is array, expected text, a number, true or false"),
            ("quiet = 1", "`quiet` is `1`, expected true or false"),
            ("resume = \"runs/1\"", "`resume` belongs on the command line"),
        ] {
            let error = arguments(text).unwrap_err().to_string();
            assert!(error.contains(message) && error.lines().count() == 1, "{error}");
        }
        let options = arguments("batch_size = 3\nquiet = true\nconditional = false\nflip = true").unwrap();
        assert_eq!(options, ["--batch-size=3", "--flip=true", "--quiet"]);
    }
}
