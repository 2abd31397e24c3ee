//! Deletes streams. One that forks still go back to is only marked as gone, until the last of them
//! is deleted.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::durable_streams::settings::{SOURCE, Settings};
use crate::durable_streams::stream::{InPath, PREFIX, Stream, Streams, gone, unknown};
use crate::http::{Access, ApiError, blocking};
use crate::log::SessionLog;
use crate::model::{Batch, Delete, Error, Expected, Result, SessionId, SessionPatch};
use crate::read::SessionQuery;

/// The reason that the feed gives for a stream that has expired.
const EXPIRED: &str = "expired";

pub(super) async fn delete(
    State(streams): State<Arc<Streams>>,
    access: Access,
    InPath(session): InPath,
) -> Result<StatusCode, ApiError> {
    streams.check_writer(&access, "deleting a stream")?;
    blocking(move || {
        let stream = streams.live(&session)?;
        streams.remove(&stream, Delete::new())?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// What became of a stream that was removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    Deleted,
    Gone,
}

impl Streams {
    /// Reads a stream that can be used. One that has expired is removed first.
    pub(super) fn live(&self, session: &SessionId) -> Result<Stream, ApiError> {
        match self.find(session)? {
            Some(stream) if stream.settings.gone => Err(gone(session)),
            Some(stream) => Ok(stream),
            None => Err(unknown(session)),
        }
    }

    /// Reads a stream that is not deleted. It may be gone. One that has expired is removed first.
    pub(super) fn find(&self, session: &SessionId) -> Result<Option<Stream>> {
        let Some(stream) = Stream::read(self.log(), session)? else {
            return Ok(None);
        };
        if stream.settings.gone || !self.is_expired(&stream) {
            return Ok(Some(stream));
        }
        self.expire(&stream)?;
        Stream::read(self.log(), session)
    }

    /// Removes a stream that has expired, unless something came in between.
    pub(super) fn expire(&self, stream: &Stream) -> Result<()> {
        let last = Expected::Seq(stream.info.last);
        match self.remove(stream, Delete::new().reason(EXPIRED).expected(last)) {
            Err(Error::ExpectedMismatch { .. } | Error::UnknownSession { .. }) => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// Removes a stream, and the streams that were only kept for it.
    pub(super) fn remove(&self, stream: &Stream, delete: Delete) -> Result<Removal> {
        let log = self.log();
        if stream.settings.forked && self.has_forks(stream)? {
            mark_gone(log, stream)?;
            return Ok(Removal::Gone);
        }
        log.delete(&stream.info.id, delete)?;
        self.remove_unneeded_source(stream)?;
        Ok(Removal::Deleted)
    }

    /// Removes the source of a deleted fork if it is gone and was its last.
    fn remove_unneeded_source(&self, deleted: &Stream) -> Result<()> {
        let mut next = deleted.settings.source.clone();
        while let Some(source) = next.take() {
            let Some(stream) = Stream::read(self.log(), &source)? else {
                return Ok(());
            };
            if !stream.settings.gone || self.has_forks(&stream)? {
                return Ok(());
            }
            match self.log().delete(&source, Delete::new()) {
                Err(Error::UnknownSession { .. }) => return Ok(()),
                deleted => deleted?,
            };
            next = stream.settings.source;
        }
        Ok(())
    }

    /// Whether a fork of a stream is left. A gone fork is, and one that has expired is not.
    ///
    /// It asks the log for forks that share events first. A fork at the beginning shares none, and
    /// neither does a fork of what its source has inherited. These are looked for in all streams.
    pub(super) fn has_forks(&self, stream: &Stream) -> Result<bool> {
        let log = self.log();
        let session = &stream.info.id;
        let is_left = |fork: &Stream| {
            let is_of_it = fork.settings.source.as_ref() == Some(session);
            let of_life = fork.info.parent.as_ref().map(|parent| parent.generation);
            let is_over = !fork.settings.gone && !fork.settings.forked && self.is_expired(fork);
            is_of_it && of_life == Some(stream.info.generation) && !is_over
        };
        let mut sharing = log.forks(session)?.into_iter().map(Stream::of);
        if sharing.any(|fork| is_left(&fork)) {
            return Ok(true);
        }
        let mut query = Some(
            SessionQuery::by_id()
                .prefix(PREFIX)
                .metadata(SOURCE, session.as_str()),
        );
        while let Some(next) = query {
            let page = log.sessions(next)?;
            query = page.next_page();
            if page
                .items
                .into_iter()
                .map(Stream::of)
                .any(|fork| is_left(&fork))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Marks a stream as gone and hides its events. Its forks keep what they share.
///
/// After a crash between the two steps it is gone, and [the sweep](super::sweep) trims it.
fn mark_gone(log: &SessionLog, stream: &Stream) -> Result<()> {
    let session = &stream.info.id;
    let metadata = stream.settings.patch_of_gone(&stream.info.metadata);
    let patch = SessionPatch::new().without_title().metadata(metadata);
    log.append(session, Batch::new().patch(patch).closing())?;
    hide(log, session)
}

/// Trims all events of a stream that is gone.
pub(super) fn hide(log: &SessionLog, session: &SessionId) -> Result<()> {
    let info = log.session(session)?;
    if info.first <= info.last {
        log.trim(session, info.last + 1)?;
    }
    Ok(())
}

impl Settings {
    /// Whether a sweep may have something to do for such a stream.
    pub(super) fn may_end(&self) -> bool {
        self.ttl.is_some() || self.expires_at.is_some() || self.gone
    }
}
