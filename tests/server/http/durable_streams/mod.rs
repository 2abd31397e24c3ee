//! The Durable Streams protocol, beyond what its public suite reaches: keys, restarts, both
//! protocols over one session, and bad input.

mod both;
mod expiry;
mod input;
mod keys;
mod kill;
mod plain;
mod restart;

use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request};
use sessionlog::http::Config;
use sessionlog::{Options, SessionLog, durable_streams};

use crate::support::{Answer, Scene};

/// Headers of a call.
type Headers<'a> = &'a [(&'static str, &'a str)];

const JSON: (&str, &str) = ("content-type", "application/json");
const TEXT: (&str, &str) = ("content-type", "text/plain");
const CLOSE: (&str, &str) = ("stream-closed", "true");

/// Both protocols over one log: the HTTP API, and streams below `/ds`.
struct Ds {
    scene: Scene,
    key: Option<&'static str>,
    /// The folder of the log, if it is not the scene's own.
    opened_in: Option<PathBuf>,
}

impl Ds {
    /// A server for development.
    fn open() -> Self {
        Self::with(Config::open(), Options::new())
    }

    fn with(config: Config, options: Options) -> Self {
        Self::around(Scene::with(config.clone(), options), config)
    }

    fn of(log: SessionLog, config: Config) -> Self {
        Self::around(Scene::of(log, config.clone()), config)
    }

    fn around(mut scene: Scene, config: Config) -> Self {
        let streams = durable_streams::router(scene.log.clone(), config);
        scene.router = Router::new()
            .nest("/ds", streams)
            .fallback_service(scene.router);
        Self {
            scene,
            key: None,
            opened_in: None,
        }
    }

    fn with_key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: Headers<'_>,
        body: Body,
    ) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body).unwrap()
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: Headers<'_>,
        body: impl Into<Body>,
    ) -> Answer {
        let request = self.request(method, path, headers, body.into());
        self.scene.call(request).await
    }

    async fn put(&self, path: &str, headers: Headers<'_>, body: impl Into<Body>) -> Answer {
        self.call(Method::PUT, path, headers, body).await
    }

    async fn post(&self, path: &str, headers: Headers<'_>, body: impl Into<Body>) -> Answer {
        self.call(Method::POST, path, headers, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Body::empty()).await
    }

    async fn head(&self, path: &str) -> Answer {
        self.call(Method::HEAD, path, &[], Body::empty()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, &[], Body::empty()).await
    }

    /// What a stream holds.
    async fn text(&self, path: &str) -> String {
        let answer = self.get(path).await;
        let text = String::from_utf8(answer.body).unwrap();
        assert_eq!(answer.status.as_u16(), 200, "{text}");
        text
    }
}

/// Checks the status of an answer, and passes it on.
#[track_caller]
fn is(answer: Answer, status: u16) -> Answer {
    let body = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status.as_u16(), status, "{body}");
    answer
}

/// The header of an answer as text.
fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer
        .headers
        .get(name)
        .map(|value| value.to_str().unwrap())
}
