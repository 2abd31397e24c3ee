//! Where a command writes: text for people, or JSON for programs. Nothing else writes to standard
//! output.
//!
//! Text for people never holds a control character that the command did not put there.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anstyle::{AnsiColor, Style};

use crate::failure::{Exit, Failure, Result};
use crate::text::{escaped, escaped_json};

pub(crate) const HEADING: Style = Style::new().bold();
pub(crate) const FAINT: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const NAME: Style = AnsiColor::Cyan.on_default();

/// The columns of a terminal that does not say how many it has.
const COLUMNS_DEFAULT: usize = 100;

#[derive(Debug)]
pub(crate) struct Output {
    form: Form,
    has_colour: bool,
    stdout: Mutex<BufWriter<Stdout>>,
}

/// Whom the output is for: people, or programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Json,
}

impl Output {
    pub(crate) fn new(form: Form) -> Self {
        let choice = anstream::AutoStream::choice(&io::stdout());
        Self {
            form,
            has_colour: choice != anstream::ColorChoice::Never,
            stdout: Mutex::new(BufWriter::new(io::stdout())),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.form == Form::Json
    }

    pub(crate) fn is_terminal() -> bool {
        io::stdout().is_terminal()
    }

    /// The columns of the terminal. `None` where there is none, and a line may be of any length.
    pub(crate) fn columns() -> Option<usize> {
        if !Self::is_terminal() {
            return None;
        }
        let named = std::env::var("COLUMNS")
            .ok()
            .and_then(|columns| columns.parse().ok());
        Some(
            named
                .or_else(columns_of_terminal)
                .unwrap_or(COLUMNS_DEFAULT),
        )
    }

    /// Writes a line for people.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<()> {
        self.write_line(text.as_ref())
    }

    /// Writes JSON on a line of its own.
    pub(crate) fn json(&self, json: impl AsRef<str>) -> Result<()> {
        self.write_line(&escaped_json(json.as_ref()))
    }

    fn write_line(&self, text: &str) -> Result<()> {
        self.with_stdout(|stdout| {
            stdout.write_all(text.as_bytes())?;
            stdout.write_all(b"\n")
        })
    }

    /// Hands everything to what reads the output.
    pub(crate) fn flush(&self) -> Result<()> {
        self.with_stdout(Write::flush)
    }

    /// Writes bytes that are neither text nor JSON, such as a script.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.with_stdout(|stdout| stdout.write_all(bytes))
    }

    fn with_stdout(
        &self,
        write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>,
    ) -> Result<()> {
        let mut stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        write(&mut stdout).map_err(|error| Failure::of_output(&error))
    }

    /// Text in a style, where colours are allowed.
    pub(crate) fn styled(&self, style: Style, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        if self.has_colour && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// Says something on the way, to people alone.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.is_json() {
            // A note that cannot be written changes nothing.
            let _written = writeln!(io::stderr(), "{}", text.as_ref());
        }
    }

    /// Reports a failure, and returns the exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        if failure.exit != Exit::OutputClosed {
            // What was found before the failure comes first.
            let _flushed = self.flush();
            let _written = self.report(failure);
        }
        ExitCode::from(failure.exit.code())
    }

    fn report(&self, failure: &Failure) -> io::Result<()> {
        let mut stderr = io::stderr().lock();
        if self.is_json() {
            let json = serde_json::json!({ "error": failure });
            return writeln!(stderr, "{}", escaped_json(&json.to_string()));
        }
        let mut stderr = anstream::AutoStream::auto(stderr);
        writeln!(stderr, "{BAD}error:{BAD:#} {}", escaped(&failure.message))?;
        let hint = failure.hint.as_deref();
        hint.map_or(Ok(()), |hint| {
            writeln!(stderr, "{WARNING}hint:{WARNING:#} {}", escaped(hint))
        })
    }
}

#[cfg(unix)]
fn columns_of_terminal() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then(|| size.ws_col.into())
}

#[cfg(not(unix))]
fn columns_of_terminal() -> Option<usize> {
    None
}
