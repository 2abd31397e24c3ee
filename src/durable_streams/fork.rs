//! Forks: streams that begin with what another one holds up to a point.

use axum::body::Bytes;

use crate::durable_streams::asked::{Asked, AskedFork};
use crate::durable_streams::headers::Lifetime;
use crate::durable_streams::offset::Start;
use crate::durable_streams::settings::{ForkedAt, Settings};
use crate::durable_streams::stream::{Stream, Streams, conflict, is_made, unknown};
use crate::http::ApiError;
use crate::log::SessionLog;
use crate::model::{Batch, Delete, Fork, NewEvent, Seq, SessionId};
use crate::read::PageRequest;

impl Streams {
    /// Creates a fork. `false` when a stream of its name came in between.
    pub(super) fn fork(
        &self,
        session: &SessionId,
        fork: &AskedFork,
        asked: &Asked,
        body: &Bytes,
    ) -> Result<bool, ApiError> {
        let log = self.log();
        let source = self
            .find(&fork.source)?
            .ok_or_else(|| unknown(&fork.source))?;
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
        let point = point(log, &source, seq, fork.sub_offset)?;
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
                life: source.life(),
            }),
            source: Some(fork.source.clone()),
            ..with_lifetime(asked.lifetime, &source.settings, asked)
        };
        if !source.settings.forked {
            log.set_metadata(&fork.source, Settings::patch_of_fork())?;
        }
        let new = Fork::new(&fork.source)
            .at(point.seq)
            .metadata(settings.patch());
        let made = log.fork(new.then(first), session);
        if let Ok(made) = &made
            && made.parent.as_ref().map(|parent| parent.generation) != Some(source.info.generation)
        {
            // The source was deleted and created again since it was read.
            log.delete(session, Delete::new())?;
            return Err(unknown(&fork.source));
        }
        is_made(made)
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
