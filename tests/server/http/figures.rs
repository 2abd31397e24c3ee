//! The metrics at `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use sessionlog::http::Config;
use sessionlog::{NewEvent, Options};

use crate::support::{KEY, Scene};

const DAY: u64 = 24 * 60 * 60;
const NOW: u64 = 1_900_000_000;
const MESSAGE: &str =
    r#"{"events":[{"type":"user.message","content":[{"type":"text","text":"hello"}]}]}"#;

/// A clock that was wrong once.
#[tokio::test]
async fn a_clock_that_was_wrong_once_shows_until_it_has_caught_up() {
    let clock = Arc::new(AtomicU64::new(NOW));
    let read = Arc::clone(&clock);
    let options =
        Options::new().clock(move || UNIX_EPOCH + Duration::from_secs(read.load(Ordering::SeqCst)));
    let scene = Scene::with(Config::with_api_key(KEY), options);
    // Before the first event there is nothing to compare with. Half a day off is not reported.
    for (then, now, skew) in [
        (None, NOW, 0),
        (Some(NOW), NOW, 0),
        (Some(NOW + DAY), NOW + DAY / 2, 0),
        (Some(NOW + 1_000 * DAY), NOW, 1_000 * DAY),
        (Some(NOW), NOW, 1_000 * DAY),
        (None, NOW + 999 * DAY, 0),
        (None, NOW + 1_002 * DAY, 2 * DAY),
        (Some(NOW + 1_002 * DAY), NOW + 1_002 * DAY, 0),
    ] {
        if let Some(then) = then {
            clock.store(then, Ordering::SeqCst);
            scene.note("s", [NewEvent::new("note", "x")]);
        }
        clock.store(now, Ordering::SeqCst);
        let figures = String::from_utf8(scene.get("/metrics").await.body).unwrap();
        let shown = figures
            .lines()
            .find_map(|line| line.strip_prefix("sessionlog_clock_skew_seconds "));
        assert_eq!(shown, Some(&*format!("{skew}.0")), "at {now}, in {figures}");
    }
}

/// What an operator sets alerts on.
#[tokio::test]
async fn erasure_and_the_time_of_each_call_are_shown() {
    let scene = Scene::new();
    let shown = async |name: &str| {
        let figures = String::from_utf8(scene.get("/metrics").await.body).unwrap();
        let line = figures.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {figures}"))
            .trim()
            .to_owned()
    };
    assert_eq!(shown("sessionlog_erasure_overdue ").await, "0");
    assert_eq!(shown("sessionlog_erasure_events ").await, "0");
    scene.post("s", MESSAGE).await.ok();
    let call = "sessionlog_http_request_seconds_count{method=\"POST\",\
                route=\"/v1/sessions/{session_id}/events\"} ";
    assert_eq!(shown(call).await, "1");
}
