//! The writer that makes the changes, chosen at random from those that the sessions allow.

use std::ops::ControlFlow;

use sessionlog::{Delete, Error, EventId, Fork, NewSession, SessionLog, SessionPatch};

use super::super::report::Dice;
use super::Changes;
use super::step::{Act, Append, End, SESSIONS, Step, batch, name, reason};
use super::world::{Session, Slot, nth, title};

/// A session with more events than this is trimmed or deleted sooner.
const MANY_EVENTS: usize = 25;

/// Backs a log up.
pub(crate) type BackUp<'a> = dyn Fn(&SessionLog) -> Result<(), Error> + 'a;

/// The writer. It alone changes these sessions, so it knows them.
pub(crate) struct Changer<'a> {
    pub changes: Changes,
    /// Reports a line.
    pub say: &'a dyn Fn(String),
    /// Backs the log up, where the campaign wants it.
    pub backup: Option<&'a BackUp<'a>>,
}

impl Changer<'_> {
    /// Makes some changes. After an error nothing more must be tried until the log is opened
    /// again, except after one that says that nothing was written.
    pub(crate) fn change(
        &mut self,
        log: &SessionLog,
        dice: &mut Dice,
        changes: u64,
    ) -> Result<(), Error> {
        for _ in 0..changes {
            self.change_once(log, dice)?;
            if dice.one_in(4) {
                self.retry(log, dice)?;
            }
            if dice.one_in(8) {
                let compacted = log.compact(|_| ControlFlow::Continue(()))?;
                (self.say)(format!("did erased {}", compacted.segments));
            }
            let backup = self.backup.filter(|_| dice.one_in(8));
            if let Some(backup) = backup {
                (self.say)("backup".to_owned());
                backup(log)?;
                (self.say)("backed".to_owned());
                (self.say)("did backups 1".to_owned());
            }
            self.tell_merges(log);
        }
        Ok(())
    }

    /// Reports the merges since the log was opened, if there were more.
    fn tell_merges(&mut self, log: &SessionLog) {
        let merges = log.stats().merges;
        if merges != self.changes.merges {
            self.tell(format!("merges {merges}"));
        }
    }

    fn change_once(&mut self, log: &SessionLog, dice: &mut Dice) -> Result<(), Error> {
        let Some((session, act)) = self.changes.choose(dice) else {
            return Ok(());
        };
        let step = Step {
            number: self.changes.next,
            session,
            act,
        };
        self.tell(format!("change {step}"));
        let id = carry_out(log, &step)?;
        self.tell(format!("changed {}", super::told(&step, id)));
        Ok(())
    }

    fn tell(&mut self, line: String) {
        self.changes.note(&line.split(' ').collect::<Vec<_>>());
        (self.say)(line);
    }

    /// Appends a batch again that is kept whole, which must store nothing.
    fn retry(&self, log: &SessionLog, dice: &mut Dice) -> Result<(), Error> {
        let session = u8::try_from(dice.below(SESSIONS.into())).expect("few");
        let world = &self.changes.world;
        let Some(now) = world.session(session).filter(|now| !now.batches.is_empty()) else {
            return Ok(());
        };
        let nth = dice.index(now.batches.len());
        let landed = now.batches.values().nth(nth).expect("it is one of them");
        let ids = now.events.range(landed.seqs.clone()).map(|(_, id)| *id);
        if ids.clone().any(|id| world.events[&id].redacted) {
            return Ok(());
        }
        let ack = log.append(&name(session), batch(&landed.append, landed.step))?;
        assert!(
            ack.replayed && ack.events.iter().map(|event| event.id).eq(ids),
            "the retry of {landed:?} is no replay: {ack:?}"
        );
        Ok(())
    }
}

/// Makes a change. Returns the ID of the first event that it appended.
fn carry_out(log: &SessionLog, step: &Step) -> Result<Option<EventId>, Error> {
    let (session, number) = (name(step.session), step.number);
    match step.act {
        Act::Append(append) => {
            let ack = log.append(&session, batch(&append, number))?;
            assert!(!ack.replayed, "the key of {step} was not forgotten");
            let first = ack.events[0].id;
            let ids = (0..).map(|index| nth(first, index));
            assert!(
                ack.events.iter().zip(ids).all(|(event, id)| event.id == id),
                "{step} was acknowledged as {ack:?}"
            );
            return Ok(Some(first));
        }
        Act::Create => {
            log.create(&session, NewSession::new().title(title(number)))?;
        }
        Act::Describe => {
            log.set_metadata(&session, SessionPatch::new().title(title(number)))?;
        }
        Act::Close => {
            log.close_session(&session)?;
        }
        Act::Reopen => {
            log.reopen(&session)?;
        }
        Act::Trim { before } => {
            log.trim(&session, before)?;
        }
        Act::Redact { event } => {
            log.redact(event, reason(number))?;
        }
        Act::Delete => {
            log.delete(&session, Delete::new().reason(reason(number)))?;
        }
        Act::Fork { parent, at } => {
            log.fork(Fork::new(&name(parent)).at(at), &session)?;
        }
    }
    Ok(None)
}

impl Changes {
    /// Chooses the next change.
    fn choose(&self, dice: &mut Dice) -> Option<(u8, Act)> {
        let session = u8::try_from(dice.below(SESSIONS.into())).expect("few");
        let slot = self.world.slots.get(&session);
        let act = match slot.and_then(|slot| Some((slot, slot.now.as_ref()?))) {
            Some((slot, now)) => self.choose_for(session, slot, now, dice),
            None => self.choose_beginning(slot, dice),
        };
        act.map(|act| (session, act))
    }

    fn choose_beginning(&self, slot: Option<&Slot>, dice: &mut Dice) -> Option<Act> {
        match dice.below(6) {
            0 => Some(Act::Create),
            1 | 2 => Some(self.append(slot, None, dice)),
            _ => {
                let parent = u8::try_from(dice.below(SESSIONS.into())).expect("few");
                let now = self.world.session(parent)?;
                let at = if now.events.is_empty() {
                    now.last
                } else {
                    now.first() + dice.below(now.events.len() as u64)
                };
                Some(Act::Fork { parent, at })
            }
        }
    }

    fn choose_for(&self, session: u8, slot: &Slot, now: &Session, dice: &mut Dice) -> Option<Act> {
        let is_long = now.events.len() > MANY_EVENTS;
        match dice.below(20) {
            0 | 1 => Some(Act::Delete),
            2 if is_long => Some(Act::Delete),
            2 | 3 => {
                let more = (now.events.len() as u64).checked_sub(1)?;
                let before = now.first() + 1 + dice.below(more.max(1));
                (before <= now.last).then_some(Act::Trim { before })
            }
            4..=6 => {
                let nth = dice.index(now.events.len().max(1));
                let event = *now.events.values().nth(nth)?;
                let is_new = !self.world.events[&event].redacted;
                is_new.then_some(Act::Redact { event })
            }
            7 | 8 => Some(Act::Describe),
            _ if now.closed => Some(Act::Reopen),
            9 => Some(Act::Close),
            _ if is_long => None,
            _ => {
                // An answer belongs to the newest turn that the session itself holds.
                let turns = now.batches.values().rev();
                let mut opened = turns.filter(|landed| landed.append.turn.is_none());
                let turn = opened.find_map(|landed| now.events.get(landed.seqs.start()));
                let own = |id: &&EventId| self.world.events[*id].session == session;
                let turn = turn.filter(own).filter(|_| dice.flip());
                Some(self.append(Some(slot), turn.copied(), dice))
            }
        }
    }

    /// An append, some with the key of a batch that was removed.
    fn append(&self, slot: Option<&Slot>, turn: Option<EventId>, dice: &mut Dice) -> Act {
        let forgotten = slot.and_then(|slot| slot.forgotten.last());
        let key = forgotten.filter(|_| dice.flip()).copied();
        Act::Append(Append {
            turn,
            key: key.unwrap_or(self.next),
            end: if dice.one_in(8) {
                End::Closing
            } else {
                End::Open
            },
        })
    }
}
