//! Cursors: a number that live reads carry in their URL, so that a cache in between never answers
//! with the same response forever.

use std::hash::{BuildHasher, RandomState};

/// The protocol counts intervals of this length, in milliseconds.
const INTERVAL_MS: u64 = 20_000;

/// It begins at 2024-10-09T00:00:00Z, in milliseconds of the Unix clock.
const EPOCH_MS: u64 = 1_728_432_000_000;

/// A cursor that has been used is passed by up to an hour, in intervals.
const JITTER_MAX: u64 = 3600 * 1000 / INTERVAL_MS;

/// A cursor beyond this is none that a server has given, and counts as none.
const CURSOR_MAX: u64 = 1 << 53;

/// Returns the cursor of an answer at this time to a client that sent `sent`. It is greater than
/// that.
pub(super) fn cursor(now_ms: u64, sent: Option<&str>) -> u64 {
    let current = now_ms.saturating_sub(EPOCH_MS) / INTERVAL_MS;
    let sent = sent.and_then(|sent| sent.parse::<u64>().ok());
    match sent.filter(|sent| (current..CURSOR_MAX).contains(sent)) {
        Some(sent) => sent + 1 + RandomState::new().hash_one(sent) % JITTER_MAX,
        None => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_the_interval_and_passes_the_one_that_was_sent() {
        let now = EPOCH_MS + 1000 * INTERVAL_MS + 7;
        for before in [
            None,
            Some("999"),
            Some("no number"),
            Some("99999999999999999999"),
        ] {
            assert_eq!(cursor(now, before), 1000);
        }
        for sent in [1000, 5000] {
            let next = cursor(now, Some(&sent.to_string()));
            assert!((sent + 1..=sent + JITTER_MAX).contains(&next), "{next}");
        }
        assert_eq!(cursor(0, None), 0);
    }
}
