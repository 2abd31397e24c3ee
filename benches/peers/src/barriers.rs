//! The proof that all stores give the same guarantee: what a commit waits for, counted in a trace
//! of system calls.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Common;
use crate::store::{Ids, Load, Open};
use crate::stores::Contender;

/// Large enough that the work of opening is small in comparison. It is also subtracted.
const COUNT: u32 = 200;
const EVENTS: usize = 4;

/// The names of the calls. A write to a file opened to be synchronous is a barrier as well.
type Counts = BTreeMap<&'static str, f64>;

const BARRIERS: [&str; 4] = ["fdatasync", "fsync", "msync", "sync_file_range"];

pub fn count(common: &Common) {
    fs::create_dir_all(&common.folder).expect("the folder for the stores");
    println!("| store | setting | a commit waits for |");
    println!("|---|---|---|");
    for contender in common
        .contenders()
        .into_iter()
        .filter(|contender| !contender.is_grouped_by_application())
    {
        let (few, many) = (
            traced(contender, &common.folder, 0),
            traced(contender, &common.folder, COUNT),
        );
        let mut found: Vec<String> = many
            .iter()
            .map(|(call, count)| {
                (
                    call,
                    (count - few.get(call).unwrap_or(&0.0)) / f64::from(COUNT),
                )
            })
            .filter(|(_, a_commit)| *a_commit > 0.005)
            .map(|(call, a_commit)| format!("{a_commit:.2} {call}"))
            .collect();
        if found.is_empty() {
            found.push("nothing".into());
        }
        println!(
            "| {contender} | {} | {} |",
            contender.setting(),
            found.join(", ")
        );
    }
}

fn traced(contender: Contender, folder: &Path, count: u32) -> Counts {
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let (trace, store) = (folder.path().join("trace"), folder.path().join("store"));
    fs::create_dir(&store).expect("a folder");
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-y",
            "-e",
            "trace=openat,pwrite64,pwritev,write,fdatasync,fsync,msync,sync_file_range",
            "-o",
        ])
        .arg(&trace);
    command
        .arg(std::env::current_exe().expect("a program"))
        .args(["appends", "--store", &contender.to_string()]);
    command.arg("--folder").arg(&store).args([
        "--count",
        &count.to_string(),
        "--events",
        &EVENTS.to_string(),
    ]);
    let status = command.stdout(Stdio::null()).status().expect("strace runs");
    assert!(status.success(), "{contender} ended with {status}");
    counted(&fs::read_to_string(&trace).expect("a trace"))
}

fn counted(trace: &str) -> Counts {
    let mut synchronous = BTreeSet::new();
    let mut counts = Counts::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let name = call.split(['(', ' ']).next().unwrap_or_default();
        // `openat(..., O_DSYNC) = 5</the/file>`, and `pwrite64(5</the/file>, ...`.
        if name == "openat" && call.contains("SYNC") {
            synchronous.extend(
                call.rsplit_once('<')
                    .map(|(_, file)| file.trim_end_matches('>').to_owned()),
            );
        } else if let Some(barrier) = BARRIERS.iter().find(|barrier| **barrier == name) {
            *counts.entry(*barrier).or_default() += 1.0;
        } else if call
            .split(['<', '>'])
            .nth(1)
            .is_some_and(|file| synchronous.contains(file))
        {
            *counts.entry("write with O_DSYNC").or_default() += 1.0;
        }
    }
    counts
}

/// The traced work: one writer's batches.
pub fn append(contender: Contender, folder: &Path, count: u32, events: usize) {
    let store = contender.open(Open {
        folder,
        sessions: 1,
        ids: Ids::Unused,
    });
    for _ in 0..count {
        store.append(0, Load::noise(events, 256));
    }
}
