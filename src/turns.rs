//! Reads turns from the store: finds the event that opened one, and folds what follows it.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::MessageId;
use crate::message::{Fold, Message, MessagePage};
use crate::read::{Appetite, EventPage, Page, Store};
use crate::session::SessionId;
use crate::user_message::EVENT_TYPE;

/// What is read at once on the way to a turn's end. Most turns are shorter.
const APPETITE: Appetite = Appetite { events: 64, bytes: 1024 * 1024 };

impl Store {
    /// The turn that a message stands for.
    pub(crate) fn message(&self, id: MessageId) -> Result<Message> {
        let opening = self.event(id.event_id())?.ok_or(Error::UnknownMessage { id })?;
        self.fold(&[opening])?.pop().ok_or(Error::UnknownMessage { id })
    }

    /// The turns that were opened in a stretch of a session.
    pub(crate) fn messages(&self, session: &SessionId, page: Page) -> Result<MessagePage> {
        let opened = self.list(session, page.types([EVENT_TYPE]))?;
        let messages = self.fold(&opened.events)?;
        let EventPage { has_more, first, last, tail, tail_id, .. } = opened;
        Ok(MessagePage { messages, has_more, first, last, tail, tail_id })
    }

    /// Reads on from the first of some opening events of a session, in either order, until all the turns are over, or the session
    /// ends. One pass for all of them: where turns are left without an end, each pass would read the rest of the session.
    fn fold(&self, openings: &[Event]) -> Result<Vec<Message>> {
        let mut folds = openings.iter().map(Fold::open).collect::<Result<Vec<_>>>()?;
        let Some(first) = openings.iter().min_by_key(|opening| opening.seq) else { return Ok(Vec::new()) };
        let places: HashMap<_, _> = openings.iter().map(|opening| MessageId::from(opening.id)).zip(0..).collect();
        let mut unfinished = folds.len();
        let head = self.known_head(&first.session_id)?;
        let mut next = first.seq + 1;
        while unfinished > 0 && next <= head.last {
            let events = self.events_from(&first.session_id, &head, next..=head.last, APPETITE)?;
            for event in &events {
                let place = event.message_id.and_then(|id| places.get(&id));
                let Some(fold) = place.and_then(|&place: &usize| folds.get_mut(place)) else { continue };
                let was_final = fold.is_final();
                fold.apply(event);
                unfinished -= usize::from(fold.is_final() && !was_final);
            }
            next += events.len() as u64;
        }
        Ok(folds.into_iter().map(Fold::into_message).collect())
    }
}
