//! Compares the log with plain vectors and maps: the same operations on both, and the first
//! difference is a panic.
//!
//! An operation is written in eight bytes and refers to stored events by position, so any bytes are
//! a script. proptest shrinks a script by dropping operations, and the fuzz target `operations`
//! calls the same [`run`]. The model predicts results and errors alike, with the numbers in them.
//! It never looks inside the log's folder, except to damage the index, which must not matter.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, thread};

use sessionlog::{
    Ack, Batch, Cursor, CursorProblem, Error, Event, EventId, EventStream, Expected, Limit,
    MessageId, NewEvent, Options, Page, PageRequest, RecvTimeout, SessionId, SessionLog,
    SessionQuery, StartAt,
};

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
    /// The nth keyed append once more.
    Retry { nth: u8, change: Change },
    /// A batch with some hundred KB per event. A few of them fill a journal file.
    Fill { session: u8, events: u8 },
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
    Stream { session: u8, from: Begin },
    /// An event by its ID.
    Event(Point),
    /// A message by its ID.
    Message(Point),
    /// The head of a session.
    Head(u8),
    /// Sessions in the order of their names.
    Sessions { after: Option<u8>, limit: u8 },
    /// Sessions by newest activity.
    RecentSessions { limit: u8 },
    /// All sessions' events in commit order, up to the tail.
    Feed { after: Option<Point> },
    /// Close and open.
    Reopen,
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

/// Runs `ops` on a fresh log and on the model.
///
/// # Panics
///
/// At the first difference.
pub(crate) fn run(ops: &[Op]) {
    let mut world = World::new();
    for (place, op) in ops.iter().enumerate() {
        let telling = Telling { place, op };
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
const TYPES: [&str; 4] = ["user.message", "note", "agent.thought", "ü"];
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
const DEADLINE: Duration = Duration::from_secs(30);

#[expect(
    clippy::many_single_char_names,
    reason = "they are eight bytes without a meaning of their own"
)]
fn decode_op(chunk: &[u8]) -> Op {
    let mut b = [0; OP_BYTES];
    b[..chunk.len()].copy_from_slice(chunk);
    let [kind, s, x, y, z, u, v, w] = b;
    match kind % 32 {
        0..=7 => Op::Append {
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
        27 => Op::Reopen,
        28 => Op::Drop,
        29 => Op::DeleteIndex,
        30 => Op::DamageIndex(decode_damage(s, x)),
        _ => Op::Clock(decode_step(s, x, y)),
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
    log: Option<SessionLog>,
    folder: tempfile::TempDir,
    older_index: Option<tempfile::TempDir>,
    clock: Arc<AtomicU64>,
}

/// The events that should be stored.
#[derive(Default)]
struct Model {
    /// In commit order.
    events: Vec<Stored>,
    /// The places in `events` of each session's events, at index seq - 1.
    sessions: BTreeMap<SessionId, Vec<usize>>,
    ids: BTreeMap<EventId, usize>,
    keys: BTreeMap<(SessionId, String), Landed>,
    /// Every keyed batch that was well formed, whether it landed or not.
    tries: Vec<Try>,
    batches: u64,
}

struct Stored {
    id: EventId,
    session: SessionId,
    seq: u64,
    given: Given,
    message_id: Option<MessageId>,
    created_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    event_type: String,
    data: Vec<u8>,
    turn: Option<MessageId>,
}

struct Landed {
    given: Vec<Given>,
    first: u64,
    last: u64,
}

#[derive(Clone)]
struct Try {
    session: SessionId,
    given: Vec<Given>,
    key: Option<String>,
    expected: Expected,
}

/// The expected result of an append.
enum Answer {
    Lands,
    Replays { first: u64, last: u64 },
    Fails(Error),
}

enum Stop {
    Close,
    Drop,
}

fn session_name(n: u8) -> SessionId {
    let longest = "s".repeat(SessionId::BYTES_MAX);
    let names: [&str; SESSIONS] = ["a", "ab", "a/../b", "b", "é", &longest, "A", "../../x"];
    SessionId::new(names[usize::from(n) % SESSIONS]).expect("the name follows the rules")
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
            Op::Head(session) => self.head(&session_name(session)),
            Op::Sessions { after, limit } => {
                self.sessions(after.map(session_name).as_ref(), usize::from(limit));
            }
            Op::RecentSessions { limit } => self.recent_sessions(usize::from(limit)),
            Op::Feed { after } => self.feed(after),
            Op::Reopen => self.reopen(&Stop::Close, Self::keep_older_index),
            Op::Drop => self.reopen(&Stop::Drop, |_| ()),
            Op::DeleteIndex => self.reopen(&Stop::Close, |world| remove(&world.index())),
            Op::DamageIndex(damage) => {
                self.reopen(&Stop::Close, |world| world.damage_index(damage));
            }
            Op::Clock(step) => self.step_clock(step),
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
        let expected = match expected {
            Want::Any => Expected::Any,
            Want::NoSession => Expected::NoSession,
            Want::Exists => Expected::Exists,
            Want::Tail => Expected::Seq(self.model.tail(&session)),
            Want::Seq(n) => Expected::Seq(u64::from(n) % (self.model.tail(&session) + 3)),
        };
        let key = match shape {
            Shape::NoKey => Some(String::new()),
            Shape::LongKey => Some("k".repeat(KEY_BYTES_MAX + 1)),
            _ => key.map(|n| format!("key {}", n % 6)),
        };
        let given = self.model.given(shape);
        self.append(Try {
            session,
            given,
            key,
            expected,
        });
    }

    fn fill(&mut self, session: u8, events: u8) {
        let seed = self.model.next_batch();
        let given = (0..u64::from(events))
            .map(|i| Given::plain("note", noise(seed + i, FILL_EVENT_BYTES)))
            .collect();
        self.append(Try {
            session: session_name(session),
            given,
            key: None,
            expected: Expected::Any,
        });
    }

    fn retry(&mut self, nth: u8, change: Change) {
        let Some(earlier) = self.model.tries.iter().rev().cycle().nth(usize::from(nth)) else {
            return;
        };
        let mut again = earlier.clone();
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
        let newest = self
            .model
            .events
            .last()
            .map_or(EventId::from_u128(0), |event| event.id);
        let base = ack.events[0].id;
        assert!(base > newest, "{base} was given out after {newest}");
        let now_ms = self.now_ms();
        assert_eq!(
            base.timestamp_ms(),
            now_ms.max(newest.timestamp_ms()),
            "the time in {base}, after {newest}"
        );
        let range = self.model.store(attempt, base, now_ms);
        self.model.assert_replay(&attempt.session, range, ack);
    }
}

impl Try {
    fn batch(&self) -> Batch {
        let mut batch = Batch::new()
            .events(self.given.iter().map(Given::event))
            .expected(self.expected);
        if let Some(key) = &self.key {
            batch = batch.idempotency_key(key);
        }
        batch
    }

    /// The rules of a batch that do not depend on what is stored.
    fn check(&self) -> Result<(), Error> {
        if self.given.is_empty()
            || self
                .given
                .iter()
                .any(|given| given.event_type.is_empty() || given.event_type.contains('\n'))
        {
            return Err(invalid());
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

impl Given {
    fn plain(event_type: &str, data: Vec<u8>) -> Self {
        Self {
            event_type: event_type.to_owned(),
            data,
            turn: None,
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
        self.sessions
            .get(session)
            .map_or(0, |places| places.len() as u64)
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
            self.events
                .iter()
                .rev()
                .find(|event| event.given.opens_turn())
                .map(|event| event.id)
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

    fn answer(&self, attempt: &Try) -> Answer {
        if let Err(error) = attempt.check() {
            return Answer::Fails(error);
        }
        let session = attempt.session.clone();
        if let Some(key) = &attempt.key
            && let Some(landed) = self.keys.get(&(session.clone(), key.clone()))
        {
            let Landed { first, last, .. } = *landed;
            if landed.given == attempt.given {
                return Answer::Replays { first, last };
            }
            return Answer::Fails(Error::IdempotencyConflict {
                session,
                key: key.clone(),
                first_seq: first,
            });
        }
        let actual = self.tail(&session);
        let holds = match attempt.expected {
            Expected::Any => true,
            Expected::NoSession => actual == 0,
            Expected::Exists => actual > 0,
            Expected::Seq(seq) => actual == seq,
            other => panic!("the model does not know {other:?}"),
        };
        if holds {
            Answer::Lands
        } else {
            Answer::Fails(Error::ExpectedMismatch {
                session,
                expected: attempt.expected,
                actual,
            })
        }
    }

    fn store(&mut self, attempt: &Try, base: EventId, created_ms: u64) -> RangeInclusive<u64> {
        let session = &attempt.session;
        let first = self.tail(session) + 1;
        let mut last = first;
        for (i, given) in attempt.given.iter().enumerate() {
            let id = EventId::from_u128(base.to_u128() + i as u128);
            let message_id = if given.opens_turn() {
                Some(id.into())
            } else {
                given.turn
            };
            last = first + i as u64;
            self.ids.insert(id, self.events.len());
            self.sessions
                .entry(session.clone())
                .or_default()
                .push(self.events.len());
            self.events.push(Stored {
                id,
                session: session.clone(),
                seq: last,
                given: given.clone(),
                message_id,
                created_ms,
            });
        }
        if let Some(key) = &attempt.key {
            self.keys.insert(
                (session.clone(), key.clone()),
                Landed {
                    given: attempt.given.clone(),
                    first,
                    last,
                },
            );
        }
        first..=last
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
        let places = self.sessions.get(session).map_or(&[][..], Vec::as_slice);
        places
            .iter()
            .map(|&place| &self.events[place])
            .filter(move |event| seqs.contains(&event.seq))
    }

    /// The ID at `point`.
    fn id(&self, point: Point) -> EventId {
        match point {
            Point::Stored(n) if !self.events.is_empty() => {
                self.events[usize::from(n) % self.events.len()].id
            }
            Point::Stored(n) | Point::Unknown(n) => self.unknown_id(usize::from(n)),
        }
    }

    /// Returns an ID next to a stored one, where there is room, or far from all.
    fn unknown_id(&self, n: usize) -> EventId {
        let stored = self
            .events
            .get(n / 4 % self.events.len().max(1))
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

/// Reading.
impl World {
    fn list(&self, listing: &Listing) {
        let predicted = self.model.range(listing);
        let got = self.log().list(&listing.session, listing.page(&self.model));
        match predicted {
            Err(errors) => assert_error(got.map(|page| page.last), &errors),
            Ok(range) => self.model.assert_page(listing, range, &must("list", got)),
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
        if self.model.tail(session) == 0 {
            return self.list(&listing);
        }
        let mut seen = Vec::new();
        loop {
            let range = self
                .model
                .range(&listing)
                .unwrap_or_else(|errors| panic!("a page went on where none is: {errors:?}"));
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

    fn stream(&self, session: &SessionId, from: Begin) {
        let listing = Listing {
            after: from.after(),
            ..Listing::all(session)
        };
        let range = self.model.range(&listing);
        let from = match from {
            Begin::Start => StartAt::Beginning,
            Begin::Creation => StartAt::Creation,
            Begin::Now => StartAt::Now,
            Begin::After(at) => StartAt::After(self.model.cursor(session, at)),
        };
        // A stream waits for a session that does not exist, and has nothing up to its tail.
        let predicted = match (from, range) {
            (StartAt::Creation, Err(_)) | (StartAt::Now, Ok(_)) => Ok(NOTHING),
            (_, range) => range,
        };
        let got = self.log().stream(session, from);
        match predicted {
            Err(errors) => assert_error(got.map(drop), &errors),
            Ok(range) => assert_same(
                &drain(must("stream", got)),
                self.model.of_session(session, range),
            ),
        }
    }

    fn event(&self, point: Point) {
        let id = self.model.id(point);
        let got = self.log().event(id);
        match self.model.ids.get(&id) {
            Some(&place) => assert_same(&[must("event", got)], [&self.model.events[place]]),
            None => assert_error(got.map(|event| event.seq), &[Error::UnknownEvent { id }]),
        }
    }

    fn message(&self, point: Point) {
        let id = MessageId::from(self.model.id(point));
        let got = self.log().message(id);
        match self
            .model
            .ids
            .get(&id.event_id())
            .map(|&place| &self.model.events[place])
        {
            Some(opened) if opened.given.opens_turn() => {
                let message = must("message", got);
                assert_eq!(
                    (message.id, &message.session_id, message.seq),
                    (id, &opened.session, opened.seq)
                );
                assert_eq!(
                    u64::try_from(message.created_at.as_millisecond()),
                    Ok(opened.created_ms)
                );
            }
            _ => assert_error(
                got.map(|message| message.seq),
                &[Error::UnknownMessage { id }],
            ),
        }
    }

    fn head(&self, session: &SessionId) {
        let got = self.log().head(session);
        let Some(newest) = self.model.of_session(session, 1..=u64::MAX).next_back() else {
            return assert_error(
                got.map(|head| head.last),
                &[Error::UnknownSession {
                    session: session.clone(),
                }],
            );
        };
        let head = must("head", got);
        assert_eq!(
            (head.generation, head.first, head.last, head.last_id),
            (1, 1, newest.seq, newest.id),
            "the head of {session}"
        );
    }

    fn sessions(&self, after: Option<&SessionId>, limit: usize) {
        let expected: Vec<&SessionId> = self
            .model
            .sessions
            .keys()
            .filter(|session| after.is_none_or(|after| *session > after))
            .collect();
        let mut query = SessionQuery::new().limit(limit);
        if let Some(after) = after {
            query = query.after(after);
        }
        assert_sessions(limit, &expected, self.log().sessions(query));
    }

    fn recent_sessions(&self, limit: usize) {
        let mut expected: Vec<(&usize, &SessionId)> = self
            .model
            .sessions
            .iter()
            .filter_map(|(session, places)| Some((places.last()?, session)))
            .collect();
        expected.sort_by(|left, right| right.cmp(left));
        let expected: Vec<&SessionId> = expected.into_iter().map(|(_, session)| session).collect();
        assert_sessions(limit, &expected, self.log().recent_sessions(limit));
    }

    fn feed(&self, after: Option<Point>) {
        let after = after.map(|point| self.model.id(point));
        let got = match after {
            Some(id) => self.log().feed_after(id),
            None => self.log().feed(),
        };
        if let Some(id) = after.filter(|id| !self.model.ids.contains_key(id)) {
            return assert_error(got, &[Error::UnknownEvent { id }]);
        }
        let got = drain(must("feed", got));
        assert_same(
            &got,
            self.model
                .events
                .iter()
                .filter(|event| after.is_none_or(|after| event.id > after)),
        );
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
        let places = self.sessions.get(session).map_or(&[][..], Vec::as_slice);
        match at {
            At::Seq(n) => Cursor::Seq(u64::from(n) % (places.len() as u64 + 3)),
            At::Own(n) if !places.is_empty() => {
                Cursor::Event(self.events[places[usize::from(n) % places.len()]].id)
            }
            At::Own(n) => Cursor::Event(self.unknown_id(usize::from(n))),
            At::Event(point) => Cursor::Event(self.id(point)),
        }
    }

    /// Returns the seqs that a listing bounds, or the possible errors. Where both cursors are
    /// wrong, either may be reported.
    fn range(&self, listing: &Listing) -> Result<RangeInclusive<u64>, Vec<Error>> {
        check_page_limit(listing.limit).map_err(|error| vec![error])?;
        let session = &listing.session;
        let tail = self.tail(session);
        if tail == 0 {
            return Err(vec![Error::UnknownSession {
                session: session.clone(),
            }]);
        }
        let after = listing.after.map_or(Ok(0), |at| {
            self.seq(session, self.cursor(session, at), tail)
        });
        let before = listing.before.map_or(Ok(tail + 1), |at| {
            self.seq(session, self.cursor(session, at), tail + 1)
        });
        match (after, before) {
            (Ok(after), Ok(before)) => Ok(after + 1..=before.saturating_sub(1)),
            (after, before) => Err([after.err(), before.err()].into_iter().flatten().collect()),
        }
    }

    fn seq(&self, session: &SessionId, cursor: Cursor, highest: u64) -> Result<u64, Error> {
        let problem = match cursor {
            Cursor::Seq(seq) if seq <= highest => return Ok(seq),
            Cursor::Seq(seq) => CursorProblem::BeyondTail {
                seq,
                tail: self.tail(session),
            },
            Cursor::Event(id) => match self.ids.get(&id).map(|&place| &self.events[place]) {
                Some(event) if event.session == *session => return Ok(event.seq),
                Some(_) => CursorProblem::OtherSession(id),
                None => CursorProblem::Unknown(id),
            },
        };
        Err(Error::Cursor {
            session: session.clone(),
            problem,
        })
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
        Options::new()
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
            .clock(move || UNIX_EPOCH + Duration::from_millis(clock.load(Ordering::SeqCst)))
            .open(self.folder.path())
            .unwrap_or_else(|error| panic!("the log should open: {error:?}"))
    }

    fn reopen(&mut self, stop: &Stop, between: impl FnOnce(&mut Self)) {
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
        for session in (0..=255).take(SESSIONS).map(session_name) {
            self.head(&session);
            self.walk(&session, Order::Ascending, 30, &[]);
            self.walk(&session, Order::NewestFirst, 6, &[]);
            self.stream(&session, Begin::Start);
            self.messages(&session);
        }
    }

    /// Page after page, since a page may stop to scan before it has found a message.
    fn messages(&self, session: &SessionId) {
        let mut seen = Vec::new();
        let (mut after, mut has_more) = (0, self.model.tail(session) > 0);
        while has_more {
            let page = must(
                "messages",
                self.log()
                    .messages(session, PageRequest::new().after(after).limit(3)),
            );
            assert!(
                page.items.len() <= 3 && (page.last > after || !page.has_more),
                "a page of messages gets nowhere"
            );
            seen.extend(page.items.into_iter().map(|message| message.id));
            (after, has_more) = (page.last, page.has_more);
        }
        let opened = self
            .model
            .of_session(session, 1..=u64::MAX)
            .filter(|event| event.given.opens_turn());
        assert_eq!(
            seen,
            opened
                .map(|event| event.id.into())
                .collect::<Vec<MessageId>>(),
            "the messages of {session}"
        );
    }
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

/// Returns everything that a stream yields up to the tail. A silent stream has lost its end.
fn drain(stream: EventStream) -> Vec<Event> {
    let mut stream = stream.until_tail();
    let mut events = Vec::new();
    loop {
        match stream.next_timeout(DEADLINE) {
            Ok(item) => events.extend(item.into_event()),
            Err(RecvTimeout::Ended) => return events,
            Err(other) => panic!("a stream up to the tail after {}: {other:?}", events.len()),
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

fn assert_sessions(limit: usize, expected: &[&SessionId], got: Result<Vec<SessionId>, Error>) {
    if let Err(error) = check_page_limit(limit) {
        return assert_error(got.map(|sessions| sessions.len()), &[error]);
    }
    assert_eq!(
        must("sessions", got).iter().collect::<Vec<_>>(),
        expected[..limit.min(expected.len())],
        "sessions"
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
            cases: 48,
            failure_persistence: None,
            max_shrink_iters: 400,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_log_does_what_plain_maps_do(bytes in vec(any::<[u8; OP_BYTES]>(), 1..60)) {
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
