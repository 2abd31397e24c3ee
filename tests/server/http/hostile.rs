//! Clients on plain sockets that use as much of the server as they can, and a well-behaved one.
//!
//! Ten seconds with 60 clients, or two minutes with 200 in a full run. The server may use 512 MiB
//! in addition to its caches. These are the events that are not yet in a segment, which `/metrics`
//! reports, and the default limits for blocks and for the index.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sessionlog::{Batch, Event, MessageId, NewEvent, SessionLog};

use crate::process::Server;
use crate::support::{KEY, said};

const MIB: u64 = 1024 * 1024;

/// The memory that requests, answers and connections may use together.
const RESIDENT_BYTES_MAX: u64 = 512 * MIB;

/// The default limits for blocks and for the index. The heads of a few hundred sessions take almost
/// nothing.
const CACHES_BYTES: u64 = (64 + 32) * MIB;

/// Nearly the largest event.
const LARGE: usize = 900_000;

/// The time within which a request that was refused as too much passes when it is sent again.
const PASSES_WITHIN: Duration = Duration::from_mins(1);

struct Size {
    clients: usize,
    lasts: Duration,
    large_sessions: usize,
    turns: usize,
    outputs: usize,
    endless_events: usize,
}

const QUICK: Size = Size {
    clients: 60,
    lasts: Duration::from_secs(10),
    large_sessions: 30,
    turns: 20,
    outputs: 5,
    endless_events: 5_000,
};

const FULL: Size = Size {
    clients: 200,
    lasts: Duration::from_mins(2),
    large_sessions: 150,
    turns: 100,
    outputs: 10,
    endless_events: 100_000,
};

/// JSON that takes many times its length when it is read into values: a part that is repeated
/// between a beginning and an end.
const ODD: [(&str, &str, &str); 6] = [
    ("[0", ",0", "]"),
    ("[[]", ",[]", "]"),
    ("[{}", ",{}", "]"),
    ("[[0]", ",[0]", "]"),
    (r#"[{"":0}"#, r#",{"":0}"#, "]"),
    ("[[[[[[[[[0]]]]]]]]", ",[[[[[[[[0]]]]]]]]", "]"),
];

fn odd((begin, part, end): (&str, &str, &str), bytes: usize) -> String {
    format!(
        "{begin}{}{end}",
        part.repeat((bytes - begin.len() - end.len()) / part.len())
    )
}

#[test]
fn campaign_hostile_clients_cannot_take_the_server_over() {
    let size = if std::env::var("SESSION_LOG_CAMPAIGN").is_ok_and(|tier| tier == "full") {
        FULL
    } else {
        QUICK
    };
    let folder = tempfile::tempdir().unwrap();
    let turns = prepare(&SessionLog::open(folder.path()).unwrap(), &size);
    let server = Server::start(folder.path(), "127.0.0.1:0");
    let scene = Scene {
        address: server.url.trim_start_matches("http://").to_owned(),
        deadline: Instant::now() + size.lasts,
        large_sessions: size.large_sessions,
        turns,
        answers: std::array::from_fn(|_| AtomicU64::new(0)),
    };
    let good = thread::scope(|scope| {
        for client in 0..size.clients {
            let scene = &scene;
            scope.spawn(move || scene.misbehave(client));
        }
        scope.spawn(|| scene.behave()).join().unwrap()
    });
    let peak = server.resident_bytes_max();
    let answers: Vec<_> = ANSWERS
        .iter()
        .zip(&scene.answers)
        .map(|(status, count)| (*status, count.load(Ordering::Relaxed)))
        .collect();
    let (rest, mib) = (
        peak.saturating_sub(CACHES_BYTES + good.recent_bytes_max),
        |bytes: u64| bytes / MIB,
    );
    println!(
        "{} clients for {:?}: {} MiB at the peak, \
         of it {} not yet in a segment, {} beside all caches; \
         they were answered {answers:?}; {good:?}",
        size.clients,
        size.lasts,
        mib(peak),
        mib(good.recent_bytes_max),
        mib(rest)
    );
    assert!(
        rest < RESIDENT_BYTES_MAX,
        "{} MiB beside the caches",
        mib(rest)
    );
    assert!(good.appended > 0);
}

/// The turns that clients request.
struct Turns {
    endless: MessageId,
    odd: Vec<MessageId>,
    calls: MessageId,
}

fn prepare(log: &SessionLog, size: &Size) -> Turns {
    append_large_sessions(log, size);
    append_turns(log, size);
    let turns = Turns {
        endless: append_endless_turn(log, size),
        odd: ODD.map(|shape| append_odd_turn(log, shape)).into(),
        calls: append_many_calls(log),
    };
    log.close().unwrap();
    turns
}

fn append(log: &SessionLog, session: &str, batch: impl Into<Batch>) -> Vec<Event> {
    log.append(&session.parse().unwrap(), batch).unwrap().events
}

fn open_turn(log: &SessionLog, session: &str, text: &str) -> MessageId {
    append(log, session, Batch::new().user_message(text))[0]
        .id
        .into()
}

fn output(data: String, turn: MessageId) -> NewEvent {
    NewEvent::new("assistant.message_completed", data).in_turn(turn)
}

fn large(n: usize) -> String {
    json!({"n": n, "text": "x".repeat(LARGE)}).to_string()
}

fn append_large_sessions(log: &SessionLog, size: &Size) {
    for n in 0..size.large_sessions {
        let notes = (0..3).map(|_| NewEvent::new("note", large(n)));
        append(log, &format!("large-{n}"), Batch::new().events(notes));
    }
}

fn append_turns(log: &SessionLog, size: &Size) {
    let openings = (0..size.turns).fold(Batch::new(), |batch, n| batch.user_message(n.to_string()));
    let opened = append(log, "turns", openings);
    for n in 0..size.outputs {
        for turns in opened.chunks(4) {
            let outputs = turns.iter().map(|turn| output(large(n), turn.id.into()));
            append(log, "turns", Batch::new().events(outputs));
        }
    }
}

fn append_endless_turn(log: &SessionLog, size: &Size) -> MessageId {
    let turn = open_turn(log, "endless", "without an end");
    for _ in 0..size.endless_events / 1_000 {
        let note = |n: u32| NewEvent::new("note", n.to_string()).in_turn(turn);
        append(log, "endless", Batch::new().events((0..1_000).map(note)));
    }
    turn
}

fn append_odd_turn(log: &SessionLog, shape: (&str, &str, &str)) -> MessageId {
    let sent = format!(
        r#"{{"content":[{{"type":"x","x":{}}}],"metadata":{{}}}}"#,
        odd(shape, LARGE)
    );
    let turn = append(log, "odd", NewEvent::new("user.message", sent))[0]
        .id
        .into();
    let outputs = [LARGE, LARGE - 100].map(|bytes| output(odd(shape, bytes), turn));
    append(log, "odd", Batch::new().events(outputs));
    let failed = format!(r#"{{"status":"failed","error":{}}}"#, odd(shape, LARGE));
    let failed = NewEvent::new("message.status_changed", failed).in_turn(turn);
    append(log, "odd", failed);
    turn
}

fn append_many_calls(log: &SessionLog) -> MessageId {
    let turn = open_turn(log, "calls", "many calls");
    for n in 0..20 {
        let ids: Vec<_> = (0..40_000)
            .map(|id| json!({"id": format!("{n}-{id}")}))
            .collect();
        let shape = ODD[n % ODD.len()];
        let half = || odd(shape, LARGE / 2);
        let requests = [
            json!({ "calls": ids }).to_string(),
            format!(r#"{{"calls":{},"call_id":{}}}"#, half(), half()),
        ];
        let requests =
            requests.map(|data| NewEvent::new("tool.call_requested", data).in_turn(turn));
        append(log, "calls", Batch::new().events(requests));
    }
    turn
}

/// The statuses that a client may see, for any request.
const ANSWERS: [u16; 9] = [200, 400, 408, 413, 414, 429, 431, 503, 0];

/// No status: the connection was closed.
const NO_ANSWER: u16 = 0;

struct Scene {
    address: String,
    deadline: Instant,
    large_sessions: usize,
    turns: Turns,
    answers: [AtomicU64; ANSWERS.len()],
}

/// The results of the well-behaved client.
#[derive(Debug, Default)]
struct Good {
    appended: u64,
    listed: u64,
    /// Answers that asked to try again.
    refused: u64,
    longest: Duration,
    recent_bytes_max: u64,
}

impl Scene {
    fn misbehave(&self, client: usize) {
        for round in client.. {
            if self.is_over() {
                return;
            }
            let turn = self.turns.odd[round / 16 % self.turns.odd.len()];
            let large = format!("large-{}", round % self.large_sessions);
            match client % 16 {
                0 => self.trickle(&format!("/v1/sessions/{large}/events?limit=1000")),
                1 => self.take_nothing("/v1/sessions/turns/messages?limit=1000"),
                2 => self.send_slowly(&said("byte by byte")),
                3 => self.announce(4 * 1024 * 1024, &" ".repeat(1024 * 1024)),
                4 => self.send_head_without_end(),
                5 => self.take_nothing(&format!("/v1/sessions/{large}/stream")),
                6 => self.ask("/v1/sessions/turns/messages?limit=1000&order=desc"),
                7 => self.hang_up(&format!("/v1/messages/{}?wait=60", self.turns.endless)),
                8 => self.ask("/v1/sessions/odd/messages?limit=1000"),
                9 => self.hang_up(&format!("/v1/sessions/{large}/events?limit=1000")),
                10 => self.send_odd(ODD[round / 16 % ODD.len()]),
                11 => self.ask(&format!(
                    "/v1/sessions/{large}/events?limit=1000{}",
                    "&type=x".repeat(1_000)
                )),
                12 => self.ask("/v1/sessions?limit=1000&order=id"),
                13 => self.ask(&format!("/v1/messages/{turn}")),
                14 => self.ask(&format!("/v1/messages/{}", self.turns.calls)),
                _ => self.take_nothing(&format!("/v1/messages/{turn}")),
            }
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        socket
    }

    fn get(&self, path: &str) -> TcpStream {
        let mut socket = self.connect();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Authorization: Bearer {KEY}\r\n\r\n"
        )
        .unwrap();
        socket
    }

    fn post(&self, session: &str, more: &str, length: usize) -> TcpStream {
        let mut socket = self.connect();
        let head = "Content-Type: application/json\r\nConnection: close\r\n";
        write!(
            socket,
            "POST /v1/sessions/{session}/events HTTP/1.1\r\nHost: x\r\n\
             Authorization: Bearer {KEY}\r\n{head}{more}Content-Length: {length}\r\n\r\n"
        )
        .unwrap();
        socket
    }

    /// Counts an answer, which must be one that the document has.
    fn note(&self, answer: &[u8]) {
        let status = status(answer);
        let place = ANSWERS.iter().position(|known| *known == status);
        let place = place.unwrap_or_else(|| {
            panic!(
                "{}",
                String::from_utf8_lossy(&answer[..answer.len().min(1_000)])
            )
        });
        self.answers[place].fetch_add(1, Ordering::Relaxed);
    }

    /// Reads until it is enough, the connection ends, or the time is over. Keeps at most a
    /// megabyte.
    fn take(
        &self,
        socket: &mut TcpStream,
        bytes_max: usize,
        each: usize,
        rest: Duration,
    ) -> Vec<u8> {
        let (mut taken, mut count, mut buf) = (Vec::new(), 0, vec![0; each]);
        while count < bytes_max && !self.is_over() {
            match socket.read(&mut buf) {
                Ok(0) => break,
                Ok(read) => {
                    count += read;
                    taken.extend_from_slice(&buf[..read]);
                    taken.truncate(1024 * 1024);
                    thread::park_timeout(rest);
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_reset) => break,
            }
        }
        taken
    }

    fn take_all(&self, socket: &mut TcpStream) {
        let answer = self.take(socket, usize::MAX, 64 * 1024, Duration::ZERO);
        if !self.is_over() || !answer.is_empty() {
            self.note(&answer);
        }
    }

    fn ask(&self, path: &str) {
        self.take_all(&mut self.get(path));
    }

    /// A little faster than the rate at which the server closes the connection.
    fn trickle(&self, path: &str) {
        self.take(
            &mut self.get(path),
            usize::MAX,
            1_024,
            Duration::from_millis(100),
        );
    }

    fn take_nothing(&self, path: &str) {
        let socket = self.get(path);
        let until = Instant::now() + Duration::from_secs(30);
        while !self.is_over() && Instant::now() < until && is_open(&socket) {
            thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn send_slowly(&self, body: &str) {
        let mut socket = self.post("slow", "", body.len());
        for byte in body.bytes() {
            if self.is_over() || socket.write_all(&[byte]).is_err() {
                return;
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        self.take_all(&mut socket);
    }

    fn announce(&self, bytes: usize, sent: &str) {
        let mut socket = self.post("stalled", "", bytes);
        if socket.write_all(sent.as_bytes()).is_ok() {
            self.take_all(&mut socket);
        }
    }

    fn send_head_without_end(&self) {
        let mut socket = self.connect();
        let mut line = b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n".to_vec();
        while !self.is_over() && socket.write_all(&line).is_ok() {
            line = format!("X-{}: y\r\n", "x".repeat(1_000)).into_bytes();
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn hang_up(&self, path: &str) {
        let mut socket = self.get(path);
        let until = Instant::now() + Duration::from_secs(2);
        let mut taken = 0;
        while taken < 100_000 && Instant::now() < until && !self.is_over() {
            match socket.read(&mut [0; 16 * 1024]) {
                Ok(0) => break,
                Ok(read) => taken += read,
                Err(_not_yet) => {}
            }
        }
    }

    /// As large as a body may be. No event is that large.
    fn send_odd(&self, shape: (&str, &str, &str)) {
        let content = odd(shape, 4_000_000);
        let body = format!(
            r#"{{"events":[{{"type":"user.message","content":[{{"type":"x","x":{content}}}]}}]}}"#
        );
        let mut socket = self.post("odd-bodies", "", body.len());
        if socket.write_all(body.as_bytes()).is_ok() {
            self.take_all(&mut socket);
        }
        let body = format!(r#"{{"events":{content}}}"#);
        let mut socket = self.post("odd-bodies", "", body.len());
        if socket.write_all(body.as_bytes()).is_ok() {
            self.take_all(&mut socket);
        }
    }

    /// Appends and lists, and looks whether each answer is right.
    fn behave(&self) -> Good {
        let mut good = Good::default();
        while !self.is_over() {
            let text = format!("event {}", good.appended);
            let body = said(&text);
            let key = format!("Idempotency-Key: {}\r\n", good.appended);
            let stored = Self::until_answered(&mut good, || {
                let mut socket = self.post("good", &key, body.len());
                socket.write_all(body.as_bytes()).unwrap();
                socket
            });
            good.appended += 1;
            assert_eq!(stored["events"][0]["seq"], good.appended, "{stored}");
            let listed = Self::until_answered(&mut good, || {
                self.get("/v1/sessions/good/events?order=desc&limit=3")
            });
            good.listed += 1;
            assert_eq!(listed["events"][0], stored["events"][0]);
            assert_eq!(
                listed["events"].as_array().unwrap().len() as u64,
                good.appended.min(3)
            );
            let (metrics, _took) = whole(self.get("/metrics"));
            let recent = metrics
                .lines()
                .find_map(|line| line.strip_prefix("sessionlog_recent_bytes "))
                .unwrap();
            good.recent_bytes_max = good.recent_bytes_max.max(recent.parse().unwrap());
        }
        good
    }

    /// Returns the answer to a request, which is sent again while it is refused as too much.
    fn until_answered(good: &mut Good, send: impl Fn() -> TcpStream) -> Value {
        let began = Instant::now();
        loop {
            let (answer, took) = whole(send());
            good.longest = good.longest.max(took);
            let (head, body) = answer
                .split_once("\r\n\r\n")
                .unwrap_or_else(|| panic!("no answer: {answer:?}"));
            match status(head.as_bytes()) {
                200 => return serde_json::from_str(body).unwrap(),
                503 => {
                    good.refused += 1;
                    let after = head
                        .lines()
                        .find_map(|line| line.strip_prefix("retry-after: "))
                        .expect("it says when to come again");
                    thread::park_timeout(Duration::from_secs(after.parse().unwrap()));
                }
                other => panic!("{other}: {body}"),
            }
            assert!(
                began.elapsed() < PASSES_WITHIN,
                "it is refused for too long: {answer}"
            );
        }
    }
}

fn status(answer: &[u8]) -> u16 {
    let line = answer
        .strip_prefix(b"HTTP/1.1 ")
        .and_then(|line| line.get(..3));
    line.map_or(NO_ANSWER, |status| {
        std::str::from_utf8(status).unwrap().parse().unwrap()
    })
}

/// A whole answer, and its latency.
fn whole(mut socket: TcpStream) -> (String, Duration) {
    let (began, mut answer) = (Instant::now(), String::new());
    socket.set_read_timeout(Some(PASSES_WITHIN)).unwrap();
    socket.read_to_string(&mut answer).unwrap();
    (answer, began.elapsed())
}

/// Returns whether the server has kept the connection open. It accepts nothing more.
fn is_open(socket: &TcpStream) -> bool {
    match socket.peek(&mut [0]) {
        Ok(bytes) => bytes > 0,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}
