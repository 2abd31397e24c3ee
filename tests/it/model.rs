//! Compares the log with plain vectors and maps: the same operations on both, and the first
//! difference is a panic.
//!
//! The model of a fork is a full copy of what its parent shows. A deletion drops the copy, a trim
//! the start of it, and a redaction blanks the event in every copy. So nothing in the model depends
//! on where an event is stored.
//!
//! An operation is written in eight bytes and refers to stored events by position, so any bytes are
//! a script. proptest shrinks a script by dropping operations, and the fuzz target `operations`
//! calls the same [`run`]. The model predicts results and errors alike, with the numbers in them.
//! It never looks inside the log's folder, except to damage the index, which must not matter.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, thread};

use serde_json::{Map, Value, json};
use sessionlog::{
    Ack, Batch, Cursor, CursorProblem, Delete, Error, Event, EventId, EventStream, EventType,
    Expected, Fork, Limit, Message, MessageId, NewEvent, NewSession, Options, Page, PageRequest,
    Producer, RecvTimeout, Removed, Result, SessionChange, SessionCursor, SessionId, SessionInfo,
    SessionLog, SessionPatch, SessionQuery, StartAt, StreamItem, transfer,
};

#[cfg(not(fuzzing))]
use crate::support::{in_one_order, on_postgres, open_at};

/// An operation on the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// An append of a batch of this shape.
    Append {
        session: u8,
        shape: Shape,
        key: Option<u8>,
        expected: Want,
    },
    /// A status of one of the session's turns.
    Tell {
        session: u8,
        turn: u8,
        said: Said,
    },
    /// The nth keyed append once more.
    Retry {
        nth: u8,
        change: Change,
    },
    /// A batch with some hundred KB per event. A few of them fill a journal file.
    Fill {
        session: u8,
        events: u8,
    },
    /// One page.
    List {
        session: u8,
        after: Option<At>,
        before: Option<At>,
        order: Order,
        limit: u8,
        types: u8,
    },
    /// Page after page to the end.
    Walk {
        session: u8,
        order: Order,
        limit: u8,
        types: u8,
    },
    /// A stream up to the tail.
    Stream {
        session: u8,
        from: Begin,
    },
    /// An event by its ID.
    Event(Point),
    /// A message by its ID.
    Message(Point),
    /// The head of a session, the session itself, and its forks.
    Head(u8),
    /// Sessions in the order of their names.
    Sessions {
        after: Option<u8>,
        limit: u8,
    },
    /// Sessions by newest activity.
    RecentSessions {
        limit: u8,
    },
    /// All pages of sessions in an order, through a filter.
    Query(Asked),
    /// All sessions' events and changes in commit order, up to the tail.
    Feed {
        after: Option<Point>,
    },
    /// Creates a session without an event.
    Create {
        session: u8,
        titled: bool,
        patch: u8,
    },
    /// Sets the title, the metadata or the hold.
    Describe {
        session: u8,
        patch: u8,
        expected: Want,
    },
    CloseSession(u8),
    ReopenSession(u8),
    /// A batch that may come from a producer, close its session and describe it.
    Work {
        session: u8,
        events: u8,
        closing: bool,
        patch: Option<u8>,
        key: Option<u8>,
        producer: Option<Made>,
    },
    Delete {
        session: u8,
        expected: Want,
        unless_open: bool,
        reason: u8,
    },
    Trim {
        session: u8,
        at: Place,
    },
    Redact {
        point: Point,
        reason: u8,
    },
    Fork {
        parent: u8,
        child: u8,
        at: Branch,
        titled: bool,
        patch: Option<u8>,
    },
    /// Opens a stream that stays open over the next operations.
    Watch {
        session: u8,
        from: Begin,
    },
    /// Reads some items of the open streams.
    Observe {
        items: u8,
    },
    /// Erases what was removed. No reader sees a difference.
    Compact,
    /// Close and open.
    Reopen,
    /// The log is exported, and what is imported from that takes its place.
    Move {
        /// Whether it was closed before.
        closed: bool,
    },
    /// Drop without closing, and open.
    Drop,
    /// Close, remove the index, open.
    DeleteIndex,
    /// Close, damage the index, open.
    DamageIndex(Damage),
    /// The wall clock steps by this many milliseconds.
    Clock(i32),
}

/// The shape of a batch. All but the first are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Good { events: u8, bytes: u16, mix: u8 },
    NoEvents,
    NoType,
    LongType,
    ControlInType,
    NoKey,
    LongKey,
    ManyEvents,
    LargeEvent,
    LargeBatch,
}

/// What a status event says: one of [`STATUSES`], and maybe an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    status: u8,
    attempt: Option<u32>,
}

/// What a retry changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    Data,
    Type,
    Turn,
    Count,
    Expected,
}

/// What an append expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Any,
    NoSession,
    Exists,
    Tail,
    Seq(u8),
    Absent,
    /// Nothing of some types came after a seq.
    NothingSince(u8, u8),
}

/// The writer of a batch: its epoch, and the number of the batch in relation to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    id: u8,
    epoch: Epoch,
    number: Number,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epoch {
    Same,
    Next,
    Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    Next,
    Again,
    Early,
    Gap,
    None,
}

/// The first event that a trim keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    At(At),
    /// None is kept.
    Everything,
}

/// The point where a fork leaves its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Branch {
    End,
    At(At),
    Before(At),
}

/// A question for sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    by: By,
    reversed: bool,
    limit: u8,
    after: Option<Point>,
    filter: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Id,
    Activity,
    Creation,
}

/// A stored event, by its place in commit order, or an ID that no event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    Stored(u16),
    Unknown(u16),
}

/// A cursor into a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// A seq from 0 to two beyond the tail.
    Seq(u16),
    /// An event of the session.
    Own(u16),
    /// An event of any session, or of none.
    Event(Point),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    NewestFirst,
}

/// The start of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    Start,
    Creation,
    Now,
    After(At),
}

/// The damage to the files of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    TruncateAll,
    TruncateOne(u8),
    RemoveOne(u8),
    Zero,
    Scribble(u8),
    Empty,
    OlderCopy,
}

#[cfg(fuzzing)]
fn open_at(options: Options, folder: &Path) -> sessionlog::Result<SessionLog> {
    options.open(folder)
}

#[cfg(fuzzing)]
fn on_postgres() -> bool {
    false
}

#[cfg(fuzzing)]
fn in_one_order() -> bool {
    true
}

/// Runs `ops` on a fresh log and on the model.
///
/// # Panics
///
/// At the first difference.
pub(crate) fn run(ops: &[Op]) {
    let mut world = World::new();
    for (place, op) in ops.iter().enumerate() {
        let telling = Telling { place, op };
        world.close_shards();
        world.apply(op);
        drop(telling);
    }
    world.compare_everything();
    world.reopen(&Stop::Close, |_| ());
}

/// Reads any bytes as a script, eight for each operation.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Op> {
    bytes
        .chunks(OP_BYTES)
        .take(OPS_MAX)
        .map(decode_op)
        .collect()
}

const OP_BYTES: usize = 8;
const OPS_MAX: usize = 100;

/// Names that are prefixes of each other, look like paths, or have the maximum length.
const SESSIONS: usize = 8;
const SESSIONS_BUSY: usize = 3;
const TYPES: [&str; 4] = ["user.message", "note", "agent.thought", "ü"];
/// The last two are no statuses that the log knows.
const STATUSES: [&str; 8] = [
    "queued",
    "running",
    "waiting_for_tool",
    "completed",
    "failed",
    "cancelled",
    "canceled",
    "paused",
];
const EVENT_BYTES_MAX: usize = 128 * 1024;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
const BATCH_EVENTS_MAX: usize = 16;
const TYPE_BYTES_MAX: usize = 40;
const KEY_BYTES_MAX: usize = 30;
const PAGE_EVENTS_MAX: usize = 50;
const SCAN_BYTES_MAX: usize = 1024 * 1024;
const FILL_EVENT_BYTES: usize = 110_000;
const CLOCK_START_MS: u64 = 1_750_000_000_000;
/// No seqs.
#[expect(clippy::reversed_empty_ranges, reason = "it is meant to be empty")]
const NOTHING: RangeInclusive<u64> = 1..=0;
/// The fields of an event besides its data and its type.
const FEW_BYTES: u64 = 40;
const TITLE_BYTES_MAX: usize = 1024;
const REASON_BYTES_MAX: usize = 256;
const METADATA_BYTES_MAX: usize = 16 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);

#[expect(
    clippy::many_single_char_names,
    reason = "they are eight bytes without a meaning of their own"
)]
fn decode_op(chunk: &[u8]) -> Op {
    let mut b = [0; OP_BYTES];
    b[..chunk.len()].copy_from_slice(chunk);
    let [kind, s, x, y, z, u, v, w] = b;
    match kind % 64 {
        32.. => decode_lifecycle(kind % 32, [s, x, y, z, u, v, w]),
        7 => Op::Tell {
            session: s,
            turn: x,
            said: Said {
                status: y,
                attempt: (z % 3 == 0).then_some(1 + u32::from(u % 3)),
            },
        },
        0..=6 => Op::Append {
            session: s,
            shape: decode_shape(x, y, z, w),
            key: (u % 3 == 0).then_some(u / 3),
            expected: decode_want(v, w),
        },
        8..=9 => Op::Retry {
            nth: s,
            change: decode_change(x),
        },
        10..=14 => Op::Fill {
            session: s,
            events: 4 + x % 5,
        },
        15..=18 => Op::List {
            session: s,
            after: decode_at(x, y),
            before: decode_at(z, u),
            order: decode_order(v),
            limit: v / 2,
            types: w,
        },
        19 => Op::Walk {
            session: s,
            order: decode_order(x),
            limit: y,
            types: z,
        },
        20 => Op::Stream {
            session: s,
            from: decode_begin(x, y, z),
        },
        21 => Op::Event(decode_point(s, x)),
        22 => Op::Message(decode_point(s, x)),
        23 => Op::Head(s),
        24 => Op::Sessions {
            after: (x % 2 == 0).then_some(s),
            limit: y,
        },
        25 => Op::RecentSessions { limit: s },
        26 => Op::Feed {
            after: (x % 4 != 0).then(|| decode_point(s, y)),
        },
        27 if s % 3 == 0 => Op::Move { closed: s % 2 == 0 },
        27 => Op::Reopen,
        28 => Op::Drop,
        29 => Op::DeleteIndex,
        30 => Op::DamageIndex(decode_damage(s, x)),
        _ => Op::Clock(decode_step(s, x, y)),
    }
}

/// The operations on whole sessions.
#[expect(
    clippy::many_single_char_names,
    reason = "they are seven bytes without a meaning of their own"
)]
fn decode_lifecycle(kind: u8, [s, x, y, z, u, v, w]: [u8; OP_BYTES - 1]) -> Op {
    match kind {
        0 | 1 => Op::Create {
            session: s,
            titled: x % 2 == 0,
            patch: y,
        },
        2 | 3 => Op::Describe {
            session: s,
            patch: x,
            expected: decode_want(y, z),
        },
        4 => Op::CloseSession(s),
        5 => Op::ReopenSession(s),
        6..=9 => Op::Work {
            session: s,
            events: x % 4,
            closing: y % 4 == 0,
            patch: (z % 4 == 0).then_some(z / 4),
            key: (u % 4 == 0).then_some(u / 4),
            producer: (v % 4 != 0).then(|| decode_made(v, w)),
        },
        10..=12 => Op::Delete {
            session: s,
            expected: decode_want(x, y),
            unless_open: z % 3 == 0,
            reason: u,
        },
        13..=16 => Op::Trim {
            session: s,
            at: match x % 8 {
                0 => Place::Everything,
                _ => Place::At(decode_at(y, z).unwrap_or(At::Own(u16::from(z)))),
            },
        },
        17..=19 => Op::Redact {
            point: decode_point(s, x),
            reason: y,
        },
        20..=24 => Op::Fork {
            parent: s,
            child: x,
            at: match (y % 4, decode_at(z, u)) {
                (0, Some(at)) => Branch::Before(at),
                (1 | 2, Some(at)) => Branch::At(at),
                _ => Branch::End,
            },
            titled: v % 3 == 0,
            patch: (w % 3 == 0).then_some(w / 3),
        },
        25 | 26 => Op::Watch {
            session: s,
            from: decode_begin(x, y, z),
        },
        27 | 28 => Op::Observe { items: s },
        29 => Op::Query(Asked {
            by: match s % 3 {
                0 => By::Id,
                1 => By::Activity,
                _ => By::Creation,
            },
            reversed: x % 2 == 0,
            limit: y,
            after: (z % 2 == 0).then(|| decode_point(u, v)),
            filter: w,
        }),
        _ => Op::Compact,
    }
}

fn decode_made(v: u8, w: u8) -> Made {
    Made {
        id: v / 4,
        epoch: match w % 8 {
            0 => Epoch::Next,
            1 => Epoch::Before,
            _ => Epoch::Same,
        },
        number: match w / 8 % 8 {
            0 => Number::Again,
            1 => Number::Early,
            2 => Number::Gap,
            3 => Number::None,
            _ => Number::Next,
        },
    }
}

fn decode_shape(x: u8, y: u8, z: u8, w: u8) -> Shape {
    match x {
        0 => Shape::NoEvents,
        1 => Shape::NoType,
        2 => Shape::LongType,
        3 => Shape::ControlInType,
        4 => Shape::NoKey,
        5 => Shape::LongKey,
        6 => Shape::ManyEvents,
        7 => Shape::LargeEvent,
        8 => Shape::LargeBatch,
        _ => Shape::Good {
            events: 1 + x % 5,
            bytes: u16::from_le_bytes([y, z]) % 3_000,
            mix: w,
        },
    }
}

fn decode_want(v: u8, w: u8) -> Want {
    match v % 12 {
        0 => Want::NoSession,
        1 => Want::Exists,
        2 | 3 => Want::Tail,
        4 => Want::Seq(w),
        5 => Want::Absent,
        6 => Want::NothingSince(w, w / 16),
        _ => Want::Any,
    }
}

fn decode_change(x: u8) -> Change {
    match x % 8 {
        0 => Change::Data,
        1 => Change::Type,
        2 => Change::Turn,
        3 => Change::Count,
        4 => Change::Expected,
        _ => Change::Nothing,
    }
}

fn decode_at(kind: u8, n: u8) -> Option<At> {
    match kind % 8 {
        0 | 1 => Some(At::Seq(u16::from(n))),
        2 | 3 => Some(At::Own(u16::from(n))),
        4 => Some(At::Event(decode_point(kind, n))),
        _ => None,
    }
}

fn decode_point(kind: u8, n: u8) -> Point {
    if kind % 4 == 3 {
        Point::Unknown(u16::from(n))
    } else {
        Point::Stored(u16::from_le_bytes([n, kind]))
    }
}

fn decode_order(x: u8) -> Order {
    if x.is_multiple_of(2) {
        Order::Ascending
    } else {
        Order::NewestFirst
    }
}

fn decode_begin(x: u8, y: u8, z: u8) -> Begin {
    match x % 4 {
        0 => Begin::Start,
        1 => Begin::Creation,
        2 => Begin::Now,
        _ => decode_at(y, z).map_or(Begin::Start, Begin::After),
    }
}

fn decode_damage(s: u8, x: u8) -> Damage {
    match s % 7 {
        0 => Damage::TruncateAll,
        1 => Damage::TruncateOne(x),
        2 => Damage::RemoveOne(x),
        3 => Damage::Zero,
        4 => Damage::Scribble(x),
        5 => Damage::Empty,
        _ => Damage::OlderCopy,
    }
}

/// Steps of a few milliseconds, of seconds, and of hours, either way.
fn decode_step(s: u8, x: u8, y: u8) -> i32 {
    let step = i32::from(i16::from_le_bytes([s, x]));
    match y % 3 {
        0 => step % 5,
        1 => step,
        _ => step * 1_000,
    }
}

/// Prints the operation that a panic came from.
struct Telling<'a> {
    place: usize,
    op: &'a Op,
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "the model and the log differ at operation {}: {:?}",
                self.place, self.op
            );
        }
    }
}

/// The log under test, compared with the model.
struct World {
    model: Model,
    /// Before the log, so that no stream keeps the log open when both are dropped.
    watches: Vec<Watch>,
    log: Option<SessionLog>,
    folder: tempfile::TempDir,
    older_index: Option<tempfile::TempDir>,
    clock: Arc<AtomicU64>,
}

/// A stream that is open over several operations.
struct Watch {
    session: SessionId,
    stream: EventStream,
    /// The generation that is streamed; 0 while it waits for the session.
    generation: u32,
    last: u64,
    caught_up: bool,
}

/// What should be stored.
#[derive(Default)]
struct Model {
    /// The sessions that exist.
    sessions: BTreeMap<SessionId, Session>,
    /// How often each session has begun.
    generations: BTreeMap<SessionId, u32>,
    /// All events that were ever stored, in commit order, removed or not.
    issued: Vec<Issued>,
    /// Their places in `issued`.
    ids: BTreeMap<EventId, usize>,
    /// All that was committed, in order.
    commits: Vec<Commit>,
    /// The time in the newest ID.
    newest_ms: u64,
    /// Every keyed batch that was well formed, whether it landed or not.
    tries: Vec<Try>,
    batches: u64,
}

/// A session with a copy of each event that it shows.
#[derive(Clone)]
struct Session {
    generation: u32,
    first: u64,
    last: u64,
    last_id: Option<EventId>,
    events: BTreeMap<u64, Stored>,
    /// The events that a trim removed.
    trimmed: BTreeMap<EventId, Gone>,
    closed: bool,
    described: Described,
    parent: Option<(SessionId, u32, u64)>,
    keys: BTreeMap<String, Landed>,
    producers: BTreeMap<String, Known>,
    /// The place in `commits`, and the time.
    created: (usize, u64),
    active: (usize, u64),
}

/// A removed event: its seq, and whether it was removed before the session was forked.
#[derive(Debug, Clone, Copy)]
struct Gone {
    seq: u64,
    inherited: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Described {
    title: Option<String>,
    metadata: Map<String, Value>,
    hold: bool,
}

/// What a session remembers of a producer.
#[derive(Debug, Clone, Copy)]
struct Known {
    epoch: u64,
    number: Option<u64>,
    first: u64,
    last: u64,
}

/// An event as it was appended.
struct Issued {
    id: EventId,
    session: SessionId,
    generation: u32,
    seq: u64,
    /// Its place in `commits`.
    place: usize,
}

enum Commit {
    /// The place in `issued`.
    Event(usize),
    Change {
        session: SessionId,
        generation: u32,
        created_ms: u64,
        change: Value,
    },
}

/// An event as a session shows it.
#[derive(Clone)]
struct Stored {
    id: EventId,
    session: SessionId,
    seq: u64,
    /// The session that it was appended to, and its generation.
    origin: (SessionId, u32),
    given: Given,
    message_id: Option<MessageId>,
    created_ms: u64,
    redacted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    event_type: String,
    data: Vec<u8>,
    turn: Option<MessageId>,
    said: Option<Said>,
}

#[derive(Clone)]
struct Landed {
    content: Content,
    first: u64,
    last: u64,
}

#[derive(Clone)]
struct Try {
    session: SessionId,
    given: Vec<Given>,
    key: Option<String>,
    expected: Expected,
    patch: Option<Patch>,
    closing: bool,
    producer: Option<(String, u64, Option<u64>)>,
}

/// What a retry has to repeat, by the name of its key.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    given: Vec<Given>,
    patch: Option<Value>,
    closing: bool,
    producer: Option<(String, u64, Option<u64>)>,
}

/// The expected result of an append.
enum Answer {
    Lands,
    Replays {
        first: u64,
        last: u64,
    },
    /// What it asks for is so already.
    Unchanged {
        last: u64,
    },
    Fails(Error),
}

/// A description that is set, and how the feed should tell it.
#[derive(Debug, Clone, Default)]
struct Patch {
    #[expect(clippy::option_option, reason = "it is left, removed or set")]
    title: Option<Option<String>>,
    metadata: Option<Value>,
    hold: Option<bool>,
}

enum Stop {
    Close,
    Drop,
}

fn session_name(n: u8) -> SessionId {
    let longest = "s".repeat(SessionId::BYTES_MAX);
    let names: [&str; SESSIONS] = ["a", "ab", "a/../b", "b", "é", &longest, "A", "../../x"];
    // A few have most of the operations, so that these meet.
    let of = if n < 96 { SESSIONS } else { SESSIONS_BUSY };
    SessionId::new(names[usize::from(n) % of]).expect("the name follows the rules")
}

/// Bytes that no other seed gives.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let clock = Arc::new(AtomicU64::new(CLOCK_START_MS));
        let mut world = Self {
            model: Model::default(),
            watches: Vec::new(),
            log: None,
            folder,
            older_index: None,
            clock,
        };
        world.log = Some(world.open());
        world
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Append {
                session,
                shape,
                key,
                expected,
            } => self.append_shape(session, shape, key, expected),
            Op::Tell {
                session,
                turn,
                said,
            } => self.tell(session, turn, said),
            Op::Retry { nth, change } => self.retry(nth, change),
            Op::Fill { session, events } => self.fill(session, events),
            Op::List {
                session,
                after,
                before,
                order,
                limit,
                types,
            } => {
                self.list(&Listing {
                    session: session_name(session),
                    after,
                    before,
                    order,
                    limit: usize::from(limit),
                    types: types_of(types),
                });
            }
            Op::Walk {
                session,
                order,
                limit,
                types,
            } => self.walk(&session_name(session), order, limit, &types_of(types)),
            Op::Stream { session, from } => self.stream(&session_name(session), from),
            Op::Event(point) => self.event(point),
            Op::Message(point) => self.message(point),
            Op::Head(session) => self.whole(&session_name(session)),
            Op::Sessions { after, limit } => {
                self.sessions(after.map(session_name).as_ref(), usize::from(limit));
            }
            Op::RecentSessions { limit } => self.recent_sessions(usize::from(limit)),
            Op::Feed { after } => self.feed(after),
            Op::Reopen => self.reopen(&Stop::Close, Self::keep_older_index),
            Op::Move { closed } => {
                let stop = if closed { Stop::Close } else { Stop::Drop };
                self.reopen(&stop, Self::move_by_text);
            }
            Op::Drop => self.reopen(&Stop::Drop, |_| ()),
            Op::DeleteIndex => self.reopen(&Stop::Close, Self::delete_index),
            Op::DamageIndex(damage) => {
                self.reopen(&Stop::Close, |world| world.damage_index(damage));
            }
            Op::Clock(step) => self.step_clock(step),
            _ => self.apply_to_session(op),
        }
    }

    fn apply_to_session(&mut self, op: &Op) {
        match *op {
            Op::Create {
                session,
                titled,
                patch,
            } => self.create(&session_name(session), titled.then_some("Created"), patch),
            Op::Describe {
                session,
                patch,
                expected,
            } => self.describe(&session_name(session), &Patch::of(patch), expected),
            Op::CloseSession(session) => self.close_session(&session_name(session)),
            Op::ReopenSession(session) => self.reopen_session(&session_name(session)),
            Op::Work {
                session,
                events,
                closing,
                patch,
                key,
                producer,
            } => self.work(
                session_name(session),
                (events, key),
                (closing, patch),
                producer,
            ),
            Op::Delete {
                session,
                expected,
                unless_open,
                reason,
            } => self.delete(&session_name(session), (expected, unless_open), reason),
            Op::Trim { session, at } => self.trim(&session_name(session), at),
            Op::Redact { point, reason } => self.redact(point, reason),
            Op::Fork {
                parent,
                child,
                at,
                titled,
                patch,
            } => self.fork(
                (&session_name(parent), &session_name(child)),
                at,
                (titled, patch),
            ),
            Op::Watch { session, from } => self.watch(&session_name(session), from),
            Op::Observe { items } => self.observe(items),
            Op::Query(asked) => self.query(asked),
            Op::Compact => self.compact(),
            _ => unreachable!("it was applied before"),
        }
    }

    fn log(&self) -> &SessionLog {
        self.log
            .as_ref()
            .expect("the log is open between operations")
    }

    fn now_ms(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn step_clock(&self, step: i32) {
        let now = self.now_ms().saturating_add_signed(i64::from(step));
        self.clock.store(now, Ordering::SeqCst);
    }
}

/// Appending.
impl World {
    fn append_shape(&mut self, session: u8, shape: Shape, key: Option<u8>, expected: Want) {
        let session = session_name(session);
        let expected = self.model.expected(&session, expected);
        let key = match shape {
            Shape::NoKey => Some(String::new()),
            Shape::LongKey => Some("k".repeat(KEY_BYTES_MAX + 1)),
            _ => key.map(|n| format!("key {}", n % 6)),
        };
        let given = self.model.given(shape);
        self.append(Try {
            key,
            expected,
            ..Try::new(session, given)
        });
    }

    fn fill(&mut self, session: u8, events: u8) {
        let seed = self.model.next_batch();
        let given = (0..u64::from(events))
            .map(|i| Given::plain("note", noise(seed + i, FILL_EVENT_BYTES)))
            .collect();
        self.append(Try::new(session_name(session), given));
    }

    fn tell(&mut self, session: u8, turn: u8, said: Said) {
        let session = session_name(session);
        let turns = self.model.turns(&session);
        let Some(turn) = turns.iter().cycle().nth(usize::from(turn)) else {
            return;
        };
        let given = vec![Given {
            turn: Some(turn.id.into()),
            said: Some(said),
            ..Given::plain("message.status_changed", said.data().into_bytes())
        }];
        self.append(Try::new(session, given));
    }

    fn retry(&mut self, nth: u8, change: Change) {
        let Some(earlier) = self.model.tries.iter().rev().cycle().nth(usize::from(nth)) else {
            return;
        };
        let mut again = earlier.clone();
        if again.given.is_empty() {
            return self.append(again);
        }
        match change {
            Change::Nothing => {}
            Change::Data => again.given[0].data.push(b' '),
            Change::Type => again.given[0].event_type.push('!'),
            Change::Turn => again
                .given
                .iter_mut()
                .filter(|given| !given.opens_turn())
                .for_each(Given::change_turn),
            Change::Count => again.given.push(again.given[0].clone()),
            Change::Expected => again.expected = Expected::NoSession,
        }
        self.append(again);
    }

    fn append(&mut self, attempt: Try) {
        let answer = self.model.answer(&attempt);
        let got = self.log().append(&attempt.session, attempt.batch());
        match (answer, got) {
            (Answer::Fails(error), got) => assert_error(got.map(|ack| ack.last), &[error]),
            (Answer::Replays { first, last }, Ok(ack)) => {
                assert!(
                    ack.replayed,
                    "the append was stored a second time, at seq {}",
                    ack.first
                );
                self.model
                    .assert_replay(&attempt.session, first..=last, &ack);
            }
            (Answer::Unchanged { last }, Ok(ack)) => {
                assert!(!ack.replayed && ack.events.is_empty(), "{ack:?}");
                assert_eq!((ack.first, ack.last), (last + 1, last), "an empty ack");
            }
            (Answer::Lands, Ok(ack)) => self.landed(&attempt, &ack),
            (_, Err(error)) => panic!("the append should have succeeded: {error:?}"),
        }
        if attempt.key.is_some() && attempt.check().is_ok() {
            self.model.tries.push(attempt);
        }
    }

    /// IDs cannot be predicted, but everything that is promised of them can be checked.
    fn landed(&mut self, attempt: &Try, ack: &Ack) {
        assert!(!ack.replayed, "a new batch was answered as a replay");
        let now_ms = self.now_ms();
        let base = ack.events.first().map(|event| event.id);
        if let Some(base) = base {
            let newest = self.model.newest_event();
            assert!(base > newest, "{base} was given out after {newest}");
            let (at, least) = (base.timestamp_ms(), now_ms.max(self.model.newest_ms));
            // Of several shards a group may go on into the next millisecond.
            let is_fit = at == least || (!in_one_order() && at > least);
            assert!(is_fit, "the time in {base}, after {newest}, is not {least}");
        }
        let range = self.model.store(attempt, base, now_ms);
        self.model.assert_replay(&attempt.session, range, ack);
    }
}

impl Try {
    fn new(session: SessionId, given: Vec<Given>) -> Self {
        Self {
            session,
            given,
            key: None,
            expected: Expected::Any,
            patch: None,
            closing: false,
            producer: None,
        }
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::new()
            .events(self.given.iter().map(Given::event))
            .expected(self.expected.clone());
        if let Some(key) = &self.key {
            batch = batch.idempotency_key(key);
        }
        if let Some(patch) = &self.patch {
            batch = batch.patch(patch.asked());
        }
        if self.closing {
            batch = batch.closing();
        }
        if let Some((id, epoch, number)) = &self.producer {
            let producer = Producer::new(id).epoch(*epoch);
            batch = batch.producer(match number {
                Some(number) => producer.seq(*number),
                None => producer,
            });
        }
        batch
    }

    /// The rules of a batch that do not depend on what is stored.
    fn check(&self) -> Result<(), Error> {
        let changes = self.closing || self.patch.is_some();
        if self.given.is_empty() && !changes
            || self
                .given
                .iter()
                .any(|given| given.event_type.is_empty() || given.event_type.contains('\n'))
        {
            return Err(invalid());
        }
        if let Some(patch) = &self.patch {
            patch.check()?;
        }
        within(Limit::BatchEvents, self.given.len(), BATCH_EVENTS_MAX)?;
        for given in &self.given {
            within(
                Limit::EventTypeBytes,
                given.event_type.len(),
                TYPE_BYTES_MAX,
            )?;
            within(Limit::EventBytes, given.data.len(), EVENT_BYTES_MAX)?;
        }
        within(
            Limit::BatchBytes,
            self.given.iter().map(|given| given.data.len()).sum(),
            BATCH_BYTES_MAX,
        )?;
        match &self.key {
            Some(key) if key.is_empty() => Err(invalid()),
            Some(key) => within(Limit::IdempotencyKeyBytes, key.len(), KEY_BYTES_MAX),
            None => Ok(()),
        }
    }
}

impl Said {
    fn status(self) -> &'static str {
        STATUSES[usize::from(self.status) % STATUSES.len()]
    }

    fn data(self) -> String {
        let attempt = self
            .attempt
            .map(|attempt| format!(r#","attempt":{attempt}"#));
        let attempt = attempt.unwrap_or_default();
        format!(r#"{{"status":"{}"{attempt}}}"#, self.status())
    }
}

impl Given {
    fn plain(event_type: &str, data: Vec<u8>) -> Self {
        Self {
            event_type: event_type.to_owned(),
            data,
            turn: None,
            said: None,
        }
    }

    fn event(&self) -> NewEvent {
        let event = NewEvent::new(&self.event_type, self.data.clone());
        match self.turn {
            Some(turn) => event.in_turn(turn),
            None => event,
        }
    }

    fn change_turn(&mut self) {
        self.turn = Some(EventId::from_u128(7).into());
    }

    fn opens_turn(&self) -> bool {
        self.event_type == TYPES[0]
    }
}

impl Model {
    fn next_batch(&mut self) -> u64 {
        self.batches += 100;
        self.batches
    }

    fn tail(&self, session: &SessionId) -> u64 {
        self.sessions.get(session).map_or(0, |found| found.last)
    }

    fn newest_event(&self) -> EventId {
        self.issued
            .last()
            .map_or(EventId::from_u128(0), |issued| issued.id)
    }

    fn expected(&self, session: &SessionId, want: Want) -> Expected {
        let tail = self.tail(session);
        match want {
            Want::Any => Expected::Any,
            Want::NoSession => Expected::NoSession,
            Want::Exists => Expected::Exists,
            Want::Tail => Expected::Seq(tail),
            Want::Seq(n) => Expected::Seq(u64::from(n) % (tail + 3)),
            Want::Absent => Expected::Absent,
            Want::NothingSince(n, types) => {
                Expected::nothing_since(u64::from(n) % (tail + 3), types_of(types))
            }
        }
    }

    fn given(&mut self, shape: Shape) -> Vec<Given> {
        let seed = self.next_batch();
        match shape {
            Shape::Good { events, bytes, mix } => (0..events)
                .map(|i| self.good(seed + u64::from(i), usize::from(bytes), mix / 4 + i))
                .collect(),
            Shape::NoEvents => Vec::new(),
            Shape::NoType => vec![Given::plain("", Vec::new())],
            Shape::LongType => vec![Given::plain(&"t".repeat(TYPE_BYTES_MAX + 1), Vec::new())],
            Shape::ControlInType => vec![Given::plain("a\nb", Vec::new())],
            Shape::NoKey | Shape::LongKey => vec![self.good(seed, 10, 0)],
            Shape::ManyEvents => vec![Given::plain("note", Vec::new()); BATCH_EVENTS_MAX + 1],
            Shape::LargeEvent => vec![Given::plain("note", vec![0; EVENT_BYTES_MAX + 1])],
            Shape::LargeBatch => vec![
                Given::plain("note", vec![0; EVENT_BYTES_MAX]);
                1 + BATCH_BYTES_MAX / EVENT_BYTES_MAX
            ],
        }
    }

    /// Returns a valid event. Some open a turn, some belong to the newest turn of any session, some
    /// to a turn that never existed.
    fn good(&self, seed: u64, bytes: usize, mix: u8) -> Given {
        let event_type = TYPES[usize::from(mix) % TYPES.len()];
        if event_type == TYPES[0] {
            let data = format!(
                r#"{{"content":[{{"type":"text","text":"turn {seed}"}}],"metadata":{{}}}}"#
            );
            return Given::plain(event_type, data.into_bytes());
        }
        let newest_turn = || {
            let all = self
                .sessions
                .values()
                .flat_map(|found| found.events.values());
            all.filter(|event| event.given.opens_turn())
                .map(|event| event.id)
                .max()
        };
        let turn = match mix / 4 % 4 {
            0 => newest_turn(),
            1 => Some(EventId::from_u128(u128::from(seed))),
            _ => None,
        };
        Given {
            turn: turn.map(MessageId::from),
            ..Given::plain(event_type, noise(seed, bytes))
        }
    }

    /// The events that opened the session's turns.
    fn turns(&self, session: &SessionId) -> Vec<&Stored> {
        self.of_session(session, 1..=u64::MAX)
            .filter(|event| event.given.opens_turn())
            .collect()
    }

    /// The status of a turn, its attempt, and when it ended, told from its status events.
    fn state(&self, opened: &Stored) -> (&'static str, u32, Option<u64>) {
        let (mut status, mut attempt) = ("queued", 1);
        for event in self.of_session(&opened.session, opened.seq + 1..=u64::MAX) {
            let Some(said) = event.given.said else {
                continue;
            };
            let of = said.attempt.unwrap_or(attempt);
            if event.message_id != Some(opened.id.into()) || of < attempt {
                continue;
            }
            match (said.status(), of > attempt) {
                (end @ ("completed" | "failed" | "cancelled"), _) => {
                    return (end, of, Some(event.created_ms));
                }
                (begun @ ("queued" | "running"), true) => (status, attempt) = (begun, of),
                (now @ ("running" | "waiting_for_tool"), false) => status = now,
                _ => {}
            }
        }
        (status, attempt, None)
    }

    fn is_open(&self, opened: &Stored) -> bool {
        self.state(opened).2.is_none()
    }

    fn assert_state(&self, opened: &Stored, message: &Message) {
        let at = message
            .completed_at
            .map(|at| u64::try_from(at.as_millisecond()).expect("the clock is past the epoch"));
        assert_eq!(
            (message.status.as_str(), message.attempt, at),
            self.state(opened),
            "the state of {}",
            message.id
        );
    }

    fn answer(&self, attempt: &Try) -> Answer {
        if let Err(error) = attempt.check() {
            return Answer::Fails(error);
        }
        let found = self.sessions.get(&attempt.session);
        if let Some(found) = found
            && let Some(answer) = found.repeated(attempt)
        {
            return answer;
        }
        match self.refusal(attempt, found) {
            Some(error) => Answer::Fails(error),
            None => match found {
                Some(found) if !attempt.changes(found) => Answer::Unchanged { last: found.last },
                _ => Answer::Lands,
            },
        }
    }

    fn refusal(&self, attempt: &Try, found: Option<&Session>) -> Option<Error> {
        let session = attempt.session.clone();
        if found.is_none() && attempt.given.is_empty() {
            return Some(Error::UnknownSession { session });
        }
        if let Some(found) = found.filter(|found| found.closed && !attempt.given.is_empty()) {
            let last = found.last;
            return Some(Error::SessionClosed { session, last });
        }
        if let Some((producer, epoch, Some(received))) = attempt.producer.clone() {
            let known = found.and_then(|found| found.producers.get(&producer));
            let known = known.filter(|known| known.epoch == epoch);
            let expected = known.and_then(|known| known.number).map_or(0, |n| n + 1);
            if received != expected {
                return Some(Error::ProducerGap {
                    session,
                    producer,
                    expected,
                    received,
                });
            }
        }
        if let Some(error) = self.mismatch(&session, &attempt.expected) {
            return Some(error);
        }
        let mut described = found
            .map(|found| found.described.clone())
            .unwrap_or_default();
        described.apply(attempt.patch.as_ref()?);
        described.check().err()
    }

    /// The error if a session does not end as expected.
    fn mismatch(&self, session: &SessionId, expected: &Expected) -> Option<Error> {
        let actual = self.tail(session);
        let holds = match expected {
            Expected::Any => true,
            Expected::NoSession => actual == 0,
            Expected::Exists => actual > 0,
            Expected::Seq(seq) => actual == *seq,
            Expected::Absent => !self.sessions.contains_key(session),
            Expected::NothingSince { seq, types } => {
                let excluded = |event: &&Stored| {
                    let is_it = |name: &&str| *name == event.given.event_type;
                    types.iter().map(EventType::as_str).any(|name| is_it(&name))
                };
                let mut after = self.of_session(session, seq + 1..=u64::MAX);
                return after.find(excluded).map(|event| Error::ConditionFailed {
                    session: session.clone(),
                    event: event.id,
                    seq: event.seq,
                });
            }
            other => panic!("the model does not know {other:?}"),
        };
        (!holds).then(|| Error::ExpectedMismatch {
            session: session.clone(),
            expected: expected.clone(),
            actual,
        })
    }

    fn store(
        &mut self,
        attempt: &Try,
        base: Option<EventId>,
        created_ms: u64,
    ) -> RangeInclusive<u64> {
        let name = &attempt.session;
        self.begin(name, created_ms);
        let found = self.sessions.get_mut(name).expect("it began");
        let origin = (name.clone(), found.generation);
        let first = found.last + 1;
        for (given, nth) in attempt.given.iter().zip(0_u128..) {
            let base = base.expect("a batch with events has an ID").to_u128();
            let id = EventId::from_u128(base + nth);
            let message_id = if given.opens_turn() {
                Some(id.into())
            } else {
                given.turn
            };
            found.last += 1;
            found.last_id = Some(id);
            found.active = (self.commits.len(), created_ms);
            let stored = Stored {
                id,
                session: name.clone(),
                seq: found.last,
                origin: origin.clone(),
                given: given.clone(),
                message_id,
                created_ms,
                redacted: false,
            };
            found.events.insert(found.last, stored);
            self.ids.insert(id, self.issued.len());
            self.commits.push(Commit::Event(self.issued.len()));
            self.issued.push(Issued {
                id,
                session: name.clone(),
                generation: origin.1,
                seq: found.last,
                place: self.commits.len() - 1,
            });
        }
        let range = first..=found.last;
        if let Some(key) = &attempt.key {
            let landed = Landed {
                content: attempt.content(),
                first,
                last: found.last,
            };
            found.keys.insert(key.clone(), landed);
        }
        if let Some((id, epoch, number)) = &attempt.producer {
            found.note_producer(id, *epoch, *number, &range);
        }
        if let Some(patch) = &attempt.patch {
            found.described.apply(patch);
            self.commit_change(name, patch.told(), created_ms);
        }
        if attempt.closing {
            self.session_mut(name).closed = true;
            self.commit_change(name, json!({"type": "closed"}), created_ms);
        }
        self.newest_ms = self.newest_ms.max(created_ms);
        range
    }

    /// Begins the next generation of a session that does not exist.
    fn begin(&mut self, name: &SessionId, created_ms: u64) {
        if self.sessions.contains_key(name) {
            return;
        }
        let generation = self.generations.entry(name.clone()).or_default();
        *generation += 1;
        let now = (self.commits.len(), created_ms);
        let begun = Session {
            generation: *generation,
            first: 1,
            last: 0,
            last_id: None,
            events: BTreeMap::new(),
            trimmed: BTreeMap::new(),
            closed: false,
            described: Described::default(),
            parent: None,
            keys: BTreeMap::new(),
            producers: BTreeMap::new(),
            created: now,
            active: now,
        };
        self.sessions.insert(name.clone(), begun);
    }

    fn session_mut(&mut self, name: &SessionId) -> &mut Session {
        self.sessions.get_mut(name).expect("the session exists")
    }

    fn commit_change(&mut self, name: &SessionId, change: Value, created_ms: u64) {
        self.newest_ms = self.newest_ms.max(created_ms);
        self.commits.push(Commit::Change {
            session: name.clone(),
            generation: self.generations.get(name).copied().unwrap_or_default(),
            created_ms,
            change,
        });
    }

    fn assert_replay(&self, session: &SessionId, range: RangeInclusive<u64>, ack: &Ack) {
        assert_eq!(
            (ack.first, ack.last),
            (*range.start(), *range.end()),
            "the seqs of the ack"
        );
        assert_same(&ack.events, self.of_session(session, range));
    }

    fn of_session(
        &self,
        session: &SessionId,
        seqs: RangeInclusive<u64>,
    ) -> impl DoubleEndedIterator<Item = &Stored> {
        let events = self.sessions.get(session).map(|found| &found.events);
        let events = events.into_iter().flat_map(BTreeMap::values);
        events.filter(move |event| seqs.contains(&event.seq))
    }

    /// The copies of an event. If the session that it was appended to has one, it is the only one
    /// that is shown by the event's ID.
    fn shown(&self, id: EventId) -> Vec<&Stored> {
        let Some(&nth) = self.ids.get(&id) else {
            return Vec::new();
        };
        let issued = &self.issued[nth];
        let copies = self.sessions.values();
        let copies: Vec<&Stored> = copies
            .filter_map(|found| found.events.get(&issued.seq))
            .filter(|event| event.id == id)
            .collect();
        let owns = |event: &&&Stored| event.session == issued.session && self.is_own(event);
        match copies.iter().find(owns) {
            Some(own) => vec![own],
            None => copies,
        }
    }

    /// Whether a copy is that of the session that the event was appended to.
    fn is_own(&self, event: &Stored) -> bool {
        let found = self.sessions.get(&event.session);
        found.is_some_and(|found| event.origin == (event.session.clone(), found.generation))
    }

    /// The ID at `point`.
    fn id(&self, point: Point) -> EventId {
        match point {
            Point::Stored(n) if !self.issued.is_empty() => {
                self.issued[usize::from(n) % self.issued.len()].id
            }
            Point::Stored(n) | Point::Unknown(n) => self.unknown_id(usize::from(n)),
        }
    }

    /// Returns an ID next to a stored one, where there is room, or far from all.
    fn unknown_id(&self, n: usize) -> EventId {
        let stored = self
            .issued
            .get(n / 4 % self.issued.len().max(1))
            .map_or(1 << 100, |event| event.id.to_u128());
        let candidates = [stored - 1, stored + 1, 0, u128::MAX];
        let from_nth = candidates
            .into_iter()
            .cycle()
            .skip(n)
            .take(candidates.len());
        let free = from_nth
            .map(EventId::from_u128)
            .find(|id| !self.ids.contains_key(id));
        free.expect("0 is never given out")
    }
}

/// Operations on whole sessions.
impl World {
    fn create(&mut self, session: &SessionId, title: Option<&str>, patch: u8) {
        let mut patch = Patch::of(patch);
        (patch.title, patch.hold) = (title.map(|title| Some(title.to_owned())), None);
        let mut new = NewSession::new();
        if let Some(Some(title)) = &patch.title {
            new = new.title(title);
        }
        if let Some(metadata) = &patch.metadata {
            new = new.metadata(metadata.clone());
        }
        let got = self.log().create(session, new);
        let mut described = Described::default();
        described.apply(&patch);
        if let Err(error) = patch.check().and_then(|()| described.check())
            && !matches!(got, Err(Error::SessionExists { .. }))
        {
            return assert_error(got.map(|info| info.last), &[error]);
        }
        if self.model.sessions.contains_key(session) {
            return self.assert_exists(session, got);
        }
        let now_ms = self.now_ms();
        self.model.begin(session, now_ms);
        let created = json!({"type": "created"});
        self.model.commit_change(session, created, now_ms);
        if patch.title.is_some() || patch.metadata.is_some() {
            self.model.session_mut(session).described = described;
            self.model.commit_change(session, patch.told(), now_ms);
        }
        self.model.assert_info(session, &must("create", got));
    }

    fn assert_exists(&self, session: &SessionId, got: Result<SessionInfo>) {
        match got {
            Err(Error::SessionExists { session: info }) => self.model.assert_info(session, &info),
            other => panic!("{session} exists already, and got {other:?}"),
        }
    }

    fn describe(&mut self, session: &SessionId, patch: &Patch, expected: Want) {
        let expected = self.model.expected(session, expected);
        let got = self
            .log()
            .set_metadata_if(session, patch.asked(), expected.clone());
        let attempt = Try {
            patch: Some(patch.clone()),
            expected,
            ..Try::new(session.clone(), Vec::new())
        };
        self.changed(&attempt, got);
    }

    /// Compares the result of a change without events.
    fn changed(&mut self, attempt: &Try, got: Result<SessionInfo>) {
        let session = &attempt.session;
        match self.model.answer(attempt) {
            Answer::Fails(error) => return assert_error(got.map(|info| info.last), &[error]),
            Answer::Lands => {
                let now_ms = self.now_ms();
                self.model.store(attempt, None, now_ms);
            }
            Answer::Unchanged { .. } => {}
            Answer::Replays { .. } => unreachable!("it has no key and no producer"),
        }
        self.model
            .assert_info(session, &must("change a session", got));
    }

    fn close_session(&mut self, session: &SessionId) {
        let got = self.log().close_session(session);
        let attempt = Try {
            closing: true,
            ..Try::new(session.clone(), Vec::new())
        };
        self.changed(&attempt, got);
    }

    fn reopen_session(&mut self, session: &SessionId) {
        let got = self.log().reopen(session);
        let Some(found) = self.model.sessions.get_mut(session) else {
            return assert_error(got.map(|info| info.last), &[unknown(session)]);
        };
        if std::mem::take(&mut found.closed) {
            let now_ms = self.now_ms();
            let reopened = json!({"type": "reopened"});
            self.model.commit_change(session, reopened, now_ms);
        }
        self.model.assert_info(session, &must("reopen", got));
    }

    fn work(
        &mut self,
        session: SessionId,
        (events, key): (u8, Option<u8>),
        (closing, patch): (bool, Option<u8>),
        made: Option<Made>,
    ) {
        let seed = self.model.next_batch();
        let given = (0..events)
            .map(|nth| self.model.good(seed + u64::from(nth), 200, events + nth))
            .collect();
        let producer = made.map(|made| self.model.made(&session, made));
        self.append(Try {
            key: key.map(|n| format!("key {}", n % 6)),
            closing,
            patch: patch.map(Patch::of),
            producer,
            ..Try::new(session, given)
        });
    }

    fn delete(&mut self, session: &SessionId, (expected, unless_open): (Want, bool), reason: u8) {
        let expected = self.model.expected(session, expected);
        let (reason, unfit) = reason_of(reason);
        let mut delete = Delete::new().expected(expected.clone());
        if let Some(reason) = &reason {
            delete = delete.reason(reason);
        }
        if unless_open {
            delete = delete.unless_open();
        }
        let got = self.log().delete(session, delete);
        let mut errors: Vec<Error> = unfit.into_iter().collect();
        errors.extend(self.model.mismatch(session, &expected));
        let Some(found) = self.model.sessions.get(session) else {
            errors.push(unknown(session));
            return assert_error(got.map(|removed| removed.events), &errors);
        };
        let newest = self.model.turns(session).pop();
        if let Some(turn) = newest.filter(|turn| unless_open && self.model.is_open(turn)) {
            errors.push(Error::TurnOpen {
                session: session.clone(),
                message: turn.id.into(),
            });
        }
        if found.described.hold {
            errors.push(Error::Held {
                session: session.clone(),
            });
        }
        if !errors.is_empty() {
            return assert_error(got.map(|removed| removed.events), &errors);
        }
        assert_removed(found, &found.events, &must("delete", got));
        self.model.sessions.remove(session);
        let deleted = json!({"type": "deleted", "reason": reason});
        let now_ms = self.now_ms();
        self.model.commit_change(session, deleted, now_ms);
    }

    fn trim(&mut self, session: &SessionId, at: Place) {
        let tail = self.model.tail(session);
        let cursor = match at {
            Place::At(at) => self.model.cursor(session, at),
            Place::Everything => Cursor::Seq(tail + 1),
        };
        let got = self.log().trim(session, cursor);
        let Some(found) = self.model.sessions.get(session) else {
            return assert_error(got.map(|removed| removed.events), &[unknown(session)]);
        };
        let first = found.first;
        let (seq, errors) = self.model.resolve(session, cursor, tail + 1);
        // What was removed before is not refused: there is nothing left to do.
        let is_below = |error: &Error| {
            matches!(
                error,
                Error::Cursor {
                    problem: CursorProblem::Trimmed { .. },
                    ..
                }
            )
        };
        let seq = seq.or(errors.iter().any(is_below).then_some(first));
        let refused = errors.into_iter().filter(|error| !is_below(error));
        let refused: Vec<Error> = refused.collect();
        let (removed, to) = match (got, seq) {
            (Ok(removed), Some(to)) => (removed, to),
            (got, _) => return assert_error(got.map(|removed| removed.events), &refused),
        };
        let found = self.model.session_mut(session);
        let to = to.max(first);
        let kept = found.events.split_off(&to);
        let gone = std::mem::replace(&mut found.events, kept);
        assert_removed(found, &gone, &removed);
        found.first = to;
        let is_empty = |landed: &Landed| landed.last < landed.first;
        found
            .keys
            .retain(|_, landed| landed.first >= to || is_empty(landed));
        let ids = gone.values().map(|event| {
            let seq = event.seq;
            (
                event.id,
                Gone {
                    seq,
                    inherited: false,
                },
            )
        });
        found.trimmed.extend(ids);
        if to > first {
            let trimmed = json!({"type": "trimmed", "first": to});
            let now_ms = self.now_ms();
            self.model.commit_change(session, trimmed, now_ms);
        }
    }

    fn redact(&mut self, point: Point, reason: u8) {
        let id = self.model.id(point);
        let (reason, unfit) = reason_of(reason);
        let reason = reason.unwrap_or_default();
        let got = self.log().redact(id, reason.clone());
        let mut errors: Vec<Error> = unfit.into_iter().collect();
        let shown = self.model.shown(id);
        if shown.is_empty() {
            errors.push(Error::UnknownEvent { id });
        }
        if !errors.is_empty() {
            return assert_error(got.map(|event| event.seq), &errors);
        }
        let is_new = !shown[0].redacted;
        for found in self.model.sessions.values_mut() {
            let copies = found.events.values_mut();
            copies
                .filter(|event| event.id == id)
                .for_each(Stored::redact);
        }
        self.assert_one_of(&must("redact", got), id);
        if is_new {
            let owner = self.model.issued[self.model.ids[&id]].session.clone();
            let redacted = json!({"type": "redacted", "event_id": id, "reason": reason});
            let now_ms = self.now_ms();
            self.model.commit_change(&owner, redacted, now_ms);
        }
    }

    fn assert_one_of(&self, got: &Event, id: EventId) {
        let shown = self.model.shown(id);
        let copy = shown.iter().find(|copy| copy.session == got.session_id);
        let copy = copy.unwrap_or_else(|| panic!("{} does not show {id}", got.session_id));
        assert_same(std::slice::from_ref(got), [*copy]);
    }

    fn fork(
        &mut self,
        (parent, child): (&SessionId, &SessionId),
        at: Branch,
        (titled, patch): (bool, Option<u8>),
    ) {
        let patch = Patch {
            title: titled.then(|| Some("Forked".to_owned())),
            metadata: patch.and_then(|patch| Patch::of(patch).metadata),
            hold: None,
        };
        let cursor = |at| self.model.cursor(parent, at);
        let mut fork = match at {
            Branch::End => Fork::new(parent),
            Branch::At(at) => Fork::new(parent).at(cursor(at)),
            Branch::Before(at) => Fork::new(parent).before(cursor(at)),
        };
        if let Some(Some(title)) = &patch.title {
            fork = fork.title(title);
        }
        if let Some(metadata) = &patch.metadata {
            fork = fork.metadata(metadata.clone());
        }
        let got = self.log().fork(fork, child);
        let Some(from) = self.model.sessions.get(parent) else {
            let mut errors = vec![unknown(parent)];
            errors.extend(patch.check().err());
            return assert_error(got.map(|info| info.last), &errors);
        };
        let (seq, mut errors) = match at {
            Branch::End => (Some(from.last), Vec::new()),
            Branch::At(at) => self.model.resolve(parent, cursor(at), from.last),
            Branch::Before(at) => self.model.before(parent, cursor(at)),
        };
        let mut described = Described {
            hold: false,
            ..from.described.clone()
        };
        described.apply(&patch);
        let unfit = patch.check().and_then(|()| described.check()).err();
        let is_fit = unfit.is_none();
        errors.extend(unfit);
        if self.model.sessions.contains_key(child)
            && matches!(got, Err(Error::SessionExists { .. }))
        {
            return self.assert_exists(child, got);
        }
        let can_land = is_fit && !self.model.sessions.contains_key(child);
        let (info, at) = match (got, seq.filter(|_| can_land)) {
            (Ok(info), Some(at)) => (info, at),
            (got, _) => return assert_error(got.map(|info| info.last), &errors),
        };
        let now_ms = self.now_ms();
        self.model
            .branch((parent, child), at, (&patch, described), now_ms);
        self.model.assert_info(child, &info);
    }

    fn compact(&self) {
        let infos = || -> Vec<_> {
            let names = self.model.sessions.keys();
            names
                .map(|name| must("session", self.log().session(name)))
                .collect()
        };
        let before = infos();
        must("compact", self.log().compact(|_| ControlFlow::Continue(())));
        assert_eq!(infos(), before, "the sessions after compacting");
        let due = must("erasure", self.log().erasure()).due;
        assert_eq!(due, None, "something is left to erase");
        self.compare_everything();
    }

    fn watch(&mut self, session: &SessionId, from: Begin) {
        let (from, bounds) = self.begin(session, from);
        let got = self.log().stream(session, from);
        let found = self.model.sessions.get(session);
        let (generation, last) = match (from, found) {
            (StartAt::Creation, None) => (0, 0),
            (_, None) => return assert_error(got.map(drop), &bounds.errors),
            (StartAt::Now, Some(found)) => (found.generation, found.last),
            (_, Some(found)) => match (&got, bounds.range) {
                (Ok(_), Some(range)) => (found.generation, range.start() - 1),
                _ => return assert_error(got.map(drop), &bounds.errors),
            },
        };
        // An open stream holds memory of the log, so there are few.
        self.watches.truncate(5);
        self.watches.insert(
            0,
            Watch {
                session: session.clone(),
                stream: must("stream", got),
                generation,
                last,
                caught_up: false,
            },
        );
    }

    fn observe(&mut self, items: u8) {
        let model = &self.model;
        let items = 1 + usize::from(items % 16) * 4;
        self.watches
            .retain_mut(|watch| (0..items).all(|_| watch.observe(model)));
    }
}

impl Watch {
    /// Reads one item. Returns whether there may be more.
    fn observe(&mut self, model: &Model) -> bool {
        let found = model.sessions.get(&self.session);
        if let (0, Some(found)) = (self.generation, found) {
            (self.generation, self.last) = (found.generation, found.first - 1);
        }
        let found = found.filter(|found| found.generation == self.generation);
        let waits = self.generation == 0;
        let got = self.stream.next_timeout(Duration::ZERO);
        let told = format!(
            "a stream of {} behind seq {}: {got:?}",
            self.session, self.last
        );
        let Some(found) = found.filter(|_| !waits) else {
            if !waits {
                assert!(matches!(got, Ok(StreamItem::Deleted)), "{told}");
                self.assert_ended();
            }
            return waits && self.is_quiet(&got, &told);
        };
        if self.last + 1 < found.first {
            let first = found.first;
            let problem = CursorProblem::Trimmed { first };
            assert!(
                matches!(
                    got,
                    Err(RecvTimeout::Failed(Error::Cursor { problem: is, .. })) if is == problem
                ),
                "{told}"
            );
            self.assert_ended();
            return false;
        }
        if let Some(next) = found.events.get(&(self.last + 1)) {
            let Ok(StreamItem::Event(event)) = got else {
                panic!("seq {} is next in {told}", next.seq);
            };
            assert_same(&[event], [next]);
            (self.last, self.caught_up) = (next.seq, false);
            return true;
        }
        if self.caught_up && found.closed {
            assert!(matches!(got, Ok(StreamItem::Closed)), "{told}");
            self.assert_ended();
            return false;
        }
        self.is_quiet(&got, &told)
    }

    /// Checks that nothing is yielded but the mark that the reader has caught up. Returns true, so
    /// that the stream stays.
    fn is_quiet(&mut self, got: &Result<StreamItem, RecvTimeout>, told: &str) -> bool {
        if self.caught_up {
            assert!(matches!(got, Err(RecvTimeout::Elapsed)), "{told}");
        } else {
            assert!(matches!(got, Ok(StreamItem::CaughtUp)), "{told}");
        }
        self.caught_up = true;
        true
    }

    fn assert_ended(&mut self) {
        let got = self.stream.next_timeout(Duration::ZERO);
        assert!(
            matches!(got, Err(RecvTimeout::Ended)),
            "{got:?} after the end"
        );
    }
}

impl Stored {
    fn redact(&mut self) {
        self.redacted = true;
        self.given.data.clear();
        self.given.said = None;
    }
}

impl Session {
    /// The answer to a batch that landed before, or that comes too late.
    fn repeated(&self, attempt: &Try) -> Option<Answer> {
        if let Some((producer, epoch, number)) = &attempt.producer
            && let Some(known) = self.producers.get(producer)
        {
            if *epoch < known.epoch {
                return Some(Answer::Fails(Error::Fenced {
                    session: attempt.session.clone(),
                    producer: producer.clone(),
                    current: known.epoch,
                }));
            }
            if *epoch == known.epoch && number.is_some() && *number <= known.number {
                let (first, last) = if *number == known.number {
                    (known.first, known.last)
                } else {
                    (self.last + 1, self.last)
                };
                return Some(Answer::Replays { first, last });
            }
        }
        let key = attempt.key.as_ref()?;
        let landed = self.keys.get(key)?;
        let (first, last) = (landed.first, landed.last);
        Some(if landed.content == attempt.content() {
            Answer::Replays { first, last }
        } else {
            Answer::Fails(Error::IdempotencyConflict {
                session: attempt.session.clone(),
                key: key.clone(),
                first_seq: first,
            })
        })
    }

    fn note_producer(
        &mut self,
        id: &str,
        epoch: u64,
        number: Option<u64>,
        range: &RangeInclusive<u64>,
    ) {
        let is_known = self
            .producers
            .get(id)
            .is_some_and(|known| known.epoch == epoch);
        // A fence alone says nothing of numbers.
        if is_known && number.is_none() {
            return;
        }
        let known = Known {
            epoch,
            number,
            first: *range.start(),
            last: *range.end(),
        };
        self.producers.insert(id.to_owned(), known);
    }
}

impl Try {
    fn content(&self) -> Content {
        Content {
            given: self.given.clone(),
            patch: self.patch.as_ref().map(Patch::told),
            closing: self.closing,
            producer: self.producer.clone(),
        }
    }

    /// Whether the batch leaves the session other than it is: its keys and numbers too.
    fn changes(&self, found: &Session) -> bool {
        let mut described = found.described.clone();
        if let Some(patch) = &self.patch {
            described.apply(patch);
        }
        let closes = self.closing && !found.closed;
        let is_noted = |(id, epoch, seq): &(String, u64, Option<u64>)| {
            let known = found.producers.get(id);
            seq.is_some() || known.is_none_or(|known| known.epoch < *epoch)
        };
        let uses_up = self.key.is_some() || self.producer.as_ref().is_some_and(is_noted);
        uses_up || !self.given.is_empty() || closes || described != found.described
    }
}

impl Patch {
    fn of(n: u8) -> Self {
        let metadata = match n % 16 {
            0 => json!({"agent": "a1"}),
            1 => json!({"agent": "a2", "n": 1, "deep": {"x": [null, {"y": null}]}}),
            2 => json!({"agent": null, "never": null}),
            3 => json!({"deep": {"x": {"y": 1}, "z": null}}),
            4 => json!({"deep": {"x": null, "w": {"v": {"u": null}}}}),
            5 => json!({"deep": "flat", "": "nameless"}),
            6 => json!({}),
            7 => json!({"agent": {"k": null, "j": "v"}, "deep": [1]}),
            8 => json!({"big": "x".repeat(9_000)}),
            9 => json!({"bigger": "y".repeat(9_000)}),
            10 => json!({"big": null, "bigger": null}),
            11 => json!(["no object"]),
            _ => Value::Null,
        };
        let is_set = n % 16 < 12;
        Self {
            title: match n / 16 % 8 {
                0 => Some(Some(format!("Title {n}"))),
                1 => Some(None),
                2 => Some(Some("two\nlines".to_owned())),
                3 => Some(Some("t".repeat(TITLE_BYTES_MAX + 1))),
                _ => None,
            },
            metadata: is_set.then_some(metadata),
            hold: match n % 16 {
                12 => Some(true),
                13 | 14 => Some(false),
                _ => None,
            },
        }
    }

    /// The patch as the log takes it.
    fn asked(&self) -> SessionPatch {
        let mut patch = SessionPatch::new();
        match &self.title {
            Some(Some(title)) => patch = patch.title(title),
            Some(None) => patch = patch.without_title(),
            None => {}
        }
        if let Some(metadata) = &self.metadata {
            patch = patch.metadata(metadata.clone());
        }
        if let Some(hold) = self.hold {
            patch = if hold { patch.hold() } else { patch.release() };
        }
        patch
    }

    /// The change as the feed tells it.
    fn told(&self) -> Value {
        let mut told = json!({"type": "described"});
        if let Some(title) = &self.title {
            told["title"] = json!(title);
        }
        if let Some(metadata) = &self.metadata {
            told["metadata"] = metadata.clone();
        }
        if let Some(hold) = self.hold {
            told["hold"] = json!(hold);
        }
        told
    }

    fn check(&self) -> Result<()> {
        if let Some(Some(title)) = &self.title {
            within(Limit::TitleBytes, title.len(), TITLE_BYTES_MAX)?;
            if title.contains('\n') {
                return Err(invalid());
            }
        }
        match &self.metadata {
            Some(metadata) if !metadata.is_object() => Err(invalid()),
            _ => Ok(()),
        }
    }
}

impl Described {
    fn apply(&mut self, patch: &Patch) {
        if let Some(title) = &patch.title {
            self.title.clone_from(title);
        }
        if let Some(hold) = patch.hold {
            self.hold = hold;
        }
        if let Some(patch) = &patch.metadata {
            let target = Value::Object(self.metadata.clone());
            // A patch that is no object is refused.
            if let Value::Object(metadata) = merge_patch(target, patch) {
                self.metadata = metadata;
            }
        }
    }

    fn check(&self) -> Result<()> {
        let bytes = Value::Object(self.metadata.clone()).to_string().len();
        within(Limit::MetadataBytes, bytes, METADATA_BYTES_MAX)
    }
}

/// `MergePatch` as section 2 of RFC 7396 writes it.
fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Map::new(),
    };
    for (name, value) in patch {
        let before = target.remove(name);
        if !value.is_null() {
            let before = before.unwrap_or(Value::Null);
            target.insert(name.clone(), merge_patch(before, value));
        }
    }
    Value::Object(target)
}

/// A reason for a removal, and the error if it breaks the rules.
fn reason_of(n: u8) -> (Option<String>, Option<Error>) {
    match n % 16 {
        0 => {
            let bytes = REASON_BYTES_MAX + 1;
            let error = within(Limit::ReasonBytes, bytes, REASON_BYTES_MAX).err();
            (Some("r".repeat(bytes)), error)
        }
        1 => (Some("two\nlines".to_owned()), Some(invalid())),
        2..=7 => (Some(format!("reason {n}")), None),
        _ => (None, None),
    }
}

/// Checks what a removal tells of the events that it took.
fn assert_removed(found: &Session, gone: &BTreeMap<u64, Stored>, removed: &Removed) {
    assert_eq!(removed.events, gone.len() as u64, "the events removed");
    assert_bytes(found, gone, removed.bytes);
}

/// An event counts with its data, its type and a few bytes.
fn assert_bytes(found: &Session, events: &BTreeMap<u64, Stored>, bytes: u64) {
    let bytes_of = |event: &Stored| event.given.data.len() + event.given.event_type.len();
    let least = events.values().map(bytes_of).sum::<usize>() as u64;
    let most = least + FEW_BYTES * events.len() as u64;
    // A fork goes on counting what was redacted in an ancestor after it was made.
    let is_exact = found.parent.is_none();
    assert!(
        (least..=most).contains(&bytes) || !is_exact && bytes >= least,
        "{bytes} of {least} to {most} bytes"
    );
}

impl Model {
    fn made(&self, session: &SessionId, made: Made) -> (String, u64, Option<u64>) {
        let id = format!("worker {}", made.id % 3);
        let known = self.sessions.get(session);
        let known = known.and_then(|found| found.producers.get(&id));
        let at = known.map_or(0, |known| known.epoch);
        let epoch = match made.epoch {
            Epoch::Same => at,
            Epoch::Next => at + 1,
            Epoch::Before => at.saturating_sub(1),
        };
        let last = known.filter(|known| known.epoch == epoch);
        let next = last.and_then(|known| known.number).map_or(0, |n| n + 1);
        let number = match made.number {
            Number::Next => Some(next),
            Number::Again => Some(next.saturating_sub(1)),
            Number::Early => Some(next.saturating_sub(2)),
            Number::Gap => Some(next + 1),
            Number::None => None,
        };
        (id, epoch, number)
    }

    /// The seq in front of a cursor, and the possible errors.
    fn before(&self, session: &SessionId, cursor: Cursor) -> (Option<u64>, Vec<Error>) {
        let at = match cursor {
            Cursor::Seq(0) => return (None, vec![invalid()]),
            Cursor::Seq(seq) => seq - 1,
            Cursor::Event(_) => match self.resolve(session, cursor, u64::MAX) {
                (Some(seq), errors) if seq >= self.sessions[session].first => {
                    assert!(errors.is_empty(), "a stored event has one place");
                    seq - 1
                }
                (removed, mut errors) => {
                    if removed.is_some() {
                        errors.push(self.trimmed(session));
                    }
                    return (None, errors);
                }
            },
        };
        self.resolve(session, Cursor::Seq(at), self.tail(session))
    }

    fn branch(
        &mut self,
        (parent, child): (&SessionId, &SessionId),
        at: u64,
        (patch, described): (&Patch, Described),
        now_ms: u64,
    ) {
        self.begin(child, now_ms);
        let from = self.sessions[parent].clone();
        let found = self.session_mut(child);
        let shared = from.events.into_values().filter(|event| event.seq <= at);
        found.events = shared
            .map(|event| {
                (
                    event.seq,
                    Stored {
                        session: child.clone(),
                        ..event
                    },
                )
            })
            .collect();
        (found.first, found.last) = (from.first, at);
        found.last_id = found.events.get(&at).map(|event| event.id);
        let gone = from.trimmed.into_iter();
        found.trimmed = gone
            .map(|(id, Gone { seq, .. })| {
                (
                    id,
                    Gone {
                        seq,
                        inherited: true,
                    },
                )
            })
            .collect();
        found.parent = Some((parent.clone(), from.generation, at));
        found.described = described.clone();
        let forked = json!({
            "type": "forked",
            "parent": parent,
            "parent_generation": from.generation,
            "at": at,
        });
        self.commit_change(child, forked, now_ms);
        let told = Patch {
            title: described.title.map(Some),
            metadata: (!from.described.metadata.is_empty() || patch.metadata.is_some())
                .then(|| Value::Object(described.metadata)),
            hold: None,
        };
        if told.title.is_some() || told.metadata.is_some() {
            self.commit_change(child, told.told(), now_ms);
        }
    }

    fn assert_info(&self, session: &SessionId, info: &SessionInfo) {
        let found = &self.sessions[session];
        assert_eq!(
            (
                &info.id,
                info.generation,
                info.first,
                info.last,
                info.last_id
            ),
            (
                session,
                found.generation,
                found.first,
                found.last,
                found.last_id
            ),
            "the extent of {session}"
        );
        assert_eq!(
            (
                info.events,
                info.closed,
                info.hold,
                &info.title,
                &info.metadata
            ),
            (
                found.events.len() as u64,
                found.closed,
                found.described.hold,
                &found.described.title,
                &found.described.metadata
            ),
            "the description of {session}"
        );
        assert_eq!(
            (
                u64::try_from(info.created_at.as_millisecond()),
                u64::try_from(info.active_at.as_millisecond())
            ),
            (Ok(found.created.1), Ok(found.active.1)),
            "the times of {session}"
        );
        let parent = info.parent.as_ref();
        let parent = parent.map(|parent| (parent.id.clone(), parent.generation, parent.at));
        assert_eq!(parent, found.parent, "the parent of {session}");
        assert_bytes(found, &found.events, info.bytes);
    }
}

/// Reading.
impl World {
    fn list(&self, listing: &Listing) {
        let Bounds { range, errors } = self.model.range(listing);
        let got = self.log().list(&listing.session, listing.page(&self.model));
        match (got, range) {
            (Ok(page), Some(range)) => self.model.assert_page(listing, range, &page),
            (got, _) => assert_error(got.map(|page| page.last), &errors),
        }
    }

    /// Follows the pages as the documentation describes, and must see every match once.
    fn walk(&self, session: &SessionId, order: Order, limit: u8, types: &[&'static str]) {
        let limit = 1 + usize::from(limit) % PAGE_EVENTS_MAX;
        let mut listing = Listing {
            session: session.clone(),
            after: None,
            before: None,
            order,
            limit,
            types: types.to_vec(),
        };
        if !self.model.sessions.contains_key(session) {
            return self.list(&listing);
        }
        let mut seen = Vec::new();
        loop {
            let Bounds { range, errors } = self.model.range(&listing);
            let range = range.unwrap_or_else(|| panic!("a page went on where none is: {errors:?}"));
            let page = must("list", self.log().list(session, listing.page(&self.model)));
            self.model.assert_page(&listing, range, &page);
            seen.extend(page.items.iter().map(|event| event.seq));
            if !page.has_more {
                break;
            }
            match order {
                Order::Ascending => {
                    listing.after = Some(At::Seq(
                        u16::try_from(page.last).expect("sessions are short here"),
                    ));
                }
                Order::NewestFirst => {
                    listing.before = Some(At::Seq(
                        u16::try_from(page.first).expect("sessions are short here"),
                    ));
                }
            }
        }
        let mut expected: Vec<u64> = self
            .model
            .of_session(session, 1..=u64::MAX)
            .filter(|e| listing.takes(e))
            .map(|e| e.seq)
            .collect();
        if order == Order::NewestFirst {
            expected.reverse();
        }
        assert_eq!(seen, expected, "the seqs seen from page to page");
    }

    /// The start of a stream, and the seqs that it has up to the tail.
    fn begin(&self, session: &SessionId, from: Begin) -> (StartAt, Bounds) {
        let listing = Listing {
            after: from.after(),
            ..Listing::all(session)
        };
        let bounds = self.model.range(&listing);
        let from = match from {
            Begin::Start => StartAt::Beginning,
            Begin::Creation => StartAt::Creation,
            Begin::Now => StartAt::Now,
            Begin::After(at) => StartAt::After(self.model.cursor(session, at)),
        };
        (from, bounds)
    }

    fn stream(&self, session: &SessionId, from: Begin) {
        let (from, Bounds { mut range, errors }) = self.begin(session, from);
        // A stream waits for a session that does not exist, and has nothing up to its tail.
        if from == StartAt::Creation && range.is_none() || from == StartAt::Now && range.is_some() {
            range = Some(NOTHING);
        }
        let got = self.log().stream(session, from);
        match (got, range) {
            (Ok(stream), Some(range)) => {
                assert_same(&drain(stream), self.model.of_session(session, range));
            }
            (got, _) => assert_error(got.map(drop), &errors),
        }
    }

    fn event(&self, point: Point) {
        self.event_by_id(self.model.id(point));
    }

    fn event_by_id(&self, id: EventId) {
        let got = self.log().event(id);
        if self.model.shown(id).is_empty() {
            assert_error(got.map(|event| event.seq), &[Error::UnknownEvent { id }]);
        } else {
            self.assert_one_of(&must("event", got), id);
        }
    }

    fn message(&self, point: Point) {
        let id = MessageId::from(self.model.id(point));
        let got = self.log().message(id);
        let shown = self.model.shown(id.event_id());
        if shown
            .first()
            .is_none_or(|opened| !opened.given.opens_turn())
        {
            return assert_error(
                got.map(|message| message.seq),
                &[Error::UnknownMessage { id }],
            );
        }
        let message = must("message", got);
        let opened = shown
            .iter()
            .find(|opened| opened.session == message.session_id);
        let opened = opened.unwrap_or_else(|| panic!("{} does not show {id}", message.session_id));
        assert_eq!((message.id, message.seq), (id, opened.seq));
        self.model.assert_state(opened, &message);
    }

    /// The head of a session, the session and its forks.
    fn whole(&self, session: &SessionId) {
        let head = self.log().head(session);
        let info = self.log().session(session);
        let forks = self.log().forks(session);
        let Some(found) = self.model.sessions.get(session) else {
            assert_error(head.map(|head| head.last), &[unknown(session)]);
            assert_error(info.map(|info| info.last), &[unknown(session)]);
            return assert_error(forks.map(|forks| forks.len()), &[unknown(session)]);
        };
        let head = must("head", head);
        assert_eq!(
            (head.generation, head.first, head.last, head.last_id),
            (found.generation, found.first, found.last, found.last_id),
            "the head of {session}"
        );
        self.model.assert_info(session, &must("session", info));
        let of_it = (session.clone(), found.generation);
        let shares = |(_, other): &(&SessionId, &Session)| {
            other.events.values().any(|event| event.origin == of_it)
        };
        let others = self
            .model
            .sessions
            .iter()
            .filter(|(name, _)| *name != session);
        let expected: Vec<&SessionId> = others.filter(shares).map(|(name, _)| name).collect();
        let forks = must("forks", forks);
        let names: Vec<&SessionId> = forks.iter().map(|fork| &fork.id).collect();
        assert_eq!(names, expected, "the forks of {session}");
        for fork in &forks {
            self.model.assert_info(&fork.id, fork);
        }
    }

    fn sessions(&self, after: Option<&SessionId>, limit: usize) {
        let expected: Vec<&SessionId> = self
            .model
            .sessions
            .keys()
            .filter(|session| after.is_none_or(|after| *session > after))
            .collect();
        let mut query = SessionQuery::by_id().limit(limit);
        if let Some(after) = after {
            query = query.after(after);
        }
        self.assert_sessions(limit, &expected, query);
    }

    fn recent_sessions(&self, limit: usize) {
        let expected = self.model.by_place(By::Activity);
        let query = SessionQuery::by_activity().limit(limit);
        self.assert_sessions(limit, &expected, query);
    }

    fn assert_sessions(&self, limit: usize, expected: &[&SessionId], query: SessionQuery) {
        let got = self.log().sessions(query);
        if let Err(error) = check_page_limit(limit) {
            return assert_error(got.map(|page| page.items.len()), &[error]);
        }
        let page = must("sessions", got);
        let names: Vec<&SessionId> = page.items.iter().map(|info| &info.id).collect();
        assert_eq!(names, expected[..limit.min(expected.len())], "sessions");
        let has_more = names.len() < expected.len();
        assert_eq!(page.has_more, has_more, "whether there are more sessions");
    }

    /// Follows the pages of a query to the end.
    fn query(&self, asked: Asked) {
        let mut expected = self.model.by_place(asked.by);
        if asked.reversed {
            expected.reverse();
        }
        let mut query = match asked.by {
            By::Id => SessionQuery::by_id(),
            By::Activity => SessionQuery::by_activity(),
            By::Creation => SessionQuery::by_creation(),
        };
        if asked.reversed {
            query = query.reversed();
        }
        // The place of an ID that was never given out is not known.
        let is_known = |point: &Point| {
            asked.by == By::Id || self.model.ids.contains_key(&self.model.id(*point))
        };
        if let Some(after) = asked.after.filter(is_known) {
            let (cursor, is_after) = self.model.session_cursor(asked, after);
            query = query.after(cursor);
            expected.retain(|session| is_after(session));
        }
        query = asked.filtered(query);
        expected.retain(|name| asked.takes(name, &self.model.sessions[*name]));
        let limit = 1 + usize::from(asked.limit) % 4;
        let (mut seen, mut next) = (Vec::new(), Some(query.limit(limit)));
        while let Some(query) = next {
            let page = must("a page of sessions", self.log().sessions(query));
            assert!(
                page.items.len() == limit || !page.has_more,
                "{} sessions of {limit}, and more",
                page.items.len()
            );
            for info in &page.items {
                self.model.assert_info(&info.id, info);
            }
            next = page.next_page();
            seen.extend(page.items.into_iter().map(|info| info.id));
        }
        assert_eq!(seen.iter().collect::<Vec<_>>(), expected, "{asked:?}");
    }

    /// Reads the feed to its end. What is appended afterwards comes behind it, in whatever shard:
    /// so the order of IDs stays that of the operations.
    fn close_shards(&self) {
        if !in_one_order() {
            drop(drain_all(must("feed", self.log().feed())));
        }
    }

    fn feed(&self, after: Option<Point>) {
        let after = after.map(|point| self.model.id(point));
        let got = match after {
            Some(id) => self.log().feed_after(id),
            None => self.log().feed(),
        };
        // A follower goes on also from an event that was removed since. An ID that was never given
        // out may pass for one whose record was erased.
        if let Some(id) = after.filter(|id| !self.model.ids.contains_key(id)) {
            return match got {
                Ok(_) => {}
                refused => assert_error(refused, &[Error::UnknownEvent { id }]),
            };
        }
        let mut from = 0;
        let mut newest = EventId::from_u128(0);
        if let Some(id) = after {
            from = self.model.issued[self.model.ids[&id]].place + 1;
            newest = id;
        }
        let mut expected = self.model.fed(from).peekable();
        for item in drain_all(must("feed", got)) {
            let id = match &item {
                StreamItem::Event(event) => event.id,
                StreamItem::Change(change) => change.id,
                other => panic!("{other:?} in the feed"),
            };
            assert!(id > newest, "the feed yields {id} behind {newest}");
            newest = id;
            let next = expected.next();
            let next = next.unwrap_or_else(|| panic!("the feed yields {item:?} and should end"));
            next.assert_is(&item);
        }
        if let Some(missing) = expected.next() {
            panic!("the feed ends in front of {missing:?}");
        }
    }
}

/// Whether a session comes after a cursor.
type IsAfter<'a> = Box<dyn Fn(&SessionId) -> bool + 'a>;

/// An item that the feed should yield.
enum Fed<'a> {
    Event(&'a Stored),
    Change {
        session: &'a SessionId,
        generation: u32,
        created_ms: u64,
        change: &'a Value,
    },
}

impl std::fmt::Debug for Fed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fed::Event(event) => write!(f, "{} of {} at {}", event.id, event.session, event.seq),
            Fed::Change {
                session, change, ..
            } => write!(f, "{change} of {session}"),
        }
    }
}

impl Fed<'_> {
    fn assert_is(&self, item: &StreamItem) {
        match (self, item) {
            (Fed::Event(stored), StreamItem::Event(event)) => {
                assert_same(std::slice::from_ref(event), [*stored]);
            }
            (
                Fed::Change {
                    session,
                    generation,
                    created_ms,
                    change,
                },
                StreamItem::Change(got),
            ) => {
                assert_eq!(
                    (&got.session_id, got.generation, told(got)),
                    (*session, *generation, (*change).clone()),
                    "a change"
                );
                let at = u64::try_from(got.created_at.as_millisecond());
                assert_eq!(at, Ok(*created_ms), "the time of {change}");
            }
            (expected, got) => panic!("the feed yields {got:?} for {expected:?}"),
        }
    }
}

fn told(change: &SessionChange) -> Value {
    serde_json::to_value(&change.change).expect("a change has a JSON form")
}

impl Model {
    /// What the feed should yield, from a place in commit order on.
    fn fed(&self, from: usize) -> impl Iterator<Item = Fed<'_>> {
        self.commits[from..]
            .iter()
            .filter_map(|commit| match commit {
                Commit::Event(nth) => {
                    let issued = &self.issued[*nth];
                    let found = self.sessions.get(&issued.session);
                    let found = found.filter(|found| found.generation == issued.generation);
                    found?.events.get(&issued.seq).map(Fed::Event)
                }
                Commit::Change {
                    session,
                    generation,
                    created_ms,
                    change,
                    ..
                } => {
                    let found = self.sessions.get(session);
                    let is_current = found.is_some_and(|found| found.generation == *generation);
                    let is_shown = is_current || change["type"] == "deleted";
                    is_shown.then_some(Fed::Change {
                        session,
                        generation: *generation,
                        created_ms: *created_ms,
                        change,
                    })
                }
            })
    }

    /// All sessions in an order.
    fn by_place(&self, by: By) -> Vec<&SessionId> {
        let mut all: Vec<(usize, &SessionId)> = self
            .sessions
            .iter()
            .map(|(name, found)| match by {
                By::Id => (0, name),
                By::Activity => (found.active.0, name),
                By::Creation => (found.created.0, name),
            })
            .collect();
        all.sort_unstable();
        if by != By::Id {
            all.reverse();
        }
        all.into_iter().map(|(_, name)| name).collect()
    }

    /// A cursor of a query, and whether a session comes after it.
    fn session_cursor(&self, asked: Asked, point: Point) -> (SessionCursor, IsAfter<'_>) {
        let (by, reversed) = (asked.by, asked.reversed);
        if by == By::Id {
            let (Point::Stored(n) | Point::Unknown(n)) = point;
            let name = session_name(n.to_le_bytes()[0]);
            let cursor = SessionCursor::Id(name.clone());
            return (
                cursor,
                Box::new(move |other| (*other > name) != reversed && *other != name),
            );
        }
        let id = self.id(point);
        let at = self.issued[self.ids[&id]].place;
        let is_after = move |name: &SessionId| {
            let found = &self.sessions[name];
            let place = if by == By::Activity {
                found.active.0
            } else {
                found.created.0
            };
            (place > at) == reversed && place != at
        };
        (SessionCursor::At(id), Box::new(is_after))
    }
}

impl Asked {
    fn prefix(self) -> Option<&'static str> {
        ["a", "a/", "zz", ""]
            .get(usize::from(self.filter % 8))
            .copied()
    }

    fn pairs(self) -> &'static [(&'static str, &'static str)] {
        match self.filter / 8 % 8 {
            0 => &[("agent", "a1")],
            1 => &[("agent", "a2"), ("deep", "flat")],
            2 => &[("n", "1")],
            _ => &[],
        }
    }

    fn closed(self) -> Option<bool> {
        [Some(true), Some(false)]
            .get(usize::from(self.filter / 64))
            .copied()
            .flatten()
    }

    fn filtered(self, mut query: SessionQuery) -> SessionQuery {
        if let Some(prefix) = self.prefix() {
            query = query.prefix(prefix);
        }
        for (name, value) in self.pairs() {
            query = query.metadata(*name, *value);
        }
        if let Some(closed) = self.closed() {
            query = if closed { query.closed() } else { query.open() };
        }
        query
    }

    fn takes(self, name: &SessionId, found: &Session) -> bool {
        let metadata = &found.described.metadata;
        let is = |(name, value): &(&str, &str)| metadata.get(*name) == Some(&json!(value));
        name.as_str().starts_with(self.prefix().unwrap_or_default())
            && self.pairs().iter().all(is)
            && self.closed().is_none_or(|closed| closed == found.closed)
    }
}

/// The bounds and filters of a list call.
struct Listing {
    session: SessionId,
    after: Option<At>,
    before: Option<At>,
    order: Order,
    limit: usize,
    /// Empty: all.
    types: Vec<&'static str>,
}

impl Listing {
    fn all(session: &SessionId) -> Self {
        Self {
            session: session.clone(),
            after: None,
            before: None,
            order: Order::Ascending,
            limit: PAGE_EVENTS_MAX,
            types: Vec::new(),
        }
    }

    fn takes(&self, event: &Stored) -> bool {
        self.types.is_empty() || self.types.contains(&event.given.event_type.as_str())
    }

    fn page(&self, model: &Model) -> PageRequest {
        let cursor = |at| model.cursor(&self.session, at);
        let mut page = match (self.after, self.before) {
            (None, None) => PageRequest::new(),
            (Some(after), None) => PageRequest::new().after(cursor(after)),
            (None, Some(before)) => PageRequest::new().before(cursor(before)),
            (Some(after), Some(before)) => PageRequest::new()
                .after(cursor(after))
                .before(cursor(before)),
        };
        if self.order == Order::NewestFirst {
            page = page.newest_first();
        }
        if !self.types.is_empty() {
            page = page.types(&self.types);
        }
        page.limit(self.limit)
    }
}

/// The seqs that a reader gets, if it may succeed, and the errors if it may fail.
struct Bounds {
    range: Option<RangeInclusive<u64>>,
    errors: Vec<Error>,
}

impl Bounds {
    fn none(error: Error) -> Self {
        Self {
            range: None,
            errors: vec![error],
        }
    }
}

impl Begin {
    fn after(self) -> Option<At> {
        match self {
            Begin::After(at) => Some(at),
            _ => None,
        }
    }
}

impl Model {
    fn cursor(&self, session: &SessionId, at: At) -> Cursor {
        let own = |n: u16| {
            let found = self.sessions.get(session)?;
            let all = found.trimmed.keys().copied();
            let all: Vec<EventId> = all.chain(found.events.values().map(|e| e.id)).collect();
            (!all.is_empty()).then(|| all[usize::from(n) % all.len()])
        };
        match at {
            At::Seq(n) => Cursor::Seq(u64::from(n) % (self.tail(session) + 3)),
            At::Own(n) => Cursor::Event(own(n).unwrap_or_else(|| self.unknown_id(usize::from(n)))),
            At::Event(point) => Cursor::Event(self.id(point)),
        }
    }

    /// The seqs that a listing bounds, and the possible errors. Where both cursors are wrong,
    /// either may be reported.
    fn range(&self, listing: &Listing) -> Bounds {
        let session = &listing.session;
        let found = match (check_page_limit(listing.limit), self.sessions.get(session)) {
            (Ok(()), Some(found)) => found,
            (Err(error), _) => return Bounds::none(error),
            (_, None) => return Bounds::none(unknown(session)),
        };
        let (first, tail) = (found.first, found.last);
        let resolve = |at, highest| self.resolve(session, self.cursor(session, at), highest);
        let (after, mut errors) = listing
            .after
            .map_or((Some(first - 1), Vec::new()), |at| resolve(at, tail));
        let (before, more) = listing
            .before
            .map_or((Some(tail + 1), Vec::new()), |at| resolve(at, tail + 1));
        errors.extend(more);
        let range = after.zip(before);
        let range = range.map(|(after, before)| after + 1..=before.saturating_sub(1));
        Bounds { range, errors }
    }

    fn trimmed(&self, session: &SessionId) -> Error {
        let first = self.sessions[session].first;
        cursor_error(session, CursorProblem::Trimmed { first })
    }

    /// The seq of a cursor, and the possible errors.
    ///
    /// Both are possible for the ID of a removed event. It may be stored yet, until it is erased,
    /// and a session that was trimmed cannot tell an ID that it had from one that it never had.
    fn resolve(
        &self,
        session: &SessionId,
        cursor: Cursor,
        highest: u64,
    ) -> (Option<u64>, Vec<Error>) {
        let found = &self.sessions[session];
        let wrong = |problem| (None, vec![cursor_error(session, problem)]);
        let id = match cursor {
            Cursor::Seq(seq) if seq + 1 < found.first => {
                return (None, vec![self.trimmed(session)]);
            }
            Cursor::Seq(seq) if seq <= highest => return (Some(seq), Vec::new()),
            Cursor::Seq(seq) => {
                let tail = found.last;
                return wrong(CursorProblem::BeyondTail { seq, tail });
            }
            Cursor::Event(id) => id,
        };
        if let Some(own) = found.events.values().find(|event| event.id == id) {
            return (Some(own.seq), Vec::new());
        }
        let stored_elsewhere = if self.shown(id).is_empty() {
            CursorProblem::Unknown(id)
        } else {
            CursorProblem::OtherSession(id)
        };
        if let Some(&Gone { seq, inherited }) = found.trimmed.get(&id) {
            let is_next = seq + 1 == found.first;
            let mut errors = vec![self.trimmed(session)];
            if inherited {
                errors.push(cursor_error(session, stored_elsewhere));
            }
            return (is_next.then_some(seq), errors);
        }
        if !self.shown(id).is_empty() {
            return wrong(stored_elsewhere);
        }
        let mut errors = vec![cursor_error(session, stored_elsewhere)];
        if found.first > 1 {
            errors.push(self.trimmed(session));
        }
        (None, errors)
    }

    fn assert_page(&self, listing: &Listing, range: RangeInclusive<u64>, page: &Page<Event>) {
        let session = &listing.session;
        let newest_first = listing.order == Order::NewestFirst;
        assert_eq!(
            page.tail,
            self.tail(session),
            "the tail that the page tells"
        );
        let covered = page.first..=page.last;
        let mut events: Vec<&Stored> = self
            .of_session(session, covered.clone())
            .filter(|event| listing.takes(event))
            .collect();
        if newest_first {
            events.reverse();
        }
        assert_same(&page.items, events);
        assert!(
            page.items.len() <= listing.limit,
            "{} events in a page of {}",
            page.items.len(),
            listing.limit
        );
        if range.is_empty() {
            assert_eq!(page.first, page.last + 1, "an empty page covers nothing");
            assert!(!page.has_more, "there is nothing more in an empty range");
            return;
        }
        assert!(
            !covered.is_empty() && range.contains(&page.first) && range.contains(&page.last),
            "{covered:?} of {range:?}"
        );
        let begins = if newest_first {
            covered.end() == range.end()
        } else {
            covered.start() == range.start()
        };
        assert!(
            begins,
            "the page covers {covered:?} of {range:?}, {:?}",
            listing.order
        );
        self.assert_more(listing, &range, page);
    }

    /// A page has `has_more` set exactly if there is more. The exception is a page that stopped
    /// scanning, which cannot know.
    fn assert_more(&self, listing: &Listing, range: &RangeInclusive<u64>, page: &Page<Event>) {
        let covered = page.first..=page.last;
        let left = range.clone().filter(|seq| !covered.contains(seq)).count();
        let matches_left = self
            .of_session(&listing.session, range.clone())
            .any(|e| !covered.contains(&e.seq) && listing.takes(e));
        let full = page.items.len() == listing.limit;
        if page.has_more {
            let scanned: usize = self
                .of_session(&listing.session, covered.clone())
                .map(|event| event.given.data.len())
                .sum();
            assert!(
                left > 0,
                "the page covers all of {range:?} and tells of more"
            );
            assert!(
                full || scanned >= SCAN_BYTES_MAX / 2,
                "a page gave up after {scanned} bytes, at {covered:?} of {range:?}"
            );
        } else if listing.types.is_empty() {
            assert_eq!(left, 0, "the page ends early, at {covered:?} of {range:?}");
        } else {
            assert!(
                !matches_left,
                "the page stops at {covered:?} of {range:?} and tells of no more"
            );
        }
    }
}

/// Closing, opening, damaging the index.
impl World {
    fn open(&self) -> SessionLog {
        let clock = Arc::clone(&self.clock);
        let options = Options::new()
            .journal_file_bytes_max(4 * 1024 * 1024)
            .group_bytes_max(2 * 1024 * 1024)
            .cache_bytes_max(512 * 1024)
            .event_bytes_max(EVENT_BYTES_MAX)
            .batch_bytes_max(BATCH_BYTES_MAX)
            .batch_events_max(BATCH_EVENTS_MAX)
            .event_type_bytes_max(TYPE_BYTES_MAX)
            .idempotency_key_bytes_max(KEY_BYTES_MAX)
            .page_events_max(PAGE_EVENTS_MAX)
            .scan_bytes_max(SCAN_BYTES_MAX)
            .clock(move || UNIX_EPOCH + Duration::from_millis(clock.load(Ordering::SeqCst)));
        open_at(options, self.folder.path())
            .unwrap_or_else(|error| panic!("the log should open: {error:?}"))
    }

    fn reopen(&mut self, stop: &Stop, between: impl FnOnce(&mut Self)) {
        self.watches.clear();
        let log = self.log.take().expect("the log is open between operations");
        if let Stop::Close = stop {
            must("close", log.close());
            assert_error(
                log.head(&session_name(0)).map(|head| head.last),
                &[Error::Closed],
            );
        }
        drop(log);
        between(self);
        self.log = Some(self.open());
        self.compare_everything();
    }

    /// Exports the log, imports that into another folder, and goes on there.
    fn move_by_text(&mut self) {
        if on_postgres() {
            return;
        }
        let text = exported(self.folder.path());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let imported =
            transfer::import(&*text, "the export", folder.path(), Options::new(), |_| ());
        must("import", imported);
        let again = exported(folder.path());
        // The first line has the store ID, and the sizes of filters are estimates.
        let lines = |text: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(text);
            let compared = text
                .lines()
                .skip(1)
                .filter(|line| !line.starts_with(r#"{"part":"#));
            compared.map(str::to_owned).collect()
        };
        assert_eq!(lines(&text), lines(&again), "an import exports otherwise");
        self.folder = folder;
    }

    fn index(&self) -> PathBuf {
        self.folder.path().join("index")
    }

    fn keep_older_index(&mut self) {
        if self.older_index.is_none() && self.index().exists() {
            let older = tempfile::tempdir().expect("a temporary folder");
            copy(&self.index(), older.path());
            self.older_index = Some(older);
        }
    }

    fn delete_index(&mut self) {
        if self.index().exists() {
            remove(&self.index());
        }
    }

    fn damage_index(&mut self, damage: Damage) {
        let files = files_below(&self.index());
        let one = |n: u8| files.iter().cycle().nth(usize::from(n));
        match damage {
            Damage::TruncateAll => files.iter().for_each(|file| truncate_to_half(file)),
            Damage::TruncateOne(n) => one(n).into_iter().for_each(|file| truncate_to_half(file)),
            Damage::RemoveOne(n) => one(n).into_iter().for_each(|file| remove(file)),
            Damage::Zero => files
                .iter()
                .for_each(|file| change(file, |bytes| bytes.fill(0))),
            Damage::Scribble(n) => files
                .iter()
                .for_each(|file| change(file, |bytes| scribble(bytes, n))),
            Damage::Empty => files.iter().for_each(|file| remove(file)),
            Damage::OlderCopy => self.restore_older_index(),
        }
    }

    fn restore_older_index(&mut self) {
        if let Some(older) = self.older_index.take() {
            remove(&self.index());
            copy(older.path(), &self.index());
        }
    }

    fn compare_everything(&self) {
        self.sessions(None, PAGE_EVENTS_MAX);
        self.recent_sessions(SESSIONS);
        self.feed(None);
        for issued in &self.model.issued {
            self.event_by_id(issued.id);
        }
        for by in [By::Id, By::Activity, By::Creation] {
            for reversed in [false, true] {
                self.query(Asked {
                    by,
                    reversed,
                    limit: 2,
                    after: None,
                    filter: u8::MAX,
                });
            }
        }
        for session in (0..=255).take(SESSIONS).map(session_name) {
            self.whole(&session);
            self.walk(&session, Order::Ascending, 30, &[]);
            self.walk(&session, Order::NewestFirst, 6, &[]);
            self.stream(&session, Begin::Start);
            let turns = self.model.turns(&session);
            self.messages(&session, &PageRequest::new(), turns.clone());
            let open = turns.into_iter().filter(|turn| self.model.is_open(turn));
            let (open, asked) = (open.collect::<Vec<_>>(), PageRequest::new().open_turns());
            self.messages(&session, &asked, open.clone());
            let newest_first = open.into_iter().rev().collect();
            self.messages(&session, &asked.newest_first(), newest_first);
        }
    }

    /// Page after page, since a page may stop to scan before it has found a message.
    fn messages(&self, session: &SessionId, request: &PageRequest, expected: Vec<&Stored>) {
        let (mut seen, mut covered) = (Vec::new(), 0);
        let found = self.model.sessions.get(session);
        let mut next = found.map(|_| request.clone());
        while let Some(request) = next {
            let page = must("messages", self.log().messages(session, request.limit(3)));
            assert!(
                page.items.len() <= 3 && (page.last >= page.first || !page.has_more),
                "a page of messages gets nowhere"
            );
            covered += page.last + 1 - page.first;
            next = page.next_page();
            seen.extend(page.items);
        }
        let kept = found.map_or(0, |found| found.events.len() as u64);
        assert_eq!(covered, kept, "the seqs of {session}");
        assert_eq!(
            seen.iter().map(|message| message.id).collect::<Vec<_>>(),
            expected
                .iter()
                .map(|event| event.id.into())
                .collect::<Vec<MessageId>>(),
            "the messages of {session}"
        );
        for (opened, message) in expected.into_iter().zip(&seen) {
            self.model.assert_state(opened, message);
        }
    }
}

fn exported(folder: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    let everything = transfer::Export::new();
    must(
        "export",
        transfer::export(folder, &mut text, &everything, |_| ()),
    );
    text
}

fn types_of(mask: u8) -> Vec<&'static str> {
    if mask & 0x30 != 0 {
        Vec::new()
    } else {
        TYPES
            .into_iter()
            .enumerate()
            .filter(|(i, _)| mask & (1 << i) != 0)
            .map(|(_, t)| t)
            .collect()
    }
}

fn unknown(session: &SessionId) -> Error {
    Error::UnknownSession {
        session: session.clone(),
    }
}

fn cursor_error(session: &SessionId, problem: CursorProblem) -> Error {
    Error::Cursor {
        session: session.clone(),
        problem,
    }
}

fn invalid() -> Error {
    Error::Invalid {
        what: "any argument",
        why: "any reason".to_owned(),
    }
}

fn within(limit: Limit, actual: usize, max: usize) -> Result<(), Error> {
    if actual <= max {
        Ok(())
    } else {
        Err(Error::TooLarge {
            limit,
            actual: actual as u64,
            max: max as u64,
        })
    }
}

fn check_page_limit(limit: usize) -> Result<(), Error> {
    if limit == 0 {
        Err(invalid())
    } else {
        within(Limit::PageEvents, limit, PAGE_EVENTS_MAX)
    }
}

fn must<T>(doing: &str, got: Result<T, Error>) -> T {
    got.unwrap_or_else(|error| panic!("{doing} should have succeeded: {error:?}"))
}

/// Returns the events that a stream yields up to the tail.
fn drain(stream: EventStream) -> Vec<Event> {
    let items = drain_all(stream).into_iter();
    items.filter_map(StreamItem::into_event).collect()
}

/// Returns everything that a stream yields up to the tail. A silent stream has lost its end.
fn drain_all(stream: EventStream) -> Vec<StreamItem> {
    let mut stream = stream.until_tail();
    let mut items = Vec::new();
    loop {
        match stream.next_timeout(DEADLINE) {
            Ok(StreamItem::CaughtUp) => {}
            Ok(item) => items.push(item),
            Err(RecvTimeout::Ended) => return items,
            Err(other) => panic!("a stream up to the tail after {}: {other:?}", items.len()),
        }
    }
}

fn assert_error<T: std::fmt::Debug>(got: Result<T, Error>, expected: &[Error]) {
    let error = match got {
        Ok(value) => panic!("expected {expected:?}, and got {value:?}"),
        Err(error) => error,
    };
    let same = |expected: &Error| match (&error, expected) {
        (Error::Invalid { .. }, Error::Invalid { .. }) => true,
        _ => format!("{error:?}") == format!("{expected:?}"),
    };
    assert!(
        expected.iter().any(same),
        "expected one of {expected:?}, and got {error:?}"
    );
}

fn assert_same<'a>(got: &[Event], expected: impl IntoIterator<Item = &'a Stored>) {
    let mut expected = expected.into_iter();
    for event in got {
        let stored = expected.next().unwrap_or_else(|| {
            panic!(
                "an event too many: {} of {} at {}",
                event.id, event.session_id, event.seq
            )
        });
        assert_eq!(
            (&event.session_id, event.seq, event.id),
            (&stored.session, stored.seq, stored.id),
            "session, seq and ID"
        );
        assert_eq!(
            event.event_type,
            stored.given.event_type.as_str(),
            "the type of {}",
            event.id
        );
        assert_eq!(
            event.message_id, stored.message_id,
            "the turn of {}",
            event.id
        );
        assert_eq!(
            u64::try_from(event.created_at.as_millisecond()),
            Ok(stored.created_ms),
            "the time of {}",
            event.id
        );
        assert_eq!(
            event.redacted, stored.redacted,
            "whether {} is redacted",
            event.id
        );
        assert!(
            event.data == stored.given.data,
            "the data of {}, seq {} of {}",
            event.id,
            event.seq,
            event.session_id
        );
    }
    let missing = expected.next().map(|stored| (&stored.session, stored.seq));
    assert_eq!(
        missing,
        None,
        "an event is missing after {} events",
        got.len()
    );
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        let copy = to.join(
            file.strip_prefix(from)
                .expect("the file lies in the folder"),
        );
        fs::create_dir_all(copy.parent().expect("a file lies in a folder")).expect("make a folder");
        fs::copy(&file, &copy).expect("copy a file");
    }
}

fn remove(path: &Path) {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed
        .or_else(|error| if path.exists() { Err(error) } else { Ok(()) })
        .expect("remove what is there");
}

fn change(file: &Path, how: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(file).expect("read a file");
    how(&mut bytes);
    fs::write(file, bytes).expect("write a file");
}

fn truncate_to_half(file: &Path) {
    let bytes = fs::read(file).expect("read a file");
    fs::write(file, &bytes[..bytes.len() / 2]).expect("write a file");
}

/// Ruins one byte in about a hundred.
fn scribble(bytes: &mut [u8], seed: u8) {
    for (byte, noise) in bytes
        .iter_mut()
        .zip(noise(u64::from(seed) + 1, 1 << 24))
        .filter(|(_, noise)| *noise < 3)
    {
        *byte ^= noise + 1;
    }
}

#[cfg(all(test, not(fuzzing)))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn small(session: u8) -> Op {
        Op::Append {
            session,
            shape: Shape::Good {
                events: 3,
                bytes: 100,
                mix: session,
            },
            key: None,
            expected: Want::Any,
        }
    }

    fn keyed(session: u8, key: u8) -> Op {
        Op::Append {
            session,
            shape: Shape::Good {
                events: 2,
                bytes: 300,
                mix: 1,
            },
            key: Some(key),
            expected: Want::Tail,
        }
    }

    fn fills(count: u8) -> impl Iterator<Item = Op> {
        (0..count).map(|n| Op::Fill {
            session: n,
            events: 8,
        })
    }

    fn all_changes() -> impl Iterator<Item = Op> {
        let changes = [
            Change::Nothing,
            Change::Data,
            Change::Type,
            Change::Turn,
            Change::Count,
            Change::Expected,
        ];
        changes
            .into_iter()
            .zip(0..)
            .map(|(change, nth)| Op::Retry { nth, change })
    }

    fn all_damages() -> impl Iterator<Item = Op> {
        let damages = [
            Damage::TruncateAll,
            Damage::TruncateOne(1),
            Damage::RemoveOne(0),
            Damage::Zero,
            Damage::Scribble(9),
            Damage::Empty,
        ];
        [Op::DeleteIndex].into_iter().chain(
            damages
                .into_iter()
                .chain([Damage::OlderCopy])
                .map(Op::DamageIndex),
        )
    }

    fn check(ops: impl IntoIterator<Item = Op>) {
        run(&ops.into_iter().collect::<Vec<_>>());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 32,
            failure_persistence: None,
            max_shrink_iters: 400,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_log_does_what_plain_maps_do(bytes in vec(any::<[u8; OP_BYTES]>(), 1..100)) {
            let ops = decode(&bytes.concat());
            let outcome = std::panic::catch_unwind(|| run(&ops));
            prop_assert!(outcome.is_ok(), "the script: {ops:?}");
        }
    }

    #[test]
    fn an_empty_log_answers_like_an_empty_map() {
        let wrong = [0, 1, 2, 3].map(|n| Op::Event(Point::Unknown(n)));
        check(wrong.into_iter().chain([
            Op::Head(0),
            Op::Feed { after: None },
            Op::Reopen,
            Op::Drop,
            Op::DeleteIndex,
        ]));
        check([0, 1, 2, 3].map(|n| Op::Feed {
            after: Some(Point::Unknown(n)),
        }));
    }

    #[test]
    fn what_is_refused_leaves_nothing_behind() {
        let shapes = [
            Shape::NoEvents,
            Shape::NoType,
            Shape::LongType,
            Shape::ControlInType,
            Shape::NoKey,
            Shape::LongKey,
            Shape::ManyEvents,
            Shape::LargeEvent,
            Shape::LargeBatch,
        ];
        let refused = |session| {
            shapes.map(|shape| Op::Append {
                session,
                shape,
                key: None,
                expected: Want::Any,
            })
        };
        let ops = [small(0)]
            .into_iter()
            .chain(refused(0))
            .chain(refused(1))
            .chain([Op::Head(0), Op::Head(1), Op::Reopen, small(1)]);
        check(ops);
    }

    #[test]
    fn every_pair_of_cursors_bounds_a_page_or_is_a_typed_error() {
        let cursors: Vec<Option<At>> = [None]
            .into_iter()
            .chain((0..9).map(|n| Some(At::Seq(n))))
            .chain((0..4).map(|n| Some(At::Own(n))))
            .chain((0..4).map(|n| Some(At::Event(Point::Stored(n)))))
            .chain((0..4).map(|n| Some(At::Event(Point::Unknown(n)))))
            .collect();
        let mut ops = vec![small(1), small(0), small(0)];
        for &after in &cursors {
            for &before in &cursors {
                let pages = [
                    (Order::Ascending, 2, 0),
                    (Order::NewestFirst, 50, 0),
                    (Order::NewestFirst, 1, 3),
                    (Order::Ascending, 4, 5),
                ];
                ops.extend(pages.map(|(order, limit, types)| Op::List {
                    session: 0,
                    after,
                    before,
                    order,
                    limit,
                    types,
                }));
            }
        }
        ops.extend([0, 51, 255].map(|limit| Op::List {
            session: 0,
            after: None,
            before: None,
            order: Order::Ascending,
            limit,
            types: 0,
        }));
        ops.extend(cursors.iter().flatten().map(|&at| Op::Stream {
            session: 0,
            from: Begin::After(at),
        }));
        check(ops);
    }

    #[test]
    fn a_turn_ends_as_its_status_events_say() {
        let said = |attempt| {
            (0..STATUSES.len()).map(move |status| Said {
                status: u8::try_from(status).expect("there are few"),
                attempt,
            })
        };
        let pairs = said(None).chain(said(Some(2))).flat_map(|first| {
            let then = said(None).chain(said(Some(1)));
            then.map(move |second| [first, second])
        });
        let turns = |session| Op::Append {
            session,
            shape: Shape::Good {
                events: 5,
                bytes: 50,
                mix: 0,
            },
            key: None,
            expected: Want::Any,
        };
        let mut ops: Vec<Op> = (0..128).map(|_| turns(0)).chain([turns(1)]).collect();
        for (turn, pair) in (0..=u8::MAX).zip(pairs) {
            ops.extend(pair.map(|said| Op::Tell {
                session: 0,
                turn,
                said,
            }));
        }
        check(ops.into_iter().chain(fills(9)).chain([Op::Drop]));
    }

    #[test]
    fn what_was_sealed_reads_like_what_was_just_written() {
        let reads = || {
            (0..8).map(|session| Op::Walk {
                session,
                order: Order::Ascending,
                limit: 3,
                types: session,
            })
        };
        check(
            [small(0), small(1)]
                .into_iter()
                .chain(fills(16))
                .chain([small(0)])
                .chain(reads())
                .chain([Op::Drop])
                .chain(reads()),
        );
    }

    #[test]
    fn a_key_answers_after_sealing_reopening_and_losing_the_index() {
        let keys = [keyed(0, 1), keyed(1, 1), keyed(0, 2)];
        let ops = keys
            .into_iter()
            .chain(all_changes())
            .chain(fills(12))
            .chain(all_changes())
            .chain([Op::Drop])
            .chain(all_changes());
        check(ops.chain([Op::DeleteIndex]).chain(all_changes()));
    }

    #[test]
    fn damage_to_the_index_changes_nothing() {
        let mut ops: Vec<Op> = [keyed(0, 1), keyed(2, 2)]
            .into_iter()
            .chain(fills(7))
            .chain([Op::Reopen])
            .chain(fills(7))
            .collect();
        for damage in all_damages() {
            ops.extend([
                damage,
                small(3),
                Op::Retry {
                    nth: 0,
                    change: Change::Nothing,
                },
                Op::Retry {
                    nth: 1,
                    change: Change::Data,
                },
            ]);
        }
        check(ops);
    }

    fn work(session: u8, number: Number) -> Op {
        Op::Work {
            session,
            events: 3,
            closing: false,
            patch: Some(session),
            key: None,
            producer: Some(Made {
                id: session,
                epoch: Epoch::Same,
                number,
            }),
        }
    }

    fn fork(parent: u8, child: u8, at: Branch) -> Op {
        Op::Fork {
            parent,
            child,
            at,
            titled: child.is_multiple_of(2),
            patch: Some(child),
        }
    }

    fn delete(session: u8) -> Op {
        Op::Delete {
            session,
            expected: Want::Any,
            unless_open: false,
            reason: 2,
        }
    }

    fn watches() -> impl Iterator<Item = Op> {
        (0..5).map(|session| Op::Watch {
            session,
            from: Begin::Creation,
        })
    }

    /// All that ends a session or takes from it, with what may stand in its way.
    fn removals() -> Vec<Op> {
        let trim = |session, at| Op::Trim { session, at };
        let redact = |n| Op::Redact {
            point: Point::Stored(n),
            reason: 2,
        };
        vec![
            redact(0),
            redact(0),
            redact(4),
            Op::Redact {
                point: Point::Unknown(1),
                reason: 2,
            },
            Op::Observe { items: 1 },
            trim(0, Place::At(At::Seq(3))),
            trim(0, Place::At(At::Own(0))),
            trim(0, Place::At(At::Seq(1))),
            trim(2, Place::At(At::Own(3))),
            trim(3, Place::Everything),
            Op::Observe { items: 1 },
            fork(0, 5, Branch::Before(At::Own(3))),
            fork(5, 6, Branch::End),
            Op::Delete {
                session: 1,
                expected: Want::Absent,
                unless_open: true,
                reason: 2,
            },
            delete(0),
            redact(2),
            small(0),
            delete(2),
            fork(5, 2, Branch::End),
            Op::CloseSession(5),
            small(5),
            Op::ReopenSession(5),
            small(5),
            Op::Observe { items: 15 },
        ]
    }

    #[test]
    fn forks_and_removals_read_the_same_at_every_place() {
        let begin = || {
            let lists = [small(0), keyed(0, 1), small(1)].into_iter();
            lists.chain([
                fork(0, 2, Branch::At(At::Seq(4))),
                fork(2, 3, Branch::End),
                small(2),
                work(2, Number::Next),
                fork(2, 4, Branch::At(At::Own(6))),
                fork(0, 1, Branch::End),
                fork(7, 6, Branch::End),
            ])
        };
        let places: [&[Op]; 7] = [
            &[],
            &[Op::Compact],
            &[Op::Drop],
            &[Op::Reopen, Op::Compact],
            &[Op::DeleteIndex],
            &[Op::Move { closed: true }],
            &[Op::Move { closed: false }],
        ];
        for place in places {
            let again = place.iter().cloned();
            let ops = begin()
                .chain(again.clone())
                .chain(watches())
                .chain([Op::Observe { items: 0 }])
                .chain(removals())
                .chain(again)
                .chain(fills(9))
                .chain([Op::Compact, Op::Drop]);
            check(ops);
        }
    }

    #[test]
    fn a_producer_is_told_what_its_session_knows() {
        let numbers = [
            Number::Next,
            Number::Again,
            Number::Next,
            Number::Early,
            Number::Gap,
            Number::None,
            Number::Again,
        ];
        let all = |epoch| {
            numbers.map(|number| Op::Work {
                session: 0,
                events: 2,
                closing: false,
                patch: None,
                key: None,
                producer: Some(Made {
                    id: 0,
                    epoch,
                    number,
                }),
            })
        };
        let ops = all(Epoch::Same)
            .into_iter()
            .chain([Op::Compact])
            .chain(all(Epoch::Same))
            .chain(all(Epoch::Next))
            .chain([Op::Drop])
            .chain(all(Epoch::Before))
            .chain([Op::CloseSession(0)])
            .chain(all(Epoch::Same))
            .chain([delete(0)])
            .chain(all(Epoch::Same));
        check(ops);
    }

    #[test]
    fn sessions_are_found_by_what_describes_them() {
        let mut ops: Vec<Op> = (0..8)
            .map(|session| Op::Create {
                session,
                titled: session % 2 == 0,
                patch: session,
            })
            .collect();
        ops.extend((0..16).map(|patch| Op::Describe {
            session: patch % 3,
            patch,
            expected: Want::Any,
        }));
        let queries = || {
            [By::Id, By::Activity, By::Creation]
                .into_iter()
                .flat_map(|by| {
                    (0..48).map(move |n: u8| {
                        Op::Query(Asked {
                            by,
                            reversed: n.is_multiple_of(2),
                            limit: n,
                            after: n.is_multiple_of(3).then_some(Point::Stored(n.into())),
                            filter: n.wrapping_mul(37),
                        })
                    })
                })
        };
        ops.extend([small(4), small(2), Op::CloseSession(4), delete(3)]);
        ops.extend(queries());
        ops.push(Op::Compact);
        ops.extend([small(3), small(5), Op::CloseSession(0)]);
        ops.extend(queries());
        ops.push(Op::Compact);
        ops.extend(queries());
        check(ops);
    }

    #[test]
    fn ids_rise_over_a_clock_that_steps_back_and_over_reopening() {
        let mut ops = Vec::new();
        for step in [
            0,
            1,
            -1,
            -3_600_000,
            3_600_000,
            -40_000_000,
            90_000_000,
            -90_000_000,
            1,
        ] {
            ops.extend([
                Op::Clock(step),
                small(0),
                small(1),
                Op::Reopen,
                small(0),
                Op::Drop,
                small(1),
            ]);
        }
        check(ops);
    }
}
