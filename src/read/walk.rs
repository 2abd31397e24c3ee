//! Lists sessions of the embedded engine: by ID, by newest activity, or by creation.
//!
//! There is no index of sessions. Each segment holds three sorted tables of its own sessions, and
//! memory holds the rest. IDs are merged from all of them. Positions by activity and by creation
//! are event IDs, and segments cover disjoint ranges of these. So a walk by position reads one
//! segment after the other, and passes over entries that a newer record of the session has
//! overtaken.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::model::{EventId, Result, SessionId};
use crate::read::listing::PageBuilder;
use crate::read::local::Local;
use crate::read::query::{Direction, SessionCursor, SessionOrder};
use crate::read::records::Records;
use crate::segment::{Position, Segment, SegmentSet};

/// The records that are looked at in memory at once.
const RECORDS_AT_ONCE: usize = 256;

impl Local {
    /// Visits the sessions of a query in its order.
    pub(super) fn walk_sessions(&self, page: &mut PageBuilder) -> Result<()> {
        match page.query().order {
            SessionOrder::Id => *page = self.walk_by_id_at_rest(page)?,
            SessionOrder::Activity => self.walk_by_position(page, Position::Activity)?,
            SessionOrder::Creation => self.walk_by_position(page, Position::Creation)?,
        }
        Ok(())
    }

    /// Visits sessions in the order of their IDs. If segments came meanwhile, a session may have
    /// moved to one unseen, so the page is made again.
    fn walk_by_id_at_rest(&self, page: &PageBuilder) -> Result<PageBuilder> {
        loop {
            let before = self.locator.segments();
            let mut walked = page.clone();
            self.walk_by_id(&mut walked)?;
            if Arc::ptr_eq(&before, &self.locator.segments()) {
                return Ok(walked);
            }
        }
    }

    /// Visits sessions in the order of their IDs.
    fn walk_by_id(&self, page: &mut PageBuilder) -> Result<()> {
        let query = page.query().clone();
        let direction = query.direction;
        // Memory first: a session that leaves memory after this is in the segments listed next.
        let shards = self.recent.sessions.shards();
        let mut sources: Vec<Source<'_>> = (0..shards).map(Source::Memory).collect();
        let segments = self.locator.segments();
        sources.extend(segments.iter().map(Source::Segment));
        let start = match &query.after {
            Some(SessionCursor::Id(after)) => Bound::Excluded(after.as_bytes().to_vec()),
            _ => Bound::Unbounded,
        };
        let start = within_prefix(start, query.prefix_bytes(), direction);
        let mut ahead: BTreeMap<SessionId, Vec<usize>> = BTreeMap::new();
        for (nth, source) in sources.iter().enumerate() {
            if let Some(session) =
                self.next_of(source, start.as_ref().map(Vec::as_slice), direction)?
            {
                ahead.entry(session).or_default().push(nth);
            }
        }
        loop {
            let next = match direction {
                Direction::Ascending => ahead.pop_first(),
                Direction::Descending => ahead.pop_last(),
            };
            let Some((session, holders)) = next else {
                return Ok(());
            };
            if !session.as_bytes().starts_with(query.prefix_bytes()) {
                return Ok(());
            }
            let state = self.state(&session, None)?;
            if page.visit(&session, &state, SessionCursor::Id(session.clone())) {
                return Ok(());
            }
            for nth in holders {
                let Some(source) = sources.get(nth) else {
                    continue;
                };
                let from = Bound::Excluded(session.as_bytes());
                if let Some(next) = self.next_of(source, from, direction)? {
                    ahead.entry(next).or_default().push(nth);
                }
            }
        }
    }

    fn next_of(
        &self,
        source: &Source<'_>,
        from: Bound<&[u8]>,
        direction: Direction,
    ) -> Result<Option<SessionId>> {
        match (source, direction) {
            (Source::Memory(shard), Direction::Ascending) => {
                Ok(self.recent.sessions.next_in(*shard, from))
            }
            (Source::Memory(shard), Direction::Descending) => {
                Ok(self.recent.sessions.previous_in(*shard, from))
            }
            (Source::Segment(segment), Direction::Ascending) => segment.session_from(from),
            (Source::Segment(segment), Direction::Descending) => segment.session_below(from),
        }
    }

    /// Visits sessions in the order of their positions.
    fn walk_by_position(&self, page: &mut PageBuilder, position: Position) -> Result<()> {
        let from = match &page.query().after {
            Some(SessionCursor::At(id)) => Some(*id),
            _ => None,
        };
        match page.query().direction {
            Direction::Descending => self.walk_down(page, position, from),
            Direction::Ascending => self.walk_up(page, position, from),
        }
    }

    fn walk_down(
        &self,
        page: &mut PageBuilder,
        position: Position,
        from: Option<EventId>,
    ) -> Result<()> {
        let mut below = from.unwrap_or(EventId::from_u128(u128::MAX));
        loop {
            let records = self.recent.records_below(below, RECORDS_AT_ONCE);
            let Some(oldest) = records.last() else { break };
            let oldest = oldest.base;
            for record in records {
                let ids = record.base..=record.last_id();
                if self.visit_at(page, position, (&record.session, record.base), |id| {
                    ids.contains(&id) && id < below
                })? {
                    return Ok(());
                }
            }
            below = oldest;
        }
        let segments = self.locator.segments();
        for segment in segments.iter().rev() {
            if segment.info.first_id() >= below {
                continue;
            }
            let mut entries = segment.positions(position)?;
            while let Some((id, session)) = entries.below(below)? {
                if self.visit_at(page, position, (&session, id), |current| current == id)? {
                    return Ok(());
                }
                below = id;
            }
        }
        Ok(())
    }

    fn walk_up(
        &self,
        page: &mut PageBuilder,
        position: Position,
        from: Option<EventId>,
    ) -> Result<()> {
        let mut above = from.unwrap_or(EventId::from_u128(0));
        loop {
            let segments = self.locator.segments();
            self.walk_segments_up(page, position, &segments, &mut above)?;
            if page.is_full() || self.walk_memory_up(page, position, &segments, &mut above)? {
                return Ok(());
            }
        }
    }

    /// Visits the sessions in memory above a position. Returns whether the page is done. It is not
    /// if records have left memory for a segment that is not among `segments`.
    fn walk_memory_up(
        &self,
        page: &mut PageBuilder,
        position: Position,
        segments: &Arc<SegmentSet>,
        above: &mut EventId,
    ) -> Result<bool> {
        loop {
            let records = self.recent.records_from(above.plus(1), RECORDS_AT_ONCE);
            if !Arc::ptr_eq(segments, &self.locator.segments()) {
                return Ok(false);
            }
            let Some(newest) = records.last() else {
                return Ok(true);
            };
            let newest = newest.last_id();
            for record in records {
                let ids = record.base..=record.last_id();
                let after = *above;
                if self.visit_at(page, position, (&record.session, record.last_id()), |id| {
                    ids.contains(&id) && id > after
                })? {
                    return Ok(true);
                }
            }
            *above = newest;
        }
    }

    fn walk_segments_up(
        &self,
        page: &mut PageBuilder,
        position: Position,
        segments: &Arc<SegmentSet>,
        above: &mut EventId,
    ) -> Result<()> {
        for segment in segments.ending_at_or_after(above.plus(1)) {
            let mut entries = segment.positions(position)?;
            while let Some((id, session)) = entries.above(*above)? {
                if self.visit_at(page, position, (&session, id), |current| current == id)? {
                    return Ok(());
                }
                *above = id;
            }
        }
        Ok(())
    }

    /// Visits a session that was found at a place, if `is_here` holds for its current position.
    /// Returns whether the page is full.
    fn visit_at(
        &self,
        page: &mut PageBuilder,
        position: Position,
        (session, place): (&SessionId, EventId),
        is_here: impl Fn(EventId) -> bool,
    ) -> Result<bool> {
        let state = self.state(session, None)?;
        let current = position.of(&state);
        if !state.is_there() || !is_here(current) {
            return Ok(page.pass(SessionCursor::At(place)));
        }
        Ok(page.visit(session, &state, SessionCursor::At(current)))
    }
}

/// A place where sessions are found in the order of their IDs.
enum Source<'a> {
    /// A shard of the sessions in memory.
    Memory(usize),
    Segment(&'a Arc<Segment>),
}

/// Moves the start of a walk by ID to where IDs with the prefix begin.
fn within_prefix(start: Bound<Vec<u8>>, prefix: &[u8], direction: Direction) -> Bound<Vec<u8>> {
    if prefix.is_empty() {
        return start;
    }
    match (direction, start) {
        (Direction::Ascending, Bound::Excluded(after)) if after.as_slice() >= prefix => {
            Bound::Excluded(after)
        }
        (Direction::Ascending, _) => Bound::Included(prefix.to_vec()),
        (Direction::Descending, start) => {
            // No ID has a byte of 0xFF, so this comes after all IDs with the prefix.
            let mut end = prefix.to_vec();
            end.push(0xFF);
            match start {
                Bound::Excluded(before) if before < end => Bound::Excluded(before),
                _ => Bound::Excluded(end),
            }
        }
    }
}
