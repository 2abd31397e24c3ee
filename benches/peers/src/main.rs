//! Compares the log with its alternatives at the same guarantee: an ack means that the batch is
//! whole and outlives a power cut.
//!
//! `run` lets every contender run each workload, alternately, over several rounds. Each run has a
//! process and a folder of its own on the same file system. It writes a table of medians as
//! Markdown and a chart as SVG.
//!
//! `barriers` counts under `strace` what each commit waits for. `growth` measures the log alone as
//! it grows. `check` looks for gross losses: few rounds, two light peers, half the targets.
//! bars.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures are approximate, and counts small"
)]

mod barriers;
mod content;
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

/// Compares sessionlog with its peers at the same guarantee
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs all contenders and workloads, alternately, and writes a report
    Run(Run),
    /// Counts the barriers of a commit under strace
    Barriers(Common),
    /// Measures the log alone as its store grows
    Growth {
        #[command(flatten)]
        common: Common,
        /// Stop at this many gigabytes
        #[arg(long, default_value_t = 30.0)]
        gigabytes: f64,
        /// Where to write the report
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Runs a few rounds and fails when a metric misses half of its target
    Check(Common),
    /// Runs one workload on one store and prints its metrics as JSON
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
    /// Makes `count` appends, to be traced by strace
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
    /// Measures one row of `growth`
    #[command(hide = true)]
    Grown(growth::Row),
}

#[derive(Args, Clone)]
struct Common {
    /// Folder for the stores, on the disk that is measured
    #[arg(long, default_value = "../../target/peers/stores")]
    folder: PathBuf,
    /// Run only these stores
    #[arg(long, value_delimiter = ';')]
    stores: Vec<Contender>,
}

#[derive(Args, Clone)]
struct Run {
    #[command(flatten)]
    common: Common,
    /// Run only these workloads
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<Workload>,
    /// Number of rounds; with 0 the report is only rewritten
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds that appends are measured in each round
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Fraction of the full size for the large workloads
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Folder for `peers.md`, `peers.svg` and `peers.json`; results of other workloads there are
    /// kept
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
