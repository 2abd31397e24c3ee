//! How long streams live, by a clock of the test's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use sessionlog::http::Config;
use sessionlog::{Options, SessionId, SessionLog, SessionPatch};
use tower::ServiceExt;

use crate::durable_streams::{CLOSE, Ds, TEXT, header, is};
use crate::engine::open_at;

/// A clock that stands still until it is told to go on, in milliseconds.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_800_000_000_000)))
    }

    fn options(&self) -> Options {
        let clock = self.clone();
        Options::new().clock(move || clock.now())
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }

    fn pass(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

fn streams(clock: &Clock) -> Ds {
    Ds::with(Config::open(), clock.options())
}

const TTL: (&str, &str) = ("stream-ttl", "10");

#[tokio::test]
async fn every_use_but_a_look_renews_a_ttl() {
    let clock = Clock::new();
    let ds = streams(&clock);
    is(ds.put("/ds/a", &[TEXT, TTL], "x").await, 201);
    for _ in 0..3 {
        clock.pass(9_999);
        is(ds.get("/ds/a").await, 200);
        clock.pass(9_999);
        is(ds.post("/ds/a", &[TEXT], "y").await, 204);
    }
    clock.pass(9_999);
    is(ds.post("/ds/a", &[CLOSE], "").await, 204);
    clock.pass(9_999);
    let head = is(ds.head("/ds/a").await, 200);
    assert_eq!(header(&head, "stream-ttl"), Some("10"));
    clock.pass(1);
    is(ds.head("/ds/a").await, 404);
    // It was deleted for good: the name is free, and nothing comes back with the time.
    assert!(ds.scene.log.session(&"ds/a".parse().unwrap()).is_err());
    is(ds.put("/ds/a", &[TEXT], "new").await, 201);
}

#[tokio::test]
async fn a_stream_does_not_expire_while_somebody_follows_it() {
    let clock = Clock::new();
    let ds = streams(&clock);
    is(ds.put("/ds/a", &[TEXT, TTL], "x").await, 201);
    let follow = ds.request(Method::GET, "/ds/a?offset=-1&live=sse", &[], "".into());
    let followed = ds.scene.router.clone().oneshot(follow).await.unwrap();
    assert_eq!(followed.status(), StatusCode::OK);
    let mut body = followed.into_body();
    assert!(body.frame().await.is_some());
    clock.pass(60_000);
    is(ds.head("/ds/a").await, 200);
    drop(body);
    is(ds.head("/ds/a").await, 200);
    clock.pass(10_000);
    is(ds.head("/ds/a").await, 404);
}

#[tokio::test]
async fn a_fixed_time_is_kept_whatever_is_done() {
    let clock = Clock::new();
    let ds = streams(&clock);
    let at = jiff::Timestamp::try_from(clock.now() + Duration::from_secs(10)).unwrap();
    let at = ("stream-expires-at", &*at.to_string());
    is(ds.put("/ds/a", &[TEXT, at], "x").await, 201);
    is(ds.put("/ds/a", &[TEXT, at], "x").await, 200);
    is(
        ds.put("/ds/fork", &[("stream-forked-from", "/ds/a")], "")
            .await,
        201,
    );
    is(
        ds.put("/ds/own", &[("stream-forked-from", "/ds/a"), TTL], "")
            .await,
        201,
    );
    let read = is(
        ds.get("/ds/a?offset=0000000000000000_0000000000000000")
            .await,
        200,
    );
    assert_eq!(header(&read, "cache-control"), Some("private, no-cache"));
    clock.pass(9_999);
    for path in ["/ds/a", "/ds/own"] {
        is(ds.post(path, &[TEXT], "y").await, 204);
    }
    clock.pass(1);
    // The fork with the inherited time is over too, and the one with a TTL of its own is not.
    is(ds.get("/ds/a").await, 410);
    is(ds.get("/ds/fork").await, 404);
    assert_eq!(ds.text("/ds/own").await, "xy");
    is(ds.delete("/ds/own").await, 204);
    is(ds.get("/ds/a").await, 404);
}

#[tokio::test]
async fn a_restart_begins_every_ttl_anew_and_no_fixed_time() {
    let clock = Clock::new();
    let ds = streams(&clock);
    is(ds.put("/ds/ttl", &[TEXT, TTL], "x").await, 201);
    let at = jiff::Timestamp::try_from(clock.now() + Duration::from_secs(10)).unwrap();
    let at = ("stream-expires-at", &*at.to_string());
    is(ds.put("/ds/at", &[TEXT, at], "x").await, 201);
    ds.scene.log.close().unwrap();
    clock.pass(60_000);
    let log = open_at(clock.options(), &ds.scene.folder()).unwrap();
    let again = Ds::of(log, Config::open());
    is(again.head("/ds/at").await, 404);
    is(again.head("/ds/ttl").await, 200);
    clock.pass(10_000);
    is(again.head("/ds/ttl").await, 404);
}

#[tokio::test]
async fn a_session_on_hold_does_not_expire() {
    let clock = Clock::new();
    let ds = streams(&clock);
    is(ds.put("/ds/a", &[TEXT, TTL], "x").await, 201);
    let session: SessionId = "ds/a".parse().unwrap();
    ds.scene
        .log
        .set_metadata(&session, SessionPatch::new().hold())
        .unwrap();
    clock.pass(60_000);
    assert_eq!(ds.text("/ds/a").await, "x");
    is(ds.delete("/ds/a").await, 409);
    // Nor is it marked as gone for a fork.
    is(
        ds.put("/ds/fork", &[("stream-forked-from", "/ds/a")], "")
            .await,
        201,
    );
    is(ds.delete("/ds/a").await, 409);
    assert_eq!(ds.text("/ds/a").await, "x");
    is(ds.delete("/ds/fork").await, 204);
    ds.scene
        .log
        .set_metadata(&session, SessionPatch::new().release())
        .unwrap();
    clock.pass(60_000);
    is(ds.get("/ds/a").await, 404);
}

/// Nobody asks for them: the first request to a router begins a sweep.
#[tokio::test]
async fn streams_that_nobody_asks_for_are_removed_in_the_background() {
    let clock = Clock::new();
    let ds = streams(&clock);
    is(ds.put("/ds/a", &[TEXT, TTL], "x").await, 201);
    is(ds.put("/ds/source", &[TEXT], "x").await, 201);
    is(
        ds.put("/ds/fork", &[("stream-forked-from", "/ds/source")], "")
            .await,
        201,
    );
    is(ds.delete("/ds/source").await, 204);
    // As the HTTP API does, which knows nothing of the source's name.
    let log: SessionLog = ds.scene.log.clone();
    log.delete(&"ds/fork".parse().unwrap(), sessionlog::Delete::new())
        .unwrap();
    let again = Ds::of(log.clone(), Config::open());
    clock.pass(10_000);
    is(again.head("/ds/other").await, 404);
    let is_there = |name: &str| log.session(&name.parse().unwrap()).is_ok();
    for _ in 0..4_000 {
        if !is_there("ds/a") && !is_there("ds/source") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("they are still there");
}
