//! Appends a file of agent events to a log, reads them back in several ways, and verifies them
//! after reopening.
//!
//! ```text
//! cargo run --example quickstart -- [--data DIR] [--events FILE]
//! ```
//!
//! One thread reads the file, four append, and one streams a session live. Memory does not grow
//! with the size of the file: the program keeps a digest per session.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for a terminal"
)]

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};
use std::{env, mem, thread};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sessionlog::{
    Batch, ContentBlock, Error, Event, EventStream, MessageId, NewEvent, PageRequest, RecvTimeout,
    Seq, SessionId, SessionLog, StartAt, StreamItem,
};

const HELP: &str = "\
Appends a file of JSON lines to a session log and verifies it after reopening.

    --data DIR      folder of the log (default: a new temporary folder, which is kept)
    --events FILE   lines of {\"session_id\": .., \"type\": .., \"data\": {..}}
                    (default: the file that comes with the crate)
    --help          print this text";

const WRITERS: usize = 4;
/// Lines queued for one writer.
const QUEUE_LINES: usize = 16;
/// The longest line. A line with an event within the default limits is shorter.
const LINE_BYTES_MAX: u64 = 2 << 20;
const BATCH_EVENTS: usize = 8;
/// Data that a writer holds to form batches.
const HELD_BYTES_MAX: usize = 1 << 20;
/// How much of a page or a live session is printed.
const SHOWN: usize = 5;

type Cause = Box<dyn StdError + Send + Sync>;

fn main() -> ExitCode {
    let args = match Args::parse(env::args_os().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("quickstart: {problem}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = run(&args) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("quickstart: {}", with_causes(&*error));
    ExitCode::FAILURE
}

fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn run(args: &Args) -> Result<(), Cause> {
    let file = File::open(&args.events)
        .map_err(|error| format!("could not open {}: {error}", args.events.display()))?;
    let folder = match &args.data {
        Some(folder) => folder.clone(),
        None => tempfile::Builder::new()
            .prefix("sessionlog-")
            .tempdir()?
            .keep(),
    };
    let log = SessionLog::open(&folder)?;
    println!(
        "events from {}\nlog in {}\n",
        args.events.display(),
        folder.display()
    );

    let groups_before = log.stats().groups;
    let started = Instant::now();
    let (written, follower) = replay(
        &log,
        Lines {
            reader: BufReader::new(file),
            number: 0,
        },
    )?;
    let elapsed = started.elapsed();
    let groups = log.stats().groups - groups_before;
    written.print_acknowledged();
    if let Some(BadLine { number, cause }) = &written.failure {
        log.close()?;
        return Err(format!(
            "{}, line {number}: {}",
            args.events.display(),
            with_causes(&**cause)
        )
        .into());
    }
    if let Some(Follower {
        session,
        events,
        caught_up,
        ..
    }) = follower
    {
        println!("\nlive: {events} events of {session} without a gap, caught up {caught_up} times");
        print_pages(&log, &session)?;
        print_turn(
            &log,
            written
                .sessions
                .get(&session)
                .and_then(|session| session.turn),
        )?;
    }
    log.close()?;

    let log = SessionLog::open(&folder)?;
    for (session, expected) in &written.sessions {
        verify(&log, session, expected)?;
    }
    log.close()?;
    println!(
        "\nreopened: all {} events of {} sessions are present and in order",
        written.events,
        written.sessions.len()
    );
    written.print_figures(groups, elapsed);
    Ok(())
}

/// Appends all lines, while another thread streams the session of the first line.
fn replay(log: &SessionLog, lines: Lines) -> Result<(Written, Option<Follower>), Cause> {
    let mut lines = lines.peekable();
    let follower = match lines.peek() {
        Some(Ok(first)) => Some(Follower::start(log, &first.session)?),
        _ => None,
    };
    let live = follower.as_ref().map(|follower| follower.session.clone());
    let tail = OnceLock::new();
    thread::scope(|scope| {
        let follower = follower.map(|follower| scope.spawn(|| follower.run(&tail)));
        let written = write(log, lines);
        tail.get_or_init(|| {
            live.and_then(|session| written.sessions.get(&session))
                .map_or(0, Session::last)
        });
        let follower = follower
            .map(|thread| thread.join().expect("the follower does not panic"))
            .transpose()?;
        Ok((written, follower))
    })
}

/// Distributes the lines over the writers until the file ends, a line is bad or a writer stops.
/// Then waits for the writers.
fn write(log: &SessionLog, lines: impl Iterator<Item = Result<Line, BadLine>>) -> Written {
    thread::scope(|scope| {
        let start = |_| {
            let (sender, lines) = mpsc::sync_channel(QUEUE_LINES);
            (sender, scope.spawn(|| Writer::run(log, lines)))
        };
        let (senders, writers): (Vec<_>, Vec<_>) = (0..WRITERS).map(start).unzip();
        let mut written = Written {
            failure: deal(lines, &senders).err(),
            ..Written::default()
        };
        drop(senders);
        for writer in writers {
            written.merge(writer.join().expect("a writer does not panic"));
        }
        written
    })
}

/// All lines of a session go to the same writer, so its events stay in order.
fn deal(
    lines: impl Iterator<Item = Result<Line, BadLine>>,
    senders: &[SyncSender<Line>],
) -> Result<(), BadLine> {
    for line in lines {
        let line = line?;
        let hash = blake3::hash(line.session.as_str().as_bytes());
        let sender = senders
            .get(usize::from(hash.as_bytes()[0]) % WRITERS)
            .expect("there are as many senders as writers");
        if sender.send(line).is_err() {
            break;
        }
    }
    Ok(())
}

/// Forms batches of the lines of its sessions and appends them.
struct Writer<'a> {
    log: &'a SessionLog,
    held: BTreeMap<SessionId, Vec<Line>>,
    held_bytes: usize,
    written: Written,
}

impl<'a> Writer<'a> {
    /// Takes lines until there are no more or one fails, then appends what it holds.
    fn run(log: &'a SessionLog, lines: Receiver<Line>) -> Written {
        let mut writer = Self {
            log,
            held: BTreeMap::new(),
            held_bytes: 0,
            written: Written::default(),
        };
        let taken = lines.into_iter().try_for_each(|line| writer.take(line));
        let rest = writer.append_held();
        Written {
            failure: taken.and(rest).err(),
            ..writer.written
        }
    }

    /// A `user.message` ends its batch, because later events carry the message ID from its ack.
    fn take(&mut self, line: Line) -> Result<(), BadLine> {
        if self.held_bytes + line.data.len() > HELD_BYTES_MAX {
            self.append_held()?;
        }
        self.held_bytes += line.data.len();
        let session = line.session.clone();
        let opens_turn = line.event_type == "user.message";
        let held = self.held.entry(session.clone()).or_default();
        held.push(line);
        if !opens_turn && held.len() < BATCH_EVENTS {
            return Ok(());
        }
        let lines = mem::take(held);
        self.held_bytes -= lines.iter().map(|line| line.data.len()).sum::<usize>();
        self.append(&session, &lines)
    }

    /// Appends what is held of every session, and returns the first failure.
    fn append_held(&mut self) -> Result<(), BadLine> {
        self.held_bytes = 0;
        let mut outcome = Ok(());
        for (session, lines) in mem::take(&mut self.held) {
            outcome = outcome.and(self.append(&session, &lines));
        }
        outcome
    }

    /// Appends a batch. If the log rejects it, appends its events one by one up to the bad one.
    fn append(&mut self, session: &SessionId, lines: &[Line]) -> Result<(), BadLine> {
        let Some(first) = lines.first() else {
            return Ok(());
        };
        match self.append_batch(session, lines) {
            Err(Error::Invalid { .. } | Error::TooLarge { .. }) if lines.len() > 1 => lines
                .chunks(1)
                .try_for_each(|line| self.append(session, line)),
            result => result.map_err(|error| BadLine {
                number: first.number,
                cause: error.into(),
            }),
        }
    }

    fn append_batch(&mut self, session: &SessionId, lines: &[Line]) -> Result<(), Error> {
        let mut state = match self.written.sessions.get(session) {
            Some(state) => *state,
            None => Session::starting_after(last_seq(self.log, session)?),
        };
        let batch = Batch::new().events(lines.iter().map(|line| line.to_event(state.turn)));
        let started = Instant::now();
        let ack = self.log.append(session, batch)?;
        self.written.count(lines, started.elapsed());
        for line in lines {
            state.add(&line.event_type, &line.data);
        }
        state.turn = ack.events.last().and_then(|event| event.message_id);
        self.written.sessions.insert(session.clone(), state);
        Ok(())
    }
}

/// What this run appended to one session.
#[derive(Clone, Copy)]
struct Session {
    before: Seq,
    events: u64,
    digest: blake3::Hash,
    /// The turn that the next events belong to.
    turn: Option<MessageId>,
}

impl Session {
    fn starting_after(before: Seq) -> Self {
        Self {
            before,
            events: 0,
            digest: blake3::hash(b""),
            turn: None,
        }
    }

    fn last(&self) -> Seq {
        self.before + self.events
    }

    /// Chains the digests, so that the result depends on every byte and on the order of events.
    fn add(&mut self, event_type: &str, data: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(self.digest.as_bytes())
            .update(blake3::hash(event_type.as_bytes()).as_bytes())
            .update(data);
        self.digest = hasher.finalize();
        self.events += 1;
    }
}

/// The acknowledged events, and the first line that failed.
#[derive(Default)]
struct Written {
    sessions: BTreeMap<SessionId, Session>,
    events: usize,
    bytes: usize,
    /// Number of batches by microseconds until the ack.
    acks: BTreeMap<u128, u64>,
    failure: Option<BadLine>,
}

impl Written {
    fn count(&mut self, batch: &[Line], ack: Duration) {
        self.events += batch.len();
        self.bytes += batch.iter().map(|line| line.data.len()).sum::<usize>();
        *self.acks.entry(ack.as_micros()).or_default() += 1;
    }

    fn merge(&mut self, other: Self) {
        self.sessions.extend(other.sessions);
        self.events += other.events;
        self.bytes += other.bytes;
        for (micros, batches) in other.acks {
            *self.acks.entry(micros).or_default() += batches;
        }
        self.failure = self
            .failure
            .take()
            .into_iter()
            .chain(other.failure)
            .min_by_key(|failure| failure.number);
    }

    fn batches(&self) -> u64 {
        self.acks.values().sum()
    }

    fn ack_micros(&self, percent: u64) -> u128 {
        let rank = self.batches() * percent / 100;
        let mut below = 0;
        for (micros, batches) in &self.acks {
            below += batches;
            if below > rank {
                return *micros;
            }
        }
        0
    }

    fn print_acknowledged(&self) {
        println!(
            "\nacknowledged: {} events in {} batches, {} sessions",
            self.events,
            self.batches(),
            self.sessions.len()
        );
        for (id, session) in self.sessions.iter().take(4 * SHOWN) {
            println!(
                "  {id}: {} events, seq {} to {}",
                session.events,
                session.before + 1,
                session.last()
            );
        }
        if self.sessions.len() > 4 * SHOWN {
            println!("  and {} more sessions", self.sessions.len() - 4 * SHOWN);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "an approximate rate")]
    fn print_figures(&self, groups: u64, elapsed: Duration) {
        let rate = self.events as f64 / elapsed.as_secs_f64();
        println!(
            "\n  events   {:>10}   {rate:.0} per second, including reading the file",
            self.events
        );
        println!(
            "  batches  {:>10}   in {groups} commit groups with one barrier each",
            self.batches()
        );
        println!("  bytes    {:>10}   of data", self.bytes);
        println!(
            "  ack p50  {:>10}   us\n  ack p99  {:>10}   us",
            self.ack_micros(50),
            self.ack_micros(99)
        );
    }
}

/// Streams a session while it grows.
struct Follower {
    session: SessionId,
    stream: EventStream,
    last: Seq,
    events: usize,
    caught_up: usize,
}

impl Follower {
    /// Starts with the next event, also if the session does not exist yet.
    fn start(log: &SessionLog, session: &SessionId) -> Result<Self, Error> {
        let last = last_seq(log, session)?;
        let from = if last == 0 {
            StartAt::Creation
        } else {
            StartAt::After(last.into())
        };
        Ok(Self {
            session: session.clone(),
            stream: log.stream(session, from)?,
            last,
            events: 0,
            caught_up: 0,
        })
    }

    /// Reads until `tail` is known and reached.
    fn run(mut self, tail: &OnceLock<Seq>) -> Result<Self, Cause> {
        while tail.get().is_none_or(|tail| self.last < *tail) {
            match self.stream.next_timeout(Duration::from_millis(20)) {
                Ok(StreamItem::Event(event)) if event.seq != self.last + 1 => {
                    return Err(
                        format!("the stream went from seq {} to {}", self.last, event.seq).into(),
                    );
                }
                Ok(StreamItem::Event(event)) => {
                    self.last = event.seq;
                    self.events += 1;
                    if self.events <= SHOWN {
                        print_event("live", &event);
                    }
                }
                Ok(StreamItem::CaughtUp) => self.caught_up += 1,
                Ok(_) | Err(RecvTimeout::Elapsed) => {}
                Err(ended_or_failed) => return Err(ended_or_failed.into()),
            }
        }
        Ok(self)
    }
}

fn print_pages(log: &SessionLog, session: &SessionId) -> Result<(), Error> {
    for (name, page) in [
        ("forwards", PageRequest::new()),
        ("backwards", PageRequest::new().newest_first()),
    ] {
        let page = log.list(session, page.limit(SHOWN))?;
        println!(
            "\n{session}, {} of {} events, {name}:",
            page.items.len(),
            page.tail
        );
        page.items
            .iter()
            .for_each(|event| print_event("    ", event));
    }
    Ok(())
}

fn print_turn(log: &SessionLog, turn: Option<MessageId>) -> Result<(), Error> {
    let Some(turn) = turn else { return Ok(()) };
    let message = log.message(turn)?;
    let asked = message
        .content
        .iter()
        .find_map(ContentBlock::as_text)
        .unwrap_or_default();
    let said = message
        .output
        .last()
        .and_then(|said| said.get("text")?.as_str())
        .unwrap_or_default();
    let first_line = |text: &str| format!("{:.100}", text.lines().next().unwrap_or_default());
    println!(
        "\n{turn}, {} at attempt {}, {} assistant messages",
        message.status,
        message.attempt,
        message.output.len()
    );
    println!(
        "    asked      {}\n    last said  {}",
        first_line(asked),
        first_line(said)
    );
    Ok(())
}

fn print_event(prefix: &str, event: &Event) {
    println!(
        "{prefix} {:>5}  {}  {}  {} bytes",
        event.seq,
        event.id,
        event.event_type,
        event.data.len()
    );
}

/// Checks that the session holds the acknowledged events, byte for byte, directly after the events
/// that it had before.
fn verify(log: &SessionLog, session: &SessionId, expected: &Session) -> Result<(), Cause> {
    let mut found = Session::starting_after(expected.before);
    for event in log
        .stream(session, StartAt::After(expected.before.into()))?
        .until_tail()
        .events()
    {
        let event = event?;
        found.add(event.event_type.as_str(), &event.data);
        if event.seq != found.last() {
            return Err(format!(
                "session {session} has seq {} where {} belongs",
                event.seq,
                found.last()
            )
            .into());
        }
    }
    if found.events != expected.events || found.digest != expected.digest {
        return Err(format!("session {session} does not hold what was acknowledged").into());
    }
    Ok(())
}

/// The last seq of a session, 0 when it has no event.
fn last_seq(log: &SessionLog, session: &SessionId) -> Result<Seq, Error> {
    match log.head(session) {
        Ok(head) => Ok(head.last),
        Err(Error::UnknownSession { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

/// The lines of a file, read one by one. Empty lines are skipped.
struct Lines {
    reader: BufReader<File>,
    number: u64,
}

/// A line that could not be read or appended.
struct BadLine {
    number: u64,
    cause: Cause,
}

/// One event of the file. Its data is stored byte for byte.
struct Line {
    number: u64,
    session: SessionId,
    event_type: String,
    data: Bytes,
}

/// A line in the form that the file has.
#[derive(Deserialize)]
struct RawLine {
    session_id: String,
    r#type: String,
    data: Box<RawValue>,
}

impl Iterator for Lines {
    type Item = Result<Line, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        while line.trim_ascii().is_empty() {
            line.clear();
            self.number += 1;
            match self
                .reader
                .by_ref()
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
            {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => {
                    return Some(Err(BadLine {
                        number: self.number,
                        cause: error.into(),
                    }));
                }
            }
        }
        Some(Line::parse(self.number, &line).map_err(|cause| BadLine {
            number: self.number,
            cause,
        }))
    }
}

impl Line {
    fn parse(number: u64, line: &[u8]) -> Result<Self, Cause> {
        if line.len() as u64 == LINE_BYTES_MAX {
            return Err(format!("it has {LINE_BYTES_MAX} bytes or more").into());
        }
        // Where in the line is worth saying; that it is the first line of what was parsed is not.
        let plain =
            |error: serde_json::Error| error.to_string().replace(" at line 1 column ", " at byte ");
        let raw: RawLine = serde_json::from_slice(line.trim_ascii()).map_err(plain)?;
        if !raw.data.get().starts_with('{') {
            return Err("`data` is not an object".into());
        }
        let data = Bytes::from(Box::<str>::from(raw.data).into_boxed_bytes());
        Ok(Self {
            number,
            session: SessionId::new(raw.session_id)?,
            event_type: raw.r#type,
            data,
        })
    }

    fn to_event(&self, turn: Option<MessageId>) -> NewEvent {
        let event = NewEvent::new(&self.event_type, self.data.clone());
        match turn {
            Some(turn) => event.in_turn(turn),
            None => event,
        }
    }
}

struct Args {
    data: Option<PathBuf>,
    events: PathBuf,
}

impl Args {
    /// `None` when help is asked for.
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let shipped =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/agent_sessions.jsonl");
        let mut parsed = Self {
            data: None,
            events: shipped,
        };
        while let Some(arg) = args.next() {
            let mut value = || {
                args.next()
                    .map(PathBuf::from)
                    .ok_or_else(|| format!("{} needs a value", arg.display()))
            };
            match arg.to_str() {
                Some("--data") => parsed.data = Some(value()?),
                Some("--events") => parsed.events = value()?,
                Some("--help") => return Ok(None),
                _ => return Err(format!("unknown argument {}", arg.display())),
            }
        }
        Ok(Some(parsed))
    }
}
