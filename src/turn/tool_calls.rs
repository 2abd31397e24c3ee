//! The tool calls of a turn, and which of them are outstanding.
//!
//! The module doc of [`fold`](crate::turn::fold) has the rules.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::turn::json_text::each_item;
use crate::turn::lenient;
use crate::turn::lenient::text_of;

/// The tool calls of one attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Calls {
    /// The IDs of outstanding calls.
    named: BTreeSet<CallHash>,
    /// The number of outstanding calls without an ID.
    unnamed: usize,
    /// The IDs of answered calls, so that a duplicate answer answers no other call.
    answered: BTreeSet<CallHash>,
}

/// The hash of a call's ID. The ID itself may be a megabyte of text.
type CallHash = [u8; 16];

/// The most calls of an attempt that are tracked by ID. Later calls are only counted.
const NAMED_MAX: usize = 10_000;

fn hash(id: &str) -> CallHash {
    *blake3::hash(id.as_bytes())
        .as_bytes()
        .first_chunk()
        .expect("a BLAKE3 hash has 32 bytes")
}

impl Calls {
    pub(crate) fn are_outstanding(&self) -> bool {
        self.unnamed > 0 || !self.named.is_empty()
    }

    /// The approximate memory of the tracked calls.
    pub(crate) fn bytes(&self) -> usize {
        (self.named.len() + self.answered.len()) * 2 * size_of::<CallHash>()
    }

    pub(crate) fn request(&mut self, id: Option<&str>) {
        match id.map(hash) {
            Some(id) if self.answered.contains(&id) || self.named.contains(&id) => {}
            Some(id) if self.named.len() + self.answered.len() < NAMED_MAX => {
                self.named.insert(id);
            }
            _ => self.unnamed += 1,
        }
    }

    pub(crate) fn answer(&mut self, id: Option<&str>) {
        match id.map(hash) {
            Some(id) if self.answered.contains(&id) => {}
            Some(id) => {
                let was_counted = self.named.remove(&id) || self.answer_unnamed();
                if was_counted && self.named.len() + self.answered.len() < NAMED_MAX {
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

/// The fields of a tool event that identify its calls. All other fields, such as a tool's output,
/// are skipped unread.
#[derive(Default)]
pub(crate) struct ToolEvent {
    call_id: Option<String>,
    calls: Option<Box<RawValue>>,
    id: Option<String>,
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

/// Of a repeated field the last that fits counts.
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
                        ToolField::CallId => {
                            event.call_id =
                                text_of(&fields.next_value::<Box<RawValue>>()?).or(event.call_id);
                        }
                        ToolField::Calls => {
                            let calls: Box<RawValue> = fields.next_value()?;
                            event.calls =
                                Some(calls).filter(|calls| is_list(calls)).or(event.calls);
                        }
                        ToolField::Id => {
                            event.id = text_of(&fields.next_value::<Box<RawValue>>()?).or(event.id);
                        }
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
    /// Passes each call of the event to `act`, with its ID if it has one. There is at least one
    /// call.
    pub(crate) fn each_call(self, mut act: impl FnMut(Option<&str>)) {
        if self.call_id.is_some() {
            return act(self.call_id.as_deref());
        }
        let mut has_calls = false;
        if let Some(calls) = self.calls {
            let of_call = |call: &RawValue| {
                has_calls = true;
                let call: ToolEvent =
                    lenient::from_slice(call.get().as_bytes()).unwrap_or_default();
                act(call.call_id.or(call.id).as_deref());
            };
            each_item(&calls, of_call).expect("it was found to be a list");
        }
        if !has_calls {
            act(self.id.as_deref());
        }
    }
}

fn is_list(json: &RawValue) -> bool {
    each_item(json, |_item| {}).is_ok()
}
