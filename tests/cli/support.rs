//! Code that the tests share: running the command, a log with something of everything, and the
//! state of a folder.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use sessionlog::{
    Batch, Fork, NewEvent, NewSession, SessionId, SessionLog, SessionPatch, UserMessage,
};
use tempfile::TempDir;

/// How long a test waits for a state that must come. Only a failing test waits this long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const CLIENT_KEY: &str = "the key of clients";
pub(crate) const WORKER_KEY: &str = "the key of workers";

/// What a run of the command has left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The command succeeded. Returns its output.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// The command failed with this code, and said what to do. Returns what it said.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains("error: "), "{self:?}");
        assert!(self.err.contains("\nhint: "), "{self:?}");
        self.err
    }

    /// The output as JSON lines.
    #[track_caller]
    pub(crate) fn json(self) -> Vec<Value> {
        let lines = self.ok();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
            .collect()
    }
}

/// The command, without what the environment of the test says of a server.
pub(crate) fn command<T: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = T>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessionlog"));
    for name in ["URL", "API_KEY", "WORKER_KEY"] {
        command.env_remove(format!("SESSIONLOG_{name}"));
    }
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn run<T: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = T>) -> Ran {
    finished(&mut command(args), "")
}

/// Runs the command with an input.
pub(crate) fn run_with<T: AsRef<std::ffi::OsStr>>(
    args: impl IntoIterator<Item = T>,
    input: &str,
) -> Ran {
    finished(&mut command(args), input)
}

pub(crate) fn finished(command: &mut Command, input: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // A command that fails before it reads closes its input.
    let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A log that was closed, with events in a segment and in the journal.
pub(crate) struct Fixture {
    folder: TempDir,
    /// The turn of the session `talk`, in the segment.
    pub(crate) message: String,
    /// The event that opened it.
    pub(crate) event: String,
}

pub(crate) fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let (message, event) = fill(folder.path());
        // It is made again by the next open for writing.
        fs::remove_dir_all(folder.path().join("index")).unwrap();
        Fixture {
            folder,
            message,
            event,
        }
    })
}

impl Fixture {
    /// A copy of the log to work on.
    pub(crate) fn copy(&self) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), to.path());
        to
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Makes the log. Returns the ID of its one turn, and of the event that opened it.
fn fill(folder: &Path) -> (String, String) {
    let log = SessionLog::open(folder).unwrap();
    let id = |name: &str| -> SessionId { name.parse().unwrap() };
    let talk = id("talk");
    let question = UserMessage::text("What is 6 x 7?");
    let opened = log
        .append(&talk, Batch::new().user_message(question))
        .unwrap();
    let turn = opened.events[0].message_id.unwrap();
    let answer = [
        NewEvent::new(
            "tool.call_requested",
            r#"{"name":"multiply","call_id":"c1"}"#,
        ),
        NewEvent::new("assistant.message_completed", r#"{"text":"It is 42."}"#),
        NewEvent::new("message.status_changed", r#"{"status":"completed"}"#),
    ];
    log.append(
        &talk,
        Batch::new().events(answer.map(|event| event.in_turn(turn))),
    )
    .unwrap();
    log.append(
        &talk,
        NewEvent::new("odd", "\u{1b}]0;no JSON\u{7}".as_bytes()),
    )
    .unwrap();
    log.append(
        &talk,
        NewEvent::new("odd", "{\"text\":\n\"\u{9b}31m\u{202e}abc\"}".as_bytes()),
    )
    .unwrap();
    let new = NewSession::new()
        .title("Refund")
        .metadata(serde_json::json!({"agent": "a1"}));
    log.create(&id("refund"), new).unwrap();
    log.append(&id("refund"), NewEvent::new("note", r#"{"n":1}"#))
        .unwrap();
    log.set_metadata(&id("refund"), SessionPatch::new().hold())
        .unwrap();
    log.append(
        &id("over"),
        Batch::from(NewEvent::new("note", r#"{"n":1}"#)).closing(),
    )
    .unwrap();
    log.fork(Fork::new(&talk).at(2), &id("talk-fork")).unwrap();
    // It seals the journal.
    let backup = tempfile::tempdir().unwrap();
    log.backup(backup.path()).unwrap();
    for n in 0..20 {
        log.append(
            &id("late"),
            NewEvent::new("step", format!(r#"{{"n":{n}}}"#)),
        )
        .unwrap();
    }
    log.compact(|_progress| ControlFlow::Break(())).unwrap();
    log.close().unwrap();
    (turn.to_string(), opened.events[0].id.to_string())
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Every file and folder below a path, with what changes when it is written to.
pub(crate) fn state_of(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut state = BTreeMap::new();
    note_state(folder, &mut state);
    state
}

/// Every file and folder below a path, with its contents.
pub(crate) fn contents_of(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut state = state_of(folder);
    for (path, contents) in &mut state {
        let hash = fs::read(path).map(|bytes| sum_of(&bytes)).ok();
        *contents = format!("{hash:?}");
    }
    state
}

fn sum_of(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn note_state(path: &Path, state: &mut BTreeMap<PathBuf, String>) {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return;
    };
    if metadata.is_dir() {
        state.insert(path.to_owned(), "folder".to_owned());
        // A folder that may not be entered has the same state before and after.
        for entry in fs::read_dir(path).into_iter().flatten() {
            note_state(&entry.unwrap().path(), state);
        }
        return;
    }
    #[cfg(unix)]
    let changed = {
        use std::os::unix::fs::MetadataExt;
        (metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
    };
    #[cfg(not(unix))]
    let changed = metadata.modified().unwrap();
    // The clock of a file system ticks slower than a short command takes.
    let short = (metadata.len() < 100_000).then(|| fs::read(path).ok());
    state.insert(
        path.to_owned(),
        format!("{} {changed:?} {short:?}", metadata.len()),
    );
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "{what} does not come");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// `sessionlog serve`, killed when it is dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
}

impl Served {
    pub(crate) fn new(folder: &Path) -> Self {
        Self::at(folder, "127.0.0.1:0")
    }

    pub(crate) fn at(folder: &Path, address: &str) -> Self {
        Self::begin(command(["serve", "--listen", address, "--data"]).arg(folder))
    }

    /// Starts a server with such a command.
    pub(crate) fn begin(serve: &mut Command) -> Self {
        let mut child = serve
            .env("SESSIONLOG_API_KEY", CLIENT_KEY)
            .env("SESSIONLOG_WORKER_KEY", WORKER_KEY)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "{line:?}");
        Self { child, url }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command, with this server and its key.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command
            .args(["--url", &self.url])
            .env("SESSIONLOG_WORKER_KEY", WORKER_KEY);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        finished(&mut self.command(args), "")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// A command that goes on, whose lines are read as they come. Killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    pub(crate) fn new(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).unwrap()
    }

    #[cfg(unix)]
    pub(crate) fn interrupt(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end. Returns the exit code, what is left of the output, and the errors.
    pub(crate) fn end(mut self) -> Ran {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < DEADLINE, "it does not end");
            std::thread::park_timeout(Duration::from_millis(5));
        };
        let mut err = String::new();
        let stderr = self.child.stderr.take();
        stderr.unwrap().read_to_string(&mut err).unwrap();
        Ran {
            code: status.code(),
            out: self.lines.iter().collect::<Vec<_>>().join("\n"),
            err,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
