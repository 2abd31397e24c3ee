//! Single events: read and redacted. Sessions: trimmed. The store: compacted.

use serde_json::{Value, json};
use sessionlog::NewEvent;

use crate::support::{Scene, said};

fn step(n: usize) -> NewEvent {
    NewEvent::new("step", n.to_string())
}

const UNKNOWN: &str = "evt_01JQ3W8K5T0000000000000001";

#[tokio::test]
async fn an_event_is_read_as_it_is_listed() {
    let scene = Scene::new();
    scene.post("s", said("x")).await.ok();
    let listed = scene.get("/v1/sessions/s/events").await.ok()["events"][0].clone();
    let path = format!("/v1/events/{}", listed["id"].as_str().unwrap());
    let read = scene.as_client().get(&path).await.ok();
    assert_eq!(read, listed);
    assert_eq!(read.get("redacted"), None);
    scene
        .get(&format!("/v1/events/{UNKNOWN}"))
        .await
        .refused(404, "unknown_event");
    scene.get("/v1/events/evt_x").await.refused(400, "invalid");
    let of_message = listed["message_id"].as_str().unwrap();
    scene
        .get(&format!("/v1/events/{of_message}"))
        .await
        .refused(400, "invalid");
}

#[tokio::test]
async fn a_redacted_event_keeps_its_place_without_its_data() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let message = said("a secret");
    scene.post("s", message).await.ok();
    scene.note("s", [NewEvent::new("bytes", vec![0xFF])]);
    let before = scene.get("/v1/sessions/s/events").await.ok()["events"].clone();
    for event in before.as_array().unwrap() {
        let path = format!("/v1/events/{}", event["id"].as_str().unwrap());
        let mut expected = event.clone();
        let fields = expected.as_object_mut().unwrap();
        fields.remove("data_base64");
        fields.insert("data".into(), Value::Null);
        fields.insert("redacted".into(), json!(true));
        let long = format!("{path}?reason={}", "x".repeat(257));
        worker.delete(&long).await.refused(400, "too_large");
        let answer = worker.delete(&format!("{path}?reason=asked+for")).await;
        assert_eq!(answer.ok(), expected);
        assert_eq!(worker.delete(&path).await.ok(), expected, "again");
        assert_eq!(scene.get(&path).await.ok(), expected);
        let at = usize::try_from(event["seq"].as_u64().unwrap()).unwrap() - 1;
        let page = scene.get("/v1/sessions/s/events").await.ok();
        assert_eq!(page["events"][at], expected);
    }
    let messages = scene.get("/v1/sessions/s/messages").await;
    assert!(!String::from_utf8_lossy(&messages.body).contains("a secret"));
    assert_eq!(messages.ok()["messages"][0]["redacted"], true);
    let unknown = worker.delete(&format!("/v1/events/{UNKNOWN}")).await;
    unknown.refused(404, "unknown_event");
    worker.delete("/v1/events/x").await.refused(400, "invalid");
}

#[tokio::test]
async fn a_trimmed_session_begins_where_it_was_told_to() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let all = scene.note("s", (1..=4).map(step));
    let other = scene.note("t", [step(1)])[0].id;
    let path = "/v1/sessions/s/events";
    let removed = worker
        .delete(&format!("{path}?before={}", all[1].id))
        .await
        .ok();
    assert_eq!(removed["events"], 1);
    assert!(
        removed["bytes"].is_u64() && removed["erased_by"].is_string(),
        "{removed}"
    );
    let removed = worker.delete(&format!("{path}?before=4")).await.ok();
    assert_eq!(removed["events"], 2);
    assert_eq!(
        worker.delete(&format!("{path}?before=2")).await.ok()["events"],
        0
    );
    let page = scene.get(path).await.ok();
    assert_eq!(page["events"].as_array().unwrap().len(), 1);
    assert_eq!(page["events"][0]["seq"], 4);
    let stale = scene.get(&format!("{path}?after={}", all[0].id)).await;
    assert_eq!(stale.status, 410, "{}", stale.json());
    for (bad, code) in [
        ("", "invalid"),
        ("?before=", "invalid"),
        ("?before=x", "invalid"),
        ("?before=-1", "invalid"),
        ("?before=99999999999999999999", "invalid"),
        ("?before=9", "cursor_beyond_tail"),
        (&*format!("?before={UNKNOWN}"), "cursor_unknown"),
        (&*format!("?before={other}"), "cursor_of_other_session"),
    ] {
        worker
            .delete(&format!("{path}{bad}"))
            .await
            .refused(400, code);
    }
    let nobody = worker.delete("/v1/sessions/nobody/events?before=1").await;
    nobody.refused(404, "unknown_session");
    let info = scene.get("/v1/sessions/s").await.ok();
    assert_eq!(
        (&info["first_seq"], &info["events"]),
        (&json!(4), &json!(1))
    );
}

#[tokio::test]
async fn a_store_is_compacted_and_says_what_it_holds() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    scene.note("s", (1..=4).map(step));
    assert_eq!(worker.delete("/v1/sessions/s").await.status, 204);
    let due = worker.get("/v1/stats").await.ok();
    assert!(due["erasure"]["due"].is_string(), "{due}");
    let done = worker.post("/v1/compact", &Value::Null).await.ok();
    assert!(done["bytes_after"].is_u64(), "{done}");
    let stats = worker.get("/v1/stats").await.ok();
    assert_eq!(
        stats["erasure"],
        json!({"due": null, "overdue": false, "events": 0})
    );
    assert!(stats["barrier_seconds"].is_f64(), "{stats}");
    let space = &stats["space"];
    assert_eq!(space["dead_bytes"], 0);
    assert!(space["total_bytes"].as_u64() > Some(0), "{space}");
}

#[tokio::test]
async fn a_plan_of_retention_removes_nothing() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let path = "/v1/retention/plan";
    scene.note("s", (1..=4).map(step));
    scene.note("t", [step(1)]);
    let plan = |trimmed, events| json!({"sessions_deleted": 0, "sessions_trimmed": trimmed, "events": events});
    for (retention, expected) in [
        (json!({"max_events": 3}), plan(1, 1)),
        (json!({"max_bytes": 1, "idle_seconds": 60}), plan(1, 3)),
        (json!({"max_age_seconds": 60}), plan(0, 0)),
        (json!({}), plan(0, 0)),
    ] {
        let mut found = worker.post(path, &retention).await.ok();
        assert!(found["bytes"].is_u64(), "{found}");
        found.as_object_mut().unwrap().remove("bytes");
        assert_eq!(found, expected, "{retention}");
    }
    for bad in [
        json!({"max_events": 0}),
        json!({"idle_seconds": 0}),
        json!({"max_bytes": null}),
        json!({"max_age": 60}),
        json!([]),
    ] {
        worker.post(path, &bad).await.refused(400, "invalid");
    }
    let info = worker.get("/v1/sessions/s").await.ok();
    assert_eq!(info["events"], 4);
}
