//! The two kinds of keys, and keys that are bound to an ID prefix.

use axum::http::Method;
use serde_json::{Value, json};
use sessionlog::http::{Config, Key, Scope};
use sessionlog::{Fork, NewEvent, Options};

use crate::support::{Caller, KEY, Scene, WORKER_KEY};

/// Every call that changes more than an append of messages does, or shows all sessions.
fn calls_of_workers(event: &str) -> Vec<(Method, String, Value)> {
    let none = Value::Null;
    vec![
        (Method::POST, "/v1/sessions".to_owned(), json!({})),
        (Method::PATCH, "/v1/sessions/s".to_owned(), json!({})),
        (Method::DELETE, "/v1/sessions/s".to_owned(), none.clone()),
        (
            Method::DELETE,
            "/v1/sessions/s/events?before=1".to_owned(),
            none.clone(),
        ),
        (Method::DELETE, format!("/v1/events/{event}"), none.clone()),
        (Method::POST, "/v1/sessions/s/fork".to_owned(), json!({})),
        (
            Method::POST,
            "/v1/sessions/s/events".to_owned(),
            json!({"close": true}),
        ),
        (Method::GET, "/v1/feed".to_owned(), none.clone()),
        (Method::POST, "/v1/compact".to_owned(), none.clone()),
        (Method::GET, "/v1/stats".to_owned(), none),
        (Method::POST, "/v1/retention/plan".to_owned(), json!({})),
    ]
}

#[tokio::test]
async fn the_key_of_a_client_does_not_do_the_work_of_a_worker() {
    let scene = Scene::new();
    let event = scene.note("s", [NewEvent::new("note", "1")])[0].id;
    let without_workers = Scene::with(Config::with_api_key(KEY), Options::new());
    for (method, path, body) in calls_of_workers(&event.to_string()) {
        for scene in [&scene, &without_workers] {
            let answer = scene.as_client().send(method.clone(), &path, &body).await;
            assert_eq!(
                answer.refused(403, "forbidden")["type"],
                "forbidden",
                "{method} {path}"
            );
        }
        let answer = Caller::new(&without_workers, WORKER_KEY);
        let answer = answer.send(method.clone(), &path, &body).await;
        answer.refused(401, "wrong_token");
    }
    let info = scene.as_worker().get("/v1/sessions/s").await.ok();
    assert_eq!((&info["events"], &info["revision"]), (&json!(1), &json!(0)));
    let open = Scene::with(Config::open().worker_key(WORKER_KEY), Options::new());
    let refused = Caller::new(&open, "x");
    let refused = refused.send(Method::GET, "/v1/stats", &Value::Null).await;
    refused.refused(403, "forbidden");
    open.as_worker().get("/v1/stats").await.ok();
}

/// A scene with a worker of the tenant `t9`, a client of it, and sessions of two tenants.
fn tenants() -> Scene {
    let config = Config::with_api_key(KEY)
        .worker_key(WORKER_KEY)
        .key(Key::new("nine").prefix("t9/").scope(Scope::Worker))
        .key(Key::new("nine reads").prefix("t9/"));
    let scene = Scene::with(config, Options::new());
    for session in ["t9/a", "t9/b", "t8/a"] {
        let message = r#"{"content":[],"metadata":{}}"#;
        scene.note(session, [NewEvent::new("user.message", message)]);
    }
    scene
}

#[tokio::test]
async fn a_bound_key_sees_no_session_of_others() {
    let scene = tenants();
    let other = scene.note("t8/a", [NewEvent::new("note", "1")])[0].id;
    let opening = scene.as_worker().get("/v1/sessions/t8%2Fa/messages").await;
    let message = opening.ok()["messages"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for key in ["nine", "nine reads"] {
        let caller = Caller::new(&scene, key);
        for path in ["", "/events", "/stream", "/messages", "/events?wait=1"] {
            let answer = caller.get(&format!("/v1/sessions/t8%2Fa{path}")).await;
            answer.refused(404, "unknown_session");
        }
        let answer = caller.get(&format!("/v1/events/{other}")).await;
        answer.refused(404, "unknown_event");
        let answer = caller.get(&format!("/v1/messages/{message}?wait=1")).await;
        answer.refused(404, "unknown_message");
        let said = json!({"events": [{"type": "user.message", "content": []}]});
        let path = "/v1/sessions/t8%2Fa/events";
        let answer = caller.send(Method::POST, path, &said).await;
        answer.refused(404, "unknown_session");
        let path = "/v1/sessions/t9%2Fa/events";
        caller.send(Method::POST, path, &said).await.ok();
        // Whether another tenant has this event is not said either.
        let unknown = "evt_01JQ3W8K5T0000000000000001";
        for id in [other.to_string(), unknown.to_owned()] {
            let answer = caller.get(&format!("{path}?after={id}")).await;
            answer.refused(400, "cursor_unknown");
        }
        for order in ["recent", "id", "created"] {
            for (prefix, count) in [("", 2), ("t", 2), ("t9/a", 1), ("t8/", 0), ("x", 0)] {
                let path = format!("/v1/sessions?order={order}&prefix={prefix}");
                let page = caller.get(&path).await.ok();
                let sessions = page["sessions"].as_array().unwrap().clone();
                assert_eq!(sessions.len(), count, "{order} {prefix}");
                assert!(
                    sessions
                        .iter()
                        .all(|session| { session["id"].as_str().unwrap().starts_with("t9/") })
                );
            }
        }
    }
}

#[tokio::test]
async fn a_bound_worker_changes_no_session_of_others() {
    let scene = tenants();
    let other = scene.note("t8/a", [NewEvent::new("note", "1")])[0].id;
    let tenant = Caller::new(&scene, "nine");
    let none = Value::Null;
    for (method, path, body) in [
        (Method::PATCH, "/v1/sessions/t8%2Fa", json!({"title": "x"})),
        (Method::DELETE, "/v1/sessions/t8%2Fa", none.clone()),
        (
            Method::DELETE,
            "/v1/sessions/t8%2Fa/events?before=2",
            none.clone(),
        ),
        (Method::POST, "/v1/sessions/t8%2Fa/fork", json!({})),
        (
            Method::POST,
            "/v1/sessions/t9%2Fa/fork",
            json!({"id": "t8/x"}),
        ),
        (Method::POST, "/v1/sessions", json!({"id": "t8/a"})),
        (Method::POST, "/v1/sessions", json!({"id": "t8/x"})),
    ] {
        let answer = tenant.send(method.clone(), path, &body).await;
        assert_eq!(answer.refused(404, "unknown_session")["type"], "not_found");
    }
    let path = format!("/v1/events/{other}");
    let answer = tenant.send(Method::DELETE, &path, &none).await;
    answer.refused(404, "unknown_event");
    for (method, path, body) in [
        (Method::GET, "/v1/stats", &none),
        (Method::POST, "/v1/compact", &none),
        (Method::POST, "/v1/retention/plan", &json!({})),
    ] {
        let refused = tenant.send(method, path, body).await;
        refused.refused(403, "forbidden");
    }
    let made = tenant.send(Method::POST, "/v1/sessions", &json!({})).await;
    assert!(made.json()["id"].as_str().unwrap().starts_with("t9/sess_"));
    let kept = scene.as_worker().get("/v1/sessions/t8%2Fa").await.ok();
    assert_eq!((&kept["events"], &kept["revision"]), (&json!(2), &json!(0)));
}

#[tokio::test]
async fn a_bound_worker_is_fed_its_own_sessions_alone() {
    let scene = tenants();
    let (parent, child) = ("t8/a".parse().unwrap(), "t9/fork".parse().unwrap());
    scene.log.fork(Fork::new(&parent), &child).unwrap();
    let nine = Caller::new(&scene, "nine");
    let feed = nine.get("/v1/feed").await.ok();
    let items = feed["items"].as_array().unwrap();
    let sessions: Vec<_> = items
        .iter()
        .map(|item| {
            let inner = item.get("event").or(item.get("change")).unwrap();
            inner["session_id"].as_str().unwrap()
        })
        .collect();
    assert_eq!(sessions, ["t9/a", "t9/b", "t9/fork"]);
    assert_eq!(items[2]["change"]["change"]["parent"], Value::Null);
    let fork = nine.get("/v1/sessions/t9%2Ffork").await.ok();
    assert_eq!(fork["parent"], Value::Null);
    let of_others = nine.get("/v1/feed?prefix=t8/").await.ok();
    assert_eq!(of_others["items"], json!([]));
}
