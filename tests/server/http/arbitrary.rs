//! Any request gets an answer: nothing panics, and a refusal is JSON.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use futures_util::StreamExt;
use proptest::prelude::*;

use crate::support::{KEY, Scene, said};

#[derive(Debug, Clone)]
struct Arbitrary {
    method: String,
    uri: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("v1".to_owned()),
        3 => prop::sample::select(vec![
            "sessions", "messages", "events", "stream", "s", "t",
            "msg_01JQ3W8K5T0000000000000001", "healthz",
        ])
        .prop_map(str::to_owned),
        1 => "(%[0-9a-fA-F]{2}|[a-z.%]){0,12}",
        1 => "\\PC{0,8}",
    ]
}

fn pair() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        4 => prop::sample::select(vec![
            "limit", "after", "before", "order", "type", "status", "follow", "wait",
        ])
        .prop_map(str::to_owned),
        1 => "[a-z%&=]{0,6}",
    ];
    let value = prop_oneof![
        Just("desc".to_owned()),
        Just("false".to_owned()),
        Just("0".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("evt_01JQ3W8K5T0000000000000001".to_owned()),
        Just("evt_7ZZZZZZZZZZZZZZZZZZZZZZZZZ".to_owned()),
        "(%[0-9a-fA-F]{2}|[a-zA-Z0-9_+=]){0,30}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name}={value}"))
}

fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        6 => prop::sample::select(vec![
            "content-type", "idempotency-key", "if-match", "last-event-id", "content-length",
            "accept", "expect",
        ])
        .prop_map(str::to_owned),
        1 => "[a-z-]{1,12}",
    ];
    let value = prop_oneof![
        Just(b"application/json".to_vec()),
        Just(b"\"1\"".to_vec()),
        Just(b"*".to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
        "[ -~]{0,40}".prop_map(String::into_bytes),
    ];
    (name, value)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let json = || {
        prop_oneof![
            Just(said("x")),
            "\\PC{0,40}",
            r#"[\[\]{}:,"0-9a-z\\. ]{0,60}"#,
            (r#"[\[\]{}:,"0-9a-z\\]{0,40}"#).prop_map(|inside| {
                let message = format!(r#"{{"type":"user.message","content":[{inside}]}}"#);
                format!(r#"{{"events":[{message}]}}"#)
            }),
            (r#"[\[\]{}:,"0-9a-z\\]{0,40}"#).prop_map(|inside| {
                let metadata = format!(r#"{{"a":{inside}}}"#);
                let content = r#""content":[],"metadata""#;
                format!(r#"{{"events":[{{"type":"user.message",{content}:{metadata}}}]}}"#)
            }),
        ]
    };
    prop_oneof![
        4 => json().prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..200)
    ]
}

fn arbitrary() -> impl Strategy<Value = Arbitrary> {
    let method = prop_oneof![
        6 => Just("GET".to_owned()),
        6 => Just("POST".to_owned()),
        1 => "[A-Z]{1,9}",
    ];
    let path = prop::collection::vec(segment(), 0..6)
        .prop_map(|segments| format!("/{}", segments.join("/")));
    let known = prop::sample::select(vec![
        "/v1/sessions/s/events",
        "/v1/sessions/s/stream",
        "/v1/sessions/s/messages",
        "/v1/messages/msg_01JQ3W8K5T0000000000000001",
        "/v1/sessions",
    ]);
    let path = prop_oneof![1 => path, 1 => known.prop_map(str::to_owned)];
    let query = prop::collection::vec(pair(), 0..4).prop_map(|pairs| pairs.join("&"));
    let uri = (path, query).prop_map(|(path, query)| {
        if query.is_empty() {
            path
        } else {
            format!("{path}?{query}")
        }
    });
    (method, uri, prop::collection::vec(header(), 0..5), body()).prop_map(
        |(method, uri, headers, body)| Arbitrary {
            method,
            uri,
            headers,
            body,
        },
    )
}

/// Returns the request, unless no HTTP library would pass it on.
fn built(given: &Arbitrary) -> Option<Request<Body>> {
    let mut request = Request::new(Body::from(given.body.clone()));
    *request.method_mut() = given.method.parse::<Method>().ok()?;
    *request.uri_mut() = given.uri.parse::<Uri>().ok()?;
    for (name, value) in &given.headers {
        let (name, value) = (
            name.parse::<HeaderName>().ok()?,
            HeaderValue::from_bytes(value).ok()?,
        );
        request.headers_mut().append(name, value);
    }
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {KEY}").parse().ok()?);
    Some(request)
}

#[test]
fn any_request_gets_an_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let scene = Scene::new();
    runtime.block_on(scene.post("s", said("x")));
    proptest!(ProptestConfig::with_cases(2_000), |(given in arbitrary())| {
        let Some(request) = built(&given) else { return Ok(()) };
        let response = runtime
            .block_on(tower::ServiceExt::oneshot(scene.router.clone(), request))
            .unwrap();
        let status = response.status().as_u16();
        prop_assert!(status < 500, "{status}");
        if response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream") {
            // Reads what comes at once, since a stream has no end.
            let mut frames = response.into_body().into_data_stream();
            let frames = async { while frames.next().await.is_some() {} };
            drop(runtime.block_on(async {
                tokio::time::timeout(Duration::from_millis(2), frames).await
            }));
        } else if status >= 400 && given.method != "HEAD" {
            let body = runtime
                .block_on(axum::body::to_bytes(response.into_body(), usize::MAX))
                .unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            prop_assert!(body["error"]["code"].is_string(), "{body}");
        }
    });
}
