//! Reads all sessions in commit order, and lists sessions.
//!
//! Neither needs an index. Event IDs rise in commit order, so the order of the segment files, and
//! of the tables in their footers, is the commit order.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::codec::Record;
use crate::model::{Event, EventId, Result, SessionId};
use crate::read::page::checked_limit;
use crate::read::scan::ReadLimit;
use crate::read::store::Store;
use crate::segment::Segment;

/// Records looked for in memory at once.
const RECORDS_AT_ONCE: usize = 256;

/// Which sessions to list: by default the first 100, in the byte order of their IDs.
///
/// ```
/// use sessionlog::{SessionId, SessionQuery};
///
/// let last: SessionId = "sess_123".parse()?;
/// let next = SessionQuery::new().after(&last).limit(20);
/// # Ok::<(), sessionlog::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a query does nothing until it is passed to `sessions`"]
pub struct SessionQuery {
    after: Option<SessionId>,
    limit: Option<usize>,
}

impl SessionQuery {
    /// The first 100 sessions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lists only sessions whose IDs come after this one. A session with this ID need not exist.
    pub fn after(mut self, session: &SessionId) -> Self {
        self.after = Some(session.clone());
        self
    }

    /// The largest number of sessions. Default: 100. Maximum:
    /// [`page_events_max`](crate::Options::page_events_max).
    pub fn limit(mut self, sessions: usize) -> Self {
        self.limit = Some(sessions);
        self
    }
}

impl Store {
    /// Returns the events committed after `after`, in commit order, until `read_limit` is reached.
    /// Returns an empty list when there are none.
    pub(crate) fn committed_after(
        &self,
        after: EventId,
        read_limit: ReadLimit,
    ) -> Result<Vec<Event>> {
        let mut collector = FeedCollector {
            after,
            read_limit,
            events: Vec::new(),
        };
        match self.collect_committed(&mut collector) {
            // The events before the damage are intact. A read that starts at the damage returns the
            // error.
            Err(error) if collector.events.is_empty() => Err(error),
            _ => Ok(collector.events),
        }
    }

    fn collect_committed(&self, collector: &mut FeedCollector) -> Result<()> {
        let from = collector.after.plus(1);
        // Memory first: a record that leaves memory after this is in the segments listed next.
        let recent = self.recent.records_from(from, RECORDS_AT_ONCE);
        let segments = self.locator.segments();
        for segment in segments.ending_at_or_after(from) {
            for record in segment.records_from(from)? {
                if collector.record(&record?, Some(segment))?.is_break() {
                    return Ok(());
                }
            }
        }
        for record in recent {
            if collector.record(&record, None)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Sessions in the order of their IDs.
    pub(crate) fn sessions(&self, query: SessionQuery) -> Result<Vec<SessionId>> {
        let SessionQuery { after, limit } = query;
        let limit = checked_limit(limit, self.options.limits.page_events_max)?;
        let after = after.as_ref();
        let recent = self.recent.sessions.sessions_after(after);
        let segments = self.locator.segments();
        let mut next: BTreeMap<SessionId, Vec<&Arc<Segment>>> =
            recent.into_iter().map(|id| (id, Vec::new())).collect();
        for segment in segments.iter() {
            if let Some(session) = segment.session_after(after)? {
                next.entry(session).or_default().push(segment);
            }
        }
        let mut found = Vec::new();
        while let Some((session, holders)) = next.pop_first() {
            for segment in holders {
                if let Some(later) = segment.session_after(Some(&session))? {
                    next.entry(later).or_default().push(segment);
                }
            }
            found.push(session);
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    /// Lists sessions by their newest event, newest first.
    pub(crate) fn newest_sessions(&self, limit: usize) -> Result<NewestSessions> {
        let limit = checked_limit(Some(limit), self.options.limits.page_events_max)?;
        let mut newest = Newest {
            limit,
            seen: HashSet::new(),
            order: Vec::new(),
        };
        let walked = self.walk_back(&mut newest)?;
        Ok(NewestSessions {
            ids: newest.order,
            truncated: walked.is_break(),
        })
    }

    /// Visits records from the newest backwards, until the list is full or `walk_back_records`
    /// sealed records are read. `Break` means that older records were not visited.
    fn walk_back(&self, newest: &mut Newest) -> Result<ControlFlow<()>> {
        let mut oldest = EventId::from_u128(u128::MAX);
        let in_memory = self.recent.visit_newest(|record| {
            oldest = record.base;
            newest.visit(record)
        });
        if in_memory.is_break() {
            return Ok(in_memory);
        }
        let segments = self.locator.segments();
        let mut walked = 0;
        for segment in segments.iter().rev() {
            while let Some(record) = segment.record_before(oldest)? {
                oldest = record.base;
                walked += 1;
                if newest.visit(&record).is_break() || walked == self.options.walk_back_records {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The sessions with the newest events.
pub(crate) struct NewestSessions {
    /// Newest first.
    pub ids: Vec<SessionId>,
    /// Whether there may be more sessions.
    #[cfg_attr(
        not(any(feature = "http", test)),
        expect(dead_code, reason = "it is said over HTTP")
    )]
    pub truncated: bool,
}

/// Collects events in commit order.
struct FeedCollector {
    after: EventId,
    read_limit: ReadLimit,
    events: Vec<Event>,
}

impl FeedCollector {
    fn record(
        &mut self,
        record: &Record,
        segment: Option<&Arc<Segment>>,
    ) -> Result<ControlFlow<()>> {
        for frame in record.events() {
            let frame = frame.map_err(|fault| {
                segment
                    .expect("records in memory were checked when they got there")
                    .fault_in_records(fault)
            })?;
            if frame.view.id <= self.after {
                continue;
            }
            self.after = frame.view.id;
            self.read_limit.bytes = self.read_limit.bytes.saturating_sub(frame.read_bytes());
            self.events.push(frame.event());
            if self.events.len() == self.read_limit.events || self.read_limit.bytes == 0 {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

struct Newest {
    limit: usize,
    seen: HashSet<SessionId>,
    order: Vec<SessionId>,
}

impl Newest {
    fn visit(&mut self, record: &Record) -> ControlFlow<()> {
        if !self.seen.contains(&record.session) {
            let session = record.session.detached();
            self.seen.insert(session.clone());
            self.order.push(session);
        }
        if self.order.len() == self.limit {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
