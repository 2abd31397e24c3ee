//! The errors: one type, each variant a branch that a caller can take.
//!
//! It never names a type of a crate we use, so an upgrade below cannot break a caller's `match`.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, io};

use crate::model::batch::Expected;
use crate::model::ids::{EventId, MessageId, Seq};
use crate::model::lifecycle::SessionInfo;
use crate::model::session::SessionId;

/// The result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, and the state that was left behind.
///
/// [`code`](Error::code) is a stable name for logs and wire formats.
/// [`is_retryable`](Error::is_retryable) says whether the same call may succeed later without
/// reopening the log, and [`needs_reopening`](Error::needs_reopening) whether none will.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument breaks a rule that no option changes. Nothing was written.
    #[error("invalid {what}: {why}")]
    Invalid {
        /// The argument, in the words of this API.
        what: &'static str,
        /// The rule it breaks.
        why: String,
    },

    /// An argument exceeds one of the [limits](crate::Options). Nothing was written.
    #[error("{limit} is {actual}, and at most {max} is allowed")]
    TooLarge {
        /// Which limit.
        limit: Limit,
        /// The value that the caller gave, in the limit's unit.
        actual: u64,
        /// The limit in force.
        max: u64,
    },

    /// There is no such session: it was never created, or it was deleted. A first append creates
    /// it.
    #[error("there is no session {session}")]
    UnknownSession {
        /// The session asked for.
        session: SessionId,
    },

    /// No event of this store has this ID.
    #[error("there is no event {id}")]
    UnknownEvent {
        /// The ID asked for.
        id: EventId,
    },

    /// No event that opened a turn has this ID.
    #[error("there is no message {id}")]
    UnknownMessage {
        /// The ID asked for.
        id: MessageId,
    },

    /// A cursor is not a position in the session being read.
    #[error("the cursor does not fit session {session}: {problem}")]
    Cursor {
        /// The session being read.
        session: SessionId,
        /// The fault of the cursor.
        problem: CursorProblem,
    },

    /// The session was not where [`Expected`] said. Nothing was written.
    #[error("session {session} is at seq {actual}, not at {expected}")]
    ExpectedMismatch {
        /// The session appended to.
        session: SessionId,
        /// The condition of the batch.
        expected: Expected,
        /// The last seq of the session; 0 when it has no event.
        actual: Seq,
    },

    /// The session to be created is there already. Nothing was written.
    #[error("session {} exists already", session.id)]
    SessionExists {
        /// The session as it is.
        session: Box<SessionInfo>,
    },

    /// The session is closed. Nothing was written. [`reopen`](crate::SessionLog::reopen) opens it
    /// again.
    #[error("session {session} is closed at seq {last}")]
    SessionClosed {
        /// The session appended to.
        session: SessionId,
        /// Its last seq.
        last: Seq,
    },

    /// The session is on hold and cannot be deleted. Nothing was written.
    #[error("session {session} is on hold")]
    Held {
        /// The session.
        session: SessionId,
    },

    /// The newest turn of the session has no final status, and the call said
    /// [`unless_open`](crate::Delete::unless_open). Nothing was written.
    #[error("turn {message} of session {session} is not over")]
    TurnOpen {
        /// The session.
        session: SessionId,
        /// The turn.
        message: MessageId,
    },

    /// Another writer has taken over with a higher epoch. Nothing was written.
    #[error("producer {producer:?} of session {session} is at epoch {current}")]
    Fenced {
        /// The session appended to.
        session: SessionId,
        /// The producer's ID.
        producer: String,
        /// The epoch that the session has seen.
        current: u64,
    },

    /// The number of the producer's batch is not the next. Nothing was written.
    #[error(
        "producer {producer:?} of session {session} comes to number {expected}, not {received}"
    )]
    ProducerGap {
        /// The session appended to.
        session: SessionId,
        /// The producer's ID.
        producer: String,
        /// The next number.
        expected: u64,
        /// The number of the batch.
        received: u64,
    },

    /// An event that [`NothingSince`](Expected::NothingSince) excludes came in between. Nothing
    /// was written.
    #[error("event {event} at seq {seq} of session {session} came in between")]
    ConditionFailed {
        /// The session appended to.
        session: SessionId,
        /// The first such event.
        event: EventId,
        /// Its seq.
        seq: Seq,
    },

    /// The idempotency key was used for a batch of other content. Nothing was written; the first
    /// batch stays.
    #[error(
        "idempotency key {key:?} of session {session} belongs to another batch, at seq {first_seq}"
    )]
    IdempotencyConflict {
        /// The session appended to.
        session: SessionId,
        /// The key.
        key: String,
        /// The first seq of the batch that the key stands for. It is that of the next event if the
        /// batch has none.
        first_seq: Seq,
    },

    /// Another handle, in this process or another, has the folder open for writing.
    ///
    /// A log that is [open read-only](crate::Options::open_read_only) locks nothing.
    #[error("{} is open elsewhere", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },

    /// The folder, or a file in it, is no longer where the log was opened: somebody moved, removed
    /// or replaced it.
    ///
    /// On an append nothing was written. The log is [poisoned](Error::Poisoned) until it is opened
    /// again. Acknowledged batches are in the folder that was opened, under its new name, unless it
    /// was removed.
    #[error("{} is not what this log was opened with: {what}", path.display())]
    Displaced {
        /// The path that leads elsewhere.
        path: PathBuf,
        /// The likely reason.
        what: String,
    },

    /// The log was opened by another process, of which this one is a copy made with `fork`. Nothing
    /// was written. Only the process that opened a log can use it.
    #[error("the log was opened by process {opened_by}, and this is another one")]
    Forked {
        /// The process that opened the log.
        opened_by: u32,
    },

    /// Stored bytes are not what was written. Nothing was changed, skipped or truncated.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// The place in the file, in bytes from its start.
        offset: u64,
        /// The check that failed.
        what: String,
    },

    /// The file was written by a version of this crate that this one does not know. Nothing was
    /// changed.
    #[error("{} has {what} {found}, and this version reads up to {supported}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The unknown thing: a format version, a record kind, a required extension.
        what: &'static str,
        /// The number found.
        found: u64,
        /// The highest number this version of the crate reads.
        supported: u64,
    },

    /// An append could not read the head of its session, or the batch of its idempotency key.
    /// Nothing was written, and the same call may be repeated.
    #[error("could not {doing} {}, before anything was written", path.display())]
    LookupFailed {
        /// The call that failed.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: Arc<io::Error>,
    },

    /// The operating system refused a call.
    ///
    /// On an append the batch may or may not be found after reopening, and the log is
    /// [poisoned](Error::Poisoned) until then. On any other call nothing changed.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// The call that failed.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: Arc<io::Error>,
    },

    /// A write to the journal or the manifest failed earlier, so the log accepts no appends until
    /// it is reopened. This batch was not written. Reads of what is durable still work.
    #[error("the log takes no more appends until it is reopened, because a write failed")]
    Poisoned {
        /// The failure that poisoned the log.
        source: Arc<Error>,
    },

    /// There is no room for another journal file. Nothing was written. Appends work again once
    /// space is freed.
    #[error("no space for the journal in {}", path.display())]
    NoSpace {
        /// The folder that is full.
        path: PathBuf,
        /// The error of the system.
        source: Arc<io::Error>,
    },

    /// The append found no room within [`stall_wait`](crate::Options::stall_wait): its group stayed
    /// full, or no memory or journal file became free. Nothing was written. The same call may
    /// succeed later.
    #[error("the log could not take the batch within {waited:?}")]
    Stalled {
        /// How long the append waited.
        waited: std::time::Duration,
        /// The error of the background work, if that is the cause. It may pass by itself, such as
        /// a lack of file descriptors.
        source: Option<Arc<Error>>,
    },

    /// The engine could not find out whether the batch landed, within
    /// [`stall_wait`](crate::Options::stall_wait). It may have landed, or land later.
    ///
    /// The log goes on, and no other call is affected. A retry with the same idempotency key or
    /// producer's number lands once. Only a log on PostgreSQL returns this.
    #[error("it is not known after {waited:?} whether the batch landed")]
    Unconfirmed {
        /// How long the append waited.
        waited: std::time::Duration,
        /// What kept the answer back.
        source: Option<Arc<Error>>,
    },

    /// The system refuses a file that the log needs, and waiting does not help. Rights are missing,
    /// the size of files is limited, or the disk has errors.
    ///
    /// Nothing was written. Once the cause is mended, appends work again without reopening.
    #[error("the log takes no more appends, because the system refuses what it needs for them")]
    Refused {
        /// The error that the system gave.
        source: Arc<Error>,
    },

    /// The log was [opened read-only](crate::Options::open_read_only). Nothing was written.
    #[error("the log is open for reading only")]
    ReadOnly,

    /// The log was closed, or every handle to it was dropped. Nothing was written.
    #[error("the log is closed")]
    Closed,
}

/// The fault of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CursorProblem {
    /// No event has this ID.
    #[error("there is no event {0}")]
    Unknown(EventId),
    /// The event belongs to another session.
    #[error("event {0} belongs to another session")]
    OtherSession(EventId),
    /// The event is older than what is kept.
    #[error("it is older than the first kept seq {first}")]
    Trimmed {
        /// The first seq that is kept.
        first: Seq,
    },
    /// The seq lies beyond the last event.
    #[error("seq {seq} is beyond the tail, seq {tail}")]
    BeyondTail {
        /// The cursor's seq.
        seq: Seq,
        /// The session's last seq.
        tail: Seq,
    },
}

/// A limit that was exceeded. Each is an option with a default; see [`Options`](crate::Options).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// Bytes of one event's data.
    EventBytes,
    /// Bytes of data of all events of a batch, or, with a bound of their own, of their types.
    BatchBytes,
    /// Events in a batch.
    BatchEvents,
    /// Bytes of an event type.
    EventTypeBytes,
    /// Bytes of an idempotency key.
    IdempotencyKeyBytes,
    /// Events in a page, or sessions in a listing.
    PageEvents,
    /// Bytes of a session's title; fixed at 1,024.
    TitleBytes,
    /// Bytes of a session's metadata as JSON; fixed at 16 KiB, and a patch at 64 KiB.
    MetadataBytes,
    /// Bytes of the reason for a removal; fixed at 256.
    ReasonBytes,
    /// Bytes of a producer's ID; fixed at 256.
    ProducerBytes,
    /// The sessions that a fork shares events with, one after the other; fixed at 256.
    ForkDepth,
    /// The redacted events of a session; fixed at 1,000.
    Redactions,
    /// Bytes of a session ID; fixed at [`SessionId::BYTES_MAX`].
    SessionIdBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::EventBytes => "the size in bytes of an event's data",
            Limit::BatchBytes => "the size in bytes of a batch",
            Limit::BatchEvents => "the number of events in a batch",
            Limit::EventTypeBytes => "the length in bytes of an event type",
            Limit::IdempotencyKeyBytes => "the length in bytes of an idempotency key",
            Limit::PageEvents => "the size of a page",
            Limit::TitleBytes => "the length in bytes of a title",
            Limit::MetadataBytes => "the size in bytes of the metadata",
            Limit::ReasonBytes => "the length in bytes of a reason",
            Limit::ProducerBytes => "the length in bytes of a producer ID",
            Limit::ForkDepth => "the number of sessions that a fork descends from",
            Limit::Redactions => "the number of redacted events that are not erased yet",
            Limit::SessionIdBytes => "the length in bytes of a session ID",
        })
    }
}

impl Error {
    /// Returns a stable, lower-case name of the variant, for logs, metrics and wire formats.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Error::Invalid { .. } => "invalid",
            Error::TooLarge { .. } => "too_large",
            Error::UnknownSession { .. } => "unknown_session",
            Error::UnknownEvent { .. } => "unknown_event",
            Error::UnknownMessage { .. } => "unknown_message",
            Error::Cursor { problem, .. } => match problem {
                CursorProblem::Unknown(_) => "cursor_unknown",
                CursorProblem::OtherSession(_) => "cursor_of_other_session",
                CursorProblem::Trimmed { .. } => "cursor_trimmed",
                CursorProblem::BeyondTail { .. } => "cursor_beyond_tail",
            },
            Error::ExpectedMismatch { .. } => "expected_mismatch",
            Error::SessionExists { .. } => "session_exists",
            Error::SessionClosed { .. } => "session_closed",
            Error::Held { .. } => "held",
            Error::TurnOpen { .. } => "turn_open",
            Error::Fenced { .. } => "fenced",
            Error::ProducerGap { .. } => "producer_gap",
            Error::ConditionFailed { .. } => "condition_failed",
            Error::IdempotencyConflict { .. } => "idempotency_conflict",
            Error::Locked { .. } => "locked",
            Error::Displaced { .. } => "displaced",
            Error::Forked { .. } => "forked",
            Error::Corrupt { .. } => "corrupt",
            Error::Unsupported { .. } => "unsupported",
            Error::LookupFailed { .. } => "lookup_failed",
            Error::Io { .. } => "io",
            Error::Poisoned { .. } => "poisoned",
            Error::NoSpace { .. } => "no_space",
            Error::Stalled { .. } => "stalled",
            Error::Unconfirmed { .. } => "unconfirmed",
            Error::Refused { .. } => "refused",
            Error::ReadOnly => "read_only",
            Error::Closed => "closed",
        }
    }

    /// Returns whether the same call, on the same handle, may succeed later.
    ///
    /// It is `true` only where a wait may be enough, or space on a full disk. It is `false` where
    /// somebody has to mend something else first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::NoSpace { .. } | Error::Stalled { .. } => true,
            Error::LookupFailed { source, .. } => may_pass(source),
            _ => false,
        }
    }

    /// Returns whether the log gives this answer until it is opened again: waiting does not help,
    /// and mending the cause alone does not either.
    ///
    /// A supervisor restarts the process if [`health`](crate::SessionLog::health) returns such an
    /// error. Of any other, such as a full disk, a restart changes nothing and ends the reads that
    /// still work.
    #[must_use]
    pub fn needs_reopening(&self) -> bool {
        matches!(
            self,
            Error::Poisoned { .. } | Error::Displaced { .. } | Error::Forked { .. } | Error::Closed
        )
    }

    /// The error and what caused it, in one line.
    pub(crate) fn with_sources(&self) -> String {
        in_one_line(self)
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Error::Invalid {
            what,
            why: why.into(),
        }
    }

    /// Returns the error of an append that failed while it looked something up.
    pub(crate) fn before_append(self) -> Self {
        match self {
            Error::Io {
                doing,
                path,
                source,
            } => Error::LookupFailed {
                doing,
                path,
                source,
            },
            other => other,
        }
    }

    pub(crate) fn corrupt(file: impl Into<PathBuf>, offset: u64, what: impl Into<String>) -> Self {
        Error::Corrupt {
            file: file.into(),
            offset,
            what: what.into(),
        }
    }
}

/// Refuses `actual` when it exceeds `max`.
pub(crate) fn check_limit(limit: Limit, actual: usize, max: usize) -> Result<()> {
    if actual <= max {
        return Ok(());
    }
    Err(Error::TooLarge {
        limit,
        actual: actual as u64,
        max: max as u64,
    })
}

/// `EMFILE` and `ENFILE`, which have no `ErrorKind`: the process or the system has too many files
/// open. Unix systems agree on the numbers.
const TOO_MANY_FILES: [i32; 2] = [24, 23];

/// Whether the same call may succeed later without anybody mending something: the process or the
/// system is short of something for a while.
pub(crate) fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        Interrupted, Other, OutOfMemory, QuotaExceeded, ResourceBusy, StorageFull, TimedOut,
        WouldBlock,
    };
    let passes = [
        Interrupted,
        Other,
        OutOfMemory,
        QuotaExceeded,
        ResourceBusy,
        StorageFull,
        TimedOut,
        WouldBlock,
    ];
    let is_short_of_files = error
        .raw_os_error()
        .is_some_and(|code| cfg!(unix) && TOO_MANY_FILES.contains(&code));
    is_short_of_files || passes.contains(&error.kind())
}

/// Any error and what caused it, in one line.
pub(crate) fn in_one_line(first: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(first.source(), |error| error.source());
    causes.fold(first.to_string(), |line, cause| format!("{line}: {cause}"))
}
