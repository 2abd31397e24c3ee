//! Events and changes as lines for people.

use serde_json::{Map, Value};

use crate::output::{FAINT, NAME, Output};
use crate::source::{Change, Event};
use crate::text::{cut, escaped, time};

/// The type of the event that opens a turn.
const USER_MESSAGE: &str = "user.message";

/// How much of its data an event shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One line, cut to the width of the terminal.
    Line,
    /// All of it.
    Full,
}

/// Whether each line names its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    Named,
    Unnamed,
}

/// How events are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look<'a> {
    pub(crate) output: &'a Output,
    pub(crate) extent: Extent,
    pub(crate) sessions: Sessions,
}

impl Look<'_> {
    /// The lines of an event.
    pub(crate) fn event(&self, event: &Event) -> Vec<String> {
        let at = time(&event.created_at);
        let session = self.session(&event.session_id);
        let (seq, name) = (event.seq, escaped(&event.r#type));
        let head = format!("{at}  {session}{seq:>5}  {name:<28}  ");
        let shown = format!(
            "{}  {session}{seq:>5}  {}{}  ",
            self.output.styled(FAINT, &at),
            self.output.styled(NAME, &*name),
            " ".repeat(28_usize.saturating_sub(name.chars().count())),
        );
        match self.extent {
            Extent::Line => vec![shown + &fitting(&summary(event), head.chars().count())],
            Extent::Full => {
                let mut lines = vec![shown.trim_end().to_owned()];
                lines.extend(
                    full(event)
                        .lines()
                        .map(|line| format!("    {}", escaped(line))),
                );
                lines
            }
        }
    }

    /// The line of a change.
    pub(crate) fn change(&self, change: &Change) -> String {
        let at = time(&change.created_at);
        let session = self.session(&change.session_id);
        let what = change.what.get("type").and_then(Value::as_str);
        let what = escaped(what.unwrap_or("changed")).into_owned();
        let rest = change.what.iter().filter(|(name, _)| *name != "type");
        let rest: Map<String, Value> = rest
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let rest = if rest.is_empty() {
            String::new()
        } else {
            Value::from(rest).to_string()
        };
        let head = format!("{at}  {session}    -  session {what:<20}  ");
        let shown = self.output.styled(FAINT, &head);
        shown + &fitting(&rest, head.chars().count())
    }

    fn session(&self, id: &str) -> String {
        match self.sessions {
            Sessions::Named => format!("{:<20}  ", escaped(id)),
            Sessions::Unnamed => String::new(),
        }
    }
}

/// The text on one line, cut to what is left of the terminal's width.
fn fitting(text: &str, used: usize) -> String {
    let text = escaped(text);
    match Output::columns() {
        Some(columns) => cut(&text, columns.saturating_sub(used).max(16)).into_owned(),
        None => text.into_owned(),
    }
}

/// What an event says, in short: its text if it has one, else its data.
fn summary(event: &Event) -> String {
    if let Some(other) = no_json(event) {
        return other;
    }
    let Ok(data) = serde_json::from_str::<Value>(event.data.get()) else {
        return event.data.get().to_owned();
    };
    let text = match &data {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) if event.r#type == USER_MESSAGE => {
            fields.get("content").and_then(text_of)
        }
        Value::Object(fields) => fields
            .get("text")
            .and_then(Value::as_str)
            .map(str::to_owned),
        _ => None,
    };
    text.unwrap_or_else(|| data.to_string())
}

/// All that an event says.
fn full(event: &Event) -> String {
    no_json(event).unwrap_or_else(|| pretty(event.data.get()))
}

/// JSON over several lines. What no value can hold stays as it was written.
pub(crate) fn pretty(json: &str) -> String {
    let value = serde_json::from_str::<Value>(json);
    let pretty = value.and_then(|value| serde_json::to_string_pretty(&value));
    pretty.unwrap_or_else(|_as_it_is| json.to_owned())
}

/// What stands for data that is not JSON.
fn no_json(event: &Event) -> Option<String> {
    if event.redacted {
        return Some("(redacted)".to_owned());
    }
    let base64 = event.data_base64.as_deref()?;
    let padding = base64
        .bytes()
        .rev()
        .take_while(|byte| *byte == b'=')
        .count();
    let bytes = base64.len() / 4 * 3 - padding.min(2);
    Some(match event.data.get() {
        "null" => format!("({bytes} bytes that are not JSON)"),
        repaired => repaired.to_owned(),
    })
}

/// The texts of the content of a message. Other blocks show their type.
pub(crate) fn text_of(content: &Value) -> Option<String> {
    let blocks = content.as_array()?.iter().map(|block| {
        let field = |name| block.get(name).and_then(Value::as_str);
        field("text").map_or_else(
            || format!("[{}]", field("type").unwrap_or("?")),
            str::to_owned,
        )
    });
    Some(blocks.collect::<Vec<_>>().join(" "))
}
