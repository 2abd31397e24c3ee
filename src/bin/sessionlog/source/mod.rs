//! A log to read and append to: a folder, or a running server. Both show the JSON of the HTTP API.

mod folder;
mod path;
mod server;
mod shape;
mod sse;

use std::env;
use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;

pub(crate) use folder::Folder;
pub(crate) use server::Server;
pub(crate) use shape::{Change, Event, Message, Session, Shaped, Stats};

/// A log.
pub(crate) trait Source {
    fn stats(&self) -> Result<Shaped<Stats>>;

    fn session_count(&self) -> Result<u64>;

    fn session(&self, session: &str) -> Result<Shaped<Session>>;

    /// Hands over sessions until `each` breaks.
    fn sessions(&self, query: &SessionList, each: Each<'_, Session>) -> Result<()>;

    /// Hands over events of a session until `each` breaks.
    fn events(&self, session: &str, range: &Range, each: Each<'_, Event>) -> Result<()>;

    fn message(&self, id: &str) -> Result<Shaped<Message>>;

    fn event(&self, id: &str) -> Result<Shaped<Event>>;

    /// Appends one batch.
    fn append(&self, session: &str, batch: &Sent<'_>) -> Result<Appended>;

    /// Hands over what comes after an event, as it comes, and returns why it ends.
    fn follow(&self, what: &Follow<'_>, each: EachItem<'_>) -> Result<End>;

    /// Ends the use of the log.
    fn close(&self) -> Result<()>;
}

pub(crate) type Each<'a, T> = &'a mut dyn FnMut(Shaped<T>) -> Result<ControlFlow<()>>;
pub(crate) type EachItem<'a> = &'a mut dyn FnMut(Item) -> Result<()>;

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct SessionList {
    pub(crate) order: Order,
    pub(crate) direction: Direction,
    pub(crate) prefix: Option<String>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) standing: Standing,
    /// A time in RFC 3339.
    pub(crate) active_since: Option<jiff::Timestamp>,
    /// How many are wanted, so that no more are read.
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Order {
    /// Newest activity first
    #[default]
    Recent,
    /// By ID
    Id,
    /// Newest first
    Created,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Direction {
    #[default]
    Forward,
    Reverse,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    #[default]
    Any,
    Open,
    Closed,
}

/// Which events of a session to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Range {
    pub(crate) after: Option<Position>,
    pub(crate) before: Option<Position>,
    pub(crate) types: Vec<String>,
    pub(crate) direction: Direction,
    /// How many are wanted, so that no more are read.
    pub(crate) limit: Option<usize>,
}

/// A place in a session: a seq, or the event with an ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position {
    Seq(u64),
    Event(String),
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Seq(seq) => write!(f, "{seq}"),
            Position::Event(id) => f.write_str(id),
        }
    }
}

impl std::str::FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(seq) = text.parse() {
            return Ok(Self::Seq(seq));
        }
        let event = text
            .strip_prefix("msg_")
            .map_or_else(|| text.to_owned(), |number| format!("evt_{number}"));
        match event.parse::<sessionlog::EventId>() {
            Ok(id) => Ok(Self::Event(id.to_string())),
            Err(_no_id) => Err("it is no seq, and no ID of an event or message".to_owned()),
        }
    }
}

/// A batch to append.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent<'a> {
    /// Each as over HTTP, and checked.
    pub(crate) events: &'a [String],
    pub(crate) key: Option<&'a str>,
    /// The last seq that the session must have.
    pub(crate) expected: Option<u64>,
    pub(crate) end: AfterIt,
}

/// What becomes of the session behind a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterIt {
    StaysOpen,
    Closes,
}

/// What an append has stored.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) events: Vec<Shaped<Event>>,
    /// An earlier append with the same key had stored it.
    pub(crate) replayed: bool,
}

/// What to follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Follow<'a> {
    /// One session. `None` for all.
    pub(crate) session: Option<&'a str>,
    /// The last event that was seen.
    pub(crate) after: Option<&'a str>,
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) output: &'a Output,
}

/// Something that came while a log was followed.
#[derive(Debug)]
pub(crate) enum Item {
    Event(Shaped<Event>),
    Change(Shaped<Change>),
    /// There is nothing more for the moment.
    CaughtUp,
}

/// Why there is nothing more to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Deleted,
    Interrupted,
}

/// Which server to ask instead of a folder.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// A running server to ask instead of a folder, such as http://127.0.0.1:8080
    ///
    /// Without DIR and this option, the environment variable SESSIONLOG_URL says it.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// File with the key for the server
    ///
    /// Without it, the key is that in SESSIONLOG_WORKER_KEY, else that in SESSIONLOG_API_KEY.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Where a log is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Folder(PathBuf),
    Server(Server),
}

impl ServerArgs {
    /// Whether the command line, or the environment, names a server.
    pub(crate) fn names_a_server(&self) -> bool {
        self.url.is_some() || variable("SESSIONLOG_URL").is_some()
    }

    /// Returns where the log is: in a folder, if one is given.
    pub(crate) fn place(&self, folder: Option<&Path>) -> Result<Place> {
        match (folder, &self.url) {
            (Some(_), Some(_)) => Err(Failure::usage("give either DIR or --url, not both")
                .hint("leave DIR out to ask the server")),
            (Some(folder), None) => Ok(Place::Folder(folder.to_path_buf())),
            (None, url) => {
                let url = url.clone().or_else(|| variable("SESSIONLOG_URL"));
                let url = url.ok_or_else(|| {
                    Failure::usage("which log? there is neither DIR nor --url")
                        .hint("give the folder of the log, or the address of a running server")
                })?;
                Server::new(&url, self.key()?.as_deref()).map(Place::Server)
            }
        }
    }

    /// Opens the log to read from it.
    pub(crate) fn to_read(&self, folder: Option<&Path>) -> Result<Box<dyn Source>> {
        Ok(match self.place(folder)? {
            Place::Folder(folder) => Box::new(Folder::to_read(&folder)?),
            Place::Server(server) => Box::new(server),
        })
    }

    fn key(&self) -> Result<Option<String>> {
        let Some(file) = &self.key_file else {
            return Ok(variable("SESSIONLOG_WORKER_KEY").or_else(|| variable("SESSIONLOG_API_KEY")));
        };
        let key = fs::read_to_string(file)
            .map_err(|error| Failure::of_file("read the key in", file, &error))?;
        Ok(Some(key.trim().to_owned()))
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
