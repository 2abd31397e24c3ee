//! A bounded cache of the heads of idle sessions, so that the next append or read needs no lookup.
//!
//! Invariant: a head in this cache is the session's head if the session has no entry. So a dropped
//! entry puts its head here, over that of an earlier entry, and nothing else puts one. While a
//! session has an entry, only the entry is used.

use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::model::{Head, SessionId};

/// The size of a head besides its session's name, with its places in the cache's tables, in bytes.
const HEAD_BYTES: usize = 128;

/// The heads of idle sessions, bounded in bytes.
pub(crate) struct IdleHeads(Cache<SessionId, Head, ByBytes>);

#[derive(Clone)]
struct ByBytes;

impl Weighter<SessionId, Head> for ByBytes {
    fn weight(&self, session: &SessionId, _head: &Head) -> u64 {
        (HEAD_BYTES + session.as_bytes().len()) as u64
    }
}

impl IdleHeads {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let mut options = OptionsBuilder::new();
        options
            .estimated_items_capacity(bytes_max / HEAD_BYTES + 1)
            .weight_capacity(bytes_max as u64);
        // Half the cache is for sessions that were used again, so that one-off sessions cannot
        // evict them. There are no ghost entries, because a ghost costs as much as an entry.
        let options = options
            .hot_allocation(0.5)
            .ghost_allocation(0.0)
            .build()
            .expect("all that has no default is set");
        Self(Cache::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        ))
    }

    pub(crate) fn get(&self, session: &SessionId) -> Option<Head> {
        self.0.get(session).copied()
    }

    /// Inserts a head. It replaces the session's earlier one, which is also removed if this one
    /// does not fit.
    pub(crate) fn put(&mut self, session: SessionId, head: Head) {
        self.0.insert(session, head);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EventId, FIRST_SEQ};

    fn head(last: u64) -> Head {
        Head {
            generation: 1,
            first: FIRST_SEQ,
            last,
            last_id: EventId::from_u128(last.into()),
        }
    }

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    #[test]
    fn a_head_takes_the_place_of_the_one_before_and_none_outlives_it() {
        for bytes_max in [0, 1, HEAD_BYTES, 3 * HEAD_BYTES, 100 * HEAD_BYTES] {
            let mut heads = IdleHeads::new(bytes_max);
            for last in 1..50 {
                for nth in 0..20 {
                    let session = session(&nth.to_string());
                    heads.put(session.clone(), head(last));
                    assert!(heads.get(&session).is_none_or(|kept| kept == head(last)));
                }
                let all = (0..20).filter_map(|nth| heads.get(&session(&nth.to_string())));
                assert!(all.into_iter().all(|kept| kept == head(last)));
            }
        }
    }

    #[test]
    fn it_keeps_what_fits_with_the_names() {
        for name_bytes in [8, SessionId::BYTES_MAX] {
            let mut heads = IdleHeads::new(1_000 * HEAD_BYTES);
            let name = |nth: u32| session(&format!("{nth:0>name_bytes$}"));
            (0..10_000).for_each(|nth| heads.put(name(nth), head(1)));
            let kept = (0..10_000)
                .filter(|nth| heads.get(&name(*nth)).is_some())
                .count();
            let fitting = 1_000 * HEAD_BYTES / (HEAD_BYTES + name_bytes);
            assert!(
                (fitting * 9 / 10..=fitting).contains(&kept),
                "{kept} of {fitting}"
            );
            let names = kept * (if name_bytes > 8 { name_bytes } else { 0 });
            let taken = heads.0.memory_used().total() + names;
            assert!(taken <= 1_000 * HEAD_BYTES, "{taken} bytes");
        }
    }
}
