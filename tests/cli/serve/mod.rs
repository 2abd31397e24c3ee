//! `sessionlog serve`: its options, its keys, TLS, and what it tells a supervisor.

mod keys;
mod options;
#[cfg(feature = "otel")]
mod otel;
mod supervised;
mod tls;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

const KEY: &str = "the key";

/// A folder for a server and its files.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The command on this place's data, with an address of the system's choice and no key.
    fn serve(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessionlog"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("SESSIONLOG_") || name.starts_with("OTEL_") {
                command.env_remove(&*name);
            }
        }
        command
            .arg("serve")
            .env("SESSIONLOG_LISTEN", "127.0.0.1:0")
            .env("SESSIONLOG_DATA", self.path("data"))
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null());
        command
    }

    /// The same with the key of clients.
    fn with_key(&self) -> Command {
        let mut command = self.serve();
        command.env("SESSIONLOG_API_KEY", KEY);
        command
    }
}

/// A server that runs. It ends when this value is dropped.
struct Server {
    process: Child,
    url: String,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let log = Arc::<Mutex<String>>::default();
        let (lines, mut stderr) = (Arc::clone(&log), process.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut buf) {
                let text = String::from_utf8_lossy(&buf[..read]).into_owned();
                lines.lock().unwrap().push_str(&text);
            }
        });
        let mut server = Self {
            process,
            url: String::new(),
            log,
            reader: Some(reader),
        };
        let Some(url) = line.trim_end().strip_prefix("listening on ") else {
            server.wait();
            panic!("it did not start: {}", server.log());
        };
        url.clone_into(&mut server.url);
        server
    }

    fn address(&self) -> SocketAddr {
        let (_scheme, address) = self.url.split_once("://").unwrap();
        address.parse().unwrap()
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address()).unwrap();
        let wait = Some(Duration::from_secs(20));
        socket.set_read_timeout(wait).unwrap();
        socket
    }

    /// What it has logged so far.
    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &id])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end, and for the last line of its log.
    fn wait(&mut self) -> ExitStatus {
        let status = ended(&mut self.process);
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status
    }

    /// The status of a call with a key.
    fn status(&self, key: &str, path: &str) -> u16 {
        let call = agent().get(format!("{}{path}", self.url));
        let call = call.header("authorization", format!("Bearer {key}"));
        call.call().unwrap().status().as_u16()
    }

    /// Appends a message to a session with the key of clients.
    fn post(&self, session: &str) -> u16 {
        let url = format!("{}/v1/sessions/{session}/events", self.url);
        let call = agent()
            .post(url)
            .header("authorization", format!("Bearer {KEY}"));
        let message = json!({"type": "user.message", "content": []});
        let answer = call.send_json(json!({"events": [message]}));
        answer.unwrap().status().as_u16()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where a test waited for that.
        let _ended = (self.process.kill(), self.process.wait());
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(30)))
        .http_status_as_error(false)
        .build()
        .into()
}

/// What a command printed that did not start a server.
fn refused(command: &mut Command) -> String {
    let mut process = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    ended(&mut process);
    let output = process.wait_with_output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    said
}

/// Waits for the end of a process, and ends one that goes on for too long.
fn ended(process: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            process.kill().unwrap();
            panic!("it goes on, and should have ended");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Both streams of a command that has ended.
fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A certificate of the tests, or its key.
fn certificate(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    folder.join(name)
}
