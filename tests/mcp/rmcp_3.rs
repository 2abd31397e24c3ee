//! The stores of `rmcp`, called as its server calls them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use rmcp::model::ServerJsonRpcMessage;
use rmcp::transport::streamable_http_server::session::{
    EventStore, EventStream, ServerSseMessage, SessionState, SessionStore,
};
use serde_json::{Value, json};
use sessionlog::{Error, NewEvent, Retention, SessionId};

use crate::support::{Clocked, Place, soon};

const DAY: Duration = Duration::from_hours(24);

fn event(message: &Value) -> ServerSseMessage {
    ServerSseMessage::from_message(serde_json::from_value(message.clone()).unwrap())
}

fn progress(step: u32) -> Value {
    json!({
        "jsonrpc": "2.0",
        "method": "notifications/progress",
        "params": { "progressToken": "t", "progress": f64::from(step) },
    })
}

fn answer(text: &str) -> Value {
    json!({
        "jsonrpc": "2.0",
        "id": 7,
        "result": { "content": [{ "type": "text", "text": text }], "isError": false },
    })
}

async fn store(store: &sessionlog::mcp::Store, stream: &str, message: &Value) -> String {
    store.store_event(stream, &event(message)).await.unwrap()
}

/// Reads a replay to its end: IDs and messages.
async fn read(replay: EventStream) -> Vec<(String, Value)> {
    soon("the end of a replay", replay.map(shown).collect()).await
}

fn shown(event: ServerSseMessage) -> (String, Value) {
    (event.event_id.unwrap(), json!(event.message))
}

async fn replay(store: &sessionlog::mcp::Store, after: &str) -> EventStream {
    store.replay_events_after(after).await.unwrap()
}

async fn refusal(store: &sessionlog::mcp::Store, after: &str) -> Error {
    let Err(refused) = store.replay_events_after(after).await else {
        panic!("{after} is replayed");
    };
    refused.downcast_ref::<Error>().unwrap().clone()
}

#[tokio::test]
async fn a_replay_has_each_later_event_of_its_stream_once_also_after_a_restart() {
    let mut place = Place::new();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let written = sessionlog::mcp::Store::new(place.log.clone());
    for step in 0..5 {
        a.push((store(&written, "a", &progress(step)).await, progress(step)));
        b.push((
            store(&written, "b", &progress(10 + step)).await,
            progress(10 + step),
        ));
    }
    for (stream, events) in [("a", &mut a), ("b", &mut b)] {
        let last = answer(stream);
        events.push((store(&written, stream, &last).await, last));
    }
    place.reopen();
    let read_back = sessionlog::mcp::Store::new(place.log.clone());
    for events in [a, b] {
        for (at, (id, _)) in events.iter().enumerate() {
            let later = read(replay(&read_back, id).await).await;
            assert_eq!(later, events[at + 1..], "after {id}");
        }
    }
}

#[tokio::test]
async fn a_replay_goes_on_with_new_events_until_the_answer() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let first = store(&written, "a", &progress(0)).await;
    let mut live = replay(&written, &first).await;
    assert!(live.next().now_or_never().is_none(), "there is nothing yet");
    for step in 1..4 {
        let id = store(&written, "a", &progress(step)).await;
        let next = soon("the next event", live.next()).await.unwrap();
        assert_eq!(shown(next), (id, progress(step)));
    }
    let id = store(&written, "a", &answer("done")).await;
    assert_eq!(read(live).await, [(id.clone(), answer("done"))]);

    // Behind an answer a replay waits for nothing, and has what there is.
    assert_eq!(read(replay(&written, &id).await).await, []);
    let later = store(&written, "a", &progress(9)).await;
    let after = read(replay(&written, &id).await).await;
    assert_eq!(after, [(later, progress(9))]);
}

#[tokio::test]
async fn an_id_that_was_not_given_to_the_client_of_the_stream_is_refused() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let a = store(&written, "a", &progress(0)).await;
    let b = store(&written, "b", &progress(1)).await;
    let ((a_event, a_tag), (b_event, b_tag)) =
        (a.split_once('.').unwrap(), b.split_once('.').unwrap());
    assert_ne!(a_tag, b_tag);

    // The tag of one stream opens no other, and no session besides the streams of this store.
    let other: SessionId = "secret".parse().unwrap();
    let ack = place.log.append(&other, NewEvent::new("note", "{}"));
    let secret = ack.unwrap().events[0].id;
    let below = sessionlog::mcp::Store::new(place.log.clone()).prefix("other/");
    let elsewhere = store(&below, "a", &progress(2)).await;
    let unknown = "evt_01JQ3W8K5T0000000000000001";
    for forged in [
        format!("{a_event}.{b_tag}"),
        format!("{b_event}.{a_tag}"),
        format!("{a_event}."),
        format!("{secret}.{a_tag}"),
        format!("{unknown}.{a_tag}"),
        elsewhere,
    ] {
        let refused = refusal(&written, &forged).await;
        assert!(
            matches!(refused, Error::UnknownEvent { .. }),
            "{forged}: {refused:?}"
        );
    }
    for malformed in ["", "0", ".", a_event, "0/1", &format!(" {a}")] {
        let refused = refusal(&written, malformed).await;
        assert!(
            matches!(refused, Error::Invalid { .. }),
            "{malformed:?}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn every_kind_of_message_reads_back_as_it_was() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let messages = [
        progress(3),
        json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}),
        json!({"jsonrpc": "2.0", "method": "notifications/own", "params": {"a": [1, "\u{1f600}"]}}),
        json!({"jsonrpc": "2.0", "id": "s1", "method": "roots/list"}),
        json!({"jsonrpc": "2.0", "id": 1, "method": "ping"}),
        json!({
            "jsonrpc": "2.0",
            "method": "notifications/progress",
            "params": {"progressToken": 1, "progress": 0.5, "_meta": {"own/work": {"left": 3}}},
        }),
        json!({"jsonrpc": "2.0", "id": 2, "error": {"code": -32602, "message": "no", "data": 1}}),
        answer("\u{0}\n\"quoted\""),
        json!({
            "jsonrpc": "2.0",
            "id": 3,
            "result": {
                "content": [],
                "structuredContent": {"rows": [{"a": 1.5}]},
                "isError": true,
                "_meta": {"own/trace": "x"},
            },
        }),
        json!({"jsonrpc": "2.0", "id": 4, "result": {"own": {"nested": [true, null]}}}),
    ];
    for (number, message) in messages.iter().enumerate() {
        let stream = format!("stream-{number}");
        let sent = event(message);
        let first = store(&written, &stream, &progress(0)).await;
        let id = written.store_event(&stream, &sent).await.unwrap();
        let mut replayed = replay(&written, &first).await;
        let next = soon("the event", replayed.next()).await.unwrap();
        assert_eq!(shown(next), (id, json!(sent.message)), "{message}");
        assert_eq!(json!(sent.message), *message);
    }
}

#[tokio::test]
async fn a_time_to_reconnect_is_kept_with_and_without_a_message() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let retry = Duration::from_millis(1500);
    let first = store(&written, "a", &progress(0)).await;
    let mut with_message = event(&progress(1));
    with_message.retry = Some(retry);
    for sent in [ServerSseMessage::retry(retry), with_message] {
        written.store_event("a", &sent).await.unwrap();
    }
    let replayed: Vec<_> = soon(
        "two events",
        replay(&written, &first).await.take(2).collect(),
    )
    .await;
    assert!(replayed.iter().all(|event| event.retry == Some(retry)));
    assert!(replayed[0].message.is_none() && replayed[1].message.is_some());
}

#[tokio::test]
async fn what_a_log_cannot_hold_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let long = "x".repeat(SessionId::BYTES_MAX);
    for stream in [long.as_str(), "a\nb"] {
        assert!(
            written
                .store_event(stream, &event(&progress(0)))
                .await
                .is_err()
        );
        let state = initialized("client");
        assert!(
            SessionStore::store(&written, stream, &state).await.is_err(),
            "{stream}"
        );
        assert!(written.load(stream).await.unwrap().is_none());
        written.delete(stream).await.unwrap();
    }
    let huge = answer(&"x".repeat(2 << 20));
    assert!(written.store_event("a", &event(&huge)).await.is_err());
    assert_eq!(place.log.stats().events, 0);
}

#[tokio::test]
async fn streams_without_an_answer_are_found_after_a_restart() {
    let mut place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    store(&written, "done", &progress(0)).await;
    store(&written, "done", &answer("done")).await;
    store(&written, "cut", &progress(1)).await;
    store(&written, "cut", &progress(2)).await;
    let retry = ServerSseMessage::retry(Duration::from_secs(1));
    written.store_event("begun", &retry).await.unwrap();
    place.reopen();

    let reopened = sessionlog::mcp::Store::new(place.log.clone());
    let mut found: Vec<_> = reopened
        .unanswered()
        .unwrap()
        .into_iter()
        .map(|stream| (stream.stream_id, stream.message))
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    let expected = [
        ("begun".to_owned(), None),
        ("cut".to_owned(), Some(progress(2))),
    ];
    assert_eq!(found, expected);
    store(&reopened, "cut", &answer("done")).await;
    assert_eq!(reopened.unanswered().unwrap().len(), 1);
}

fn nested(levels: usize) -> Value {
    // The message, its result and the structured content take a level each.
    let innermost = (3..levels).fold(json!(1), |inner, _level| json!([inner]));
    json!({
        "jsonrpc": "2.0",
        "id": 1,
        "result": {"content": [], "structuredContent": {"deep": innermost}, "isError": false},
    })
}

#[tokio::test]
async fn a_message_that_could_not_be_read_back_is_refused_and_the_stream_goes_on() {
    // As deep as the client of `rmcp` reads it.
    const LEVELS_MAX: usize = 127;
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let first = store(&written, "a", &progress(0)).await;
    let ServerSseMessage { message, .. } = event(&nested(LEVELS_MAX));
    let mut deeper = message.as_deref().unwrap().clone();
    let ServerJsonRpcMessage::Response(response) = &mut deeper else {
        panic!("it is an answer");
    };
    let rmcp::model::ServerResult::CallToolResult(result) = &mut response.result else {
        panic!("it is the result of a call");
    };
    let content = result.structured_content.as_mut().unwrap();
    *content = json!({"deep": [content["deep"].take()]});
    let deeper = ServerSseMessage::from_message(deeper);
    let refused = written.store_event("a", &deeper).await.unwrap_err();
    assert!(
        matches!(refused.downcast_ref(), Some(Error::Invalid { .. })),
        "{refused}"
    );

    let deepest = store(&written, "a", &nested(LEVELS_MAX)).await;
    let replayed = read(replay(&written, &first).await).await;
    assert_eq!(replayed, [(deepest, nested(LEVELS_MAX))]);

    let innermost = (2..LEVELS_MAX).fold(json!(1), |inner, _level| json!([inner]));
    let state =
        json!({"jsonrpc": "2.0", "method": "notifications/own", "params": {"deep": innermost}});
    store(&written, "b", &state).await;
    let unanswered = written.unanswered().unwrap();
    assert_eq!(unanswered[0].message, Some(state));
}

#[tokio::test]
async fn numbers_read_back_to_the_last_bit() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let mut bits: u64 = 0x9E37_79B9_7F4A_7C15;
    let doubles = std::iter::repeat_with(|| {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f64::from_bits(bits)
    });
    let doubles: Vec<f64> = doubles
        .filter(|double| double.is_finite())
        .take(1000)
        .collect();
    let numbers = json!({
        "doubles": doubles,
        "integers": [u64::MAX, i64::MIN, 0],
    });
    let mut message = answer("done");
    message["result"]["structuredContent"] = numbers;
    let first = store(&written, "a", &progress(0)).await;
    let id = written.store_event("a", &event(&message)).await.unwrap();
    let replayed = read(replay(&written, &first).await).await;
    assert_eq!(replayed, [(id, message)]);
}

#[tokio::test]
async fn a_log_that_is_closed_ends_replays_and_refuses_calls() {
    let mut place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let first = store(&written, "a", &progress(0)).await;
    let mut live = replay(&written, &first).await;
    assert!(live.next().now_or_never().is_none(), "there is nothing yet");
    SessionStore::store(&written, "s", &initialized("client"))
        .await
        .unwrap();
    place.log.close().unwrap();
    assert_eq!(read(live).await, []);
    let refused = refusal(&written, &first).await;
    assert!(matches!(refused, Error::Closed), "{refused:?}");
    let refused = written.store_event("a", &event(&progress(1))).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(Error::Closed)));
    assert!(written.load("s").await.is_err());
    assert!(written.delete("s").await.is_err());
    assert!(written.unanswered().is_err());

    place.reopen();
    let reopened = sessionlog::mcp::Store::new(place.log.clone());
    let last = store(&reopened, "a", &answer("done")).await;
    let replayed = read(replay(&reopened, &first).await).await;
    assert_eq!(replayed, [(last, answer("done"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_that_are_stored_at_the_same_time_keep_the_order_of_their_stream() {
    const STREAMS: u32 = 8;
    const EVENTS: u32 = 50;
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let writers: Vec<_> = (0..STREAMS)
        .map(|stream| {
            let written = written.clone();
            tokio::spawn(async move {
                let name = stream.to_string();
                let mut stored = Vec::new();
                for step in 0..EVENTS {
                    let id = store(&written, &name, &progress(step)).await;
                    stored.push((id, progress(step)));
                }
                let id = store(&written, &name, &answer(&name)).await;
                stored.push((id, answer(&name)));
                stored
            })
        })
        .collect();
    let mut ids = HashSet::new();
    for writer in writers {
        let stored = writer.await.unwrap();
        let replayed = read(replay(&written, &stored[0].0).await).await;
        assert_eq!(replayed, stored[1..]);
        ids.extend(stored.into_iter().map(|(id, _message)| id));
    }
    assert_eq!(ids.len(), (STREAMS * (EVENTS + 1)) as usize);
}

fn initialized(client: &str) -> SessionState {
    let params = json!({
        "protocolVersion": "2025-06-18",
        "capabilities": {"roots": {"listChanged": true}},
        "clientInfo": {"name": client, "version": "1"},
    });
    SessionState::new(serde_json::from_value(params).unwrap())
}

#[tokio::test]
async fn a_session_is_loaded_as_it_was_stored_last() {
    let mut place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    assert!(written.load("s").await.unwrap().is_none());
    for client in ["first", "second"] {
        SessionStore::store(&written, "s", &initialized(client))
            .await
            .unwrap();
    }
    place.reopen();
    let read_back = sessionlog::mcp::Store::new(place.log.clone());
    let loaded = read_back.load("s").await.unwrap().unwrap();
    assert_eq!(json!(loaded), json!(initialized("second")));
    for _ in 0..2 {
        read_back.delete("s").await.unwrap();
        assert!(read_back.load("s").await.unwrap().is_none());
    }
    SessionStore::store(&read_back, "s", &initialized("third"))
        .await
        .unwrap();
    assert!(read_back.load("s").await.unwrap().is_some());
}

#[tokio::test]
async fn old_streams_and_sessions_are_removed_by_retention() {
    let clocked = Clocked::new();
    let log = clocked.place.log.clone();
    let written = sessionlog::mcp::Store::new(log.clone())
        .streams_kept(Retention::new().idle(DAY).max_age(DAY / 2))
        .sessions_kept(3 * DAY);
    let old = store(&written, "a", &progress(0)).await;
    SessionStore::store(&written, "s", &initialized("client"))
        .await
        .unwrap();

    // The stream goes on, so its old event goes alone.
    clocked.pass(DAY / 3).await;
    let young = store(&written, "a", &progress(1)).await;
    let live = replay(&written, &old).await.next().await.unwrap();
    assert_eq!(live.event_id, Some(young.clone()));
    clocked.pass(DAY / 3).await;
    let refused = refusal(&written, &old).await;
    assert!(matches!(refused, Error::UnknownEvent { .. }), "{refused:?}");
    drop(replay(&written, &young).await);

    let stream: SessionId = "mcp/rmcp/streams/a".parse().unwrap();
    clocked.pass(DAY / 2).await;
    assert!(log.session(&stream).is_ok());
    clocked.pass(DAY).await;
    assert!(log.session(&stream).is_err());
    assert!(written.load("s").await.unwrap().is_some());

    let session: SessionId = "mcp/rmcp/sessions/s".parse().unwrap();
    clocked.pass(DAY).await;
    assert!(log.session(&session).is_err());
    assert!(written.load("s").await.unwrap().is_none());

    // A stream that begins again after it was removed is kept as long.
    store(&written, "a", &progress(2)).await;
    clocked.pass(DAY / 2).await;
    assert!(log.session(&stream).is_ok());
    clocked.pass(DAY).await;
    assert!(log.session(&stream).is_err());
}

#[tokio::test]
async fn a_replay_of_a_stream_that_is_removed_ends() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let first = store(&written, "a", &progress(0)).await;
    let live = replay(&written, &first).await;
    let stream: SessionId = "mcp/rmcp/streams/a".parse().unwrap();
    place
        .log
        .delete(&stream, sessionlog::Delete::new())
        .unwrap();
    assert_eq!(read(live).await, []);
}

#[tokio::test]
async fn events_that_others_append_to_a_stream_and_redacted_ones_are_left_out() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    let first = store(&written, "a", &progress(0)).await;
    let stream: SessionId = "mcp/rmcp/streams/a".parse().unwrap();
    place
        .log
        .append(&stream, NewEvent::new("note", "no message"))
        .unwrap();
    let hidden = store(&written, "a", &progress(1)).await;
    let (hidden, _tag) = hidden.split_once('.').unwrap();
    place.log.redact(hidden.parse().unwrap(), "a test").unwrap();
    let last = store(&written, "a", &answer("done")).await;
    let replayed = read(replay(&written, &first).await).await;
    assert_eq!(replayed, [(last, answer("done"))]);
}

#[tokio::test]
async fn what_was_stored_is_found_below_much_that_others_have_appended() {
    let place = Place::new();
    let written = sessionlog::mcp::Store::new(place.log.clone());
    store(&written, "a", &progress(0)).await;
    SessionStore::store(&written, "s", &initialized("client"))
        .await
        .unwrap();
    for session in ["mcp/rmcp/streams/a", "mcp/rmcp/sessions/s"] {
        let session: SessionId = session.parse().unwrap();
        // More than one page of them.
        for _ in 0..20 {
            let note = NewEvent::new("note", vec![b'x'; 1 << 20]);
            place.log.append(&session, note).unwrap();
        }
    }
    assert_eq!(written.unanswered().unwrap().len(), 1);
    assert!(written.load("s").await.unwrap().is_some());
}

#[tokio::test]
async fn the_stores_are_those_of_a_server() {
    // The traits as the library takes them.
    let place = Place::new();
    let written = Arc::new(sessionlog::mcp::Store::new(place.log.clone()));
    let events: Arc<dyn EventStore> = written.clone();
    let sessions: Arc<dyn SessionStore> = written;
    let message: ServerJsonRpcMessage = serde_json::from_value(progress(0)).unwrap();
    let id = events
        .store_event("a", &ServerSseMessage::from_message(message))
        .await
        .unwrap();
    assert!(id.starts_with("evt_"));
    assert!(sessions.load("s").await.unwrap().is_none());
}
