//! `sessionlog serve`: the HTTP server.

#![expect(clippy::print_stdout, reason = "the address is for the terminal")]

use std::env;
use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use sessionlog::{SessionLog, http};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

/// Serves a session log over HTTP.
///
/// The environment variable `SESSIONLOG_API_KEY` holds the key that clients send as bearer token,
/// and `SESSIONLOG_WORKER_KEY` the one for workers, without which their calls are refused.
/// A missing folder is created, with access for its owner. `RUST_LOG` filters the log, for example
/// `info,sessionlog::access=off`. SIGTERM stops the server without losing anything.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log
    #[arg(long, default_value = "data")]
    data: PathBuf,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Admit every caller without a key; only on a loopback address
    #[arg(long)]
    open: bool,

    /// Form of the log lines; by default text on a terminal, and JSON elsewhere
    #[arg(long, value_enum)]
    log: Option<LogForm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogForm {
    Text,
    Json,
}

pub(crate) fn run(args: Args) -> Result<(), Box<dyn Error>> {
    log_to_stderr(args.log);
    tokio::runtime::Runtime::new()?.block_on(serve(args))
}

async fn serve(args: Args) -> Result<(), Box<dyn Error>> {
    allow_many_connections();
    let config = config(&args)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    let until = asked_to_stop()?;
    let log = SessionLog::open(&args.data)?;
    warn_if_others_may_enter(&args.data);
    let recovery = log.stats().recovery;
    tracing::info!(
        clean = recovery.clean,
        replayed_events = recovery.replayed_events,
        took = ?recovery.took,
        "the log is open"
    );
    println!("listening on http://{}", listener.local_addr()?);
    http::serve(listener, log.clone(), config, until).await?;
    log.close()?;
    tracing::info!("the log is closed");
    Ok(())
}

fn config(args: &Args) -> Result<http::Config, String> {
    let config = client_config(args)?;
    Ok(match variable("SESSIONLOG_WORKER_KEY") {
        Some(key) => config.worker_key(key),
        None => config,
    })
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn client_config(args: &Args) -> Result<http::Config, String> {
    match variable("SESSIONLOG_API_KEY") {
        Some(_) if args.open => Err("use either --open or SESSIONLOG_API_KEY".into()),
        Some(key) => Ok(http::Config::with_api_key(key)),
        None if !args.open => {
            Err("SESSIONLOG_API_KEY is not set; on loopback, --open admits every caller".into())
        }
        None if !args.listen.ip().is_loopback() => Err(format!(
            "--open needs a loopback address, and {} is not one",
            args.listen.ip()
        )),
        None => Ok(http::Config::open().hosts(["localhost", "127.0.0.1", "[::1]"])),
    }
}

/// Raises the limit of open files as far as the system allows: each connection takes one.
#[cfg(unix)]
fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

#[cfg(not(unix))]
fn allow_many_connections() {}

/// Warns about an existing folder that other users may enter. Its permissions are left alone.
#[cfg(unix)]
fn warn_if_others_may_enter(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;

    let mode =
        std::fs::metadata(folder).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
    if mode & 0o077 != 0 {
        tracing::warn!(
            folder = %folder.display(),
            mode = format!("{mode:o}"),
            "other users may enter the folder of the log"
        );
    }
}

#[cfg(not(unix))]
fn warn_if_others_may_enter(_folder: &Path) {}

/// Resolves on the first signal to stop.
#[cfg(unix)]
fn asked_to_stop() -> Result<impl Future<Output = ()>, std::io::Error> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "it fails on unix")]
fn asked_to_stop() -> Result<impl Future<Output = ()>, std::io::Error> {
    Ok(async {
        // Without the signal there is nothing else to wait for.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}

fn log_to_stderr(form: Option<LogForm>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let is_json = form.map_or_else(
        || !std::io::stderr().is_terminal(),
        |form| form == LogForm::Json,
    );
    if is_json {
        lines.json().init();
    } else {
        lines.init();
    }
}
