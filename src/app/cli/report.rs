//! `vae-wgpu report`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};

use super::note;
use super::output::check_output_of_run;
use super::values::run;
use crate::app::io::atomic::create_parent;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::run_report;

#[derive(Args, Debug)]
pub(super) struct ReportArgs {
    /// Run folder written by `vae-wgpu train`, or its name if it is in `runs`; an unfinished run and one of an earlier version have a
    /// report, too.
    #[arg(value_name = "RUN", value_parser = run(), value_hint = ValueHint::DirPath)]
    run: PathBuf,
    /// Output file [default: report.html in the run folder].
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
}

impl ReportArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let folder = RunFolder::view(&self.run)?;
        let out = self.out.clone().unwrap_or_else(|| folder.report());
        check_output_of_run(&out, &["html"])?;
        create_parent(&out)?;
        run_report::save_of_folder(&folder, &out)?;
        note(format_args!("report: {}", out.display()));
        Ok(ExitCode::SUCCESS)
    }
}
