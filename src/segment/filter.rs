//! A Bloom filter over a segment's sessions and idempotency keys. It tells, with few reads, which
//! segments need not be searched.
//!
//! The filter is implemented here because its bits are part of the format, and the filter crates do
//! not promise to keep theirs. The two independent 64-bit halves of a hash give all probes (Kirsch
//! and Mitzenmacher, "Less Hashing, Same Performance", 2006).

use serde::{Deserialize, Serialize};

use crate::codec::{ByteReader, Decoded, Fault, Salt};
use crate::model::Result;
use crate::segment::sink::Sink;

/// With 16 bits and 6 probes per item, about one answer in 2,000 is a false "maybe".
const BITS_PER_ITEM: u64 = 16;
const PROBES: u32 = 6;
const RESERVED: [u8; 4] = [0; 4];
pub(super) const HEADER_BYTES: usize = 16;

/// The place of a segment's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilterRoot {
    pub offset: u64,
    pub bytes: u32,
}

/// Returns the number of items that `bytes` of words have room for.
pub(super) const fn items_in(bytes: u64) -> u64 {
    bytes * 8 / BITS_PER_ITEM
}

pub(crate) struct FilterBuilder {
    words: Vec<u64>,
}

impl FilterBuilder {
    pub(super) fn new(items: u64) -> Self {
        let bits = items.saturating_mul(BITS_PER_ITEM).max(64);
        Self {
            words: vec![0; usize::try_from(bits.div_ceil(64)).expect("a filter fits memory")],
        }
    }

    pub(super) fn insert(&mut self, hash: [u8; 16]) {
        let words = self.words.len() as u64;
        for (word, bit) in probes(hash, words) {
            *self
                .words
                .get_mut(word)
                .expect("a probe lies within the filter") |= bit;
        }
    }

    /// Writes the filter in small pieces: it may be large.
    pub(super) fn write(&self, salt: Salt, sink: &mut impl Sink) -> Result<()> {
        let count = u32::try_from(self.words.len())
            .expect("a filter of 32 GiB is out of reach")
            .to_le_bytes();
        let probes = PROBES.to_le_bytes();
        let before = salt.over(&count).over(&probes).over(&RESERVED);
        let words = || self.words.iter().map(|word| word.to_le_bytes());
        let checksum = words().fold(before, |salt, word| salt.over(&word)).value();
        for part in [count, checksum.to_le_bytes(), probes, RESERVED] {
            sink.put(&part)?;
        }
        words().try_for_each(|word| sink.put(&word))
    }
}

/// Checks a filter's bytes. This is done once, when they are read.
pub(crate) fn check(salt: Salt, bytes: &[u8]) -> Decoded<()> {
    let mut reader = ByteReader::new(bytes);
    let (count, checksum) = (reader.array::<4>()?, reader.u32()?);
    let rest = reader.take(reader.left())?;
    let words = u32::from_le_bytes(count) as usize;
    if salt.over(&count).checksum(rest) != checksum
        || bytes.len() != HEADER_BYTES + words * 8
        || words == 0
    {
        return Err(Fault::Damaged {
            at: 4,
            what: "a checksum that does not match",
        });
    }
    match ByteReader::from(bytes, 8)?.u32()? {
        PROBES => Ok(()),
        found => Err(Fault::Unknown {
            what: "number of filter probes",
            found: found.into(),
            supported: PROBES.into(),
        }),
    }
}

/// Returns whether a checked filter may hold an item.
pub(crate) fn may_hold(bytes: &[u8], hash: [u8; 16]) -> bool {
    let Some((_header, words)) = bytes.split_at_checked(HEADER_BYTES) else {
        return true;
    };
    probes(hash, (words.len() / 8) as u64).all(|(word, bit)| {
        let stored = words
            .get(word * 8..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .map(u64::from_le_bytes);
        stored.is_none_or(|stored| stored & bit != 0)
    })
}

fn probes(hash: [u8; 16], words: u64) -> impl Iterator<Item = (usize, u64)> {
    let hash = u128::from_le_bytes(hash);
    let low = u64::try_from(hash & u128::from(u64::MAX)).expect("the low half fits");
    let high = u64::try_from(hash >> 64).expect("the high half fits") | 1;
    (0..u64::from(PROBES)).map(move |probe| {
        let bit = low.wrapping_add(probe.wrapping_mul(high)) % (words * 64);
        (
            usize::try_from(bit / 64).expect("a filter fits memory"),
            1 << (bit % 64),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::table::tests::InMemory;

    fn written(builder: &FilterBuilder) -> Vec<u8> {
        let mut sink = InMemory::default();
        builder.write(Salt::NONE, &mut sink).unwrap();
        sink.0
    }

    fn hash(item: u32) -> [u8; 16] {
        *blake3::hash(&item.to_le_bytes())
            .as_bytes()
            .first_chunk()
            .unwrap()
    }

    #[test]
    fn what_went_in_is_found_and_little_else_is() {
        let mut builder = FilterBuilder::new(10_000);
        (0..10_000).for_each(|item| builder.insert(hash(item)));
        let bytes = written(&builder);
        assert_eq!(check(Salt::NONE, &bytes), Ok(()));
        assert!((0..10_000).all(|item| may_hold(&bytes, hash(item))));
        let wrong = (10_000..110_000)
            .filter(|&item| may_hold(&bytes, hash(item)))
            .count();
        assert!(wrong < 200, "{wrong} of 100,000 answers are wrong");
    }

    #[test]
    fn a_flipped_bit_is_refused() {
        let mut builder = FilterBuilder::new(3);
        builder.insert(hash(1));
        let bytes = written(&builder);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(Salt::NONE, &flipped).is_err(), "bit {bit}");
        }
    }
}
