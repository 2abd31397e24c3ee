//! Offsets: positions in a stream that sort as text.

use std::fmt;

use axum::http::HeaderValue;

use crate::http::ApiError;
use crate::model::Seq;

/// The digits of each number in an offset.
const DIGITS: usize = 16;

/// A position behind an event of a stream, or at its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Offset {
    /// The life of the stream: how often it was deleted before.
    pub life: u64,
    /// The last event before the position.
    pub seq: Seq,
}

impl Offset {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let number = |digits: &str| {
            let is_number =
                digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_digit());
            is_number.then(|| digits.parse().ok()).flatten()
        };
        let read = text
            .split_once('_')
            .and_then(|(life, seq)| Some((number(life)?, number(seq)?)));
        let (life, seq) = read.ok_or_else(|| {
            ApiError::invalid(format!(
                "the offset {text:?} is none that a stream has given"
            ))
        })?;
        Ok(Self { life, seq })
    }

    pub(super) fn header(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("digits are a header value")
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$}_{:0DIGITS$}", self.life, self.seq)
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
        let at = |life, seq| Offset { life, seq };
        let offsets = [
            at(0, 0),
            at(0, 9),
            at(0, 10),
            at(1, 0),
            at(1, 123_456_789),
            at(10, 1),
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
        assert!(Offset::parse("+000000000000000_0000000000000000").is_err());
        assert_eq!(Start::parse("-1").unwrap(), Start::Beginning);
        assert_eq!(Start::parse("now").unwrap(), Start::Now);
    }
}
