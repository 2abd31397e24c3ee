//! Why a command failed, what to do next, and its exit code. Errors of the library are translated
//! here and nowhere else.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use sessionlog::{CursorProblem, Error as LogError, Limit};

use crate::holder::Holder;
use crate::postgres;

/// The result of a part of a command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The end of a command that did not do what it was asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    /// A stable name, as [`LogError::code`].
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
    #[serde(skip)]
    pub(crate) exit: Exit,
}

/// How a command ends that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed,
    Usage,
    Damage,
    /// Nobody reads the output any more, which is no failure.
    OutputClosed,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::OutputClosed => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Damage => 3,
        }
    }
}

impl Failure {
    /// A failure with a stable name.
    pub(crate) fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: None,
            exit: Exit::Failed,
        }
    }

    /// The command line asks for something that does not go together.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::new("usage", message)
        }
    }

    /// Says what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The failure of a call of the system on a file or folder.
    pub(crate) fn of_file(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        let message = format!("could not {doing} {}: {error}", path.display());
        Self::new("io", message).hint(hint_of_io(error.kind(), path))
    }

    /// The failure of a write to standard output.
    pub(crate) fn of_output(error: &std::io::Error) -> Self {
        let failure = Self::new("io", format!("could not write the output: {error}"));
        match error.kind() {
            ErrorKind::BrokenPipe => Self {
                exit: Exit::OutputClosed,
                ..failure
            },
            ErrorKind::StorageFull => failure.hint("make room where the output is written to"),
            _ => failure,
        }
    }
}

/// What helps against an error of the system.
fn hint_of_io(kind: ErrorKind, path: &Path) -> String {
    if let Some(url) = postgres::url(path) {
        return format!("see whether a primary of {url} runs, and what its log says");
    }
    let path = path.display();
    match kind {
        ErrorKind::PermissionDenied => {
            format!("run the command as the user that owns {path}, or give this user access to it")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!(
            "make room on the disk of {path}, then repeat the command; nothing acknowledged is lost"
        ),
        ErrorKind::NotFound => format!("check that {path} is there, and is spelled so"),
        ErrorKind::ReadOnlyFilesystem => format!(
            "{path} is on a file system that takes no writes: mount it for writing, or find out \
             from the log of the system why it became so"
        ),
        _ => "the log of the system, such as dmesg, may say more about the disk".to_owned(),
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let failure = Self {
            exit: match error {
                LogError::Corrupt { .. } => Exit::Damage,
                _ => Exit::Failed,
            },
            ..Self::new(error.code(), with_sources(&error))
        };
        let failure = match &error {
            LogError::Locked { path } => failure.of_locked(path),
            _ => failure,
        };
        match hint_of(&error) {
            Some(hint) if failure.hint.is_none() => failure.hint(hint),
            _ => failure,
        }
    }
}

impl Failure {
    fn of_locked(mut self, path: &Path) -> Self {
        let holder = Holder::of(path).map_or_else(String::new, |holder| format!(" by {holder}"));
        self.message = format!("{} is in use{holder}", path.display());
        self.hint(
            "a server that has it open answers `sessionlog ... --url http://HOST:PORT`; \
             or stop that process first",
        )
    }
}

/// What helps if something that was given cannot be used.
fn hint_of_invalid(what: &str) -> &'static str {
    if what == "target folder" {
        "give a new folder"
    } else if what == "target schema" {
        "give another one with --postgres-schema"
    } else if what == "server setting" {
        "set it at the server, or say with --postgres-durability what a commit of it survives"
    } else if what == "certificate of the server" {
        "name the host as the certificate does, and a file to trust with sslrootcert in the URL"
    } else if what == "log" {
        "run `sessionlog compact DIR`, which converts it, and repeat the command"
    } else if what.ends_with(" ID") {
        "an event is evt_ and 26 characters, a message msg_ and 26; a session is any text without \
         control characters"
    } else {
        "`sessionlog help` and the name of the command explain it"
    }
}

/// What helps against an error of the library.
fn hint_of(error: &LogError) -> Option<String> {
    Some(match error {
        LogError::Corrupt { .. } => {
            "`sessionlog verify DIR` lists all damage; restore a backup, or `sessionlog salvage` \
             copies what can be read to another folder; keep this folder as it is until then"
                .to_owned()
        }
        LogError::Unsupported { .. } => {
            "a later version wrote it: use a newer sessionlog".to_owned()
        }
        LogError::UnknownSession { .. } => {
            "`sessionlog sessions` lists the sessions, and --prefix narrows the list".to_owned()
        }
        LogError::UnknownEvent { .. } => {
            "it was never in this log, or was removed; `sessionlog show` lists the events of a \
             session"
                .to_owned()
        }
        LogError::UnknownMessage { .. } => {
            "it was never in this log, or was removed; `sessionlog show --type user.message` lists \
             the messages of a session"
                .to_owned()
        }
        LogError::Cursor { problem, .. } => match problem {
            CursorProblem::Trimmed { first } => format!("begin at --after {}", first - 1),
            CursorProblem::BeyondTail { tail, .. } => format!("the last seq is {tail}"),
            _ => "give a seq or the ID of an event of this session".to_owned(),
        },
        LogError::ExpectedMismatch { actual, .. } => format!(
            "others appended meanwhile: read what is new, then repeat with --expect {actual}"
        ),
        LogError::IdempotencyConflict { .. } => {
            "the input is another one than it was: use another --key for it".to_owned()
        }
        LogError::SessionClosed { .. } => {
            "it takes no more events, unless it is opened again: PATCH it with {\"closed\": false}"
                .to_owned()
        }
        LogError::Invalid { what, .. } => hint_of_invalid(what).to_owned(),
        LogError::TooLarge { limit, .. } => match limit {
            Limit::BatchBytes | Limit::BatchEvents => {
                "send less at once: `append --each` stores line by line".to_owned()
            }
            Limit::EventBytes => {
                "keep large content elsewhere, and its place in the event".to_owned()
            }
            _ => "give less of it".to_owned(),
        },
        LogError::NoSpace { path, .. } => hint_of_io(ErrorKind::StorageFull, path),
        LogError::Stalled { .. } => "the disk does not keep up: repeat the command".to_owned(),
        LogError::Unconfirmed { .. } => {
            "look whether it is there, or repeat the command with the same key".to_owned()
        }
        LogError::Poisoned { source } | LogError::Refused { source } => {
            return hint_of(source);
        }
        LogError::Displaced { .. } => {
            "the folder was moved or replaced meanwhile: run the command on where it is".to_owned()
        }
        LogError::Io { path, source, .. } | LogError::LookupFailed { path, source, .. } => {
            hint_of_io(source.kind(), path)
        }
        _ => return None,
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let hint = self.hint.as_deref();
        hint.map_or(Ok(()), |hint| write!(f, ": {hint}"))
    }
}

impl Error for Failure {}

impl From<Box<dyn Error>> for Failure {
    fn from(error: Box<dyn Error>) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(failure) => return *failure,
            Err(error) => error,
        };
        match error.downcast::<LogError>() {
            Ok(error) => Self::from(*error),
            Err(error) => Self::new("failed", with_sources(&*error)),
        }
    }
}

/// An error and its causes, in one line.
pub(crate) fn with_sources(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
