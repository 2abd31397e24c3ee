//! Bad input gets an error with a reason, and leaves the stream as it was.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use futures_util::StreamExt;
use serde_json::Value;
use sessionlog::Options;
use sessionlog::http::Config;
use tower::ServiceExt;

use crate::durable_streams::{CLOSE, Ds, Headers, JSON, TEXT, header, is};

const FORK: (&str, &str) = ("stream-forked-from", "/ds/a");

/// Checks that an error has the shape of all others.
#[track_caller]
fn refused(answer: crate::support::Answer, status: u16) {
    let answer = is(answer, status);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(body["error"]["message"].is_string(), "{body}");
    assert_eq!(header(&answer, "x-content-type-options"), Some("nosniff"));
}

#[tokio::test]
async fn what_is_no_stream_is_not_created() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "abc").await, 201);
    let long = "x".repeat(300);
    let cases: &[(u16, Headers<'_>, &str)] = &[
        (400, &[("content-type", "text")], ""),
        (400, &[("content-type", &long)], ""),
        (400, &[TEXT, ("stream-ttl", "-1")], ""),
        (400, &[TEXT, ("stream-ttl", "9007199254740992")], ""),
        (400, &[TEXT, ("stream-ttl", "1"), ("stream-ttl", "2")], ""),
        (400, &[TEXT, ("stream-expires-at", "tomorrow")], ""),
        (
            400,
            &[TEXT, ("stream-expires-at", "2030-02-30T00:00:00Z")],
            "",
        ),
        (400, &[JSON], "{"),
        (400, &[JSON], "1 2"),
        (415, &[TEXT, ("content-encoding", "gzip")], "x"),
        (
            400,
            &[("stream-fork-offset", "0000000000000000_0000000000000000")],
            "",
        ),
        (400, &[FORK, ("stream-fork-offset", "now")], ""),
        (
            400,
            &[
                FORK,
                ("stream-fork-offset", "0000000000000001_0000000000000000"),
            ],
            "",
        ),
        (
            400,
            &[
                FORK,
                ("stream-fork-offset", "0000000000000000_0000000000000009"),
            ],
            "",
        ),
        (400, &[("stream-forked-from", "ds/a")], ""),
        (400, &[("stream-forked-from", "/ds/%ff")], ""),
        (404, &[("stream-forked-from", "/ds/b")], ""),
        (404, &[("stream-forked-from", "/elsewhere/a")], ""),
    ];
    for (status, headers, body) in cases {
        refused(ds.put("/ds/b", headers, *body).await, *status);
        refused(ds.get("/ds/b").await, 404);
    }
    for (path, status) in [
        (format!("/ds/{}", "p".repeat(254)), 400),
        ("/ds/a%0Ab".to_owned(), 400),
        ("/ds/%ff".to_owned(), 400),
        ("/ds/a/%2E%2E/b".to_owned(), 400),
        ("/ds/__ds/subscriptions/x".to_owned(), 501),
    ] {
        refused(ds.put(&path, &[TEXT], "").await, status);
    }
    refused(
        ds.call(Method::PATCH, "/ds/a", &[], Body::empty()).await,
        405,
    );
}

#[tokio::test]
async fn a_refused_append_leaves_the_stream_as_it_was() {
    let ds = Ds::with(Config::open().body_bytes_max(20_000), Options::new());
    is(ds.put("/ds/a", &[JSON], "[1]").await, 201);
    is(
        ds.post("/ds/a", &[JSON, ("stream-seq", "5")], "2").await,
        204,
    );
    let before = is(ds.head("/ds/a").await, 200);
    let long = "x".repeat(1025);
    let many = format!("[{}1]", "1,".repeat(1000));
    let large = "1".repeat(20_001);
    let producer = [
        ("producer-id", "p"),
        ("producer-epoch", "0"),
        ("producer-seq", "0"),
    ];
    let cases: &[(u16, Headers<'_>, &str)] = &[
        (400, &[JSON], ""),
        (400, &[JSON], "[]"),
        (400, &[JSON], "[1,]"),
        (400, &[JSON], "\u{feff}1"),
        (400, &[], "1"),
        (409, &[TEXT], "1"),
        (409, &[JSON, ("stream-seq", "5")], "1"),
        (409, &[JSON, ("stream-seq", "")], "1"),
        (400, &[JSON, ("stream-seq", &long)], "1"),
        (400, &[JSON, ("stream-seq", "6"), ("stream-seq", "7")], "1"),
        (400, &[JSON, producer[0], producer[1]], "1"),
        (
            400,
            &[
                JSON,
                producer[0],
                producer[1],
                ("producer-seq", "9007199254740992"),
            ],
            "1",
        ),
        (
            409,
            &[JSON, producer[0], producer[1], ("producer-seq", "1")],
            "1",
        ),
        (413, &[JSON], &many),
        (413, &[JSON], &large),
        (415, &[JSON, ("content-encoding", "br")], "1"),
        // What is wrong comes before the closing.
        (400, &[JSON, CLOSE], "["),
    ];
    for (status, headers, body) in cases {
        refused(ds.post("/ds/a", headers, (*body).to_owned()).await, *status);
        let after = is(ds.head("/ds/a").await, 200);
        assert_eq!(after.headers, before.headers, "{headers:?} {body:.20}");
    }
    refused(ds.post("/ds/b", &[JSON], "1").await, 404);
    assert!(
        ds.scene.log.session(&"ds/b".parse().unwrap()).is_err(),
        "an append creates nothing"
    );
    // Only `true` closes.
    for value in ["false", "yes", "1", ""] {
        is(
            ds.post("/ds/a", &[JSON, ("stream-closed", value)], "3")
                .await,
            204,
        );
    }
    is(
        ds.post("/ds/a", &[("stream-closed", "TRUE")], "").await,
        204,
    );
    // That it is closed comes before what else is wrong.
    refused(ds.post("/ds/a", &[TEXT], "1").await, 409);
    refused(ds.delete("/ds/b").await, 404);
}

#[tokio::test]
async fn a_read_from_nowhere_is_refused() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "abc").await, 201);
    for query in [
        "offset=",
        "offset=1",
        "offset=0_0",
        "offset=-2",
        "offset=NOW",
        "offset=0000000000000000_0000000000000002",
        "offset=0000000000000001_0000000000000000",
        "offset=-1&offset=-1",
        "live=long-poll",
        "live=sse",
        "offset=-1&live=always",
    ] {
        refused(ds.get(&format!("/ds/a?{query}")).await, 400);
    }
    let log = &ds.scene.log;
    is(ds.post("/ds/a", &[TEXT], "def").await, 204);
    log.trim(&"ds/a".parse().unwrap(), 2).unwrap();
    refused(
        ds.get("/ds/a?offset=0000000000000000_0000000000000000")
            .await,
        410,
    );
    assert_eq!(ds.text("/ds/a?offset=-1").await, "def");
}

/// Text may be appended in parts that are no text by themselves.
#[tokio::test]
async fn a_character_in_two_parts_is_sent_whole() {
    let ds = Ds::open();
    let (first, second) = "a€b".as_bytes().split_at(2);
    is(ds.put("/ds/a", &[TEXT], first.to_vec()).await, 201);
    let follow = ds.request(Method::GET, "/ds/a?offset=-1&live=sse", &[], Body::empty());
    let followed = ds.scene.router.clone().oneshot(follow).await.unwrap();
    assert_eq!(followed.status(), StatusCode::OK);
    let mut frames = followed.into_body().into_data_stream();
    let begin = frames.next().await.unwrap().unwrap();
    let begin = std::str::from_utf8(&begin).unwrap();
    assert!(
        !begin.contains("event: data") && !begin.contains("upToDate"),
        "{begin}"
    );
    is(ds.post("/ds/a", &[TEXT, CLOSE], second.to_vec()).await, 204);
    let mut rest = String::new();
    while let Some(frame) = frames.next().await {
        rest.push_str(std::str::from_utf8(&frame.unwrap()).unwrap());
    }
    assert!(rest.starts_with("event: data\ndata:a€b\n\n"), "{rest}");
    assert!(rest.contains("\"streamClosed\":true"), "{rest}");
}

#[tokio::test]
async fn a_path_for_streams_takes_none_of_the_http_api() {
    use sessionlog::durable_streams::check_path;
    for path in ["/ds", "/a/b-c._~1", "/v1stream"] {
        check_path(path).unwrap();
    }
    for path in [
        "", "/", "ds", "/ds/", "//", "/v1", "/v1/x", "/metrics", "/a b", "/{x}", "/..", "/*x",
    ] {
        check_path(path).unwrap_err();
    }
}

#[tokio::test]
async fn no_path_of_the_http_api_holds_streams() {
    let document = crate::support::Scene::new().get("/openapi.json").await.ok();
    for path in document["paths"].as_object().unwrap().keys() {
        let first = path.split('/').nth(1).unwrap();
        sessionlog::durable_streams::check_path(&format!("/{first}")).expect_err(path);
    }
}
