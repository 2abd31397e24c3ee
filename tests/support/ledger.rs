//! Checks a log against itself and against what was acknowledged.
//!
//! Every event records in its data which append it belongs to, and its bytes follow from that.
//! Nothing else has to be known to check what was appended. [Changes] of other sessions are known
//! in their order. Uses the log's public API alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sessionlog::{
    Ack, Batch, Error, Event, EventId, NewEvent, PageRequest, SessionId, SessionLog, StreamItem,
};

use super::changes::{Changer, Changes, Fed};
use super::report::Dice;

const SESSIONS: u64 = 7;
/// Prefix of the ledger's sessions. A log may have others, which the ledger ignores.
const SESSION: &str = "session ";
const PAGE: usize = 1_000;
/// The number of batches kept, so that repeated checks need not build them again.
const KNOWN_MAX: usize = 2_000;
const TAG_BYTES: usize = 20;

/// Identifies an append: the life of the process, the writer, and the number of the append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tag {
    pub life: u32,
    pub writer: u32,
    pub nth: u32,
}

impl Tag {
    fn of(event: &Event) -> Self {
        let Event {
            id,
            session_id,
            seq,
            data,
            ..
        } = event;
        assert!(
            data.len() >= TAG_BYTES,
            "event {id} of {session_id} at {seq} is none that was appended"
        );
        let field =
            |n: usize| u32::from_le_bytes(data[n * 4..n * 4 + 4].try_into().expect("four bytes"));
        Self {
            life: field(0),
            writer: field(1),
            nth: field(2),
        }
    }

    /// Parses what [`Display`](fmt::Display) wrote.
    fn told(words: &[&str]) -> Self {
        let field = |n: usize| u32::try_from(number(words[n])).expect("a small number");
        Self {
            life: field(0),
            writer: field(1),
            nth: field(2),
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.life, self.writer, self.nth)
    }
}

/// The contents of all appends of a run, which follow from their tags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Works {
    pub seed: u64,
    /// The upper limits of a batch's data, in bytes, each with the same probability.
    pub bytes: &'static [u64],
}

/// Batches from a few bytes to several hundred kilobytes.
pub(crate) const LARGE_BATCHES: &[u64] = &[64, 400, 2_000, 20_000, 90_000, 300_000];

/// The contents of one append.
pub(crate) struct Work {
    pub session: SessionId,
    events: Vec<(&'static str, Vec<u8>)>,
    key: Option<String>,
}

impl Works {
    pub(crate) fn of(self, tag: Tag) -> Work {
        let Tag { life, writer, nth } = tag;
        let mut dice = Dice(
            self.seed ^ (u64::from(life) << 40 | u64::from(writer) << 32 | u64::from(nth) << 8),
        );
        let session = session_name(dice.below(SESSIONS));
        let count = if dice.one_in(4) {
            1 + dice.below(40)
        } else {
            1
        };
        let key = dice.flip().then(|| format!("{life}/{writer}/{nth}"));
        let bytes = self.bytes[dice.index(self.bytes.len())];
        let count = u32::try_from(count).expect("a batch has few events");
        let events = (0..count).map(|index| {
            let mut data = [life, writer, nth, index, count]
                .map(u32::to_le_bytes)
                .concat();
            (0..dice.below(bytes / u64::from(count) + 1).div_ceil(8))
                .for_each(|_| data.extend(dice.roll().to_le_bytes()));
            (["tool.progress", "agent.thought"][index as usize % 2], data)
        });
        Work {
            session,
            events: events.collect(),
            key,
        }
    }
}

impl Work {
    pub(crate) fn batch(&self) -> Batch {
        let batch = Batch::new().events(
            self.events
                .iter()
                .map(|(event_type, data)| NewEvent::new(*event_type, data.clone())),
        );
        match &self.key {
            Some(key) => batch.idempotency_key(key),
            None => batch,
        }
    }

    fn check_is(&self, events: &[Event], tag: Tag) {
        assert_eq!(events.len(), self.events.len(), "{tag:?} is not whole");
        for (i, (event, (event_type, data))) in events.iter().zip(&self.events).enumerate() {
            assert_eq!(
                (&event.session_id, event.event_type.as_str()),
                (&self.session, *event_type),
                "event {i} of {tag:?}"
            );
            assert_eq!(
                event.seq,
                events[0].seq + i as u64,
                "the seq of event {i} of {tag:?}"
            );
            assert_eq!(
                event.id.to_u128(),
                events[0].id.to_u128() + i as u128,
                "the ID of event {i} of {tag:?}"
            );
            assert!(event.data == *data, "event {i} of {tag:?} has other bytes");
        }
    }
}

fn session_name(n: u64) -> SessionId {
    SessionId::new(format!("{SESSION}{n}")).expect("the name follows the rules")
}

/// The line printed before an append.
pub(crate) fn tried(tag: Tag) -> String {
    format!("try {tag}")
}

/// The line printed once the append returned `Ok`. Checks the ack's events.
pub(crate) fn acknowledged(tag: Tag, work: &Work, ack: &Ack) -> String {
    work.check_is(&ack.events, tag);
    format!("ack {tag} {} {} {}", ack.first, ack.last, ack.events[0].id)
}

/// The place of a batch in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    first: u64,
    last: u64,
    id: EventId,
}

impl Place {
    fn told(first: &str, last: &str, id: &str) -> Self {
        Self {
            first: number(first),
            last: number(last),
            id: id.parse().expect("an event ID"),
        }
    }
}

/// Everything that writers reported, and everything that was found in the log.
#[derive(Clone)]
pub(crate) struct Ledger {
    works: Works,
    /// Tried, and not acknowledged.
    open: BTreeSet<Tag>,
    /// Acknowledged or shown to a reader: must be there from then on.
    due: BTreeMap<Tag, Place>,
    found: BTreeMap<Tag, Place>,
    changes: Changes,
    /// The ledger as it was when the last backup began.
    backup: Option<Arc<Self>>,
    /// The same for backups after that, which may be in the folder of the backup or not.
    backups_tried: Vec<Arc<Self>>,
    /// The works that were checked, shared by all clones of this ledger.
    known: Arc<parking_lot::Mutex<BTreeMap<Tag, Arc<Work>>>>,
    /// The last seq that was checked of each session.
    checked: BTreeMap<SessionId, u64>,
    /// The last event of the feed that was checked.
    fed: Option<EventId>,
    /// The number of events found, session by session and in the feed.
    events: u64,
    events_fed: u64,
    payload_bytes: u64,
}

impl Ledger {
    pub(crate) fn new(works: Works) -> Self {
        Self {
            works,
            open: BTreeSet::new(),
            due: BTreeMap::new(),
            found: BTreeMap::new(),
            changes: Changes::default(),
            backup: None,
            backups_tried: Vec::new(),
            known: Arc::default(),
            checked: BTreeMap::new(),
            fed: None,
            events: 0,
            events_fed: 0,
            payload_bytes: 0,
        }
    }

    /// Records a reported line. Ignores other lines, such as those of a test harness.
    pub(crate) fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["try", ref tag @ ..] => {
                assert!(self.open.insert(Tag::told(tag)), "{line} comes twice");
            }
            ["ack", ref tag @ .., first, last, id] => {
                let tag = Tag::told(tag);
                assert!(
                    self.open.remove(&tag),
                    "{tag:?} was not tried, or acknowledged twice"
                );
                self.due.insert(tag, Place::told(first, last, id));
            }
            ["backup"] => {
                let (backup, backups_tried) = (None, Vec::new());
                let now = Self {
                    backup,
                    backups_tried,
                    ..self.clone()
                };
                self.backups_tried.push(Arc::new(now));
            }
            ["backed"] => {
                self.backup = self.backups_tried.pop();
                self.backups_tried.clear();
            }
            ["change" | "changed" | "did" | "merges", ..] | ["shown", "change", ..] => {
                self.changes.note(&words);
            }
            ["shown", ref tag @ .., first, last, id] => {
                let (tag, place) = (Tag::told(tag), Place::told(first, last, id));
                self.open.remove(&tag);
                let before = self.due.insert(tag, place);
                assert!(
                    before.is_none_or(|before| before == place),
                    "{tag:?} was acknowledged elsewhere than it was shown"
                );
            }
            _ => {}
        }
    }

    pub(crate) fn due(&self) -> usize {
        self.due.len()
    }

    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Returns the bytes of data in all events found.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Returns what was found, as lines for [`note`](Self::note).
    pub(crate) fn shown(&self) -> Vec<String> {
        let line = |(tag, place): (&Tag, &Place)| {
            format!("shown {tag} {} {} {}", place.first, place.last, place.id)
        };
        let appends = self.found.iter().map(line);
        appends.chain(self.changes.shown()).collect()
    }

    /// Requires everything found so far from now on, since a reader has seen it.
    pub(crate) fn expect_what_was_found(&mut self) {
        self.shown().iter().for_each(|line| self.note(line));
    }

    /// Writes what must be there to a file, as lines for [`note`](Self::note).
    pub(crate) fn write_to(&self, file: &Path) -> std::io::Result<()> {
        let due = self.due.iter().map(|(tag, place)| {
            format!("shown {tag} {} {} {}\n", place.first, place.last, place.id)
        });
        let open = self.open.iter().map(|tag| format!("{}\n", tried(*tag)));
        let changes = self.changes.lines().map(|line| line + "\n");
        std::fs::write(file, due.chain(open).chain(changes).collect::<String>())
    }

    /// Reads what [`write_to`](Self::write_to) wrote.
    pub(crate) fn read_from(works: Works, file: &Path) -> std::io::Result<Self> {
        let mut ledger = Self::new(works);
        std::fs::read_to_string(file)?
            .lines()
            .for_each(|line| ledger.note(line));
        Ok(ledger)
    }

    pub(crate) fn forget_what_was_checked(&mut self) {
        let (works, known) = (self.works, Arc::clone(&self.known));
        let before = std::mem::replace(self, Self::new(works));
        *self = Self {
            open: before.open,
            due: before.due,
            changes: before.changes,
            backup: before.backup,
            backups_tried: before.backups_tried,
            known,
            ..Self::new(works)
        };
    }

    /// Checks every batch that the log holds and that was not checked before, and all changes.
    ///
    /// Each is whole, in order, was tried by a writer, and is where its ack said. Everything that
    /// must be there is there. Everything that was removed is gone.
    pub(crate) fn check(&mut self, log: &SessionLog) {
        self.changes.check(log);
        for session in (0..SESSIONS).map(session_name) {
            self.check_session(log, &session);
        }
        for (tag, place) in &self.due {
            assert_eq!(
                self.found.get(tag),
                Some(place),
                "{tag:?} was acknowledged, and the log has it elsewhere or not"
            );
        }
        self.check_feed(log);
    }

    fn check_session(&mut self, log: &SessionLog, session: &SessionId) {
        let mut seq = self.checked.get(session).copied().unwrap_or(0);
        loop {
            let page = match log.list(session, PageRequest::new().after(seq).limit(PAGE)) {
                Err(Error::UnknownSession { .. }) if seq == 0 => return,
                got => got.unwrap_or_else(|error| {
                    panic!("{session} cannot be read after {seq}: {error:?}")
                }),
            };
            // A batch may end on the next page. Its events on this page are then read again with
            // the rest.
            let mut events = &page.items[..];
            while let Some((batch, rest)) = split_batch(events)
                && !(rest.is_empty() && page.has_more)
            {
                self.check_batch(session, seq, batch);
                seq += batch.len() as u64;
                events = rest;
            }
            if !page.has_more {
                assert_eq!(
                    seq, page.tail,
                    "the last page of {session} ends before its tail"
                );
                self.checked.insert(session.clone(), seq);
                return;
            }
        }
    }

    fn check_batch(&mut self, session: &SessionId, after: u64, batch: &[Event]) {
        let tag = Tag::of(&batch[0]);
        assert!(
            self.open.contains(&tag) || self.due.contains_key(&tag),
            "{tag:?} was never tried"
        );
        let work = self.work(tag);
        assert_eq!(&work.session, session, "{tag:?} lies in another session");
        assert_eq!(batch[0].seq, after + 1, "the seq of {tag:?}");
        work.check_is(batch, tag);
        let place = Place {
            first: after + 1,
            last: after + batch.len() as u64,
            id: batch[0].id,
        };
        assert_eq!(
            self.found.insert(tag, place),
            None,
            "{tag:?} was stored twice"
        );
        self.events += batch.len() as u64;
        self.payload_bytes += batch
            .iter()
            .map(|event| event.data.len() as u64)
            .sum::<u64>();
    }

    fn work(&self, tag: Tag) -> Arc<Work> {
        let mut known = self.known.lock();
        if let Some(work) = known.get(&tag) {
            return Arc::clone(work);
        }
        let work = Arc::new(self.works.of(tag));
        if known.len() < KNOWN_MAX {
            known.insert(tag, Arc::clone(&work));
        }
        work
    }

    fn check_feed(&mut self, log: &SessionLog) {
        let feed = match self.fed {
            Some(seen) => log.feed_after(seen),
            None => log.feed(),
        };
        let is_whole = self.fed.is_none();
        let mut changed = Fed::default();
        for item in feed.expect("the feed").until_tail() {
            let item = item.expect("an item of the feed");
            if is_whole {
                changed.note(&item);
            }
            let StreamItem::Event(event) = item else {
                continue;
            };
            if !event.session_id.as_str().starts_with(SESSION) {
                continue;
            }
            assert!(
                self.fed.is_none_or(|before| before < event.id),
                "{} comes after {:?} in the feed",
                event.id,
                self.fed
            );
            self.fed = Some(event.id);
            self.events_fed += 1;
        }
        assert_eq!(
            self.events_fed, self.events,
            "the feed and the sessions hold the same number of events"
        );
        if is_whole {
            self.changes.check_fed(&changed);
        }
    }

    /// Changes sessions, after a look at what became of the last change. `tell` is told each line.
    ///
    /// # Errors
    ///
    /// That of the first call that failed.
    pub(crate) fn change(
        &mut self,
        log: &SessionLog,
        dice: &mut Dice,
        count: u64,
        tell: &dyn Fn(&str),
    ) -> Result<(), Error> {
        self.changes.check(log);
        if let Some(line) = self.changes.shown() {
            self.note(&line);
            tell(&line);
        }
        let known = self.changes.clone();
        let ledger = RefCell::new(self);
        let say = |line: String| {
            ledger.borrow_mut().note(&line);
            tell(&line);
        };
        let mut changer = Changer {
            changes: known,
            say: &say,
            backup: None,
        };
        changer.change(log, dice, count)
    }

    /// Whether a backup was made or begun.
    pub(crate) fn has_backup(&self) -> bool {
        self.backup.is_some() || !self.backups_tried.is_empty()
    }

    fn what_is_due_is_in(&self, log: &SessionLog) -> bool {
        self.due.values().all(|place| log.event(place.id).is_ok())
    }

    /// Checks a backup that was opened or refused.
    ///
    /// It is the last one that was made, or one that was begun after that. It holds all that was
    /// acknowledged before it began. It is refused only if another was begun.
    pub(crate) fn check_backup(&self, opened: Result<SessionLog, Error>) {
        let log = match opened {
            Ok(log) => log,
            Err(error) => {
                let is_begun = !self.backups_tried.is_empty();
                assert!(is_begun, "the backup does not open: {error:?}");
                return;
            }
        };
        let mut made = self.backups_tried.iter().chain(&self.backup);
        let is_it =
            |ledger: &&Arc<Self>| ledger.changes.are_in(&log) && ledger.what_is_due_is_in(&log);
        let Some(as_of) = made.find(is_it) else {
            panic!("the backup is none of those that were made or begun");
        };
        let mut ledger = Self::clone(as_of);
        ledger.forget_what_was_checked();
        let tried = self.open.iter().chain(self.due.keys());
        let later = tried.filter(|tag| !ledger.due.contains_key(tag)).copied();
        ledger.open = later.collect();
        ledger.check(&log);
    }

    /// Retries the keyed batches that were not acknowledged: each lands exactly once, also when
    /// retried twice. A batch without a key may be there or not.
    pub(crate) fn retry_what_was_not_acknowledged(&mut self, log: &SessionLog) {
        for tag in self.open.iter().copied().collect::<Vec<_>>() {
            let work = self.work(tag);
            if work.key.is_none() {
                continue;
            }
            let retry = || {
                let ack = log.append(&work.session, work.batch());
                ack.unwrap_or_else(|error| panic!("the retry of {tag:?} failed: {error:?}"))
            };
            let (ack, again) = (retry(), retry());
            let place = Place {
                first: ack.first,
                last: ack.last,
                id: ack.events[0].id,
            };
            assert!(
                again.replayed && again.events == ack.events,
                "the second retry of {tag:?} is no replay of the first"
            );
            let before = self.found.get(&tag).copied();
            assert_eq!(
                before,
                ack.replayed.then_some(place),
                "whether {tag:?} had landed before its retry"
            );
            assert!(
                ack.replayed || Some(place.id) > self.fed,
                "{} comes after {:?}",
                place.id,
                self.fed
            );
            self.note(&acknowledged(tag, &work, &ack));
        }
    }
}

/// Splits the first batch off `events`.
fn split_batch(events: &[Event]) -> Option<(&[Event], &[Event])> {
    let tag = Tag::of(events.first()?);
    Some(
        events.split_at(
            events
                .iter()
                .take_while(|event| Tag::of(event) == tag)
                .count(),
        ),
    )
}

fn number(text: &str) -> u64 {
    text.parse()
        .unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
}
