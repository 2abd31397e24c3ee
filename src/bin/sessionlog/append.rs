//! `sessionlog append`: events from standard input.

use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use sessionlog::http::json as http_json;

use crate::failure::{Failure, Result};
use crate::folder::Kind;
use crate::output::Output;
use crate::source::{AfterIt, Appended, Folder, Place, Sent, ServerArgs, Source};
use crate::text::{count, escaped};

/// Appends events from standard input, one JSON object a line.
///
/// A line is {"type": "..", "data": ..}, with "message_id" if it belongs to a turn, or a message:
/// {"type": "user.message", "content": [{"type": "text", "text": ".."}], "metadata": {..}}. All
/// lines are one batch: they are stored together, or not at all. With --json the answer is a line
/// for each stored event.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Args {
    /// Folder of the log, which no server may have open
    dir: Option<PathBuf>,

    /// The session; the first events create it
    session: String,

    /// Idempotency key: a command that is repeated with it stores nothing twice
    #[arg(long, value_name = "KEY")]
    key: Option<String>,

    /// Store each line as a batch of its own, under the key KEY-<line number>
    ///
    /// The input may be of any length. After a failure, repeat the command with the same input and
    /// --key: lines that were stored already are not stored again.
    #[arg(long)]
    each: bool,

    /// Close the session behind the events
    #[arg(long)]
    close: bool,

    /// Only if N is the last seq of the session; 0 for a new session
    #[arg(long, value_name = "N", conflicts_with = "each")]
    expect: Option<u64>,

    /// Begin a log if DIR is missing or empty
    #[arg(long)]
    create: bool,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let source = open(&args)?;
    if io::stdin().is_terminal() {
        output.note("reading events, a line each, until Ctrl-D");
    }
    let done = if args.each {
        append_each(&args, &*source, output)
    } else {
        append_all(&args, &*source, output)
    };
    // What is stored stays so, also if the log cannot be closed.
    let closed = source.close();
    done.and(closed)
}

fn open(args: &Args) -> Result<Box<dyn Source>> {
    Ok(match args.server.place(args.dir.as_deref())? {
        Place::Server(server) => Box::new(server),
        Place::Folder(folder) => Box::new(open_folder(&folder, args)?),
    })
}

fn open_folder(folder: &Path, args: &Args) -> Result<Folder> {
    if args.create && matches!(Kind::of(folder)?, Kind::Missing | Kind::Empty) {
        return Folder::created(folder);
    }
    Folder::to_write(folder)
}

/// Stores all lines as one batch.
fn append_all(args: &Args, source: &dyn Source, output: &Output) -> Result<()> {
    let mut events = Vec::new();
    for line in lines() {
        let line = line.map_err(|failure| failure.hint("nothing was stored: mend the line"))?;
        events.push(line.json);
    }
    if events.is_empty() && !args.close {
        return Err(Failure::new("invalid", "standard input has no event")
            .hint("give one JSON object a line, such as {\"type\": \"note\", \"data\": {}}"));
    }
    let sent = Sent {
        events: &events,
        key: args.key.as_deref(),
        expected: args.expect,
        end: after_it(args),
    };
    let appended = source
        .append(&args.session, &sent)
        .map_err(|failure| of_lost_answer(failure, args))?;
    if output.is_json() {
        return show_ids(&appended, output);
    }
    let (many, session) = (appended.events.len() as u64, escaped(&args.session));
    let seqs = match (appended.events.first(), appended.events.last()) {
        (Some(first), Some(last)) => format!(", seq {} to {}", first.value.seq, last.value.seq),
        _ => String::new(),
    };
    let events = count(many, "event");
    let replayed = if appended.replayed {
        " were there already"
    } else {
        " stored"
    };
    output.line(format!("{events}{replayed} in {session}{seqs}"))
}

/// An append whose answer was lost may have happened.
fn of_lost_answer(failure: Failure, args: &Args) -> Failure {
    if failure.code != "no_answer" {
        return failure;
    }
    failure.hint(if args.key.is_some() {
        "it may be stored or not: repeat the command, which stores nothing twice with its --key"
    } else {
        "it may be stored or not: `sessionlog show` tells; with --key the command can be repeated"
    })
}

/// What a run of line by line has done.
#[derive(Debug, Default)]
struct Tally {
    stored: u64,
    replayed: u64,
}

/// Stores each line as it is read.
fn append_each(args: &Args, source: &dyn Source, output: &Output) -> Result<()> {
    let mut tally = Tally::default();
    let done = lines().try_for_each(|line| append_one(args, source, output, line?, &mut tally));
    let before = tally.stored + tally.replayed;
    let again = match args.key {
        Some(_) => "then repeat the command with the same input and --key",
        None => "then repeat it with the lines behind them",
    };
    done.map_err(|failure: Failure| {
        let stored = count(before, "line");
        let hint = failure
            .hint
            .clone()
            .map_or_else(String::new, |hint| format!("{hint}; "));
        failure.hint(format!(
            "{hint}{stored} before it are stored: mend it, {again}"
        ))
    })?;
    if args.close {
        let sent = Sent {
            events: &[],
            key: None,
            expected: None,
            end: AfterIt::Closes,
        };
        source.append(&args.session, &sent)?;
    }
    if output.is_json() {
        return Ok(());
    }
    let (stored, session) = (count(tally.stored, "event"), escaped(&args.session));
    let replayed = match tally.replayed {
        0 => String::new(),
        many => format!(", {} were there already", count(many, "event")),
    };
    output.line(format!("{stored} stored in {session}{replayed}"))
}

fn append_one(
    args: &Args,
    source: &dyn Source,
    output: &Output,
    line: Line,
    tally: &mut Tally,
) -> Result<()> {
    let key = args
        .key
        .as_ref()
        .map(|key| format!("{key}-{}", line.number));
    let sent = Sent {
        events: &[line.json],
        key: key.as_deref(),
        expected: None,
        end: AfterIt::StaysOpen,
    };
    let appended = source
        .append(&args.session, &sent)
        .map_err(|failure| Failure {
            message: format!("line {}: {}", line.number, failure.message),
            ..failure
        })?;
    if appended.replayed {
        tally.replayed += 1;
    } else {
        tally.stored += 1;
    }
    if output.is_json() {
        show_ids(&appended, output)?;
    }
    Ok(())
}

fn after_it(args: &Args) -> AfterIt {
    if args.close {
        AfterIt::Closes
    } else {
        AfterIt::StaysOpen
    }
}

/// Shows where each event is, a line for each.
fn show_ids(appended: &Appended, output: &Output) -> Result<()> {
    appended.events.iter().try_for_each(|event| {
        let event = &event.value;
        let json = serde_json::json!({
            "id": event.id,
            "session_id": event.session_id,
            "seq": event.seq,
            "message_id": event.message_id,
            "replayed": appended.replayed,
        });
        output.json(json.to_string())
    })
}

/// A line of the input that is an event.
struct Line {
    /// From 1. Empty lines count too.
    number: u64,
    json: String,
}

/// Reads the lines of standard input that are not empty. Each is checked.
fn lines() -> impl Iterator<Item = Result<Line>> {
    let numbered = io::stdin().lock().lines().zip(1_u64..);
    numbered.filter_map(|(line, number)| {
        let line = match line {
            Ok(line) => line,
            Err(error) => return Some(Err(of_line(number, &error.to_string()))),
        };
        let json = line.trim_start_matches('\u{feff}').trim();
        if json.is_empty() {
            return None;
        }
        Some(match http_json::new_event(json) {
            Ok(_event) => Ok(Line {
                number,
                json: json.to_owned(),
            }),
            Err(error) => Err(of_line(number, &error.to_string())),
        })
    })
}

fn of_line(number: u64, why: &str) -> Failure {
    Failure::new("invalid", format!("line {number}: {why}"))
}
