//! Durable appends, each measured beside the floor of the same run: the same bytes written to a
//! pre-written file, with one barrier per group.
//!
//! Rounds of the log and of the floor alternate, so that a change of the machine's speed affects
//! both.
#![expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a benchmark prints its figures, and stops where something is wrong"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use sessionlog::SessionLog;
use support::{Floor, Table, batch, is_test, micros, percentile, session};

const EVENT_BYTES: usize = 512;

/// A way of appending.
#[derive(Clone, Copy)]
struct Case {
    callers: usize,
    events: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Blocking,
    Async,
}

/// The results of the rounds of one case.
#[derive(Default)]
struct Measured {
    acks: Vec<Duration>,
    floor_writes: Vec<Duration>,
    took: Duration,
    floor_took: Duration,
    batches: u64,
    groups: u64,
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let mut table = Table::new(&[
        "append",
        "batches/s",
        "events/s",
        "MB/s",
        "ack p50 us",
        "p99 us",
        "batches a group",
        "floor p50 us",
        "of the floor's rate",
    ]);
    for kind in [Kind::Blocking, Kind::Async] {
        for callers in [1, 8, 64] {
            for events in [1, 10, 100] {
                let case = Case {
                    callers,
                    events,
                    kind,
                };
                let measured = bench(&mut criterion, &runtime, folder.path(), case);
                if measured.batches > 0 {
                    table.row(&row(case, measured));
                }
            }
        }
    }
    criterion.final_summary();
    table.print();
}

fn bench(
    criterion: &mut Criterion,
    runtime: &tokio::runtime::Runtime,
    folder: &std::path::Path,
    case: Case,
) -> Measured {
    let data = tempfile::tempdir_in(folder).unwrap();
    let log = SessionLog::open(data.path()).unwrap();
    let mut floor = Floor::new(data.path(), 64 << 20, 8 << 20);
    let mut measured = Measured::default();
    let mut group = criterion.benchmark_group("append");
    group.throughput(Throughput::Elements(case.events as u64));
    group.bench_function(name(case), |bencher| {
        bencher.iter_custom(|batches| {
            let before = log.stats();
            let batches = usize::try_from(batches).unwrap().max(case.callers);
            let began = Instant::now();
            let acks = match case.kind {
                Kind::Blocking => blocking(&log, case, batches),
                Kind::Async => runtime.block_on(asynchronous(&log, case, batches)),
            };
            let took = began.elapsed();
            let after = log.stats();
            let groups = after.groups - before.groups;
            let group_bytes =
                usize::try_from((after.journal_bytes - before.journal_bytes) / groups).unwrap();
            let writes: Vec<_> = (0..groups).map(|_| floor.write(group_bytes)).collect();
            measured.floor_took += writes.iter().sum::<Duration>();
            measured.floor_writes.extend(writes);
            measured.acks.extend(acks);
            measured.took += took;
            measured.batches += after.batches - before.batches;
            measured.groups += groups;
            took
        });
    });
    group.finish();
    log.close().unwrap();
    measured
}

fn blocking(log: &SessionLog, case: Case, batches: usize) -> Vec<Duration> {
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..case.callers)
            .map(|caller| {
                scope.spawn(move || {
                    let session = session(caller);
                    (0..batches / case.callers)
                        .map(|_| {
                            let batch = batch(case.events, EVENT_BYTES);
                            let began = Instant::now();
                            log.append(&session, batch).unwrap();
                            began.elapsed()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        callers
            .into_iter()
            .flat_map(|caller| caller.join().unwrap())
            .collect()
    })
}

async fn asynchronous(log: &SessionLog, case: Case, batches: usize) -> Vec<Duration> {
    let log = Arc::new(log.clone());
    let callers: Vec<_> = (0..case.callers)
        .map(|caller| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let session = session(caller);
                let mut acks = Vec::new();
                for _ in 0..batches / case.callers {
                    let batch = batch(case.events, EVENT_BYTES);
                    let began = Instant::now();
                    log.append_async(&session, batch).await.unwrap();
                    acks.push(began.elapsed());
                }
                acks
            })
        })
        .collect();
    let mut acks = Vec::new();
    for caller in callers {
        acks.extend(caller.await.unwrap());
    }
    acks
}

fn name(case: Case) -> String {
    let (caller, kind) = match case.kind {
        Kind::Blocking => ("threads", "blocking"),
        Kind::Async => ("tasks", "async"),
    };
    format!(
        "{kind}, {} {caller}, {} x {EVENT_BYTES} B",
        case.callers, case.events
    )
}

fn row(case: Case, mut measured: Measured) -> Vec<String> {
    let seconds = measured.took.as_secs_f64();
    let rate = measured.batches as f64 / seconds;
    let floor_rate = measured.batches as f64 / measured.floor_took.as_secs_f64();
    let events = rate * case.events as f64;
    let note = if is_test() { " (test run)" } else { "" };
    vec![
        name(case) + note,
        format!("{rate:.0}"),
        format!("{events:.0}"),
        format!("{:.1}", events * EVENT_BYTES as f64 / 1e6),
        format!("{:.0}", micros(percentile(&mut measured.acks, 0.5))),
        format!("{:.0}", micros(percentile(&mut measured.acks, 0.99))),
        format!("{:.1}", measured.batches as f64 / measured.groups as f64),
        format!("{:.0}", micros(percentile(&mut measured.floor_writes, 0.5))),
        format!("{:.2}", rate / floor_rate),
    ]
}
