//! `sessionlog man`: the manual pages.

use std::path::PathBuf;

use clap::CommandFactory;

use crate::Cli;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Writes the manual pages, one for each command.
///
/// Then read one with: man ./sessionlog-info.1
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder for the pages
    #[arg(default_value = ".")]
    dir: PathBuf,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let Args { dir } = &args;
    clap_mangen::generate_to(Cli::command(), dir)
        .map_err(|error| Failure::of_file("write the pages in", dir, &error))?;
    output.note(format!("the manual pages are in {}", dir.display()));
    Ok(())
}
