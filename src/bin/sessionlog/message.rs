//! `sessionlog message`: one turn.

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::Result;
use crate::output::{BAD, FAINT, GOOD, HEADING, NAME, Output, WARNING};
use crate::render::{pretty, text_of};
use crate::source::{Message, Position, Range, ServerArgs, Source};
use crate::text::{escaped, time};

/// Shows one turn: the question, its status, the tool calls and the answer.
///
/// With --json it is the message, as over HTTP.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct Args {
    /// Folder of the log
    dir: Option<PathBuf>,

    /// The message, such as msg_01JQ3W8K5T0000000000000001
    msg_id: String,

    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    let source = args.server.to_read(args.dir.as_deref())?;
    let message = source.message(&args.msg_id)?;
    if output.is_json() {
        return output.json(&message.json);
    }
    let message = message.value;
    show_head(output, &message)?;
    show_part(output, "question", &question(&message))?;
    if message.metadata.get() != "{}" {
        show_part(output, "metadata", message.metadata.get())?;
    }
    show_tools(output, &*source, &message)?;
    if message.output_omitted > 0 {
        let omitted = message.output_omitted;
        output.line(output.styled(FAINT, format!("({omitted} earlier outputs are left out)")))?;
    }
    let (answer, earlier) = match message.output.split_last() {
        Some((answer, earlier)) => (Some(answer), earlier),
        None => (None, &[][..]),
    };
    for said in earlier {
        show_part(output, "on the way", &said_in(said.get()))?;
    }
    if let Some(answer) = answer {
        show_part(output, "answer", &said_in(answer.get()))?;
    }
    if let Some(error) = &message.error {
        show_part(output, "error", &pretty(error.get()))?;
    }
    Ok(())
}

fn show_head(output: &Output, message: &Message) -> Result<()> {
    let style = match message.status.as_str() {
        "completed" => GOOD,
        "failed" | "cancelled" => BAD,
        _ => WARNING,
    };
    output.line(format!(
        "{}  {}",
        output.styled(HEADING, escaped(&message.id)),
        output.styled(style, escaped(&message.status))
    ))?;
    let attempt = match message.attempt {
        1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let ended = message.completed_at.as_deref();
    let ended = ended.map_or_else(String::new, |at| format!(", ended {}", time(at)));
    output.line(format!(
        "session {}, seq {}, asked {}{ended}{attempt}",
        escaped(&message.session_id),
        message.sequence_number,
        time(&message.created_at)
    ))
}

fn question(message: &Message) -> String {
    if message.redacted {
        return "(redacted)".to_owned();
    }
    let content = message.content.get();
    let text = serde_json::from_str(content)
        .ok()
        .as_ref()
        .and_then(text_of);
    text.unwrap_or_else(|| content.to_owned())
}

/// The text of an output, or all of it.
fn said_in(json: &str) -> String {
    let value = serde_json::from_str::<Value>(json).unwrap_or_default();
    let text = value.get("text").and_then(Value::as_str);
    text.map_or_else(|| pretty(json), str::to_owned)
}

fn show_part(output: &Output, name: &str, text: &str) -> Result<()> {
    output.line("")?;
    output.line(output.styled(HEADING, name))?;
    text.lines()
        .try_for_each(|line| output.line(format!("  {}", escaped(line))))
}

/// Shows the events of the turn that are about tools.
fn show_tools(output: &Output, source: &dyn Source, message: &Message) -> Result<()> {
    let (mut is_first, after) = (true, Position::Seq(message.sequence_number));
    let range = Range {
        after: Some(from_id(message).unwrap_or(after)),
        ..Range::default()
    };
    source.events(&message.session_id, &range, &mut |event| {
        let event = event.value;
        let ended = message.completed_at.as_ref();
        if ended.is_some_and(|ended| event.created_at > *ended) {
            return Ok(ControlFlow::Break(()));
        }
        let is_of_turn = event.message_id.as_deref() == Some(&message.id);
        if is_of_turn && event.r#type.starts_with("tool.") {
            if is_first {
                output.line("")?;
                output.line(output.styled(HEADING, "tools"))?;
            }
            is_first = false;
            let name = output.styled(NAME, escaped(&event.r#type));
            output.line(format!("  {name} {}", escaped(event.data.get())))?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// The place of the event that opened the turn, by its ID, which a server finds at once.
fn from_id(message: &Message) -> Option<Position> {
    message.id.parse().ok()
}
