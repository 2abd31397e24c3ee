//! The events within the body of a record.

use std::ops::{Range, RangeInclusive};

use bytes::{BufMut, Bytes};
use jiff::Timestamp;

use crate::codec::record::{
    EVENT_EXTENDED, EVENT_FLAGS, EVENT_IN_TURN, EVENT_OPENS, EVENT_OVERHEAD, EVENT_REDACTED,
    Record, known_flags,
};
use crate::codec::{ByteReader, Decoded, prefixed_bytes, put_prefixed};
use crate::model::{
    Event, EventId, EventType, EventView, MessageId, Seq, SessionId, Turn, timestamp,
};

impl Record {
    /// Checks that every event decodes and that nothing follows the last one.
    pub(crate) fn check_events(&self) -> Decoded<()> {
        let mut events = self.events();
        events.try_for_each(|frame| frame.map(|_whole| ()))?;
        if events.frames.left() > 0 {
            Err(events.frames.damaged("bytes behind the last event"))
        } else {
            Ok(())
        }
    }

    /// Returns all events, in order.
    pub(crate) fn events(&self) -> EventFrames<'_> {
        self.events_in(&(self.first..=self.last()))
    }

    /// Returns the events with seqs in the range, in order.
    pub(crate) fn events_in(&self, range: &RangeInclusive<Seq>) -> EventFrames<'_> {
        let mut frames =
            ByteReader::from(&self.body, self.events_at).expect("the events lie within the body");
        frames.varint().expect("the count was read before");
        let nth = |seq: Seq| {
            u32::try_from(seq.saturating_sub(self.first))
                .map_or(self.count, |nth| nth.min(self.count))
        };
        let wanted = nth(*range.start())..nth(range.end().saturating_add(1));
        EventFrames {
            record: self,
            created_at: timestamp(self.created_ms),
            frames,
            next: 0,
            wanted,
        }
    }
}

/// The events of a record, in order, within its body.
pub(crate) struct EventFrames<'a> {
    record: &'a Record,
    created_at: Timestamp,
    frames: ByteReader<'a>,
    next: u32,
    /// The positions in the record of the requested events.
    wanted: Range<u32>,
}

/// An event within its record's body. Skipping one in this form costs less than making it an
/// [`Event`].
pub(crate) struct EventFrame<'a> {
    pub view: EventView<'a>,
    /// The event as it is stored.
    pub(super) raw: &'a [u8],
    body: &'a Bytes,
}

impl<'a> Iterator for EventFrames<'a> {
    type Item = Decoded<EventFrame<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.wanted.end {
            let frame = self.frame();
            if frame.is_err() {
                self.next = self.wanted.end;
            }
            if frame.is_err() || self.next > self.wanted.start {
                return Some(frame);
            }
        }
        None
    }
}

impl<'a> EventFrames<'a> {
    /// Returns the number of events that come, unless one does not decode.
    pub(crate) fn count_max(&self) -> usize {
        self.wanted.len()
    }

    fn frame(&mut self) -> Decoded<EventFrame<'a>> {
        let Self {
            record,
            created_at,
            frames,
            next: position,
            ..
        } = self;
        let from = frames.position();
        let flags = known_flags(frames.u8()?, EVENT_FLAGS, "event flags")?;
        let mut message_id = (flags & EVENT_OPENS != 0).then(|| record.base.plus(*position).into());
        if flags & EVENT_IN_TURN != 0 {
            message_id = Some(EventId::from_u128(frames.u128()?).into());
        }
        if flags & EVENT_EXTENDED != 0 {
            frames.extensions()?;
        }
        let event_type = std::str::from_utf8(frames.prefixed()?);
        let event_type =
            event_type.map_err(|_error| frames.damaged("an event type that is no text"))?;
        let data = frames.prefixed()?;
        let view = EventView {
            id: record.base.plus(*position),
            session_id: &record.session,
            seq: record.first + u64::from(*position),
            event_type,
            data,
            message_id,
            created_at: *created_at,
            redacted: flags & EVENT_REDACTED != 0,
        };
        *position += 1;
        let raw = record.body.get(from..frames.position());
        Ok(EventFrame {
            view,
            raw: raw.expect("the reader is within the body"),
            body: &record.body,
        })
    }
}

impl<'a> EventFrame<'a> {
    /// Returns how the event belongs to a turn.
    pub(crate) fn turn(&self) -> Turn {
        match self.view.message_id {
            None => Turn::None,
            Some(message) if message.event_id() == self.view.id => Turn::Opens,
            Some(message) => Turn::Of(message),
        }
    }

    /// Returns the size of the event as encoded.
    ///
    /// A redacted event counts without its data, also while that is stored.
    pub(crate) fn encoded_bytes(&self) -> usize {
        if !self.view.redacted {
            return self.raw.len();
        }
        let opening = self.view.message_id.map(MessageId::event_id);
        let opens = opening == Some(self.view.id);
        let turn = match self.view.message_id {
            Some(_) if !opens => size_of::<u128>(),
            _ => 0,
        };
        1 + turn + prefixed_bytes(self.view.event_type.len()) + 1
    }

    /// Returns the event as one of `session`, which shares it.
    pub(crate) fn shown_in(mut self, session: &'a SessionId) -> Self {
        self.view.session_id = session;
        self
    }

    /// Returns the event without its data.
    pub(crate) fn redacted(mut self) -> Self {
        self.view.data = &[];
        self.view.redacted = true;
        self
    }

    /// Returns about how many bytes were read for this event.
    pub(crate) fn read_bytes(&self) -> usize {
        EVENT_OVERHEAD + self.view.event_type.len() + self.view.data.len()
    }

    /// Returns the event itself, which shares the record's memory.
    pub(crate) fn event(&self) -> Event {
        let EventView {
            id,
            session_id,
            seq,
            event_type,
            data,
            message_id,
            created_at,
            redacted,
        } = self.view;
        Event {
            id,
            session_id: session_id.clone(),
            seq,
            event_type: EventType::from_stored(event_type, self.body),
            data: if redacted {
                Bytes::new()
            } else {
                self.body.slice_ref(data)
            },
            message_id,
            created_at,
            redacted,
        }
    }
}

/// Appends an event. `flags` are those besides the ones of its turn.
pub(super) fn put_event_of(
    out: &mut impl BufMut,
    flags: u8,
    turn: Turn,
    event_type: &[u8],
    data: &[u8],
) {
    match turn {
        Turn::None => out.put_u8(flags),
        Turn::Opens => out.put_u8(flags | EVENT_OPENS),
        Turn::Of(message) => {
            out.put_u8(flags | EVENT_IN_TURN);
            out.put_slice(&message.event_id().to_u128().to_le_bytes());
        }
    }
    put_prefixed(out, event_type);
    put_prefixed(out, data);
}
