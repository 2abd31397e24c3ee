//! `sessionlog tail`: the newest events, and those that come.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::{FAINT, Output};
use crate::render::{Extent, Look, Sessions};
use crate::show::newest;
use crate::source::{
    End, Event, Follow, Item, Position, Range, ServerArgs, SessionList, Shaped, Source,
};

/// Shows the newest events of a session, or of all.
///
/// With -f it goes on with the events that come, until Ctrl-C, or until the session is closed or
/// deleted. Without SESSION it shows the feed of all sessions. A lost connection to a server is
/// made again, and no event is missed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log; with a server, leave it out
    #[arg(value_name = "DIR")]
    first: Option<PathBuf>,

    /// The session; without it, all sessions. With --url or SESSIONLOG_URL it is the one argument
    #[arg(value_name = "SESSION")]
    second: Option<String>,

    /// Show events as they come
    #[arg(short, long)]
    follow: bool,

    /// Begin with so many of the newest events
    #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 10)]
    lines: u16,

    /// Show all of the data of each event
    #[arg(long)]
    full: bool,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let (dir, session) = places(&args)?;
    let source = args.server.to_read(dir.as_deref())?;
    let session = session.as_deref();
    let look = Look {
        output,
        extent: if args.full {
            Extent::Full
        } else {
            Extent::Line
        },
        sessions: if session.is_some() {
            Sessions::Unnamed
        } else {
            Sessions::Named
        },
    };
    let interrupt = args.follow.then(Interrupt::watch);
    let lines = usize::from(args.lines);
    // One at least, to follow from.
    let many = lines.max(1);
    let before = match session {
        Some(session) => newest(&*source, session, &Range::default(), many)?,
        None => newest_of_all(&*source, many)?,
    };
    for event in before.iter().skip(before.len().saturating_sub(lines)) {
        show_event(&look, event)?;
    }
    output.flush()?;
    let Some(interrupt) = interrupt else {
        return Ok(());
    };
    let what = Follow {
        session,
        after: before.last().map(|event| event.value.id.as_str()),
        interrupt: &interrupt,
        output,
    };
    let end = source.follow(&what, &mut |item| show(&look, item))?;
    match end {
        End::Interrupted => {}
        End::Closed => output.note(output.styled(FAINT, "the session is closed")),
        End::Deleted => output.note(output.styled(FAINT, "the session was deleted")),
    }
    source.close()
}

/// Tells the folder from the session: a server has no folder.
fn places(args: &Args) -> Result<(Option<PathBuf>, Option<String>)> {
    let (first, second) = (args.first.clone(), args.second.clone());
    if second.is_some() || !args.server.names_a_server() {
        return Ok((first, second));
    }
    let session = first
        .map(|first| first.into_os_string().into_string())
        .transpose();
    let session = session
        .map_err(|name| Failure::usage(format!("the session {} is no UTF-8", name.display())))?;
    Ok((None, session))
}

fn show(look: &Look<'_>, item: Item) -> Result<()> {
    match item {
        Item::Event(event) => show_event(look, &event),
        Item::Change(change) if look.output.is_json() => {
            look.output.json(format!(r#"{{"change":{}}}"#, change.json))
        }
        Item::Change(change) => look.output.line(look.change(&change.value)),
        Item::CaughtUp => look.output.flush(),
    }
}

/// The feed tells events from changes, so its lines do.
fn show_event(look: &Look<'_>, event: &Shaped<Event>) -> Result<()> {
    let output = look.output;
    match (output.is_json(), look.sessions) {
        (true, Sessions::Unnamed) => output.json(&event.json),
        (true, Sessions::Named) => output.json(format!(r#"{{"event":{}}}"#, event.json)),
        (false, _) => look
            .event(&event.value)
            .iter()
            .try_for_each(|line| output.line(line)),
    }
}

/// Returns the newest events of the log, oldest first. They are in the sessions that were active
/// last.
fn newest_of_all(source: &dyn Source, many: usize) -> Result<Vec<Shaped<Event>>> {
    let mut sessions = Vec::new();
    let list = SessionList {
        limit: Some(many),
        ..SessionList::default()
    };
    source.sessions(&list, &mut |session| {
        sessions.push(session.value);
        Ok(if sessions.len() < many {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    let mut events = Vec::new();
    for session in &sessions {
        // The events that a fork shares are those of its origin.
        let shared = session.parent.as_ref().map(|parent| parent.at);
        let range = Range {
            after: shared.map(|at| Position::Seq(at.max(session.first_seq - 1))),
            ..Range::default()
        };
        events.extend(newest(source, &session.id, &range, many)?);
        events.sort_by(|one, other| one.value.id.cmp(&other.value.id));
        events.drain(..events.len().saturating_sub(many));
    }
    Ok(events)
}
