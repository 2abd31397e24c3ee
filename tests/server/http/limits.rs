//! Limits of keys, and when a refused call is to be repeated.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use sessionlog::http::{self, Config, Key, Scope};
use sessionlog::{NewEvent, Options};
use tower::ServiceExt;

use crate::engine::on_postgres;
use crate::support::{Answer, Caller, KEY, Scene, WORKER_KEY, request, said};

/// A call that is refused by its ID alone, so that no thread reads anything.
const BAD: &str = "/v1/events/x";

fn retry_after(answer: &Answer) -> u32 {
    let sent = answer.headers.get("retry-after");
    let sent = sent.expect("it says when to come again");
    sent.to_str().unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_key_beyond_its_rate_is_told_when_to_come_again() {
    let limited = Key::new("limited").requests_per_second(2).burst(3);
    let config = Config::with_api_key(KEY).key(limited);
    let scene = Scene::with(config.clone(), Options::new());
    let limited = Caller::new(&scene, "limited");
    for _ in 0..3 {
        limited.get(BAD).await.refused(400, "invalid");
    }
    let answer = limited.get(BAD).await;
    let refused = answer.refused(429, "too_many_requests");
    assert_eq!((&refused["limit"], retry_after(&answer)), (&json!(2), 1));
    scene.get(BAD).await.refused(400, "invalid");
    // Routers of one configuration share the keys, and so their limits.
    let other = http::router(scene.log.clone(), config);
    let mut again = request(Method::GET, BAD, Body::empty());
    let bearer = "Bearer limited".parse().unwrap();
    again.headers_mut().insert("authorization", bearer);
    assert_eq!(other.oneshot(again).await.unwrap().status(), 429);
    tokio::time::advance(Duration::from_millis(499)).await;
    limited.get(BAD).await.refused(429, "too_many_requests");
    tokio::time::advance(Duration::from_millis(1)).await;
    limited.get(BAD).await.refused(400, "invalid");
    limited.get(BAD).await.refused(429, "too_many_requests");
    // After the time that was given there is room.
    tokio::time::advance(Duration::from_secs(1)).await;
    limited.get(BAD).await.refused(400, "invalid");
}

#[tokio::test]
async fn the_streams_and_waits_of_a_key_are_limited_apart_from_others() {
    let limited = Key::new("limited").scope(Scope::Worker).streams_max(1);
    let config = Config::with_api_key(KEY).key(limited);
    let scene = Scene::with(config, Options::new());
    let limited = Caller::new(&scene, "limited");
    let last = scene.note("s", [NewEvent::new("note", "1")])[0].id;
    let message = scene.post("s", said("x")).await.ok();
    let message = message["events"][0]["message_id"].as_str().unwrap();
    let page = "/v1/sessions/s/events";
    let mut stream = request(Method::GET, "/v1/sessions/s/stream", Body::empty());
    let bearer = "Bearer limited".parse().unwrap();
    stream.headers_mut().insert("authorization", bearer);
    let mut open = scene.open(stream).await;
    open.ids(1).await;
    for waits in [
        "/v1/sessions/s/stream".to_owned(),
        format!("{page}?type=none&wait=60"),
        format!("/v1/messages/{message}?wait=60"),
        "/v1/feed?prefix=none&wait=60".to_owned(),
    ] {
        let answer = limited.get(&waits).await;
        let refused = answer.refused(429, "too_many_streams");
        assert_eq!(
            (&refused["limit"], retry_after(&answer)),
            (&json!(1), 5),
            "{waits}"
        );
    }
    for at_once in [
        format!("{page}?wait=60"),
        format!("/v1/messages/{message}"),
        "/v1/feed?wait=60".to_owned(),
    ] {
        limited.get(&at_once).await.ok();
    }
    let of_other = format!("{page}?after={last}&type=none&wait=1");
    scene.get(&of_other).await.ok();
    drop(open);
    scene.until_streams(0).await;
    let waits = format!("{page}?type=none&wait=1");
    limited.get(&waits).await.ok();
}

#[tokio::test]
async fn a_log_out_of_service_says_when_to_come_again() {
    if on_postgres() {
        eprintln!("not over PostgreSQL: only a folder is opened for reading only");
        return;
    }
    let config = || Config::with_api_key(KEY).worker_key(WORKER_KEY);
    let scene = Scene::with(config(), Options::new());
    scene.post("s", said("x")).await.ok();
    let reader = Options::new().open_read_only(scene.folder()).unwrap();
    let read_only = Scene::of(reader, config());
    let answer = read_only.post("s", said("x")).await;
    answer.refused(503, "read_only");
    assert_eq!(retry_after(&answer), 30);
    read_only.get("/livez").await.ok();
    // A folder that is moved away puts the log out of service until it is opened again.
    let moved = scene.folder().with_extension("moved");
    std::fs::rename(scene.folder(), &moved).unwrap();
    let mut codes = Vec::new();
    for _ in 0..2 {
        let answer = scene.post("s", said("x")).await;
        assert_eq!((answer.status.as_u16(), retry_after(&answer)), (503, 30));
        codes.push(answer.json()["error"]["code"].clone());
    }
    assert!(codes.contains(&json!("displaced")), "{codes:?}");
    for probe in ["/healthz", "/readyz", "/livez"] {
        let health = scene.get(probe).await;
        assert_eq!((health.status.as_u16(), retry_after(&health)), (503, 30));
    }
    std::fs::rename(&moved, scene.folder()).unwrap();
    let _poisoned = scene.log.close();
    for path in ["/healthz", "/livez", "/v1/sessions"] {
        let answer = scene.get(path).await;
        answer.refused(503, "closed");
        assert_eq!(retry_after(&answer), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_without_memory_left_says_when_to_come_again() {
    let config = Config::with_api_key(KEY).memory_bytes_max(1024);
    let scene = Scene::with(config, Options::new());
    scene.post("s", said("x")).await.ok();
    let page = || request(Method::GET, "/v1/sessions/s/events", Body::empty());
    let unread = scene.router.clone().oneshot(page()).await.unwrap();
    assert_eq!(unread.status(), 200);
    let answer = scene.call(page()).await;
    answer.refused(503, "busy");
    assert_eq!(retry_after(&answer), 1);
    drop(unread);
    scene.call(page()).await.ok();
}

#[tokio::test]
async fn the_document_says_that_refusals_say_when_to_come_again() {
    let scene = Scene::new();
    let document = scene.get("/openapi.json").await.ok();
    let paths = document["paths"].as_object().unwrap();
    let calls = paths.iter().flat_map(|(path, item)| {
        let calls = item.as_object().unwrap().values();
        calls.map(move |call| (path, &call["responses"]))
    });
    let mut seen = 0;
    for (path, answers) in calls {
        let is_guarded = path.starts_with("/v1");
        assert!(!is_guarded || answers["429"].is_object(), "{path}");
        for status in ["429", "503"] {
            let header = &answers[status]["headers"]["retry-after"]["schema"]["type"];
            let is_there = answers[status].is_object();
            assert_eq!(header == "integer", is_there, "{path} {status}");
            seen += u32::from(is_there);
        }
    }
    assert!(seen > 20, "{document}");
    assert_eq!(
        Value::Null,
        document["paths"]["/metrics"]["get"]["responses"]["503"]
    );
}
