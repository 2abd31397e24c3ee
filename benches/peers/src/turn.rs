//! A turn of twenty events, and how an application folds it whose store knows only events.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

const STATUS_CHANGED: &str = "message.status_changed";
const TOOL_REQUESTED: &str = "tool.call_requested";
const TOOL_COMPLETED: &str = "tool.call_completed";
const ASSISTANT_COMPLETED: &str = "assistant.message_completed";
const USER_MESSAGE: &str = "user.message";

pub const EVENTS: usize = 20;

/// The event that opens the turn.
pub const ASKED: &str = "What holds this up?";

/// The events after it: the status before and after, eight tool calls with their results, and the
/// answer.
pub fn work() -> Vec<(&'static str, String)> {
    let status = |status: &str| (STATUS_CHANGED, format!(r#"{{"status":"{status}"}}"#));
    let calls = (0..8).flat_map(|call| {
        let data = format!(r#"{{"call_id":"c{call}","output":"{}"}}"#, "x".repeat(200));
        [(TOOL_REQUESTED, data.clone()), (TOOL_COMPLETED, data)]
    });
    let said = (
        ASSISTANT_COMPLETED,
        r#"{"text":"A barrier, as it should."}"#.to_owned(),
    );
    [status("running")]
        .into_iter()
        .chain(calls)
        .chain([said, status("completed")])
        .collect()
}

/// All of it.
pub fn events() -> Vec<(&'static str, String)> {
    let asked = format!(r#"{{"content":[{{"type":"text","text":"{ASKED}"}}]}}"#);
    [(USER_MESSAGE, asked)].into_iter().chain(work()).collect()
}

/// A turn, folded from the events seen.
#[derive(Default)]
pub struct Fold {
    content: Value,
    status: String,
    output: Vec<Value>,
    outstanding: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

/// Ignores the output of tools.
#[derive(Deserialize)]
struct Call {
    call_id: String,
}

impl Fold {
    pub fn apply(&mut self, event_type: &str, data: &[u8]) {
        match event_type {
            USER_MESSAGE => self.content = json(data),
            STATUS_CHANGED => self.status = json::<Status>(data).status,
            TOOL_REQUESTED => drop(self.outstanding.insert(json::<Call>(data).call_id)),
            TOOL_COMPLETED => drop(self.outstanding.remove(&json::<Call>(data).call_id)),
            ASSISTANT_COMPLETED => self.output.push(json(data)),
            other => unreachable!("{other} is in no turn"),
        }
    }

    /// Returns the status of a complete turn.
    pub fn status(&self) -> &str {
        let is_whole =
            self.content.is_object() && !self.output.is_empty() && self.outstanding.is_empty();
        assert!(is_whole, "a turn lacks events");
        &self.status
    }
}

fn json<'a, T: Deserialize<'a>>(data: &'a [u8]) -> T {
    serde_json::from_slice(data).expect("the data is JSON")
}
