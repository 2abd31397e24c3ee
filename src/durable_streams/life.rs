//! How long streams live: TTLs that every use renews, and fixed times.

use std::sync::Arc;

use crate::durable_streams::stream::{Stream, Streams};
use crate::model::SessionId;

impl Streams {
    /// Renews the TTL of a stream.
    pub(super) fn note_use(&self, stream: &Stream) {
        if stream.settings.ttl.is_some() {
            let now = self.log().now_ms();
            let mut uses = self.uses.of.lock();
            uses.entry(stream.info.id.clone()).or_default().last_ms = now;
        }
    }

    /// Whether the time of a stream is over. A session on hold does not expire.
    pub(super) fn is_expired(&self, stream: &Stream) -> bool {
        !stream.info.hold
            && self
                .expires_ms(stream)
                .is_some_and(|expires| expires <= self.log().now_ms())
    }

    /// Returns the seconds that are left of a stream's life.
    pub(super) fn seconds_left(&self, stream: &Stream) -> Option<u64> {
        let expires = self.expires_ms(stream)?;
        Some(expires.saturating_sub(self.log().now_ms()) / 1000)
    }

    fn expires_ms(&self, stream: &Stream) -> Option<u64> {
        if let Some(at) = stream.settings.expires_at {
            return Some(u64::try_from(at.as_millisecond()).unwrap_or_default());
        }
        let ttl = stream.settings.ttl?;
        let used = self.uses.last_ms(&stream.info.id)?;
        let active = u64::try_from(stream.info.active_at.as_millisecond()).unwrap_or_default();
        Some(used.max(active).saturating_add(ttl.saturating_mul(1000)))
    }
}

/// A reader that waits for news of a stream. Until it is dropped the stream does not expire by its
/// TTL.
pub(super) struct Reader {
    streams: Arc<Streams>,
    session: Option<SessionId>,
}

impl Reader {
    pub(super) fn of(streams: &Arc<Streams>, stream: &Stream) -> Self {
        let session = stream.settings.ttl.map(|_ttl| stream.info.id.clone());
        if let Some(session) = &session {
            let mut uses = streams.uses.of.lock();
            uses.entry(session.clone()).or_default().readers += 1;
        }
        Self {
            streams: Arc::clone(streams),
            session,
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(session) = &self.session else {
            return;
        };
        let now = self.streams.log().now_ms();
        if let Some(used) = self.streams.uses.of.lock().get_mut(session) {
            used.readers = used.readers.saturating_sub(1);
            used.last_ms = now;
        }
    }
}
