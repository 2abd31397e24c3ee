//! Code that the tests share: folders, sessions, batches, waiting for a state, forcing a seal,
//! reading everything back.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};
use std::{fs, io};

use futures_core::Stream;
use sessionlog::{
    Ack, AsyncEventStream, Batch, Event, EventStream, Head, Message, MessageId, NewEvent, Options,
    PageRequest, Result, Seq, SessionId, SessionLog, SessionQuery, StartAt, StreamItem,
};
use tempfile::TempDir;

#[cfg(feature = "postgres")]
pub(crate) use crate::engine::{databases, further, schema_of, shards, spread};
pub(crate) use crate::engine::{on_postgres, open_at};

/// How long a test waits for a state that must come. Only a failing test waits this long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// How long a test listens to check that nothing comes. A later event is missed, never wrongly
/// reported.
pub(crate) const SILENCE: Duration = Duration::from_millis(20);

/// Passes when the call fails with an error of this pattern.
macro_rules! assert_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Ok(_) => panic!(
                "{} succeeded, and {} was expected",
                stringify!($result),
                stringify!($pattern)
            ),
            Err(error) => match &error {
                $pattern $(if $guard)? => {}
                _ => panic!(
                    "{} failed with {error:?}, and {} was expected",
                    stringify!($result),
                    stringify!($pattern)
                ),
            },
        }
    };
}
pub(crate) use assert_error;

/// Where a test has its log: a folder, or with `SESSION_LOG_ENGINE=postgres` a schema in the
/// database at `SESSION_LOG_POSTGRES_URL`.
#[derive(Debug)]
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

pub(crate) fn folder() -> Place {
    Place {
        folder: tempfile::tempdir().unwrap(),
    }
}

pub(crate) fn open(place: &Place) -> SessionLog {
    Options::new().open_in(place).unwrap()
}

/// Whether IDs rise in commit order over all sessions, and not only within each.
pub(crate) fn in_one_order() -> bool {
    #[cfg(feature = "postgres")]
    if on_postgres() {
        return shards() == 1;
    }
    true
}

/// Ends a test that is about the embedded engine alone, if the tests run over another.
macro_rules! embedded_alone {
    ($reason:literal) => {
        if crate::support::on_postgres() {
            eprintln!("not over PostgreSQL: {}", $reason);
            return;
        }
    };
}
pub(crate) use embedded_alone;

/// Opens a log in a place, whatever the engine.
pub(crate) trait OpenIn {
    fn open_in(self, place: &Place) -> Result<SessionLog>;
}

impl OpenIn for Options {
    fn open_in(self, place: &Place) -> Result<SessionLog> {
        open_at(self, place.path())
    }
}

/// Waits for a state of a log's files, if it is kept in files.
pub(crate) fn eventually_in_files(what: &str, is_so: impl FnMut() -> bool) {
    if !on_postgres() {
        eventually(what, is_so);
    }
}

/// Options whose journal files stay at their smallest, so that a few megabytes are enough to make
/// segments.
pub(crate) fn small_files() -> Options {
    Options::new().journal_file_bytes_max(4 * 1024 * 1024)
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

/// An event without a turn.
pub(crate) fn note(data: impl AsRef<[u8]>) -> NewEvent {
    NewEvent::new("note", data.as_ref().to_vec())
}

/// A batch of notes, each with other data.
pub(crate) fn notes(tag: &str, count: usize) -> Batch {
    Batch::new().events((0..count).map(|n| note(format!("{tag}/{n}"))))
}

/// Appends `count` notes, each as a batch of its own.
pub(crate) fn append_notes(
    log: &SessionLog,
    session: &SessionId,
    tag: &str,
    count: usize,
) -> Vec<Event> {
    (0..count)
        .flat_map(|n| {
            log.append(session, notes(&format!("{tag}.{n}"), 1))
                .unwrap()
                .events
        })
        .collect()
}

/// Returns what the caller gave of an event, to compare with what came back.
pub(crate) fn given(event: &Event) -> (&str, &[u8]) {
    (event.event_type.as_str(), &event.data)
}

/// Returns the number of segments in the folder.
pub(crate) fn segments(folder: &Path) -> usize {
    let is_segment =
        |entry: &fs::DirEntry| entry.path().extension().is_some_and(|end| end == "segment");
    fs::read_dir(folder.join("segments"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(is_segment)
        .count()
}

/// Appends to `session` more than a journal file of [`small_files`] holds, and waits for one more
/// segment.
pub(crate) fn seal_once(log: &SessionLog, session: &SessionId) -> Vec<Event> {
    let before = log.stats().seals;
    let filler = |n| Batch::new().event(NewEvent::new("filler", vec![n; 256 * 1024]));
    let events = (0..20)
        .flat_map(|n| log.append(session, filler(n)).unwrap().events)
        .collect();
    eventually_in_files("one more segment", || log.stats().seals > before);
    events
}

/// Everything that a reader can see of a log.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    pub sessions: Vec<(SessionId, Head, Vec<Event>, Vec<Message>)>,
    pub recent: Vec<SessionId>,
    pub feed: Vec<Event>,
    pub events: u64,
}

pub(crate) fn seen(log: &SessionLog) -> Seen {
    let sessions = log
        .session_ids(SessionQuery::by_id().limit(1_000))
        .unwrap()
        .into_iter()
        .map(|id| {
            let (head, events) = (log.head(&id).unwrap(), read_all(log, &id));
            assert_dense(&events, head.first..=head.last);
            assert_eq!(
                drain(&mut log.stream(&id, StartAt::Beginning).unwrap().until_tail()),
                events
            );
            assert!(
                events
                    .iter()
                    .all(|event| log.event(event.id).unwrap() == *event)
            );
            let messages = log.messages(&id, PageRequest::new()).unwrap().items;
            assert!(
                messages
                    .iter()
                    .all(|message| log.message(message.id).unwrap() == *message)
            );
            (id, head, events, messages)
        });
    let sessions = sessions.collect();
    Seen {
        sessions,
        recent: log.recent_ids(1_000).unwrap(),
        feed: feed_all(log),
        events: log.stats().events,
    }
}

/// Appends to three sessions, with turns, keys and batches.
pub(crate) fn append_some(log: &SessionLog, tag: &str) {
    for name in ["a", "b", "a/b"] {
        let id = session(name);
        let asked = log
            .append(&id, Batch::new().user_message(tag))
            .unwrap()
            .events
            .remove(0);
        let answer =
            sessionlog::NewEvent::new("assistant.message_completed", r#"{"text":"an answer"}"#);
        log.append(
            &id,
            notes(tag, 3).event(answer.in_turn(MessageId::from(asked.id))),
        )
        .unwrap();
        log.append(&id, notes(tag, 2).idempotency_key(tag)).unwrap();
    }
}

/// Waits until `condition` holds, and fails when it does not before the deadline.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Sets a flag when it is dropped. A test that fails drops it too, so threads that go on until the
/// flag is set do not keep it from ending.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs `work` on a thread of its own. Fails when it does not return, so that a hang is a failed
/// test.
pub(crate) fn in_time<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, answer) = mpsc::channel();
    let worker = thread::spawn(move || {
        // The receiver is gone only when the test has failed already.
        let _ = done.send(work());
    });
    match answer.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} did not come to an end"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(worker.join().unwrap_err())
        }
    }
}

/// Every event of the session, page by page.
pub(crate) fn read_all(log: &SessionLog, session: &SessionId) -> Vec<Event> {
    try_read_all(log, session).unwrap()
}

pub(crate) fn try_read_all(
    log: &SessionLog,
    session: &SessionId,
) -> sessionlog::Result<Vec<Event>> {
    let mut page = log.list(session, PageRequest::new().limit(1_000))?;
    let mut events = std::mem::take(&mut page.items);
    while page.has_more {
        page = log.list(session, PageRequest::new().after(page.last).limit(1_000))?;
        events.append(&mut page.items);
    }
    Ok(events)
}

/// The next `count` events, without the markers.
pub(crate) fn take_events(stream: &mut EventStream, count: usize) -> Vec<Event> {
    let mut events = Vec::with_capacity(count);
    while events.len() < count {
        match stream.next_timeout(DEADLINE) {
            Ok(item) => events.extend(item.into_event()),
            Err(why) => panic!("{} of {count} events came: {why:?}", events.len()),
        }
    }
    events
}

/// Every event up to the end of the stream, which must come.
pub(crate) fn drain(stream: &mut EventStream) -> Vec<Event> {
    let mut events = Vec::new();
    while let Ok(item) = stream.next_timeout(DEADLINE) {
        events.extend(item.into_event());
    }
    assert!(
        stream.is_ended(),
        "the stream fell silent after {} events and did not end",
        events.len()
    );
    events
}

/// Every event committed so far, of all sessions.
pub(crate) fn feed_all(log: &SessionLog) -> Vec<Event> {
    drain(&mut log.feed().unwrap().until_tail())
}

/// The next item of an async stream.
pub(crate) async fn next_item(stream: &mut AsyncEventStream) -> Option<Result<StreamItem>> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}

/// The next `count` events of an async stream, without the markers.
pub(crate) async fn take_events_async(stream: &mut AsyncEventStream, count: usize) -> Vec<Event> {
    let mut events = Vec::with_capacity(count);
    while events.len() < count {
        let item = next_item(stream)
            .await
            .unwrap_or_else(|| panic!("the stream ended after {} of {count} events", events.len()));
        events.extend(item.unwrap().into_event());
    }
    events
}

/// Polls a future once, with a waker that wakes nobody.
pub(crate) fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Wakes the thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread and on no runtime, and fails when it does not come back.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let deadline = Instant::now() + DEADLINE;
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
        // Checked before the next poll, so that a lost wake-up is a failure and not only a delay.
        assert!(
            Instant::now() < deadline,
            "the future did not come to an end"
        );
    }
}

/// Runs a future on tokio, and fails when it does not come back.
pub(crate) fn on_tokio<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, future)
            .await
            .expect("the future's end")
    })
}

/// How many threads this process has.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// The seqs of events, in their order.
pub(crate) fn seqs(events: &[Event]) -> Vec<Seq> {
    events.iter().map(|event| event.seq).collect()
}

/// Fails unless the events have the seqs of `range` in order and rising IDs.
pub(crate) fn assert_dense(events: &[Event], range: RangeInclusive<Seq>) {
    assert_eq!(seqs(events), range.collect::<Vec<_>>());
    assert_rising(events);
}

/// Fails unless each event's ID is greater than that of the one before it.
pub(crate) fn assert_rising(events: &[Event]) {
    for pair in events.windows(2) {
        assert!(
            pair[0].id < pair[1].id,
            "{:?} stands before {:?}",
            pair[0],
            pair[1]
        );
    }
}

/// The events of one session, in their order.
pub(crate) fn of_session(events: &[Event], session: &SessionId) -> Vec<Event> {
    events
        .iter()
        .filter(|event| event.session_id == *session)
        .cloned()
        .collect()
}

/// Fails unless an ack's first and last seq and its events agree.
pub(crate) fn assert_ack_fits(ack: &Ack, session: &SessionId) {
    assert_dense(&ack.events, ack.first..=ack.last);
    assert!(
        ack.events.iter().all(|event| event.session_id == *session),
        "{ack:?}"
    );
}

/// Returns every path below a folder with its size, a hash of its bytes, and its time of change.
pub(crate) fn listing(folder: &Path) -> BTreeMap<PathBuf, (u64, String, SystemTime)> {
    let mut found = BTreeMap::new();
    for path in paths_below(folder) {
        let meta = fs::metadata(&path).unwrap();
        let hash = if meta.is_dir() {
            String::new()
        } else {
            blake3::hash(&fs::read(&path).unwrap()).to_string()
        };
        found.insert(
            path,
            (
                if meta.is_dir() { 0 } else { meta.len() },
                hash,
                meta.modified().unwrap(),
            ),
        );
    }
    found
}

/// Every path below a folder, in no order.
pub(crate) fn paths_below(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let below: Vec<_> = found
        .iter()
        .filter(|path| path.is_dir())
        .flat_map(|path| paths_below(path))
        .collect();
    found.extend(below);
    found
}

/// Copies a log's folder as it is on disk. The copy of an open log is what a kill would leave.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
            continue;
        }
        match fs::copy(entry.path(), target) {
            Ok(_) => {}
            // Background work may have taken the file away since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => panic!("{}: {error}", entry.path().display()),
        }
    }
}

/// How a log is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Write,
    ReadOnly,
}

pub(crate) fn open_for(access: Access, options: Options, folder: &Path) -> Result<SessionLog> {
    match access {
        Access::Write => options.open(folder),
        Access::ReadOnly => options.open_read_only(folder),
    }
}

/// Lists the IDs of sessions.
pub(crate) trait ListIds {
    fn session_ids(&self, query: SessionQuery) -> Result<Vec<SessionId>>;
    /// The sessions with the newest events, newest first.
    fn recent_ids(&self, limit: usize) -> Result<Vec<SessionId>>;
}

impl ListIds for SessionLog {
    fn session_ids(&self, query: SessionQuery) -> Result<Vec<SessionId>> {
        let page = self.sessions(query)?;
        Ok(page.items.into_iter().map(|session| session.id).collect())
    }

    fn recent_ids(&self, limit: usize) -> Result<Vec<SessionId>> {
        self.session_ids(SessionQuery::by_activity().limit(limit))
    }
}
