//! The log beside what one would use in its place, at the same guarantee: an ack means that the
//! batch is whole and outlives a power cut.
//!
//! `run` lets every contender do each workload, in turns, several rounds, each run in a process and
//! a folder of its own on the same file system, and writes a table of medians as Markdown and a
//! chart as SVG. `barriers` counts under `strace` what each commit waits for. `growth` follows the
//! log alone as it grows. `check` looks for gross losses: few rounds, two light peers, half the
//! bars.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are approximate, and counts small"
)]

mod barriers;
mod driver;
mod growth;
mod measure;
mod report;
mod store;
mod stores;
#[path = "../../support/mod.rs"]
mod support;
mod turn;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use stores::Contender;
use workloads::{Task, Workload};

/// sessionlog beside its peers, at the same guarantee
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everybody, everything, in turns; writes a report
    Run(Run),
    /// How many barriers a commit waits for, counted under strace
    Barriers(Common),
    /// The log alone, as its store grows
    Growth {
        #[command(flatten)]
        common: Common,
        /// Gigabytes to stop at
        #[arg(long, default_value_t = 30.0)]
        gigabytes: f64,
        /// Where to write the report
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// A few rounds against half the bars; fails when one is missed
    Check(Common),
    /// One run of one workload; prints its figures as JSON
    #[command(hide = true)]
    One {
        #[arg(long)]
        store: Contender,
        #[arg(long)]
        workload: Workload,
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        seconds: f64,
        #[arg(long)]
        scale: f64,
    },
    /// So many appends, for strace to look at
    #[command(hide = true)]
    Appends {
        #[arg(long)]
        store: Contender,
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        events: usize,
    },
    /// A row of what `growth` prints
    #[command(hide = true)]
    Grown(growth::Row),
}

#[derive(Args, Clone)]
struct Common {
    /// Where stores are made; on the disk that is to be measured
    #[arg(long, default_value = "../../target/peers/stores")]
    folder: PathBuf,
    /// Only these
    #[arg(long, value_delimiter = ';')]
    stores: Vec<Contender>,
}

#[derive(Args, Clone)]
struct Run {
    #[command(flatten)]
    common: Common,
    /// Only these
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// With none, the report is only written anew
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long appends are measured in each round
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// What part of the full size the large workloads have
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Where to write `peers.md`, `peers.svg` and `peers.json`; figures that are there of other
    /// workloads stay
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Common {
    fn contenders(&self) -> Vec<Contender> {
        if self.stores.is_empty() {
            Contender::all()
        } else {
            self.stores.clone()
        }
    }
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(run) => driver::run(&run),
        Command::Barriers(common) => barriers::count(&common),
        Command::Growth {
            common,
            gigabytes,
            out,
        } => growth::follow(&common.folder, gigabytes, out.as_deref()),
        Command::Check(common) => return driver::check(&common),
        Command::One {
            store,
            workload,
            folder,
            seconds,
            scale,
        } => {
            let figures = workload.run(Task {
                contender: store,
                folder: &folder,
                seconds,
                scale,
            });
            println!(
                "{}",
                serde_json::to_string(&figures).expect("figures are JSON")
            );
        }
        Command::Appends {
            store,
            folder,
            count,
            events,
        } => barriers::append(store, &folder, count, events),
        Command::Grown(row) => growth::measure(&row),
    }
    ExitCode::SUCCESS
}
