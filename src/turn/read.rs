//! Reads turns from the store: finds the event that opened a turn and folds the events after it.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::codec::EventFrame;
use crate::model::{Error, Event, Head, MessageId, Result, Seq, SessionId, USER_MESSAGE};
use crate::read::{Page, PageRequest, Store, Visitor};
use crate::turn::fold::Fold;

/// The events read at once on the way to a turn's end. Most turns are shorter.
const LOOKAHEAD_EVENTS: Seq = 64;

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

/// A turn, and the most bytes that it may keep.
type Reading = (MessageId, usize);

struct Remembered {
    fold: Fold,
    /// All events of the session up to this seq have been applied.
    through: Seq,
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

    /// Returns the turn of a message. It keeps outputs up to about `bytes_max`.
    pub(crate) fn turn(&self, id: MessageId, bytes_max: usize) -> Result<Fold> {
        let fold = self
            .store
            .look_at(id.event_id(), |opening| Fold::open(opening.view))?
            .ok_or(Error::UnknownMessage { id })??;
        let mut turns = Turns::new(bytes_max, CutFrom::End);
        turns.push(fold);
        self.fold(&mut turns)?;
        turns.into_folds().pop().ok_or(Error::UnknownMessage { id })
    }

    /// Returns the turns that were opened in the requested range, until they keep too much memory.
    /// Returns at least one if there is one.
    pub(crate) fn page(&self, session: &SessionId, request: PageRequest) -> Result<Page<Fold>> {
        let options = &self.store.options;
        let (bytes_max, newest_first) = (request.checked_bytes(options), request.is_newest_first());
        let openings = request.clone().types([USER_MESSAGE]);
        let mut opened = self.store.list(session, openings)?;
        let cut_from = if newest_first {
            CutFrom::Beginning
        } else {
            CutFrom::End
        };
        let mut turns = Turns::new(bytes_max, cut_from);
        for event in std::mem::take(&mut opened.items) {
            if turns.cut.is_none() {
                turns.push(Fold::open(Event::view(&event))?);
            }
        }
        if newest_first {
            turns.list.reverse();
        }
        self.fold(&mut turns)?;
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
        let head = self.store.known_head(&session)?;
        turns
            .list
            .iter_mut()
            .for_each(|turn| self.recall(turn, turns.bytes_max, &head));
        turns.count_anew();
        let mut read = 0;
        while let Some(from) = turns.next_from(read).filter(|from| *from <= head.last) {
            read = self.store.visit(&session, &head, from..=head.last, turns)?;
        }
        turns
            .list
            .iter()
            .for_each(|turn| self.remember(&turn.fold, turns.bytes_max, head.last));
        Ok(())
    }

    /// Resumes a turn after the events already read for it, if the turn is remembered.
    fn recall(&self, turn: &mut Turn, bytes_max: usize, head: &Head) {
        let remembered = self.remembered.get(&(turn.fold.id(), bytes_max));
        if let Some(remembered) = remembered.filter(|remembered| remembered.through <= head.last) {
            *turn = Turn {
                fold: remembered.fold.clone(),
                from: remembered.through + 1,
            };
        }
    }

    /// Remembers how far a turn was read, if it is unfinished and many events follow it.
    fn remember(&self, fold: &Fold, bytes_max: usize, through: Seq) {
        let (_session, opened) = fold.opened_at();
        if !fold.is_final() && through - opened >= REMEMBERED_EVENTS_MIN {
            self.remembered.insert(
                (fold.id(), bytes_max),
                Arc::new(Remembered {
                    fold: fold.clone(),
                    through,
                }),
            );
        }
    }
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

impl Turns {
    fn new(bytes_max: usize, cut_from: CutFrom) -> Self {
        Self {
            list: Vec::new(),
            unfinished: 0,
            kept: 0,
            bytes_max,
            cut_from,
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
        self.unfinished -= usize::from(fold.is_final() && !was_final);
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
