//! Opening a log, after a clean stop and after a crash: a small one, and one with a few hundred
//! megabytes in segments.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark stops where something is wrong"
)]

mod support;

use criterion::{BatchSize, Criterion};
use sessionlog::SessionLog;
use support::{batch, is_test, session};

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let large = if is_test() { 8 } else { 512 };
    let mut group = criterion.benchmark_group("open");
    for (name, megabytes) in [
        ("an empty log".to_owned(), 0),
        (format!("{large} MB"), large),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path(), megabytes);
        group.bench_function(format!("{name}, after a clean stop"), |bencher| {
            bencher.iter_batched(
                || (),
                |()| SessionLog::open(folder.path()).unwrap().close().unwrap(),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("{name}, dropped without one"), |bencher| {
            bencher.iter_batched(
                || (),
                |()| drop(SessionLog::open(folder.path()).unwrap()),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
    criterion.final_summary();
}

fn fill(folder: &std::path::Path, megabytes: usize) {
    let log = SessionLog::open(folder).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let log = &log;
            scope.spawn(move || {
                for round in 0..megabytes * 1_000 / 8 / 16 {
                    log.append(&session(writer * 1_000 + round % 100), batch(16, 1_000))
                        .unwrap();
                }
            });
        }
    });
    log.close().unwrap();
}
