//! `GET /v1/feed`, and the wait of `GET /v1/sessions/{session_id}/events`.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use sessionlog::http::{Config, Key, Scope};
use sessionlog::{Delete, NewEvent, NewSession, Options};

use crate::support::{KEY, Scene, WORKER_KEY};

fn step(n: usize) -> NewEvent {
    NewEvent::new("step", n.to_string())
}

/// What a page of the feed shows: each event's data, or each change's type.
fn shown(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().unwrap().iter();
    items
        .map(|item| match item.get("event") {
            Some(event) => event["data"].to_string(),
            None => item["change"]["change"]["type"]
                .as_str()
                .unwrap()
                .to_owned(),
        })
        .collect()
}

#[tokio::test]
async fn the_feed_shows_events_and_changes_in_commit_order_page_by_page() {
    let scene = Scene::new();
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    scene.log.create(&a, NewSession::new().title("A")).unwrap();
    scene.note("b", [step(1)]);
    scene.note("a", [step(2), step(3)]);
    scene.log.close_session(&a).unwrap();
    scene.log.delete(&b, Delete::new().reason("why")).unwrap();
    let worker = scene.as_worker();
    let mut seen = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let page = worker.get(&format!("/v1/feed?{query}")).await.ok();
        assert!(shown(&page).len() <= 2);
        seen.extend(shown(&page));
        if page["has_more"] == false {
            break;
        }
        query = format!("limit=2&after={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(
        seen.iter().filter(|item| *item == "1").count(),
        0,
        "it is deleted: {seen:?}"
    );
    for kept in ["created", "2", "3", "closed", "deleted"] {
        assert!(seen.iter().any(|item| item == kept), "{kept} of {seen:?}");
    }
    let of_a = worker.get("/v1/feed?prefix=a").await.ok();
    let items = of_a["items"].as_array().unwrap();
    assert!(
        items
            .iter()
            .all(|item| { item.get("event").or(item.get("change")).unwrap()["session_id"] == "a" })
    );
    let end = of_a["last_id"].as_str().unwrap();
    let behind = worker.get(&format!("/v1/feed?after={end}")).await.ok();
    assert_eq!((shown(&behind), &behind["last_id"]), (vec![], &json!(end)));
}

#[tokio::test]
async fn a_follower_goes_on_after_an_event_that_is_gone() {
    let scene = Scene::new();
    let gone = scene.note("a", [step(1)])[0].id;
    scene.note("b", [step(2)]);
    scene
        .log
        .delete(&"a".parse().unwrap(), Delete::new())
        .unwrap();
    let page = scene
        .as_worker()
        .get(&format!("/v1/feed?after={gone}"))
        .await
        .ok();
    assert_eq!(shown(&page), ["2", "deleted"]);
}

/// A request for the feed as a stream, with the key of a worker or of a tenant.
fn streamed(key: &str, query: &str, last: Option<&str>) -> Request<Body> {
    let mut request = Request::builder()
        .uri(format!("/v1/feed?{query}"))
        .header("accept", "text/html, Text/Event-Stream;q=0.9")
        .header("authorization", format!("Bearer {key}"));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn the_feed_is_streamed_to_who_accepts_a_stream() {
    let scene = Scene::new();
    let a = "a".parse().unwrap();
    scene.log.create(&a, NewSession::new().title("A")).unwrap();
    scene.note("b", [NewEvent::new("odd", "{\n\"x\":\r\n1}")]);
    let page = scene.as_worker().get("/v1/feed").await.ok();
    let mut frames = scene.open(streamed(WORKER_KEY, "", None)).await;
    for item in page["items"].as_array().unwrap() {
        let (name, body) = item.as_object().unwrap().iter().next().unwrap();
        let frame = frames.next().await.unwrap();
        assert_eq!(
            (&frame.event, frame.id.as_deref()),
            (name, body["id"].as_str())
        );
        assert_eq!(frame.data.parse::<Value>().unwrap(), *body);
    }
    assert_eq!(frames.next().await.unwrap().event, "caught_up");
    scene.note("a", [step(1)]);
    scene.log.close_session(&a).unwrap();
    let news = [frames.next().await.unwrap(), frames.next().await.unwrap()];
    assert_eq!(
        news.each_ref().map(|frame| &*frame.event),
        ["event", "change"]
    );
    let seen = news[0].id.as_deref();
    let mut frames = scene.open(streamed(WORKER_KEY, "", seen)).await;
    assert_eq!(frames.next().await.unwrap(), news[1]);
}

#[tokio::test]
async fn a_streamed_feed_leaves_out_what_is_of_others() {
    let config = Config::with_api_key(KEY)
        .worker_key(WORKER_KEY)
        .key(Key::new("tenant").prefix("t9/").scope(Scope::Worker));
    let scene = Scene::with(config, Options::new());
    scene.note("t8/a", [step(1)]);
    scene.note("t9/a", [step(2)]);
    scene.note("t9/b", [step(3)]);
    let mut of_tenant = scene.open(streamed("tenant", "", None)).await;
    assert_eq!(of_tenant.ids(2).await.len(), 2);
    assert_eq!(of_tenant.next().await.unwrap().event, "caught_up");
    scene.note("t8/a", [step(4)]);
    let last = scene.note("t9/b", [step(5)])[0].id.to_string();
    assert_eq!(of_tenant.ids(1).await[0], last);
    let mut of_b = scene.open(streamed("tenant", "prefix=t9/b", None)).await;
    assert_eq!(of_b.ids(2).await[1], last);
    let refused = scene.call(streamed(KEY, "", None)).await;
    refused.refused(403, "forbidden");
    let refused = scene.call(streamed(WORKER_KEY, "", Some("x"))).await;
    refused.refused(400, "invalid");
}

#[tokio::test]
async fn a_feed_that_cannot_be_is_refused() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    for bad in [
        "after=x", "after=", "wait=61", "wait=x", "limit=0", "limit=",
    ] {
        worker
            .get(&format!("/v1/feed?{bad}"))
            .await
            .refused(400, "invalid");
    }
    worker
        .get("/v1/feed?limit=1001")
        .await
        .refused(400, "too_large");
    let ahead = "evt_7ZZZZZZZZZ0000000000000001";
    worker
        .get(&format!("/v1/feed?after={ahead}"))
        .await
        .refused(404, "unknown_event");
    let config = Config::with_api_key(KEY)
        .worker_key(WORKER_KEY)
        .streams_max(0);
    let full = Scene::with(config, Options::new());
    full.as_worker()
        .get("/v1/feed?wait=1")
        .await
        .refused(429, "too_many_streams");
}

#[tokio::test]
async fn who_waits_for_the_feed_gets_what_comes_first() {
    let scene = Scene::new();
    let last = scene.note("a", [step(1)])[0].id;
    let worker = scene.as_worker();
    let path = format!("/v1/feed?after={last}&prefix=b&limit=1&wait=60");
    let write = async {
        scene.until_streams(1).await;
        scene.note("a", [step(2)]);
        scene.note("b", [step(3), step(4)]);
    };
    let (answer, ()) = tokio::join!(worker.get(&path), write);
    assert_eq!(shown(&answer.ok()), ["3"]);
    let began = Instant::now();
    let in_vain = worker.get("/v1/feed?prefix=c&wait=1").await.ok();
    assert_eq!(
        (shown(&in_vain), &in_vain["has_more"]),
        (vec![], &json!(false))
    );
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn who_waits_for_a_page_gets_the_event_when_it_comes() {
    let scene = Scene::new();
    let session = "s".parse().unwrap();
    scene.log.create(&session, NewSession::new()).unwrap();
    let path = "/v1/sessions/s/events";
    let first = async {
        scene.until_streams(1).await;
        scene.note("s", [step(1)]);
    };
    let (page, ()) = tokio::join!(scene.get("/v1/sessions/s/events?wait=60"), first);
    let id = page.ok()["events"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(page.headers["etag"], "\"1\"");
    let second = async {
        scene.until_streams(1).await;
        scene.note("s", [step(2)]);
        scene.note("s", [NewEvent::new("rare", "3")]);
    };
    let query = format!("{path}?after={id}&type=rare&wait=60");
    let (page, ()) = tokio::join!(scene.get(&query), second);
    assert_eq!(page.ok()["events"][0]["data"], 3);
    let at_once = scene.get(&format!("{path}?after={id}&wait=60")).await.ok();
    assert_eq!(at_once["events"].as_array().unwrap().len(), 2);
    let in_vain = scene.get(&format!("{path}?type=none&wait=1")).await.ok();
    assert_eq!(in_vain["events"], json!([]));
    let closes = async {
        scene.until_streams(1).await;
        scene.log.close_session(&session).unwrap();
    };
    let query = format!("{path}?type=none&wait=60");
    let (page, ()) = tokio::join!(scene.get(&query), closes);
    assert_eq!(page.ok()["events"], json!([]));
}

#[tokio::test]
async fn a_wait_for_a_page_that_cannot_come_is_refused() {
    let scene = Scene::new();
    let id = scene.note("s", [step(1)])[0].id;
    let path = "/v1/sessions/s/events";
    for bad in [
        "wait=61",
        "wait=x",
        "wait=1&order=desc",
        &format!("wait=1&before={id}"),
    ] {
        scene
            .get(&format!("{path}?{bad}"))
            .await
            .refused(400, "invalid");
    }
    scene
        .get("/v1/sessions/t/events?wait=1")
        .await
        .refused(404, "unknown_session");
    let deletes = async {
        scene.until_streams(1).await;
        scene
            .log
            .delete(&"s".parse().unwrap(), Delete::new())
            .unwrap();
    };
    let (page, ()) = tokio::join!(
        scene.get("/v1/sessions/s/events?type=none&wait=60"),
        deletes
    );
    page.refused(404, "unknown_session");
}

#[tokio::test]
async fn a_server_that_stops_lets_nobody_wait_for_events() {
    let config = Config::with_api_key(KEY).worker_key(WORKER_KEY);
    let stopper = config.stopper();
    let scene = Scene::with(config, Options::new());
    let last = scene.note("s", [step(1)])[0].id;
    let worker = scene.as_worker();
    let (of_all, of_one) = (
        format!("/v1/feed?after={last}&wait=60"),
        format!("/v1/sessions/s/events?after={last}&wait=60"),
    );
    let stop = async {
        scene.until_streams(2).await;
        stopper.stop();
    };
    let (feed, page, ()) = tokio::join!(worker.get(&of_all), worker.get(&of_one), stop);
    assert_eq!(shown(&feed.ok()), Vec::<String>::new());
    assert_eq!(page.ok()["events"], json!([]));
}
