//! Reading: pages, a lookup by ID and a turn's fold, from a store of a million events in 10,000
//! sessions, most of it in segments.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops where something is wrong"
)]

mod support;

use criterion::{Criterion, Throughput};
use sessionlog::{EventId, MessageId, NewEvent, PageRequest, SessionId, SessionLog};
use support::{batch, is_test, session};

const EVENT_BYTES: usize = 256;
const PAGE: usize = 100;

/// A store, and IDs to look for in it.
struct Sample {
    log: SessionLog,
    sessions: Vec<SessionId>,
    ids: Vec<EventId>,
    turns: Vec<MessageId>,
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let sample = fill(folder.path());
    let mut turn = 0_usize;
    // The stride has no factor in common with the number of sessions, so neighbours are far apart.
    let mut next = move |count: usize| {
        turn += 7_919;
        turn % count
    };
    let mut group = criterion.benchmark_group("list");
    group.throughput(Throughput::Elements(PAGE as u64));
    group.bench_function("a page of 100 from the middle", |bencher| {
        bencher.iter(|| {
            sample
                .log
                .list(
                    &sample.sessions[next(sample.sessions.len())],
                    PageRequest::new().after(next(1) as u64),
                )
                .unwrap()
        });
    });
    group.bench_function("the newest 20", |bencher| {
        let page = || PageRequest::new().newest_first().limit(20);
        bencher.iter(|| {
            sample
                .log
                .list(&sample.sessions[next(sample.sessions.len())], page())
                .unwrap()
        });
    });
    group.bench_function("a page of 100 of one session, again and again", |bencher| {
        bencher.iter(|| {
            sample
                .log
                .list(&sample.sessions[7], PageRequest::new())
                .unwrap()
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("look up");
    group.bench_function("an event by its ID", |bencher| {
        bencher.iter(|| {
            sample
                .log
                .event(sample.ids[next(sample.ids.len())])
                .unwrap()
        });
    });
    group.bench_function("a turn of 20 events as a message", |bencher| {
        bencher.iter(|| {
            sample
                .log
                .message(sample.turns[next(sample.turns.len())])
                .unwrap()
        });
    });
    group.bench_function("the head of a session", |bencher| {
        bencher.iter(|| {
            sample
                .log
                .head(&sample.sessions[next(sample.sessions.len())])
                .unwrap()
        });
    });
    group.finish();
    criterion.final_summary();
    sample.log.close().unwrap();
}

/// Appends 100 events to each session in batches of 10, the sessions alternating, and a turn of 20
/// events to some.
fn fill(folder: &std::path::Path) -> Sample {
    let sessions = if is_test() { 100 } else { 10_000 };
    let log = SessionLog::open(folder).unwrap();
    let sessions: Vec<SessionId> = (0..sessions).map(session).collect();
    let (mut ids, mut turns) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        for part in sessions.chunks(sessions.len().div_ceil(16)) {
            let log = &log;
            scope.spawn(move || {
                for _ in 0..10 {
                    for session in part {
                        log.append(session, batch(10, EVENT_BYTES)).unwrap();
                    }
                }
            });
        }
    });
    for session in sessions.iter().step_by(10) {
        ids.extend(
            log.list(session, PageRequest::new().limit(1))
                .unwrap()
                .items
                .iter()
                .map(|event| event.id),
        );
        turns.push(append_turn(&log, session));
    }
    Sample {
        log,
        sessions,
        ids,
        turns,
    }
}

fn append_turn(log: &SessionLog, session: &SessionId) -> MessageId {
    let ack = log
        .append(
            session,
            sessionlog::Batch::new().user_message("What holds this up?"),
        )
        .unwrap();
    let message = ack.events[0].message_id.unwrap();
    let status = |status| {
        NewEvent::new(
            "message.status_changed",
            format!(r#"{{"status":"{status}"}}"#),
        )
        .in_turn(message)
    };
    let mut batch = sessionlog::Batch::new().event(status("running"));
    for call in 0..8 {
        let data = format!(r#"{{"call_id":"c{call}","output":"{}"}}"#, "x".repeat(200));
        batch = batch.event(NewEvent::new("tool.call_requested", data.clone()).in_turn(message));
        batch = batch.event(NewEvent::new("tool.call_completed", data).in_turn(message));
    }
    let said = NewEvent::new(
        "assistant.message_completed",
        r#"{"text":"A barrier, as it should."}"#,
    )
    .in_turn(message);
    log.append(session, batch.event(said).event(status("completed")))
        .unwrap();
    message
}
