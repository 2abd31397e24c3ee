//! The sessions as they are after some changes, and their comparison with a log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use sessionlog::{
    Error, Event, EventId, Message, MessageId, PageRequest, SessionLog, SessionQuery,
};

use super::step::{
    Act, Append, End, Kind, NAME, SESSIONS, Step, contents, events_of, name, reason, word,
};

/// Says what is wrong unless something holds.
macro_rules! ensure {
    ($holds:expr, $wrong:expr $(,)?) => {
        if $holds { Ok(()) } else { Err($wrong) }
    };
}

/// The events that are looked up by ID in a check.
const SAMPLE: usize = 12;

/// The most events and messages of a session in a check.
const PAGE: usize = 1_000;

/// All sessions that are changed.
#[derive(Debug, Clone, Default)]
pub(super) struct World {
    pub slots: BTreeMap<u8, Slot>,
    /// All events that were ever appended.
    pub events: BTreeMap<EventId, Stored>,
    /// The changes that deleted a session.
    pub deletions: BTreeSet<u32>,
}

/// A name, under which sessions are created and deleted.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub generation: u32,
    pub now: Option<Session>,
    /// The keys of batches that were removed.
    pub forgotten: Vec<u32>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Session {
    pub last: u64,
    /// The kept events by their seqs.
    pub events: BTreeMap<u64, EventId>,
    pub closed: bool,
    /// The change that gave it its title.
    title: Option<u32>,
    /// The parent, its generation and the fork point.
    parent: Option<(u8, u32, u64)>,
    /// The batches of its own that are kept whole, by their keys.
    pub batches: BTreeMap<u32, Landed>,
}

/// Where a batch is.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub step: u32,
    pub append: Append,
    pub seqs: RangeInclusive<u64>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    step: u32,
    index: u32,
    pub session: u8,
    pub generation: u32,
    kind: Kind,
    /// The event that opened its turn.
    turn: Option<EventId>,
    pub redacted: bool,
}

impl Session {
    pub(super) fn first(&self) -> u64 {
        self.events.keys().next().copied().unwrap_or(self.last + 1)
    }

    fn holds(&self, id: EventId) -> bool {
        self.events.values().any(|held| *held == id)
    }
}

impl World {
    pub(super) fn session(&self, session: u8) -> Option<&Session> {
        self.slots.get(&session)?.now.as_ref()
    }

    /// Applies a change. `id` is that of the first event that it appended.
    pub(super) fn apply(&mut self, step: &Step, id: Option<EventId>) {
        let Step {
            number,
            session,
            act,
        } = *step;
        if let Act::Redact { event } = act {
            self.events
                .get_mut(&event)
                .expect("it was appended")
                .redacted = true;
            return;
        }
        if let Act::Fork { parent, at } = act {
            return self.fork(session, parent, at);
        }
        let slot = self.slots.entry(session).or_default();
        if matches!(act, Act::Create | Act::Append(_)) && slot.now.is_none() {
            slot.begin(Session::default());
        }
        let generation = slot.generation;
        let now = slot.now.as_mut().expect("the session is there");
        match act {
            Act::Create | Act::Describe => now.title = Some(number),
            Act::Close => now.closed = true,
            Act::Reopen => now.closed = false,
            Act::Trim { before } => slot.trim(before),
            Act::Delete => {
                slot.forgotten.extend(now.batches.keys());
                slot.now = None;
                self.deletions.insert(number);
            }
            Act::Append(append) => {
                let id = id.expect("an append has an ID");
                let seqs = now.last + 1..=now.last + u64::from(events_of(number));
                now.last = *seqs.end();
                now.closed |= append.end == End::Closing;
                slot.forgotten.retain(|key| *key != append.key);
                for (index, seq) in (0..).zip(seqs.clone()) {
                    let event = nth(id, index);
                    now.events.insert(seq, event);
                    let stored = Stored {
                        step: number,
                        index,
                        session,
                        generation,
                        kind: append.kind(index),
                        turn: match append.kind(index) {
                            Kind::Opening => Some(event),
                            Kind::Note => None,
                            Kind::Answer => append.turn,
                        },
                        redacted: false,
                    };
                    self.events.insert(event, stored);
                }
                let landed = Landed {
                    step: number,
                    append,
                    seqs,
                };
                now.batches.insert(append.key, landed);
            }
            Act::Redact { .. } | Act::Fork { .. } => unreachable!("they are handled above"),
        }
    }

    fn fork(&mut self, child: u8, parent: u8, at: u64) {
        let generation = self.slots.get(&parent).map_or(0, |slot| slot.generation);
        let from = self.session(parent).expect("the parent is there");
        let shared = from.events.range(..=at);
        let forked = Session {
            last: at,
            events: shared.map(|(seq, id)| (*seq, *id)).collect(),
            title: from.title,
            parent: Some((parent, generation, at)),
            ..Session::default()
        };
        self.slots.entry(child).or_default().begin(forked);
    }

    /// Whether the session that an event was appended to keeps it.
    fn is_kept_by_owner(&self, id: EventId, stored: &Stored) -> bool {
        let slot = self.slots.get(&stored.session);
        slot.is_some_and(|slot| {
            slot.generation == stored.generation
                && slot.now.as_ref().is_some_and(|now| now.holds(id))
        })
    }

    /// Compares the log with all of this, and says how it differs.
    pub(super) fn check(&self, log: &SessionLog) -> Result<(), String> {
        for session in 0..SESSIONS {
            self.check_session(log, session)?;
        }
        self.check_names(log)?;
        // The newest, and some of the others.
        let stride = (self.events.len() / SAMPLE).max(1);
        let newest = self.events.iter().rev().take(SAMPLE);
        for (id, stored) in newest.chain(self.events.iter().step_by(stride)) {
            self.check_event(log, *id, stored)?;
        }
        Ok(())
    }

    fn check_session(&self, log: &SessionLog, session: u8) -> Result<(), String> {
        let id = name(session);
        let slot = self.slots.get(&session);
        let Some((slot, now)) = slot.and_then(|slot| Some((slot, slot.now.as_ref()?))) else {
            let unknown = [
                log.session(&id).map(drop),
                log.head(&id).map(drop),
                log.list(&id, PageRequest::new()).map(drop),
                log.messages(&id, PageRequest::new()).map(drop),
            ];
            let is_unknown =
                |got: &Result<(), Error>| matches!(got, Err(Error::UnknownSession { .. }));
            return ensure!(unknown.iter().all(is_unknown), {
                format!("{id} should not be there: {unknown:?}")
            });
        };
        let info = log
            .session(&id)
            .map_err(|error| format!("{id}: {error:?}"))?;
        let parent = info.parent.as_ref();
        let got = (
            (info.generation, info.first, info.last, info.events),
            (info.closed, info.title.clone()),
            parent.map(|parent| (parent.id.clone(), parent.generation, parent.at)),
        );
        let expected = (
            (
                slot.generation,
                now.first(),
                now.last,
                now.events.len() as u64,
            ),
            (now.closed, now.title.map(title)),
            now.parent
                .map(|(parent, generation, at)| (name(parent), generation, at)),
        );
        ensure!(got == expected, {
            format!("{id} is {got:?} and should be {expected:?}")
        })?;
        self.check_events(log, session, now)?;
        self.check_messages(log, session, now)
    }

    fn check_events(&self, log: &SessionLog, session: u8, now: &Session) -> Result<(), String> {
        let id = name(session);
        let page = log
            .list(&id, PageRequest::new().limit(PAGE))
            .map_err(|error| format!("{id} cannot be listed: {error:?}"))?;
        let got = page.items.iter().map(|event| (event.seq, event.id));
        let expected = now.events.iter().map(|(seq, event)| (*seq, *event));
        ensure!(got.clone().eq(expected), {
            let got: Vec<_> = got.collect();
            format!("{id} lists {got:?} and should list {:?}", now.events)
        })?;
        page.items.iter().try_for_each(|event| {
            ensure!(event.session_id == id, {
                format!("{event:?} is listed in {id}")
            })?;
            self.check_contents(event)
        })
    }

    fn check_contents(&self, event: &Event) -> Result<(), String> {
        let Some(stored) = self.events.get(&event.id) else {
            return Err(format!("{event:?} was never appended"));
        };
        let (event_type, data) = contents(stored.kind, stored.step, stored.index);
        let data = if stored.redacted { String::new() } else { data };
        let is_right = event.event_type == event_type
            && event.redacted == stored.redacted
            && event.data == data.as_bytes()
            && event.message_id == stored.turn.map(MessageId::from);
        ensure!(is_right, format!("{event:?} should be {stored:?}"))
    }

    fn check_messages(&self, log: &SessionLog, session: u8, now: &Session) -> Result<(), String> {
        let id = name(session);
        let page = log
            .messages(&id, PageRequest::new().limit(PAGE))
            .map_err(|error| format!("the messages of {id} cannot be read: {error:?}"))?;
        let got = page.items.iter().map(|message| message.id.event_id());
        let is_opening = |event: &&EventId| self.events[*event].kind == Kind::Opening;
        let expected = now.events.values().filter(is_opening).copied();
        ensure!(got.clone().eq(expected), {
            format!("{id} has the messages {:?}", got.collect::<Vec<_>>())
        })?;
        page.items
            .iter()
            .try_for_each(|message| self.check_message(message, now))
    }

    /// Checks a fold: it has the texts of the turn's events that are kept, and no other.
    fn check_message(&self, message: &Message, now: &Session) -> Result<(), String> {
        let turn = message.id.event_id();
        let text = |id: &EventId| {
            let stored = &self.events[id];
            let shown = stored.turn == Some(turn) && !stored.redacted;
            shown.then(|| {
                (
                    stored.kind == Kind::Opening,
                    word(stored.step, stored.index),
                )
            })
        };
        let (opening, answers): (Vec<_>, Vec<_>) = now
            .events
            .values()
            .filter_map(text)
            .partition(|(opens, _)| *opens);
        let said = message.content.iter().filter_map(|block| block.as_text());
        let output = message
            .output
            .iter()
            .filter_map(|said| said["text"].as_str());
        let is_right = said.eq(opening.iter().map(|(_, text)| text))
            && output.eq(answers.iter().map(|(_, text)| text));
        ensure!(is_right, {
            format!("{message:?} should have {opening:?} and {answers:?}")
        })
    }

    /// Looks an event up by its ID, and its message if it opened a turn.
    fn check_event(&self, log: &SessionLog, id: EventId, stored: &Stored) -> Result<(), String> {
        let mut keepers: Vec<u8> = (0..SESSIONS)
            .filter(|session| self.session(*session).is_some_and(|now| now.holds(id)))
            .collect();
        if self.is_kept_by_owner(id, stored) {
            keepers = vec![stored.session];
        }
        let is_keeper =
            |found: &sessionlog::SessionId| keepers.iter().any(|session| name(*session) == *found);
        match log.event(id) {
            Ok(event) => {
                ensure!(is_keeper(&event.session_id), {
                    format!("{event:?} should be in one of {keepers:?}")
                })?;
                self.check_contents(&event)?;
            }
            Err(Error::UnknownEvent { .. }) if keepers.is_empty() => {}
            Err(error) => return Err(format!("{id} is kept by {keepers:?}: {error:?}")),
        }
        if stored.kind != Kind::Opening {
            return Ok(());
        }
        match log.message(MessageId::from(id)) {
            Ok(message) => {
                let keeper = keepers
                    .iter()
                    .find(|session| name(**session) == message.session_id)
                    .and_then(|session| self.session(*session));
                let Some(now) = keeper else {
                    return Err(format!("{message:?} should be in one of {keepers:?}"));
                };
                self.check_message(&message, now)
            }
            Err(Error::UnknownMessage { .. }) if keepers.is_empty() => Ok(()),
            Err(error) => Err(format!("turn {id} is kept by {keepers:?}: {error:?}")),
        }
    }

    fn check_names(&self, log: &SessionLog) -> Result<(), String> {
        let query = SessionQuery::by_id().prefix(NAME).limit(PAGE);
        let page = log
            .sessions(query)
            .map_err(|error| format!("sessions cannot be listed: {error:?}"))?;
        let got = page.items.iter().map(|info| info.id.clone());
        let is_there = |session: &u8| self.session(*session).is_some();
        ensure!(
            got.clone().eq((0..SESSIONS).filter(is_there).map(name)),
            format!("the sessions are {:?}", got.collect::<Vec<_>>()),
        )
    }

    /// Checks what the whole feed shows of the sessions: these events, and deletions with these
    /// reasons.
    pub(super) fn check_fed(&self, events: &[Event], reasons: &[String]) -> Result<(), String> {
        let kept = self
            .events
            .iter()
            .filter(|(id, stored)| self.is_kept_by_owner(**id, stored))
            .map(|(id, _)| *id);
        let got = events.iter().map(|event| event.id);
        ensure!(got.clone().eq(kept), {
            format!("the feed shows {:?}", got.collect::<Vec<_>>())
        })?;
        events
            .iter()
            .try_for_each(|event| self.check_contents(event))?;
        let expected = self.deletions.iter().map(|step| reason(*step));
        ensure!(reasons.iter().cloned().eq(expected), {
            format!("the feed shows the deletions {reasons:?}")
        })
    }
}

impl Slot {
    fn trim(&mut self, before: u64) {
        let Some(now) = &mut self.now else { return };
        now.events.retain(|seq, _| *seq >= before);
        for (key, batch) in std::mem::take(&mut now.batches) {
            if *batch.seqs.start() >= before {
                now.batches.insert(key, batch);
            } else if *batch.seqs.end() < before {
                self.forgotten.push(key);
            }
        }
    }

    fn begin(&mut self, session: Session) {
        self.generation += 1;
        self.now = Some(session);
    }
}

/// The title that a change gives.
pub(super) fn title(step: u32) -> String {
    format!("title {step}")
}

/// Returns the ID of an event of a batch.
pub(super) fn nth(first: EventId, index: u32) -> EventId {
    EventId::from_u128(first.to_u128() + u128::from(index))
}

/// Whether an event is the first one that an append stored.
pub(super) fn is_first_of(event: &Event, append: &Append, step: u32) -> bool {
    event.data == contents(append.kind(0), step, 0).1.as_bytes()
}
