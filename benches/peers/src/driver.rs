//! Rounds: in each, every contender runs every workload once, in a process and a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::ValueEnum;

use crate::measure::{Figures, pause};
use crate::report::Report;
use crate::stores::{Contender, Finds};
use crate::workloads::Workload;
use crate::{Common, Run};

/// Runs all rounds, and reports the metrics by workload and contender.
pub type Results = BTreeMap<String, BTreeMap<String, Vec<Figures>>>;

/// The pause between runs, so that writes left by one run do not slow the next.
const PAUSE: Duration = Duration::from_millis(200);

pub fn run(run: &Run) {
    let report = measured(run);
    print!("{}", report.markdown());
    if let Some(out) = &run.out {
        report.write(out);
    }
}

/// Fails on a gross loss only, since machines differ and so do hours.
pub fn check(common: &Common) -> ExitCode {
    let workloads = vec![Workload::Append1, Workload::Append8, Workload::Append64];
    let run = Run {
        common: common.clone(),
        workloads,
        rounds: 3,
        seconds: 0.7,
        scale: 1.0,
        out: None,
    };
    let report = measured(&run);
    print!("{}", report.markdown());
    let lost = report.gross_losses();
    for loss in &lost {
        println!("missed by more than half: {loss}");
    }
    if lost.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn measured(run: &Run) -> Report {
    fs::create_dir_all(&run.common.folder).expect("the folder for the stores");
    let mut report = run.out.as_deref().map(Report::read).unwrap_or_default();
    let workloads = if run.workloads.is_empty() {
        Workload::value_variants()
    } else {
        &run.workloads
    };
    for workload in workloads {
        let mut contenders: Vec<Contender> = run
            .common
            .contenders()
            .into_iter()
            .filter(|contender| takes_part(*workload, *contender))
            .collect();
        if run.rounds > 0 {
            report.begin(*workload, run.scale);
        }
        for round in 1..=run.rounds {
            // Otherwise one contender would always get the writes that the same other one left to
            // the disk.
            fastrand::Rng::with_seed(round.into()).shuffle(&mut contenders);
            for contender in &contenders {
                eprintln!(
                    "{}: round {round} of {}: {contender}",
                    workload.title(),
                    run.rounds
                );
                match one(*workload, *contender, run) {
                    Some(figures) => report.add(*workload, *contender, figures),
                    None => eprintln!("  it failed"),
                }
                pause(PAUSE);
            }
            // Written after each round, so that a run that is ended early keeps its finished
            // rounds.
            if let Some(out) = &run.out {
                report.write(out);
            }
        }
    }
    report
}

/// Returns whether a contender runs a workload.
///
/// A contender that shares barriers by itself needs no application in front, except for tasks,
/// where that may be faster. One that does not is not called from 256 threads at once.
fn takes_part(workload: Workload, contender: Contender) -> bool {
    let sustained = matches!(workload, Workload::Sustained | Workload::SustainedAgent);
    if contender == Contender::Unmerged {
        return sustained;
    }
    let grouped = contender.is_grouped_by_application();
    let finds = contender.finds() >= workload.finds();
    finds
        && match workload {
            Workload::Append1 => !grouped,
            Workload::Append8 | Workload::Append64 | Workload::Bulk8 | Workload::Bulk64 => {
                !(grouped && contender.groups())
            }
            Workload::Async256 => grouped || contender.groups(),
            Workload::Sustained
            | Workload::SustainedAgent
            | Workload::Sessions
            | Workload::Scattered => {
                grouped != contender.groups() || contender == Contender::SessionLog
            }
            Workload::Reads | Workload::Reopen | Workload::ReopenFew => {
                !grouped || !contender.groups()
            }
            Workload::Live => contender.streams(),
            Workload::Calls | Workload::Deletes | Workload::Directory => contender.is_ours(),
        }
}

fn one(workload: Workload, contender: Contender, run: &Run) -> Option<Figures> {
    let folder = tempfile::tempdir_in(&run.common.folder).expect("a folder");
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args([
        "one",
        "--store",
        &contender.to_string(),
        "--workload",
        &workload.name(),
    ]);
    command.arg("--folder").arg(folder.path());
    command.args([
        "--seconds",
        &run.seconds.to_string(),
        "--scale",
        &run.scale.to_string(),
    ]);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .expect("a process");
    let figures = output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).expect("figures are JSON"));
    settle_disk(folder.path());
    figures
}

/// The files of a run are deleted before the next begins.
fn settle_disk(folder: &Path) {
    let _removed = fs::remove_dir_all(folder);
    rustix::fs::sync();
}

impl Workload {
    pub fn name(self) -> String {
        self.to_possible_value()
            .expect("a name")
            .get_name()
            .to_owned()
    }

    /// Returns what a contender must be able to do.
    fn finds(self) -> Finds {
        match self {
            Self::Reads
            | Self::Scattered
            | Self::Reopen
            | Self::ReopenFew
            | Self::Sustained
            | Self::SustainedAgent
            | Self::Sessions => Finds::Sessions,
            _ => Finds::Nothing,
        }
    }
}
