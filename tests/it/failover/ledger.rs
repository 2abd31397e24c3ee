//! What was appended, what its callers were told, what readers were shown, and the comparison of
//! all that with what is stored.

use std::collections::{BTreeMap, HashMap};

use sessionlog::{Batch, Error, Event, EventId, Seq, SessionId, SessionLog};

use super::patiently;
use crate::support::{assert_dense, folder, note, read_all, session, try_read_all};

/// An append.
#[derive(Debug)]
pub(super) struct Attempt {
    /// No other append has it.
    pub tag: String,
    pub session: SessionId,
    /// The number of its events.
    pub count: usize,
    pub told: Told,
}

/// What the caller of an append was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Its events are at these places.
    Acked(Vec<(Seq, EventId)>),
    /// Nothing was written.
    Nothing,
    /// It may have landed, or nobody lived to hear it.
    InDoubt,
}

/// The data of an event of an append.
pub(super) fn data_of(tag: &str, nth: usize, count: usize) -> String {
    format!("{tag}/{nth}/{count}")
}

/// The events of a session. None has been appended to one that is not there.
fn read_any(server: &SessionLog, id: &SessionId) -> Vec<Event> {
    match patiently(|| try_read_all(server, id)) {
        Err(Error::UnknownSession { .. }) => Vec::new(),
        events => events.unwrap(),
    }
}

/// All events of some sessions, in their order.
pub(super) struct Stored(pub BTreeMap<SessionId, Vec<Event>>);

impl Stored {
    /// Reads sessions, from one server and from the other.
    pub(super) fn read(servers: &[SessionLog; 2], sessions: &[SessionId]) -> Self {
        let read = |server| {
            sessions
                .iter()
                .map(|id| (id.clone(), read_any(server, id)))
                .collect::<BTreeMap<_, _>>()
        };
        let [one, two] = [&servers[0], &servers[1]].map(read);
        assert!(one == two, "two servers show different events");
        Self(one)
    }

    /// All events, in the order of the feed.
    pub(super) fn in_id_order(&self) -> Vec<&Event> {
        let mut events: Vec<_> = self.0.values().flatten().collect();
        events.sort_unstable_by_key(|event| event.id);
        events
    }

    pub(super) fn by_id(&self) -> HashMap<EventId, &Event> {
        let events = self.0.values().flatten();
        events.map(|event| (event.id, event)).collect()
    }

    /// Fails if anything is lost, doubled, torn, out of order, or was never appended. Returns how
    /// many appends in doubt have landed.
    pub(super) fn check(&self, attempts: &[Attempt]) -> u64 {
        let mut places = HashMap::new();
        for (id, events) in &self.0 {
            assert_dense(events, 1..=events.len() as u64);
            for event in events {
                let before = places.insert(&*event.data, event);
                assert!(before.is_none(), "doubled in {id}: {before:?}, {event:?}");
            }
        }
        let (mut accounted, mut landed) = (0, 0);
        for attempt in attempts {
            let Attempt { tag, count, .. } = attempt;
            let all: Vec<_> = (0..*count).map(|nth| data_of(tag, nth, *count)).collect();
            let found = all.iter().filter_map(|data| places.get(data.as_bytes()));
            let found: Vec<&Event> = found.copied().collect();
            accounted += found.len();
            match &attempt.told {
                Told::Acked(_) => assert!(!found.is_empty(), "lost: {attempt:?}"),
                Told::Nothing => assert!(
                    found.is_empty(),
                    "told that nothing was written: {attempt:?}, and found {found:?}"
                ),
                Told::InDoubt => landed += u64::from(!found.is_empty()),
            }
            if found.is_empty() {
                continue;
            }
            let is_whole = found.len() == *count
                && found
                    .iter()
                    .all(|event| event.session_id == attempt.session)
                && found.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1);
            assert!(is_whole, "torn: {attempt:?}, and found {found:?}");
            if let Told::Acked(at) = &attempt.told {
                let is_at: Vec<_> = found.iter().map(|event| (event.seq, event.id)).collect();
                assert_eq!(is_at, *at, "told to be elsewhere: {attempt:?}");
            }
        }
        assert_eq!(accounted, places.len(), "events that nobody has appended");
        landed
    }
}

/// What was stored when its round was over, of all rounds. It must stay as it is.
#[derive(Default)]
pub(super) struct Past(BTreeMap<SessionId, (usize, blake3::Hash)>);

#[derive(Default)]
struct Summary(usize, blake3::Hasher);

impl Summary {
    fn add(&mut self, event: &Event) {
        self.0 += 1;
        self.1.update(format!("{event:?}").as_bytes());
    }

    fn add_all(&mut self, events: &[Event]) {
        for event in events {
            self.add(event);
        }
    }

    fn end(&self) -> (usize, blake3::Hash) {
        (self.0, self.1.finalize())
    }
}

impl Past {
    pub(super) fn add(&mut self, stored: &Stored) {
        for (id, events) in &stored.0 {
            let mut summary = Summary::default();
            summary.add_all(events);
            self.0.insert(id.clone(), summary.end());
        }
    }

    /// Compares all of it with the feed of a server, and with the sessions as another lists them.
    pub(super) fn check(&self, servers: &[SessionLog; 2]) {
        let mut summaries = BTreeMap::<SessionId, Summary>::new();
        let mut feed = patiently(|| servers[0].feed()).unwrap().until_tail();
        let mut last = None;
        while !feed.is_ended() {
            let Ok(item) = feed.next_timeout(super::REST) else {
                break;
            };
            if let Some(event) = item.into_event() {
                assert!(last.replace(event.id) < Some(event.id), "the feed's order");
                summaries
                    .entry(event.session_id.clone())
                    .or_default()
                    .add(&event);
            }
        }
        assert!(feed.is_ended(), "the feed fell silent");
        let shown = Self(
            summaries
                .iter()
                .map(|(id, summary)| (id.clone(), summary.end()))
                .collect(),
        );
        let is_stored = |(_, wanted): &(&SessionId, &(usize, blake3::Hash))| wanted.0 > 0;
        assert!(
            shown.0.iter().eq(self.0.iter().filter(is_stored)),
            "the feed of all rounds is not what their sessions were"
        );
        for (id, wanted) in self.0.iter().filter(is_stored) {
            let mut summary = Summary::default();
            summary.add_all(&read_any(&servers[1], id));
            assert_eq!(summary.end(), *wanted, "{id} has changed since its round");
        }
    }
}

/// What a comparison says of what is stored after a change of it.
fn complaint(stored: &Stored, attempts: &[Attempt]) -> String {
    let checked = std::panic::AssertUnwindSafe(|| stored.check(attempts));
    let panic = std::panic::catch_unwind(checked).expect_err("nothing was noticed");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn the_comparison_notices_each_kind_of_violation() {
    let (place, id) = (folder(), session("s"));
    let log = SessionLog::open(place.path()).unwrap();
    let append = |tag: &str, count: usize| {
        let data = (0..count).map(|nth| note(data_of(tag, nth, count)));
        let ack = log.append(&id, Batch::new().events(data)).unwrap();
        let at = ack.events.iter().map(|event| (event.seq, event.id));
        Attempt {
            tag: tag.to_owned(),
            session: id.clone(),
            count,
            told: Told::Acked(at.collect()),
        }
    };
    let attempts = [append("a", 1), append("b", 3), append("c", 2)];
    let all = read_all(&log, &id);
    let after = |change: &dyn Fn(&mut Vec<Event>)| {
        let mut events = all.clone();
        change(&mut events);
        Stored(BTreeMap::from([(id.clone(), events)]))
    };
    let says = |change: &dyn Fn(&mut Vec<Event>), attempts: &[Attempt], what: &str| {
        let said = complaint(&after(change), attempts);
        assert!(said.contains(what), "{said}, and not {what}");
    };
    assert_eq!(after(&|_| {}).check(&attempts), 0);
    says(&|events| events.truncate(4), &attempts, "lost");
    says(&|events| events.truncate(5), &attempts, "torn");
    says(
        &|events| events[5].data = events[0].data.clone(),
        &attempts,
        "doubled",
    );
    says(&|events| events.swap(0, 1), &attempts, "left == right");
    says(
        &|events| (events[2].id, events[3].id) = (events[3].id, events[2].id),
        &attempts,
        "stands before",
    );
    says(
        &|events| events[5].id = EventId::from_u128(u128::MAX),
        &attempts,
        "elsewhere",
    );
    says(&|_| {}, &attempts[..2], "nobody has appended");
    let untold = |told| {
        let mut attempts = attempts.each_ref().map(|attempt| Attempt {
            tag: attempt.tag.clone(),
            session: id.clone(),
            count: attempt.count,
            told: Told::InDoubt,
        });
        attempts[1].told = told;
        attempts
    };
    assert_eq!(after(&|_| {}).check(&untold(Told::InDoubt)), 3);
    assert_eq!(
        after(&|events| events.truncate(4)).check(&untold(Told::InDoubt)),
        2
    );
    says(&|events| events.truncate(5), &untold(Told::InDoubt), "torn");
    says(&|_| {}, &untold(Told::Nothing), "nothing was written");
}
