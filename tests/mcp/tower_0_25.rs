//! The stores of `tower-mcp`, under its own suite of contracts.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::json;
use sessionlog::{NewEvent, Retention, SessionId, mcp};
use tower_mcp::event_store::{EventRecord, EventStore};
use tower_mcp::protocol::ClientCapabilities;
use tower_mcp::session_store::{SessionRecord, SessionStore};
use tower_mcp::testing::store_contracts::{event_store_contract, session_store_contract};

use crate::support::{Clocked, Place};

const DAY: Duration = Duration::from_hours(24);

/// Makes stores of empty logs, and keeps these.
#[derive(Default)]
struct Places(RefCell<Vec<Place>>);

impl Places {
    fn store(&self) -> mcp::Store {
        let place = Place::new();
        let store = mcp::Store::new(place.log.clone());
        self.0.borrow_mut().push(place);
        store
    }
}

#[tokio::test]
async fn the_event_store_fulfils_the_contract() {
    let places = Places::default();
    event_store_contract(|| places.store()).await;
    assert!(!places.0.borrow().is_empty());
}

#[tokio::test]
async fn the_session_store_fulfils_the_contract() {
    let places = Places::default();
    session_store_contract(|| places.store()).await;
    assert!(!places.0.borrow().is_empty());
}

async fn ids_after(store: &mcp::Store, session: &str, after: u64) -> Vec<u64> {
    let events = store.replay_after(session, after).await.unwrap();
    events.iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn events_and_sessions_outlive_a_restart() {
    let mut place = Place::new();
    let store = mcp::Store::new(place.log.clone());
    let mut record = SessionRecord::new("s", "2025-11-25", DAY);
    store.create(&mut record).await.unwrap();
    let event = EventRecord::new(1, "one");
    EventStore::append(&store, "s", event.clone())
        .await
        .unwrap();
    place.reopen();

    let store = mcp::Store::new(place.log.clone());
    let loaded = store.load("s").await.unwrap().unwrap();
    assert_eq!(
        (loaded.created_at, loaded.expires_at),
        (record.created_at, record.expires_at)
    );
    let replayed = store.replay_after("s", 0).await.unwrap();
    assert_eq!(replayed.len(), 1);
    assert_eq!(
        (replayed[0].data.as_str(), replayed[0].timestamp),
        ("one", event.timestamp)
    );
}

#[tokio::test]
async fn events_that_streams_of_a_session_store_out_of_order_are_all_replayed() {
    let place = Place::new();
    let store = mcp::Store::new(place.log.clone());
    for id in (1..=150).flat_map(|pair| [2 * pair, 2 * pair - 1]) {
        let event = EventRecord::new(id, format!("event-{id}"));
        EventStore::append(&store, "s", event).await.unwrap();
    }
    // Those of others are none of the session.
    let session: SessionId = "mcp/tower/events/s".parse().unwrap();
    place
        .log
        .append(&session, NewEvent::new("note", "none"))
        .unwrap();
    for after in [0, 1, 150, 299] {
        let expected: Vec<u64> = (after + 1..=300).collect();
        assert_eq!(ids_after(&store, "s", after).await, expected);
    }
}

#[tokio::test]
async fn a_name_that_no_log_holds_is_refused_to_writers_and_empty_to_readers() {
    let place = Place::new();
    let store = mcp::Store::new(place.log.clone());
    let long = "x".repeat(SessionId::BYTES_MAX);
    for name in [long.as_str(), "a\u{7}"] {
        assert!(
            EventStore::append(&store, name, EventRecord::new(1, "x"))
                .await
                .is_err()
        );
        let mut record = SessionRecord::new(name, "2025-11-25", DAY);
        assert!(store.create(&mut record).await.is_err());
        assert_eq!(record.id, name, "a record that is refused stays as it was");
        assert!(store.save(&record).await.is_err());
        assert!(store.load(name).await.unwrap().is_none());
        assert!(ids_after(&store, name, 0).await.is_empty());
        store.purge_session(name).await.unwrap();
        SessionStore::delete(&store, name).await.unwrap();
    }
    assert_eq!(place.log.stats().events, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_is_purged_while_it_records_loses_no_later_event() {
    let place = Place::new();
    let store = mcp::Store::new(place.log.clone());
    let recorder = {
        let store = store.clone();
        tokio::spawn(async move {
            for id in 1..=200 {
                let event = EventRecord::new(id, "x");
                EventStore::append(&store, "s", event).await.unwrap();
            }
        })
    };
    while !recorder.is_finished() {
        store.purge_session("s").await.unwrap();
        // What came since is there without a gap.
        let kept = ids_after(&store, "s", 0).await;
        assert!(
            kept.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{kept:?}"
        );
    }
    recorder.await.unwrap();
    store.purge_session("s").await.unwrap();
    assert!(ids_after(&store, "s", 0).await.is_empty());
    let event = EventRecord::new(201, "x");
    EventStore::append(&store, "s", event).await.unwrap();
    assert_eq!(ids_after(&store, "s", 0).await, [201]);
}

#[tokio::test]
async fn an_event_that_is_too_large_is_refused_and_the_others_are_replayed() {
    let place = Place::new();
    let store = mcp::Store::new(place.log.clone());
    let huge = "x".repeat(2 << 20);
    for (id, data) in [(1, "one"), (2, huge.as_str()), (3, "three")] {
        let stored = EventStore::append(&store, "s", EventRecord::new(id, data)).await;
        assert_eq!(stored.is_ok(), id != 2, "{id}");
    }
    assert_eq!(ids_after(&store, "s", 0).await, [1, 3]);
}

#[tokio::test]
async fn numbers_of_a_record_read_back_to_the_last_bit() {
    let place = Place::new();
    let store = mcp::Store::new(place.log.clone());
    let number = json!(-5.952_533_874_188_485e196);
    let mut record = SessionRecord::new("s", "2025-11-25", DAY);
    record.client_capabilities = Some(ClientCapabilities {
        experimental: Some([("own".to_owned(), number.clone())].into()),
        ..ClientCapabilities::default()
    });
    store.save(&record).await.unwrap();
    let capabilities = store.load("s").await.unwrap().unwrap().client_capabilities;
    let experimental = capabilities.unwrap().experimental.unwrap();
    assert_eq!(experimental["own"], number);
}

#[tokio::test]
async fn old_events_and_expired_records_leave_the_log() {
    let clocked = Clocked::new();
    let log = clocked.place.log.clone();
    let store = mcp::Store::new(log.clone()).streams_kept(Retention::new().idle(DAY));
    let mut record = SessionRecord::new("s", "2025-11-25", 2 * DAY);
    store.create(&mut record).await.unwrap();
    store.save(&record).await.unwrap();
    EventStore::append(&store, "s", EventRecord::new(1, "x"))
        .await
        .unwrap();
    let kept: SessionId = "mcp/tower/sessions/s".parse().unwrap();
    let events: SessionId = "mcp/tower/events/s".parse().unwrap();
    clocked.pass(DAY / 2).await;
    assert_eq!(log.session(&kept).unwrap().events, 1, "the newest record");
    assert_eq!(ids_after(&store, "s", 0).await, [1]);
    clocked.pass(DAY).await;
    assert!(log.session(&events).is_err());
    assert!(store.load("s").await.unwrap().is_some());
    clocked.pass(DAY).await;
    assert!(log.session(&kept).is_err());
}
