//! A running server, asked over HTTP.

use std::io::{BufRead, BufReader};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::failure::{Exit, Failure, Result, with_sources};
use crate::source::path::{self, encoded};
use crate::source::shape::unknown_shape;
use crate::source::sse::{Frame, next_frame};
use crate::source::{
    AfterIt, Appended, Change, Direction, Each, EachItem, End, Event, Follow, Item, Message, Order,
    Position, Range, Sent, Session, SessionList, Shaped, Source, Stats,
};

const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// How long a server may be silent before it answers. It may wait for its disk meanwhile.
const ANSWER_WAIT: Duration = Duration::from_mins(1);

/// How long a stream may be silent. The server sends a comment every ten seconds.
const STREAM_WAIT: Duration = Duration::from_secs(25);

/// How long to wait before a lost stream is opened again, at first and at most.
const RETRY_WAIT: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(15);

/// How often a wait for a frame looks whether the user wants to end it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Frames that were read, and not shown yet.
const FRAMES_AHEAD: usize = 256;

/// The largest answer that is read. A page has a few megabytes.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, Clone)]
pub(crate) struct Server {
    url: String,
    key: Option<String>,
    calls: Agent,
    streams: Agent,
}

impl Server {
    pub(crate) fn new(url: &str, key: Option<&str>) -> Result<Self> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(Failure::usage(format!("{url} is no address of a server"))
                .hint("it begins with http:// or https://"));
        }
        let agent = |silence| {
            Agent::config_builder()
                .http_status_as_error(false)
                .tls_config(crate::tls::config())
                .timeout_connect(Some(CONNECT_WAIT))
                .timeout_per_read(Some(silence))
                .user_agent(concat!("sessionlog/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            key: key.map(|key| format!("Bearer {key}")),
            calls: agent(ANSWER_WAIT),
            streams: agent(STREAM_WAIT),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns why the log is out of service, as the server says it. `None` if it is in service.
    pub(crate) fn trouble(&self) -> Result<Option<Failure>> {
        match self.get("/healthz") {
            Ok(_in_service) => Ok(None),
            Err(failure) if ["no_answer", "unknown_answer"].contains(&&*failure.code) => {
                Err(failure)
            }
            Err(failure) => Ok(Some(failure)),
        }
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut request = self.calls.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("Authorization", key);
        }
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        self.text_of(answer)
    }

    fn get_as<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_str(&self.get(path)?).map_err(|error| unknown_shape(&error))
    }

    fn text_of(&self, mut answer: Response<Body>) -> Result<String> {
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = body
            .read_to_string()
            .map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return Ok(text);
        }
        Err(refused(status.as_u16(), &text))
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let message = format!("no answer from {}: {}", self.url, with_sources(error));
        Failure::new("no_answer", message).hint(
            "check that the server is running, that its address is spelled so, and that nothing \
             between keeps you out",
        )
    }

    /// Opens a stream of server-sent events.
    fn open_stream(&self, path: &str, last: Option<&str>) -> Result<impl BufRead + Send + 'static> {
        let mut request = self
            .streams
            .get(format!("{}{path}", self.url))
            .header("Accept", "text/event-stream");
        if let Some(key) = &self.key {
            request = request.header("Authorization", key);
        }
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let answer = request.call().map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            let text = self.text_of(answer);
            return Err(text.err().unwrap_or_else(|| refused(500, "")));
        }
        Ok(BufReader::new(answer.into_body().into_reader()))
    }

    /// Hands over the frames of one connection. Returns the end of what is followed, or `None` when
    /// the connection was lost.
    fn follow_once(
        &self,
        what: &Follow<'_>,
        last: &mut Option<String>,
        each: EachItem<'_>,
    ) -> Result<Option<End>> {
        let path = match what.session {
            Some(session) => format!("/v1/sessions/{}/stream", encoded(session)),
            None => "/v1/feed".to_owned(),
        };
        let stream = self.open_stream(&path, last.as_deref())?;
        let frames = read_ahead(stream);
        loop {
            let frame = match frames.recv_timeout(LOOK_EVERY) {
                _ if what.interrupt.is_set() => return Ok(Some(End::Interrupted)),
                Ok(frame) => frame,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            };
            let Some(id) = frame.id else {
                match frame.event.as_str() {
                    "closed" => return Ok(Some(End::Closed)),
                    "deleted" => return Ok(Some(End::Deleted)),
                    "caught_up" => each(Item::CaughtUp)?,
                    "error" => return ended_by(&frame.data),
                    _ => {}
                }
                continue;
            };
            let is_change = what.session.is_none() && frame.event == "change";
            each(if is_change {
                Item::Change(Shaped::<Change>::new(frame.data)?)
            } else {
                Item::Event(Shaped::<Event>::new(frame.data)?)
            })?;
            *last = Some(id);
        }
    }
}

impl Source for Server {
    fn stats(&self) -> Result<Shaped<Stats>> {
        Shaped::new(self.get("/v1/stats")?)
    }

    fn session_count(&self) -> Result<u64> {
        let list = SessionList {
            order: Order::Id,
            ..SessionList::default()
        };
        let (mut many, mut cursor) = (0, None);
        loop {
            let page: Sessions = self.get_as(&path::of_sessions(&list, cursor.as_deref()))?;
            many += page.items.len() as u64;
            match page.last_cursor {
                Some(position) if page.has_more => cursor = Some(position),
                _ => return Ok(many),
            }
        }
    }

    fn session(&self, session: &str) -> Result<Shaped<Session>> {
        Shaped::new(self.get(&format!("/v1/sessions/{}", encoded(session)))?)
    }

    fn sessions(&self, list: &SessionList, each: Each<'_, Session>) -> Result<()> {
        let mut cursor = None;
        loop {
            let mut page: Sessions = self.get_as(&path::of_sessions(list, cursor.as_deref()))?;
            if list.direction == Direction::Reverse {
                page.items.reverse();
                page.last_cursor = page.first_cursor;
            }
            for session in page.items {
                if each(Shaped::new(session.get())?)?.is_break() {
                    return Ok(());
                }
            }
            match page.last_cursor {
                Some(position) if page.has_more => cursor = Some(position),
                _ => return Ok(()),
            }
        }
    }

    fn events(&self, session: &str, range: &Range, each: Each<'_, Event>) -> Result<()> {
        let mut cursor = None;
        loop {
            let page: Events = self.get_as(&path::of_events(session, range, cursor.as_deref()))?;
            for event in page.items {
                let event = Shaped::<Event>::new(event.get())?;
                match place(&event.value, range) {
                    InRange::Not => continue,
                    InRange::NeverAgain => return Ok(()),
                    InRange::Yes => {}
                }
                if each(event)?.is_break() {
                    return Ok(());
                }
            }
            match page.last_id {
                Some(last) if page.has_more => cursor = Some(last),
                _ => return Ok(()),
            }
        }
    }

    fn message(&self, id: &str) -> Result<Shaped<Message>> {
        Shaped::new(self.get(&format!("/v1/messages/{}", encoded(id)))?)
    }

    fn event(&self, id: &str) -> Result<Shaped<Event>> {
        Shaped::new(self.get(&format!("/v1/events/{}", encoded(id)))?)
    }

    fn append(&self, session: &str, sent: &Sent<'_>) -> Result<Appended> {
        let path = format!("{}/v1/sessions/{}/events", self.url, encoded(session));
        let mut request = self
            .calls
            .post(path)
            .header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", key);
        }
        if let Some(key) = sent.key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(seq) = sent.expected {
            request = request.header("If-Match", format!("\"{seq}\""));
        }
        let answer = request
            .send(body_of(sent))
            .map_err(|error| self.unreachable(&error))?;
        let replayed = answer.headers().contains_key("idempotent-replayed");
        let stored: Stored =
            serde_json::from_str(&self.text_of(answer)?).map_err(|error| unknown_shape(&error))?;
        let events = stored.events.iter().map(|event| Shaped::new(event.get()));
        Ok(Appended {
            events: events.collect::<Result<_>>()?,
            replayed,
        })
    }

    fn follow(&self, what: &Follow<'_>, each: EachItem<'_>) -> Result<End> {
        let mut last = what.after.map(str::to_owned);
        let (mut was_open, mut wait) = (false, RETRY_WAIT);
        loop {
            let seen = last.clone();
            let why = match self.follow_once(what, &mut last, each) {
                Ok(Some(end)) => return Ok(end),
                Ok(None) => "the connection was lost".to_owned(),
                // A server that was never reached is more likely to be another one.
                Err(failure) if was_open && may_pass(&failure) => failure.message,
                Err(failure) => return Err(failure),
            };
            if last != seen || !was_open {
                wait = RETRY_WAIT;
            }
            was_open = true;
            let shown = wait.as_secs_f64();
            what.output
                .note(format!("{why}; trying again in {shown:.1} s"));
            if what.interrupt.wait(wait) {
                return Ok(End::Interrupted);
            }
            wait = (wait * 2).min(RETRY_WAIT_MAX);
        }
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Reads frames on a thread of its own, so that a wait for one can be ended. The channel closes
/// when the connection ends.
fn read_ahead(mut stream: impl BufRead + Send + 'static) -> Receiver<Frame> {
    let (sender, frames): (SyncSender<Frame>, _) = sync_channel(FRAMES_AHEAD);
    // Without the thread the channel is closed at once, as after a lost connection.
    let _reading = thread::Builder::new()
        .name("stream".to_owned())
        .spawn(move || {
            while let Ok(Some(frame)) = next_frame(&mut stream) {
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
    frames
}

/// What an error within a stream means: it ends for good, or the connection is to be made again.
fn ended_by(data: &str) -> Result<Option<End>> {
    let failure = refused(500, data);
    if may_pass(&failure) {
        Ok(None)
    } else {
        Err(failure)
    }
}

/// Whether a stream that failed so may go on later.
fn may_pass(failure: &Failure) -> bool {
    let code = failure.code.as_str();
    let is_final = ["unauthorized", "forbidden", "invalid", "unknown_answer"].contains(&code)
        || code.starts_with("unknown_")
        || code.starts_with("cursor_");
    !is_final
}

#[derive(Deserialize)]
struct Sessions {
    #[serde(rename = "sessions")]
    items: Vec<Box<RawValue>>,
    has_more: bool,
    first_cursor: Option<String>,
    last_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Events {
    #[serde(rename = "events")]
    items: Vec<Box<RawValue>>,
    has_more: bool,
    last_id: Option<String>,
}

#[derive(Deserialize)]
struct Stored {
    events: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    code: String,
    message: String,
}

/// The failure that a server answered with.
fn refused(status: u16, body: &str) -> Failure {
    let Ok(ErrorBody { error }) = serde_json::from_str(body) else {
        let message = format!("the server answered with status {status} and no reason");
        return Failure::new("unknown_answer", message)
            .hint("check that the address is that of a sessionlog server");
    };
    let failure = Failure {
        exit: if error.code == "corrupt" {
            Exit::Damage
        } else {
            Exit::Failed
        },
        ..Failure::new(error.code, format!("the server refused: {}", error.message))
    };
    match hint_of(status, &failure.code) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn hint_of(status: u16, code: &str) -> Option<&'static str> {
    Some(match (status, code) {
        (401, _) => {
            "set the key in SESSIONLOG_WORKER_KEY or SESSIONLOG_API_KEY, or give --key-file"
        }
        (403, "forbidden") => "this takes the key of a worker: set SESSIONLOG_WORKER_KEY",
        (_, "unknown_session") => "`sessionlog sessions --url URL` lists the sessions",
        (404, _) => "check the ID; what was removed is not found either",
        (400, _) => {
            "check what was given: an event is evt_ and 26 characters, a message msg_ and 26"
        }
        (409, "session_closed") => "it takes no more events unless it is reopened",
        (409, "idempotency_conflict") => {
            "the input is another one than it was: use another --key for it"
        }
        (412, _) => "others appended meanwhile: read what is new, then repeat with its last seq",
        (413, _) => "send less at once: `append --each` stores line by line",
        (429, _) => "too many are connected: repeat the command later",
        (500.., _) => "see the log of the server, and its /healthz",
        _ => return None,
    })
}

fn body_of(sent: &Sent<'_>) -> String {
    let close = match sent.end {
        AfterIt::Closes => r#","close":true"#,
        AfterIt::StaysOpen => "",
    };
    format!(r#"{{"events":[{}]{close}}}"#, sent.events.join(","))
}

/// Whether an event is in a range.
enum InRange {
    Yes,
    Not,
    /// It is not, and no later one is.
    NeverAgain,
}

fn place(event: &Event, range: &Range) -> InRange {
    let is_after = |position: &Position| match position {
        Position::Seq(seq) => event.seq > *seq,
        Position::Event(id) => event.id > *id,
    };
    let is_before = |position: &Position| match position {
        Position::Seq(seq) => event.seq < *seq,
        Position::Event(id) => event.id < *id,
    };
    let is_late = !range.before.as_ref().is_none_or(is_before);
    let is_early = !range.after.as_ref().is_none_or(is_after);
    match (range.direction, is_early, is_late) {
        (_, false, false) => InRange::Yes,
        (Direction::Forward, _, true) | (Direction::Reverse, true, _) => InRange::NeverAgain,
        _ => InRange::Not,
    }
}
