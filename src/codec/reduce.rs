//! Writes a record again without what was removed from it.

use std::ops::RangeInclusive;

use bytes::{BufMut, Bytes};

use crate::codec::event::{EventFrame, put_event_of};
use crate::codec::op::Extra;
use crate::codec::record::{BODY_EXTENDED, BODY_KEYED, EVENT_REDACTED, Record};
use crate::codec::{Decoded, Salt, put_prefixed, put_varint};
use crate::model::{EventView, Seq};

impl Record {
    /// Returns the record with the events of `kept` alone. Events for which `is_redacted` holds
    /// lose their data. Without any event its changes are left, behind the seqs that it had.
    ///
    /// The events keep their seqs and IDs. A batch that is not kept whole loses its idempotency
    /// key, because a retry could not be answered.
    pub(crate) fn reduced(
        &self,
        kept: &RangeInclusive<Seq>,
        is_redacted: impl Fn(&EventView<'_>) -> bool,
    ) -> Decoded<Self> {
        let frames = self.events_in(kept).collect::<Decoded<Vec<_>>>()?;
        let first = frames
            .first()
            .map_or(self.last() + 1, |frame| frame.view.seq);
        let is_whole = frames.len() == self.count as usize;
        let key = self.key.clone().filter(|_| is_whole);
        let extra = self.extra.as_deref().map(Extra::encode);
        let mut body = Vec::with_capacity(self.body.len());
        let keyed = if key.is_some() { BODY_KEYED } else { 0 };
        let extended = if extra.is_some() { BODY_EXTENDED } else { 0 };
        body.put_u8(keyed | extended);
        put_prefixed(&mut body, self.session.as_bytes());
        if let Some(key) = &key {
            put_prefixed(&mut body, key.text.as_bytes());
            body.extend_from_slice(&key.fingerprint);
        }
        if let Some(extra) = &extra {
            put_prefixed(&mut body, extra);
        }
        let events_at = body.len();
        put_varint(&mut body, frames.len() as u64);
        for frame in &frames {
            if is_redacted(&frame.view) {
                put_redacted(&mut body, frame);
            } else {
                body.extend_from_slice(frame.raw);
            }
        }
        let skipped = u32::try_from(first - self.first).expect("fewer than the record has");
        let body = Bytes::from(body);
        Ok(Self {
            // It keeps the body that is left out alive no longer.
            session: self.session.detached(),
            generation: self.generation,
            first,
            count: u32::try_from(frames.len()).expect("no more than the record has"),
            base: self.base.plus(skipped),
            created_ms: self.created_ms,
            key,
            extra: self.extra.clone(),
            extensions: self.extensions.clone(),
            body_checksum: Salt::NONE.checksum(&body),
            body,
            events_at,
        })
    }
}

/// Appends an event without its data.
fn put_redacted(out: &mut Vec<u8>, frame: &EventFrame<'_>) {
    let event_type = frame.view.event_type.as_bytes();
    put_event_of(out, EVENT_REDACTED, frame.turn(), event_type, &[]);
}
