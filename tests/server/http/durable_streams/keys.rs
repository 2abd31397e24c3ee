//! What keys admit, and what pages of other sites may do.

use axum::body::Body;
use axum::http::Method;
use sessionlog::Options;
use sessionlog::http::{Config, Key, Scope};

use crate::durable_streams::{CLOSE, Ds, JSON, TEXT, header, is};

const CLIENT: &str = "the key of a client";
const WORKER: &str = "the key of a worker";
const TENANT: &str = "the key of tenant 9";

fn config() -> Config {
    Config::with_api_key(CLIENT)
        .worker_key(WORKER)
        .key(Key::new(TENANT).scope(Scope::Worker).prefix("ds/t9/"))
}

fn with_keys() -> Ds {
    Ds::with(config(), Options::new()).with_key(WORKER)
}

#[tokio::test]
async fn a_client_reads_and_a_worker_writes() {
    let mut ds = with_keys();
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    ds.key = Some(CLIENT);
    assert_eq!(ds.text("/ds/a").await, "x");
    is(ds.head("/ds/a").await, 200);
    is(ds.put("/ds/b", &[TEXT], "").await, 403);
    is(ds.post("/ds/a", &[TEXT], "y").await, 403);
    is(ds.post("/ds/a", &[CLOSE], "").await, 403);
    is(ds.delete("/ds/a").await, 403);
    for key in [None, Some("another key")] {
        ds.key = key;
        is(ds.get("/ds/a").await, 401);
        is(ds.put("/ds/b", &[TEXT], "").await, 401);
    }
    ds.key = Some(WORKER);
    let last = is(ds.head("/ds/a").await, 200);
    assert_eq!(header(&last, "stream-closed"), None);
    is(ds.get("/ds/b").await, 404);
    is(ds.post("/ds/a", &[TEXT, CLOSE], "y").await, 204);
    is(ds.delete("/ds/a").await, 204);
}

#[tokio::test]
async fn a_client_appends_a_users_messages_and_nothing_else() {
    let mut ds = with_keys();
    is(ds.put("/ds/chat", &[JSON], "").await, 201);
    ds.key = Some(CLIENT);
    let said = r#"{"type":"user.message","content":[{"type":"text","text":"hello"}]}"#;
    is(ds.post("/ds/chat", &[JSON], said).await, 204);
    for other in [
        r#"{"type":"note","data":{}}"#,
        r#"{"type":"user.message","content":1}"#,
        "1",
    ] {
        is(ds.post("/ds/chat", &[JSON], other).await, 403);
        is(
            ds.post("/ds/chat", &[JSON], format!("[{said},{other}]"))
                .await,
            403,
        );
    }
    is(ds.post("/ds/chat", &[JSON, CLOSE], said).await, 403);
    is(
        ds.post("/ds/chat", &[JSON, ("stream-seq", "1")], said)
            .await,
        403,
    );
    let producer = [
        JSON,
        ("producer-id", "p"),
        ("producer-epoch", "0"),
        ("producer-seq", "0"),
    ];
    is(ds.post("/ds/chat", &producer, said).await, 403);
    assert_eq!(ds.text("/ds/chat").await, format!("[{said}]"));
}

#[tokio::test]
async fn for_a_key_with_a_prefix_there_are_no_other_streams() {
    let mut ds = with_keys();
    is(ds.put("/ds/t8/a", &[TEXT], "x").await, 201);
    ds.key = Some(TENANT);
    is(ds.put("/ds/t9/a", &[TEXT], "y").await, 201);
    for answer in [
        ds.get("/ds/t8/a").await,
        ds.get("/ds/t8/a?offset=-1&live=long-poll").await,
        ds.get("/ds/t8/a?offset=-1&live=sse").await,
        ds.get("/ds/t8%2Fa").await,
        ds.head("/ds/t8/a").await,
        ds.put("/ds/t8/b", &[TEXT], "").await,
        ds.post("/ds/t8/a", &[TEXT], "z").await,
        ds.delete("/ds/t8/a").await,
        ds.put("/ds/t9/b", &[("stream-forked-from", "/ds/t8/a")], "")
            .await,
        ds.put("/ds/t9/b", &[("stream-forked-from", "/t8/a")], "")
            .await,
    ] {
        is(answer, 404);
    }
    ds.key = Some(WORKER);
    assert_eq!(ds.text("/ds/t8/a").await, "x");
    is(ds.get("/ds/t8/b").await, 404);
}

#[tokio::test]
async fn a_server_that_is_open_to_clients_lets_only_workers_write_if_it_has_a_key_for_them() {
    let mut ds = Ds::with(Config::open().worker_key(WORKER), Options::new());
    is(ds.put("/ds/a", &[TEXT], "").await, 403);
    ds.key = Some(WORKER);
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    ds.key = None;
    assert_eq!(ds.text("/ds/a").await, "x");
}

/// A browser sends a `POST` of text without asking the server before.
#[tokio::test]
async fn pages_of_other_sites_are_kept_out_of_a_server_without_keys() {
    let ds = Ds::open();
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    let foreign = ("origin", "https://example.org");
    is(ds.post("/ds/a", &[TEXT, foreign], "y").await, 403);
    let refused = is(
        ds.call(Method::GET, "/ds/a", &[foreign], Body::empty())
            .await,
        403,
    );
    assert_eq!(header(&refused, "access-control-allow-origin"), None);
    for own in [
        "http://localhost:5173",
        "http://127.0.0.1:1",
        "http://[::1]:1",
    ] {
        let origin = [("origin", own)];
        let read = ds.call(Method::GET, "/ds/a", &origin, Body::empty());
        let read = is(read.await, 200);
        assert_eq!(header(&read, "access-control-allow-origin"), Some(own));
    }
    let own = [
        TEXT,
        ("origin", "http://streams.test:8080"),
        ("host", "streams.test:8080"),
    ];
    is(ds.post("/ds/a", &own, "z").await, 204);
    assert_eq!(ds.text("/ds/a").await, "xz");
}

#[tokio::test]
async fn a_key_for_some_streams_does_not_learn_the_source_of_a_fork() {
    let mut ds = with_keys();
    is(ds.put("/ds/hidden", &[TEXT], "x").await, 201);
    let fork = [("stream-forked-from", "/ds/hidden")];
    is(ds.put("/ds/t9/fork", &fork, "").await, 201);
    let session = "/v1/sessions/ds%2Ft9%2Ffork";
    for (key, knows) in [(WORKER, true), (TENANT, false)] {
        ds.key = Some(key);
        for path in [session, "/v1/sessions", "/v1/feed"] {
            let shown = ds.text(path).await;
            assert!(shown.contains("ds/t9/fork"), "{shown}");
            assert_eq!(shown.contains("ds/hidden"), knows, "{key} {path}: {shown}");
        }
    }
    let own = [("stream-forked-from", "/ds/t9/fork")];
    is(ds.put("/ds/t9/own", &own, "").await, 201);
    let shown = ds.get("/v1/sessions/ds%2Ft9%2Fown").await.ok();
    assert_eq!(shown["metadata"]["durable_stream_source"], "ds/t9/fork");
}

#[tokio::test]
async fn a_cache_keeps_answers_apart_by_key_and_by_page() {
    let varies = |answer: &crate::support::Answer| -> Vec<String> {
        let values = answer.headers.get_all("vary").iter();
        values
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    };
    let ds = with_keys();
    is(ds.put("/ds/a", &[TEXT], "x").await, 201);
    let read = is(ds.get("/ds/a").await, 200);
    assert!(varies(&read).contains(&"authorization".to_owned()));
    let open = Ds::open();
    is(open.put("/ds/a", &[TEXT], "x").await, 201);
    let read = is(open.get("/ds/a").await, 200);
    assert!(varies(&read).contains(&"origin".to_owned()));
}

#[tokio::test]
async fn any_page_with_a_key_may_call() {
    let ds = with_keys();
    let foreign = ("origin", "https://example.org");
    let created = is(ds.put("/ds/a", &[TEXT, foreign], "x").await, 201);
    assert_eq!(header(&created, "access-control-allow-origin"), Some("*"));
    let shown = header(&created, "access-control-expose-headers").unwrap();
    assert!(shown.contains("stream-next-offset"), "{shown}");
    // A browser asks without a key.
    let asked = Ds::with(config(), Options::new());
    let asked = asked
        .call(Method::OPTIONS, "/ds/a", &[foreign], Body::empty())
        .await;
    let asked = is(asked, 204);
    assert_eq!(header(&asked, "access-control-allow-origin"), Some("*"));
    let refused = Ds::with(config(), Options::new());
    let refused = refused
        .call(Method::GET, "/ds/a", &[foreign], Body::empty())
        .await;
    assert_eq!(
        header(&is(refused, 401), "access-control-allow-origin"),
        Some("*")
    );
}
