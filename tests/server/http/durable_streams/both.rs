//! A stream is a session: each protocol shows what was appended by the other.

use axum::body::Body;
use axum::http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{Fork, NewEvent, Options, SessionId, SessionLog, repair, transfer};
use tower::ServiceExt;

use crate::durable_streams::{CLOSE, Ds, Headers, JSON, TEXT, header, is};
use crate::engine::on_postgres;

async fn json_of(ds: &Ds, path: &str) -> Value {
    serde_json::from_str(&ds.text(path).await).unwrap()
}

/// The events of a session by the HTTP API, as type and data.
async fn events(ds: &Ds, session: &str) -> Vec<(String, Value)> {
    let page = ds.get(&format!("/v1/sessions/{session}/events")).await.ok();
    let events = page["events"].as_array().unwrap().iter();
    events
        .map(|event| {
            (
                event["type"].as_str().unwrap().to_owned(),
                event["data"].clone(),
            )
        })
        .collect()
}

#[tokio::test]
async fn messages_that_have_the_form_of_events_read_as_a_turn() {
    let ds = Ds::open();
    is(ds.put("/ds/chat", &[JSON], "").await, 201);
    let said = json!({"type": "user.message", "content": [{"type": "text", "text": "6 x 7?"}]});
    is(ds.post("/ds/chat", &[JSON], said.to_string()).await, 204);
    let page = ds.get("/v1/sessions/ds%2Fchat/events").await.ok();
    let turn = page["events"][0]["message_id"].as_str().unwrap().to_owned();
    let answer = json!([
        {"type": "assistant.message_completed", "data": {"text": "42"}, "message_id": turn},
        {"message_id": turn, "data": {"status": "completed"}, "type": "message.status_changed"},
    ]);
    is(ds.post("/ds/chat", &[JSON], answer.to_string()).await, 204);
    let message = ds.get(&format!("/v1/messages/{turn}")).await.ok();
    assert_eq!(message["status"], "completed", "{message}");
    assert_eq!(message["output"][0]["text"], "42");
    assert_eq!(message["content"], said["content"]);
    // The stream shows what was sent.
    assert_eq!(
        json_of(&ds, "/ds/chat").await,
        json!([said, answer[0], answer[1]])
    );
    let sessions = ds.get("/v1/sessions").await.ok();
    assert_eq!(sessions["sessions"][0]["id"], "ds/chat");
}

#[tokio::test]
async fn any_json_message_reads_back_as_it_was_sent() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[JSON], "").await, 201);
    let long = "t".repeat(200);
    let messages = json!([
        null, true, 1.5, -0, 12_345_678_901_234_567_890_u64, "text", "", [], [[1], {}], {},
        {"type": "note", "data": 1},
        {"data": {"b": 1, "a": [2]}, "type": "note"},
        {"type": "note"},
        {"type": "note", "data": 1, "more": 2},
        {"type": "", "data": 1},
        {"type": "a\nb", "data": 1},
        {"type": long, "data": 1},
        {"type": 7, "data": 1},
        {"type": "note", "data": 1, "message_id": "msg_01JQ3W8K5T0000000000000001"},
        {"type": "note", "data": 1, "message_id": "msg_01jq3w8k5t0000000000000001"},
        {"type": "note", "data": 1, "message_id": "none"},
        {"type": "stream.message", "data": 1},
        {"type": "stream.bytes", "data": 1},
        {"type": "user.message", "content": []},
        {"type": "user.message", "content": [], "metadata": {}},
        {"type": "user.message", "content": [], "metadata": {"a": 1}},
        {"type": "user.message", "content": [], "metadata": null},
        {"type": "user.message", "content": "text"},
        {"type": "user.message", "data": {"content": []}},
    ]);
    is(ds.post("/ds/a", &[JSON], messages.to_string()).await, 204);
    for message in messages.as_array().unwrap() {
        is(
            ds.post("/ds/a", &[JSON], json!([message]).to_string())
                .await,
            204,
        );
    }
    let twice = [
        messages.as_array().unwrap().clone(),
        messages.as_array().unwrap().clone(),
    ];
    assert_eq!(json_of(&ds, "/ds/a").await, Value::Array(twice.concat()));
    // Numbers keep their spelling, and white space goes.
    is(
        ds.put("/ds/b", &[JSON], "[ 1.10 , { \"a\" : 1e400 } ]")
            .await,
        201,
    );
    assert_eq!(ds.text("/ds/b").await, r#"[1.10,{"a":1e400}]"#);
}

#[tokio::test]
async fn a_stream_shows_what_the_http_api_appends() {
    let ds = Ds::with(Config::open(), Options::new());
    let session: SessionId = "ds/own".parse().unwrap();
    let log = &ds.scene.log;
    log.append(&session, NewEvent::new("note", r#"{"a": 1}"#))
        .unwrap();
    log.append(&session, NewEvent::new("odd", "no JSON"))
        .unwrap();
    let said = json!({"events": [{"type": "user.message", "content": []}]}).to_string();
    is(
        ds.post("/v1/sessions/ds%2Fown/events", &[JSON], said).await,
        200,
    );
    let shown = json!([
        {"type": "note", "data": {"a": 1}},
        {"type": "odd", "data": null},
        {"type": "user.message", "content": [], "metadata": {}},
    ]);
    assert_eq!(json_of(&ds, "/ds/own").await, shown);
    let head = is(ds.head("/ds/own").await, 200);
    assert_eq!(header(&head, "content-type"), Some("application/json"));
    is(ds.post("/ds/own", &[JSON, CLOSE], "1").await, 204);
    assert!(log.session(&session).unwrap().closed);
    log.reopen(&session).unwrap();
    is(ds.post("/ds/own", &[JSON], "2").await, 204);
    is(ds.put("/ds/own", &[JSON], "").await, 200);
}

#[tokio::test]
async fn bytes_are_events_as_large_as_the_log_takes() {
    let ds = Ds::with(Config::open(), Options::new().event_bytes_max(4));
    is(ds.put("/ds/a", &[TEXT], "0123456789").await, 201);
    assert_eq!(ds.scene.log.head(&"ds/a".parse().unwrap()).unwrap().last, 3);
    assert_eq!(ds.text("/ds/a").await, "0123456789");
    assert_eq!(events(&ds, "ds%2Fa").await[2].0, "stream.bytes");
    let page = ds.get("/v1/sessions/ds%2Fa/events").await.ok();
    assert_eq!(
        page["events"][2]["data"],
        json!(89),
        "bytes that are JSON are shown as such"
    );
    is(ds.post("/ds/a", &[TEXT], "ab\u{e9}\n").await, 204);
    let page = ds.get("/v1/sessions/ds%2Fa/events").await.ok();
    assert_eq!(page["events"][4]["data_base64"], json!("Cg=="));
    // A fork in the middle of an append copies a part of one event.
    let fork = [
        ("stream-forked-from", "/ds/a"),
        ("stream-fork-offset", "0000000000000000_0000000000000000"),
        ("stream-fork-sub-offset", "6"),
    ];
    is(ds.put("/ds/b", &fork, "X").await, 201);
    assert_eq!(ds.text("/ds/b").await, "012345X");
    let shared = ds.scene.log.session(&"ds/b".parse().unwrap()).unwrap();
    assert_eq!((shared.parent.unwrap().at, shared.last), (1, 3));
}

/// A sub-offset is within one append, so that no more is read for it.
#[tokio::test]
async fn a_sub_offset_beyond_any_append_is_none() {
    let ds = Ds::with(
        Config::open(),
        Options::new().event_bytes_max(4).batch_bytes_max(8),
    );
    is(ds.put("/ds/a", &[TEXT], "01234567").await, 201);
    is(ds.post("/ds/a", &[TEXT], "89abcdef").await, 204);
    for (sub_offset, status) in [("8", 201), ("9", 400), ("9007199254740991", 400)] {
        let fork = [
            ("stream-forked-from", "/ds/a"),
            ("stream-fork-offset", "0000000000000000_0000000000000000"),
            ("stream-fork-sub-offset", sub_offset),
        ];
        let path = format!("/ds/{sub_offset}");
        is(ds.put(&path, &fork, "").await, status);
    }
    assert_eq!(ds.text("/ds/8").await, "01234567");
}

/// An answer is made of pieces.
#[tokio::test]
async fn large_and_many_messages_are_read_as_they_were_sent() {
    let ds = Ds::open();
    let large = "x".repeat(100_000);
    let mut messages = vec![json!(large), json!(1), json!(large), json!("")];
    messages.extend((0..900).map(|number| json!("y".repeat(number))));
    let body = Value::from(messages.clone()).to_string();
    is(ds.put("/ds/json", &[JSON], body).await, 201);
    assert_eq!(json_of(&ds, "/ds/json").await, Value::from(messages));
    is(ds.put("/ds/text", &[TEXT], "").await, 201);
    let mut text = String::new();
    for number in 0..200 {
        let part = format!("{number}{}", "z".repeat(number * 7));
        is(ds.post("/ds/text", &[TEXT], part.clone()).await, 204);
        text.push_str(&part);
    }
    let read = is(ds.get("/ds/text").await, 200);
    assert_eq!(read.body, text.as_bytes());
    let read = is(ds.get("/ds/json").await, 200);
    assert!(header(&read, "stream-up-to-date").is_some());
}

#[tokio::test]
async fn a_redacted_message_is_shown_as_such_and_to_caches_too() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[JSON], r#"["secret", 2]"#).await, 201);
    let before = is(ds.get("/ds/a").await, 200);
    let tag = header(&before, "etag").unwrap();
    let known = [("if-none-match", tag)];
    is(
        ds.call(Method::GET, "/ds/a", &known, Body::empty()).await,
        304,
    );
    let log = &ds.scene.log;
    let event = log
        .list(&"ds/a".parse().unwrap(), sessionlog::PageRequest::new())
        .unwrap();
    log.redact(event.items[0].id, "asked for").unwrap();
    let after = is(
        ds.call(Method::GET, "/ds/a", &known, Body::empty()).await,
        200,
    );
    let shown: Value = serde_json::from_slice(&after.body).unwrap();
    assert_eq!(
        shown,
        json!([{"type": "stream.message", "redacted": true}, 2])
    );
}

#[tokio::test]
async fn a_deleted_stream_with_forks_shows_nothing_by_any_protocol() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "secret").await, 201);
    let session: SessionId = "ds/a".parse().unwrap();
    ds.scene
        .log
        .set_metadata(&session, json!({"note": "secret"}))
        .unwrap();
    is(
        ds.put("/ds/b", &[("stream-forked-from", "/ds/a")], "")
            .await,
        201,
    );
    is(ds.delete("/ds/a").await, 204);
    assert_eq!(events(&ds, "ds%2Fa").await, []);
    let info = ds.get("/v1/sessions/ds%2Fa").await.ok();
    assert!(!info.to_string().contains("secret"), "{info}");
    assert_eq!(info["closed"], true, "an append by the HTTP API is refused");
    assert_eq!(ds.text("/ds/b").await, "secret");
    is(ds.put("/ds/a", &[TEXT], "").await, 409);
    is(ds.delete("/ds/b").await, 204);
    is(ds.put("/ds/a", &[TEXT], "new").await, 201);
    assert_eq!(ds.text("/ds/a").await, "new");
}

/// Its deletion closes the session, as the end of a stream does.
#[tokio::test]
async fn a_reader_of_a_stream_that_is_gone_is_not_told_that_it_ended() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    let follow = async || {
        let follow = ds.request(Method::GET, "/ds/a?offset=-1&live=sse", &[], "".into());
        let mut body = ds.scene.router.clone().oneshot(follow).await.unwrap();
        let first = body.body_mut().frame().await.unwrap().unwrap();
        assert!(!first.into_data().unwrap().is_empty());
        body.into_body()
    };
    let rest = async |body: Body| {
        let rest = body.collect().await.unwrap().to_bytes();
        String::from_utf8(rest.to_vec()).unwrap()
    };
    is(
        ds.put("/ds/b", &[("stream-forked-from", "/ds/a")], "")
            .await,
        201,
    );
    let followed = follow().await;
    is(ds.delete("/ds/a").await, 204);
    let told = rest(followed).await;
    assert!(!told.contains("streamClosed"), "{told}");
    is(ds.get("/ds/a?offset=-1&live=sse").await, 410);
    is(ds.delete("/ds/b").await, 204);
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    let followed = follow().await;
    is(ds.post("/ds/a", &[CLOSE], "").await, 204);
    let told = rest(followed).await;
    assert!(told.contains("streamClosed"), "{told}");
}

/// Their metadata says nothing of a content type.
#[tokio::test]
async fn what_is_noted_of_a_session_of_the_http_api_counts() {
    let ds = Ds::open();
    let event = json!({"events": [{"type": "user.message", "content": []}]}).to_string();
    for name in ["a", "b"] {
        let path = format!("/v1/sessions/ds%2F{name}/events");
        is(ds.post(&path, &[JSON], event.clone()).await, 200);
    }
    let seq = |seq| [JSON, ("stream-seq", seq)];
    is(ds.post("/ds/a", &seq("2"), "1").await, 204);
    is(ds.post("/ds/a", &seq("1"), "1").await, 409);
    is(
        ds.put("/ds/fork", &[("stream-forked-from", "/ds/b")], "")
            .await,
        201,
    );
    is(ds.delete("/ds/b").await, 204);
    is(ds.get("/ds/b").await, 410);
    is(ds.put("/ds/b", &[JSON], "").await, 409);
    is(ds.delete("/ds/fork").await, 204);
    is(ds.get("/ds/b").await, 404);
}

/// The log itself knows only of forks that share events.
#[tokio::test]
async fn forks_that_share_nothing_keep_the_name_of_their_source_too() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    let at_start = ("stream-fork-offset", "0000000000000000_0000000000000000");
    is(
        ds.put("/ds/b", &[("stream-forked-from", "/ds/a"), at_start], "")
            .await,
        201,
    );
    is(ds.delete("/ds/a").await, 204);
    is(ds.get("/ds/a").await, 410);
    // A fork that somebody makes by the HTTP API is no stream of this source.
    let log = &ds.scene.log;
    log.fork(
        Fork::new(&"ds/b".parse().unwrap()),
        &"other".parse().unwrap(),
    )
    .unwrap();
    is(ds.delete("/ds/b").await, 204);
    is(ds.get("/ds/a").await, 404);
}

#[tokio::test]
async fn offsets_of_a_stream_that_was_deleted_are_told_from_those_of_the_next() {
    let ds = Ds::open();
    let old = is(ds.put("/ds/a", &[TEXT], "old").await, 201);
    let old = header(&old, "stream-next-offset").unwrap();
    is(ds.delete("/ds/a").await, 204);
    let new = is(ds.put("/ds/a", &[TEXT], "new").await, 201);
    let new = header(&new, "stream-next-offset").unwrap();
    assert!(old < new);
    is(ds.get(&format!("/ds/a?offset={old}")).await, 410);
    // The offsets of a fork come after those of its source, which it takes too.
    let fork = is(
        ds.put("/ds/b", &[("stream-forked-from", "/ds/a")], "")
            .await,
        201,
    );
    assert!(header(&fork, "stream-next-offset") > Some(new));
    is(ds.get(&format!("/ds/b?offset={new}")).await, 200);
}

#[tokio::test]
async fn offsets_of_a_deleted_fork_are_none_of_the_next_stream_of_its_name() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "").await, 201);
    is(ds.delete("/ds/a").await, 204);
    let source = is(ds.put("/ds/a", &[TEXT], "source").await, 201);
    let source = header(&source, "stream-next-offset").unwrap();
    let fork: Headers = &[("stream-forked-from", "/ds/a")];
    is(ds.put("/ds/b", fork, "").await, 201);
    let old = is(ds.post("/ds/b", &[TEXT], "own").await, 204);
    let old = header(&old, "stream-next-offset").unwrap();
    let is_old = async || {
        for path in ["/ds/b?offset=", "/ds/b?live=long-poll&offset="] {
            is(ds.get(&format!("{path}{old}")).await, 410);
        }
        is(ds.delete("/ds/b").await, 204);
    };
    is(ds.delete("/ds/b").await, 204);
    is(ds.put("/ds/b", &[TEXT], "another").await, 201);
    is(ds.post("/ds/b", &[TEXT], "stream").await, 204);
    is_old().await;
    // The source now has an event with the seq that an event of the deleted fork had.
    is(ds.post("/ds/a", &[TEXT], "more").await, 204);
    is(ds.put("/ds/b", fork, "").await, 201);
    is_old().await;
    is(ds.put("/ds/c", fork, "").await, 201);
    assert_eq!(ds.text(&format!("/ds/c?offset={source}")).await, "more");
}

#[tokio::test]
async fn a_tag_of_a_deleted_fork_is_none_of_the_next_fork() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "").await, 201);
    is(ds.delete("/ds/a").await, 204);
    is(ds.put("/ds/a", &[TEXT], "a").await, 201);
    let fork = [("stream-forked-from", "/ds/a")];
    is(ds.put("/ds/b", &fork, "old").await, 201);
    let old = is(ds.get("/ds/b").await, 200);
    let known = [("if-none-match", header(&old, "etag").unwrap())];
    let same = is(
        ds.call(Method::GET, "/ds/b", &known, Body::empty()).await,
        304,
    );
    for name in ["etag", "cache-control", "stream-next-offset"] {
        assert_eq!(header(&same, name), header(&old, name), "{name}");
    }
    is(ds.delete("/ds/b").await, 204);
    is(ds.put("/ds/b", &fork, "new").await, 201);
    let new = is(
        ds.call(Method::GET, "/ds/b", &known, Body::empty()).await,
        200,
    );
    assert_ne!(header(&new, "etag"), header(&old, "etag"));
    assert_eq!(new.body, b"anew");
}

/// A fork with events of its own is one record.
#[tokio::test]
async fn a_fork_with_a_body_is_a_sound_record() {
    if on_postgres() {
        eprintln!("not over PostgreSQL: it verifies a folder");
        return;
    }
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "hello").await, 201);
    let fork = [
        ("stream-forked-from", "/ds/a"),
        ("stream-fork-offset", "0000000000000000_0000000000000000"),
        ("stream-fork-sub-offset", "3"),
        CLOSE,
    ];
    is(ds.put("/ds/b", &fork, "p!").await, 201);
    ds.scene.log.close().unwrap();
    let folder = ds.scene.folder();
    let copy = folder.with_extension("copy");
    let mut lines = Vec::new();
    transfer::export(&folder, &mut lines, &transfer::Export::default(), |_| {}).unwrap();
    transfer::import(&*lines, "lines", &copy, Options::new(), |_| {}).unwrap();
    for folder in [folder, copy] {
        let reopened = Ds::of(SessionLog::open(&folder).unwrap(), Config::open());
        let read = is(reopened.get("/ds/b").await, 200);
        assert_eq!(
            (&*read.body, header(&read, "stream-closed")),
            (&b"help!"[..], Some("true"))
        );
        reopened.scene.log.close().unwrap();
        let verified = repair::verify(&folder, |_| {}).unwrap();
        assert_eq!(verified.findings, 0);
    }
}
