//! Reads turns from the store: finds the event that opened one, and folds what follows it.

use std::ops::ControlFlow;

use crate::codec::EventFrame;
use crate::error::{Error, Result};
use crate::event::{Event, Seq};
use crate::ids::MessageId;
use crate::message::{Fold, Message, MessagePage};
use crate::read::{EventPage, Page, Store, Visitor};
use crate::session::SessionId;
use crate::user_message::EVENT_TYPE;

/// So many events are read at once on the way to a turn's end. Most turns are shorter.
const LOOKAHEAD_EVENTS: Seq = 64;

impl Store {
    /// The turn that a message stands for.
    pub(crate) fn message(&self, id: MessageId) -> Result<Message> {
        let fold = self.look_at(id.event_id(), |opening| Fold::open(opening.view))?.ok_or(Error::UnknownMessage { id })??;
        self.fold(vec![fold])?.pop().ok_or(Error::UnknownMessage { id })
    }

    /// The turns that were opened in a stretch of a session.
    pub(crate) fn messages(&self, session: &SessionId, page: Page) -> Result<MessagePage> {
        let opened = self.list(session, page.types([EVENT_TYPE]))?;
        let folds = opened.events.iter().map(Event::view).map(Fold::open).collect::<Result<Vec<_>>>()?;
        let messages = self.fold(folds)?;
        let EventPage { has_more, first, last, tail, tail_id, .. } = opened;
        Ok(MessagePage { messages, has_more, first, last, tail, tail_id })
    }

    /// Reads on from the first of some turns of a session, which are in either order, until all of them are over, or the session
    /// ends. One pass for all of them: where turns are left without an end, each pass would read the rest of the session.
    fn fold(&self, mut folds: Vec<Fold>) -> Result<Vec<Message>> {
        let is_newest_first = !folds.is_sorted_by_key(Fold::id);
        if is_newest_first {
            folds.reverse();
        }
        if let Some((session, opened)) = folds.first().map(Fold::opened_at) {
            let session = session.clone();
            let head = self.known_head(&session)?;
            let mut turns = Turns { unfinished: folds.len(), folds };
            self.visit(&session, &head, opened + 1..=head.last, &mut turns)?;
            folds = turns.folds;
        }
        if is_newest_first {
            folds.reverse();
        }
        Ok(folds.into_iter().map(Fold::into_message).collect())
    }
}

/// Turns of a session, the first to be opened first.
struct Turns {
    folds: Vec<Fold>,
    unfinished: usize,
}

impl Visitor for Turns {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        let place = frame.view.message_id.and_then(|id| self.folds.binary_search_by_key(&id, Fold::id).ok());
        if let Some(fold) = place.and_then(|place| self.folds.get_mut(place)) {
            let was_final = fold.is_final();
            fold.apply(frame.view);
            self.unfinished -= usize::from(fold.is_final() && !was_final);
        }
        if self.unfinished == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn lookahead(&self) -> Seq {
        LOOKAHEAD_EVENTS - 1
    }
}
