//! Readers that look while everything fails: streams, the feed, and lists. What they were shown
//! must be there at the end, without a gap and in order.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sessionlog::{
    Event, EventId, EventStream, PageRequest, RecvTimeout, SessionId, SessionLog, StartAt,
};

use super::ledger::Stored;
use super::{REST, patiently};
use crate::report::Dice;
use crate::support::seqs;

/// What a reader follows.
#[derive(Debug, Clone)]
pub(super) enum Followed {
    Session(SessionId),
    /// All sessions, after the last event of the rounds before.
    All(Option<EventId>),
}

/// The end of a round: what is stored, or nothing if that could not be read.
pub(super) type Ends = OnceLock<Option<Stored>>;

impl Followed {
    fn open(&self, server: &SessionLog) -> EventStream {
        let open = || match self {
            Followed::Session(id) => server.stream(id, StartAt::Creation),
            Followed::All(Some(last)) => server.feed_after(*last),
            Followed::All(None) => server.feed(),
        };
        patiently(open).unwrap()
    }

    /// What is to be shown of what is stored.
    fn of<'a>(&self, stored: &'a Stored) -> Vec<&'a Event> {
        match self {
            Followed::Session(id) => stored.0[id].iter().collect(),
            Followed::All(_) => stored.in_id_order(),
        }
    }

    /// Whether an event is the last one or comes after it.
    fn is_end(&self, event: &Event, last: &Event) -> bool {
        match self {
            Followed::Session(_) => event.seq >= last.seq,
            Followed::All(_) => event.id >= last.id,
        }
    }

    /// Follows until all that is stored at the end has come. Returns what came.
    pub(super) fn follow(&self, server: &SessionLog, ends: &Ends) -> Vec<Event> {
        let mut stream = self.open(server);
        let mut came = Vec::<Event>::new();
        let mut until = None;
        loop {
            match stream.next_timeout(Duration::from_millis(300)) {
                Ok(item) => {
                    came.extend(item.into_event());
                    continue;
                }
                Err(RecvTimeout::Ended) => panic!("{self:?} has ended"),
                // A read that a failover broke is made again.
                Err(_) => {}
            }
            let Some(stored) = ends.get() else { continue };
            let Some(stored) = stored else { return came };
            let last = self.of(stored).last().copied();
            if last.is_none_or(|last| came.last().is_some_and(|event| self.is_end(event, last))) {
                return came;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + REST);
            assert!(
                Instant::now() < until,
                "{self:?} stays behind {last:?} at {:?}",
                came.last()
            );
        }
    }

    /// Fails unless what came is what is stored. `taken_back` is the data of events that may have
    /// been shown all the same. Returns how many were.
    pub(super) fn check(
        &self,
        came: &[Event],
        stored: &Stored,
        taken_back: Option<&HashSet<Vec<u8>>>,
    ) -> u64 {
        let wanted = self.of(stored);
        let Some(may_be_gone) = taken_back else {
            let differs = came
                .iter()
                .zip(&wanted)
                .position(|(came, wanted)| came != *wanted);
            assert!(
                differs.is_none() && came.len() == wanted.len(),
                "{self:?} has shown {} of {} events, and another one at {differs:?}: {:?}, not {:?}",
                came.len(),
                wanted.len(),
                differs.map(|nth| &came[nth]),
                differs.map(|nth| wanted[nth])
            );
            return 0;
        };
        let by_id = stored.by_id();
        let is_kept = |event: &&Event| by_id.get(&event.id) == Some(event);
        let (kept, gone): (Vec<_>, Vec<_>) = came.iter().partition(is_kept);
        for event in &gone {
            assert!(
                may_be_gone.contains(&*event.data),
                "{self:?}: taken back: {event:?}"
            );
        }
        match self {
            // An event that was taken back stands at the place of another one.
            Followed::Session(_) => {
                assert_eq!(
                    seqs(came),
                    (1..=came.len() as u64).collect::<Vec<_>>(),
                    "{self:?}"
                );
                assert!(
                    came.len() >= wanted.len(),
                    "{self:?} has not come to the end"
                );
                let differs = |(came, wanted): (&Event, &&Event)| {
                    came != *wanted && by_id.contains_key(&came.id)
                };
                assert!(
                    !came.iter().zip(&wanted).any(differs),
                    "{self:?}: another event"
                );
            }
            // What was taken back was before all that came in its place.
            Followed::All(_) => {
                assert!(
                    came.is_sorted_by(|one, two| two.id > one.id),
                    "{self:?}: the order"
                );
                assert_eq!(kept, wanted, "{self:?}");
            }
        }
        gone.len() as u64
    }
}

/// Lists and looks up what it can, until a round is over. Returns all that it was shown.
pub(super) fn look(
    server: &SessionLog,
    sessions: &[SessionId],
    mut dice: Dice,
    done: &AtomicBool,
) -> HashMap<EventId, Event> {
    let mut shown = HashMap::<EventId, Event>::new();
    while !done.load(Ordering::SeqCst) {
        let id = &sessions[dice.index(sessions.len())];
        let page = PageRequest::new().limit(50);
        let page = if dice.flip() {
            page.newest_first()
        } else {
            page
        };
        // While no primary answers, nothing is shown.
        let events = server
            .list(id, page)
            .map_or_else(|_| Vec::new(), |page| page.items);
        for event in events {
            if dice.one_in(20)
                && let Ok(again) = server.event(event.id)
            {
                assert_eq!(again, event);
            }
            shown.insert(event.id, event);
        }
        std::thread::sleep(Duration::from_millis(dice.below(20)));
    }
    shown
}

/// Fails unless what a reader was shown is stored. `taken_back` is as with a stream.
pub(super) fn check_shown(
    shown: &HashMap<EventId, Event>,
    stored: &Stored,
    taken_back: Option<&HashSet<Vec<u8>>>,
) {
    let by_id = stored.by_id();
    for (id, event) in shown {
        let is_kept = by_id.get(id) == Some(&event);
        let may_be_gone = taken_back.is_some_and(|data| data.contains(&*event.data));
        assert!(is_kept || may_be_gone, "shown and taken back: {event:?}");
    }
}
