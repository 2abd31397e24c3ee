//! kill -9 at random moments: a child process appends until it is killed, and what it acknowledged through a pipe must be there.
//!
//! Every event tells in its data which append of which child it belongs to, and its bytes follow from that, so a log is checked
//! against nothing but itself and the acknowledgements. Nothing here waits for a fixed time, save for the kill.

#![allow(clippy::print_stdout, reason = "it says which seed it ran with, and how much it did")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use sessionlog::{Ack, After, Batch, Error, Event, EventId, NewEvent, Options, Page, SessionId, SessionLog};

const CYCLES: u32 = 100;
const WRITERS: u32 = 3;
/// So that a child that is never killed does not fill the disk.
const APPENDS_PER_WRITER: u32 = 60;
const SESSIONS: u64 = 7;
const PAGE: usize = 1_000;
/// How long a child may take to open the log before the test gives up.
const OPEN_DEADLINE: Duration = Duration::from_mins(1);
const HOUR_MS: u64 = 3_600_000;
const CLOCK_START_MS: u64 = 1_750_000_000_000;

const ENV_FOLDER: &str = "SESSIONLOG_CRASH_FOLDER";
const ENV_CYCLE: &str = "SESSIONLOG_CRASH_CYCLE";
const ENV_SEED: &str = "SESSIONLOG_CRASH_SEED";

#[test]
fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    thread::scope(|scope| {
        for log in 0..2 {
            scope.spawn(move || check(seed().wrapping_add(log)));
        }
    });
}

/// Not a test of its own: what the child process runs. Without the variables it does nothing.
#[test]
fn the_child_that_is_killed() {
    let (Ok(folder), Ok(cycle), Ok(seed)) = (std::env::var(ENV_FOLDER), std::env::var(ENV_CYCLE), std::env::var(ENV_SEED)) else {
        return;
    };
    let number = |text: String| text.parse::<u64>().expect("the parent gives numbers");
    be_the_child(Path::new(&folder), number(seed), u32::try_from(number(cycle)).expect("cycles are few"));
}

/// One log, grown and killed `CYCLES` times.
fn check(seed: u64) {
    println!("kill -9: {CYCLES} cycles with {ENV_SEED}={seed}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut dice = Dice(seed);
    let mut ledger = Ledger::new(seed);
    let mut segments = 0;
    for cycle in 1..=CYCLES {
        kill_a_child(folder.path(), cycle, &mut dice, &mut ledger);
        // A child that opens what the one before left behind meets the crash itself, and may be killed while it recovers.
        if cycle == CYCLES || dice.below(3) > 0 {
            let log = open(folder.path(), cycle);
            if cycle == CYCLES || dice.below(15) == 0 {
                ledger.forget_what_was_checked();
            }
            ledger.check(&log);
            ledger.retry_what_was_not_acknowledged(&log, cycle);
            ledger.check(&log);
            segments = log.stats().segments;
            if dice.below(2) == 0 {
                log.close().expect("close");
            }
        }
    }
    let Ledger { acked, found, .. } = &ledger;
    println!("kill -9: {} appends acknowledged, {} found, {segments} segments, seed {seed}", acked.len(), found.len());
    assert!(segments >= 3, "only {segments} segments were sealed, too few to have met many kills");
    assert!(acked.len() > CYCLES as usize, "only {} appends were acknowledged in {CYCLES} cycles", acked.len());
}

/// The seed of this run, from the environment if it is set there.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let given = std::env::var(ENV_SEED).ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| RandomState::new().build_hasher().finish())
}

/// Every second cycle the clock is an hour behind, in the child as in the parent.
fn open(folder: &Path, cycle: u32) -> SessionLog {
    let start_ms = CLOCK_START_MS + u64::from(cycle) * 1_000 - if cycle.is_multiple_of(2) { HOUR_MS } else { 0 };
    let begun = Instant::now();
    Options::new()
        .journal_file_bytes_max(4 * 1024 * 1024)
        .page_events_max(PAGE)
        .clock(move || UNIX_EPOCH + Duration::from_millis(start_ms) + begun.elapsed())
        .open(folder)
        .unwrap_or_else(|error| panic!("the log does not open in cycle {cycle}: {error:?}"))
}

// The child.

fn be_the_child(folder: &Path, seed: u64, cycle: u32) {
    let mut pipe = File::from(io::stdout().as_fd().try_clone_to_owned().expect("the pipe to the parent"));
    tell(&mut pipe, "");
    let log = open(folder, cycle);
    tell(&mut pipe, "open");
    for writer in 0..WRITERS {
        let (log, pipe) = (log.clone(), pipe.try_clone().expect("the pipe to the parent"));
        thread::spawn(move || write(&log, pipe, seed, cycle, writer));
    }
    // The parent never writes: this ends when the parent does, and nothing is left running.
    let _ended = io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(1);
}

fn write(log: &SessionLog, mut pipe: File, seed: u64, cycle: u32, writer: u32) {
    for nth in 0..APPENDS_PER_WRITER {
        let tag = Tag { cycle, writer, nth };
        let work = Work::new(seed, tag);
        tell(&mut pipe, &format!("try {cycle} {writer} {nth}"));
        match log.append(&work.session, work.batch()) {
            Ok(ack) => {
                let hash = hash(ack.events.iter().map(|event| &event.data[..]));
                let Ack { first, last, events, .. } = ack;
                tell(&mut pipe, &format!("ack {cycle} {writer} {nth} {first} {last} {} {hash}", events[0].id));
            }
            Err(error) => tell(&mut pipe, &format!("fail {tag:?} {error:?}")),
        }
    }
}

/// One write call a line, so that a line is in the pipe wholly or not at all.
fn tell(pipe: &mut File, line: &str) {
    let line = format!("{line}\n");
    if !matches!(pipe.write(line.as_bytes()), Ok(written) if written == line.len()) {
        std::process::exit(1);
    }
}

// The parent.

fn kill_a_child(folder: &Path, cycle: u32, dice: &mut Dice, ledger: &mut Ledger) {
    let delay = Duration::from_micros(1_000 + dice.below(59_000));
    let count_opening = dice.below(3) == 0;
    let mut child = spawn(folder, cycle, ledger.seed);
    let lines = lines_of(&mut child);
    let mut deadline = Instant::now() + if count_opening { delay } else { OPEN_DEADLINE };
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line == "open" && !count_opening => deadline = Instant::now() + delay,
            Ok(line) => ledger.note(&line),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => panic!("the child of cycle {cycle} ended by itself: {:?}", child.wait()),
        }
    }
    child.kill().expect("kill the child");
    let status = child.wait().expect("wait for the child");
    assert_eq!(status.signal(), Some(9), "the child of cycle {cycle} ended by itself: {status}");
    for line in lines {
        ledger.note(&line);
    }
}

fn spawn(folder: &Path, cycle: u32, seed: u64) -> Child {
    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
    Command::new(std::env::current_exe().expect("this program"))
        .args([&format!("{module}::the_child_that_is_killed"), "--exact", "--nocapture", "--test-threads=1"])
        .env(ENV_FOLDER, folder)
        .env(ENV_CYCLE, cycle.to_string())
        .env(ENV_SEED, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the child")
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let mut pipe = BufReader::new(child.stdout.take().expect("the child's pipe"));
    let (sender, lines) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        while pipe.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
            if sender.send(std::mem::take(&mut line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    lines
}

/// Which append: of which child, by which of its writers, in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tag {
    cycle: u32,
    writer: u32,
    nth: u32,
}

/// What an append stores, which follows from its tag.
struct Work {
    session: SessionId,
    events: Vec<(&'static str, Vec<u8>)>,
    key: Option<String>,
}

const TAG_BYTES: usize = 20;

impl Work {
    fn new(seed: u64, tag: Tag) -> Self {
        let Tag { cycle, writer, nth } = tag;
        let mut dice = Dice(seed ^ (u64::from(cycle) << 40 | u64::from(writer) << 32 | u64::from(nth) << 8));
        let session = session_name(dice.below(SESSIONS));
        let count = if dice.below(4) == 0 { 1 + dice.small(40) } else { 1 };
        let key = (dice.below(2) == 0).then(|| format!("{cycle}/{writer}/{nth}"));
        let bytes = [64, 400, 2_000, 20_000, 90_000, 300_000][dice.small(6) as usize];
        let bytes = if count > 1 { bytes / 10 } else { bytes };
        let events = (0..count).map(|index| {
            let mut data = [cycle, writer, nth, index, count].map(u32::to_le_bytes).concat();
            (0..dice.below(bytes + 1).div_ceil(8)).for_each(|_| data.extend_from_slice(&dice.roll().to_le_bytes()));
            (["tool.progress", "agent.thought"][index as usize % 2], data)
        });
        Self { session, events: events.collect(), key }
    }

    fn batch(&self) -> Batch {
        let batch = Batch::new().events(self.events.iter().map(|(event_type, data)| NewEvent::new(*event_type, data.clone())));
        match &self.key {
            Some(key) => batch.idempotency_key(key),
            None => batch,
        }
    }
}

fn session_name(n: u64) -> SessionId {
    SessionId::new(format!("session {n}")).expect("the name follows the rules")
}

impl Tag {
    fn of(event: &Event) -> Self {
        assert!(
            event.data.len() >= TAG_BYTES,
            "event {} of {} at {} is none that was appended",
            event.id,
            event.session_id,
            event.seq
        );
        let field = |n: usize| u32::from_le_bytes(event.data[n * 4..n * 4 + 4].try_into().expect("four bytes"));
        Self { cycle: field(0), writer: field(1), nth: field(2) }
    }
}

/// Where a batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    first: u64,
    last: u64,
    id: EventId,
}

/// All that was told through the pipe, and all that was found in the log.
struct Ledger {
    seed: u64,
    /// Told to have begun, and not acknowledged.
    open: BTreeSet<Tag>,
    acked: BTreeMap<Tag, Place>,
    found: BTreeMap<Tag, Place>,
    /// The last seq of each session that was looked at.
    checked: BTreeMap<SessionId, u64>,
    /// The last event of the feed that was looked at.
    fed: Option<EventId>,
    /// How many events were found, session by session and in the feed.
    events: u64,
    events_fed: u64,
}

impl Ledger {
    fn new(seed: u64) -> Self {
        let (open, acked, found, checked) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { seed, open, acked, found, checked, fed: None, events: 0, events_fed: 0 }
    }

    /// Takes a line from the pipe. The test harness of the child writes there as well.
    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["try", cycle, writer, nth] => assert!(self.open.insert(tag(cycle, writer, nth)), "{line} comes twice"),
            ["ack", cycle, writer, nth, first, last, id, data] => {
                let tag = tag(cycle, writer, nth);
                let place = Place { first: number(first), last: number(last), id: id.parse().expect("an event ID") };
                let work = Work::new(self.seed, tag);
                assert_eq!(
                    number(data),
                    hash(work.events.iter().map(|(_, data)| &data[..])),
                    "the ack of {tag:?} shows other data"
                );
                self.acknowledged(tag, place);
            }
            ["fail", ..] => panic!("an append of the child failed: {line}"),
            _ => {}
        }
    }

    fn acknowledged(&mut self, tag: Tag, place: Place) {
        self.open.remove(&tag);
        assert_eq!(self.acked.insert(tag, place), None, "{tag:?} was acknowledged twice");
    }

    fn forget_what_was_checked(&mut self) {
        *self = Self { open: self.open.clone(), acked: std::mem::take(&mut self.acked), ..Self::new(self.seed) };
    }

    /// Whatever the log holds beyond what was looked at before is whole, in order and where it was acknowledged to be.
    fn check(&mut self, log: &SessionLog) {
        for session in (0..SESSIONS).map(session_name) {
            self.check_session(log, &session);
        }
        for (tag, place) in &self.acked {
            assert_eq!(self.found.get(tag), Some(place), "{tag:?} was acknowledged, and the log has it elsewhere or not");
        }
        self.check_feed(log);
    }

    fn check_session(&mut self, log: &SessionLog, session: &SessionId) {
        let mut seq = self.checked.get(session).copied().unwrap_or(0);
        loop {
            let page = match log.list(session, Page::after(seq).limit(PAGE)) {
                Err(Error::UnknownSession { .. }) if seq == 0 => return,
                got => got.unwrap_or_else(|error| panic!("{session} cannot be read after {seq}: {error:?}")),
            };
            // A batch may end on the next page: what of it lies on this one is read again with the rest.
            let mut events = &page.events[..];
            while let Some((batch, rest)) = split_batch(events)
                && !(rest.is_empty() && page.has_more)
            {
                self.check_batch(session, seq, batch);
                seq += batch.len() as u64;
                events = rest;
            }
            if !page.has_more {
                assert_eq!(seq, page.tail, "the last page of {session} ends before its tail");
                self.checked.insert(session.clone(), seq);
                return;
            }
        }
    }

    fn check_batch(&mut self, session: &SessionId, after: u64, batch: &[Event]) {
        let tag = Tag::of(&batch[0]);
        let work = Work::new(self.seed, tag);
        assert_eq!(&work.session, session, "{tag:?} lies in another session");
        assert_eq!(batch.len(), work.events.len(), "{tag:?} is not whole, after seq {after} of {session}");
        for (i, (event, (event_type, data))) in batch.iter().zip(&work.events).enumerate() {
            assert_eq!((event.seq, event.event_type.as_str()), (after + 1 + i as u64, *event_type), "event {i} of {tag:?}");
            assert_eq!(event.id.to_u128(), batch[0].id.to_u128() + i as u128, "the ID of event {i} of {tag:?}");
            assert!(event.data == *data, "event {i} of {tag:?} has other bytes");
        }
        let place = Place { first: after + 1, last: after + batch.len() as u64, id: batch[0].id };
        assert_eq!(self.found.insert(tag, place), None, "{tag:?} was stored twice");
        self.events += batch.len() as u64;
    }

    fn check_feed(&mut self, log: &SessionLog) {
        let feed = log.feed(self.fed.map(After)).expect("the feed").until_tail();
        for event in feed.events() {
            let event = event.expect("an event of the feed");
            assert!(self.fed.is_none_or(|before| before < event.id), "{} comes after {:?} in the feed", event.id, self.fed);
            self.fed = Some(event.id);
            self.events_fed += 1;
        }
        assert_eq!(self.events_fed, self.events, "the feed and the sessions hold the same number of events");
    }

    /// A retry under the same key lands exactly once, also twice in a row; what had no key may be there or not.
    fn retry_what_was_not_acknowledged(&mut self, log: &SessionLog, cycle: u32) {
        for tag in std::mem::take(&mut self.open) {
            let work = Work::new(self.seed, tag);
            if work.key.is_none() {
                continue;
            }
            let retry = || {
                log.append(&work.session, work.batch()).unwrap_or_else(|error| panic!("retry of {tag:?} in {cycle}: {error:?}"))
            };
            let (ack, again) = (retry(), retry());
            let place = Place { first: ack.first, last: ack.last, id: ack.events[0].id };
            assert!(again.replayed && again.events == ack.events, "the second retry of {tag:?} is no replay of the first");
            assert_eq!(
                self.found.get(&tag).copied(),
                ack.replayed.then_some(place),
                "whether {tag:?} had landed before its retry"
            );
            assert!(ack.replayed || Some(place.id) > self.fed, "{} comes after {:?}, in cycle {cycle}", place.id, self.fed);
            self.acknowledged(tag, place);
        }
    }
}

/// Cuts the first batch off `events`.
fn split_batch(events: &[Event]) -> Option<(&[Event], &[Event])> {
    let tag = Tag::of(events.first()?);
    Some(events.split_at(events.iter().take_while(|event| Tag::of(event) == tag).count()))
}

fn tag(cycle: &str, writer: &str, nth: &str) -> Tag {
    let number = |text| u32::try_from(number(text)).expect("a small number");
    Tag { cycle: number(cycle), writer: number(writer), nth: number(nth) }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
}

/// FNV-1a over the data of a batch.
fn hash<'a>(data: impl Iterator<Item = &'a [u8]>) -> u64 {
    data.flatten().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3))
}

/// splitmix64: the same rolls for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn small(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).expect("it is below a small number")
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}
