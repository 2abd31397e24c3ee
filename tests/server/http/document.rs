//! `GET /openapi.json`: the document and the router agree.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{NewEvent, Options};

use crate::support::{Answer, KEY, Scene, post, request, said};

/// Each call of the document as method and path.
fn calls(document: &Value) -> Vec<(Method, String)> {
    let paths = document["paths"].as_object().unwrap();
    let methods = |item: &Value| {
        item.as_object()
            .unwrap()
            .keys()
            .map(|method| method.to_uppercase().parse().unwrap())
            .collect::<Vec<Method>>()
    };
    paths
        .iter()
        .flat_map(|(path, item)| {
            methods(item)
                .into_iter()
                .map(move |method| (method, path.clone()))
        })
        .collect()
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_names_the_calls_of_the_contract() {
    let scene = Scene::new();
    let document = scene.get("/openapi.json").await.ok();
    assert_eq!(document["openapi"], "3.1.0");
    let named: BTreeSet<_> = calls(&document)
        .into_iter()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    let contract = [
        "DELETE /v1/events/{event_id}",
        "DELETE /v1/sessions/{session_id}",
        "DELETE /v1/sessions/{session_id}/events",
        "GET /healthz",
        "GET /livez",
        "GET /metrics",
        "GET /readyz",
        "GET /v1/events/{event_id}",
        "GET /v1/feed",
        "GET /v1/messages/{message_id}",
        "GET /v1/sessions",
        "GET /v1/sessions/{session_id}",
        "GET /v1/sessions/{session_id}/events",
        "GET /v1/sessions/{session_id}/messages",
        "GET /v1/sessions/{session_id}/stream",
        "GET /v1/stats",
        "PATCH /v1/sessions/{session_id}",
        "POST /v1/compact",
        "POST /v1/retention/plan",
        "POST /v1/sessions",
        "POST /v1/sessions/{session_id}/events",
        "POST /v1/sessions/{session_id}/fork",
    ];
    assert_eq!(named, contract.map(String::from).into());
    assert_eq!(document["security"], json!([{"bearer": []}]));
    assert_eq!(
        document["components"]["securitySchemes"]["bearer"],
        json!({"type": "http", "scheme": "bearer"})
    );
}

/// Checks that an answer matches the document's schema for its status.
fn check(document: &Value, path: &str, method: &str, answer: &Answer) {
    let status = answer.status.as_u16().to_string();
    let responses = &document["paths"][path][method]["responses"];
    let response = responses.get(&status).unwrap_or(&responses["default"]);
    assert!(
        response.is_object(),
        "{method} {path} answers {status}, which is not in the document"
    );
    if answer.body.is_empty() {
        return assert_eq!(response.get("content"), None, "{method} {path} {status}");
    }
    let media = answer.headers["content-type"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap();
    let schema = &response["content"][media]["schema"];
    assert!(
        schema.is_object(),
        "{method} {path} answers {status} as {media}, which is not in the document"
    );
    if media != "application/json" {
        return;
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "components": document["components"],
        "allOf": [schema]
    });
    let body = answer.json();
    if let Err(error) = jsonschema::validate(&schema, &body) {
        panic!(
            "{method} {path} {status}: {error} at {} in {body}",
            error.instance_path()
        );
    }
}

/// Calls that read, with their paths in the document.
fn reads(event: &str, message: &str) -> Vec<(&'static str, String)> {
    let (events, messages) = (
        "/v1/sessions/{session_id}/events",
        "/v1/sessions/{session_id}/messages",
    );
    vec![
        (events, "/v1/sessions/s/events".to_owned()),
        (
            events,
            format!("/v1/sessions/s/events?after={event}&type=list"),
        ),
        (events, "/v1/sessions/s/events?type=none".to_owned()),
        (events, "/v1/sessions/s/events?limit=0".to_owned()),
        (events, "/v1/sessions/t/events".to_owned()),
        (messages, "/v1/sessions/s/messages".to_owned()),
        (messages, "/v1/sessions/s/messages?status=open".to_owned()),
        (messages, "/v1/sessions/s/messages?status=closed".to_owned()),
        (messages, "/v1/sessions/t/messages".to_owned()),
        (
            "/v1/messages/{message_id}",
            format!("/v1/messages/{message}"),
        ),
        ("/v1/messages/{message_id}", "/v1/messages/msg_x".to_owned()),
        (
            "/v1/messages/{message_id}",
            "/v1/messages/msg_01JQ3W8K5T0000000000000001".to_owned(),
        ),
        ("/v1/sessions", "/v1/sessions".to_owned()),
        ("/v1/sessions", "/v1/sessions?limit=0".to_owned()),
        (
            "/v1/sessions/{session_id}/stream",
            "/v1/sessions/s/stream?follow=false".to_owned(),
        ),
        (
            "/v1/sessions/{session_id}/stream",
            "/v1/sessions/t/stream".to_owned(),
        ),
        ("/healthz", "/healthz".to_owned()),
        ("/livez", "/livez".to_owned()),
        ("/readyz", "/readyz".to_owned()),
        ("/metrics", "/metrics".to_owned()),
    ]
}

async fn check_that_each_call_is_there(scene: &Scene, document: &Value, message: &str) {
    for (method, path) in calls(document) {
        let at = path
            .replace("{session_id}", "s")
            .replace("{event_id}", &message.replace("msg_", "evt_"))
            .replace("{message_id}", message);
        let mut unauthorized = request(method.clone(), &at, Body::empty());
        unauthorized.headers_mut().remove("authorization");
        if at.starts_with("/v1") {
            check(
                document,
                &path,
                &method.as_str().to_lowercase(),
                &scene.call(unauthorized).await,
            );
        }
        let answer = scene
            .call(request(
                method.clone(),
                &format!("{at}?follow=false"),
                Body::empty(),
            ))
            .await;
        assert!(
            ![404, 405].contains(&answer.status.as_u16()),
            "{method} {path} is in the document and not in the router"
        );
    }
}

#[tokio::test]
async fn every_answer_is_as_the_document_says() {
    let scene = Scene::new();
    let document = scene.get("/openapi.json").await.ok();
    let events = "/v1/sessions/{session_id}/events";
    let appended = scene.post("s", said("x")).await;
    let id = appended.ok()["events"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let message = id.replace("evt_", "msg_");
    scene.note(
        "s",
        [
            NewEvent::new("bytes", vec![0xFF]),
            NewEvent::new("list", "[1]"),
        ],
    );
    let turn = message.parse().unwrap();
    scene.note(
        "s",
        [NewEvent::new("assistant.message_completed", "[1]").in_turn(turn)],
    );
    scene.note(
        "s",
        [NewEvent::new(
            "message.status_changed",
            r#"{"status":"failed","error":{"a":1}}"#,
        )
        .in_turn(turn)],
    );
    check(&document, events, "post", &appended);
    check(&document, events, "post", &scene.post("s", "{").await);
    check(
        &document,
        events,
        "post",
        &scene
            .call(post("s", said("x")).header("if-match", "\"99\"").build())
            .await,
    );
    check(
        &document,
        events,
        "post",
        &scene
            .call(
                post("s", said("x"))
                    .header("content-type", "text/plain")
                    .build(),
            )
            .await,
    );
    for (path, at) in reads(&id, &message) {
        check(&document, path, "get", &scene.get(&at).await);
    }
    check_that_each_call_is_there(&scene, &document, &message).await;
    check_calls_of_workers(&scene, &document, &id).await;
}

async fn check_calls_of_workers(scene: &Scene, document: &Value, event: &str) {
    let worker = scene.as_worker();
    let one = "/v1/sessions/{session_id}";
    let events = "/v1/sessions/{session_id}/events";
    let fork = "/v1/sessions/{session_id}/fork";
    let plan = "/v1/retention/plan";
    let of_event = format!("/v1/events/{event}");
    let step = json!({"events": [{"type": "step", "data": 1}], "close": true});
    let full = json!({"id": "u", "title": "T", "metadata": {"a": 1}, "events": step["events"]});
    let none = Value::Null;
    for (method, path, at, body) in [
        ("post", "/v1/sessions", "/v1/sessions", &full),
        ("post", "/v1/sessions", "/v1/sessions", &full),
        ("post", "/v1/sessions", "/v1/sessions", &json!({"id": 1})),
        ("get", one, "/v1/sessions/u", &none),
        ("get", one, "/v1/sessions/nobody", &none),
        ("patch", one, "/v1/sessions/u", &json!({"hold": false})),
        ("patch", one, "/v1/sessions/u", &json!({"hold": 1})),
        ("patch", one, "/v1/sessions/nobody", &json!({})),
        ("delete", one, "/v1/sessions/nobody", &none),
        ("post", fork, "/v1/sessions/u/fork", &json!({"id": "f"})),
        ("post", fork, "/v1/sessions/u/fork", &json!({"id": "f"})),
        ("post", fork, "/v1/sessions/nobody/fork", &json!({})),
        ("get", "/v1/sessions", "/v1/sessions?order=id", &none),
        ("post", events, "/v1/sessions/u/events", &step),
        ("post", events, "/v1/sessions/u/events", &step),
        ("delete", events, "/v1/sessions/s/events?before=2", &none),
        ("delete", events, "/v1/sessions/s/events", &none),
        ("get", events, "/v1/sessions/s/events?after=evt_x", &none),
        ("get", "/v1/events/{event_id}", &*of_event, &none),
        ("delete", "/v1/events/{event_id}", &*of_event, &none),
        ("delete", one, "/v1/sessions/u", &none),
        ("get", "/v1/feed", "/v1/feed", &none),
        ("get", "/v1/feed", "/v1/feed?wait=x", &none),
        ("post", "/v1/compact", "/v1/compact", &none),
        ("get", "/v1/stats", "/v1/stats", &none),
        ("post", plan, plan, &json!({"max_events": 1})),
        ("post", plan, plan, &json!({"max_events": 0})),
    ] {
        let sent = method.to_uppercase().parse().unwrap();
        check(document, path, method, &worker.send(sent, at, body).await);
    }
}

#[tokio::test]
async fn every_call_may_be_answered_by_a_server_that_stops() {
    let config = Config::with_api_key(KEY);
    let stopper = config.stopper();
    let scene = Scene::with(config, Options::new());
    let document = scene.get("/openapi.json").await.ok();
    stopper.stop();
    for (method, path) in calls(&document)
        .into_iter()
        .filter(|(_, path)| path.starts_with("/v1"))
    {
        let at = path
            .replace("{session_id}", "s")
            .replace("{event_id}", "evt_x")
            .replace("{message_id}", "msg_x");
        let answer = scene
            .call(request(method.clone(), &at, Body::empty()))
            .await;
        answer.refused(503, "closed");
        assert_eq!(answer.headers["retry-after"], "1", "{method} {path}");
        check(&document, &path, &method.as_str().to_lowercase(), &answer);
    }
}

#[tokio::test]
async fn what_the_document_takes_the_router_takes() {
    let scene = Scene::new();
    let document = scene.get("/openapi.json").await.ok();
    let call = &document["paths"]["/v1/sessions/{session_id}/events"]["post"];
    let schema = &call["requestBody"]["content"]["application/json"]["schema"];
    let schema = json!({"components": document["components"], "allOf": [schema]});
    let message = |more: Value| {
        let mut message =
            json!({"type": "user.message", "content": [{"type": "text", "text": "x"}]});
        message
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        message
    };
    for body in [
        json!({"events": [message(json!({}))]}),
        json!({"events": [
            message(json!({"metadata": {"a": [1, null]}})),
            message(json!({"content": []}))
        ]}),
        json!({"events": [message(json!({"content": [{"type": "new", "any": {}}]}))]}),
        json!({"events": []}),
        json!({"events": [message(json!({"type": "other"}))]}),
        json!({"events": [message(json!({"metadata": null}))]}),
        json!({"events": [message(json!({"metadata": []}))]}),
        json!({"events": [message(json!({"content": [{"text": "x"}]}))]}),
        json!({"events": [message(json!({"content": "x"}))]}),
        json!({"events": [message(json!({"more": 1}))]}),
        json!({"events": [{"type": "user.message"}]}),
        json!({"more": 1}),
        json!([]),
    ] {
        let taken = scene.post("s", body.to_string()).await.status == 200;
        assert_eq!(jsonschema::is_valid(&schema, &body), taken, "{body}");
    }
    let step = json!({"type": "step", "data": null});
    for body in [
        json!({"close": true}),
        json!({"events": [step], "close": true}),
        json!({"events": [step], "close": false}),
        json!({"events": [step, message(json!({}))]}),
        json!({"close": false}),
        json!({"close": null}),
        json!({"close": "true"}),
        json!({"close": true, "more": 1}),
        json!({"events": [], "close": true}),
        json!({"events": [{"type": "step"}]}),
        json!({}),
    ] {
        let worker = scene.as_worker();
        scene.note("open", [NewEvent::new("note", "1")]);
        let answer = worker.post("/v1/sessions/open/events", &body).await;
        let taken = answer.status == 200;
        assert_eq!(jsonschema::is_valid(&schema, &body), taken, "{body}");
        let reopened = json!({"closed": false});
        worker
            .send(Method::PATCH, "/v1/sessions/open", &reopened)
            .await
            .ok();
    }
}
