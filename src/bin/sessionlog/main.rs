//! The command `sessionlog`: it serves a log over HTTP, and works on the folder of a log.
//!
//! Each command is a file with its `Args` and `run`.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a command owns its arguments, as it runs once"
)]
#![expect(
    clippy::doc_markdown,
    reason = "help is shown as it is written, and backticks would be too"
)]
#![expect(
    clippy::struct_excessive_bools,
    reason = "an option without a value is a bool to clap"
)]

mod append;
mod backup;
mod bench;
mod compact;
mod completions;
mod export;
mod failure;
mod folder;
mod get;
mod holder;
mod import;
mod info;
mod interrupt;
mod man;
mod message;
mod output;
mod postgres;
mod progress;
mod render;
mod restore;
mod salvage;
mod serve;
mod sessions;
mod shards;
mod show;
mod source;
mod tail;
mod text;
mod tls;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;
use output::{Form, Output};

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves, shows, checks and copies logs of agent sessions.
///
/// A log is the folder DIR, or a running server: give its address with --url or in
/// SESSIONLOG_URL, and its key in SESSIONLOG_WORKER_KEY, SESSIONLOG_API_KEY or --key-file.
#[derive(Debug, Parser)]
#[command(name = "sessionlog", version, propagate_version = true)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    /// Write JSON to standard output, and errors as JSON to standard error
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  it is done
  1  it failed: standard error says why, and what to do next
  2  the command line is wrong
  3  the log is damaged";

#[derive(Debug, Subcommand)]
enum Command {
    Info(info::Args),
    Sessions(sessions::Args),
    Show(show::Args),
    Tail(tail::Args),
    Message(message::Args),
    Get(get::Args),
    Append(append::Args),
    Serve(Box<serve::Args>),
    Backup(backup::Args),
    Restore(restore::Args),
    Compact(compact::Args),
    Verify(verify::Args),
    Salvage(salvage::Args),
    Export(Box<export::Args>),
    Import(Box<import::Args>),
    Shards(shards::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(if cli.json { Form::Json } else { Form::Text });
    let done = run(cli.command, &output).and_then(|()| output.flush());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}

fn run(command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Info(args) => info::run(args, output),
        Command::Sessions(args) => sessions::run(args, output),
        Command::Show(args) => show::run(args, output),
        Command::Tail(args) => tail::run(args, output),
        Command::Message(args) => message::run(args, output),
        Command::Get(args) => get::run(args, output),
        Command::Append(args) => append::run(args, output),
        Command::Serve(args) => serve::run(*args).map_err(Failure::from),
        Command::Backup(args) => backup::run(args, output),
        Command::Restore(args) => restore::run(args, output),
        Command::Compact(args) => compact::run(args, output),
        Command::Verify(args) => verify::run(args, output),
        Command::Salvage(args) => salvage::run(args, output),
        Command::Export(args) => export::run(&args, output),
        Command::Import(args) => import::run(&args, output),
        Command::Shards(args) => shards::run(&args, output),
        Command::Bench(args) => bench::run(args, output),
        Command::Completions(args) => completions::run(args, output),
        Command::Man(args) => man::run(args, output),
    }
}
