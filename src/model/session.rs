//! The ID of a session, and its head. An ID is never used as a file name.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::error::{Error, Limit, Result, check_limit};
use crate::model::ids::{EventId, Seq};
use crate::model::text::{Name, text_conversions};

/// The ID of a session: the caller's string, 1 to 256 bytes of UTF-8 without control characters.
///
/// A session begins to exist with its first append. IDs are compared byte by byte, and cheap to
/// clone.
///
/// ```
/// let session: sessionlog::SessionId = "sess_123".parse()?;
/// assert_eq!(session.as_str(), "sess_123");
/// # Ok::<(), sessionlog::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(Name);

impl SessionId {
    /// The longest session ID, in bytes.
    pub const BYTES_MAX: usize = 256;

    /// Makes a session ID of `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when it is empty or holds a control character, [`Error::TooLarge`] when
    /// it is too long.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        Self::checked(Name::from(name.as_ref()))
    }

    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Takes a name that is a part of `stored`, and may share its memory.
    pub(crate) fn from_stored(name: &[u8], stored: &Bytes) -> Result<Self> {
        let name = std::str::from_utf8(name)
            .map_err(|error| Error::invalid("session ID", error.to_string()))?;
        Self::checked(Name::stored(name, stored))
    }

    /// Returns a name that sorts before all session IDs. It is none itself.
    pub(crate) fn lowest() -> Self {
        Self(Name::from(""))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The same name as the bytes `at` of `stored`, whose memory it may share.
    pub(crate) fn stored_at(&self, at: Range<usize>, stored: &Bytes) -> Self {
        Self(self.0.stored_at(at, stored))
    }

    /// The same name in memory of its own, so that it does not keep a block alive.
    pub(crate) fn detached(&self) -> Self {
        Self(self.0.detached())
    }

    fn checked(name: Name) -> Result<Self> {
        let text = name.as_str();
        if text.is_empty() {
            return Err(Error::invalid("session ID", "it is empty"));
        }
        check_limit(Limit::SessionIdBytes, text.len(), Self::BYTES_MAX)?;
        if text.chars().any(char::is_control) {
            return Err(Error::invalid("session ID", "it holds a control character"));
        }
        Ok(Self(name))
    }
}

/// IDs are compared byte by byte.
impl std::borrow::Borrow<[u8]> for SessionId {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({:?})", self.as_str())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

text_conversions!(SessionId);

/// A position in a session: a seq, or the event at it.
///
/// A filter does not change what a cursor means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// The event at this seq. 0 is the position before the first event.
    Seq(Seq),
    /// The event with this ID, which must belong to the session.
    Event(EventId),
}

impl From<Seq> for Cursor {
    fn from(seq: Seq) -> Self {
        Cursor::Seq(seq)
    }
}

impl From<EventId> for Cursor {
    fn from(id: EventId) -> Self {
        Cursor::Event(id)
    }
}

/// The seq of a session's first event.
pub(crate) const FIRST_SEQ: Seq = 1;

/// The durable extent of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Head {
    /// How often the session has begun: 1, and one more for each time that it was deleted before.
    pub generation: u32,
    /// The first seq that is kept. It is `last + 1` when no event is.
    pub first: Seq,
    /// The last seq; 0 when the session has had no event.
    pub last: Seq,
    /// The ID of the event at `last`; `None` when the session has had no event.
    pub last_id: Option<EventId>,
}
