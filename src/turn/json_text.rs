//! JSON values kept as their text.
//!
//! A [`Value`] may take more than a hundred times the memory of its text. Values that a caller
//! chose are therefore kept and checked as text.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

#[cfg(feature = "http")]
use crate::model::Error;
use crate::turn::lenient;

/// Values up to this many bytes are compared as values, longer ones as text.
const COMPARED_BYTES_MAX: usize = 64 * 1024;

/// The name under which a [`RawValue`] passes through `serde`.
const RAW_VALUE_TOKEN: &str = "$serde_json::private::RawValue";

/// The text of a value that can be read as a [`Value`].
///
/// Text that `serde_json` refuses is [repaired](crate::turn::lenient) first.
#[derive(Debug, Clone)]
pub(crate) struct JsonText {
    json: Arc<RawValue>,
    value_bytes: usize,
    /// The text before the repair, if that is JSON too.
    written: Option<Arc<RawValue>>,
}

impl JsonText {
    /// Keeps the text of `json`. `None` when no value can be read from it.
    pub(crate) fn of(json: &[u8]) -> Option<Self> {
        let written = serde_json::from_slice::<&RawValue>(json).ok();
        if let Some(json) = written
            && let Ok(Weighed { value_bytes, .. }) = serde_json::from_str(json.get())
        {
            return Some(Self {
                json: json.to_owned().into(),
                value_bytes,
                written: None,
            });
        }
        let json = RawValue::from_string(lenient::repaired(json)?.text).ok()?;
        let Weighed { value_bytes, .. } = serde_json::from_str(json.get()).ok()?;
        Some(Self {
            json: json.into(),
            value_bytes,
            written: written.map(|written| written.to_owned().into()),
        })
    }

    pub(crate) fn get(&self) -> &str {
        self.json.get()
    }

    /// Returns the text as it was written if that is JSON, else the repaired text.
    pub(crate) fn written(&self) -> &str {
        self.written.as_ref().unwrap_or(&self.json).get()
    }

    pub(crate) fn value(&self) -> Value {
        serde_json::from_str(self.get()).expect("it was checked when it was made")
    }

    /// The approximate memory of the [`value`](Self::value). The text takes at most a few bytes
    /// more.
    pub(crate) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Whether both are the same value. Long ones must also be spelled the same.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        let are_short = self.get().len().max(other.get().len()) <= COMPARED_BYTES_MAX;
        self.get() == other.get() || (are_short && self.value() == other.value())
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

/// The weight of a value that can be read as a [`Value`]. Nothing of it is kept.
pub(crate) struct Weighed {
    value_bytes: usize,
    is_text: bool,
}

impl<'de> Deserialize<'de> for Weighed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Weigh)
    }
}

/// A check that a value is an object. Nothing of it is kept.
#[cfg(feature = "http")]
pub(crate) struct CheckedMap;

#[cfg(feature = "http")]
impl<'de> Deserialize<'de> for CheckedMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_map(WeighFields)
            .map(|_fields| Self)
    }
}

/// A check for a content block: an object whose `type` is a string. Nothing of it is kept.
#[cfg(feature = "http")]
pub(crate) struct CheckedBlock;

#[cfg(feature = "http")]
impl<'de> Deserialize<'de> for CheckedBlock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let problem = match deserializer.deserialize_map(WeighFields)?.type_is_text {
            Some(true) => return Ok(Self),
            Some(false) => "its type is not a string",
            None => "it has no type",
        };
        Err(D::Error::custom(Error::invalid("content block", problem)))
    }
}

/// Visits every part of a value, as building a [`Value`] would.
struct Weigh;

/// A value that holds no other value.
const SCALAR: Weighed = Weighed {
    value_bytes: size_of::<Value>(),
    is_text: false,
};

impl<'de> Visitor<'de> for Weigh {
    type Value = Weighed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<Weighed, E> {
        Ok(SCALAR)
    }

    fn visit_bool<E>(self, _value: bool) -> Result<Weighed, E> {
        Ok(SCALAR)
    }

    fn visit_i64<E>(self, _value: i64) -> Result<Weighed, E> {
        Ok(SCALAR)
    }

    fn visit_u64<E>(self, _value: u64) -> Result<Weighed, E> {
        Ok(SCALAR)
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Weighed, E> {
        Ok(SCALAR)
    }

    fn visit_str<E>(self, text: &str) -> Result<Weighed, E> {
        Ok(Weighed {
            value_bytes: size_of::<Value>() + text.len(),
            is_text: true,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Weighed, A::Error> {
        let (mut count, mut value_bytes) = (0, size_of::<Value>());
        while let Some(item) = items.next_element::<Weighed>()? {
            (count, value_bytes) = (count + 1, value_bytes + item.value_bytes);
        }
        value_bytes += spare_places(count) * size_of::<Value>();
        Ok(Weighed {
            value_bytes,
            is_text: false,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Weighed, A::Error> {
        let fields = WeighFields.visit_map(fields)?;
        if fields.first_is_token {
            return Err(A::Error::custom(
                "an object with a key that serde_json keeps for itself",
            ));
        }
        Ok(Weighed {
            value_bytes: size_of::<Value>() + fields.bytes,
            is_text: false,
        })
    }
}

/// The unused capacity of a list that grew item by item.
fn spare_places(items: usize) -> usize {
    const PLACES_MIN: usize = 4;
    if items == 0 {
        0
    } else {
        items.next_power_of_two().max(PLACES_MIN) - items
    }
}

/// Like [`Weigh`], but for the fields of an object. Of a repeated field the last counts.
struct WeighFields;

struct WeighedFields {
    bytes: usize,
    /// Whether the field `type` is a string, if there is one.
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "blocks are checked over HTTP")
    )]
    type_is_text: Option<bool>,
    /// Whether the first key is the one by which `serde_json` recognizes a [`RawValue`]. As a
    /// [`Value`] such an object reads as something else, or not at all.
    first_is_token: bool,
}

impl<'de> Visitor<'de> for WeighFields {
    type Value = WeighedFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<WeighedFields, A::Error> {
        // A key, its hash and its slots in two tables.
        const FIELD_OVERHEAD: usize = size_of::<String>() + 4 * size_of::<usize>();
        let (mut count, mut bytes, mut type_is_text, mut first_is_token) = (0, 0, None, false);
        while let Some(Key {
            bytes: key_bytes,
            is_type,
            is_token,
        }) = fields.next_key_seed(AnyKey)?
        {
            first_is_token |= is_token && count == 0;
            let field = fields.next_value::<Weighed>()?;
            (count, bytes) = (
                count + 1,
                bytes + FIELD_OVERHEAD + key_bytes + field.value_bytes,
            );
            type_is_text = if is_type {
                Some(field.is_text)
            } else {
                type_is_text
            };
        }
        bytes += spare_places(count) * (FIELD_OVERHEAD + size_of::<Value>());
        Ok(WeighedFields {
            bytes,
            type_is_text,
            first_is_token,
        })
    }
}

struct Key {
    bytes: usize,
    is_type: bool,
    is_token: bool,
}

struct AnyKey;

impl<'de> DeserializeSeed<'de> for AnyKey {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for AnyKey {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(Key {
            bytes: key.len(),
            is_type: key == "type",
            is_token: key == RAW_VALUE_TOKEN,
        })
    }
}

/// Passes the items of an array to `act` one by one, so that no list of them is built.
///
/// An object counts as an array when its keys are whole numbers. Lua and PHP write lists so that
/// are empty or have holes.
pub(crate) fn each_item<'a>(
    array: &'a RawValue,
    act: impl FnMut(&'a RawValue),
) -> serde_json::Result<()> {
    struct Each<F>(F);
    impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
            while let Some(item) = items.next_element()? {
                (self.0)(item);
            }
            Ok(())
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
            while let Some((_place, item)) = fields.next_entry::<u64, &RawValue>()? {
                (self.0)(item);
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_str(array.get()).deserialize_any(Each(act))
}

/// The data that opened a turn: the last `content` and the last `metadata`, as written.
#[cfg(feature = "http")]
#[derive(Default)]
pub(crate) struct Sent<'a> {
    content: Option<&'a RawValue>,
    metadata: Option<&'a RawValue>,
}

#[cfg(feature = "http")]
impl Sent<'_> {
    /// Returns the content and the metadata that a turn shows. They are as written if that can be
    /// read.
    pub(crate) fn shown_of(sent: &JsonText) -> (Box<RawValue>, Box<RawValue>) {
        let written = serde_json::from_str::<Sent<'_>>(sent.written());
        written
            .or_else(|_odd_key| serde_json::from_str::<Sent<'_>>(sent.get()))
            .unwrap_or_default()
            .shown()
    }

    pub(crate) fn shown(&self) -> (Box<RawValue>, Box<RawValue>) {
        (self.blocks(), self.fields())
    }

    /// The content as written, or an array of those of its items that are blocks.
    fn blocks(&self) -> Box<RawValue> {
        let mut blocks = String::from("[");
        let (mut are_blocks, mut count) = (true, 0);
        let is_array = self.content.is_some_and(|content| {
            let each = each_item(content, |item| {
                if lenient::from_slice::<CheckedBlock>(item.get().as_bytes()).is_err() {
                    are_blocks = false;
                } else {
                    blocks.push_str(if count == 0 { "" } else { "," });
                    blocks.push_str(item.get());
                    count += 1;
                }
            });
            each.is_ok()
        });
        match self
            .content
            .filter(|content| is_array && are_blocks && content.get().starts_with('['))
        {
            Some(content) => content.to_owned(),
            None => {
                RawValue::from_string(blocks + "]").expect("JSON values between brackets are JSON")
            }
        }
    }

    /// The metadata as written, or an empty object if it is not an object.
    fn fields(&self) -> Box<RawValue> {
        let is_object = |json: &&RawValue| json.get().starts_with('{');
        let empty = || RawValue::from_string("{}".to_owned()).expect("this is JSON");
        self.metadata
            .filter(is_object)
            .map_or_else(empty, RawValue::to_owned)
    }
}

#[cfg(feature = "http")]
impl<'de> Deserialize<'de> for Sent<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "snake_case")]
        enum Field {
            Content,
            Metadata,
            #[serde(other)]
            Other,
        }
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Sent<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Sent<'de>, A::Error> {
                let mut sent = Sent::default();
                while let Some(field) = fields.next_key()? {
                    match field {
                        Field::Content => sent.content = Some(fields.next_value()?),
                        Field::Metadata => sent.metadata = Some(fields.next_value()?),
                        Field::Other => drop(fields.next_value::<serde::de::IgnoredAny>()?),
                    }
                }
                Ok(sent)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The memory of a value, by the capacity of its lists.
    fn taken(value: &Value) -> usize {
        let slot = size_of::<Value>();
        match value {
            Value::String(text) => slot + text.len(),
            Value::Array(items) => {
                slot + items.iter().map(taken).sum::<usize>()
                    + (items.capacity() - items.len()) * slot
            }
            Value::Object(fields) => {
                slot + fields
                    .iter()
                    .map(|(key, value)| 56 + key.len() + taken(value))
                    .sum::<usize>()
            }
            _ => slot,
        }
    }

    #[test]
    fn a_text_is_weighed_as_the_value_that_it_is_read_as() {
        for part in [
            "0",
            "[]",
            "{}",
            "[0]",
            r#"{"":0}"#,
            r#"{"a":"b","c":[1.5,true,null]}"#,
            "[[[[[0]]]]]",
            r#""text""#,
        ] {
            let json = format!("[{part}{}]", format!(",{part}").repeat(10_000));
            let text = JsonText::of(json.as_bytes()).unwrap();
            let (weighed, taken) = (text.value_bytes(), taken(&text.value()));
            assert!(
                (taken * 9 / 10..taken * 4).contains(&weighed),
                "{part}: {weighed} and not {taken}"
            );
        }
    }

    #[test]
    fn what_can_be_read_as_a_value_is_a_text() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let token = format!(r#"{{"{RAW_VALUE_TOKEN}":1}}"#);
        let (deepest, too_deep) = (deep(127), deep(128));
        for json in [
            " 1 ",
            "[1e400]",
            r#"["\ud800"]"#,
            "[1,]",
            "\"\u{fffd}\"",
            r#"{"a":1,"a":2}"#,
            "",
            &token,
            &deepest,
            &too_deep,
        ] {
            let text = JsonText::of(json.as_bytes());
            assert_eq!(
                text.map(|text| text.value()),
                lenient::from_slice(json.as_bytes()).ok(),
                "{json}"
            );
        }
        let repaired = JsonText::of(br#"["\ud83d", 1e400]"#).unwrap();
        assert_eq!(
            (repaired.get(), repaired.written()),
            (r#"["\\ud83d","1e400"]"#, r#"["\ud83d", 1e400]"#)
        );
        assert!(JsonText::of(b"[NaN]").is_some_and(|text| text.written() == r#"["NaN"]"#));
    }

    #[test]
    fn short_texts_say_the_same_in_any_spelling() {
        let says = |one: &str, other: &str| {
            JsonText::of(one.as_bytes())
                .unwrap()
                .says_as(&JsonText::of(other.as_bytes()).unwrap())
        };
        assert!(says(r#"{"a":1.0,"b":[]}"#, r#" {"b":[ ],"a":1.00}"#));
        assert!(!says("1", "2"));
        let long = format!("[{}0]", "0,".repeat(COMPARED_BYTES_MAX));
        assert!(says(&long, &long) && !says(&long, &long.replacen(',', ", ", 1)));
    }
}
