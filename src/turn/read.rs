//! Reads turns from the store: finds the event that opened a turn and folds the events after it.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::codec::{EventFrame, SessionState};
use crate::model::{Error, Event, MessageId, Result, Seq, SessionId, USER_MESSAGE};
use crate::read::{Page, PageRequest, Store, Visitor};
use crate::turn::fold::Fold;

/// The events read at once on the way to a turn's end. Most turns are shorter.
const LOOKAHEAD_EVENTS: Seq = 64;

/// The turns that a page looks at for each open turn that it may hold. Its cost stays in proportion
/// to its limit: one that asks whether the newest turn is open is answered in a few reads.
const SEARCHED_TURNS: usize = 16;

/// The fewest events that an unfinished turn must be followed by to be remembered. The next read of
/// a remembered turn resumes where the last one stopped.
const REMEMBERED_EVENTS_MIN: Seq = 1_000;

/// The memory for remembered turns, in bytes.
const REMEMBERED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Reads the turns of a store.
pub(crate) struct TurnReader {
    store: Arc<Store>,
    /// How far unfinished turns have been read.
    remembered: quick_cache::sync::Cache<Reading, Arc<Remembered>, KeptBytes>,
}

/// A turn as a session has it, and the most bytes that it may keep. Forks go on with a turn in
/// their own ways.
type Reading = (SessionId, MessageId, usize);

struct Remembered {
    fold: Fold,
    /// All events of the session up to this seq have been applied.
    through: Seq,
    /// The removals before they were read. After another, the fold may hold what was removed.
    removals: u64,
}

#[derive(Clone)]
struct KeptBytes;

impl quick_cache::Weighter<Reading, Arc<Remembered>> for KeptBytes {
    fn weight(&self, _reading: &Reading, remembered: &Arc<Remembered>) -> u64 {
        (size_of::<Remembered>() + remembered.fold.kept_bytes()) as u64
    }
}

impl TurnReader {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let remembered =
            quick_cache::sync::Cache::with_weighter(1_000, REMEMBERED_BYTES_MAX, KeptBytes);
        Self { store, remembered }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the turn of a message. It keeps outputs up to about `bytes_max`.
    pub(crate) fn turn(&self, id: MessageId, bytes_max: usize) -> Result<Fold> {
        let removals = self.store.records.removals();
        let fold = self
            .store
            .look_at(id.event_id(), |opening| Fold::open(opening.view))?
            .ok_or(Error::UnknownMessage { id })??;
        let mut turns = Turns::new(bytes_max, CutFrom::End, Wanted::All, removals);
        turns.push(fold);
        self.fold(&mut turns)?;
        turns.into_folds().pop().ok_or(Error::UnknownMessage { id })
    }

    /// Returns the newest turn of a session, if it is not over.
    pub(crate) fn newest_open(&self, session: &SessionId) -> Result<Option<MessageId>> {
        let mut next = Some(PageRequest::new().newest_first().limit(1));
        while let Some(request) = next {
            // A page reads a bounded number of bytes, and may end before it has met a turn.
            let page = self.page(session, request)?;
            if let Some(newest) = page.items.first() {
                return Ok((!newest.is_final()).then(|| newest.id()));
            }
            next = page.next_page();
        }
        Ok(None)
    }

    /// Returns the turns that were opened in the requested range, until they keep too much memory.
    /// Returns at least one if there is one.
    pub(crate) fn page(&self, session: &SessionId, request: PageRequest) -> Result<Page<Fold>> {
        let options = &self.store.options;
        let (bytes_max, newest_first) = (request.checked_bytes(options), request.is_newest_first());
        let limit = request.checked_limit(options)?;
        let wanted = if request.wants_open_turns() {
            Wanted::Open(limit)
        } else {
            Wanted::All
        };
        let mut openings = request.clone().types([USER_MESSAGE]);
        if wanted != Wanted::All {
            // Most turns are over. A page that read only as many turns as it may hold would often
            // hold none.
            let searched = limit.saturating_mul(SEARCHED_TURNS);
            openings = openings.limit(searched.min(options.limits.page_events_max));
        }
        let removals = self.store.records.removals();
        let mut opened = self.store.list(session, openings)?;
        let cut_from = if newest_first {
            CutFrom::Beginning
        } else {
            CutFrom::End
        };
        let mut turns = Turns::new(bytes_max, cut_from, wanted, removals);
        for event in std::mem::take(&mut opened.items) {
            if turns.cut.is_none() {
                turns.push(Fold::open(Event::view(&event))?);
            }
        }
        if newest_first {
            turns.list.reverse();
        }
        self.fold(&mut turns)?;
        turns.leave_wanted();
        opened.request = request;
        if let Some(cut) = turns.cut {
            opened.has_more = true;
            if newest_first {
                opened.first = cut + 1;
            } else {
                opened.last = cut - 1;
            }
        }
        let mut folds = turns.into_folds();
        if newest_first {
            folds.reverse();
        }
        Ok(opened.with_items(folds))
    }

    /// Folds events into the turns until all of them are final or the session ends.
    ///
    /// One pass serves all turns. With a pass for each, every unfinished turn would read the rest
    /// of the session again.
    fn fold(&self, turns: &mut Turns) -> Result<()> {
        let Some(Turn { fold, .. }) = turns.list.first() else {
            return Ok(());
        };
        let session = fold.opened_at().0.clone();
        let head = self.store.known_state(&session)?;
        turns
            .list
            .iter_mut()
            .for_each(|turn| self.recall(turn, (turns.bytes_max, turns.removals), &head));
        turns.count_anew();
        let mut read = 0;
        while let Some(from) = turns.next_from(read).filter(|from| *from <= head.last) {
            read = self.store.visit(&session, &head, from..=head.last, turns)?;
        }
        turns
            .list
            .iter()
            .for_each(|turn| self.remember(turns, &turn.fold, head.last));
        Ok(())
    }

    /// Resumes a turn after the events already read for it, if the turn is remembered.
    fn recall(&self, turn: &mut Turn, (bytes_max, removals): (usize, u64), head: &SessionState) {
        let remembered = self.remembered.get(&reading(&turn.fold, bytes_max));
        let fits =
            |known: &Arc<Remembered>| known.through <= head.last && known.removals == removals;
        if let Some(remembered) = remembered.filter(fits) {
            *turn = Turn {
                fold: remembered.fold.clone(),
                from: remembered.through + 1,
            };
        }
    }

    /// Remembers how far a turn was read, if it is unfinished and many events follow it.
    fn remember(&self, turns: &Turns, fold: &Fold, through: Seq) {
        let (_session, opened) = fold.opened_at();
        if !fold.is_final() && through - opened >= REMEMBERED_EVENTS_MIN {
            self.remembered.insert(
                reading(fold, turns.bytes_max),
                Arc::new(Remembered {
                    fold: fold.clone(),
                    through,
                    removals: turns.removals,
                }),
            );
        }
    }
}

fn reading(fold: &Fold, bytes_max: usize) -> Reading {
    let (session, _opened) = fold.opened_at();
    (session.clone(), fold.id(), bytes_max)
}

/// Turns of a session, and the memory that they may keep together.
struct Turns {
    /// In the order in which they were opened.
    list: Vec<Turn>,
    unfinished: usize,
    /// The bytes that the folds keep.
    kept: usize,
    bytes_max: usize,
    cut_from: CutFrom,
    wanted: Wanted,
    /// The removals before anything was read for the turns.
    removals: u64,
    /// The seq at which the last turn that was left out was opened, if any.
    cut: Option<Seq>,
}

/// A turn, and the seq of the first event that was not read for it.
struct Turn {
    fold: Fold,
    from: Seq,
}

/// Which turns are left out when they keep too much: those at the end of the page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CutFrom {
    Beginning,
    End,
}

/// Which turns the page holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Those that are not over, up to a limit.
    Open(usize),
}

impl Turns {
    fn new(bytes_max: usize, cut_from: CutFrom, wanted: Wanted, removals: u64) -> Self {
        Self {
            list: Vec::new(),
            unfinished: 0,
            kept: 0,
            bytes_max,
            cut_from,
            wanted,
            removals,
            cut: None,
        }
    }

    /// Adds the next turn of the page, unless the turns then keep too much.
    fn push(&mut self, fold: Fold) {
        self.kept += fold.kept_bytes();
        let opened = fold.opened_at().1;
        if self.kept > self.bytes_max && !self.list.is_empty() {
            self.cut = Some(opened);
        } else {
            self.list.push(Turn {
                fold,
                from: opened + 1,
            });
        }
    }

    fn count_anew(&mut self) {
        self.unfinished = self.list.len();
        self.kept = self.list.iter().map(|turn| turn.fold.kept_bytes()).sum();
        self.cut_excess();
    }

    /// Returns the next seq to read after `read`. It skips events that every unfinished turn has
    /// already read.
    fn next_from(&self, read: Seq) -> Option<Seq> {
        let unfinished = self.list.iter().filter(|turn| !turn.fold.is_final());
        unfinished.map(|turn| turn.from.max(read + 1)).min()
    }

    /// Leaves out turns at the end of the page until the rest keeps at most `bytes_max`. If one
    /// turn alone keeps more, its earliest outputs are left out.
    fn cut_excess(&mut self) {
        while self.kept > self.bytes_max && self.list.len() > 1 {
            let at = if self.cut_from == CutFrom::Beginning {
                0
            } else {
                self.list.len() - 1
            };
            let Turn { fold, .. } = self.list.remove(at);
            self.cut = Some(fold.opened_at().1);
            self.kept -= fold.kept_bytes();
            self.unfinished -= usize::from(!fold.is_final());
        }
        if let (true, [Turn { fold, .. }]) = (self.kept > self.bytes_max, &mut *self.list) {
            fold.omit_outputs(self.bytes_max);
            self.kept = fold.kept_bytes();
        }
    }

    /// Leaves out the turns that are over and those beyond the limit, if open ones are wanted.
    fn leave_wanted(&mut self) {
        let Wanted::Open(limit) = self.wanted else {
            return;
        };
        self.list.retain(|turn| !turn.fold.is_final());
        let excess = self.list.len().saturating_sub(limit);
        let first_left_out = match self.cut_from {
            CutFrom::Beginning => self.list.drain(..excess).next_back(),
            CutFrom::End => self.list.drain(self.list.len() - excess..).next(),
        };
        let cut = first_left_out.map(|turn| turn.fold.opened_at().1);
        self.cut = cut.or(self.cut);
    }

    fn into_folds(self) -> Vec<Fold> {
        self.list.into_iter().map(|turn| turn.fold).collect()
    }
}

impl Visitor for Turns {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        let seq = frame.view.seq;
        let place = frame.view.message_id.and_then(|id| {
            self.list
                .binary_search_by_key(&id, |turn| turn.fold.id())
                .ok()
        });
        let Some(Turn { fold, .. }) = place.and_then(|place| self.list.get_mut(place)) else {
            return ControlFlow::Continue(());
        };
        let (was_unfinished, kept) = (self.unfinished, fold.kept_bytes());
        let was_final = fold.is_final();
        fold.apply(frame.view);
        if fold.is_final() && !was_final {
            self.unfinished -= 1;
            if self.wanted != Wanted::All {
                // It leaves its memory to the open turns, so that the page reaches further.
                fold.drop_content();
            }
        }
        self.kept = self.kept - kept + fold.kept_bytes();
        self.cut_excess();
        let reads_on = self.unfinished == was_unfinished || self.next_from(seq) == Some(seq + 1);
        if reads_on {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    }

    fn lookahead(&self) -> Seq {
        LOOKAHEAD_EVENTS - 1
    }
}
