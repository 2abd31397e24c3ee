//! Authentication, and the limits.

use axum::body::Body;
use axum::http::{Method, Request};
use sessionlog::Options;
use sessionlog::http::Config;

use crate::support::{KEY, Scene, post, request, said};

fn bare(path: &str) -> Request<Body> {
    Request::builder().uri(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn only_the_bearer_of_a_key_is_let_in() {
    let scene = Scene::with(
        Config::with_api_key(KEY).api_key("the next key"),
        Options::new(),
    );
    scene.post("s", said("x")).await.ok();
    for path in [
        "/v1/sessions",
        "/v1/sessions/s/events",
        "/v1/sessions/s/stream",
        "/v1/sessions/s/messages",
        "/v1/messages/msg_x",
    ] {
        let answer = scene.call(bare(path)).await;
        assert_eq!(answer.refused(401, "missing_token")["type"], "unauthorized");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        for wrong in [
            "Bearer",
            "Bearer ",
            "Bearer x",
            "Bearer the key x",
            "bearer",
            "Basic dGhlIGtleQ==",
            "the key",
            "Bearer the ke",
        ] {
            let mut request = bare(path);
            request
                .headers_mut()
                .insert("authorization", wrong.parse().unwrap());
            assert_eq!(scene.call(request).await.status, 401, "{path} {wrong:?}");
        }
    }
    for right in ["Bearer the key", "bearer the key", "BEARER the next key"] {
        let mut request = bare("/v1/sessions/s/events");
        request
            .headers_mut()
            .insert("authorization", right.parse().unwrap());
        assert_eq!(scene.call(request).await.status, 200, "{right}");
    }
    let mut unauthorized = post("s", said("x")).build();
    unauthorized.headers_mut().remove("authorization");
    assert_eq!(scene.call(unauthorized).await.status, 401);
    assert_eq!(scene.log.stats().events, 1);
    for path in ["/", "/healthz", "/metrics", "/openapi.json"] {
        assert_eq!(scene.call(bare(path)).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn an_empty_key_lets_nobody_in_and_an_open_router_everybody() {
    let scene = Scene::with(Config::with_api_key(""), Options::new());
    for header in ["", "Bearer", "Bearer ", "Bearer x"] {
        let mut request = bare("/v1/sessions");
        request
            .headers_mut()
            .insert("authorization", header.parse().unwrap());
        assert_eq!(scene.call(request).await.status, 401, "{header:?}");
    }
    let scene = Scene::with(Config::open(), Options::new());
    assert_eq!(scene.call(bare("/v1/sessions")).await.status, 200);
}

#[tokio::test]
async fn a_router_may_answer_for_some_hosts_alone() {
    let scene = Scene::with(
        Config::open().hosts(["localhost", "127.0.0.1", "[::1]"]),
        Options::new(),
    );
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST:8080", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8080", 421),
        ("", 421),
        ("@", 421),
    ] {
        let mut request = bare("/v1/sessions");
        request.headers_mut().insert("host", host.parse().unwrap());
        assert_eq!(scene.call(request).await.status, status, "{host:?}");
    }
    scene.call(bare("/")).await.refused(421, "wrong_host");
}

/// Headers that two servers on the way may read differently.
#[tokio::test]
async fn a_request_for_an_ambiguous_host_or_in_an_unknown_coding_is_refused() {
    let local = Scene::with(Config::open().hosts(["localhost"]), Options::new());
    let any = Scene::with(Config::open(), Options::new());
    for hosts in [
        &["evil.example@localhost"][..],
        &["localhost@localhost"],
        &["localhost", "evil.example"],
        &["localhost", "localhost"],
    ] {
        for (scene, status, code) in [(&local, 421, "wrong_host"), (&any, 400, "bad_host")] {
            let mut request = bare("/v1/sessions");
            for host in hosts {
                request.headers_mut().append("host", host.parse().unwrap());
            }
            scene.call(request).await.refused(status, code);
        }
    }
    let mut elsewhere = bare("http://evil.example/v1/sessions");
    elsewhere
        .headers_mut()
        .insert("host", "localhost".parse().unwrap());
    local.call(elsewhere).await.refused(421, "wrong_host");
    for coding in [
        "gzip, chunked",
        "gzip",
        "identity",
        "chunked, chunked",
        "xchunked",
    ] {
        let mut request = post("s", said("x")).build();
        request
            .headers_mut()
            .insert("transfer-encoding", coding.parse().unwrap());
        any.call(request)
            .await
            .refused(501, "unsupported_transfer_encoding");
    }
    let mut request = post("s", said("x")).build();
    request
        .headers_mut()
        .insert("transfer-encoding", "Chunked".parse().unwrap());
    any.call(request).await.ok();
    for path in ["/", "/healthz", "/v1/sessions", "/nowhere"] {
        assert_eq!(
            any.call(bare(path)).await.headers["cross-origin-resource-policy"],
            "same-origin",
            "{path}"
        );
    }
}

#[tokio::test]
async fn made_up_methods_leave_no_trace() {
    let scene = Scene::new();
    for method in ["AAAAAAA", "AAAAAAB", "BREW"] {
        scene
            .call(request(method.parse().unwrap(), "/", Body::empty()))
            .await;
    }
    let figures = String::from_utf8(scene.get("/metrics").await.body).unwrap();
    assert!(
        figures.contains(
            "sessionlog_http_requests_total{method=\"other\",route=\"/\",status=\"405\"} 3"
        ),
        "{figures}"
    );
}

#[tokio::test]
async fn heads_that_are_too_long_are_refused() {
    let scene = Scene::new();
    let long = format!("/v1/sessions/s/events?x={}", "y".repeat(8 * 1024));
    assert_eq!(
        scene.get(&long).await.refused(414, "url_too_long")["limit"],
        8 * 1024
    );
    let mut request = request(Method::GET, "/v1/sessions", Body::empty());
    for n in 0..40 {
        request.headers_mut().append(
            "x-padding",
            format!("{n}{}", "y".repeat(1_000)).parse().unwrap(),
        );
    }
    assert_eq!(
        scene.call(request).await.refused(431, "headers_too_large")["limit"],
        32 * 1024
    );
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json_too() {
    let scene = Scene::new();
    for path in [
        "/x",
        "/v1",
        "/v1/sessions/s/events/",
        "/v1//sessions",
        "/index.html",
    ] {
        let answer = scene.get(path).await;
        assert_eq!(
            answer.refused(404, "unknown_path")["type"],
            "not_found",
            "{path}"
        );
    }
    for (method, path, allowed) in [
        (
            Method::PATCH,
            "/v1/sessions/s/events",
            "DELETE,GET,HEAD,POST",
        ),
        (Method::PUT, "/v1/sessions/s/events", "DELETE,GET,HEAD,POST"),
        (Method::POST, "/v1/sessions/s/stream", "GET,HEAD"),
        (Method::PATCH, "/v1/messages/x", "GET,HEAD"),
        (Method::POST, "/healthz", "GET,HEAD"),
        (Method::OPTIONS, "/", "GET,HEAD"),
    ] {
        let answer = scene
            .call(request(method.clone(), path, Body::empty()))
            .await;
        assert_eq!(
            answer.refused(405, "method_not_allowed")["type"],
            "method_not_allowed",
            "{method} {path}"
        );
        let mut listed: Vec<_> = answer.headers["allow"]
            .to_str()
            .unwrap()
            .split(',')
            .collect();
        listed.sort_unstable();
        assert_eq!(listed.join(","), allowed, "{method} {path}");
    }
}

#[tokio::test]
async fn answers_are_not_to_be_kept_and_not_to_be_guessed_at() {
    let scene = Scene::new();
    for path in ["/v1/sessions", "/x", "/", "/metrics"] {
        let answer = scene.get(path).await;
        assert_eq!(
            (
                &answer.headers["cache-control"],
                &answer.headers["x-content-type-options"]
            ),
            (&"no-store".parse().unwrap(), &"nosniff".parse().unwrap())
        );
    }
    let page = scene.get("/").await;
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .starts_with("default-src 'none'")
    );
    assert!(
        page.body.len() < 36_000,
        "the page has {} bytes",
        page.body.len()
    );
}
