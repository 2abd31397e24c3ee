//! `sessionlog completions`: a script that completes the command in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::Cli;
use crate::failure::Result;
use crate::output::Output;

/// Writes a script that completes this command in a shell.
///
/// For bash: sessionlog completions bash > ~/.local/share/bash-completion/completions/sessionlog
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sessionlog", &mut script);
    output.bytes(&script)
}
