//! `vae-wgpu completions`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Shell to complete for.
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), env!("CARGO_PKG_NAME"), &mut script);
        let mut script = String::from_utf8(script)?;
        if self.shell == Shell::Bash {
            // clap_complete 4.6 gives a program with a hyphen two names in its script, so that no subcommand is found
            // (https://github.com/clap-rs/clap/issues/6421).
            script = script.replace("vae__subcmd__wgpu", "vae__wgpu");
        }
        std::io::stdout().lock().write_all(script.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}
