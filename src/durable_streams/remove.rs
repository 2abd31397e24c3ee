//! Deletes streams. One that forks still go back to is only marked as gone, until the last of them
//! is deleted.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::durable_streams::settings::SOURCE;
use crate::durable_streams::stream::{InPath, PREFIX, Stream, Streams, gone, unknown};
use crate::http::{Access, ApiError, blocking};
use crate::log::Unless;
use crate::model::{Batch, Delete, Error, Result, SessionId, SessionInfo, SessionPatch};
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
        loop {
            let stream = streams.live(&session)?;
            if streams.remove(&stream, Unless::Changed, Delete::new())? {
                return Ok(StatusCode::NO_CONTENT);
            }
        }
    })
    .await
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
        while let Some(stream) = Stream::read(self.log(), session)? {
            if stream.settings.gone || !self.is_expired(&stream) {
                return Ok(Some(stream));
            }
            self.expire(&stream)?;
        }
        Ok(None)
    }

    /// Removes a stream that has expired, unless something came in between.
    pub(super) fn expire(&self, stream: &Stream) -> Result<()> {
        let delete = Delete::new().reason(EXPIRED);
        self.remove(stream, Unless::ChangedOrLonger, delete)?;
        Ok(())
    }

    /// Removes a stream as it was read, and the streams that were only kept for it. `false`: it has
    /// changed since, and nothing was done.
    pub(super) fn remove(&self, stream: &Stream, unless: Unless, delete: Delete) -> Result<bool> {
        let is_deleted = {
            // The first fork changes its source, so it needs no lock to be seen.
            let no_fork_comes = stream.settings.forked.then(|| self.forking.write());
            if no_fork_comes.is_some() && self.has_forks(stream)? {
                return self.mark_gone(stream, unless);
            }
            self.log().delete_as_read(&stream.info, unless, delete)?
        };
        if is_deleted && let Err(error) = self.remove_unneeded(stream.settings.source.clone()) {
            // The stream itself is deleted, which is what was asked for.
            tracing::warn!(
                target: "sessionlog::durable_streams",
                %error,
                stream = %stream.info.id,
                "the source of a deleted fork stays until the next sweep"
            );
        }
        Ok(is_deleted)
    }

    /// Removes a stream if it is gone and no fork of it is left, then its source if it was a fork,
    /// and so on.
    pub(super) fn remove_unneeded(&self, stream: Option<SessionId>) -> Result<()> {
        let mut next = stream;
        while let Some(session) = next.take() {
            let Some(stream) = Stream::read(self.log(), &session)? else {
                return Ok(());
            };
            if self.remove_gone(&stream)? {
                next = stream.settings.source;
            }
        }
        Ok(())
    }

    /// Deletes a stream that is gone, as it was read. `false`: it is not gone, a fork of it is left
    /// or it has changed since.
    fn remove_gone(&self, stream: &Stream) -> Result<bool> {
        if !stream.settings.gone {
            return Ok(false);
        }
        let _no_fork_comes = self.forking.write();
        if self.has_forks(stream)? {
            return Ok(false);
        }
        let info = &stream.info;
        self.log()
            .delete_as_read(info, Unless::Changed, Delete::new())
    }

    /// Whether a fork of a stream is left. A gone fork is, and one that has expired is not.
    ///
    /// It asks the log for forks that share events first. A fork at the beginning shares none, and
    /// neither does a fork of what its source has inherited. These are looked for in all streams.
    pub(super) fn has_forks(&self, stream: &Stream) -> Result<bool> {
        let (log, session) = (self.log(), &stream.info.id);
        let of = (session, stream.info.generation);
        let is_left = |fork| self.kept_by(&Stream::of(fork)) == Some(of);
        let sharing = match log.forks(session) {
            Err(Error::UnknownSession { .. }) => return Ok(false),
            forks => forks?,
        };
        if sharing.into_iter().any(is_left) {
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
            if page.items.into_iter().any(is_left) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the source that a stream keeps as a fork of it, with its generation.
    pub(super) fn kept_by<'a>(&self, fork: &'a Stream) -> Option<(&'a SessionId, u32)> {
        let parent = fork.info.parent.as_ref()?;
        // A session that others have forked has the metadata of its parent.
        let is_fork = fork.settings.source.as_ref() == Some(&parent.id);
        let is_over = !fork.settings.gone && !fork.settings.forked && self.is_expired(fork);
        (is_fork && !is_over).then_some((&parent.id, parent.generation))
    }

    /// Marks a stream as gone and hides its events. Its forks keep what they share. `false`: it has
    /// changed since it was read, and nothing was done.
    ///
    /// After a crash between the two steps it is gone, and [the sweep](super::sweep) hides them.
    fn mark_gone(&self, stream: &Stream, unless: Unless) -> Result<bool> {
        if stream.info.hold {
            return Err(Error::Held {
                session: stream.info.id.clone(),
            });
        }
        let metadata = stream.settings.patch_of_gone(&stream.info.metadata);
        let patch = SessionPatch::new().without_title().metadata(metadata);
        let marked = Batch::new().patch(patch);
        let Some(gone) = self.log().close_as_read(&stream.info, unless, marked)? else {
            return Ok(false);
        };
        self.hide(&gone)?;
        Ok(true)
    }

    /// Trims all events of a stream that is gone, unless it has changed since it was read.
    pub(super) fn hide(&self, gone: &SessionInfo) -> Result<()> {
        if gone.first <= gone.last {
            self.log().trim_as_read(gone)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable_streams::settings::{ContentType, Settings};
    use crate::http::{Config, Service};
    use crate::log::SessionLog;
    use crate::model::{Fork, NewEvent, NewSession};

    const OVER: &str = "2000-01-01T00:00:00Z";

    fn streams(folder: &tempfile::TempDir) -> Streams {
        let log = SessionLog::open(folder.path()).unwrap();
        Streams::new(Arc::new(Service::new(log, Config::open())))
    }

    fn named(name: &str) -> SessionId {
        SessionId::new(format!("{PREFIX}{name}")).unwrap()
    }

    fn plain() -> Settings {
        Settings::new(ContentType::bytes())
    }

    fn expired() -> Settings {
        Settings {
            expires_at: Some(OVER.parse().unwrap()),
            ..plain()
        }
    }

    fn note() -> NewEvent {
        NewEvent::new("note", "1")
    }

    /// Creates a stream without an event, and returns it as it was read.
    fn made(streams: &Streams, name: &str, settings: &Settings) -> Stream {
        let new = NewSession::new().metadata(settings.patch());
        streams.log().create(&named(name), new).unwrap();
        now(streams, name)
    }

    fn now(streams: &Streams, name: &str) -> Stream {
        Stream::read(streams.log(), &named(name)).unwrap().unwrap()
    }

    /// Makes a stream of this name anew, with an event.
    fn made_again(streams: &Streams, name: &str, settings: &Settings) {
        streams.log().delete(&named(name), Delete::new()).unwrap();
        made(streams, name, settings);
        streams.log().append(&named(name), note()).unwrap();
    }

    fn fork(streams: &Streams, source: &str, name: &str) {
        let log = streams.log();
        log.set_metadata(&named(source), Settings::patch_of_fork())
            .unwrap();
        let settings = Settings {
            source: Some(named(source)),
            ..plain()
        };
        let fork = Fork::new(&named(source)).metadata(settings.patch());
        log.fork(fork, &named(name)).unwrap();
    }

    #[test]
    fn the_removal_of_a_gone_stream_leaves_the_next_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let streams = streams(&folder);
        made(&streams, "a", &plain());
        fork(&streams, "a", "b");
        assert!(
            streams
                .remove(&now(&streams, "a"), Unless::Changed, Delete::new())
                .unwrap()
        );
        let gone = now(&streams, "a");
        assert!(gone.settings.gone && gone.info.closed);
        assert!(!streams.remove_gone(&gone).unwrap(), "it has a fork");
        streams.log().delete(&named("b"), Delete::new()).unwrap();
        made_again(&streams, "a", &plain());
        assert!(!streams.remove_gone(&gone).unwrap());
        let removed = streams.remove(&gone, Unless::Changed, Delete::new());
        assert!(!removed.unwrap());
        assert_eq!(now(&streams, "a").info.last, 1);
    }

    #[test]
    fn a_stream_expires_only_as_it_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let streams = streams(&folder);
        let (log, a) = (streams.log(), named("a"));
        let stale = made(&streams, "a", &expired());
        streams.expire(&stale).unwrap();
        assert!(log.session(&a).is_err());
        // The next of its name has as many events: none.
        made(&streams, "a", &expired());
        streams.expire(&stale).unwrap();
        let stale = now(&streams, "a");
        log.append(&a, note()).unwrap();
        streams.expire(&stale).unwrap();
        let stale = now(&streams, "a");
        log.close_session(&a).unwrap();
        streams.expire(&stale).unwrap();
        assert!(now(&streams, "a").info.closed);
        streams.expire(&now(&streams, "a")).unwrap();
        assert!(log.session(&a).is_err());
    }

    #[test]
    fn a_forked_stream_is_gone_only_as_it_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let streams = streams(&folder);
        let (log, a) = (streams.log(), named("a"));
        made(&streams, "a", &expired());
        log.append(&a, note()).unwrap();
        fork(&streams, "a", "b");
        let stale = now(&streams, "a");
        log.append(&a, note()).unwrap();
        streams.expire(&stale).unwrap();
        let after = now(&streams, "a");
        assert!(!after.settings.gone && !after.info.closed);
        assert_eq!((after.info.first, after.info.last), (1, 2));
        made_again(&streams, "a", &plain());
        fork(&streams, "a", "c");
        for unless in [Unless::Changed, Unless::ChangedOrLonger] {
            assert!(!streams.mark_gone(&after, unless).unwrap());
        }
        streams.hide(&after.info).unwrap();
        let next = now(&streams, "a");
        assert!(!next.settings.gone);
        assert_eq!((next.info.first, next.info.last), (1, 1));
    }

    #[test]
    fn a_fork_keeps_the_stream_that_it_was_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let streams = streams(&folder);
        made(&streams, "a", &plain());
        made(&streams, "b", &plain());
        fork(&streams, "a", "c");
        assert!(streams.has_forks(&now(&streams, "a")).unwrap());
        // Metadata that others have written names another session of the same generation.
        let other = Settings {
            source: Some(named("b")),
            ..plain()
        };
        streams
            .log()
            .set_metadata(&named("c"), other.patch())
            .unwrap();
        assert!(!streams.has_forks(&now(&streams, "b")).unwrap());
    }
}
