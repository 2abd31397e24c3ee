//! Forks: streams that begin with what another one holds up to a point.

use axum::body::Bytes;

use crate::durable_streams::asked::{Asked, AskedFork};
use crate::durable_streams::headers::Lifetime;
use crate::durable_streams::offset::Start;
use crate::durable_streams::settings::{ForkedAt, Settings};
use crate::durable_streams::stream::{Stream, Streams, conflict, unknown};
use crate::http::ApiError;
use crate::log::SessionLog;
use crate::model::{Batch, Error, Fork, NewEvent, Seq, SessionId, SessionInfo};
use crate::read::PageRequest;

impl Streams {
    /// Creates a fork. `false` when a stream of its name came in between, or the source changed.
    pub(super) fn fork(
        &self,
        session: &SessionId,
        fork: &AskedFork,
        asked: &Asked,
        body: &Bytes,
    ) -> Result<bool, ApiError> {
        let source = self
            .find(&fork.source)?
            .ok_or_else(|| unknown(&fork.source))?;
        self.fork_as_read(&source, session, fork, asked, body)
    }

    /// Does the same of a source as it was read.
    fn fork_as_read(
        &self,
        source: &Stream,
        session: &SessionId,
        fork: &AskedFork,
        asked: &Asked,
        body: &Bytes,
    ) -> Result<bool, ApiError> {
        let log = self.log();
        if source.settings.gone {
            return Err(conflict(
                "stream_gone",
                "the source of the fork was deleted",
            ));
        }
        let content_type = &source.settings.content_type;
        if asked
            .content_type
            .as_ref()
            .is_some_and(|asked| !asked.is_like(content_type))
        {
            return Err(conflict(
                "content_type",
                "the source has another content type",
            ));
        }
        let seq = match fork.offset {
            Some(offset) => source.seq_of(Start::Offset(offset))?,
            None => source.info.last,
        };
        let point = point(log, source, seq, fork.sub_offset)?;
        let mut events: Vec<NewEvent> = point.split.into_iter().collect();
        events.extend(self.first_events(content_type, body)?);
        let mut first = Batch::new().events(events);
        if asked.closed {
            first = first.closing();
        }
        let settings = Settings {
            fork: Some(ForkedAt {
                seq,
                sub_offset: fork.sub_offset,
                life: source.life().before,
            }),
            source: Some(fork.source.clone()),
            ..with_lifetime(asked.lifetime, &source.settings, asked)
        };
        let new = Fork::new(&fork.source)
            .at(point.seq)
            .metadata(settings.patch())
            .then(first);
        let _source_stays = self.forking.read();
        let Some(read) = self.noted_as_forked(source)? else {
            return Ok(false);
        };
        match log.fork_as_read(&read, new, session) {
            Err(Error::SessionExists { .. }) => Ok(false),
            made => Ok(made?.is_some()),
        }
    }

    /// Notes that a stream is forked, and returns it then. `None` when it has changed meanwhile.
    fn noted_as_forked(&self, source: &Stream) -> Result<Option<SessionInfo>, ApiError> {
        let info = &source.info;
        if source.settings.forked {
            return Ok(Some(info.clone()));
        }
        let note = Batch::new().metadata(Settings::patch_of_fork());
        let noted = self.log().append_as_read(info, note)?;
        Ok(noted.map(|noted| noted.state.info(&info.id)))
    }
}

/// The settings of a fork: its own lifetime, or that of its source.
fn with_lifetime(own: Lifetime, source: &Settings, asked: &Asked) -> Settings {
    let lifetime = if own == Lifetime::default() {
        Lifetime {
            ttl: source.ttl,
            expires_at: source.expires_at,
        }
    } else {
        own
    };
    let content_type = asked.content_type.as_ref().unwrap_or(&source.content_type);
    Settings {
        ttl: lifetime.ttl,
        expires_at: lifetime.expires_at,
        ..Settings::new(content_type.clone())
    }
}

/// Where a fork branches off: behind an event, and behind a part of the next one that it copies.
struct Point {
    seq: Seq,
    split: Option<NewEvent>,
}

/// Finds the point that lies `sub_offset` messages or bytes behind an event.
fn point(log: &SessionLog, source: &Stream, seq: Seq, sub_offset: u64) -> Result<Point, ApiError> {
    let beyond = || ApiError::invalid("the sub-offset of the fork is beyond the end of the source");
    if source.settings.content_type.is_json() {
        let seq = seq.checked_add(sub_offset).ok_or_else(beyond)?;
        if seq > source.info.last {
            return Err(beyond());
        }
        return Ok(Point { seq, split: None });
    }
    let (mut seq, mut left) = (seq, sub_offset);
    // A sub-offset is within one append.
    if left > log.limits().batch_bytes_max as u64 {
        return Err(beyond());
    }
    while left > 0 {
        let page = log.list(&source.info.id, PageRequest::new().after(seq))?;
        if page.items.is_empty() {
            return Err(beyond());
        }
        for event in page.items {
            let bytes = event.data.len() as u64;
            if left < bytes {
                let part = usize::try_from(left).map_or(event.data.len(), |left| left);
                let part = event.data.slice(..part);
                let split = (left > 0).then(|| NewEvent::new(event.event_type.as_str(), part));
                return Ok(Point { seq, split });
            }
            (seq, left) = (event.seq, left - bytes);
        }
    }
    Ok(Point { seq, split: None })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::durable_streams::settings::ContentType;
    use crate::http::{Config, Service};
    use crate::log::Unless;
    use crate::model::{Delete, NewSession};

    #[test]
    fn a_source_that_was_deleted_since_it_was_read_is_not_forked() {
        let folder = tempfile::tempdir().unwrap();
        let log = SessionLog::open(folder.path()).unwrap();
        let streams = Streams::new(Arc::new(Service::new(log.clone(), Config::open())));
        let [a, b, c] = ["ds/a", "ds/b", "ds/c"].map(|name| SessionId::new(name).unwrap());
        let settings = Settings::new(ContentType::bytes());
        let create = || {
            let new = NewSession::new().metadata(settings.patch());
            log.create(&a, new).unwrap();
            for _ in 0..5 {
                log.append(&a, NewEvent::new("note", "1")).unwrap();
            }
        };
        let read = || Stream::read(&log, &a).unwrap().unwrap();
        let asked = Asked {
            content_type: None,
            lifetime: Lifetime::default(),
            closed: false,
            fork: None,
        };
        let fork_of = |source: &Stream, session| {
            for seq in [3, 5] {
                let of = AskedFork {
                    source: a.clone(),
                    offset: Some(source.offset(seq)),
                    sub_offset: 0,
                };
                let made = streams.fork_as_read(source, session, &of, &asked, &Bytes::new());
                if made.unwrap() {
                    return true;
                }
            }
            false
        };
        let remove = || {
            let removed = streams.remove(&read(), Unless::Changed, Delete::new());
            assert!(removed.unwrap());
        };
        create();
        let never_forked = read();
        assert!(fork_of(&never_forked, &b));
        let forked = read();
        remove();
        assert!(read().settings.gone);
        for stale in [&never_forked, &forked] {
            assert!(!fork_of(stale, &c));
        }
        log.delete(&a, Delete::new()).unwrap();
        assert!(!fork_of(&forked, &c));
        create();
        for stale in [&never_forked, &forked] {
            assert!(!fork_of(stale, &c));
        }
        assert!(log.session(&c).is_err());
        assert!(!read().settings.forked);
        assert!(fork_of(&read(), &c));
    }
}
