//! One session: created, described, closed, forked and deleted.

use axum::http::Method;
use serde_json::{Value, json};
use sessionlog::{NewEvent, SessionPatch};

use crate::support::{Scene, request};

fn step(n: usize) -> NewEvent {
    NewEvent::new("step", n.to_string())
}

#[tokio::test]
async fn a_session_is_created_empty_and_is_there() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let body = json!({"id": "a b/ü", "title": "Refund", "metadata": {"agent": "a1"}});
    let made = worker.post("/v1/sessions", &body).await;
    let info = made.with_status(201);
    assert_eq!(made.headers["location"], "/v1/sessions/a%20b%2F%C3%BC");
    assert_eq!(made.headers["etag"], "\"0\"");
    let path = made.headers["location"].to_str().unwrap();
    let read = scene.as_client().get(path).await;
    assert_eq!(
        (read.ok(), &read.headers["etag"]),
        (info.clone(), &"\"0\"".parse().unwrap())
    );
    let expected = json!({
        "id": "a b/ü", "generation": 1, "first_seq": 1, "last_seq": 0, "events": 0, "bytes": 0,
        "last_event_id": null, "closed": false, "hold": false, "title": "Refund",
        "metadata": {"agent": "a1"}, "parent": null,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(info[field], *value, "{field}");
    }
    assert_eq!(info["created_at"], info["last_event_at"]);
    let page = scene.get(&format!("{path}/events")).await.ok();
    assert_eq!(
        (&page["events"], &page["tail_id"]),
        (&json!([]), &Value::Null)
    );
    let again = worker.post("/v1/sessions", &body).await;
    assert_eq!(again.refused(409, "session_exists")["session_id"], "a b/ü");
}

#[tokio::test]
async fn a_session_that_is_given_no_id_gets_one() {
    let scene = Scene::new();
    let made = scene.as_worker().post("/v1/sessions", &json!({})).await;
    let id = made.with_status(201)["id"].as_str().unwrap().to_owned();
    assert!(
        id.starts_with("sess_") && id.len() == "sess_".len() + 26,
        "{id}"
    );
    assert_eq!(made.headers["location"], format!("/v1/sessions/{id}"));
}

#[tokio::test]
async fn a_session_is_created_with_its_first_events_or_not_at_all() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let body = json!({"id": "s", "title": "T", "events": [
        {"type": "user.message", "content": [{"type": "text", "text": "x"}]},
        {"type": "step", "data": [1]}
    ]});
    let key = [("idempotency-key", "k")];
    let send = || worker.with_headers(Method::POST, "/v1/sessions", &body, &key);
    let info = send().await.with_status(201);
    assert_eq!(
        (&info["last_seq"], &info["title"]),
        (&json!(2), &json!("T"))
    );
    assert_eq!(
        send().await.with_status(201),
        info,
        "a retry is answered again"
    );
    let unkeyed = worker.post("/v1/sessions", &body).await;
    unkeyed.refused(409, "session_exists");
    let without_id = json!({"events": body["events"]});
    for bad in [without_id, json!({"id": "t"})] {
        let answer = worker.with_headers(Method::POST, "/v1/sessions", &bad, &key);
        answer.await.refused(400, "invalid");
    }
    let bad = json!({"id": "t", "events": [{"type": "step"}]});
    worker
        .post("/v1/sessions", &bad)
        .await
        .refused(400, "invalid");
    scene
        .get("/v1/sessions/t")
        .await
        .refused(404, "unknown_session");
}

#[tokio::test]
async fn a_session_that_cannot_be_is_not_created() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    for (body, code) in [
        (json!([]), "invalid"),
        (json!({"id": ""}), "invalid"),
        (json!({"id": null}), "invalid"),
        (json!({"id": 1}), "invalid"),
        (json!({"id": "a\nb"}), "invalid"),
        (json!({"id": ".."}), "dot_segment"),
        (json!({"id": "x".repeat(257)}), "too_large"),
        (json!({"title": "x".repeat(1_025)}), "too_large"),
        (json!({"metadata": []}), "invalid"),
        (json!({"metadata": {"a": "x".repeat(17_000)}}), "too_large"),
        (json!({"events": {}}), "invalid"),
        (json!({"more": 1}), "invalid"),
    ] {
        worker.post("/v1/sessions", &body).await.refused(400, code);
    }
    let text = [("content-type", "text/plain")];
    let answer = worker
        .with_headers(Method::POST, "/v1/sessions", &json!({}), &text)
        .await;
    answer.refused(415, "unsupported_media_type");
    assert_eq!(scene.get("/v1/sessions").await.ok()["sessions"], json!([]));
}

#[tokio::test]
async fn a_patch_changes_what_it_names_and_nothing_else() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    scene.note("s", [step(1)]);
    let changed = async |body: Value| worker.send(Method::PATCH, "/v1/sessions/s", &body).await;
    let first = json!({"title": "T", "metadata": {"a": "1", "b": {"c": 2, "d": 3}}});
    let info = changed(first).await.ok();
    assert_eq!(info["metadata"], json!({"a": "1", "b": {"c": 2, "d": 3}}));
    let second = json!({"metadata": {"a": null, "b": {"c": null}}, "hold": true});
    let info = changed(second).await.ok();
    assert_eq!(
        (&info["title"], &info["metadata"], &info["hold"]),
        (&json!("T"), &json!({"b": {"d": 3}}), &json!(true))
    );
    assert_eq!(changed(json!({})).await.ok(), info);
    let third = json!({"title": null, "hold": false, "closed": true});
    let info = changed(third).await.ok();
    assert_eq!(
        (&info["title"], &info["closed"]),
        (&Value::Null, &json!(true))
    );
    let said = json!({"events": [{"type": "step", "data": 2}]});
    let refused = worker.post("/v1/sessions/s/events", &said).await;
    assert_eq!(refused.refused(409, "session_closed")["actual_seq"], 1);
    assert_eq!(
        changed(json!({"closed": false})).await.ok()["closed"],
        false
    );
    worker.post("/v1/sessions/s/events", &said).await.ok();
    let merge_patch = [("content-type", "application/merge-patch+json")];
    let titled = json!({"title": "U"});
    let path = "/v1/sessions/s";
    let answer = worker
        .with_headers(Method::PATCH, path, &titled, &merge_patch)
        .await;
    assert_eq!(
        (&answer.ok()["title"], &answer.headers["etag"]),
        (&json!("U"), &"\"2\"".parse().unwrap())
    );
}

#[tokio::test]
async fn a_patch_that_does_not_fit_changes_nothing() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    scene.note("s", [step(1)]);
    let path = "/v1/sessions/s";
    for bad in [
        json!([]),
        json!({"metadata": null}),
        json!({"metadata": [1]}),
        json!({"title": 1}),
        json!({"closed": null}),
        json!({"closed": "x"}),
        json!({"hold": null}),
        json!({"more": 1}),
    ] {
        let answer = worker.send(Method::PATCH, path, &bad).await;
        answer.refused(400, "invalid");
    }
    let change = json!({"title": "T", "closed": true});
    for (tag, status) in [("\"9\"", 412), ("\"9\", \"8\"", 412), ("x", 400)] {
        let tag = [("if-match", tag)];
        let answer = worker
            .with_headers(Method::PATCH, path, &change, &tag)
            .await;
        assert_eq!(answer.status, status, "{tag:?}");
    }
    let info = scene.get(path).await.ok();
    assert_eq!(
        (&info["title"], &info["revision"]),
        (&Value::Null, &json!(0))
    );
    let tag = [("if-match", "\"9\", \"1\"")];
    worker
        .with_headers(Method::PATCH, path, &change, &tag)
        .await
        .ok();
    let nobody = worker.send(Method::PATCH, "/v1/sessions/t", &change).await;
    nobody.refused(404, "unknown_session");
    scene
        .get("/v1/sessions/t")
        .await
        .refused(404, "unknown_session");
}

#[tokio::test]
async fn a_deleted_session_is_unknown_and_may_begin_again() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let event = scene.note("s", [step(1)])[0].id;
    let path = "/v1/sessions/s";
    worker
        .delete(&format!("{path}?reason={}", "x".repeat(257)))
        .await
        .refused(400, "too_large");
    worker
        .delete(&format!("{path}?unless_open=x"))
        .await
        .refused(400, "invalid");
    let elsewhere = [("if-match", "\"9\"")];
    let answer = worker
        .with_headers(Method::DELETE, path, &Value::Null, &elsewhere)
        .await;
    assert_eq!(answer.refused(412, "expected_mismatch")["actual_seq"], 1);
    let here = [("if-match", "\"1\"")];
    let answer = worker
        .with_headers(Method::DELETE, path, &Value::Null, &here)
        .await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    worker.delete(path).await.refused(404, "unknown_session");
    for gone in ["", "/events", "/stream", "/messages"] {
        scene
            .get(&format!("{path}{gone}"))
            .await
            .refused(404, "unknown_session");
    }
    scene
        .get(&format!("/v1/events/{event}"))
        .await
        .refused(404, "unknown_event");
    scene.note("s", [step(2)]);
    let info = scene.get(path).await.ok();
    assert_eq!(
        (&info["generation"], &info["last_seq"]),
        (&json!(2), &json!(1))
    );
}

#[tokio::test]
async fn a_session_on_hold_or_with_an_open_turn_is_not_deleted() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let opened = scene.note("s", [NewEvent::new("user.message", r#"{"content":[]}"#)]);
    let refused = worker.delete("/v1/sessions/s?unless_open=true").await;
    let message = opened[0].message_id.unwrap().to_string();
    assert_eq!(refused.refused(409, "turn_open")["message_id"], message);
    let hold = SessionPatch::new().hold();
    scene.log.set_metadata(&"s".parse().unwrap(), hold).unwrap();
    worker.delete("/v1/sessions/s").await.refused(409, "held");
    worker
        .send(Method::PATCH, "/v1/sessions/s", &json!({"hold": false}))
        .await
        .ok();
    assert_eq!(worker.delete("/v1/sessions/s").await.status, 204);
}

#[tokio::test]
async fn a_fork_shares_the_events_up_to_where_it_begins() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let all = scene.note("s", (1..=3).map(step));
    let body = json!({"id": "f", "at": all[1].id.to_string(), "title": "F", "metadata": {"a": 1}});
    let made = worker.post("/v1/sessions/s/fork", &body).await;
    let info = made.with_status(201);
    assert_eq!(made.headers["location"], "/v1/sessions/f");
    assert_eq!(
        (
            &info["last_seq"],
            &info["parent"],
            &info["title"],
            &info["metadata"]
        ),
        (
            &json!(2),
            &json!({"id": "s", "generation": 1, "at": 2}),
            &json!("F"),
            &json!({"a": 1})
        )
    );
    let page = scene.get("/v1/sessions/f/events").await.ok();
    assert_eq!(page["events"][1]["id"], all[1].id.to_string());
    let refused = worker.post("/v1/sessions/s/fork", &body).await;
    refused.refused(409, "session_exists");
    let by_seq = worker
        .post("/v1/sessions/s/fork", &json!({"at": "1"}))
        .await;
    assert_eq!(by_seq.with_status(201)["last_seq"], 1);
    let at_the_end = worker
        .send(Method::POST, "/v1/sessions/s/fork", &Value::Null)
        .await;
    let info = at_the_end.with_status(201);
    assert_eq!(info["last_seq"], 3);
    assert!(info["id"].as_str().unwrap().starts_with("sess_"));
}

#[tokio::test]
async fn a_fork_that_cannot_be_is_refused() {
    let scene = Scene::new();
    let worker = scene.as_worker();
    let other = scene.note("t", [step(1)])[0].id;
    scene.note("s", (1..=3).map(step));
    let fork = async |body: Value| worker.post("/v1/sessions/s/fork", &body).await;
    for (at, code) in [
        ("x", "invalid"),
        ("", "invalid"),
        ("9", "cursor_beyond_tail"),
        ("evt_01JQ3W8K5T0000000000000001", "cursor_unknown"),
        (&*other.to_string(), "cursor_of_other_session"),
    ] {
        fork(json!({"at": at})).await.refused(400, code);
    }
    fork(json!({"id": ".."})).await.refused(400, "dot_segment");
    fork(json!({"more": 1})).await.refused(400, "invalid");
    scene.log.trim(&"s".parse().unwrap(), 3).unwrap();
    let trimmed = fork(json!({"at": "1"})).await;
    assert_eq!(trimmed.refused(410, "cursor_trimmed")["first_kept_seq"], 3);
    let nobody = worker.post("/v1/sessions/nobody/fork", &json!({})).await;
    nobody.refused(404, "unknown_session");
    let mut text = request(Method::POST, "/v1/sessions/s/fork", "{}");
    text.headers_mut()
        .insert("content-type", "text/plain".parse().unwrap());
    let worker_key = format!("Bearer {}", crate::support::WORKER_KEY);
    text.headers_mut()
        .insert("authorization", worker_key.parse().unwrap());
    scene
        .call(text)
        .await
        .refused(415, "unsupported_media_type");
}
