//! `sessionlog get`: one event.

use std::path::PathBuf;

use crate::failure::Result;
use crate::output::{HEADING, Output};
use crate::render::{Extent, Look, Sessions};
use crate::source::ServerArgs;
use crate::text::escaped;

/// Shows one event.
///
/// With --json it is the event, as over HTTP.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Args {
    /// Folder of the log
    dir: Option<PathBuf>,

    /// The event, such as evt_01JQ3W8K5T0000000000000001
    evt_id: String,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let source = args.server.to_read(args.dir.as_deref())?;
    let event = source.event(&args.evt_id)?;
    if output.is_json() {
        return output.json(&event.json);
    }
    let event = event.value;
    output.line(output.styled(HEADING, escaped(&event.id)))?;
    output.line(format!("session {}", escaped(&event.session_id)))?;
    if let Some(turn) = &event.message_id {
        output.line(format!("turn {}", escaped(turn)))?;
    }
    let look = Look {
        output,
        extent: Extent::Full,
        sessions: Sessions::Unnamed,
    };
    look.event(&event)
        .iter()
        .try_for_each(|line| output.line(line))
}
