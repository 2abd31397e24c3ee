//! `sessionlog show`: one session and its events.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::Result;
use crate::output::{FAINT, HEADING, Output};
use crate::render::{Extent, Look, Sessions};
use crate::sessions::flags;
use crate::source::{Direction, Event, Position, Range, ServerArgs, Session, Shaped, Source};
use crate::text::{ago, bytes, count, escaped, time};

/// How many events are shown on a terminal that asks for no range.
const LAST_ON_TERMINAL: usize = 100;

/// Shows a session and its events.
///
/// On a terminal it shows the newest 100 events, else all. With --json each event is a line, as
/// over HTTP.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Args {
    /// Folder of the log
    dir: Option<PathBuf>,

    /// The session
    session: String,

    /// Only events after this seq, event or message
    #[arg(long, value_name = "SEQ|ID")]
    after: Option<Position>,

    /// Only events before this seq, event or message
    #[arg(long, value_name = "SEQ|ID")]
    before: Option<Position>,

    /// Only the newest so many of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,

    /// Only events of this type; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,

    /// All events, on a terminal too
    #[arg(long, conflicts_with = "last")]
    all: bool,

    /// Show all of the data of each event
    #[arg(long)]
    full: bool,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let source = args.server.to_read(args.dir.as_deref())?;
    let last = last_of(&args, output);
    let is_told = args.last.is_some();
    let range = Range {
        after: args.after,
        before: args.before,
        types: args.types,
        ..Range::default()
    };
    let look = Look {
        output,
        extent: if args.full {
            Extent::Full
        } else {
            Extent::Line
        },
        sessions: Sessions::Unnamed,
    };
    if !output.is_json() {
        let session = source.session(&args.session)?.value;
        show_session(output, &session)?;
        let left_out = last.map_or(0, |last| session.events.saturating_sub(last as u64));
        if left_out > 0 && !is_told {
            let events = count(left_out, "earlier event");
            output.line(output.styled(FAINT, format!("{events}: --all shows them too")))?;
        }
    }
    let show = |event: &Shaped<Event>| {
        if output.is_json() {
            return output.json(&event.json);
        }
        look.event(&event.value)
            .iter()
            .try_for_each(|line| output.line(line))
    };
    match last {
        Some(last) => newest(&*source, &args.session, &range, last)?
            .iter()
            .try_for_each(show),
        None => source.events(&args.session, &range, &mut |event| {
            show(&event).map(ControlFlow::Continue)
        }),
    }
}

fn last_of(args: &Args, output: &Output) -> Option<usize> {
    let asks_for_a_range = args.all || args.after.is_some() || args.before.is_some();
    match args.last {
        Some(last) => Some(last as usize),
        None if asks_for_a_range || output.is_json() || !Output::is_terminal() => None,
        None => Some(LAST_ON_TERMINAL),
    }
}

/// Returns the newest events of a range, oldest first.
pub(crate) fn newest(
    source: &dyn Source,
    session: &str,
    range: &Range,
    many: usize,
) -> Result<Vec<Shaped<Event>>> {
    if many == 0 {
        return Ok(Vec::new());
    }
    let range = Range {
        direction: Direction::Reverse,
        limit: Some(many),
        ..range.clone()
    };
    let mut events = Vec::new();
    source.events(session, &range, &mut |event| {
        events.push(event);
        Ok(if events.len() < many {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    events.reverse();
    Ok(events)
}

fn show_session(output: &Output, session: &Session) -> Result<()> {
    let mut head = output.styled(HEADING, escaped(&session.id));
    if let Some(title) = &session.title {
        head = format!("{head}  {}", escaped(title));
    }
    output.line(head)?;
    let events = match session.last_seq {
        0 => "no events".to_owned(),
        last => format!(
            "{} (seq {} to {last})",
            count(session.events, "event"),
            session.first_seq
        ),
    };
    let mut facts = vec![events, bytes(session.bytes)];
    facts.push(if session.closed { "closed" } else { "open" }.to_owned());
    let also = flags(session);
    facts.extend(
        also.split(' ')
            .filter(|flag| *flag == "held")
            .map(str::to_owned),
    );
    if let Some(parent) = &session.parent {
        facts.push(format!(
            "fork of {} at seq {}",
            escaped(&parent.id),
            parent.at
        ));
    }
    if session.generation > 1 {
        facts.push(format!("begun {} times", session.generation));
    }
    output.line(facts.join(", "))?;
    output.line(format!(
        "created {}, active {} ({})",
        time(&session.created_at),
        time(&session.last_event_at),
        ago(&session.last_event_at)
    ))?;
    if let Some(newest) = &session.last_event_id {
        output.line(format!("newest event {}", escaped(newest)))?;
    }
    if !session.metadata.is_empty() {
        let metadata = Value::from(session.metadata.clone()).to_string();
        output.line(format!("metadata {}", escaped(&metadata)))?;
    }
    output.line(output.styled(FAINT, "-".repeat(40)))
}
