//! The latency from an append's call to its delivery on a live stream, and how it grows with the
//! number of idle streams on other sessions.
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark prints its figures, and stops where something is wrong"
)]

mod support;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use sessionlog::{SessionLog, StartAt, StreamItem};
use support::{Table, batch, micros, percentile, session};

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let mut table = Table::new(&[
        "idle streams",
        "ack p50 us",
        "append to delivery p50 us",
        "p99 us",
    ]);
    for idle in [0, 1_000, 10_000] {
        let data = tempfile::tempdir_in(folder.path()).unwrap();
        let log = SessionLog::open(data.path()).unwrap();
        let streams: Vec<_> = (1..=idle)
            .map(|other| log.stream(&session(other), StartAt::Creation).unwrap())
            .collect();
        let (mut acks, mut deliveries) = (Vec::new(), Vec::new());
        criterion.bench_function(
            &format!("append to delivery, {idle} idle streams"),
            |bencher| {
                bencher.iter_custom(|events| {
                    let (took, ack, delivery) = deliver(&log, usize::try_from(events).unwrap());
                    acks.extend(ack);
                    deliveries.extend(delivery);
                    took
                });
            },
        );
        drop(streams);
        if !acks.is_empty() {
            table.row(&[
                idle.to_string(),
                format!("{:.0}", micros(percentile(&mut acks, 0.5))),
                format!("{:.0}", micros(percentile(&mut deliveries, 0.5))),
                format!("{:.0}", micros(percentile(&mut deliveries, 0.99))),
            ]);
        }
        log.close().unwrap();
    }
    criterion.final_summary();
    table.print();
}

/// Appends one event at a time while another thread reads them. Returns the total time, and the
/// latencies of the acks and of the deliveries.
fn deliver(log: &SessionLog, events: usize) -> (Duration, Vec<Duration>, Vec<Duration>) {
    let followed = session(0);
    let mut stream = log
        .stream(
            &followed,
            if log.head(&followed).is_ok() {
                StartAt::Now
            } else {
                StartAt::Creation
            },
        )
        .unwrap();
    let (ready, is_ready) = mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut seen = Vec::with_capacity(events);
            while seen.len() < events {
                match stream.next().unwrap().unwrap() {
                    StreamItem::Event(_) => seen.push(Instant::now()),
                    _ => ready.send(()).unwrap_or_default(),
                }
            }
            seen
        });
        is_ready.recv().unwrap();
        let began = Instant::now();
        let appends: Vec<_> = (0..events)
            .map(|_| {
                let began = Instant::now();
                log.append(&followed, batch(1, 512)).unwrap();
                (began, began.elapsed())
            })
            .collect();
        let took = began.elapsed();
        let seen = reader.join().unwrap();
        let deliveries = seen
            .iter()
            .zip(&appends)
            .map(|(seen, (began, _))| seen.duration_since(*began))
            .collect();
        (
            took,
            appends.iter().map(|(_, ack)| *ack).collect(),
            deliveries,
        )
    })
}
