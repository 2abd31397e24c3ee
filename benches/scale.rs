//! Large stores, which take minutes and gigabytes, so each is run by name:
//!
//! * `cargo bench --bench scale -- sessions 1000000`: one event in each of a million sessions, then
//!   one more in each.
//! * `cargo bench --bench scale -- bytes 10 1000`: 10 gigabytes in 1,000 sessions, then opened
//!   clean, after a kill, and with the index deleted.
//! * `cargo bench --bench scale -- sustained 60`: eight threads with batches of 16 x 4 KiB for 60
//!   seconds, beside a floor that writes the same bytes a second time in the background.
//! * `cargo bench --bench scale -- burst 20`: 20 bursts that fit the journal, eight threads with
//!   batches of 16 x 4 KiB, alternating with the floor.
//! * `cargo bench --bench scale -- appends 10000 8`: 10,000 appends of one event from 8 threads, to
//!   be run under `strace -fc`.
//!
//! Each prints rates, the peak of the resident set, and the bytes that the process wrote as the
//! kernel counts them.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark prints its figures, and stops where something is wrong"
)]

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sessionlog::{PageRequest, SessionLog};
use support::{Floor, batch, is_test, micros, percentile, session};

const WRITERS: usize = 64;

/// The shape of a large batch.
const LARGE_EVENTS: usize = 16;
const LARGE_EVENT_BYTES: usize = 4096;
const LARGE_BYTES: usize = LARGE_EVENTS * LARGE_EVENT_BYTES;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let number = |at: usize, default: usize| {
        arguments
            .get(at)
            .map_or(default, |text| text.parse().unwrap())
    };
    let base =
        std::env::var_os("SESSION_LOG_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(base).unwrap();
    match arguments.first().map(String::as_str) {
        _ if is_test() => {
            sessions(folder.path(), 200);
            sustained(folder.path(), Duration::from_millis(100));
        }
        Some("sessions") => sessions(folder.path(), number(1, 1_000_000)),
        Some("bytes") => bytes(folder.path(), number(1, 10), number(2, 1_000)),
        Some("appends") => appends(folder.path(), number(1, 10_000), number(2, 1)),
        Some("burst") => burst(folder.path(), number(1, 20)),
        Some("sustained") => sustained(folder.path(), Duration::from_secs(number(1, 60) as u64)),
        _ => println!(
            "name one of: sessions COUNT, bytes GIGABYTES SESSIONS, appends COUNT THREADS, \
             burst ROUNDS, sustained SECONDS"
        ),
    }
}

fn sessions(folder: &Path, count: usize) {
    let log = SessionLog::open(folder.join("sessions")).unwrap();
    for pass in ["first", "second"] {
        let began = Instant::now();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    while let Some(at) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < count)
                    {
                        log.append(&session(at), batch(1, 256)).unwrap();
                    }
                });
            }
        });
        report(
            &format!("{pass} event in each of {count} sessions"),
            count,
            began.elapsed(),
        );
        println!("  {:?}", log.stats());
    }
    settle(&log);
    let mut reads: Vec<_> = (0..count.min(10_000))
        .map(|at| {
            let began = Instant::now();
            assert_eq!(
                log.list(&session(at * 7_919 % count), PageRequest::new())
                    .unwrap()
                    .items
                    .len(),
                2
            );
            began.elapsed()
        })
        .collect();
    println!(
        "a page of two events: p50 {:.0} us, p99 {:.0} us",
        micros(percentile(&mut reads, 0.5)),
        micros(percentile(&mut reads, 0.99))
    );
    let began = Instant::now();
    let events = log
        .feed()
        .unwrap()
        .until_tail()
        .events()
        .map(Result::unwrap)
        .count();
    println!(
        "the feed of {events} events: {:.0} events/s",
        events as f64 / began.elapsed().as_secs_f64()
    );
    log.close().unwrap();
    println!("  {}", process());
}

fn appends(folder: &Path, count: usize, threads: usize) {
    let log = SessionLog::open(folder.join("appends")).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let log = &log;
            scope.spawn(move || {
                for _ in 0..count / threads {
                    log.append(&session(thread), batch(1, 512)).unwrap();
                }
            });
        }
    });
    report(
        &format!("{count} appends from {threads} threads"),
        count,
        began.elapsed(),
    );
    println!("  {:?}", log.stats());
    log.close().unwrap();
}

fn bytes(folder: &Path, gigabytes: usize, sessions: usize) {
    let path = folder.join("bytes");
    let log = SessionLog::open(&path).unwrap();
    let batches = gigabytes * 1_000_000_000 / 16_000;
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(at) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < batches)
                {
                    log.append(&session(at % sessions), batch(16, 1_000))
                        .unwrap();
                }
            });
        }
    });
    report(
        &format!("{gigabytes} GB in {sessions} sessions, batches of 16 x 1,000 B"),
        batches,
        began.elapsed(),
    );
    settle(&log);
    println!("  {}", process());
    log.close().unwrap();
    drop(log);
    open(&path, "clean");
    drop(SessionLog::open(&path).unwrap());
    open(&path, "not closed");
    std::fs::remove_dir_all(path.join("index")).unwrap();
    open(&path, "index deleted");
    println!("  {}", process());
}

fn open(path: &Path, how: &str) {
    let began = Instant::now();
    let log = SessionLog::open(path).unwrap();
    let opened = began.elapsed();
    let page = log
        .list(&session(3), PageRequest::new().newest_first())
        .unwrap();
    println!(
        "open, {how}: {opened:?}; with a page of {} events: {:?}; {:?}",
        page.items.len(),
        began.elapsed(),
        log.stats().recovery
    );
    drop(log);
}

/// Waits until the index has everything.
fn settle(log: &SessionLog) {
    let began = Instant::now();
    while log.stats().index_lag > 0 {
        std::thread::yield_now();
    }
    println!("  the index was done {:?} later", began.elapsed());
}

/// Bytes of data in a burst: less than a full-grown journal file takes before sealing starts.
const BURST_BYTES: usize = 40 << 20;

fn burst(folder: &Path, rounds: usize) {
    let log = SessionLog::open(folder.join("burst")).unwrap();
    let batches = BURST_BYTES / 8 / LARGE_BYTES;
    let mut ratios = Vec::new();
    for round in 0..rounds + 4 {
        let before = log.stats();
        let began = Instant::now();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let log = &log;
                scope.spawn(move || {
                    (0..batches)
                        .for_each(|_| drop(log.append(&session(writer), large_batch()).unwrap()));
                });
            }
        });
        let took = began.elapsed();
        let after = log.stats();
        let groups = after.groups - before.groups;
        let group_bytes =
            usize::try_from((after.journal_bytes - before.journal_bytes) / groups).unwrap();
        let mut floor = Floor::new(folder, 64 << 20, group_bytes);
        let floor_took: Duration = (0..groups).map(|_| floor.write(group_bytes)).sum();
        let in_barriers = after
            .barrier_time
            .saturating_sub(before.barrier_time)
            .as_secs_f64()
            / took.as_secs_f64();
        // The first rounds let the journal grow to its full size.
        if round >= 4 {
            println!(
                "{groups} groups of {group_bytes} B in {took:?}, \
                 {in_barriers:.2} of it in barriers; floor {floor_took:?}"
            );
            ratios.push(floor_took.as_secs_f64() / took.as_secs_f64());
        }
        let _sealed = when_sealed(&log);
    }
    ratios.sort_unstable_by(f64::total_cmp);
    println!(
        "the log reaches {:.2} of the floor, the median of {rounds} bursts",
        ratios[ratios.len() / 2]
    );
    log.close().unwrap();
}

/// Waits until the log is idle and has sealed what is worth it. Returns the time of that.
fn when_sealed(log: &SessionLog) -> Instant {
    let (mut recent, mut since) = (log.stats().recent_bytes, Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
        std::thread::yield_now();
        let now = log.stats().recent_bytes;
        if std::mem::replace(&mut recent, now) != now {
            since = Instant::now();
        }
    }
    since
}

/// Runs the log and the floor alternately, so that a change of the machine's speed affects both. A
/// round of the log lasts until all is sealed.
fn sustained(folder: &Path, time: Duration) {
    let turn = Duration::from_secs(20).min(time);
    let turns = u32::try_from(time.as_millis().div_ceil(turn.as_millis())).unwrap();
    let log = SessionLog::open(folder.join("sustained")).unwrap();
    let (mut acks, mut took, mut bytes, mut floor_rates) = (Vec::new(), Duration::ZERO, 0, 0.0);
    for _ in 0..turns {
        let (before, written_before, began) = (log.stats(), written(), Instant::now());
        acks.extend(append_for(&log, turn));
        took += when_sealed(&log) - began;
        bytes += written() - written_before;
        let after = log.stats();
        let group_bytes =
            (after.journal_bytes - before.journal_bytes) / (after.groups - before.groups);
        floor_rates += floor_twice(folder, usize::try_from(group_bytes).unwrap(), turn);
    }
    let (payload, stats) = (acks.len() * LARGE_BYTES, log.stats());
    println!(
        "{} batches of {LARGE_EVENTS} x {LARGE_EVENT_BYTES} B in {took:?}: {:.1} MB/s; \
         ack p50 {:.0} us, p99 {:.0} us, max {:.0} us",
        acks.len(),
        payload as f64 / took.as_secs_f64() / 1e6,
        micros(percentile(&mut acks, 0.5)),
        micros(percentile(&mut acks, 0.99)),
        micros(percentile(&mut acks, 1.0))
    );
    println!(
        "  {} groups of {} B; {:.2} bytes written for a byte of data, \
         {:.2} without a block a group; {}",
        stats.groups,
        stats.journal_bytes / stats.groups,
        bytes as f64 / payload as f64,
        (bytes - stats.groups * 4096) as f64 / payload as f64,
        process()
    );
    let (rate, floor_rate) = (
        stats.journal_bytes as f64 / took.as_secs_f64(),
        floor_rates / f64::from(turns),
    );
    println!(
        "  the floor, the same groups written twice: {:.1} MB/s; \
         the log's journal reaches {:.2} of it",
        floor_rate / 1e6,
        rate / floor_rate
    );
    log.close().unwrap();
}

/// Appends large batches from eight threads. Returns the duration of each append.
fn append_for(log: &SessionLog, time: Duration) -> Vec<Duration> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                scope.spawn(move || {
                    let mut acks = Vec::new();
                    while began.elapsed() < time {
                        let batch = large_batch();
                        let append = Instant::now();
                        log.append(&session(writer * 100 + acks.len() % 100), batch)
                            .unwrap();
                        acks.push(append.elapsed());
                    }
                    acks
                })
            })
            .collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect()
    })
}

fn large_batch() -> sessionlog::Batch {
    batch(LARGE_EVENTS, LARGE_EVENT_BYTES)
}

/// Returns the bytes per second of a floor that also writes everything a second time, in the
/// background.
fn floor_twice(folder: &Path, group_bytes: usize, time: Duration) -> f64 {
    let mut floor = Floor::new(folder, 64 << 20, group_bytes);
    let mut again = Floor::new(folder, 63 << 20, 1 << 20);
    let (sender, receiver) = std::sync::mpsc::sync_channel(256);
    let began = Instant::now();
    let mut floor_bytes = 0;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut due = 0;
            for bytes in receiver {
                due += bytes;
                while due >= 1 << 20 {
                    again.write(1 << 20);
                    due -= 1 << 20;
                }
            }
        });
        while began.elapsed() < time {
            floor.write(group_bytes);
            floor_bytes += group_bytes;
            sender.send(group_bytes).unwrap();
        }
        drop(sender);
    });
    floor_bytes as f64 / began.elapsed().as_secs_f64()
}

fn report(what: &str, operations: usize, took: Duration) {
    println!(
        "{what}: {took:?}, {:.0} appends/s; {}",
        operations as f64 / took.as_secs_f64(),
        process()
    );
}

fn process() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap_or("VmHWM: unknown")
        .to_owned();
    format!("{peak}, {} MB written", written() / 1_000_000)
}

/// Returns the bytes that this process caused to be written to disks.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}
