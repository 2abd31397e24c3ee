//! Event and message IDs, and the clock that hands them out in strictly rising order.
//!
//! Both are [ULIDs](https://github.com/ulid/spec): 48 bits of milliseconds, then 80 bits that are
//! random in a fresh millisecond and counted up within one. The only file that uses the wall clock.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

use crate::model::bounded::read_text;
use crate::model::error::{Error, Result};

/// The number of an event in its session: from 1, without gaps.
pub type Seq = u64;

/// The ID of a stored event, unique in the store and greater than that of every event committed
/// before.
///
/// Shown as `evt_` and 26 characters of Crockford base32, so text order is ID order.
///
/// ```
/// let id: sessionlog::EventId = "evt_01JQ3W8K5T0000000000000001".parse()?;
/// assert_eq!(id.to_string(), "evt_01JQ3W8K5T0000000000000001");
/// # Ok::<(), sessionlog::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The upper half of the ULID. In halves, since the alignment of a `u128` makes structs larger
    /// and slower to move.
    high: u64,
    low: u64,
}

/// The ID of a message: the ID of the event that opened the turn, shown with `msg_`.
///
/// It is derived and never stored, so looking up a message is looking up an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(EventId);

impl EventId {
    const PREFIX: &str = "evt_";

    /// The milliseconds since the Unix epoch that the ID begins with. IDs are in commit order, and
    /// this time is a hint.
    #[must_use]
    pub fn timestamp_ms(self) -> u64 {
        Ulid(self.to_u128()).timestamp_ms()
    }

    /// The bare ULID as a number.
    #[must_use]
    pub fn to_u128(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    /// The ID with this ULID.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "it is cut in two")]
    pub fn from_u128(ulid: u128) -> Self {
        Self {
            high: (ulid >> 64) as u64,
            low: ulid as u64,
        }
    }

    /// The ID `n` after this one.
    pub(crate) fn plus(self, n: u32) -> Self {
        Self::from_u128(self.to_u128().saturating_add(u128::from(n)))
    }

    /// How far after `base` this ID is; `None` before it.
    pub(crate) fn offset_from(self, base: Self) -> Option<u128> {
        self.to_u128().checked_sub(base.to_u128())
    }
}

impl MessageId {
    const PREFIX: &str = "msg_";

    /// The event that opened the turn.
    #[must_use]
    pub fn event_id(self) -> EventId {
        self.0
    }
}

impl From<EventId> for MessageId {
    fn from(id: EventId) -> Self {
        Self(id)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, Self::PREFIX, *self)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, Self::PREFIX, self.0)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for EventId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        read("event ID", Self::PREFIX, text)
    }
}

impl FromStr for MessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        read("message ID", Self::PREFIX, text).map(Self)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_text(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn show(f: &mut fmt::Formatter<'_>, prefix: &str, id: EventId) -> fmt::Result {
    let mut text = [0; ulid::ULID_LEN];
    f.write_str(prefix)?;
    f.write_str(Ulid(id.to_u128()).array_to_str(&mut text))
}

/// Only the spelling that `show` gives is an ID, so that two texts never mean the same event.
fn read(what: &'static str, prefix: &str, text: &str) -> Result<EventId> {
    let refuse = |why: &str| Error::invalid(what, format!("{text:?} {why}"));
    let digits = text
        .strip_prefix(prefix)
        .ok_or_else(|| refuse(&format!("does not begin with {prefix}")))?;
    let ulid = Ulid::from_string(digits).map_err(|error| refuse(&error.to_string()))?;
    if ulid.array_to_str(&mut [0; ulid::ULID_LEN]) != digits {
        return Err(refuse("is not in the canonical upper-case spelling"));
    }
    Ok(EventId::from_u128(ulid.0))
}

/// The wall clock as a function, so that a test can own it.
pub(crate) type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The system's wall clock.
pub(crate) fn system_clock() -> WallClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    let clock = || SystemTime::now();
    Arc::new(clock)
}

/// Hands out IDs for batches, each greater than all before.
///
/// That holds within one millisecond, when the clock steps back, and over reopening, since the last
/// ID is stored with every group.
pub(crate) struct IdClock {
    last: EventId,
}

/// What a batch is stamped with: its first ID and the wall-clock time of its commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub base: EventId,
    pub created_ms: u64,
}

/// A larger difference between the clock and the newest ID is reported: one of the two is wrong.
const CLOCK_SKEW_REPORTED: Duration = Duration::from_hours(24);

/// The times that an ID can carry and a [`Timestamp`] can show: 48 bits of milliseconds.
const TIME_MS_MAX: u64 = (1 << 48) - 1;

impl IdClock {
    /// A clock whose next ID is greater than `last`.
    pub(crate) fn new(last: EventId) -> Self {
        Self { last }
    }

    /// The same for one of several writers that may each count on from the same `last`. It passes
    /// over a random number of IDs of so many bits, so that no two of them give the same ID,
    /// whatever the clocks say.
    ///
    /// A millisecond has room for 2^39 such clocks of 40 bits, and for 8 of 76. One that has no
    /// room goes on into the next millisecond.
    #[cfg(feature = "postgres")]
    pub(crate) fn apart(last: EventId, bits: u32) -> Self {
        let passed_over = Ulid::generate().random() & (u128::MAX >> (128 - bits));
        Self {
            last: EventId::from_u128(last.to_u128().saturating_add(passed_over)),
        }
    }

    /// Takes the IDs `base ..= base + (count - 1)` for a batch that came at `created_ms` by the
    /// wall clock.
    pub(crate) fn stamp(&mut self, count: u32, created_ms: u64) -> Stamp {
        let base = if created_ms > self.last.timestamp_ms() {
            fresh(created_ms)
        } else {
            self.last.plus(1)
        };
        self.last = base.plus(count.saturating_sub(1));
        Stamp { base, created_ms }
    }
}

/// The difference between the wall clock and the newest ID, when it is suspicious.
pub(crate) fn clock_skew(wall: &WallClock, last: EventId) -> Option<Duration> {
    let apart = Duration::from_millis(now_ms(wall).abs_diff(last.timestamp_ms()));
    (last != EventId::from_u128(0) && apart > CLOCK_SKEW_REPORTED).then_some(apart)
}

/// The time by the wall clock, in milliseconds since 1970, and at most the latest that an ID can
/// carry.
pub(crate) fn now_ms(wall: &WallClock) -> u64 {
    let since = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis())
        .unwrap_or(u64::MAX)
        .min(TIME_MS_MAX)
}

/// A random ID of a fresh millisecond. The top random bit is clear, so counting on cannot carry
/// into the time.
fn fresh(ms: u64) -> EventId {
    let random = Ulid::generate().random() & (u128::MAX >> (128 - 79));
    EventId::from_u128(Ulid::from_parts(ms, random).0)
}

/// A number for a new store that no other store has.
pub(crate) fn fresh_store_number() -> u128 {
    Ulid::generate().0
}

/// The time as shown to callers. Times of the next 8,000 years fit; beyond them the last one that
/// can be shown.
pub(crate) fn timestamp(ms: u64) -> Timestamp {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::MAX)
}

/// A time as text, always with three decimals, so that times of one length sort as text.
pub(crate) fn time_text(at: Timestamp) -> String {
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock_at(ms: u64) -> WallClock {
        Arc::new(move || UNIX_EPOCH + Duration::from_millis(ms))
    }

    #[test]
    fn ids_rise_within_a_millisecond_and_over_a_clock_that_steps_back() {
        let mut clock = IdClock::new(EventId::from_u128(0));
        let mut last = EventId::from_u128(0);
        for ms in [1_000, 1_000, 1_001, 500, 500, 0, 1_002, 1_002] {
            let stamp = clock.stamp(10, ms);
            assert!(stamp.base > last, "{:?} after {last:?}", stamp.base);
            assert_eq!(stamp.created_ms, ms);
            last = stamp.base.plus(9);
        }
    }

    #[test]
    fn ids_rise_over_reopening_with_the_clock_set_back() {
        let last = IdClock::new(EventId::from_u128(0))
            .stamp(3, 5_000)
            .base
            .plus(2);
        assert!(
            clock_skew(&clock_at(10), last).is_none(),
            "five seconds are not worth a report"
        );
        assert_eq!(IdClock::new(last).stamp(1, 10).base, last.plus(1));
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn clocks_apart_give_different_ids_after_the_same_one() {
        let last = fresh(5_000);
        let bases = (0..100).map(|_| IdClock::apart(last, 40).stamp(1, 10).base);
        let bases: std::collections::BTreeSet<_> = bases.collect();
        assert_eq!(bases.len(), 100);
        assert!(bases.iter().all(|base| *base > last));
    }

    #[test]
    fn a_clock_a_day_off_is_reported() {
        let last = fresh(2 * 86_400_000);
        assert_eq!(
            clock_skew(&clock_at(0), last),
            Some(Duration::from_hours(48))
        );
    }

    #[test]
    fn counting_on_from_any_fresh_id_stays_in_its_millisecond() {
        for _ in 0..1_000 {
            assert_eq!(fresh(42).plus(u32::MAX).timestamp_ms(), 42);
        }
    }

    #[test]
    fn an_id_reads_back_as_shown_and_no_other_spelling_does() {
        let id = fresh(1_700_000_000_000);
        let text = id.to_string();
        assert_eq!(text.parse::<EventId>().unwrap(), id);
        assert_eq!(MessageId(id).to_string().replace("msg_", "evt_"), text);
        for bad in [
            "",
            "evt_",
            "evt_0",
            &text.to_lowercase(),
            &text.replace("evt_", "msg_"),
            &format!("{text}0"),
            "evt_8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        ] {
            assert!(
                bad.parse::<EventId>().is_err(),
                "{bad:?} was taken for an ID"
            );
        }
    }
}
