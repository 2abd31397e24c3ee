//! Reads what is left of a damaged segment.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::vec;

use bytes::Bytes;

use crate::codec::{BLOCK_HEADER_BYTES, Record, SessionState};
use crate::disk::BLOCK;
use crate::model::{Error, EventId, Result, SessionId};
use crate::segment::check::blocks_named;
use crate::segment::whole::Uncached;
use crate::segment::{RunEntry, RunTail, Segment, split_run_key};

/// What is left of a segment.
pub(crate) struct Rest<'a> {
    segment: &'a Segment,
    source: Uncached<'a>,
    /// The blocks that can be read, in order.
    blocks: vec::IntoIter<(u64, u32)>,
    block: Bytes,
    at: usize,
    /// The states that can be read, by session.
    pub states: BTreeMap<SessionId, SessionState>,
    /// The IDs of the records that can be read, if something cannot.
    pub ids: Option<Vec<RangeInclusive<EventId>>>,
    /// What cannot be read.
    pub faults: Vec<Error>,
}

impl Segment {
    /// Returns what can be read of the segment. The states of all its sessions are in memory, and
    /// if something cannot be read the IDs of all other records.
    pub(crate) fn rest(&self) -> Result<Rest<'_>> {
        let source = self.uncached_as_it_is()?;
        let mut faults: Vec<Error> = self.uncached().err().into_iter().collect();
        let named = blocks_named(self, &source, &mut |error| faults.push(error));
        let records = BLOCK as u64..self.info.filter.offset;
        let named = named
            .into_iter()
            .filter(|(offset, bytes)| records.contains(offset) && *bytes > 0);
        // Each is read twice, so that it is known which IDs are lost before the first is needed.
        let mut blocks = Vec::new();
        for (offset, bytes) in named {
            match source.block(offset, bytes) {
                Ok(_whole) => blocks.push((offset, bytes)),
                Err(error) => faults.push(error),
            }
        }
        let mut rest = Rest {
            segment: self,
            states: self.states_left(&source),
            ids: None,
            source,
            blocks: blocks.clone().into_iter(),
            block: Bytes::new(),
            at: 0,
            faults,
        };
        if !rest.faults.is_empty() {
            let ids = rest.by_ref().map(|record| record.base..=record.last_id());
            rest.ids = Some(ids.collect());
            (rest.blocks, rest.block) = (blocks.into_iter(), Bytes::new());
        }
        Ok(rest)
    }

    /// Returns the IDs of all records.
    pub(crate) fn ids(&self) -> Result<Vec<RangeInclusive<EventId>>> {
        Ok(self
            .rest()?
            .map(|record| record.base..=record.last_id())
            .collect())
    }

    /// Returns the states that can be read, by session.
    pub(crate) fn states(&self) -> Result<BTreeMap<SessionId, SessionState>> {
        Ok(self.states_left(&self.uncached_as_it_is()?))
    }

    fn states_left(&self, source: &Uncached<'_>) -> BTreeMap<SessionId, SessionState> {
        let mut states = BTreeMap::new();
        let mut note = |key: &Bytes, value: &Bytes| {
            let (name, generation, first) = split_run_key(key)?;
            let entry = RunEntry::read(self.info.format, generation, first, value).ok()?;
            let RunTail::State(state) = entry.tail else {
                return None;
            };
            let session = SessionId::from_stored(name, key).ok()?;
            states.insert(session.detached(), SessionState::decode(&state).ok()?)
        };
        let visit = |key: &Bytes, value: &Bytes| drop(note(key, value));
        self.info.runs.visit(source, visit, |_told_before| ());
        states
    }
}

impl Iterator for Rest<'_> {
    type Item = Record;

    /// Returns the next record that can be read, in the order of sessions, generations and seqs.
    fn next(&mut self) -> Option<Record> {
        loop {
            if self.at >= self.block.len() {
                let (offset, bytes) = self.blocks.next()?;
                match self.source.block(offset, bytes) {
                    Ok(block) => (self.block, self.at) = (block, BLOCK_HEADER_BYTES),
                    Err(error) => self.faults.push(error),
                }
                continue;
            }
            let decoded = Record::decode_with_end(&self.block, self.at);
            let checked = decoded.and_then(|(record, end)| {
                record.check_events()?;
                Ok((record, end))
            });
            match checked {
                Ok((record, end)) => {
                    self.at = end;
                    return Some(record);
                }
                Err(fault) => {
                    self.faults.push(fault.at(self.segment.path(), 0));
                    self.at = self.block.len();
                }
            }
        }
    }
}
