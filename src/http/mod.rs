//! The HTTP API, as a router to mount and as a server to run. Feature `http`.
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
//! Calls:
//!
//! * `POST /v1/sessions/{session_id}/events` appends events as one batch, and answers when it is
//!   durable: `user.message` for clients, any type for workers.
//! * `GET /v1/sessions/{session_id}/events` returns a page of events. With `wait` it first waits
//!   for an event.
//! * `GET /v1/sessions/{session_id}/stream` streams stored and new events as server-sent events.
//! * `GET /v1/sessions/{session_id}/messages` returns a page of turns, each as one message. With
//!   `status=open` it returns only those that wait for an answer.
//! * `GET /v1/messages/{message_id}` returns one turn as a message. With `wait` it first waits for
//!   the turn to end.
//! * `GET /v1/sessions` lists the sessions, by newest activity, by creation or by ID.
//! * `GET /v1/sessions/{session_id}` returns one session.
//! * `GET /v1/events/{event_id}` returns one event.
//! * `GET /openapi.json` returns the OpenAPI document of these calls.
//! * `GET /readyz` reports whether the log takes appends, and so does `GET /healthz`.
//! * `GET /livez` reports whether a restart would not help.
//! * `GET /metrics` returns metrics.
//! * `GET /` returns a web page for people.
//!
//! Calls that need the key of a [worker](Scope::Worker):
//!
//! * `POST /v1/sessions` creates a session, also with its first events.
//! * `PATCH /v1/sessions/{session_id}` changes its title or metadata, and closes or holds it.
//! * `DELETE /v1/sessions/{session_id}` deletes it.
//! * `DELETE /v1/sessions/{session_id}/events` trims it.
//! * `POST /v1/sessions/{session_id}/fork` forks it.
//! * `DELETE /v1/events/{event_id}` redacts an event.
//! * `GET /v1/feed` returns a page of all sessions' events and changes in commit order, or streams
//!   them as server-sent events.
//! * `POST /v1/compact` erases what was removed. `GET /v1/stats` returns the figures of the store.
//! * `POST /v1/retention/plan` says what a retention would remove.
//!
//! Calls below `/v1` need a bearer token, unless the [`Config`] is [open](Config::open). Errors are
//! JSON: `{"error": {"type", "code", "message"}}`. Errors of the log have the codes of
//! [`Error::code`](crate::Error::code). Invalid HTTP, or a far too long head, is refused below the
//! router, with a status alone.
//!
//! Reads from the disk run on the runtime's blocking threads, with two exceptions that read on the
//! thread that polls the request. An append looks up a session or an idempotency key that is not in
//! memory. A stream that has not caught up reads 64 KiB at a time.

mod admin;
mod append;
mod auth;
mod body;
mod budget;
mod callers;
mod conditions;
mod config;
mod direct;
mod drain;
mod error;
mod etag;
mod events;
mod feed;
#[cfg(feature = "tls")]
mod handshake;
pub mod json;
mod key;
mod messages;
mod metrics;
mod operate;
mod pace;
mod places;
mod query;
mod rate;
mod removal;
mod rewound;
mod sent;
mod serve;
mod service;
mod session;
mod sessions;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod trace;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::log::SessionLog;

#[cfg(all(test, not(shuttle)))]
pub(crate) use callers::ALONE_MIN;
#[cfg(feature = "durable-streams")]
pub(crate) use {
    auth::access,
    body::{BODY_COPIES, check_encoding, received},
    budget::Share,
    conditions::only,
    direct::{Answering, Appends},
    error::ApiError,
    key::Access,
    query::InQuery,
    sent::new_event,
    serve::serve_router,
    service::{StreamPlace, blocking, check_names_a_path},
    wire::{STREAM_SOURCE, compact},
};

pub use config::{Config, Stopper};
pub use key::{Key, Scope};
pub use serve::serve;
#[cfg(feature = "tls")]
pub use tls::Tls;

pub(crate) use service::Service;

/// Makes a router with all calls and the [page](ui) for people. [`serve`](serve()) serves it.
///
/// It answers unknown paths too. An application with routes of its own mounts [`api`] instead.
///
/// Streams end when the log is closed or [`Config::stopper`] is stopped. A router cannot limit the
/// time of a request's head or the number of connections. Its server must do that, as
/// [`serve`](serve()) does.
pub fn router(log: SessionLog, config: Config) -> Router {
    let service = Arc::new(Service::new(log, config));
    router_with(service, |routes| routes)
}

/// The whole router, with what else its server serves.
pub(crate) fn router_with(
    service: Arc<Service>,
    add: impl FnOnce(Router<Arc<Service>>) -> Router<Arc<Service>>,
) -> Router {
    let routes = add(routes(&service).merge(ui())).fallback(error::not_found);
    around(routes, service)
}

/// Makes a router with all calls, to nest or merge into an application's own router.
///
/// It has no page and does not answer unknown paths.
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

/// Makes a router with the page for people, at `/`. The page calls the API at the server's root.
pub fn ui<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(admin::page))
}

/// The calls and their document.
fn routes(service: &Arc<Service>) -> Router<Arc<Service>> {
    let (guarded, document) = guarded(service).split_for_parts();
    let (open, of_open) = OpenApiRouter::new()
        .routes(routes!(admin::healthz))
        .routes(routes!(admin::readyz))
        .routes(routes!(admin::livez))
        .routes(routes!(admin::metrics))
        .split_for_parts();
    let document = admin::document(document.merge_from(of_open));
    guarded
        .merge(open)
        .route("/openapi.json", get(move || async move { document }))
}

/// Wraps the routes in the layers that every request passes.
pub(crate) fn around(routes: Router<Arc<Service>>, service: Arc<Service>) -> Router {
    let check_head = from_fn_with_state(Arc::clone(&service), service::check_head);
    let observe = from_fn_with_state(Arc::clone(&service.metrics), metrics::observe);
    routes
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(check_head)
        .layer(from_fn(drain::drain_refused))
        .layer(observe)
        .with_state(service)
}

/// The calls that need a token.
fn guarded(service: &Arc<Service>) -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::with_openapi(admin::Document::openapi())
        .routes(routes!(append::append, events::list, removal::trim))
        .routes(routes!(stream::stream))
        .routes(routes!(messages::list))
        .routes(routes!(messages::get))
        .routes(routes!(session::create, sessions::list))
        .routes(routes!(session::get, session::patch, session::delete))
        .routes(routes!(session::fork))
        .routes(routes!(removal::get, removal::redact))
        .routes(routes!(feed::read))
        .routes(routes!(operate::compact))
        .routes(routes!(operate::stats))
        .routes(routes!(operate::plan))
        .route_layer(from_fn_with_state(Arc::clone(service), auth::check))
}
