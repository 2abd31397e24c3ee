//! Appends of 256 bytes beside the Rust server of the Durable Streams project, under one client in
//! one run: `cargo install durable-streams`, which keeps its default durability.
//!
//! Each connection appends to a session, or a stream, of its own and waits for the answer. The two
//! servers are measured alternately, and each is idle while the other is measured.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::support::{Table, session};
use crate::{Caller, Rate, Served, at_once, median};

/// The size of a request's body.
const BODY_BYTES: usize = 256;

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];

/// How long the other server may take to listen.
const START: Duration = Duration::from_secs(20);

/// A server whose requests are known.
pub(crate) struct Peer {
    pub(crate) process: Child,
    pub(crate) address: String,
    _folder: tempfile::TempDir,
}

impl Peer {
    /// Starts the server, if it is installed. `DURABLE_STREAMS_SERVER` says where it is.
    pub(crate) fn start(folder: &Path) -> Option<Self> {
        let program = std::env::var_os("DURABLE_STREAMS_SERVER")
            .unwrap_or_else(|| OsString::from("durable-streams-server"));
        let folder = tempfile::tempdir_in(folder).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        drop(port);
        let process = Command::new(program)
            .args(["--port", &address.port().to_string(), "--data-dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let peer = Self {
            process,
            address: address.to_string(),
            _folder: folder,
        };
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < START, "the other server does not listen");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Some(peer)
    }

    fn appends(&self, runtime: &Runtime, connections: usize, seconds: f64) -> Rate {
        runtime.block_on(async {
            let mut callers = Vec::new();
            for task in 0..connections {
                Caller::through_http(&self.address, create(task))
                    .await
                    .call()
                    .await;
                callers.push(Caller::through_http(&self.address, append(task)).await);
            }
            at_once(callers, seconds).await
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone = (self.process.kill(), self.process.wait());
    }
}

fn create(task: usize) -> Vec<u8> {
    let head = format!("PUT /{} HTTP/1.1\r\nHost: localhost\r\n", session(task));
    format!("{head}Content-Type: application/octet-stream\r\nContent-Length: 0\r\n\r\n")
        .into_bytes()
}

fn append(task: usize) -> Vec<u8> {
    let head = format!("POST /{} HTTP/1.1\r\nHost: localhost\r\n", session(task));
    let body = "x".repeat(BODY_BYTES);
    format!(
        "{head}Content-Type: application/octet-stream\r\nContent-Length: {BODY_BYTES}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A message of a user, in a body of the same size.
fn post(task: usize) -> Vec<u8> {
    let before = r#"{"events":[{"type":"user.message","content":[{"type":"text","text":""#;
    let behind = r#""}]}]}"#;
    let text = "x".repeat(BODY_BYTES - before.len() - behind.len());
    let session = session(task);
    format!(
        "POST /v1/sessions/{session}/events HTTP/1.1\r\nHost: localhost\r\n\
         Authorization: Bearer key\r\nContent-Type: application/json\r\n\
         Content-Length: {BODY_BYTES}\r\n\r\n{before}{text}{behind}"
    )
    .into_bytes()
}

/// Measures both servers, alternately.
pub(crate) fn compare(seconds: f64, rounds: usize) {
    let runtime = Runtime::new().unwrap();
    let folder = crate::bench_folder();
    let Some(peer) = Peer::start(&folder) else {
        println!("there is no durable-streams-server: cargo install durable-streams");
        return;
    };
    let ours = Served::start();
    let mut table = Table::new(&[
        "connections",
        "sessionlog/s",
        "p50 us",
        "p99 us",
        "durable-streams/s",
        "p50 us",
        "p99 us",
        "rate",
        "p99",
    ]);
    for connections in CONNECTIONS {
        let (mut of_ours, mut of_peer) = (Vec::new(), Vec::new());
        for _round in 0..rounds {
            of_ours.push(ours.through_http(&runtime, connections, seconds, post));
            of_peer.push(peer.appends(&runtime, connections, seconds));
        }
        let of =
            |rates: &[Rate], figure: fn(&Rate) -> f64| median(rates.iter().map(figure).collect());
        let rate = |rates: &[Rate]| of(rates, |rate| rate.calls);
        let p50 = |rates: &[Rate]| of(rates, |rate| rate.p50);
        let p99 = |rates: &[Rate]| of(rates, |rate| rate.p99);
        table.row(&[
            connections.to_string(),
            format!("{:.0}", rate(&of_ours)),
            format!("{:.0}", p50(&of_ours)),
            format!("{:.0}", p99(&of_ours)),
            format!("{:.0}", rate(&of_peer)),
            format!("{:.0}", p50(&of_peer)),
            format!("{:.0}", p99(&of_peer)),
            format!("{:.2}", rate(&of_ours) / rate(&of_peer)),
            format!("{:.2}", p99(&of_ours) / p99(&of_peer)),
        ]);
    }
    table.print();
}
