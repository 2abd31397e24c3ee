//! Reads all sessions in commit order.
//!
//! IDs of events and changes rise in commit order, so the order of IDs is the order of the feed.

use std::ops::ControlFlow;

use crate::codec::{Fault, Record, SessionState};
use crate::model::{Change, Error, EventId, EventView, Result, SessionId};
use crate::read::item::StreamItem;
use crate::read::scan::ReadLimit;
use crate::read::store::Store;

/// The bytes that count for a change in a read.
const CHANGE_BYTES: usize = 256;

/// The most records that one read looks at. Of many that were removed nothing is shown.
const LOOKED_MAX: usize = 4_096;

impl Store {
    /// Returns the events and changes committed after `after`, in commit order, until `read_limit`
    /// is reached.
    pub(crate) fn committed_after(&self, after: EventId, read_limit: ReadLimit) -> Result<Fed> {
        let mut collector = FeedCollector {
            store: self,
            read_limit,
            of_session: None,
            looked: 0,
            fed: Fed {
                items: Vec::new(),
                through: after,
            },
        };
        let from = after.plus(1);
        let read = self
            .records
            .each_from(from, &mut |record, fault| collector.record(record, fault));
        match read {
            Ok(through) => {
                let fed = collector.fed;
                Ok(Fed {
                    through: through.map_or(fed.through, |through| fed.through.max(through)),
                    ..fed
                })
            }
            // The events before the damage are intact. A read that starts at the damage returns the
            // error.
            Err(error) if collector.fed.items.is_empty() => Err(error),
            _ => Ok(collector.fed),
        }
    }
}

/// A part of the feed.
pub(crate) struct Fed {
    /// Events and changes, in commit order.
    pub items: Vec<StreamItem>,
    /// All that was committed up to this ID was looked at. It may be past the last item, where
    /// nothing is shown of what was removed.
    pub through: EventId,
}

/// Collects what the feed shows, in commit order.
struct FeedCollector<'a> {
    store: &'a Store,
    read_limit: ReadLimit,
    /// The session of the last record, with its state. The next record is often of the same.
    of_session: Option<(SessionId, SessionState)>,
    /// The number of records so far.
    looked: usize,
    fed: Fed,
}

impl FeedCollector<'_> {
    fn record(
        &mut self,
        record: &Record,
        fault: &dyn Fn(Fault) -> Error,
    ) -> Result<ControlFlow<()>> {
        if record.last_id() <= self.fed.through {
            return Ok(ControlFlow::Continue(()));
        }
        let state = match self.of_session.take() {
            Some((session, state)) if session == record.session => state,
            _ => self.store.state(&record.session)?,
        };
        for frame in record.events() {
            let frame = frame.map_err(fault)?;
            let EventView { id, seq, .. } = frame.view;
            if id <= self.fed.through || !Store::is_kept(&state, record, seq) {
                continue;
            }
            let is_redacted = state.redacted().binary_search(&id).is_ok();
            let frame = if is_redacted { frame.redacted() } else { frame };
            let item = StreamItem::Event(frame.event());
            if self.push(item, id, frame.read_bytes()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let is_current = state.is_there() && record.generation == state.generation;
        for change in record.changes() {
            let is_shown = is_current || matches!(change.change, Change::Deleted { .. });
            let id = change.id;
            if id <= self.fed.through || !is_shown {
                continue;
            }
            if self
                .push(StreamItem::Change(Box::new(change)), id, CHANGE_BYTES)
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.fed.through = self.fed.through.max(record.last_id());
        self.of_session = Some((record.session.clone(), state));
        self.looked += 1;
        Ok(if self.looked == LOOKED_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }

    fn push(&mut self, item: StreamItem, id: EventId, bytes: usize) -> ControlFlow<()> {
        self.fed.items.push(item);
        self.fed.through = id;
        self.read_limit.bytes = self.read_limit.bytes.saturating_sub(bytes);
        if self.fed.items.len() == self.read_limit.events || self.read_limit.bytes == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
