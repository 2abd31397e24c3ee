//! How the log's figures change as its store grows: appends, pages, memory, opening.

use std::fmt::Display;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::measure::{drop_caches, micros, percentile, rss_mb};
use crate::store::{Ids, Load, Open, Store};
use crate::stores::Contender;

const SESSIONS: u32 = 10_000;
const BATCH: Load = Load { events: 16, bytes: 1_000 };
const SAMPLES: u32 = 2_000;
const GIGABYTES: [f64; 5] = [0.1, 1.0, 3.0, 10.0, 30.0];
const STRIDE: u32 = 7_919;

/// A million events in all, over so many sessions.
const SESSION_COUNTS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
const SPREAD_EVENTS: u32 = 1_000_000;
const SPREAD: Load = Load { events: 1, bytes: 256 };

/// A row of a table: how to fill a store on, before it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Row {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    sessions: u32,
    #[arg(long)]
    events: usize,
    #[arg(long)]
    bytes: usize,
    #[arg(long)]
    from: u32,
    #[arg(long)]
    to: u32,
}

/// Prints a row for each size up to `gigabytes`, and one for each number of sessions.
pub fn follow(folder: &Path, gigabytes: f64, out: Option<&Path>) {
    fs::create_dir_all(folder).expect("the folder for the stores");
    let by_size = by_size(folder, gigabytes);
    let by_sessions = by_sessions(folder);
    print!("{by_size}\n{by_sessions}");
    if let Some(out) = out {
        fs::create_dir_all(out).expect("the folder for the report");
        fs::write(out.join("growth.md"), format!("{by_size}\n{by_sessions}")).expect("the report is written");
    }
}

/// One store that grows, in ten thousand sessions.
fn by_size(folder: &Path, gigabytes: f64) -> String {
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let mut table = header("GB");
    let mut from = 0;
    for size in GIGABYTES.into_iter().filter(|size| *size <= gigabytes) {
        let to = (size * 1e9 / (BATCH.events * BATCH.bytes) as f64) as u32;
        let Load { events, bytes } = BATCH;
        add(&mut table, size, &Row { folder: folder.path().into(), sessions: SESSIONS, events, bytes, from, to });
        from = to;
    }
    table
}

/// Stores of a million events each, in ever more sessions.
fn by_sessions(folder: &Path) -> String {
    let mut table = header("sessions");
    for sessions in SESSION_COUNTS {
        let folder = tempfile::tempdir_in(folder).expect("a folder");
        let Load { events, bytes } = SPREAD;
        add(&mut table, sessions, &Row { folder: folder.path().into(), sessions, events, bytes, from: 0, to: SPREAD_EVENTS });
    }
    table
}

fn header(what: &str) -> String {
    format!(
        "| {what} | filled at events/s | append p50 us | p99 us | page of up to 100 us | opening s | RSS MB |\n|---|---|---|---|---|---|---|\n"
    )
}

/// Measures in a process of its own, whose memory is that of this store.
fn add(table: &mut String, what: impl Display, row: &Row) {
    let Row { folder, sessions, events, bytes, from, to } = row;
    let mut measure = Command::new(std::env::current_exe().expect("this program's file"));
    measure.arg("grown").arg("--folder").arg(folder);
    for (name, value) in [("sessions", u64::from(*sessions)), ("events", *events as u64), ("bytes", *bytes as u64)] {
        measure.arg(format!("--{name}={value}"));
    }
    let measured = measure.arg(format!("--from={from}")).arg(format!("--to={to}")).output().expect("the process runs");
    let row = format!("| {what} | {} |\n", String::from_utf8_lossy(&measured.stdout).trim_end());
    eprint!("{row}");
    table.push_str(&row);
}

/// Fills a store on, and prints the cells of its row.
pub fn measure(row: &Row) {
    let Row { sessions, from, to, .. } = *row;
    let load = Load { events: row.events, bytes: row.bytes };
    let open = Open { folder: &row.folder, sessions, ids: Ids::Unused };
    let store = Contender::SessionLog.open(open);
    let began = Instant::now();
    fill(&*store, sessions, load, from..to);
    let rate = f64::from(to - from) * load.events as f64 / began.elapsed().as_secs_f64();
    store.settle();
    let nth = |nth: u32| (u64::from(nth) * u64::from(STRIDE) % u64::from(sessions)) as u32;
    let mut appends = timed(|at| store.append(nth(at), SPREAD));
    store.settle();
    let page = |at| store.page(nth(at), 0, 100, &mut |_| ());
    // Read once before, so that it is not the disk that is measured.
    timed(page);
    let mut pages = timed(page);
    let rss = rss_mb();
    drop(store);
    drop_caches();
    let began = Instant::now();
    let store = Contender::SessionLog.open(open);
    let opened = began.elapsed().as_secs_f64();
    drop(store);
    let (p50, p99, page) = (percentile(&mut appends, 0.5), percentile(&mut appends, 0.99), percentile(&mut pages, 0.5));
    println!("{rate:.0} | {p50:.0} | {p99:.0} | {page:.0} | {opened:.2} | {rss:.0}");
}

fn timed(what: impl Fn(u32)) -> Vec<f64> {
    let one = |nth| {
        let began = Instant::now();
        what(nth);
        micros(began.elapsed())
    };
    (0..SAMPLES).map(one).collect()
}

fn fill(store: &dyn Store, sessions: u32, load: Load, batches: Range<u32>) {
    const WRITERS: u32 = 16;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let own = batches.clone().filter(move |batch| batch % sessions % WRITERS == writer);
            scope.spawn(move || {
                for batch in own {
                    store.append(batch % sessions, load);
                }
            });
        }
    });
}
