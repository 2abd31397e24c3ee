//! Sessions that one writer changes in every way, and what a log must show of them.
//!
//! The changes come one after the other. So at most one was tried and not acknowledged, and a log
//! shows the sessions either without it or with all of it. Uses the log's public API alone.

mod changer;
mod step;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use sessionlog::{Change, Event, EventId, PageRequest, SessionId, SessionLog, StreamItem};

use self::step::{Act, NAME, Step, name};
use self::world::{World, is_first_of};

pub(crate) use self::changer::Changer;

/// The changes that were reported, and the sessions as they must be.
#[derive(Clone, Default)]
pub(crate) struct Changes {
    world: Arc<World>,
    /// Tried, and not acknowledged.
    open: Option<Step>,
    /// The world as the last check saw it. It may include the open change.
    seen: Arc<World>,
    /// The open change, with the ID of its first event, if the last check saw it.
    landed: Option<(Step, Option<EventId>)>,
    history: Arc<Vec<(Step, Option<EventId>)>>,
    next: u32,
    /// The number of merges that `stats` showed so far, since the log was opened.
    merges: u64,
    /// How often each thing was done.
    figures: BTreeMap<String, u64>,
}

impl Changes {
    /// Reads what [`lines`](Self::lines) returned, from a file.
    pub(crate) fn read_from(file: &Path) -> std::io::Result<Self> {
        let mut changes = Self::default();
        for line in std::fs::read_to_string(file)?.lines() {
            changes.note(&line.split(' ').collect::<Vec<_>>());
        }
        Ok(changes)
    }

    /// Writes what is known to a file.
    pub(crate) fn write_to(&self, file: &Path) -> std::io::Result<()> {
        std::fs::write(
            file,
            self.lines().map(|line| line + "\n").collect::<String>(),
        )
    }

    /// Whether a session is one of those that are changed.
    pub(crate) fn are_of(session: &SessionId) -> bool {
        session.as_str().starts_with(NAME)
    }

    /// Records the words of a reported line, if it is about changes.
    pub(crate) fn note(&mut self, words: &[&str]) {
        match *words {
            ["change", ref step @ ..] => {
                let step = Step::told(step);
                assert!(step.number >= self.next, "{step} comes twice");
                // The writer has opened the log since the last change failed, and has seen that it
                // did not land. Or its error says so.
                self.open = Some(step);
                self.next = step.number + 1;
            }
            ["changed", number, ref id @ ..] | ["shown", "change", number, ref id @ ..] => {
                let id = id.first().map(|id| id.parse().expect("an event ID"));
                // What was shown may be told again after that.
                let is_it = |step: &Step| step.number.to_string() == number;
                if let Some(step) = self.open.take_if(|step| is_it(step)) {
                    self.apply(step, id);
                }
            }
            ["merges", many] => {
                let before = std::mem::replace(&mut self.merges, number(many));
                let more = self.merges.checked_sub(before).unwrap_or(self.merges);
                *self.figures.entry("merged".to_owned()).or_default() += more;
            }
            ["did", what, many] => {
                *self.figures.entry(what.to_owned()).or_default() += number(many);
            }
            _ => {}
        }
    }

    fn apply(&mut self, step: Step, id: Option<EventId>) {
        Arc::make_mut(&mut self.world).apply(&step, id);
        Arc::make_mut(&mut self.history).push((step, id));
        *self.figures.entry(step.act.verb().to_owned()).or_default() += 1;
    }

    /// Returns how often each thing was done, by its name.
    pub(crate) fn figures(&self) -> impl Iterator<Item = (&str, u64)> {
        let figures = self.figures.iter();
        figures.map(|(what, many)| (what.as_str(), *many))
    }

    /// Returns the open change if the last check saw it, as a line to note.
    pub(crate) fn shown(&self) -> Option<String> {
        let (step, id) = self.landed.as_ref()?;
        Some(format!("shown change {}", told(step, *id)))
    }

    /// Returns all that is known, as lines to note.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        let settled = self.history.iter().flat_map(|(step, id)| {
            [
                format!("change {step}"),
                format!("changed {}", told(step, *id)),
            ]
        });
        let open = self.open.iter().map(|step| format!("change {step}"));
        settled.chain(open)
    }

    /// Compares the sessions with the log.
    pub(crate) fn check(&mut self, log: &SessionLog) {
        self.landed = None;
        self.seen = Arc::clone(&self.world);
        let Err(without) = self.world.check(log) else {
            return;
        };
        let Some(open) = self.open else {
            panic!("{without}");
        };
        let id = first_event(log, &open);
        let may_have_landed = id.is_some() || !matches!(open.act, Act::Append(_));
        assert!(may_have_landed, "{without}; and {open} did not land");
        let mut world = World::clone(&self.world);
        world.apply(&open, id);
        if let Err(with) = world.check(log) {
            panic!("{without}; and if {open} landed, {with}");
        }
        self.landed = Some((open, id));
        self.seen = Arc::new(world);
    }

    /// Whether the log and its feed show the sessions as they are here, without the open change.
    pub(crate) fn are_in(&self, log: &SessionLog) -> bool {
        let mut fed = Fed::default();
        for item in log.feed().expect("the feed").until_tail() {
            fed.note(&item.expect("an item of the feed"));
        }
        let shown = self.world.check(log);
        shown
            .and_then(|()| self.world.check_fed(&fed.events, &fed.reasons))
            .is_ok()
    }

    /// Compares the sessions as the last check saw them with the whole feed.
    pub(crate) fn check_fed(&self, fed: &Fed) {
        if let Err(difference) = self.seen.check_fed(&fed.events, &fed.reasons) {
            panic!("{difference}");
        }
    }
}

/// What the feed shows of the sessions.
#[derive(Default)]
pub(crate) struct Fed {
    events: Vec<Event>,
    reasons: Vec<String>,
}

impl Fed {
    /// Keeps an item if it is about one of the sessions.
    pub(crate) fn note(&mut self, item: &StreamItem) {
        match item {
            StreamItem::Event(event) if Changes::are_of(&event.session_id) => {
                self.events.push(event.clone());
            }
            StreamItem::Change(change) if Changes::are_of(&change.session_id) => {
                if let Change::Deleted { reason } = &change.change {
                    self.reasons.push(reason.clone().unwrap_or_default());
                }
            }
            _ => {}
        }
    }
}

fn told(step: &Step, id: Option<EventId>) -> String {
    match id {
        Some(id) => format!("{} {id}", step.number),
        None => step.number.to_string(),
    }
}

/// Finds the first event that an append stored.
fn first_event(log: &SessionLog, step: &Step) -> Option<EventId> {
    let Act::Append(append) = &step.act else {
        return None;
    };
    let page = log.list(&name(step.session), PageRequest::new().limit(1_000));
    let events = page.map(|page| page.items).unwrap_or_default();
    let first = events
        .iter()
        .find(|event| is_first_of(event, append, step.number));
    first.map(|event| event.id)
}

fn number(text: &str) -> u64 {
    text.parse()
        .unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
}
