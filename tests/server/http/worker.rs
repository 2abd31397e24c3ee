//! Appends by workers: any type of event, closing, and producers.

use axum::http::Method;
use serde_json::{Value, json};
use sessionlog::NewEvent;

use crate::support::{Answer, Scene, said};

const EVENTS: &str = "/v1/sessions/s/events";

fn step(data: &Value) -> Value {
    json!({"events": [{"type": "step", "data": data}]})
}

#[tokio::test]
async fn a_worker_answers_a_turn_with_events_of_any_type() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let opened = scene.post("s", said("x")).await.ok();
    let message = opened["events"][0]["message_id"].as_str().unwrap();
    let body = json!({"events": [
        {"type": "assistant.message_completed", "message_id": message, "data": {"text": "y"}},
        {"type": "any", "data": null},
        {"type": "message.status_changed", "message_id": message, "data": {"status": "completed"}},
        {"type": "user.message", "content": []}
    ]});
    let appended = worker.post(EVENTS, &body).await;
    assert_eq!(appended.headers["etag"], "\"5\"");
    let events = appended.ok()["events"].clone();
    assert_eq!(
        (
            &events[0]["message_id"],
            &events[0]["data"],
            &events[1]["data"]
        ),
        (&json!(message), &json!({"text": "y"}), &Value::Null)
    );
    let turn = scene.get(&format!("/v1/messages/{message}")).await.ok();
    assert_eq!(
        (&turn["status"], &turn["output"]),
        (&json!("completed"), &json!([{"text": "y"}]))
    );
}

#[tokio::test]
async fn the_data_of_a_worker_comes_back_as_it_was_written() {
    let scene = Scene::new();
    let number = "12345678901234567890123.10e400";
    let body = format!(r#"{{"events": [{{"type": "step", "data": [ {number} ]}}]}}"#);
    let post = crate::support::post("s", body);
    let key = format!("Bearer {}", crate::support::WORKER_KEY);
    let post = post.header("authorization", &key).build();
    assert_eq!(scene.call(post).await.status, 200);
    let page = scene.get(EVENTS).await;
    let text = String::from_utf8(page.body).unwrap();
    assert!(text.contains(&format!(r#""data":[{number}]"#)), "{text}");
}

#[tokio::test]
async fn events_that_are_none_are_refused_by_their_field() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    for (body, named) in [
        (json!({"events": [{"type": "step"}]}), "data"),
        (json!({"events": [{"type": "", "data": 1}]}), "event type"),
        (
            json!({"events": [{"type": "a\nb", "data": 1}]}),
            "event type",
        ),
        (
            json!({"events": [{"type": "step", "data": 1, "more": 1}]}),
            "more",
        ),
        (
            json!({"events": [{"type": "step", "data": 1, "message_id": null}]}),
            "null",
        ),
        (
            json!({"events": [{"type": "step", "data": 1, "message_id": "x"}]}),
            "message_id",
        ),
        (
            json!({"events": [{"type": "user.message", "data": 1}]}),
            "data",
        ),
        (json!({"events": []}), "no events"),
        (json!({"events": null}), "events"),
        (json!({"close": false}), "events"),
        (json!({"close": null}), "null"),
    ] {
        let answer = worker.post(EVENTS, &body).await.refused(400, "invalid");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(named), "{message}");
    }
    let by_client = scene.as_client().post(EVENTS, &step(&json!(1))).await;
    by_client.refused(400, "invalid");
    scene.get(EVENTS).await.refused(404, "unknown_session");
}

#[tokio::test]
async fn a_session_is_closed_behind_its_last_events() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let mut body = step(&json!(1));
    body["close"] = json!(true);
    let key = [("idempotency-key", "k")];
    let append = || worker.with_headers(Method::POST, EVENTS, &body, &key);
    let stored = append().await.ok();
    let again = append().await;
    assert_eq!(
        (again.ok(), &again.headers["idempotent-replayed"]),
        (stored, &"true".parse().unwrap())
    );
    assert_eq!(scene.get("/v1/sessions/s").await.ok()["closed"], true);
    for caller in [scene.as_client(), worker] {
        let body = serde_json::from_str(&said("x")).unwrap();
        let answer = caller.post(EVENTS, &body).await;
        assert_eq!(answer.refused(409, "session_closed")["actual_seq"], 1);
    }
    scene.note("t", [NewEvent::new("step", "1")]);
    let alone = worker
        .post("/v1/sessions/t/events", &json!({"close": true}))
        .await;
    assert_eq!(
        (alone.ok(), &alone.headers["etag"]),
        (json!({"events": []}), &"\"1\"".parse().unwrap())
    );
    assert_eq!(scene.get("/v1/sessions/t").await.ok()["closed"], true);
    let nobody = worker
        .post("/v1/sessions/u/events", &json!({"close": true}))
        .await;
    nobody.refused(404, "unknown_session");
}

async fn produced(scene: &Scene, epoch: &str, seq: &str, data: u32) -> Answer {
    let headers = [
        ("producer-id", "w1"),
        ("producer-epoch", epoch),
        ("producer-seq", seq),
    ];
    let body = step(&json!(data));
    let worker = scene.as_worker();
    worker
        .with_headers(Method::POST, EVENTS, &body, &headers)
        .await
}

#[tokio::test]
async fn a_producer_is_replayed_missed_and_fenced_by_its_numbers() {
    let scene = Scene::new();
    let stored = produced(&scene, "0", "0", 1).await.ok();
    let again = produced(&scene, "0", "0", 1).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.ok(), stored);
    let gap = produced(&scene, "0", "5", 2)
        .await
        .refused(409, "producer_gap");
    assert_eq!((&gap["expected"], &gap["received"]), (&json!(1), &json!(5)));
    produced(&scene, "1", "0", 2).await.ok();
    let stale = produced(&scene, "0", "1", 3).await.refused(403, "fenced");
    assert_eq!(stale["current_epoch"], 1);
    let page = scene.get(EVENTS).await.ok();
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_producer_that_is_none_is_refused() {
    let scene = Scene::new();
    let body = step(&json!(1));
    let long = "x".repeat(257);
    for (headers, status, code) in [
        (vec![("producer-epoch", "1")], 400, "invalid"),
        (vec![("producer-seq", "1")], 400, "invalid"),
        (vec![("producer-id", "")], 400, "invalid"),
        (vec![("producer-id", &*long)], 400, "too_large"),
        (
            vec![("producer-id", "w"), ("producer-seq", "x")],
            400,
            "invalid",
        ),
        (
            vec![("producer-id", "w"), ("producer-seq", "-1")],
            400,
            "invalid",
        ),
        (
            vec![("producer-id", "w"), ("producer-epoch", "")],
            400,
            "invalid",
        ),
        (
            vec![
                ("producer-id", "w"),
                ("producer-epoch", "99999999999999999999"),
            ],
            400,
            "invalid",
        ),
    ] {
        let worker = scene.as_worker();
        let answer = worker
            .with_headers(Method::POST, EVENTS, &body, &headers)
            .await;
        answer.refused(status, code);
    }
    let said = serde_json::from_str(&said("x")).unwrap();
    let producer = [("producer-id", "w")];
    let client = scene.as_client();
    let answer = client
        .with_headers(Method::POST, EVENTS, &said, &producer)
        .await;
    answer.refused(403, "forbidden");
    scene.get(EVENTS).await.refused(404, "unknown_session");
}
