//! `GET /v1/sessions/{session_id}/stream`.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{NewEvent, Options};

use tower::ServiceExt;

use crate::support::{Frame, KEY, Scene, request, said};

fn stream(query: &str) -> Request<Body> {
    request(
        Method::GET,
        &format!("/v1/sessions/s/stream{query}"),
        Body::empty(),
    )
}

fn resumed(last: &str) -> Request<Body> {
    let mut request = stream("");
    request
        .headers_mut()
        .insert("last-event-id", last.parse().unwrap());
    request
}

fn notes(count: usize) -> impl Iterator<Item = NewEvent> {
    (0..count).map(|n| NewEvent::new("note", n.to_string()))
}

fn caught_up() -> Frame {
    Frame {
        id: None,
        event: "caught_up".into(),
        data: "{}".into(),
    }
}

#[tokio::test]
async fn a_stream_replays_and_goes_on_with_each_event_as_it_is_listed() {
    let scene = Scene::new();
    scene.post("s", said("first")).await.ok();
    scene.note(
        "s",
        [NewEvent::new("tool.call_requested", r#"{"id":"c1"}"#)],
    );
    let mut frames = scene.open(stream("")).await;
    let replayed = [frames.next().await.unwrap(), frames.next().await.unwrap()];
    assert_eq!(frames.next().await.unwrap(), caught_up());
    scene.post("s", said("live")).await.ok();
    let live = frames.next().await.unwrap();
    assert_eq!(frames.next().await.unwrap(), caught_up());
    let listed = scene.get("/v1/sessions/s/events").await.ok();
    for (at, frame) in replayed.iter().chain([&live]).enumerate() {
        let event = &listed["events"][at];
        assert_eq!(frame.id.as_deref(), event["id"].as_str());
        assert_eq!(Some(&*frame.event), event["type"].as_str());
        assert_eq!(serde_json::from_str::<Value>(&frame.data).unwrap(), *event);
    }
}

#[tokio::test]
async fn who_comes_back_goes_on_strictly_after_what_was_seen() {
    let scene = Scene::new();
    let all: Vec<_> = scene
        .note("s", notes(900))
        .iter()
        .map(|event| event.id.to_string())
        .collect();
    let mut seen: Vec<String> = Vec::new();
    while seen.len() < 900 {
        let mut frames = match seen.last() {
            None => scene.open(stream("")).await,
            Some(last) => scene.open(resumed(last)).await,
        };
        seen.extend(frames.ids(250.min(900 - seen.len())).await);
    }
    assert_eq!(seen, all);
    let message = all[10].replace("evt_", "msg_");
    for (request, first) in [
        (stream(&format!("?after={}", all[10])), &all[11]),
        (stream(&format!("?after={message}")), &all[11]),
        (resumed(&all[899]), &String::new()),
    ] {
        let mut frames = scene.open(request).await;
        assert_eq!(&frames.next().await.unwrap().id.unwrap_or_default(), first);
    }
    // A browser requests the same address again, and adds its position in a header.
    let mut both = stream(&format!("?after={}", all[10]));
    both.headers_mut()
        .insert("last-event-id", all[20].parse().unwrap());
    assert_eq!(scene.open(both).await.ids(1).await, all[21..22]);
}

#[tokio::test]
async fn without_following_a_stream_ends_at_the_tail() {
    let scene = Scene::new();
    scene.note("s", notes(3));
    let mut frames = scene.open(stream("?follow=false")).await;
    assert_eq!(frames.ids(3).await.len(), 3);
    assert_eq!(
        (frames.next().await, frames.next().await),
        (Some(caught_up()), None)
    );
    scene.until_streams(0).await;
}

#[tokio::test]
async fn a_place_that_is_none_is_said_before_the_first_byte() {
    let scene = Scene::new();
    scene.note("s", notes(1));
    let other = scene.note("t", notes(1))[0].id.to_string();
    scene
        .call(resumed("evt_01JQ3W8K5T0000000000000001"))
        .await
        .refused(400, "cursor_unknown");
    scene
        .call(resumed(&other))
        .await
        .refused(400, "cursor_of_other_session");
    scene
        .call(resumed("evt_00000000000000000000000000"))
        .await
        .refused(400, "cursor_unknown");
    scene.call(resumed("17")).await.refused(400, "invalid");
    scene
        .call(stream(&format!("?after={other}")))
        .await
        .refused(400, "cursor_of_other_session");
    scene
        .call(stream("?follow=perhaps"))
        .await
        .refused(400, "invalid");
    scene
        .get("/v1/sessions/nobody/stream")
        .await
        .refused(404, "unknown_session");
    assert_eq!(scene.log.stats().streams, 0);
}

/// A client that has seen nothing yet may send an empty ID.
#[tokio::test]
async fn an_empty_last_event_id_is_none() {
    let scene = Scene::new();
    let event = scene.note("s", notes(1))[0].id.to_string();
    assert_eq!(scene.open(resumed("")).await.ids(1).await, [event]);
}

/// A proxy may delay the head of an answer until some of its body comes, and collect the body.
#[tokio::test]
async fn a_stream_begins_at_once_and_asks_not_to_be_gathered() {
    let scene = Scene::new();
    let newest = scene.note("s", notes(1))[0].id.to_string();
    let response = scene
        .router
        .clone()
        .oneshot(stream(&format!("?after={newest}")))
        .await
        .unwrap();
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    assert_eq!(
        response.headers()["cache-control"],
        "no-store, no-transform"
    );
    let first = response
        .into_body()
        .into_data_stream()
        .next()
        .await
        .unwrap()
        .unwrap();
    assert!(first.starts_with(b":"), "{first:?}");
}

#[tokio::test]
async fn line_ends_in_data_break_no_frame() {
    let scene = Scene::new();
    let inside = json!({"text": "a\nb\r\nc\rd\u{2028}e\n\nid: x"});
    let pretty = serde_json::to_string_pretty(&inside)
        .unwrap()
        .replace('\n', "\r\n");
    scene.note(
        "s",
        [
            NewEvent::new("note", pretty),
            NewEvent::new("bytes", "\n\r\n"),
        ],
    );
    let body = json!({"events": [
        {"type": "user.message", "content": [{"type": "text", "text": inside["text"]}]}
    ]});
    scene
        .post("s", serde_json::to_string_pretty(&body).unwrap())
        .await
        .ok();
    let mut frames = scene.open(stream("")).await;
    let listed = scene.get("/v1/sessions/s/events").await.ok();
    for at in 0..3 {
        let frame = frames.next().await.unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&frame.data).unwrap(),
            listed["events"][at]
        );
    }
    assert_eq!(listed["events"][0]["data"], inside);
}

#[tokio::test]
async fn a_silent_stream_says_that_it_is_alive() {
    let scene = Scene::with(
        Config::with_api_key(KEY).heartbeat(Duration::from_millis(20)),
        Options::new(),
    );
    scene.note("s", notes(1));
    let mut frames = scene.open(stream("")).await;
    frames.next().await.unwrap();
    frames.next().await.unwrap();
    for _ in 0..3 {
        assert_eq!(frames.raw().await, ":\n\n");
    }
    scene.note("s", notes(1));
    assert!(frames.next().await.unwrap().id.is_some());
}

#[tokio::test]
async fn a_client_that_vanishes_frees_its_stream() {
    let scene = Scene::with(Config::with_api_key(KEY).streams_max(3), Options::new());
    scene.note("s", notes(600));
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(scene.open(stream("")).await);
    }
    // Streams in the middle of a replay, at its end, and not read yet.
    open[0].ids(1).await;
    open[1].ids(600).await;
    assert_eq!(scene.log.stats().streams, 3);
    let full = scene.call(stream("")).await;
    assert_eq!(
        (
            full.refused(429, "too_many_streams")["type"].as_str(),
            &full.headers["retry-after"]
        ),
        (Some("too_many_requests"), &"5".parse().unwrap())
    );
    drop(open);
    scene.until_streams(0).await;
    scene.open(stream("")).await.ids(600).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_slows_no_writer_and_gets_it_all_later() {
    let scene = Scene::new();
    scene.note("s", notes(1));
    let mut slow = scene.open(stream("")).await;
    slow.ids(1).await;
    let mut all = Vec::new();
    for _ in 0..50 {
        all.extend(
            scene
                .note("s", notes(100))
                .iter()
                .map(|event| event.id.to_string()),
        );
    }
    assert_eq!(slow.ids(5_000).await, all);
}

#[tokio::test]
async fn streams_end_when_the_server_is_about_to_stop_or_the_log_is_closed() {
    let config = Config::with_api_key(KEY);
    let stopper = config.stopper();
    let scene = Scene::with(config, Options::new());
    let last = scene.note("s", notes(1))[0].id.to_string();
    let mut frames = scene.open(resumed(&last)).await;
    assert_eq!(frames.next().await.unwrap(), caught_up());
    stopper.stop();
    assert_eq!(frames.next().await, None);
    scene.call(stream("")).await.refused(503, "closed");
    drop(frames);
    scene.until_streams(0).await;

    let scene = Scene::new();
    let last = scene.note("s", notes(1))[0].id.to_string();
    let mut frames = scene.open(resumed(&last)).await;
    assert_eq!(frames.next().await.unwrap(), caught_up());
    scene.log.close().unwrap();
    assert_eq!(frames.next().await, None);
}

#[tokio::test]
async fn a_stream_sends_the_types_that_were_asked_for() {
    let scene = Scene::new();
    let events = || ["a", "b", "c", "a"].map(|named| NewEvent::new(named, "1"));
    scene.note("s", events());
    for (query, expected) in [
        ("?type=a", &["a", "a"][..]),
        ("?type=a&type=b", &["a", "b", "a"]),
        ("?exclude_type=a", &["b", "c"]),
        ("?exclude_type=a&exclude_type=b", &["c"]),
        ("?type=a&type=b&exclude_type=a", &["b"]),
        ("?type=none", &[]),
    ] {
        let mut frames = scene.open(stream(query)).await;
        for expected in [expected.iter(), ["caught_up"].iter()]
            .into_iter()
            .flatten()
        {
            assert_eq!(frames.next().await.unwrap().event, *expected, "{query}");
        }
    }
    let mut frames = scene.open(stream("?exclude_type=a")).await;
    assert_eq!(frames.ids(2).await.len(), 2);
    assert_eq!(frames.next().await.unwrap(), caught_up());
    scene.note("s", events());
    assert_eq!(frames.next().await.unwrap().event, "b");
}

#[tokio::test]
async fn a_stream_ends_with_a_frame_when_its_session_is_closed_or_deleted() {
    let scene = Scene::new();
    let session = "s".parse().unwrap();
    scene.note("s", notes(1));
    let last = |name: &str| Frame {
        id: None,
        event: name.into(),
        data: "{}".into(),
    };
    let mut frames = scene.open(stream("")).await;
    assert_eq!(frames.ids(1).await.len(), 1);
    assert_eq!(frames.next().await.unwrap(), caught_up());
    scene.log.close_session(&session).unwrap();
    assert_eq!(frames.next().await.unwrap(), last("closed"));
    assert_eq!(frames.next().await, None);
    scene.log.reopen(&session).unwrap();
    let mut frames = scene.open(stream("?type=none")).await;
    assert_eq!(frames.next().await.unwrap(), caught_up());
    scene
        .log
        .delete(&session, sessionlog::Delete::new())
        .unwrap();
    assert_eq!(frames.next().await.unwrap(), last("deleted"));
    assert_eq!(frames.next().await, None);
    scene.until_streams(0).await;
}
