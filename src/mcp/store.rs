//! The store: where streams and sessions of MCP are in the log, and for how long.

use std::panic::resume_unwind;
use std::time::Duration;

use crate::log::SessionLog;
use crate::model::{
    Ack, Batch, Delete, Error, Event, Expected, NewEvent, Result, Retention, SessionId,
    SessionPatch,
};
use crate::read::PageRequest;

/// The type of an event of a stream.
pub(super) const EVENT: &str = "mcp.event";

/// The type of an event that holds the record of a session.
pub(super) const SESSION: &str = "mcp.session";

const HOUR: Duration = Duration::from_hours(1);

/// Event and session stores of MCP servers, over a log.
///
/// It implements the traits of the libraries whose features are on. Clones are the same store. It
/// needs a runtime of Tokio, as the libraries do. Reads are made on its threads for blocking calls.
/// An append may look up its session on the disk, and a replay reads a page of the stream at a
/// time, on the thread that polls them.
#[derive(Debug, Clone)]
pub struct Store {
    pub(super) log: SessionLog,
    prefix: String,
    streams: Retention,
    sessions_for: Duration,
}

impl Store {
    /// Makes a store over an open log, below `mcp/`.
    ///
    /// Events are kept for a day, and sessions that have no expiry of their own for 30 days.
    #[must_use]
    pub fn new(log: SessionLog) -> Self {
        let day = 24 * HOUR;
        Self {
            log,
            prefix: "mcp/".to_owned(),
            streams: Retention::new().idle(day).max_age(day),
            sessions_for: 30 * day,
        }
    }

    /// Puts everything into sessions of the log whose IDs begin so, instead of `mcp/`.
    ///
    /// Two stores of a log with the same prefix are one store. With a prefix that no
    /// [session ID](SessionId) can begin with, every call that stores something fails.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long the events of a stream are kept. Default: a day, both each event and the stream
    /// after its last one.
    ///
    /// It counts for streams that begin from now on. A client cannot resume from an event that was
    /// removed.
    #[must_use]
    pub fn streams_kept(mut self, retention: Retention) -> Self {
        self.streams = retention;
        self
    }

    /// How long a session of `rmcp` is kept after its `initialize`. Default: 30 days.
    ///
    /// It counts for sessions that begin from now on. After a restart, a client with an older one
    /// has to initialize again. Sessions of `tower-mcp` say themselves when they expire.
    #[must_use]
    pub fn sessions_kept(mut self, time: Duration) -> Self {
        self.sessions_for = time;
        self
    }

    /// Returns the session of the log for something of this kind.
    ///
    /// # Errors
    ///
    /// When the log cannot have such a session, so that there is nothing of this name.
    pub(super) fn session(&self, kind: Kind, name: &str) -> Result<SessionId> {
        SessionId::new(self.name(kind, name))
    }

    pub(super) fn name(&self, kind: Kind, name: &str) -> String {
        format!("{}{}{name}", self.prefix, kind.folder())
    }

    /// Appends an event to a stream. The first one gives it its retention.
    pub(super) async fn append(&self, session: &SessionId, event: NewEvent) -> Result<Ack> {
        let next = Batch::from(event.clone()).expected(Expected::Exists);
        match self.log.append_async(session, next).await {
            Err(Error::ExpectedMismatch { .. }) => {
                let patch = SessionPatch::new().retention(self.streams);
                let first = Batch::from(event).patch(patch);
                self.log.append_async(session, first).await
            }
            appended => appended,
        }
    }

    /// Stores the record of a session, which replaces an earlier one if it may.
    pub(super) async fn put(
        &self,
        session: &SessionId,
        record: NewEvent,
        kept: Option<Duration>,
        expected: Expected,
    ) -> Result<()> {
        // Retention by idleness is looked after once a minute.
        let idle = kept.unwrap_or(self.sessions_for).max(HOUR / 60);
        let retention = Retention::new().idle(idle).max_events(1);
        let batch = Batch::from(record)
            .patch(SessionPatch::new().retention(retention))
            .expected(expected);
        self.log.append_async(session, batch).await.map(drop)
    }

    /// Returns the record of a session.
    pub(super) async fn record(&self, kind: Kind, name: &str) -> Result<Option<Event>> {
        let Ok(session) = self.session(kind, name) else {
            return Ok(None);
        };
        self.reading(move |log| newest(log, &session, [SESSION]))
            .await
    }

    /// Removes everything of this name. There may be nothing.
    pub(super) async fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        let Ok(session) = self.session(kind, name) else {
            return Ok(());
        };
        match self.log.delete_async(&session, Delete::new()).await {
            Ok(_) | Err(Error::UnknownSession { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads from the log on a thread that may wait for the disk.
    pub(super) async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&SessionLog) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || read(&log)).await {
            Ok(read) => read,
            Err(lost) => match lost.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, so nobody gets the answer.
                Err(_cancelled) => Err(Error::Closed),
            },
        }
    }
}

/// What is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    #[cfg(feature = "mcp-rmcp-3")]
    RmcpStream,
    #[cfg(feature = "mcp-rmcp-3")]
    RmcpSession,
    #[cfg(feature = "mcp-tower-0-25")]
    TowerEvents,
    #[cfg(feature = "mcp-tower-0-25")]
    TowerSession,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            #[cfg(feature = "mcp-rmcp-3")]
            Self::RmcpStream => "rmcp/streams/",
            #[cfg(feature = "mcp-rmcp-3")]
            Self::RmcpSession => "rmcp/sessions/",
            #[cfg(feature = "mcp-tower-0-25")]
            Self::TowerEvents => "tower/events/",
            #[cfg(feature = "mcp-tower-0-25")]
            Self::TowerSession => "tower/sessions/",
        }
    }
}

/// Returns the newest event of these types, if there is one.
pub(super) fn newest<const N: usize>(
    log: &SessionLog,
    session: &SessionId,
    types: [&str; N],
) -> Result<Option<Event>> {
    let mut next = Some(PageRequest::new().newest_first().types(types).limit(1));
    // A page may end below events of other types, which only others append.
    while let Some(request) = next {
        let page = match log.list(session, request) {
            Ok(page) => page,
            Err(Error::UnknownSession { .. }) => break,
            Err(error) => return Err(error),
        };
        next = page.next_page();
        if let Some(event) = page.items.into_iter().next() {
            return Ok(Some(event));
        }
    }
    Ok(None)
}
