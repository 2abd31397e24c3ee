//! The lines of the server's log, on the standard error stream.

use std::env;
use std::error::Error;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::args::LogForm;

/// Sends the log to the standard error stream from now on.
pub(super) fn start(form: Option<LogForm>) -> Result<(), Box<dyn Error>> {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter()?)
        .with_writer(std::io::stderr);
    if is_json(form) {
        lines.json().init();
    } else {
        lines.init();
    }
    Ok(())
}

pub(super) fn filter() -> Result<EnvFilter, String> {
    let given = env::var("RUST_LOG").unwrap_or_default();
    if given.is_empty() {
        return Ok(EnvFilter::new("info"));
    }
    EnvFilter::try_new(&given).map_err(|error| {
        format!(
            "RUST_LOG is {given:?}, which is no filter: {error}: \
             write it like `info,sessionlog::access=off`"
        )
    })
}

fn is_json(form: Option<LogForm>) -> bool {
    form.map_or_else(
        || !std::io::stderr().is_terminal(),
        |form| form == LogForm::Json,
    )
}
