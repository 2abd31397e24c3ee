//! The Durable Streams protocol over the sessions of a log. Feature `durable-streams`.
//!
//! The [protocol](https://github.com/durable-streams/durable-streams) has one URL for each stream:
//! `PUT` creates it, `POST` appends, `GET` reads from an offset, waits, or streams server-sent
//! events, `HEAD` describes it, and `DELETE` removes it. Everything but subscriptions is here.
//!
//! ```no_run
//! use sessionlog::{SessionLog, durable_streams, http};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let log = SessionLog::open("data")?;
//! let config = http::Config::with_keys([http::Key::new("a secret").scope(http::Scope::Worker)]);
//! let app = axum::Router::new().nest("/ds", durable_streams::router(log.clone(), config));
//! # drop::<axum::Router>(app);
//! # Ok(())
//! # }
//! ```
//!
//! The stream at `{path}` is the session `ds/{path}`. In a stream of JSON a message is an event,
//! and a message that has the form of an event of the [HTTP API](crate::http) is that event. In a
//! stream of bytes an append is one batch of events, each with a part of the bytes. An offset names
//! the life of the session and a seq. Content type, TTL, expiry and `Stream-Seq` are metadata of
//! the session. Producers, closing and forks are those of the log.
//!
//! An append, a close and a creation are durable when they are answered, and so are the numbers of
//! producers. Only that a read renews a TTL is kept in memory: a restart begins every TTL anew.
//!
//! # What keys admit
//!
//! * Every key reads the streams within its [prefix](crate::http::Key::prefix), which begins with
//!   `ds/`. Other streams do not exist for it.
//! * A key of a [worker](crate::http::Scope::Worker) creates, appends, closes and deletes.
//! * A key of a client appends to streams of JSON messages that are `user.message` events, as in
//!   the HTTP API.
//! * An [open](crate::http::Config::open) configuration without any key is for development: every
//!   caller may do everything, except pages of other sites.

mod append;
mod asked;
mod create;
mod cursor;
mod direct;
mod fork;
mod headers;
mod life;
mod live;
mod message;
mod offset;
mod origin;
mod part;
mod read;
mod remove;
mod settings;
mod sse;
mod stream;
mod sweep;
mod uses;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use tokio::net::TcpListener;

use crate::http::{self, Config, Service};
use crate::log::SessionLog;

use direct::Direct;
use origin::Origin;
use stream::Streams;

/// Makes a router of streams, to nest below any path of an application's own router.
///
/// It takes the keys, the limits and the stopper of the configuration, as
/// [`http::api`] does. Two routers have a budget of memory each.
///
/// A log has one router of streams. A second one knows nothing of what renewed a TTL in the first,
/// so that a stream which is read there may expire. And where one deletes a stream while the other
/// forks it, the fork may be left without a source.
pub fn router(log: SessionLog, config: Config) -> Router {
    let service = Arc::new(Service::new(log, config));
    let streams = Arc::new(Streams::new(Arc::clone(&service)));
    http::around(routes(&streams), service)
}

/// Serves the [HTTP API](crate::http::router), with streams below `path`, as
/// [`http::serve`](crate::http::serve()) does. Both share their limits.
///
/// # Errors
///
/// When the listener has no address, or the path is none that [`check_path`] takes.
pub async fn serve(
    listener: TcpListener,
    log: SessionLog,
    config: Config,
    path: &str,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    check_path(path).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    let service = Arc::new(Service::new(log, config));
    let streams = Arc::new(Streams::new(Arc::clone(&service)));
    let below = routes(&streams);
    let router = http::router_with(Arc::clone(&service), |api| api.nest(path, below));
    let appends = Arc::new(Direct::below(path, ROUTE, streams));
    http::serve_router(listener, service, router, Some(appends), until).await
}

/// The path of a stream in the router.
const ROUTE: &str = "/{*path}";

/// The first segments of paths that the HTTP API has.
const TAKEN: [&str; 6] = [
    "v1",
    "healthz",
    "livez",
    "metrics",
    "openapi.json",
    "readyz",
];

/// Checks a path for [`serve`]: segments of letters, digits and `-._~`, each behind a `/`. The
/// first may be none of the HTTP API.
///
/// # Errors
///
/// The rule that it breaks.
pub fn check_path(path: &str) -> Result<(), String> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err(format!("the path {path:?} does not begin with /"));
    };
    let is_plain = |segment: &str| {
        let mut bytes = segment.bytes();
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    if !rest.split('/').all(is_plain) {
        return Err(format!(
            "the path {path:?} is not made of segments of letters, digits and -._~"
        ));
    }
    if TAKEN
        .iter()
        .any(|taken| rest.split('/').next() == Some(taken))
    {
        return Err(format!("the path {path:?} is one of the HTTP API"));
    }
    Ok(())
}

fn routes(streams: &Arc<Streams>) -> Router<Arc<Service>> {
    let calls = put(create::create)
        .post(append::append)
        .get(read::read)
        .head(read::head)
        .delete(remove::delete)
        .options(preflight);
    Router::new()
        .route(ROUTE, calls)
        .route_layer(from_fn_with_state(Arc::clone(streams), admit))
        .with_state(Arc::clone(streams))
}

/// Wraps every call: checks its key and its origin, and lets pages of admitted origins read the
/// answer.
async fn admit(State(streams): State<Arc<Streams>>, mut request: Request, next: Next) -> Response {
    sweep::begin(&streams);
    let origin = Origin::of(request.headers(), &streams);
    let answer = if request.method() == Method::OPTIONS {
        next.run(request).await
    } else {
        match origin.admit(request.headers(), &streams) {
            Ok(access) => {
                request.extensions_mut().insert(access);
                next.run(request).await
            }
            Err(refused) => refused.into_response(),
        }
    };
    origin.allow(answer, &streams)
}

/// Answers what a browser asks before a call of another origin.
async fn preflight() -> Response {
    let mut answer = StatusCode::NO_CONTENT.into_response();
    origin::allow_calls(answer.headers_mut());
    answer
}
