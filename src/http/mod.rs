//! The HTTP API: a router to mount and a server to run. Feature `http`.
//!
//! ```no_run
//! use sessionlog::{SessionLog, http};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let log = SessionLog::open("data")?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! let until = std::future::pending(); // or a signal
//! http::serve(listener, log.clone(), http::Config::with_api_key("a secret"), until).await?;
//! log.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! | call | does |
//! |---|---|
//! | `POST /v1/sessions/{session_id}/events` | appends `user.message` events as one batch |
//! | `GET /v1/sessions/{session_id}/events` | a page of events |
//! | `GET /v1/sessions/{session_id}/stream` | events as they come, over server-sent events |
//! | `GET /v1/sessions/{session_id}/messages` | a page of turns, each as one message |
//! | `GET /v1/messages/{message_id}` | one turn as a message; with `wait` when it is over |
//! | `GET /v1/sessions` | the sessions, newest activity first or by ID |
//! | `GET /openapi.json` | the document that describes these calls |
//! | `GET /healthz` | whether the log is in service |
//! | `GET /metrics` | metrics for Prometheus |
//! | `GET /` | a page for people |
//!
//! Calls below `/v1` need a bearer token, unless the [`Config`] says otherwise. Errors are JSON:
//! `{"error": {"type", "code", "message"}}`, with the codes of [`Error::code`](crate::Error::code)
//! where the log refused. What is no HTTP, or has a head beyond all measure, is answered below the
//! router, with a status alone.
//!
//! Reads from the disk run on the runtime's blocking threads, but for two: an append to a session
//! that is not in memory, or with an idempotency key that is not, looks it up where it is polled,
//! and a stream that is behind reads on there, 64 KiB at a time.

mod admin;
mod append;
mod auth;
mod budget;
mod config;
mod drain;
mod error;
mod events;
mod messages;
mod metrics;
mod pace;
mod query;
mod serve;
mod service;
mod sessions;
mod stream;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::log::SessionLog;

pub use config::{Config, Stopper};
pub use serve::serve;

use service::Service;

/// All calls and the [page](ui) for people, answered from `log`: what [`serve`](serve()) serves.
///
/// It answers for unknown paths too. An application with routes of its own mounts [`api`] instead.
///
/// Streams end when the log is closed or [`Config::stopper`] says so. A router cannot limit how
/// long a request's head may take, nor the number of connections. The server it is mounted in has
/// to: [`serve`](serve()) does both.
pub fn router(log: SessionLog, config: Config) -> Router {
    let service = Arc::new(Service::new(log, config));
    let routes = routes(&service).merge(ui()).fallback(error::not_found);
    around(routes, service)
}

/// All calls, without the page and without an answer for other paths: to nest or to merge in an
/// application's own router.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let log = sessionlog::SessionLog::open(dir.path())?;
/// use sessionlog::http::{self, Config};
///
/// let app = axum::Router::new()
///     .route("/", axum::routing::get(|| async { "an application of its own" }))
///     .nest("/agents", http::api(log, Config::with_api_key("a secret")));
/// # drop::<axum::Router>(app);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn api(log: SessionLog, config: Config) -> Router {
    let service = Arc::new(Service::new(log, config));
    let routes = routes(&service);
    around(routes, service)
}

/// The page for people, at `/`. It calls the API at the root of the same server.
pub fn ui<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(admin::page))
}

/// The calls with their document.
fn routes(service: &Arc<Service>) -> Router<Arc<Service>> {
    let (guarded, document) = guarded(service).split_for_parts();
    let (open, of_open) = OpenApiRouter::new()
        .routes(routes!(admin::healthz))
        .routes(routes!(admin::metrics))
        .split_for_parts();
    let document = admin::document(document.merge_from(of_open));
    guarded
        .merge(open)
        .route("/openapi.json", get(move || async move { document }))
}

/// What is done to every request, before a route sees it and after.
fn around(routes: Router<Arc<Service>>, service: Arc<Service>) -> Router {
    let check_head = from_fn_with_state(Arc::clone(&service), service::check_head);
    let observe = from_fn_with_state(Arc::clone(&service.metrics), metrics::observe);
    routes
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(check_head)
        .layer(from_fn(drain::drain_refused))
        .layer(observe)
        .with_state(service)
}

/// What needs a token.
fn guarded(service: &Arc<Service>) -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::with_openapi(admin::Document::openapi())
        .routes(routes!(append::append, events::list))
        .routes(routes!(stream::stream))
        .routes(routes!(messages::list))
        .routes(routes!(messages::get))
        .routes(routes!(sessions::list))
        .route_layer(from_fn_with_state(Arc::clone(service), auth::check))
}
