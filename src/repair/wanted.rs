//! What a damaged log says that its sessions and their forks keep.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::codec::SessionState;
use crate::model::{EventId, Seq, SessionId};
use crate::read::shared_with;
use crate::repair::survey::Survey;

/// What the states and the journal say that sessions keep.
pub(super) struct Wanted {
    pub(super) newest: BTreeMap<SessionId, SessionState>,
    /// What forks share of a session, in the order of generations.
    pub(super) shared: BTreeMap<SessionId, Vec<Shared>>,
}

/// The events of a generation that a fork shares.
pub(super) struct Shared {
    pub(super) generation: u32,
    pub(super) seqs: RangeInclusive<Seq>,
    /// The ID with which the fork was made. All of the events have lower ones.
    pub(super) forked: EventId,
}

impl Wanted {
    pub(super) fn of(survey: &Survey) -> Self {
        let mut newest: BTreeMap<SessionId, SessionState> = BTreeMap::new();
        for segment in &survey.segments {
            // A segment without a table that can be read is told of later.
            newest.extend(segment.states().unwrap_or_default());
        }
        for record in &survey.journal {
            newest
                .entry(record.session.detached())
                .or_default()
                .apply(record);
        }
        let mut shared: BTreeMap<SessionId, Vec<Shared>> = BTreeMap::new();
        for state in newest.values() {
            for piece in state.pieces() {
                let seqs = shared_with(state, &piece.session, piece.generation);
                let of = shared.entry(piece.session.clone()).or_default();
                of.extend(seqs.map(|seqs| Shared {
                    generation: piece.generation,
                    seqs,
                    forked: state.created_id,
                }));
            }
        }
        for of in shared.values_mut() {
            of.sort_unstable_by_key(|shared| (shared.generation, *shared.seqs.end()));
        }
        Self { newest, shared }
    }

    /// Returns what forks share of a session, in the order of generations.
    pub(super) fn shared_of(&self, session: &SessionId) -> &[Shared] {
        self.shared.get(session).map_or(&[], Vec::as_slice)
    }

    /// Returns the parts of a hole that the session or a fork keeps, in order.
    pub(super) fn parts(
        &self,
        session: &SessionId,
        generation: u32,
        hole: &RangeInclusive<Seq>,
    ) -> Vec<RangeInclusive<Seq>> {
        let newest = self.newest.get(session);
        let own = match newest {
            Some(state) if state.generation == generation => {
                state.is_there().then(|| own_first(state)..=Seq::MAX)
            }
            Some(state) if state.generation > generation => None,
            // Nothing says that it was removed.
            _ => Some(0..=Seq::MAX),
        };
        let shared = self.shared_of(session).iter();
        let shared = shared.filter(|shared| shared.generation == generation);
        let mut kept: Vec<_> = shared
            .map(|shared| shared.seqs.clone())
            .chain(own)
            .collect();
        kept.sort_unstable_by_key(|seqs| *seqs.start());
        let (mut next, mut parts) = (*hole.start(), Vec::new());
        for seqs in kept {
            let part = next.max(*seqs.start())..=(*seqs.end()).min(*hole.end());
            if !part.is_empty() {
                next = *part.end() + 1;
                parts.push(part);
            }
        }
        parts
    }
}

/// Returns the first seq of a state that belongs to the session itself.
pub(super) fn own_first(state: &SessionState) -> Seq {
    let branched = state.lineage().map_or(0, |lineage| lineage.at);
    state.first.max(branched + 1)
}
