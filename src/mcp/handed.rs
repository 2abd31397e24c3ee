//! The event IDs that clients are given.

use std::fmt;
use std::str::FromStr;

use crate::model::{Error, EventId, Result};

/// Sets the tags apart from other hashes of the same text.
const CONTEXT: &str = "sessionlog mcp 2026 tag of an event ID";

/// The digits of a tag: 16 bytes in hexadecimal.
const TAG_DIGITS: usize = 32;

/// The ID of an event together with a tag of its stream, as `evt_01JQ3W8K5T0000000000000001.` and
/// 32 hexadecimal digits.
///
/// IDs of events that were committed together follow each other. So the ID alone could be guessed
/// by a client that got the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandedId {
    pub event: EventId,
    tag: String,
}

impl HandedId {
    pub(super) fn new(event: EventId, stream_id: &str) -> Self {
        let tag = tag(stream_id);
        Self { event, tag }
    }

    /// Whether it is the ID of an event in this stream.
    pub(super) fn is_of(&self, stream_id: &str) -> bool {
        // The time of the comparison tells a guesser nothing of use: the tag is the hash of an ID
        // that nobody can choose.
        self.tag == tag(stream_id)
    }
}

fn tag(stream_id: &str) -> String {
    let hash = blake3::Hash::from_bytes(blake3::derive_key(CONTEXT, stream_id.as_bytes()));
    let mut digits = hash.to_hex().to_string();
    digits.truncate(TAG_DIGITS);
    digits
}

impl fmt::Display for HandedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.event, self.tag)
    }
}

impl FromStr for HandedId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (event, tag) = text
            .split_once('.')
            .ok_or_else(|| Error::invalid("event ID", "it has no tag of a stream"))?;
        Ok(Self {
            event: event.parse()?,
            tag: tag.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_belongs_to_its_stream_alone() {
        let event = EventId::from_u128(1 << 90);
        let handed = HandedId::new(event, "a");
        let read: HandedId = handed.to_string().parse().unwrap();
        assert_eq!(read, handed);
        assert!(read.is_of("a") && !read.is_of("b"));
    }

    #[test]
    fn what_no_store_has_given_is_no_id() {
        let event = EventId::from_u128(1 << 90);
        for text in ["", ".", "0", "evt_x.00", &event.to_string()] {
            assert!(text.parse::<HandedId>().is_err(), "{text}");
        }
        let other: HandedId = format!("{event}.").parse().unwrap();
        assert!(!other.is_of("a"));
    }
}
