//! A caller that appends one batch after the other, and notes what it is told.

use std::sync::atomic::{AtomicU64, Ordering};

use sessionlog::{Ack, Batch, Error, Expected, Result, Seq, SessionId, SessionLog};

use super::ledger::{Attempt, Told, data_of};
use crate::report::Dice;
use crate::support::{assert_ack_fits, given, note, session};

/// The sessions of a round that everybody appends to.
const SHARED: usize = 4;

/// How often an append with a key is made again until it is told how it went.
const AGAIN_MAX: usize = 4;

pub(super) fn shared_sessions(round: u64) -> Vec<SessionId> {
    let name = |nth| session(&format!("r{round}.s{nth}"));
    (0..SHARED).map(name).collect()
}

/// The session that one caller alone appends to.
fn own_session(name: &str) -> SessionId {
    session(&format!("r{name}.own"))
}

pub(super) struct Writer<'a> {
    /// The servers that it goes to: the first as a rule, and any with a retry.
    pub servers: &'a [&'a SessionLog],
    pub name: String,
    pub dice: Dice,
    shared: Vec<SessionId>,
    own: SessionId,
    /// Counts the answers that say that something is stored.
    acked: &'a AtomicU64,
    /// Where its own session ends, unless an append to that is in doubt.
    own_last: Option<Seq>,
}

/// An append that is about to be made.
struct Plan {
    tag: String,
    session: SessionId,
    count: usize,
    is_keyed: bool,
    expected: Expected,
}

impl Plan {
    fn batch(&self) -> Batch {
        let data = (0..self.count).map(|nth| note(data_of(&self.tag, nth, self.count)));
        let batch = Batch::new().events(data).expected(self.expected.clone());
        if self.is_keyed {
            batch.idempotency_key(&self.tag)
        } else {
            batch
        }
    }

    /// The same key with something else in it.
    fn altered(&self) -> Batch {
        Batch::from(note("altered")).idempotency_key(&self.tag)
    }

    /// Checks an ack, and returns where the events are.
    fn places(&self, ack: &Ack) -> Told {
        assert_ack_fits(ack, &self.session);
        let is_given = |(nth, event): (usize, _)| {
            given(event) == ("note", data_of(&self.tag, nth, self.count).as_bytes())
        };
        assert!(ack.events.iter().enumerate().all(is_given), "{ack:?}");
        assert_eq!(ack.events.len(), self.count, "{ack:?}");
        let at = ack.events.iter().map(|event| (event.seq, event.id));
        Told::Acked(at.collect())
    }
}

impl<'a> Writer<'a> {
    /// `name` is of no other writer, and begins with the round.
    pub(super) fn new(
        servers: &'a [&'a SessionLog],
        round: u64,
        name: String,
        seed: u64,
        acked: &'a AtomicU64,
    ) -> Self {
        Self {
            servers,
            shared: shared_sessions(round),
            own: own_session(&name),
            name,
            dice: Dice(seed),
            acked,
            own_last: Some(0),
        }
    }

    /// Appends once. `tell` hears of it before.
    pub(super) fn append(&mut self, nth: usize, tell: impl Fn(&str, &SessionId, usize)) -> Attempt {
        let to_own = self.dice.one_in(3);
        let plan = Plan {
            tag: format!("{}.{nth}", self.name),
            session: if to_own {
                self.own.clone()
            } else {
                self.shared[self.dice.index(self.shared.len())].clone()
            },
            count: 1 + self.dice.index(4),
            is_keyed: self.dice.flip(),
            expected: match self.own_last {
                Some(last) if to_own => Expected::Seq(last),
                _ => Expected::Any,
            },
        };
        tell(&plan.tag, &plan.session, plan.count);
        let told = self.carry_out(&plan);
        if to_own {
            self.own_last = match &told {
                Told::Acked(at) => at.last().map(|(seq, _)| *seq),
                Told::Nothing => self.own_last,
                Told::InDoubt => None,
            };
        }
        Attempt {
            tag: plan.tag,
            session: plan.session,
            count: plan.count,
            told,
        }
    }

    /// Makes an append, and makes it again if it has a key and it is not told how it went.
    fn carry_out(&mut self, plan: &Plan) -> Told {
        let mut told = Told::Nothing;
        for again in 0..AGAIN_MAX {
            let nth = if again == 0 {
                0
            } else {
                self.dice.index(self.servers.len())
            };
            match self.servers[nth].append(&plan.session, plan.batch()) {
                Ok(ack) => {
                    self.acked.fetch_add(1, Ordering::SeqCst);
                    assert!(!ack.replayed || again > 0, "a replay of a new key: {ack:?}");
                    self.ask_again(plan, &ack);
                    return plan.places(&ack);
                }
                Err(Error::Unconfirmed { .. }) => told = Told::InDoubt,
                Err(Error::Stalled { .. }) => {}
                Err(error) => panic!("{} to {}: {error:?}", plan.tag, plan.session),
            }
            if !plan.is_keyed {
                break;
            }
        }
        told
    }

    /// A retry gives the first answer, and another batch with the key is refused.
    fn ask_again(&mut self, plan: &Plan, first: &Ack) {
        if !plan.is_keyed || !self.dice.one_in(4) {
            return;
        }
        let server = self.servers[self.dice.index(self.servers.len())];
        let is_late = |answer: &Result<Ack>| {
            let is_late = matches!(
                answer,
                Err(Error::Stalled { .. } | Error::Unconfirmed { .. })
            );
            self.acked.fetch_add(u64::from(!is_late), Ordering::SeqCst);
            is_late
        };
        let again = server.append(&plan.session, plan.batch());
        let is_same = matches!(&again, Ok(again) if again.replayed && again.events == first.events);
        assert!(is_late(&again) || is_same, "{first:?}, and then {again:?}");
        let other = server.append(&plan.session, plan.altered());
        let is_refused = matches!(other, Err(Error::IdempotencyConflict { .. }));
        assert!(
            is_late(&other) || is_refused,
            "another batch with the key: {other:?}"
        );
    }
}
