//! `sessionlog sessions`: a list of the sessions.

use std::ops::ControlFlow;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::failure::Result;
use crate::output::{FAINT, HEADING, Output};
use crate::source::{Direction, Order, ServerArgs, Session, SessionList, Standing};
use crate::text::{ago, bytes, columns, cut, escaped, number, time};

/// How many sessions are listed on a terminal.
const LIMIT_ON_TERMINAL: usize = 50;

/// The columns are aligned over so many rows.
const ROWS: usize = 1_000;

/// The longest ID and title that are shown whole on a terminal.
const ID_COLUMNS: usize = 40;
const TITLE_COLUMNS: usize = 40;

/// Lists the sessions of a log.
///
/// On a terminal it lists 50 of them, else all. With --json each is a line, as over HTTP.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log
    dir: Option<PathBuf>,

    /// Only sessions whose IDs begin so
    #[arg(long)]
    prefix: Option<String>,

    /// Only sessions with this string in their metadata; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,

    /// Only sessions that take no more events
    #[arg(long, conflicts_with = "open_only")]
    closed: bool,

    /// Only sessions that take events
    #[arg(long)]
    open_only: bool,

    /// Only sessions with an event since then: a time such as 2026-11-29T20:00:00Z
    #[arg(long, value_name = "TIME")]
    active_since: Option<Timestamp>,

    #[arg(long, value_enum, default_value_t)]
    order: Order,

    /// List in the opposite order
    #[arg(long)]
    reverse: bool,

    /// List so many at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,

    /// List all, on a terminal too
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    #[command(flatten)]
    server: ServerArgs,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("it has no =")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let limit = match args.limit {
        Some(limit) => Some(limit as usize),
        None if args.all || output.is_json() || !Output::is_terminal() => None,
        None => Some(LIMIT_ON_TERMINAL),
    };
    let list = list_of(&args, limit);
    let source = args.server.to_read(args.dir.as_deref())?;
    let (mut table, mut listed, mut more) = (Rows::new(output), 0, false);
    source.sessions(&list, &mut |session| {
        if limit.is_some_and(|limit| listed >= limit) {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        listed += 1;
        if output.is_json() {
            output.json(&session.json)?;
        } else {
            table.add(row(&session.value))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    table.show()?;
    if listed == 0 {
        output.note("no session");
    }
    if more && !output.is_json() {
        output.line(output.styled(FAINT, "there are more: --all lists all, --limit N more"))?;
    }
    Ok(())
}

/// Rows of a table, which are shown piece by piece: a log may have a million sessions.
struct Rows<'a> {
    output: &'a Output,
    waiting: Vec<Vec<String>>,
    is_first: bool,
}

impl<'a> Rows<'a> {
    fn new(output: &'a Output) -> Self {
        Self {
            output,
            waiting: Vec::new(),
            is_first: true,
        }
    }

    fn add(&mut self, row: Vec<String>) -> Result<()> {
        self.waiting.push(row);
        if self.waiting.len() < ROWS {
            return Ok(());
        }
        self.show()
    }

    fn show(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let heading = ["ID", "events", "size", "last activity", "", "", "title"];
        let lines = columns(&heading, std::mem::take(&mut self.waiting), &[1, 2]);
        let mut lines = lines.iter();
        let heading = lines.next().filter(|_| std::mem::take(&mut self.is_first));
        if let Some(heading) = heading {
            self.output.line(self.output.styled(HEADING, heading))?;
        }
        lines.try_for_each(|line| self.output.line(line))
    }
}

fn list_of(args: &Args, limit: Option<usize>) -> SessionList {
    SessionList {
        order: args.order,
        direction: if args.reverse {
            Direction::Reverse
        } else {
            Direction::Forward
        },
        prefix: args.prefix.clone(),
        metadata: args.metadata.clone(),
        standing: match (args.closed, args.open_only) {
            (true, _) => Standing::Closed,
            (_, true) => Standing::Open,
            _ => Standing::Any,
        },
        active_since: args.active_since,
        // One more, to tell whether there are more.
        limit: limit.map(|limit| limit + 1),
    }
}

fn row(session: &Session) -> Vec<String> {
    let shown = |text: &str, columns| {
        let text = escaped(text);
        if Output::is_terminal() {
            cut(&text, columns).into_owned()
        } else {
            text.into_owned()
        }
    };
    vec![
        shown(&session.id, ID_COLUMNS),
        number(session.events),
        bytes(session.bytes),
        time(&session.last_event_at),
        ago(&session.last_event_at),
        flags(session),
        shown(session.title.as_deref().unwrap_or_default(), TITLE_COLUMNS),
    ]
}

/// The words for what is special about a session.
pub(crate) fn flags(session: &Session) -> String {
    let flags = [
        (session.closed, "closed"),
        (session.hold, "held"),
        (session.parent.is_some(), "fork"),
    ];
    let set = flags
        .iter()
        .filter(|(is_set, _)| *is_set)
        .map(|(_, word)| *word);
    set.collect::<Vec<_>>().join(" ")
}
