//! A chat whose answers survive a reload of the page and a kill of the server.
//!
//! ```text
//! npm install --prefix examples/chat
//! cargo run --example chat --features durable-streams -- 127.0.0.1:8080 data
//! ```
//!
//! Open the address that it prints and ask it to count to 100. Reload the page or `kill -9` the
//! server in between: the page shows every word once.
//!
//! The page is a client of Durable Streams. It follows its chat from the offset that it has saved,
//! and sends messages through the HTTP API, under idempotency keys. The agent runs in this process
//! and appends each word to the log before any page sees it. After a restart it goes on with the
//! answers that have no end.
//!
//! The third argument names the client's module, if it is not where `npm` puts it.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod agent;

use std::env;
use std::error::Error;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use sessionlog::http::{self, Config};
use sessionlog::{NewSession, SessionId, SessionLog, durable_streams};
use tokio::net::TcpListener;
use tokio::signal;
use ulid::Ulid;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How the sessions of chats begin. The stream `/ds/chat/1` is the session `ds/chat/1`.
const CHATS: &str = "ds/chat/";

/// Where `npm install` puts the client's module. It imports no other one.
const CLIENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/chat/node_modules/@durable-streams/client/dist/index.js"
);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8080".into());
    let data = arguments.next().unwrap_or_else(|| "data".into());
    let client = arguments.next().unwrap_or_else(|| CLIENT.into());
    let client = std::fs::read_to_string(&client).map_err(|error| {
        format!("cannot read {client}: {error}. `npm install --prefix examples/chat` gets it.")
    })?;

    let listener = TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let log = SessionLog::open(data)?;
    // Pages are clients: they read, and send messages. Nobody has the key of a worker, so the
    // answers are by the agent alone, which writes through the library.
    let config = Config::open()
        .hosts(["127.0.0.1", "[::1]", "localhost"])
        .worker_key(Ulid::generate().to_string());
    let stopper = config.stopper();
    let app = Router::new()
        .route("/", get(Html(include_str!("page.html"))))
        .route("/client.js", get(([(CONTENT_TYPE, JAVASCRIPT)], client)))
        .route("/chats", post(create))
        .with_state(log.clone())
        .nest("/ds", durable_streams::router(log.clone(), config.clone()))
        .merge(http::api(log.clone(), config));

    println!("listening on http://{}", listener.local_addr()?);
    let until_interrupted = async move {
        drop(signal::ctrl_c().await);
        stopper.stop();
    };
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(until_interrupted) => served?,
        failed = agent::run(log.clone()) => failed?,
    }
    log.close()?;
    Ok(())
}

const JAVASCRIPT: HeaderValue = HeaderValue::from_static("text/javascript");

/// Begins a chat. Its name cannot be guessed, and is all that a page needs to take part.
async fn create(State(log): State<SessionLog>) -> Response {
    let name = Ulid::generate().to_string();
    let created = match SessionId::new(format!("{CHATS}{name}")) {
        Ok(session) => log.create_async(&session, NewSession::new()).await,
        Err(invalid) => Err(invalid),
    };
    match created {
        Ok(_session) => Json(json!({ "name": name })).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}
