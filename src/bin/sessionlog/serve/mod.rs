//! `sessionlog serve`: the HTTP server.

#![expect(clippy::print_stdout, reason = "the address is for the terminal")]

mod args;
mod check;
mod keys;
mod listen;
mod logging;
#[cfg(feature = "otel")]
mod otel;
mod plan;
mod signals;
mod systemd;

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use sessionlog::{Error as LogError, SessionLog, durable_streams, http};
use tokio::time::interval;

pub(crate) use args::Args;

use crate::failure::Failure;
use crate::postgres;
use logging::Logging;
use plan::Plan;
use signals::Stop;

/// How often a supervisor is told that the log is still being opened.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(crate) fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let passed = listen::passed()?;
    if args.check {
        return check::run(&args, passed.as_ref());
    }
    let logging = Logging::start(args.log)?;
    let served = tokio::runtime::Runtime::new()?.block_on(serve(args, passed));
    logging.finish();
    served
}

async fn serve(args: Args, passed: Option<TcpListener>) -> Result<(), Box<dyn Error>> {
    listen::allow_many_connections();
    let asked = match &passed {
        Some(passed) => passed.local_addr()?,
        None => args.listen,
    };
    let plan = Plan::of(&args, asked)?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let listener = listen::listener(passed, args.listen).await?;
    let stop = signals::watch()?;
    signals::reload_on_hangup(plan.tls.clone())?;
    let Some(log) = opened(&args, stop.clone()).await? else {
        tracing::info!("stopped before the log was open");
        // The thread that opens it would be waited for. To end there is safe, as in a crash.
        std::process::exit(0);
    };
    if args.postgres.is_none() {
        warn_if_others_may_enter(&args.data);
    }
    let url = plan::url(plan.tls.as_ref(), listener.local_addr()?);
    println!("listening on {url}");
    systemd::ready(&url);
    systemd::watch(log.clone());
    let until = async {
        stop.asked().await;
        systemd::stopping();
    };
    match &args.durable_streams {
        Some(path) => {
            durable_streams::serve(listener, log.clone(), plan.config, path, until).await?;
        }
        None => http::serve(listener, log.clone(), plan.config, until).await?,
    }
    log.close()?;
    tracing::info!("the log is closed");
    Ok(())
}

/// Opens the log. `None` when the server is asked to stop meanwhile.
async fn opened(args: &Args, stop: Stop) -> Result<Option<SessionLog>, Box<dyn Error>> {
    args.check_exists()?;
    let (options, folder, url) = (args.options(), args.data.clone(), args.postgres.clone());
    let mut opening = tokio::task::spawn_blocking(move || match url {
        Some(url) => options.connect(&url),
        None => options.open(folder),
    });
    let mut due = interval(TELL_EVERY);
    let mut asked = std::pin::pin!(stop.asked());
    let log = loop {
        tokio::select! {
            opened = &mut opening => break opened?.map_err(of_folder)?,
            () = &mut asked => return Ok(None),
            _ = due.tick() => systemd::opening(),
        }
    };
    if let Some(url) = &args.postgres {
        tracing::info!(at = postgres::shown(url), "the log is open");
        return Ok(Some(log));
    }
    let recovery = log.stats().recovery;
    tracing::info!(
        clean = recovery.clean,
        replayed_events = recovery.replayed_events,
        took = ?recovery.took,
        "the log is open"
    );
    Ok(Some(log))
}

/// The failure of a log that does not open as the options say.
fn of_folder(error: LogError) -> Failure {
    let is_of_option = matches!(error, LogError::Invalid { .. } | LogError::TooLarge { .. });
    let failure = Failure::from(error);
    if is_of_option {
        failure.hint("correct the option of that name")
    } else {
        failure
    }
}

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
