//! A bounded cache of the states of idle sessions, so that the next append or read needs no lookup.
//!
//! Invariant: a state in this cache is the session's state if the session has no entry. So a
//! dropped entry puts its state here, over that of an earlier entry, and nothing else puts one.
//! While a session has an entry, only the entry is used.

use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::codec::SessionState;
use crate::model::SessionId;

/// The size of a state besides its session's name and its details, with its places in the cache's
/// tables, in bytes.
const STATE_BYTES: usize = size_of::<SessionState>() + 80;

/// The states of idle sessions, bounded in bytes.
pub(crate) struct IdleStates(Cache<SessionId, SessionState, ByBytes>);

#[derive(Clone)]
struct ByBytes;

impl Weighter<SessionId, SessionState> for ByBytes {
    fn weight(&self, session: &SessionId, state: &SessionState) -> u64 {
        (STATE_BYTES + session.as_bytes().len() + state.details_bytes()) as u64
    }
}

impl IdleStates {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let mut options = OptionsBuilder::new();
        options
            .estimated_items_capacity(bytes_max / STATE_BYTES + 1)
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

    pub(crate) fn get(&self, session: &SessionId) -> Option<SessionState> {
        self.0.get(session).cloned()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Inserts a state. It replaces the session's earlier one, which is also removed if this one
    /// does not fit.
    pub(crate) fn put(&mut self, session: SessionId, state: SessionState) {
        self.0.insert(session, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(last: u64) -> SessionState {
        SessionState {
            generation: 1,
            last,
            ..SessionState::default()
        }
    }

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    #[test]
    fn a_head_takes_the_place_of_the_one_before_and_none_outlives_it() {
        for bytes_max in [0, 1, STATE_BYTES, 3 * STATE_BYTES, 100 * STATE_BYTES] {
            let mut heads = IdleStates::new(bytes_max);
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
            let mut heads = IdleStates::new(1_000 * STATE_BYTES);
            let name = |nth: u32| session(&format!("{nth:0>name_bytes$}"));
            (0..10_000).for_each(|nth| heads.put(name(nth), head(1)));
            let kept = (0..10_000)
                .filter(|nth| heads.get(&name(*nth)).is_some())
                .count();
            let fitting = 1_000 * STATE_BYTES / (STATE_BYTES + name_bytes);
            assert!(
                (fitting * 9 / 10..=fitting).contains(&kept),
                "{kept} of {fitting}"
            );
            let names = kept * (if name_bytes > 8 { name_bytes } else { 0 });
            let taken = heads.0.memory_used().total() + names;
            assert!(taken <= 1_000 * STATE_BYTES, "{taken} bytes");
        }
    }
}
