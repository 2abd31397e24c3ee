//! Reads turns from the store: finds the event that opened one, and folds what follows it.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::codec::EventFrame;
use crate::error::{Error, Result};
use crate::event::{Event, Seq};
use crate::ids::MessageId;
use crate::message::{Fold, Message, MessagePage};
use crate::read::{EventPage, Page, Store, Visitor};
use crate::session::{Head, SessionId};
use crate::user_message::EVENT_TYPE;

/// So many events are read at once on the way to a turn's end. Most turns are shorter.
const LOOKAHEAD_EVENTS: Seq = 64;

/// A turn without an end that has more events behind it is remembered, so that the next read goes on from there.
const REMEMBERED_EVENTS_MIN: Seq = 1_000;

/// The memory for turns that are remembered.
const REMEMBERED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How far turns without an end have been read.
pub(crate) struct RememberedTurns(quick_cache::sync::Cache<Reading, Arc<Remembered>, KeptBytes>);

/// A turn, read with so many bytes for what it keeps.
type Reading = (MessageId, usize);

struct Remembered {
    fold: Fold,
    /// All of the session's events up to this seq have been applied.
    through: Seq,
}

#[derive(Clone)]
struct KeptBytes;

impl quick_cache::Weighter<Reading, Arc<Remembered>> for KeptBytes {
    fn weight(&self, _reading: &Reading, remembered: &Arc<Remembered>) -> u64 {
        (size_of::<Remembered>() + remembered.fold.kept_bytes()) as u64
    }
}

impl Default for RememberedTurns {
    fn default() -> Self {
        Self(quick_cache::sync::Cache::with_weighter(1_000, REMEMBERED_BYTES_MAX, KeptBytes))
    }
}

impl Store {
    /// The turn that a message stands for. The outputs that it keeps take about so much memory.
    pub(crate) fn message(&self, id: MessageId, bytes_max: usize) -> Result<Message> {
        let fold = self.look_at(id.event_id(), |opening| Fold::open(opening.view))?.ok_or(Error::UnknownMessage { id })??;
        let mut turns = Turns::new(bytes_max, CutFrom::End);
        turns.push(fold);
        self.fold(&mut turns)?;
        turns.into_messages().pop().ok_or(Error::UnknownMessage { id })
    }

    /// The turns that were opened in a stretch of a session, as far as what they keep does not take too much memory; one at least.
    pub(crate) fn messages(&self, session: &SessionId, page: Page) -> Result<MessagePage> {
        let (bytes_max, newest_first) = (page.checked_bytes(&self.options), page.is_newest_first());
        let mut opened = self.list(session, page.types([EVENT_TYPE]))?;
        let mut turns = Turns::new(bytes_max, if newest_first { CutFrom::Beginning } else { CutFrom::End });
        for event in std::mem::take(&mut opened.events) {
            if turns.cut.is_none() {
                turns.push(Fold::open(Event::view(&event))?);
            }
        }
        if newest_first {
            turns.folds.reverse();
        }
        self.fold(&mut turns)?;
        let EventPage { mut has_more, mut first, mut last, tail, tail_id, .. } = opened;
        if let Some(cut) = turns.cut {
            has_more = true;
            if newest_first { first = cut + 1 } else { last = cut - 1 }
        }
        let mut messages = turns.into_messages();
        if newest_first {
            messages.reverse();
        }
        Ok(MessagePage { messages, has_more, first, last, tail, tail_id })
    }

    /// Reads on from the first of some turns of a session until all of them are over, or the session ends. One pass for all of them: where turns
    /// are left without an end, each pass would read the rest of the session.
    fn fold(&self, turns: &mut Turns) -> Result<()> {
        let Some((session, _opened)) = turns.folds.first().map(Fold::opened_at) else { return Ok(()) };
        let session = session.clone();
        let head = self.known_head(&session)?;
        let from = turns.folds.iter_mut().map(|fold| self.recall(fold, turns.bytes_max, &head)).min();
        turns.count_anew();
        let Some(from) = from else { return Ok(()) };
        self.visit(&session, &head, from..=head.last, turns)?;
        turns.folds.iter().for_each(|fold| self.remember(fold, turns.bytes_max, head.last));
        Ok(())
    }

    /// Where to go on with a turn: behind what was read of it before, if that is remembered.
    fn recall(&self, fold: &mut Fold, bytes_max: usize, head: &Head) -> Seq {
        match self.turns.0.get(&(fold.id(), bytes_max)).filter(|remembered| remembered.through <= head.last) {
            Some(remembered) => {
                *fold = remembered.fold.clone();
                remembered.through + 1
            }
            None => fold.opened_at().1 + 1,
        }
    }

    /// Remembers how far a turn was read that has no end yet and much behind it.
    fn remember(&self, fold: &Fold, bytes_max: usize, through: Seq) {
        let (_session, opened) = fold.opened_at();
        if !fold.is_final() && through - opened >= REMEMBERED_EVENTS_MIN {
            self.turns.0.insert((fold.id(), bytes_max), Arc::new(Remembered { fold: fold.clone(), through }));
        }
    }
}

/// Turns of a session, the first to be opened first, and what they may keep together.
struct Turns {
    folds: Vec<Fold>,
    unfinished: usize,
    /// What the folds keep.
    kept: usize,
    bytes_max: usize,
    from: CutFrom,
    /// Where the turn was opened that was left out last, if any.
    cut: Option<Seq>,
}

/// Which turns are left out when they keep too much: those at the end of the page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CutFrom {
    Beginning,
    End,
}

impl Turns {
    fn new(bytes_max: usize, from: CutFrom) -> Self {
        Self { folds: Vec::new(), unfinished: 0, kept: 0, bytes_max, from, cut: None }
    }

    /// Adds the next turn of the page, unless that is too much.
    fn push(&mut self, fold: Fold) {
        self.kept += fold.kept_bytes();
        if self.kept > self.bytes_max && !self.folds.is_empty() {
            self.cut = Some(fold.opened_at().1);
        } else {
            self.folds.push(fold);
        }
    }

    fn count_anew(&mut self) {
        self.unfinished = self.folds.len();
        self.kept = self.folds.iter().map(Fold::kept_bytes).sum();
        self.cut_excess();
    }

    /// Leaves out turns at the end of the page, and outputs of the last that is left, until what is kept is little enough.
    fn cut_excess(&mut self) {
        while self.kept > self.bytes_max && self.folds.len() > 1 {
            let at = if self.from == CutFrom::Beginning { 0 } else { self.folds.len() - 1 };
            let fold = self.folds.remove(at);
            self.cut = Some(fold.opened_at().1);
            self.kept -= fold.kept_bytes();
            self.unfinished -= usize::from(!fold.is_final());
        }
        if let (true, [fold]) = (self.kept > self.bytes_max, &mut *self.folds) {
            fold.omit_outputs(self.bytes_max);
            self.kept = fold.kept_bytes();
        }
    }

    fn into_messages(self) -> Vec<Message> {
        self.folds.into_iter().map(Fold::into_message).collect()
    }
}

impl Visitor for Turns {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        let place = frame.view.message_id.and_then(|id| self.folds.binary_search_by_key(&id, Fold::id).ok());
        if let Some(fold) = place.and_then(|place| self.folds.get_mut(place)) {
            let (was_final, kept) = (fold.is_final(), fold.kept_bytes());
            fold.apply(frame.view);
            self.unfinished -= usize::from(fold.is_final() && !was_final);
            self.kept = self.kept - kept + fold.kept_bytes();
            self.cut_excess();
        }
        if self.unfinished == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn lookahead(&self) -> Seq {
        LOOKAHEAD_EVENTS - 1
    }
}
