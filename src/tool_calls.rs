//! The tool calls of a turn: what an event says of them, and which are outstanding. The rules are in the doc of [`message`](crate::message).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

/// The tool calls of one attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    /// Outstanding, by ID.
    named: BTreeSet<CallHash>,
    /// The number of outstanding calls without an ID.
    unnamed: usize,
    /// The IDs that have had their answer, so that a duplicate of it answers no other call.
    answered: BTreeSet<CallHash>,
}

/// What stands for a call's ID, which may be a megabyte of text.
type CallHash = [u8; 16];

/// So many calls of an attempt are told apart by their IDs; those behind them are only counted.
const NAMED_MAX: usize = 10_000;

fn hash(id: &str) -> CallHash {
    *blake3::hash(id.as_bytes()).as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}

impl Calls {
    pub(crate) fn are_outstanding(&self) -> bool {
        self.unnamed > 0 || !self.named.is_empty()
    }

    /// About how much memory they take.
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

/// What a tool event may say of the calls it is about: whatever else it holds, such as what a tool put out, is passed over unread.
#[derive(Default)]
pub(crate) struct ToolEvent<'a> {
    call_id: Option<CallId<'a>>,
    calls: Option<Value>,
    id: Option<CallId<'a>>,
}

/// The ID of a call: text, or a number by its text.
#[derive(Deserialize)]
#[serde(untagged)]
enum CallId<'a> {
    #[serde(borrow)]
    Text(Cow<'a, str>),
    Number(Number),
    NoId(IgnoredAny),
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

/// Of a repeated field the last counts.
impl<'de> Deserialize<'de> for ToolEvent<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ToolEvent<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<ToolEvent<'de>, A::Error> {
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

impl ToolEvent<'_> {
    /// The calls that it is about, each by its ID if it has one; at least one.
    pub(crate) fn each_call(&self, mut act: impl FnMut(Option<&str>)) {
        if let Some(call_id) = self.call_id.as_ref().and_then(CallId::text) {
            return act(Some(&call_id));
        }
        match &self.calls {
            Some(Value::Array(calls)) if !calls.is_empty() => {
                for call in calls {
                    let ids = ["call_id", "id"].map(|key| call.get(key).and_then(|id| CallId::deserialize(id).ok()));
                    act(ids.iter().flatten().find_map(CallId::text).as_deref());
                }
            }
            _ => act(self.id.as_ref().and_then(CallId::text).as_deref()),
        }
    }
}

impl CallId<'_> {
    fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            CallId::Text(text) => Some(Cow::Borrowed(text)),
            CallId::Number(number) => Some(Cow::Owned(number.to_string())),
            CallId::NoId(_) => None,
        }
    }
}
