//! A router over a log of its own, and its answers.

use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sessionlog::http::Config;
use sessionlog::{Batch, NewEvent, Options, SessionLog};
use tower::ServiceExt;

use crate::engine::open_at;
pub(crate) use crate::process::KEY;

pub(crate) const WORKER_KEY: &str = "the key of the workers";

pub(crate) struct Scene {
    pub(crate) log: SessionLog,
    pub(crate) router: Router,
    folder: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(
            Config::with_api_key(KEY).worker_key(WORKER_KEY),
            Options::new(),
        )
    }

    pub(crate) fn with(config: Config, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::create_dir(&path).unwrap();
        let log = open_at(options, &path).unwrap();
        Self {
            router: sessionlog::http::router(log.clone(), config),
            log,
            folder,
        }
    }

    /// A router over a log that is open already.
    pub(crate) fn of(log: SessionLog, config: Config) -> Self {
        Self {
            router: sessionlog::http::router(log.clone(), config),
            log,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The folder of the log.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    /// A caller with the key of clients.
    pub(crate) fn as_client(&self) -> Caller<'_> {
        Caller::new(self, KEY)
    }

    /// A caller with the key of workers.
    pub(crate) fn as_worker(&self) -> Caller<'_> {
        Caller::new(self, WORKER_KEY)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(request(Method::GET, path, Body::empty())).await
    }

    /// Opens the stream at `path`.
    pub(crate) async fn open(&self, request: Request<Body>) -> Frames {
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        Frames {
            body: response.into_body().into_data_stream(),
            text: String::new(),
        }
    }

    pub(crate) async fn post(&self, session: &str, body: impl Into<Body>) -> Answer {
        self.call(post(session, body).build()).await
    }

    /// Waits until `open` streams are open. A stream is dropped a moment after its end was read.
    pub(crate) async fn until_streams(&self, open: u64) {
        for _ in 0..4_000 {
            if self.log.stats().streams == open {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!(
            "{} streams are open, and {open} should be",
            self.log.stats().streams
        );
    }

    /// Appends through the library, as the server's own code does.
    pub(crate) fn note(
        &self,
        session: &str,
        events: impl IntoIterator<Item = NewEvent>,
    ) -> Vec<sessionlog::Event> {
        self.log
            .append(&session.parse().unwrap(), Batch::new().events(events))
            .unwrap()
            .events
    }
}

/// A caller with a key.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    scene: &'a Scene,
    key: &'a str,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(scene: &'a Scene, key: &'a str) -> Self {
        Self { scene, key }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &Value::Null).await
    }

    /// Sends a body, unless it is `null`.
    pub(crate) async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.with_headers(method, path, body, &[]).await
    }

    pub(crate) async fn with_headers(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        headers: &[(&'static str, &str)],
    ) -> Answer {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut request = request(method, path, text);
        let bearer = format!("Bearer {}", self.key);
        let json = ("content-type", "application/json");
        let json = (!body.is_null()).then_some(json);
        let all = [("authorization", &*bearer)].into_iter().chain(json);
        for (name, value) in all.chain(headers.iter().copied()) {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        self.scene.call(request).await
    }
}

pub(crate) fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"));
    request.body(body.into()).unwrap()
}

/// An append that may get more headers.
pub(crate) struct Post(Request<Body>);

pub(crate) fn post(session: &str, body: impl Into<Body>) -> Post {
    let mut request = request(
        Method::POST,
        &format!("/v1/sessions/{session}/events"),
        body,
    );
    request
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    Post(request)
}

impl Post {
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.0.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    pub(crate) fn build(self) -> Request<Body> {
        self.0
    }
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn ok(&self) -> Value {
        assert_eq!(
            self.status,
            StatusCode::OK,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    /// The body of an answer with this status.
    pub(crate) fn with_status(&self, status: u16) -> Value {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status.as_u16(), status, "{body}");
        self.json()
    }

    /// The error's fields, once it has the status and the code.
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        let body = self.json();
        let error = &body["error"];
        assert_eq!(
            (self.status.as_u16(), error["code"].as_str()),
            (status, Some(code)),
            "{body}"
        );
        assert!(
            error["type"].is_string() && error["message"].is_string(),
            "{body}"
        );
        error.clone()
    }
}

/// A body with one message of this text.
pub(crate) fn said(text: &str) -> String {
    json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": text}]}]})
        .to_string()
}

/// The frames of a stream as they come.
pub(crate) struct Frames {
    body: BodyDataStream,
    text: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) id: Option<String>,
    pub(crate) event: String,
    pub(crate) data: String,
}

impl Frames {
    /// The next frame that is no comment; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(frame) = parse(&frame) {
                    return Some(frame);
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.body.next())
                .await
                .expect("nothing comes")?
                .unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next bytes, unparsed.
    pub(crate) async fn raw(&mut self) -> String {
        let chunk = tokio::time::timeout(Duration::from_secs(20), self.body.next())
            .await
            .expect("nothing comes");
        String::from_utf8(chunk.unwrap().unwrap().to_vec()).unwrap()
    }

    pub(crate) async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        while ids.len() < count {
            ids.extend(self.next().await.expect("the stream goes on").id);
        }
        ids
    }
}

fn parse(text: &str) -> Option<Frame> {
    let mut frame = Frame::default();
    for line in text.lines() {
        match line.split_once(": ").unwrap_or((line, "")) {
            ("id", id) => frame.id = Some(id.to_owned()),
            ("event", event) => event.clone_into(&mut frame.event),
            ("data", data) => data.clone_into(&mut frame.data),
            ("" | ":", _comment) => return None,
            other => panic!("a field that is not known: {other:?}"),
        }
    }
    Some(frame)
}
