//! What a stream reads ahead: the next items after a position, of one session or of all.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::{SessionState, Standing};
use crate::model::{Event, EventId, Result, Seq, SessionId};
use crate::read::item::StreamItem;
use crate::read::records::{Follower, Records};
use crate::read::scan::ReadLimit;
use crate::read::store::Store;
use crate::sync::Waiter;

/// Reads on from a position.
pub(super) struct Reader {
    pub store: Arc<Store>,
    pub source: Source,
    /// Whether it ends at what was durable when the stream was opened.
    pub bounded: bool,
    pub read_limit: ReadLimit,
}

/// What the reader of a stream was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Behind,
    CaughtUp,
    Ended,
}

/// What is read, and how far it was.
pub(super) enum Source {
    Session {
        follower: Box<dyn Follower>,
        /// The generation that is streamed; 0 while the session does not exist.
        generation: u32,
        last: Seq,
        until: Seq,
    },
    All {
        last: EventId,
        until: EventId,
        _follower: FollowerOfAll,
    },
}

/// Counts as a reader of all sessions for as long as it is there.
pub(super) struct FollowerOfAll(Arc<dyn Records>);

impl FollowerOfAll {
    pub(super) fn new(records: &Arc<dyn Records>) -> Self {
        records.follow_all();
        Self(Arc::clone(records))
    }
}

impl Drop for FollowerOfAll {
    fn drop(&mut self) {
        self.0.unfollow_all();
    }
}

/// What comes next in a stream.
pub(super) enum Ahead {
    Items(Vec<StreamItem>),
    /// The last item of the stream.
    Over(StreamItem),
    /// Nothing of what was read is shown, because it was removed. There is more.
    Passed,
    /// Nothing yet, and not all that was there when the stream was opened was read.
    Short,
    /// Nothing yet.
    Nothing,
}

impl Ahead {
    fn of(items: impl IntoIterator<Item = StreamItem>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        if items.is_empty() {
            Ahead::Nothing
        } else {
            Ahead::Items(items)
        }
    }
}

/// Returns the events of a session in a range. A part of it that was trimmed since is an error.
fn session_items(
    store: &Store,
    session: &SessionId,
    state: &SessionState,
    range: RangeInclusive<Seq>,
    limit: ReadLimit,
) -> Result<Vec<Event>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    Store::check_cursor(session, *range.start() - 1, state.last, state)?;
    store.events_from(session, state, range, limit)
}

/// Whether a stream has to wait at `last` of a generation.
fn is_at_the_end(state: &SessionState, generation: u32, last: Seq) -> bool {
    if generation == 0 {
        return !state.is_there();
    }
    state.standing == Standing::Open && state.generation == generation && state.last <= last
}

fn id_of(item: &StreamItem) -> Option<EventId> {
    match item {
        StreamItem::Event(event) => Some(event.id),
        StreamItem::Change(change) => Some(change.id),
        _ => None,
    }
}

impl Source {
    /// Goes back to before an item that was read.
    pub(super) fn go_back_before(&mut self, next: &StreamItem) {
        match (self, next) {
            (Source::Session { last, .. }, StreamItem::Event(event)) => *last = event.seq - 1,
            (Source::All { last, .. }, item) => {
                let before = id_of(item).map(|id| EventId::from_u128(id.to_u128() - 1));
                *last = before.unwrap_or(*last);
            }
            _ => {}
        }
    }
}

impl Reader {
    pub(super) fn read_at_rest(&mut self, phase: Phase) -> Result<Ahead> {
        let store = Arc::clone(&self.store);
        store.at_rest(|| self.read(phase))
    }

    /// Reads what comes after the last event read.
    fn read(&mut self, phase: Phase) -> Result<Ahead> {
        let store = &self.store;
        match &mut self.source {
            Source::Session {
                follower,
                generation,
                last,
                until,
            } => {
                let state = follower.state()?;
                if *generation == 0 && state.is_there() {
                    (*generation, *last) = (state.generation, state.first - 1);
                }
                if *generation == 0 {
                    return Ok(Ahead::Nothing);
                }
                if !state.is_there() || state.generation != *generation {
                    return Ok(Ahead::Over(StreamItem::Deleted));
                }
                let to = if self.bounded {
                    (*until).max(*last)
                } else {
                    state.last
                };
                let (session, range) = (follower.session(), *last + 1..=to);
                let items = session_items(store, session, &state, range, self.read_limit)?;
                if items.is_empty() && state.standing == Standing::Closed && !self.bounded {
                    // It comes after the mark that the reader has caught up.
                    return Ok(match phase {
                        Phase::Behind => Ahead::Nothing,
                        _ => Ahead::Over(StreamItem::Closed),
                    });
                }
                *last = items.last().map_or(*last, |event| event.seq);
                Ok(Ahead::of(items.into_iter().map(StreamItem::Event)))
            }
            Source::All { last, until, .. } => {
                let mut fed = store.committed_after(*last, self.read_limit)?;
                if self.bounded {
                    fed.items.retain(|item| id_of(item) <= Some(*until));
                }
                // What was there may be shown only after what is being committed.
                let is_short = self.bounded && fed.through < *until;
                let has_moved = fed.through > *last && !(self.bounded && *last >= *until);
                *last = fed.through;
                Ok(match Ahead::of(fed.items) {
                    Ahead::Nothing if has_moved => Ahead::Passed,
                    Ahead::Nothing if is_short => Ahead::Short,
                    ahead => ahead,
                })
            }
        }
    }

    /// Registers a waiter for what comes next. Returns whether it did.
    pub(super) fn wait(&self, waiter: &Arc<Waiter>) -> bool {
        match &self.source {
            Source::Session {
                follower,
                generation,
                last,
                ..
            } => follower.wait(waiter, &|state| is_at_the_end(state, *generation, *last)),
            Source::All { last, .. } => self.store.records.wait_for_any(*last, waiter),
        }
    }

    pub(super) fn forget(&self, waiter: &Arc<Waiter>) {
        match &self.source {
            Source::Session { follower, .. } => follower.forget(waiter),
            Source::All { .. } => self.store.records.forget_any(waiter),
        }
    }
}
