//! Code that the tests share: the server as a process, and plain calls to it over a socket.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) const KEY: &str = "the key";

/// A process that ends when this value is dropped.
pub(crate) struct Ending(pub(crate) Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It has ended already where a test waited for that.
        let _ended = (self.0.kill(), self.0.wait());
    }
}

pub(crate) struct Server {
    process: Ending,
    pub(crate) url: String,
}

/// A variable with the path of the command, where it is built already.
const ENV_PROGRAM: &str = "SESSIONLOG_PROGRAM";

/// The command `sessionlog`. Cargo builds programs for tests of their own package alone, so the
/// first test builds it, unless a variable says where it is.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        if let Some(built) = std::env::var_os(ENV_PROGRAM) {
            return built.into();
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(folder).args([
            "build",
            "--package=sessionlog",
            "--features=otel",
            "--bin=sessionlog",
            "--message-format=json",
        ]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        // A build script that looks at the variables of this package would run again each time.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(name);
            }
        }
        let output = cargo.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "the command does not build");
        let said = String::from_utf8(output.stdout).unwrap();
        let built = said
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .find_map(|line| line["executable"].as_str().map(PathBuf::from));
        built.expect("cargo says where it is")
    });
    &PROGRAM
}

/// A server that has not been started.
pub(crate) fn command(data: &Path, listen: &str) -> Command {
    let mut command = Command::new(program());
    command
        .args(["serve", "--listen", listen, "--data"])
        .arg(data)
        .env_remove("SESSIONLOG_API_KEY")
        .env_remove("SESSIONLOG_WORKER_KEY")
        .stdin(Stdio::null());
    command
}

/// Returns an address that was free a moment ago, for a server that restarts at the same one.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

impl Server {
    pub(crate) fn start(data: &Path, listen: &str) -> Self {
        Self::of(command(data, listen).env("SESSIONLOG_API_KEY", KEY))
    }

    /// Another program may have taken the address for a moment, so a failed start is tried again.
    pub(crate) fn of(command: &mut Command) -> Self {
        for _ in 0..20 {
            match Self::try_start(command) {
                Ok(server) => return server,
                Err(why) if why.contains("cannot listen") => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(why) => panic!("the server did not start: {why}"),
            }
        }
        panic!("its address stays taken");
    }

    fn try_start(command: &mut Command) -> Result<Self, String> {
        let mut process = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let Some(url) = line.trim_end().strip_prefix("listening on ") else {
            let mut why = String::new();
            process
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut why)
                .unwrap();
            process.wait().unwrap();
            return Err(why);
        };
        // Its log output is read continuously, so that it never waits for a reader.
        let mut log = process.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self {
            url: url.to_owned(),
            process: Ending(process),
        })
    }

    /// Ends the process as a power cut would, except for the disk.
    pub(crate) fn kill(self) {
        drop(self);
    }

    pub(crate) fn ask_to_stop(&self) {
        let process = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    }

    /// Returns the peak of the resident memory so far.
    pub(crate) fn resident_bytes_max(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .expect("Linux says it");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.process.0.wait().unwrap()
    }

    pub(crate) fn post(&self, session: &str, key: &str, text: &str) -> Result<Value, ureq::Error> {
        post(&self.url, session, key, text)
    }

    /// The IDs of a session's events.
    pub(crate) fn ids(&self, session: &str) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        loop {
            let after = ids
                .last()
                .map(|last| format!("&after={last}"))
                .unwrap_or_default();
            let url = format!(
                "{}/v1/sessions/{session}/events?limit=1000{after}",
                self.url
            );
            let page: Value = agent()
                .get(url)
                .header("authorization", format!("Bearer {KEY}"))
                .call()
                .unwrap()
                .body_mut()
                .read_json()
                .unwrap();
            ids.extend(
                page["events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|event| event["id"].as_str().unwrap().to_owned()),
            );
            if page["has_more"] == false {
                return ids;
            }
        }
    }
}

pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .into()
}

/// Sends a message under a key, and returns its first event.
pub(crate) fn post(url: &str, session: &str, key: &str, text: &str) -> Result<Value, ureq::Error> {
    let body =
        json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": text}]}]});
    let request = agent().post(format!("{url}/v1/sessions/{session}/events"));
    let request = request
        .header("authorization", format!("Bearer {KEY}"))
        .header("idempotency-key", key);
    let answer: Value = request.send_json(body)?.body_mut().read_json()?;
    Ok(answer["events"][0].clone())
}

pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
