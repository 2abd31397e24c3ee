//! How the log's figures change as its store grows: appends, pages, memory, opening.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::measure::{drop_caches, micros, peak_rss_mb, percentile};
use crate::store::{Ids, Load, Open, Store};
use crate::stores::Contender;

const SESSIONS: u32 = 10_000;
const BATCH: Load = Load { events: 16, bytes: 1_000 };
const SAMPLES: u32 = 2_000;
const GIGABYTES: [f64; 5] = [0.1, 1.0, 3.0, 10.0, 30.0];
const STRIDE: u32 = 7_919;

/// Prints a row for each size up to `gigabytes`.
pub fn follow(folder: &Path, gigabytes: f64, out: Option<&Path>) {
    fs::create_dir_all(folder).expect("the folder for the stores");
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let open = Open { folder: folder.path(), sessions: SESSIONS, ids: Ids::Unused };
    let mut table =
        "| GB | append p50 us | p99 us | page of up to 100 warm us | opening s | peak RSS MB |\n|---|---|---|---|---|---|\n"
            .to_owned();
    let mut written = 0;
    for size in GIGABYTES.into_iter().filter(|size| *size <= gigabytes) {
        let store = Contender::SessionLog.open(open);
        let batches = (size * 1e9 / (BATCH.events * BATCH.bytes) as f64) as u32;
        fill(&*store, written..batches);
        written = batches;
        store.settle();
        let mut appends = timed(|nth| store.append(nth * STRIDE % SESSIONS, Load { events: 1, bytes: 256 }));
        store.settle();
        let mut pages = timed(|nth| store.page(nth * STRIDE % SESSIONS, 0, 100, &mut |_| ()));
        drop(store);
        drop_caches();
        let began = Instant::now();
        let store = Contender::SessionLog.open(open);
        let opened = began.elapsed().as_secs_f64();
        drop(store);
        let row = format!(
            "| {size} | {:.0} | {:.0} | {:.0} | {opened:.2} | {:.0} |\n",
            percentile(&mut appends, 0.5),
            percentile(&mut appends, 0.99),
            percentile(&mut pages, 0.5),
            peak_rss_mb()
        );
        eprint!("{row}");
        write!(table, "{row}").expect("text takes text");
    }
    print!("{table}");
    if let Some(out) = out {
        fs::create_dir_all(out).expect("the folder for the report");
        fs::write(out.join("growth.md"), table).expect("the report is written");
    }
}

fn timed(what: impl Fn(u32)) -> Vec<f64> {
    let one = |nth| {
        let began = Instant::now();
        what(nth);
        micros(began.elapsed())
    };
    (0..SAMPLES).map(one).collect()
}

fn fill(store: &dyn Store, batches: std::ops::Range<u32>) {
    const WRITERS: u32 = 16;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let own = batches.clone().filter(move |batch| batch % SESSIONS % WRITERS == writer);
            scope.spawn(move || {
                for batch in own {
                    store.append(batch % SESSIONS, BATCH);
                }
            });
        }
    });
}
