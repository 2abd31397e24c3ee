//! Offsets: positions in a stream that sort as text.

use std::fmt;

use axum::http::HeaderValue;

use crate::http::ApiError;
use crate::model::Seq;

/// The digits of each half of an offset.
const DIGITS: usize = 16;

/// The hexadecimal digits of the life and of the own life, which make the first half.
const LIFE_DIGITS: usize = DIGITS / 2;

/// A position behind an event of a stream, or at its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Offset {
    pub life: Life,
    /// The last event before the position.
    pub seq: Seq,
}

/// A life of a stream, which its deletion ends.
///
/// No two lives of one name are the same. The offsets of a fork come after those of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Life {
    /// How often the name was deleted before, and of a fork at least what its source has here.
    pub before: u32,
    /// How often the name was deleted before.
    pub own: u32,
}

impl Offset {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let read = text.split_once('_').and_then(|(life, seq)| {
            let (before, own) = life.split_at_checked(LIFE_DIGITS)?;
            let life = Life {
                before: hexadecimal(before)?,
                own: hexadecimal(own)?,
            };
            let is_seq = seq.len() == DIGITS && seq.bytes().all(|digit| digit.is_ascii_digit());
            let seq = is_seq.then(|| seq.parse().ok()).flatten()?;
            Some(Self { life, seq })
        });
        read.ok_or_else(|| {
            ApiError::invalid(format!(
                "the offset {text:?} is none that a stream has given"
            ))
        })
    }

    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("digits are a header value")
    }
}

/// Reads the digits of a life as they are written: capital letters would sort otherwise.
fn hexadecimal(digits: &str) -> Option<u32> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_number = digits.len() == LIFE_DIGITS && digits.bytes().all(is_digit);
    is_number
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Life { before, own } = self.life;
        write!(
            f,
            "{before:0LIFE_DIGITS$x}{own:0LIFE_DIGITS$x}_{:0DIGITS$}",
            self.seq
        )
    }
}

/// Where a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Beginning,
    Now,
    Offset(Offset),
}

impl Start {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "-1" => Ok(Self::Beginning),
            "now" => Ok(Self::Now),
            offset => Offset::parse(offset).map(Self::Offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_sort_as_text_as_they_do_as_positions() {
        let at = |before, own, seq| Offset {
            life: Life { before, own },
            seq,
        };
        let offsets = [
            at(0, 0, 0),
            at(0, 0, 9),
            at(0, 0, 10),
            at(1, 0, 11),
            at(1, 1, 0),
            at(1, 1, 123_456_789),
            at(9, 9, 1),
            at(10, 0, 1),
            at(10, u32::MAX, 1),
            at(u32::MAX, u32::MAX, 1),
        ];
        for pair in offsets.windows(2) {
            assert!(pair[0].to_string() < pair[1].to_string(), "{pair:?}");
        }
        for offset in offsets {
            assert_eq!(Offset::parse(&offset.to_string()).unwrap(), offset);
        }
    }

    #[test]
    fn what_no_stream_has_given_is_no_offset() {
        for text in ["", "0", "1_2", "-1_-1", "0000000000000000-0000000000000000"] {
            assert!(Offset::parse(text).is_err(), "{text}");
        }
        for life in ["+000000000000000", "000000000000000A", "0000000é0000000"] {
            assert!(Offset::parse(&format!("{life}_0000000000000000")).is_err());
        }
        assert_eq!(Start::parse("-1").unwrap(), Start::Beginning);
        assert_eq!(Start::parse("now").unwrap(), Start::Now);
    }
}
