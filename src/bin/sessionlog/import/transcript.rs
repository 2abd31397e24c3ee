//! Transcripts of agents: one JSON object a line, with a session, a type and a body somewhere in
//! it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use serde_json::{Value, json};
use sessionlog::{Batch, MessageId, NewEvent, SessionId, SessionLog, UserMessage};

use crate::failure::{Failure, Result};
use crate::folder::{Kind, open_to_write};
use crate::output::Output;
use crate::progress::Progress;
use crate::text::count;

/// Appends of different sessions share a barrier.
const WRITERS: usize = 16;

/// How many lines a writer is ahead of the disk at most.
const LINES_AHEAD: usize = 64;

/// Where the parts of an event are in an object.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Mapping {
    /// Transcript: where the session is
    #[arg(long, value_name = "PATH", help_heading = "Transcripts")]
    session_at: Option<String>,

    /// Transcript: the session of all lines, or of those without one
    #[arg(long, value_name = "ID", help_heading = "Transcripts")]
    session: Option<String>,

    /// Transcript: where the type is
    #[arg(long, value_name = "PATH", help_heading = "Transcripts")]
    type_at: Option<String>,

    /// Transcript: the type of all lines, or of those without one
    #[arg(long = "type", value_name = "TYPE", help_heading = "Transcripts")]
    event_type: Option<String>,

    /// Transcript: where the data is; the whole object by default
    #[arg(long, value_name = "PATH", help_heading = "Transcripts")]
    data_at: Option<String>,

    /// Transcript: the type of what users say, which opens a turn
    ///
    /// Such a line becomes a user.message, and the lines of its session up to the next one belong
    /// to its turn.
    #[arg(long, value_name = "TYPE", help_heading = "Transcripts")]
    user_type: Option<String>,

    /// Transcript: where the content of what users say is, a text or a list of blocks
    #[arg(
        long,
        value_name = "PATH",
        requires = "user_type",
        default_value = "content",
        help_heading = "Transcripts"
    )]
    content_at: String,
}

impl Mapping {
    /// Whether any option says how a transcript is read.
    pub(crate) fn is_given(&self) -> bool {
        let Self {
            session_at,
            session,
            type_at,
            event_type,
            data_at,
            user_type,
            content_at: _,
        } = self;
        [session_at, session, type_at, event_type, data_at, user_type]
            .iter()
            .any(|option| option.is_some())
    }

    fn event(&self, file: &str, number: u64, text: &str) -> std::result::Result<Line, String> {
        let object: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let named = |at: &Option<String>, fixed: &Option<String>, what: &str| {
            let found = at.as_ref().and_then(|path| at_path(&object, path));
            match (found, fixed) {
                (Some(Value::String(text)), _) => Ok(text.clone()),
                (Some(Value::Number(number)), _) => Ok(number.to_string()),
                (_, Some(fixed)) => Ok(fixed.clone()),
                (None, None) => Err(format!("it has no {what}")),
                (Some(_), None) => Err(format!("its {what} is no text")),
            }
        };
        let session = named(&self.session_at, &self.session, "session")?;
        let session = SessionId::new(session).map_err(|error| error.to_string())?;
        let event_type = named(&self.type_at, &self.event_type, "type")?;
        let content = if self.user_type.as_ref() == Some(&event_type) {
            Content::Message(self.message(&object)?)
        } else {
            let data = match &self.data_at {
                None => text.trim().to_owned(),
                Some(path) => {
                    at_path(&object, path).map_or_else(|| "null".into(), Value::to_string)
                }
            };
            Content::Event(NewEvent::new(event_type, data.into_bytes()))
        };
        Ok(Line {
            number,
            session,
            key: key_of(file, number, text),
            content,
        })
    }

    fn message(&self, object: &Value) -> std::result::Result<UserMessage, String> {
        let content = match at_path(object, &self.content_at) {
            Some(Value::String(text)) => json!([{ "type": "text", "text": text }]),
            Some(blocks @ Value::Array(_)) => blocks.clone(),
            _ => return Err(format!("it has no content at {}", self.content_at)),
        };
        serde_json::from_value(json!({ "content": content })).map_err(|error| error.to_string())
    }
}

/// Returns the value at a path such as `message.content.0.text`.
fn at_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, name| match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        other => other.get(name),
    })
}

/// A key that a line of a file has each time it is imported.
fn key_of(file: &str, number: u64, text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(file.as_bytes()).update(&[0]);
    hasher.update(text.trim().as_bytes());
    let hash = hasher.finalize().to_hex();
    format!("import-{number}-{}", hash.get(..32).unwrap_or_default())
}

/// A line that is to be appended.
struct Line {
    number: u64,
    session: SessionId,
    key: String,
    content: Content,
}

enum Content {
    Message(UserMessage),
    Event(NewEvent),
}

/// What was appended.
#[derive(Debug, Default)]
struct Tally {
    stored: AtomicU64,
    replayed: AtomicU64,
}

/// Appends the lines of a transcript to a log, which is begun if there is none.
pub(crate) fn import(
    dir: &Path,
    input: Box<dyn BufRead>,
    name: &Path,
    mapping: &Mapping,
    output: &Output,
) -> Result<()> {
    let log = match Kind::of(dir)? {
        Kind::Missing | Kind::Empty => SessionLog::open(dir)?,
        Kind::Log | Kind::Foreign => open_to_write(dir)?,
    };
    let tally = Tally::default();
    let progress = Progress::new(output, "importing");
    let done = thread::scope(|scope| {
        let (writers, threads): (Vec<SyncSender<Line>>, Vec<_>) = (0..WRITERS)
            .map(|_| {
                let (sender, lines) = sync_channel(LINES_AHEAD);
                let (log, tally) = (&log, &tally);
                (sender, scope.spawn(move || append_all(log, &lines, tally)))
            })
            .unzip();
        let read = hand_out(input, name, mapping, &writers, || {
            let lines =
                tally.stored.load(Ordering::Relaxed) + tally.replayed.load(Ordering::Relaxed);
            progress.say(format!("importing: {}", count(lines, "line")));
        });
        drop(writers);
        let appended = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_panic| Err(Failure::new("failed", "a writer panicked")))
        });
        // The first failure of the disk explains why lines could not be handed out.
        appended.fold(Ok(()), Result::and).and(read)
    });
    drop(progress);
    let closed = log.close().map_err(Failure::from);
    done.map_err(of_repeatable).and(closed)?;
    let (stored, replayed) = (tally.stored.into_inner(), tally.replayed.into_inner());
    if output.is_json() {
        return output.json(json!({ "stored": stored, "replayed": replayed }).to_string());
    }
    let before = match replayed {
        0 => String::new(),
        many => format!(", {} were there already", count(many, "line")),
    };
    output.line(format!("{} stored{before}", count(stored, "line")))
}

/// Reads the lines and hands each to the writer of its session.
fn hand_out(
    input: Box<dyn BufRead>,
    name: &Path,
    mapping: &Mapping,
    writers: &[SyncSender<Line>],
    progress: impl Fn(),
) -> Result<()> {
    let file = name.file_name().unwrap_or_default().to_string_lossy();
    for (number, text) in (1..).zip(input.lines()) {
        let text = text.map_err(|error| Failure::of_file("read", name, &error))?;
        if text.trim().is_empty() {
            continue;
        }
        let line = mapping.event(&file, number, &text).map_err(|why| {
            Failure::new(
                "invalid",
                format!("line {number} of {}: {why}", name.display()),
            )
        })?;
        let mut hasher = DefaultHasher::new();
        line.session.as_str().hash(&mut hasher);
        let writer = hasher.finish() % writers.len() as u64;
        let writer = usize::try_from(writer)
            .ok()
            .and_then(|nth| writers.get(nth));
        // A writer that is gone has failed, and says so itself.
        if writer.is_none_or(|writer| writer.send(line).is_err()) {
            break;
        }
        if number % 1024 == 0 {
            progress();
        }
    }
    Ok(())
}

/// Appends lines in their order.
fn append_all(log: &SessionLog, lines: &Receiver<Line>, tally: &Tally) -> Result<()> {
    let mut turns: HashMap<SessionId, MessageId> = HashMap::new();
    for line in lines {
        let batch = match line.content {
            Content::Message(message) => {
                turns.remove(&line.session);
                Batch::new().user_message(message)
            }
            Content::Event(event) => Batch::new().event(match turns.get(&line.session) {
                Some(turn) => event.in_turn(*turn),
                None => event,
            }),
        };
        let ack = log
            .append(&line.session, batch.idempotency_key(line.key))
            .map_err(|error| {
                let failure = Failure::from(error);
                Failure {
                    message: format!("line {}: {}", line.number, failure.message),
                    ..failure
                }
            })?;
        let opened = ack.events.first().and_then(|event| event.message_id);
        if let Some(opened) = opened {
            turns.insert(line.session, opened);
        }
        let counter = if ack.replayed {
            &tally.replayed
        } else {
            &tally.stored
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn of_repeatable(failure: Failure) -> Failure {
    let hint = failure
        .hint
        .clone()
        .map_or_else(String::new, |hint| format!("{hint}; "));
    failure.hint(format!(
        "{hint}mend it and repeat the command: lines that were stored are not stored again"
    ))
}
