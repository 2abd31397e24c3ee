//! Reads turns from the store: finds the event that opened one, and folds what follows it.

use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::MessageId;
use crate::message::{Fold, Message, MessagePage};
use crate::read::{Appetite, Page, Store};
use crate::session::SessionId;
use crate::user_message::EVENT_TYPE;

/// What is read at once on the way to a turn's end. Most turns are shorter.
const APPETITE: Appetite = Appetite { events: 64, bytes: 1024 * 1024 };

impl Store {
    /// The turn that a message stands for.
    pub(crate) fn message(&self, id: MessageId) -> Result<Message> {
        let opening = self.event(id.event_id())?.ok_or(Error::UnknownMessage { id })?;
        self.fold(&opening)
    }

    /// The turns that were opened in a stretch of a session.
    pub(crate) fn messages(&self, session: &SessionId, page: Page) -> Result<MessagePage> {
        let opened = self.list(session, page.types([EVENT_TYPE]))?;
        let messages = opened.events.iter().map(|opening| self.fold(opening)).collect::<Result<_>>()?;
        Ok(MessagePage { messages, has_more: opened.has_more, first: opened.first, last: opened.last, tail: opened.tail })
    }

    /// Reads on from the opening event until the turn is over, or the session ends.
    fn fold(&self, opening: &Event) -> Result<Message> {
        let mut fold = Fold::open(opening)?;
        let head = self.known_head(&opening.session_id)?;
        let mut next = opening.seq + 1;
        while !fold.is_final() && next <= head.last {
            let events = self.events_from(&opening.session_id, &head, next..=head.last, APPETITE)?;
            for event in &events {
                fold.apply(event);
            }
            next += events.len() as u64;
        }
        Ok(fold.into_message())
    }
}
