//! What a group asks for under the lock, as the columns of the statements that ask.

use tokio_postgres::types::ToSql;

use crate::postgres::sql;
use crate::write::{Proposal, Scanned};

/// A value of a statement.
type Value<'a> = &'a (dyn ToSql + Sync);

/// What the decision on a group rests on.
#[derive(Default)]
pub(super) struct Asks<'a> {
    /// The sessions, with the parents of forks.
    pub names: Vec<&'a str>,
    key_of: Vec<i32>,
    key_names: Vec<&'a str>,
    key_hashes: Vec<Vec<u8>>,
    scan_of: Vec<i32>,
    scan_names: Vec<&'a str>,
    scan_generations: Vec<i32>,
    scan_throughs: Vec<i64>,
}

impl<'a> Asks<'a> {
    /// Returns what the members of a group ask for, each by its place in it.
    pub(super) fn of(members: impl Iterator<Item = &'a Proposal>) -> Self {
        let mut asks = Self::default();
        for (nth, proposal) in members.enumerate() {
            let (nth, name) = (i32::try_from(nth).unwrap_or(i32::MAX), proposal.session());
            asks.names.push(name.as_str());
            let parent = proposal.parent.as_ref();
            let parent = parent.map(|parent| parent.session.as_str());
            asks.names.extend(parent);
            if let Some(key) = proposal.batch.key() {
                asks.key_of.push(nth);
                asks.key_names.push(name.as_str());
                asks.key_hashes.push(sql::key_hash(&key.text));
            }
            if let Some(Scanned::Nothing {
                generation,
                through,
            }) = proposal.scanned
            {
                asks.scan_of.push(nth);
                asks.scan_names.push(name.as_str());
                asks.scan_generations.push(generation.cast_signed());
                asks.scan_throughs.push(through.cast_signed());
            }
        }
        asks.names.sort_unstable();
        asks.names.dedup();
        asks
    }

    /// The keys, if a member has one.
    pub(super) fn keys(&self) -> Option<[Value<'_>; 3]> {
        let values: [Value<'_>; 3] = [&self.key_of, &self.key_names, &self.key_hashes];
        (!self.key_of.is_empty()).then_some(values)
    }

    /// What came since the scans, if a member made one.
    pub(super) fn since(&self) -> Option<[Value<'_>; 4]> {
        let values: [Value<'_>; 4] = [
            &self.scan_of,
            &self.scan_names,
            &self.scan_generations,
            &self.scan_throughs,
        ];
        (!self.scan_of.is_empty()).then_some(values)
    }
}
