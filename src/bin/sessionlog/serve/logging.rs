//! The lines of the server's log, on the standard error stream, and the export of its spans.

use std::env;
use std::error::Error;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::args::LogForm;

/// What is left to do for the log when the server has ended.
#[must_use = "it has to be finished"]
#[derive(Default)]
pub(super) struct Logging {
    #[cfg(feature = "otel")]
    export: Option<super::otel::Export>,
}

impl Logging {
    /// Sends the log to the standard error stream from now on.
    pub(super) fn start(form: Option<LogForm>) -> Result<Self, Box<dyn Error>> {
        let filter = filter()?;
        #[cfg(feature = "otel")]
        if let Some(export) = super::otel::Export::of_environment()? {
            return Ok(Self::exporting(export, filter, form));
        }
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        if is_json(form) {
            lines.json().init();
        } else {
            lines.init();
        }
        Ok(Self::default())
    }

    /// As above, where the filter of lines is not that of exported spans.
    #[cfg(feature = "otel")]
    fn exporting(export: super::otel::Export, filter: EnvFilter, form: Option<LogForm>) -> Self {
        use tracing_subscriber::Layer;
        use tracing_subscriber::layer::SubscriberExt;
        use tracing_subscriber::util::SubscriberInitExt;

        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = if is_json(form) {
            lines.json().with_filter(filter).boxed()
        } else {
            lines.with_filter(filter).boxed()
        };
        tracing_subscriber::registry()
            .with(lines)
            .with(export.layer())
            .init();
        Self {
            export: Some(export),
        }
    }

    /// Exports the last spans.
    pub(super) fn finish(self) {
        #[cfg(feature = "otel")]
        if let Some(export) = self.export {
            export.flush();
        }
        #[cfg(not(feature = "otel"))]
        let Self {} = self;
    }
}

/// Checks the variables, and returns the filter of lines.
pub(super) fn check() -> Result<EnvFilter, Box<dyn Error>> {
    #[cfg(feature = "otel")]
    super::otel::Export::of_environment()?;
    Ok(filter()?)
}

fn filter() -> Result<EnvFilter, String> {
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
