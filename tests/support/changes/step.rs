//! One change of a session: what it does, its text, and the contents of what it appends.

use std::fmt;

use sessionlog::{Batch, EventId, MessageId, NewEvent, SessionId};

use super::super::report::Dice;
use super::number;

/// The sessions that are changed. Forks of one are made in the place of others.
pub(super) const SESSIONS: u8 = 5;

/// Prefix of their names. No other session of a ledger has it.
pub(super) const NAME: &str = "changing ";

/// The most events of one append.
const EVENTS_MAX: u64 = 3;

/// The largest padding of an event, in bytes.
const PADDING_MAX: u64 = 300;

pub(super) fn name(session: u8) -> SessionId {
    SessionId::new(format!("{NAME}{session}")).expect("the name follows the rules")
}

/// A change, numbered in the order in which the changes are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub number: u32,
    pub session: u8,
    pub act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Create,
    Append(Append),
    Describe,
    Close,
    Reopen,
    Trim { before: u64 },
    Redact { event: EventId },
    Delete,
    Fork { parent: u8, at: u64 },
}

/// An append: its first event opens a turn, or all belong to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Append {
    /// The event that opened the turn, unless this append opens one.
    pub turn: Option<EventId>,
    /// The number that its idempotency key has.
    pub key: u32,
    pub end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Open,
    Closing,
}

impl Act {
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Append(_) => "append",
            Self::Describe => "describe",
            Self::Close => "close",
            Self::Reopen => "reopen",
            Self::Trim { .. } => "trim",
            Self::Redact { .. } => "redact",
            Self::Delete => "delete",
            Self::Fork { .. } => "fork",
        }
    }
}

impl Step {
    /// Parses the words that [`Display`](fmt::Display) wrote.
    pub(super) fn told(words: &[&str]) -> Self {
        let [step, session, ref act @ ..] = words[..] else {
            panic!("{words:?} is no change");
        };
        let id = |text: &str| text.parse::<EventId>().expect("an event ID");
        let act = match *act {
            ["create"] => Act::Create,
            ["append", turn, key, end] => Act::Append(Append {
                turn: (turn != "-").then(|| id(turn)),
                key: small(key),
                end: if end == "closing" {
                    End::Closing
                } else {
                    End::Open
                },
            }),
            ["describe"] => Act::Describe,
            ["close"] => Act::Close,
            ["reopen"] => Act::Reopen,
            ["trim", before] => Act::Trim {
                before: number(before),
            },
            ["redact", event] => Act::Redact { event: id(event) },
            ["delete"] => Act::Delete,
            ["fork", parent, at] => Act::Fork {
                parent: small(parent),
                at: number(at),
            },
            _ => panic!("{words:?} is no change"),
        };
        Self {
            number: small(step),
            session: small(session),
            act,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.number, self.session, self.act.verb())?;
        match self.act {
            Act::Append(Append { turn, key, end }) => {
                match turn {
                    Some(turn) => write!(f, " {turn}")?,
                    None => f.write_str(" -")?,
                }
                let end = if end == End::Closing {
                    "closing"
                } else {
                    "open"
                };
                write!(f, " {key} {end}")
            }
            Act::Trim { before } => write!(f, " {before}"),
            Act::Redact { event } => write!(f, " {event}"),
            Act::Fork { parent, at } => write!(f, " {parent} {at}"),
            Act::Create | Act::Describe | Act::Close | Act::Reopen | Act::Delete => Ok(()),
        }
    }
}

fn small<T: TryFrom<u64>>(text: &str) -> T {
    T::try_from(number(text)).unwrap_or_else(|_| panic!("{text} is too large"))
}

/// Returns the number of events that an append has.
pub(super) fn events_of(step: u32) -> u32 {
    u32::try_from(1 + Dice(step.into()).below(EVENTS_MAX)).expect("few")
}

/// Returns the text of an event, which occurs nowhere else.
pub(super) fn word(step: u32, index: u32) -> String {
    let mut dice = Dice(u64::from(step) << 8 | u64::from(index));
    let padding = usize::try_from(dice.below(PADDING_MAX)).expect("few");
    format!("word {step}/{index} {}", "p".repeat(padding))
}

/// What an event of an append is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It opens a turn.
    Opening,
    /// It belongs to no turn.
    Note,
    /// It belongs to an earlier turn.
    Answer,
}

impl Append {
    /// Returns what the event at this index is.
    pub(super) fn kind(&self, index: u32) -> Kind {
        match (self.turn, index) {
            (Some(_), _) => Kind::Answer,
            (None, 0) => Kind::Opening,
            (None, _) => Kind::Note,
        }
    }
}

/// Returns the type and the data of an event.
pub(super) fn contents(kind: Kind, step: u32, index: u32) -> (&'static str, String) {
    let word = word(step, index);
    match kind {
        Kind::Opening => {
            let data = format!(r#"{{"content":[{{"type":"text","text":"{word}"}}]}}"#);
            ("user.message", data)
        }
        Kind::Note => ("note", word),
        Kind::Answer => {
            let data = format!(r#"{{"text":"{word}"}}"#);
            ("assistant.message_completed", data)
        }
    }
}

/// Returns the batch of an append.
pub(super) fn batch(append: &Append, step: u32) -> Batch {
    let mut batch = Batch::new().idempotency_key(key(append.key));
    for index in 0..events_of(step) {
        let (event_type, data) = contents(append.kind(index), step, index);
        let event = NewEvent::new(event_type, data);
        batch = batch.event(match append.turn {
            Some(turn) => event.in_turn(MessageId::from(turn)),
            None => event,
        });
    }
    match append.end {
        End::Open => batch,
        End::Closing => batch.closing(),
    }
}

fn key(number: u32) -> String {
    format!("step {number}")
}

/// The reason that a removal gives.
pub(super) fn reason(step: u32) -> String {
    format!("step {step}")
}
