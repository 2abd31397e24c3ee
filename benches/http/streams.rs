//! Durable streams beside the Rust server of the Durable Streams project, under one client in one
//! run: `cargo install durable-streams`, which keeps its default durability.
//!
//! The servers are measured alternately, and each is idle while the other is measured. Without the
//! other one, this server is measured alone.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::peer::Peer;
use crate::support::{micros, percentile};
use crate::{Caller, Rate, Served, allow_many_sockets, at_once, bench_folder, median, usage};

const BYTES: &str = "application/octet-stream";
const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

/// The size of an append.
const BODY_BYTES: usize = 256;

/// The size of an append to a stream that is read from its beginning.
const READ_BODY_BYTES: usize = 1024;

/// The connections that prepare what is measured.
const PREPARING: usize = 64;

/// What is measured, and for how long.
pub(crate) struct Plan {
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    /// The most streams that are appended to.
    pub(crate) many: usize,
    /// The streams whose memory is measured.
    pub(crate) held: usize,
    pub(crate) connections: &'static [usize],
    /// The size of a stream that is read from its beginning.
    pub(crate) read_bytes: usize,
    /// The readers of one stream.
    pub(crate) readers: usize,
}

pub(crate) const PLAN: Plan = Plan {
    seconds: 3.0,
    rounds: 5,
    many: 1_000,
    held: 10_000,
    connections: &[1, 64, 256],
    read_bytes: 10_000_000,
    readers: 1_000,
};

/// Little of each, to see that it works.
pub(crate) const TEST: Plan = Plan {
    seconds: 0.05,
    rounds: 1,
    many: 10,
    held: 100,
    connections: &[2],
    read_bytes: 50_000,
    readers: 10,
};

/// A server that is measured.
#[derive(Clone, Copy)]
struct Target<'a> {
    process: u32,
    address: &'a str,
    /// The path below which its streams are.
    below: &'static str,
}

/// Both servers, with empty logs.
struct Servers {
    ours: Served,
    peer: Option<Peer>,
}

impl Servers {
    fn start() -> Self {
        Self {
            ours: Served::start(),
            peer: Peer::start(&bench_folder()),
        }
    }

    fn targets(&self) -> Vec<Target<'_>> {
        let ours = Target {
            process: self.ours.process.id(),
            address: &self.ours.address,
            below: "/ds",
        };
        let peer = self.peer.as_ref().map(|peer| Target {
            process: peer.process.id(),
            address: &peer.address,
            below: "",
        });
        [ours].into_iter().chain(peer).collect()
    }
}

impl Target<'_> {
    fn request(self, call: &str, stream: &str, content_type: &str, body: &str) -> Vec<u8> {
        let head = format!(
            "{call} {}/{stream} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key",
            self.below
        );
        let length = body.len();
        format!("{head}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    }

    fn get(self, stream: &str, query: &str) -> Vec<u8> {
        self.request("GET", &format!("{stream}?{query}"), BYTES, "")
    }

    /// Sends each request once, over a few connections.
    async fn prepare(self, requests: Vec<Vec<u8>>) {
        let mut shares = vec![Vec::new(); PREPARING.min(requests.len())];
        let count = shares.len();
        for (nth, request) in requests.into_iter().enumerate() {
            shares[nth % count].push(request);
        }
        let mut running = JoinSet::new();
        for share in shares {
            let address = self.address.to_owned();
            running.spawn(async move {
                let calls = share.len();
                let mut caller = Caller::in_turn(&address, share).await;
                for _call in 0..calls {
                    caller.call().await;
                }
            });
        }
        running.join_all().await;
    }

    /// Lets each connection append to its share of the streams in turn.
    async fn appends(self, streams: usize, connections: usize, seconds: f64) -> [f64; 4] {
        let body = "x".repeat(BODY_BYTES);
        let mut callers = Vec::new();
        for nth in 0..connections {
            // With fewer streams than connections, several append to one.
            let own = (nth % streams..streams).step_by(connections);
            let requests = own.map(|at| self.request("POST", &appended(streams, at), BYTES, &body));
            callers.push(Caller::in_turn(self.address, requests.collect()).await);
        }
        let (_, before) = usage(self.process);
        let Rate { calls, p50, p99 } = at_once(callers, seconds).await;
        let cpu = (usage(self.process).1 - before) * 1e6 / (calls * seconds);
        [calls, p50, p99, cpu]
    }

    /// Reads a stream from its beginning to its end, again and again.
    async fn reads(self, stream: &str, readers: usize, plan: &Plan) -> [f64; 2] {
        let until = Instant::now() + Duration::from_secs_f64(plan.seconds);
        let (_, before) = usage(self.process);
        let began = Instant::now();
        let mut running = JoinSet::new();
        for _reader in 0..readers {
            let (address, stream) = (self.address.to_owned(), stream.to_owned());
            let (below, process) = (self.below, self.process);
            let least = plan.read_bytes;
            running.spawn(async move {
                let target = Target {
                    process,
                    address: &address,
                    below,
                };
                let mut reader = Reader::connect(&address).await;
                let mut bytes = 0;
                loop {
                    let read = reader.read(target, &stream).await;
                    assert!(read >= least, "{read} bytes of a stream of {least}");
                    bytes += read;
                    if Instant::now() >= until {
                        return bytes;
                    }
                }
            });
        }
        let bytes: usize = running.join_all().await.into_iter().sum();
        let megabytes = bytes as f64 / 1e6;
        let rate = megabytes / began.elapsed().as_secs_f64();
        [rate, (usage(self.process).1 - before) * 1e3 / megabytes]
    }

    /// Opens readers of a stream that wait for what comes.
    async fn followers(self, count: usize) -> Followers {
        let (has, had) = mpsc::unbounded_channel();
        let mut followers = Followers {
            running: JoinSet::new(),
            had,
        };
        for _reader in 0..count {
            let request = self.get("followed", "offset=now&live=sse");
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            socket.write_all(&request).await.unwrap();
            let has = has.clone();
            followers.running.spawn(async move {
                let mut text = Vec::new();
                let first = b"event: control".to_vec();
                for awaited in std::iter::once(first).chain((0..).map(marker)) {
                    while !text.windows(awaited.len()).any(|part| part == awaited) {
                        let read = socket.read_buf(&mut text).await.unwrap();
                        assert!(read > 0, "the server closed the stream");
                    }
                    text.clear();
                    if has.send(Instant::now()).is_err() {
                        return;
                    }
                }
            });
        }
        for _reader in 0..count {
            followers.had.recv().await.unwrap();
        }
        followers
    }

    /// Measures the memory of a reader that waits.
    async fn waits(self, plan: &Plan) -> [f64; 1] {
        let (memory, _) = usage(self.process);
        let _followers = self.followers(plan.readers).await;
        [(usage(self.process).0 - memory) / plan.readers as f64 / 1024.0]
    }

    /// Appends to a stream that many follow, each append once all have the last one.
    async fn follows(self, plan: &Plan) -> [f64; 3] {
        let mut followers = self.followers(plan.readers).await;
        let (_, before) = usage(self.process);
        let until = Instant::now() + Duration::from_secs_f64(plan.seconds);
        let (mut times, mut last, mut appends) = (Vec::new(), Vec::new(), 0);
        while appends == 0 || Instant::now() < until {
            let body = String::from_utf8(marker(appends)).unwrap() + &"x".repeat(BODY_BYTES);
            let request = self.request("POST", "followed", TEXT, &body);
            let mut caller = Caller::through_http(self.address, request).await;
            let began = Instant::now();
            caller.call().await;
            for _reader in 0..plan.readers {
                times.push(followers.had.recv().await.unwrap() - began);
            }
            last.push(began.elapsed());
            appends += 1;
        }
        let cpu = (usage(self.process).1 - before) * 1e6 / times.len() as f64;
        [
            micros(percentile(&mut times, 0.5)) / 1e3,
            micros(percentile(&mut last, 0.5)) / 1e3,
            cpu,
        ]
    }

    /// Creates streams with an append each, and measures what they cost.
    async fn holds(self, streams: usize) -> [f64; 2] {
        let body = "x".repeat(BODY_BYTES);
        let (before, began) = (usage(self.process).0, Instant::now());
        let mut first = 0;
        while first < streams {
            let some = first..streams.min(first + 50_000);
            first = some.end;
            let calls = some.flat_map(|nth| {
                let name = format!("held-{nth}");
                [
                    self.request("PUT", &name, BYTES, ""),
                    self.request("POST", &name, BYTES, &body),
                ]
            });
            // A stream's two requests are neighbours, and sent by one connection each.
            let (puts, posts): (Vec<_>, Vec<_>) = calls.partition(|call| call.starts_with(b"PUT"));
            self.prepare(puts).await;
            self.prepare(posts).await;
        }
        let rate = streams as f64 / began.elapsed().as_secs_f64();
        [
            rate,
            (usage(self.process).0 - before) / streams as f64 / 1024.0,
        ]
    }
}

/// Readers of one stream. Each says when it has begun, and when it has the next append.
struct Followers {
    running: JoinSet<()>,
    had: mpsc::UnboundedReceiver<Instant>,
}

/// The name of one of `streams` streams that are appended to.
fn appended(streams: usize, nth: usize) -> String {
    format!("of-{streams}-{nth}")
}

/// A text that the nth append begins with.
fn marker(nth: usize) -> Vec<u8> {
    format!("<{nth:06}>").into_bytes()
}

/// A connection for answers of any size.
struct Reader {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    async fn connect(address: &str) -> Self {
        Self {
            socket: TcpStream::connect(address).await.unwrap(),
            buffer: Vec::with_capacity(256 * 1024),
        }
    }

    /// Reads a stream from its beginning to its end. Returns its length.
    async fn read(&mut self, target: Target<'_>, stream: &str) -> usize {
        let (mut offset, mut bytes) = ("-1".to_owned(), 0);
        loop {
            let request = target.get(stream, &format!("offset={offset}"));
            let (head, length) = self.call(&request).await;
            bytes += length;
            if field(&head, "stream-up-to-date").is_some() {
                return bytes;
            }
            let next = field(&head, "stream-next-offset");
            next.unwrap().clone_into(&mut offset);
        }
    }

    /// Returns the head of an answer, and the length of its body.
    async fn call(&mut self, request: &[u8]) -> (String, usize) {
        self.socket.write_all(request).await.unwrap();
        self.buffer.clear();
        let end = loop {
            self.more().await;
            let end = self.buffer.windows(4).position(|end| end == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
        };
        let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        let mut read = self.buffer.len() - end - 4;
        while read < length {
            self.buffer.clear();
            self.more().await;
            read += self.buffer.len();
        }
        (head, length)
    }

    async fn more(&mut self) {
        let read = self.socket.read_buf(&mut self.buffer).await.unwrap();
        assert!(read > 0, "the server closed the connection");
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    fields
        .filter(|(own, _)| own.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .next()
}

fn create_followed(runtime: &Runtime, targets: &[Target<'_>]) {
    for target in targets {
        let create = target.request("PUT", "followed", TEXT, "");
        runtime.block_on(target.prepare(vec![create]));
    }
}

impl Plan {
    /// Measures both servers, and prints a figure a line.
    pub(crate) fn compare(&self) {
        allow_many_sockets();
        let runtime = Runtime::new().unwrap();
        let servers = Servers::start();
        if servers.peer.is_none() {
            println!("there is no durable-streams-server: cargo install durable-streams");
        }
        println!("| what | figure | sessionlog | durable-streams | ratio |\n|---|---|---|---|---|");
        let targets = servers.targets();
        self.compare_appends(&runtime, &targets);
        self.compare_reads(&runtime, &targets);
        create_followed(&runtime, &targets);
        self.compare_followers(&runtime, &targets);
        drop(servers);
        let servers = Servers::start();
        let once = Plan { rounds: 1, ..*self };
        let what = format!("{} readers by SSE", self.readers);
        create_followed(&runtime, &servers.targets());
        once.rows(&what, &["KiB/reader"], &servers.targets(), |target| {
            runtime.block_on(target.waits(self)).to_vec()
        });
        let figures = ["streams created with an append/s", "KiB/stream"];
        let what = format!("{} streams", self.held);
        once.rows(&what, &figures, &servers.targets(), |target| {
            runtime.block_on(target.holds(self.held)).to_vec()
        });
    }

    fn compare_appends(&self, runtime: &Runtime, targets: &[Target<'_>]) {
        let mut counts = vec![1, 1_000.min(self.many), self.many];
        counts.dedup();
        for streams in counts {
            for target in targets {
                let requests = (0..streams)
                    .map(|nth| target.request("PUT", &appended(streams, nth), BYTES, ""));
                runtime.block_on(target.prepare(requests.collect()));
            }
            for connections in self.connections {
                let what = format!("{connections} connections, {streams} streams");
                let figures = ["appends/s", "p50 us", "p99 us", "server cpu us/append"];
                self.rows(&what, &figures, targets, |target| {
                    let appends = target.appends(streams, *connections, self.seconds);
                    runtime.block_on(appends).to_vec()
                });
            }
        }
    }

    fn compare_reads(&self, runtime: &Runtime, targets: &[Target<'_>]) {
        let message = format!("\"{}\"", "x".repeat(READ_BODY_BYTES - 2));
        for (stream, content_type) in [("read-bytes", BYTES), ("read-json", JSON)] {
            for target in targets {
                let append = target.request("POST", stream, content_type, &message);
                let appends = self.read_bytes.div_ceil(READ_BODY_BYTES);
                runtime.block_on(async {
                    let create = target.request("PUT", stream, content_type, "");
                    target.prepare(vec![create]).await;
                    target.prepare(vec![append; appends]).await;
                });
            }
            for readers in [1, 16] {
                let what = format!(
                    "{readers} reading {} MB of {content_type}",
                    self.read_bytes as f64 / 1e6
                );
                let figures = ["MB/s", "server cpu ms/MB"];
                self.rows(&what, &figures, targets, |target| {
                    let reads = target.reads(stream, readers, self);
                    runtime.block_on(reads).to_vec()
                });
            }
        }
    }

    fn compare_followers(&self, runtime: &Runtime, targets: &[Target<'_>]) {
        let what = format!("{} readers by SSE", self.readers);
        let figures = [
            "ms to half of the readers",
            "ms to the last reader",
            "server cpu us/event and reader",
        ];
        self.rows(&what, &figures, targets, |target| {
            runtime.block_on(target.follows(self)).to_vec()
        });
    }

    /// Measures the servers in turn, and prints the median of each figure.
    fn rows(
        &self,
        what: &str,
        figures: &[&str],
        targets: &[Target<'_>],
        measure: impl Fn(Target<'_>) -> Vec<f64>,
    ) {
        let mut rounds = vec![Vec::new(); targets.len()];
        for _round in 0..self.rounds {
            for (target, rounds) in targets.iter().zip(&mut rounds) {
                rounds.push(measure(*target));
            }
        }
        for (at, figure) in figures.iter().enumerate() {
            let medians: Vec<f64> = rounds
                .iter()
                .map(|rounds| median(rounds.iter().map(|figures| figures[at]).collect()))
                .collect();
            let ours = medians[0];
            let of_peer = medians.get(1).map_or_else(
                || "- | -".to_owned(),
                |peer| format!("{peer:.1} | {:.2}", ours / peer),
            );
            println!("| {what} | {figure} | {ours:.1} | {of_peer} |");
        }
    }
}
