//! The text of a session ID or an event type. Every event has both, so reading a page copies a few
//! hundred of them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;

/// Room for a UUID, for a ULID with a prefix, and for the types of this crate.
const SHORT_BYTES_MAX: usize = 39;

/// Short text is stored inline: copying it is cheaper than counting references, and it does not
/// keep the block it was read from alive. Longer text shares that block.
#[derive(Clone)]
pub(crate) enum Name {
    Short(Short),
    Shared(ByteString),
}

/// Text, followed by zeroes.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub(crate) struct Short {
    length: u8,
    text: [u8; SHORT_BYTES_MAX],
}

impl Short {
    fn new(text: &str) -> Option<Self> {
        let mut short = Self {
            length: u8::try_from(text.len()).ok()?,
            text: [0; SHORT_BYTES_MAX],
        };
        short
            .text
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        Some(short)
    }

    fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length.into()).unwrap_or_default()
    }
}

impl Name {
    /// A text that is a part of `stored`.
    pub(crate) fn stored(text: &str, stored: &Bytes) -> Self {
        Self::new(text, || {
            ByteString::try_from(stored.slice_ref(text.as_bytes())).expect("it is text")
        })
    }

    fn new(text: &str, shared: impl FnOnce() -> ByteString) -> Self {
        Short::new(text).map_or_else(|| Self::Shared(shared()), Self::Short)
    }

    /// The same text as the bytes `at` of `stored`, whose memory it may share.
    pub(crate) fn stored_at(&self, at: Range<usize>, stored: &Bytes) -> Self {
        match self {
            Name::Short(_) => self.clone(),
            Name::Shared(_) => {
                Self::Shared(ByteString::try_from(stored.slice(at)).expect("it is the same text"))
            }
        }
    }

    /// The same text in memory of its own.
    pub(crate) fn detached(&self) -> Self {
        match self {
            Name::Short(_) => self.clone(),
            Name::Shared(text) => Self::Shared(ByteString::from(&**text)),
        }
    }

    /// Validates each byte of a short text, which [`as_bytes`](Self::as_bytes) does not.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Name::Short(text) => std::str::from_utf8(text.as_bytes()).expect("it was text"),
            Name::Shared(text) => text,
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Short(text) => text.as_bytes(),
            Name::Shared(text) => text.as_bytes(),
        }
    }
}

impl From<&str> for Name {
    /// In memory of its own.
    fn from(text: &str) -> Self {
        Self::new(text, || ByteString::from(text))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Conversions from text, and serde as a string, for a name that `new` checks.
macro_rules! text_conversions {
    ($name:ident) => {
        impl std::str::FromStr for $name {
            type Err = $crate::model::error::Error;

            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = $crate::model::error::Error;

            fn try_from(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::model::error::Error;

            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = $crate::model::read_text(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use text_conversions;
