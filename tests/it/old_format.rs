//! Logs of earlier format versions, which lie in `tests/data`: they open, and hold what they held.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use sessionlog::{Batch, Event, NewEvent, PageRequest, SessionId, SessionLog, StartAt};

use crate::support::{Access, copy_folder, feed_all, folder, note, open_for, read_all};

/// A log of version 1 as it was closed, and as it lay after the process was killed.
const LOGS: [&str; 2] = ["closed", "killed"];

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/v1")
        .join(name)
}

fn lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(name)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn session_of(line: &Value) -> SessionId {
    line["session"].as_str().unwrap().parse().unwrap()
}

/// The event as `events.jsonl` writes it.
fn written(event: &Event) -> Value {
    serde_json::json!({
        "session": event.session_id.as_str(),
        "seq": event.seq,
        "id": event.id.to_string(),
        "type": event.event_type.as_str(),
        "data": blake3::hash(&event.data).to_hex().as_str(),
        "message_id": event.message_id.map(|id| id.to_string()),
        "created_at": event.created_at.to_string(),
    })
}

fn by_session(events: &[Value]) -> BTreeMap<SessionId, Vec<Value>> {
    let mut sessions: BTreeMap<SessionId, Vec<Value>> = BTreeMap::new();
    for event in events {
        sessions
            .entry(session_of(event))
            .or_default()
            .push(event.clone());
    }
    sessions
}

/// Checks every way to read what the log held.
fn check_contents(log: &SessionLog, events: &[Value]) {
    let fed: Vec<Value> = feed_all(log).iter().map(written).collect();
    assert_eq!(fed.get(..events.len()), Some(events), "the feed");
    for (session, events) in by_session(events) {
        let read: Vec<Value> = read_all(log, &session).iter().map(written).collect();
        assert_eq!(read.get(..events.len()), Some(&*events), "{session}");
        let newest = log
            .list(&session, PageRequest::new().newest_first().limit(5))
            .unwrap();
        let last = read.last().unwrap();
        assert_eq!(written(&newest.items[0]), *last);
        let by_id = log.event(newest.items[0].id).unwrap();
        assert_eq!(written(&by_id), *last);
        assert_eq!(log.head(&session).unwrap().last, read.len() as u64);
    }
}

/// Repeats every keyed append, which must change nothing.
fn repeat_keyed(log: &SessionLog) {
    for line in lines("keys.jsonl") {
        let session = session_of(&line);
        let (first, last) = (
            line["first"].as_u64().unwrap(),
            line["last"].as_u64().unwrap(),
        );
        let page = PageRequest::new().after(first - 1).before(last + 1);
        let stored = log.list(&session, page).unwrap().items;
        let again = stored.iter().map(|event| {
            let again = NewEvent::new(event.event_type.as_str(), event.data.clone());
            event
                .message_id
                .map_or(again.clone(), |turn| again.in_turn(turn))
        });
        let batch = Batch::new()
            .events(again)
            .idempotency_key(line["key"].as_str().unwrap());
        let ack = log.append(&session, batch).unwrap();
        assert!(ack.replayed, "{session} {line}");
        assert_eq!(ack.events, stored);
    }
}

#[test]
fn a_log_of_version_1_is_read_without_writing_a_byte() {
    let events = lines("events.jsonl");
    for name in LOGS {
        let dir = folder();
        copy_folder(&data(name), dir.path());
        let log = open_for(Access::ReadOnly, sessionlog::Options::new(), dir.path()).unwrap();
        check_contents(&log, &events);
    }
}

#[test]
fn a_log_of_version_1_is_written_on() {
    let events = lines("events.jsonl");
    for name in LOGS {
        let dir = folder();
        copy_folder(&data(name), dir.path());
        let log = SessionLog::open(dir.path()).unwrap();
        assert_eq!(log.stats().events, events.len() as u64);
        check_contents(&log, &events);
        repeat_keyed(&log);
        for (session, events) in by_session(&events) {
            let ack = log.append(&session, note("new")).unwrap();
            assert_eq!(ack.first, events.len() as u64 + 1);
        }
        log.close().unwrap();
        let log = SessionLog::open(dir.path()).unwrap();
        check_contents(&log, &events);
        repeat_keyed(&log);
        let session = session_of(&events[0]);
        let streamed = log
            .stream(&session, StartAt::Beginning)
            .unwrap()
            .until_tail()
            .events();
        assert_eq!(streamed.count() as u64, log.head(&session).unwrap().last);
    }
}
