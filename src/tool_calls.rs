//! The tool calls of a turn: what an event says of them, and which are outstanding. The rules are in the doc of [`message`](crate::message).

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The tool calls of one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    /// Outstanding, by ID.
    named: BTreeSet<String>,
    /// The number of outstanding calls without an ID.
    unnamed: usize,
    /// The IDs that have had their answer, so that a duplicate of it answers no other call.
    answered: BTreeSet<String>,
}

impl Calls {
    pub(crate) fn are_outstanding(&self) -> bool {
        self.unnamed > 0 || !self.named.is_empty()
    }

    pub(crate) fn request(&mut self, id: Option<String>) {
        match id {
            None => self.unnamed += 1,
            Some(id) if self.answered.contains(&id) => {}
            Some(id) => {
                self.named.insert(id);
            }
        }
    }

    pub(crate) fn answer(&mut self, id: Option<String>) {
        match id {
            Some(id) if self.answered.contains(&id) => {}
            Some(id) => {
                if self.named.remove(&id) || self.answer_unnamed() {
                    self.answered.insert(id);
                }
            }
            None => {
                if !self.answer_unnamed() {
                    self.answered.extend(self.named.pop_first());
                }
            }
        }
    }

    fn answer_unnamed(&mut self) -> bool {
        let found = self.unnamed > 0;
        self.unnamed = self.unnamed.saturating_sub(1);
        found
    }
}

/// What a tool event may say of the calls it is about: whatever else it holds, such as what a tool put out, is passed over unread.
#[derive(Default)]
pub(crate) struct ToolEvent {
    call_id: Option<Value>,
    calls: Option<Value>,
    id: Option<Value>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ToolField {
    CallId,
    Calls,
    Id,
    #[serde(other)]
    Other,
}

/// Of a repeated field the last counts, as everywhere in JSON that is read here.
impl<'de> Deserialize<'de> for ToolEvent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ToolEvent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ToolEvent, A::Error> {
                let mut event = ToolEvent::default();
                while let Some(field) = fields.next_key()? {
                    match field {
                        ToolField::CallId => event.call_id = Some(fields.next_value()?),
                        ToolField::Calls => event.calls = Some(fields.next_value()?),
                        ToolField::Id => event.id = Some(fields.next_value()?),
                        ToolField::Other => drop(fields.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(event)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl ToolEvent {
    /// The calls that it is about, each by its ID if it has one; at least one.
    pub(crate) fn call_ids(&self) -> Vec<Option<String>> {
        if let Some(call_id) = self.call_id.as_ref().and_then(id_text) {
            return vec![Some(call_id)];
        }
        let id = |call: &Value| ["call_id", "id"].iter().find_map(|&key| call.get(key).and_then(id_text));
        match &self.calls {
            Some(Value::Array(calls)) if !calls.is_empty() => calls.iter().map(id).collect(),
            _ => vec![self.id.as_ref().and_then(id_text)],
        }
    }
}

fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
