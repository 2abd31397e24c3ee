//! Readers beside a writer that does everything at random, on files so small that each is used
//! again within moments.
//!
//! A ledger records what the writer was about to do and what was acknowledged. A reader looks at it
//! before and after a refresh. So it knows what it must be shown, and what it may be shown.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::support::report::{Dice, seed};
use crate::model::{Error, Result};
use crate::sync::{AtomicBool, AtomicU64, Instant, Mutex, Ordering, scope};
use crate::{
    Batch, Delete, Event, EventId, NewEvent, Options, PageRequest, Seq, SessionId, SessionLog,
    SessionQuery, StartAt,
};

const KIB: usize = 1024;
const SESSIONS: u64 = 12;
const READERS: usize = 2;

/// How long the writer works.
const TIME: Duration = Duration::from_secs(4);

fn options() -> Options {
    let mut options = Options::new()
        .journal_file_bytes_max(128 * KIB)
        .group_bytes_max(128 * KIB)
        .recent_bytes_max(256 * KIB)
        .merge_fanout(2)
        .tier_bytes_max(1024 * KIB);
    options.journal_file_bytes_min = 32 * KIB;
    options
}

fn session(nth: u64) -> SessionId {
    SessionId::new(format!("s{nth}")).unwrap()
}

/// What is known of a session.
#[derive(Debug, Clone, Default)]
struct Known {
    /// How often a deletion was begun, and was acknowledged.
    deletions_begun: u32,
    deletions: u32,
    /// The last seq that was acknowledged since the last deletion, and its ID.
    last: Option<(Seq, EventId)>,
    /// The first kept seq that a trim was begun for, and was acknowledged for.
    first_begun: Seq,
    first: Seq,
    redactions_begun: u32,
    redacted: Vec<Seq>,
}

type Ledger = Mutex<HashMap<u64, Known>>;

/// The writer.
struct Writing<'a> {
    folder: &'a Path,
    ledger: &'a Ledger,
    dice: Dice,
    log: SessionLog,
}

impl Writing<'_> {
    fn note(&self, nth: u64, note: impl FnOnce(&mut Known)) {
        note(self.ledger.lock().entry(nth).or_default());
    }

    fn known(&self, nth: u64) -> Known {
        self.ledger.lock().get(&nth).cloned().unwrap_or_default()
    }

    fn step(&mut self) {
        let nth = self.dice.below(SESSIONS);
        match self.dice.below(400) {
            0..4 => self.delete(nth),
            4..12 => self.trim(nth),
            12..24 => self.redact(nth),
            24..26 => {
                let compacted = self.log.compact(|_progress| ControlFlow::Continue(()));
                compacted.unwrap();
            }
            26..28 => self.open_again(),
            28..34 => self.append(nth, 60 * KIB),
            34..80 => self.append(nth, 5 * KIB),
            _ => self.append(nth, 50),
        }
    }

    fn append(&self, nth: u64, bytes: usize) {
        let data = vec![b'x'; bytes];
        let count = 1 + data.len() % 3;
        let batch = Batch::new().events((0..count).map(|_| NewEvent::new("note", data.clone())));
        let ack = self.log.append(&session(nth), batch).unwrap();
        let last = ack.events.last().map(|event| (event.seq, event.id));
        self.note(nth, |known| known.last = last);
    }

    fn delete(&self, nth: u64) {
        if self.known(nth).last.is_none() {
            return;
        }
        self.note(nth, |known| known.deletions_begun += 1);
        self.log.delete(&session(nth), Delete::new()).unwrap();
        self.note(nth, |known| {
            *known = Known {
                deletions_begun: known.deletions_begun,
                deletions: known.deletions + 1,
                ..Known::default()
            };
        });
    }

    fn trim(&mut self, nth: u64) {
        let known = self.known(nth);
        let Some((last, _)) = known.last else { return };
        let first = known.first.max(1) + self.dice.below(last - known.first.max(1) + 1);
        self.note(nth, |known| known.first_begun = first);
        self.log.trim(&session(nth), first).unwrap();
        self.note(nth, |known| known.first = first);
    }

    fn redact(&mut self, nth: u64) {
        let known = self.known(nth);
        let Some((last, id)) = known.last.filter(|(last, _)| *last >= known.first.max(1)) else {
            return;
        };
        self.note(nth, |known| known.redactions_begun += 1);
        self.log.redact(id, "a test").unwrap();
        self.note(nth, |known| known.redacted.push(last));
    }

    /// Ends the log in either way and opens it again.
    fn open_again(&mut self) {
        if self.dice.flip() {
            self.log.close().unwrap();
        }
        // The last handle of the writer is dropped before the folder is locked again.
        self.log = options().read_only().open(self.folder).unwrap();
        self.log = options().open(self.folder).unwrap();
    }
}

/// What a reader was shown last of each session: generation and last seq.
type Shown = HashMap<u64, (u32, Seq)>;

fn check(log: &SessionLog, before: &HashMap<u64, Known>, ledger: &Ledger, shown: &mut Shown) {
    for nth in 0..SESSIONS {
        let id = session(nth);
        let found = match log.session(&id) {
            Ok(info) => {
                let events = events_of(log, &id);
                Some((info, events))
            }
            Err(Error::UnknownSession { .. }) => None,
            Err(error) => panic!("{id}: {error:?}"),
        };
        let now = ledger.lock().get(&nth).cloned().unwrap_or_default();
        let known = before.get(&nth).cloned().unwrap_or_default();
        let Some((info, events)) = found else {
            let is_due = known.last.is_some() && now.deletions_begun == known.deletions;
            assert!(!is_due, "{id} is missing: {known:?}");
            continue;
        };
        assert!(
            info.generation > known.deletions,
            "{info:?} was deleted: {known:?}"
        );
        let seqs: Vec<Seq> = events.iter().map(|event| event.seq).collect();
        let dense: Vec<Seq> = (info.first..=info.last).collect();
        assert_eq!(seqs, dense, "{info:?}");
        let is_same = now.deletions_begun == known.deletions;
        if is_same && let Some((last, _)) = known.last {
            assert!(
                info.last >= last,
                "{info:?} lacks what was acknowledged: {known:?}"
            );
            assert!(info.first >= known.first, "{info:?} was trimmed: {known:?}");
            assert!(
                info.first <= now.first_begun.max(1),
                "{info:?} lacks its start: {now:?}"
            );
            for event in &events {
                let must = known.redacted.contains(&event.seq);
                assert!(event.redacted || !must, "{event:?} was redacted: {known:?}");
                let may = now.redactions_begun > 0;
                assert!(
                    may || !event.redacted,
                    "{event:?} was not redacted: {now:?}"
                );
            }
        }
        for event in &events {
            assert!(event.redacted || event.data.iter().all(|byte| *byte == b'x'));
        }
        let stood = shown.insert(nth, (info.generation, info.last));
        assert!(
            stood <= Some((info.generation, info.last)),
            "{info:?} went back"
        );
    }
}

fn events_of(log: &SessionLog, id: &SessionId) -> Vec<Event> {
    let mut events = Vec::new();
    let mut page = log.list(id, PageRequest::new().limit(100)).unwrap();
    loop {
        events.append(&mut page.items);
        let Some(next) = page.next_page() else { break };
        page = log.list(id, next).unwrap();
    }
    let stream = log.stream(id, StartAt::Beginning).unwrap();
    let streamed: Result<Vec<Event>> = stream.until_tail().events().collect();
    assert_eq!(streamed.unwrap(), events);
    events
}

fn check_feed(log: &SessionLog) {
    let fed: Result<Vec<Event>> = log.feed().unwrap().until_tail().events().collect();
    let fed = fed.unwrap();
    assert!(fed.is_sorted_by(|a, b| a.id < b.id));
    let listed = log.sessions(SessionQuery::by_id().limit(1_000)).unwrap();
    let held: u64 = listed
        .items
        .iter()
        .map(|info| info.last + 1 - info.first)
        .sum();
    assert_eq!(fed.len() as u64, held);
}

#[test]
fn a_reader_is_shown_all_that_was_acknowledged_whatever_the_writer_does() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, ledger, done) = (folder.path(), Ledger::default(), AtomicBool::new(false));
    let mut dice = Dice(seed());
    let mut writing = Writing {
        folder,
        ledger: &ledger,
        dice: Dice(dice.roll()),
        log: options().open(folder).unwrap(),
    };
    let refreshes = AtomicU64::new(0);
    scope(|scope| {
        for _ in 0..READERS {
            let (ledger, done, mut dice) = (&ledger, &done, Dice(dice.roll()));
            let refreshes = &refreshes;
            scope.spawn(move || {
                let open = || options().open_read_only(folder).unwrap();
                let (mut log, mut shown) = (open(), Shown::new());
                let mut newest = None;
                while !done.load(Ordering::SeqCst) {
                    let before = ledger.lock().clone();
                    let last = if dice.one_in(10) {
                        log = open();
                        log.refresh().unwrap()
                    } else {
                        log.refresh().unwrap()
                    };
                    assert!(last >= newest, "{last:?} after {newest:?}");
                    newest = last;
                    refreshes.fetch_add(1, Ordering::SeqCst);
                    if dice.flip() {
                        check(&log, &before, ledger, &mut shown);
                    }
                    if dice.one_in(5) {
                        check_feed(&log);
                    }
                }
                let stats = log.stats();
                assert!(stats.recent_bytes < 4_096 * KIB as u64, "{stats:?}");
            });
        }
        let began = Instant::now();
        while began.elapsed() < TIME {
            writing.step();
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(refreshes.load(Ordering::SeqCst) > 50);
    let log = options().open_read_only(folder).unwrap();
    let all = ledger.lock().clone();
    check(&log, &all, &ledger, &mut Shown::new());
    check_feed(&log);
}
