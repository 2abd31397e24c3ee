//! A stream as it is stored, and what all calls share.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::durable_streams::offset::{Life, Offset, Start};
use crate::durable_streams::settings::Settings;
use crate::durable_streams::uses::Uses;
use crate::http::{Access, ApiError, Service, check_names_a_path};
use crate::log::SessionLog;
use crate::model::{CursorProblem, Error, Result, Seq, SessionId, SessionInfo};
use crate::sync::{AtomicBool, RwLock};

/// The beginning of the ID of every session that is a stream.
pub(super) const PREFIX: &str = "ds/";

/// The first segment of paths that the protocol keeps for subscriptions.
const RESERVED: &str = "__ds";

/// What all calls share.
pub(super) struct Streams {
    pub service: Arc<Service>,
    pub uses: Uses,
    /// Whether expired streams are looked after.
    pub is_swept: AtomicBool,
    /// Read while a fork is made, and written while a stream is looked at for forks and removed.
    /// The first fork of a stream changes it. Later ones do not, so that a removal would miss them.
    pub forking: RwLock<()>,
}

impl Streams {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self {
            uses: Uses::new(service.log.now_ms()),
            service,
            is_swept: AtomicBool::new(false),
            forking: RwLock::new(()),
        }
    }

    pub(super) fn log(&self) -> &SessionLog {
        &self.service.log
    }

    /// Whether every caller may do everything.
    pub(super) fn is_for_development(&self) -> bool {
        self.service.config.open && self.service.config.keys.is_empty()
    }

    /// Whether a caller may do what takes the key of a worker.
    pub(super) fn may_write(&self, access: &Access) -> bool {
        access.is_worker() || self.is_for_development()
    }

    /// Refuses a caller that may only read.
    pub(super) fn check_writer(&self, access: &Access, what: &str) -> Result<(), ApiError> {
        if self.may_write(access) {
            return Ok(());
        }
        access.check_worker(what)
    }
}

/// Returns the session of the stream at a path, percent-decoded, if the caller may know of it.
pub(super) fn session_at(path: &str, access: &Access) -> Result<SessionId, ApiError> {
    path.split('/').try_for_each(check_names_a_path)?;
    if path.split('/').next() == Some(RESERVED) {
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "subscriptions_missing",
            "this server has no subscriptions, and keeps their paths free",
        ));
    }
    let session = SessionId::new(format!("{PREFIX}{path}"))?;
    access.check(&session)?;
    Ok(session)
}

/// The session of the stream that a call is for, if its caller may know of it.
pub(super) struct InPath(pub SessionId);

impl<S: Send + Sync> FromRequestParts<S> for InPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(path) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(error.body_text()))?;
        let Ok(access) = Access::from_request_parts(parts, state).await;
        session_at(&path, &access).map(Self)
    }
}

/// A stream as it was read.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub info: SessionInfo,
    pub settings: Settings,
}

impl Stream {
    pub(super) fn of(info: SessionInfo) -> Self {
        Self {
            settings: Settings::of(&info.metadata),
            info,
        }
    }

    /// Reads a stream, whether it is gone or has expired or not.
    pub(super) fn read(log: &SessionLog, session: &SessionId) -> Result<Option<Self>> {
        match log.session(session) {
            Ok(info) => Ok(Some(Self::of(info))),
            Err(Error::UnknownSession { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The life that the offsets of the stream name.
    pub(super) fn life(&self) -> Life {
        let own = self.info.generation - 1;
        // A reader comes from the offsets of the source to those of the fork.
        let before = self.source_life().map_or(0, |source| {
            let is_below = own < source.own;
            source.before.saturating_add(u32::from(is_below))
        });
        Life {
            before: own.max(before),
            own,
        }
    }

    /// The life that the offsets of the source name.
    pub(super) fn source_life(&self) -> Option<Life> {
        let (fork, parent) = self.settings.fork.zip(self.info.parent.as_ref())?;
        Some(Life {
            before: fork.life,
            own: parent.generation - 1,
        })
    }

    pub(super) fn offset(&self, seq: Seq) -> Offset {
        Offset {
            life: self.life(),
            seq,
        }
    }

    pub(super) fn tail(&self) -> Offset {
        self.offset(self.info.last)
    }

    /// Returns the seq before the position.
    pub(super) fn seq_of(&self, start: Start) -> Result<Seq, ApiError> {
        let offset = match start {
            Start::Beginning => return Ok(self.info.first - 1),
            Start::Now => return Ok(self.info.last),
            Start::Offset(offset) => offset,
        };
        let beyond = |why: &str| Err(ApiError::invalid(format!("the offset {offset} {why}")));
        let life = self.life();
        if offset.life != life && !self.is_of_source(offset) {
            if offset.life.own > life.own {
                return beyond("is of a later life of the stream");
            }
            return Err(ApiError::new(
                StatusCode::GONE,
                "stream_recreated",
                format!("the offset {offset} is of a stream that was deleted"),
            ));
        }
        if offset.seq > self.info.last {
            return beyond("is beyond the end of the stream");
        }
        if offset.seq < self.info.first - 1 {
            return Err(Error::Cursor {
                session: self.info.id.clone(),
                problem: CursorProblem::Trimmed {
                    first: self.info.first,
                },
            }
            .into());
        }
        Ok(offset.seq)
    }

    /// Whether an offset of the source is one of this fork too.
    ///
    /// One of a life that the name of the fork has behind it may be of an earlier stream of that
    /// name, and counts as such.
    fn is_of_source(&self, offset: Offset) -> bool {
        let shared = self.info.parent.as_ref().map(|parent| parent.at);
        self.source_life() == Some(offset.life)
            && offset.life.own >= self.life().own
            && shared.is_some_and(|at| offset.seq <= at)
    }
}

/// The answer about a stream that was deleted while forks of it live.
pub(super) fn gone(session: &SessionId) -> ApiError {
    ApiError::new(
        StatusCode::GONE,
        "stream_gone",
        format!("{session} was deleted, and its forks still show what they share with it"),
    )
}

pub(super) fn unknown(session: &SessionId) -> ApiError {
    Error::UnknownSession {
        session: session.clone(),
    }
    .into()
}

pub(super) fn conflict(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code, message)
}
