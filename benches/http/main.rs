//! The cost of HTTP: the same appends through the library and as requests, alternately, the cost of
//! idle streams to a server, and durable streams beside another server of them.
//!
//! ```text
//! cargo bench -p sessionlog-http-bench [-- append SECONDS ROUNDS | idle STREAMS SECONDS |
//!                                          peer SECONDS ROUNDS |
//!                                          streams SECONDS ROUNDS [STREAMS [HELD]]]
//! ```
//!
//! `streams` appends to 1, 1,000 and `STREAMS` streams, and measures the memory of `HELD`.
//!
//! Library and server run in a process of their own, which this one starts, calls and measures.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a benchmark prints its figures, and stops where something is wrong"
)]

mod peer;
mod streams;
#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use sessionlog::{Batch, SessionId, SessionLog, UserMessage, durable_streams, http};
use support::{Table, is_test, micros, percentile, session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The limit that the server has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let seconds = |at: usize, otherwise: f64| {
        arguments
            .get(at)
            .map_or(otherwise, |text| text.parse().unwrap())
    };
    let count = |at: usize, otherwise: usize| {
        arguments
            .get(at)
            .map_or(otherwise, |text| text.parse().unwrap())
    };
    match arguments.first().map(String::as_str) {
        Some("serve") => serve(Path::new(&arguments[1])),
        Some("append") => append(seconds(1, 3.0), count(2, 5)),
        Some("idle") => idle(count(1, 5_000), seconds(2, 20.0)),
        Some("peer") => peer::compare(seconds(1, 3.0), count(2, 5)),
        Some("streams") => streams::Plan {
            seconds: seconds(1, 3.0),
            rounds: count(2, 5),
            many: count(3, 1_000),
            held: count(4, 10_000),
            ..streams::PLAN
        }
        .compare(),
        None if is_test() => {
            append(0.05, 1);
            peer::compare(0.05, 1);
            streams::TEST.compare();
            idle(10, 0.05);
        }
        None => {
            append(3.0, 5);
            peer::compare(3.0, 5);
            streams::PLAN.compare();
            idle(5_000, 20.0);
        }
        Some(other) => eprintln!("{other} is none of append, peer, streams and idle"),
    }
}

/// The other process: it serves, and appends through the library when told to.
fn serve(folder: &Path) {
    allow_many_sockets();
    let log = SessionLog::open(folder).unwrap();
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    println!("{}", listener.local_addr().unwrap());
    let worker = http::Key::new("key").scope(http::Scope::Worker);
    let server = durable_streams::serve(
        listener,
        log.clone(),
        http::Config::with_keys([worker]),
        "/ds",
        std::future::pending(),
    );
    runtime.spawn(async { server.await.unwrap() });
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (tasks, seconds) = line.split_once(' ').unwrap();
        let callers = (0..tasks.parse().unwrap())
            .map(|task| Caller::through_library(&log, task))
            .collect();
        let Rate { calls, p50, p99 } = runtime.block_on(at_once(callers, seconds.parse().unwrap()));
        println!("{calls} {p50} {p99}");
    }
    log.close().unwrap();
}

fn allow_many_sockets() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
}

/// A client that calls again as soon as the answer is there.
enum Caller {
    Library {
        log: SessionLog,
        session: SessionId,
        message: UserMessage,
    },
    Http {
        socket: TcpStream,
        /// They are sent in turn.
        requests: Vec<Vec<u8>>,
        next: usize,
        answer: Vec<u8>,
    },
}

impl Caller {
    fn through_library(log: &SessionLog, task: usize) -> Self {
        Caller::Library {
            log: log.clone(),
            session: session(task),
            message: message(),
        }
    }

    async fn through_http(address: &str, request: Vec<u8>) -> Self {
        Self::in_turn(address, vec![request]).await
    }

    async fn in_turn(address: &str, requests: Vec<Vec<u8>>) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Caller::Http {
            socket,
            requests,
            next: 0,
            answer: vec![0; 16 * 1024],
        }
    }

    async fn call(&mut self) {
        match self {
            Caller::Library {
                log,
                session,
                message,
            } => {
                log.append_async(session, Batch::new().user_message(message.clone()))
                    .await
                    .unwrap();
            }
            Caller::Http {
                socket,
                requests,
                next,
                answer,
            } => {
                socket.write_all(&requests[*next]).await.unwrap();
                *next = (*next + 1) % requests.len();
                let mut length = 0;
                while !is_whole(&answer[..length]) {
                    let read = socket.read(&mut answer[length..]).await.unwrap();
                    assert!(read > 0, "the server closed the connection");
                    length += read;
                }
                assert!(
                    answer.starts_with(b"HTTP/1.1 2"),
                    "{}",
                    String::from_utf8_lossy(&answer[..length])
                );
            }
        }
    }
}

/// Returns whether an answer's head and the body that it announces are complete.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else {
        return false;
    };
    let text = std::str::from_utf8(&answer[..head]).unwrap();
    let fields = text.split("\r\n").filter_map(|line| line.split_once(": "));
    let length = fields
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .find_map(|(_, value)| value.parse::<usize>().ok());
    // A 204 has no body.
    answer.len() >= head + 4 + length.unwrap_or(0)
}

/// About the size of a user's message.
fn message() -> UserMessage {
    UserMessage::text("x".repeat(200)).with_metadata("ticket_id", "T-1042")
}

fn post(session: &SessionId) -> Vec<u8> {
    let UserMessage {
        content, metadata, ..
    } = message();
    let body =
        json!({"events": [{"type": "user.message", "content": content, "metadata": metadata}]})
            .to_string();
    let head = format!(
        "POST /v1/sessions/{session}/events HTTP/1.1\r\n\
         Host: localhost\r\nAuthorization: Bearer key"
    );
    format!(
        "{head}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key\r\n\r\n")
        .into_bytes()
}

/// Calls per second, and their latencies in microseconds.
struct Rate {
    calls: f64,
    p50: f64,
    p99: f64,
}

/// Lets all clients call in parallel for `seconds` seconds.
async fn at_once(callers: Vec<Caller>, seconds: f64) -> Rate {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut running = JoinSet::new();
    for mut caller in callers {
        running.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let began = Instant::now();
                caller.call().await;
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times = running.join_all().await.concat();
    let calls = times.len() as f64 / seconds;
    Rate {
        calls,
        p50: micros(percentile(&mut times, 0.5)),
        p99: micros(percentile(&mut times, 0.99)),
    }
}

/// The process that serves.
struct Served {
    process: Child,
    answers: BufReader<ChildStdout>,
    address: String,
    _folder: tempfile::TempDir,
}

/// Returns the folder to measure in.
fn bench_folder() -> PathBuf {
    std::env::var_os("SESSION_LOG_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir_in(bench_folder()).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg("serve")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut served = Self {
            process,
            answers,
            address: String::new(),
            _folder: folder,
        };
        served.address = served.line();
        served
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn through_library(&mut self, tasks: usize, seconds: f64) -> Rate {
        writeln!(self.process.stdin.as_mut().unwrap(), "{tasks} {seconds}").unwrap();
        let figures: Vec<f64> = self
            .line()
            .split(' ')
            .map(|figure| figure.parse().unwrap())
            .collect();
        Rate {
            calls: figures[0],
            p50: figures[1],
            p99: figures[2],
        }
    }

    fn through_http(
        &self,
        runtime: &Runtime,
        connections: usize,
        seconds: f64,
        request: impl Fn(usize) -> Vec<u8>,
    ) -> Rate {
        runtime.block_on(async {
            let mut callers = Vec::new();
            for task in 0..connections {
                callers.push(Caller::through_http(&self.address, request(task)).await);
            }
            at_once(callers, seconds).await
        })
    }

    fn usage(&self) -> (f64, f64) {
        usage(self.process.id())
    }
}

/// Returns the resident memory of a process in bytes, and its seconds of CPU time so far.
fn usage(process: u32) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let field = |at: usize| fields[at].parse::<f64>().unwrap();
    (
        field(21) * rustix::param::page_size() as f64,
        (field(11) + field(12)) / rustix::param::clock_ticks_per_second() as f64,
    )
}

impl Drop for Served {
    fn drop(&mut self) {
        // Its input ends, so it closes the log and exits.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

/// Compares the same appends through the library and over connections, alternately, and measures
/// requests that append nothing.
fn append(seconds: f64, rounds: usize) {
    let runtime = Runtime::new().unwrap();
    let mut served = Served::start();
    let mut table = Table::new(&[
        "callers",
        "library appends/s",
        "p50 us",
        "HTTP appends/s",
        "p50 us",
        "p99 us",
        "HTTP beside the library",
        "empty requests/s",
        "server cpu us/append",
    ]);
    for callers in [1, 16, 64] {
        let (mut library, mut posts, mut empty, mut cpu) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _round in 0..rounds {
            library.push(served.through_library(callers, seconds));
            let (_, before) = served.usage();
            let rate = served.through_http(&runtime, callers, seconds, |task| post(&session(task)));
            cpu.push((served.usage().1 - before) * 1e6 / (rate.calls * seconds));
            posts.push(rate);
            empty.push(served.through_http(&runtime, callers, seconds, |_| get("/healthz")));
        }
        let of =
            |rates: &[Rate], figure: fn(&Rate) -> f64| median(rates.iter().map(figure).collect());
        let (by_library, by_http) = (
            of(&library, |rate| rate.calls),
            of(&posts, |rate| rate.calls),
        );
        table.row(&[
            callers.to_string(),
            format!("{by_library:.0}"),
            format!("{:.0}", of(&library, |rate| rate.p50)),
            format!("{by_http:.0}"),
            format!("{:.0}", of(&posts, |rate| rate.p50)),
            format!("{:.0}", of(&posts, |rate| rate.p99)),
            format!("{:.2}", by_http / by_library),
            format!("{:.0}", of(&empty, |rate| rate.calls)),
            format!("{:.1}", median(cpu)),
        ]);
    }
    table.print();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures idle streams, each on a session of its own: the memory of each, and the CPU time of
/// keeping them open.
fn idle(streams: usize, seconds: f64) {
    allow_many_sockets();
    let runtime = Runtime::new().unwrap();
    let served = Served::start();
    runtime.block_on(async {
        for nth in 0..streams {
            Caller::through_http(&served.address, post(&session(nth)))
                .await
                .call()
                .await;
        }
        tokio::time::sleep(Duration::from_secs_f64(seconds.min(1.0))).await;
        let (memory_before, _) = served.usage();
        let mut open = Vec::with_capacity(streams);
        for nth in 0..streams {
            let mut socket = TcpStream::connect(&served.address).await.unwrap();
            socket
                .write_all(&get(&format!("/v1/sessions/{}/stream", session(nth))))
                .await
                .unwrap();
            until_caught_up(&mut socket).await;
            open.push(socket);
        }
        let (memory, before) = served.usage();
        let began = Instant::now();
        let mut shares = Vec::new();
        for _part in 0..4 {
            let (_, before) = served.usage();
            tokio::time::sleep(Duration::from_secs_f64(seconds / 4.0)).await;
            shares.push(format!(
                "{:.2}",
                (served.usage().1 - before) / (seconds / 4.0) * 100.0
            ));
        }
        let share = (served.usage().1 - before) / began.elapsed().as_secs_f64() * 100.0;
        let each = (memory - memory_before) / streams as f64 / 1024.0;
        println!(
            "{streams} idle streams: {each:.1} KiB each, \
             {share:.2} % of a processor ({} in quarters)",
            shares.join(", ")
        );
    });
}

async fn until_caught_up(socket: &mut TcpStream) {
    let mut text = Vec::new();
    while !text.windows(9).any(|part| part == b"caught_up") {
        assert!(
            socket.read_buf(&mut text).await.unwrap() > 0,
            "the server closed the stream"
        );
    }
}
