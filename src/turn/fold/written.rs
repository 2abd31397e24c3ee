//! A turn folds to the same message in every language and with any other fields.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use crate::model::Event;
use crate::turn::fold::tests::{OPENING_SEQ, event, opening};
use crate::turn::fold::{
    ASSISTANT_COMPLETED, Fold, MessageStatus, STATUS_CHANGED, TOOL_COMPLETED, TOOL_FAILED,
    TOOL_REQUESTED,
};
use crate::turn::lenient;
use crate::turn::lenient::tests::{any_field, any_json};
use crate::turn::tool_calls::Calls;

/// An event's part in its turn.
#[derive(Debug, Clone)]
enum Said {
    Status {
        status: &'static str,
        attempt: Option<u32>,
        has_error: bool,
    },
    Output(usize),
    Calls {
        event_type: &'static str,
        ids: Vec<Option<Id>>,
        as_list: bool,
    },
}

#[derive(Debug, Clone)]
enum Id {
    Number(u32),
    Text(u32),
}

/// A value as a language may hold it.
#[derive(Debug, Clone)]
enum Json {
    Null,
    Bool(bool),
    Whole(i64),
    Double(f64),
    /// A whole number with this many digits.
    Digits(usize),
    /// UTF-16, some of which may be half a character.
    Text(Vec<u16>),
    List(Vec<Json>),
    /// This many nested lists.
    Deep(usize),
    Object(Vec<(Vec<u16>, Json)>),
}

/// A language and its usual encoder. If its libraries differ, `is_odd` chooses the one that is
/// harder to read.
#[derive(Debug, Clone, Copy)]
struct Dialect {
    language: Language,
    is_odd: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Language {
    JavaScript,
    Python,
    Lua,
    Protobuf,
}

const LANGUAGES: [Language; 4] = [
    Language::JavaScript,
    Language::Python,
    Language::Lua,
    Language::Protobuf,
];

/// The dialect of the events that all others are compared with.
const PLAIN: Dialect = Dialect {
    language: Language::Python,
    is_odd: false,
};

struct Writer {
    dialect: Dialect,
    out: Vec<u8>,
}

impl Writer {
    fn write(&mut self, json: &Json) {
        match json {
            Json::Null => self.put("null"),
            Json::Bool(value) => self.put(&value.to_string()),
            Json::Whole(whole) => self.whole(*whole),
            Json::Double(double) => self.double(*double),
            Json::Digits(digits) => self.digits(*digits),
            Json::Text(text) => self.text(text),
            Json::List(items) => self.list(items),
            Json::Deep(levels) => {
                self.put(&format!("{}{}", "[".repeat(*levels), "]".repeat(*levels)));
            }
            Json::Object(fields)
                if fields.is_empty()
                    && self.dialect.language == Language::Lua
                    && self.dialect.is_odd =>
            {
                self.put("[]");
            }
            Json::Object(fields) => {
                self.object(fields.iter().map(|(name, field)| (name.as_slice(), field)));
            }
        }
    }

    fn put(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "so do languages whose numbers are doubles"
    )]
    fn whole(&mut self, whole: i64) {
        match self.dialect.language {
            Language::JavaScript => self.double(whole as f64),
            Language::Lua if whole.unsigned_abs() >= 1_000_000_000_000_000 => {
                self.double(whole as f64);
            }
            Language::Lua if self.dialect.is_odd => self.put(&format!("{whole}.0")),
            Language::Protobuf => self.put(&format!("\"{whole}\"")),
            Language::Python | Language::Lua => self.put(&whole.to_string()),
        }
    }

    fn double(&mut self, double: f64) {
        let (shortest, [nan, inf, minus_inf]) = match self.dialect.language {
            Language::JavaScript => (1e21, ["null"; 3]),
            Language::Python => (1e16, ["NaN", "Infinity", "-Infinity"]),
            Language::Lua => (
                1e15,
                [
                    if self.dialect.is_odd { "-nan" } else { "nan" },
                    "inf",
                    "-inf",
                ],
            ),
            Language::Protobuf => (1e21, [r#""NaN""#, r#""Infinity""#, r#""-Infinity""#]),
        };
        match double {
            _ if double.is_nan() => self.put(nan),
            f64::INFINITY => self.put(inf),
            f64::NEG_INFINITY => self.put(minus_inf),
            _ if double.abs() < shortest => self.put(&double.to_string()),
            _ => self.put(&format!("{double:e}").replace('e', "e+")),
        }
    }

    fn digits(&mut self, digits: usize) {
        match self.dialect.language {
            Language::Python => self.put(&"7".repeat(digits)),
            Language::Protobuf => self.put(&format!("\"{}\"", "7".repeat(digits))),
            Language::JavaScript | Language::Lua => {
                self.double("7".repeat(digits).parse().unwrap());
            }
        }
    }

    fn text(&mut self, text: &[u16]) {
        self.put("\"");
        for unit in char::decode_utf16(text.iter().copied()) {
            match (unit, self.dialect.language) {
                (Ok('"'), _) => self.put("\\\""),
                (Ok('\\'), _) => self.put("\\\\"),
                // Some encoders of Lua leave control characters as they are.
                (Ok(char), Language::Lua) if self.dialect.is_odd => self.put(&char.to_string()),
                (Ok(char), dialect)
                    if char < ' ' || (dialect == Language::Python && !char.is_ascii()) =>
                {
                    char.encode_utf16(&mut [0; 2])
                        .iter()
                        .for_each(|unit| self.escaped(*unit));
                }
                (Ok(char), _) => self.put(&char.to_string()),
                (Err(half), Language::JavaScript | Language::Python) => {
                    self.escaped(half.unpaired_surrogate());
                }
                (Err(_), Language::Lua) if self.dialect.is_odd => self.out.push(0xFF),
                (Err(half), Language::Lua) => self.half(half.unpaired_surrogate()),
                (Err(_), Language::Protobuf) => self.put("\u{fffd}"),
            }
        }
        self.put("\"");
    }

    fn escaped(&mut self, unit: u16) {
        self.put(&format!("\\u{unit:04x}"));
    }

    /// Writes half a character as if it were a whole one, in three bytes that are not UTF-8.
    fn half(&mut self, unit: u16) {
        let bits = |shift: u16| 0x80 | u8::try_from((unit >> shift) & 0x3F).unwrap();
        self.out.extend([0xED, bits(6), bits(0)]);
    }

    /// Lua has no lists: an empty list, or one with a hole, may be written as an object.
    fn list(&mut self, items: &[Json]) {
        if self.dialect.language == Language::Lua && (self.dialect.is_odd || items.is_empty()) {
            let places: Vec<Vec<u16>> = (1..=items.len())
                .map(|place| place.to_string().encode_utf16().collect())
                .collect();
            return self.object(places.iter().map(Vec::as_slice).zip(items));
        }
        self.put("[");
        for (place, item) in items.iter().enumerate() {
            self.put(if place == 0 { "" } else { "," });
            self.write(item);
        }
        self.put("]");
    }

    fn object<'a>(&mut self, fields: impl Iterator<Item = (&'a [u16], &'a Json)>) {
        self.put("{");
        for (place, (name, field)) in fields.enumerate() {
            self.put(if place == 0 { "" } else { "," });
            self.text(name);
            self.put(":");
            self.write(field);
        }
        self.put("}");
    }
}

fn text(text: &str) -> Json {
    Json::Text(text.encode_utf16().collect())
}

impl Said {
    fn event_type(&self) -> &'static str {
        match self {
            Said::Status { .. } => STATUS_CHANGED,
            Said::Output(_) => ASSISTANT_COMPLETED,
            Said::Calls { event_type, .. } => event_type,
        }
    }

    /// The fields that decide. A field that is not set is left out or, in the odd form, `null`.
    fn fields(&self, error: &Json, dialect: Dialect) -> Vec<(&'static str, Json)> {
        let none = || dialect.is_odd.then_some(Json::Null);
        let fields = match self {
            Said::Status {
                status,
                attempt,
                has_error,
            } => vec![
                ("status", Some(text(status))),
                (
                    "attempt",
                    attempt
                        .map(|attempt| Json::Whole(attempt.into()))
                        .or_else(none),
                ),
                ("error", has_error.then(|| error.clone()).or_else(none)),
            ],
            Said::Output(number) => vec![("text", Some(text(&format!("said {number}"))))],
            Said::Calls {
                ids,
                as_list: false,
                ..
            } => {
                vec![
                    (
                        "call_id",
                        ids.first()
                            .and_then(|id| Id::json(id.as_ref()))
                            .or_else(none),
                    ),
                    ("calls", none()),
                ]
            }
            Said::Calls { ids, .. } => {
                let call = |id: &Option<Id>| {
                    let id = Id::json(id.as_ref()).or_else(none);
                    Json::Object(
                        id.into_iter()
                            .map(|id| ("id".encode_utf16().collect(), id))
                            .collect(),
                    )
                };
                vec![
                    ("call_id", none()),
                    ("calls", Some(Json::List(ids.iter().map(call).collect()))),
                ]
            }
        };
        fields
            .into_iter()
            .filter_map(|(name, field)| Some((name, field?)))
            .collect()
    }

    fn written(&self, dialect: Dialect, noise: &[(Vec<u16>, Json)]) -> Vec<u8> {
        let error = Json::Object(noise.to_vec());
        let mut fields: Vec<_> = self
            .fields(&error, dialect)
            .into_iter()
            .map(|(name, field)| (name.encode_utf16().collect(), field))
            .collect();
        let place = if dialect.is_odd { 0 } else { fields.len() };
        fields.splice(place..place, noise.iter().cloned());
        let mut writer = Writer {
            dialect,
            out: Vec::new(),
        };
        writer.object(
            fields
                .iter()
                .map(|(name, field): &(Vec<u16>, Json)| (name.as_slice(), field)),
        );
        writer.out
    }
}

impl Id {
    fn json(id: Option<&Id>) -> Option<Json> {
        Some(match id? {
            Id::Number(number) => Json::Whole((*number).into()),
            Id::Text(number) => text(&format!("call \u{1f600} {number}")),
        })
    }
}

fn any_said() -> impl Strategy<Value = Said> {
    let statuses = vec![
        "queued",
        "running",
        "waiting_for_tool",
        "running",
        "completed",
        "failed",
        "cancelled",
        "paused",
    ];
    let status = (select(statuses), option::of(1_u32..4), any::<bool>());
    let id = option::weighted(
        0.8,
        prop_oneof![
            (0_u32..4).prop_map(Id::Number),
            (0_u32..4).prop_map(Id::Text)
        ],
    );
    let calls = (
        select(&[TOOL_REQUESTED, TOOL_REQUESTED, TOOL_COMPLETED, TOOL_FAILED]),
        vec(id, 0..4),
        any::<bool>(),
    );
    prop_oneof![
        2 => status.prop_map(|(status, attempt, has_error)| Said::Status {
            status,
            attempt,
            has_error,
        }),
        2 => (0_usize..3).prop_map(Said::Output),
        4 => calls.prop_map(|(event_type, ids, as_list)| Said::Calls { event_type, ids, as_list }),
    ]
}

fn any_text() -> impl Strategy<Value = Vec<u16>> {
    let unit = prop_oneof![
        3 => 0x20_u16..0x7F,
        1 => 0_u16..0x20,
        3 => 0xD800_u16..0xE000,
        1 => any::<u16>(),
    ];
    vec(unit, 0..6)
}

fn any_value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::Whole),
        select(&[
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            0.1,
            1e15,
            1e21,
            -2.5e300
        ])
        .prop_map(Json::Double),
        (1_usize..400).prop_map(Json::Digits),
        any_text().prop_map(Json::Text),
        (1_usize..900).prop_map(Json::Deep),
    ];
    leaf.prop_recursive(3, 12, 3, |item| {
        prop_oneof![
            vec(item.clone(), 0..3).prop_map(Json::List),
            vec((any_text(), item), 0..3).prop_map(Json::Object)
        ]
    })
}

/// Fields that decide nothing.
fn any_noise() -> impl Strategy<Value = Vec<(Vec<u16>, Json)>> {
    let field = (any_text(), any_value())
        .prop_map(|(name, field)| ([vec![u16::from(b'x')], name].concat(), field));
    vec(field, 0..3)
}

/// The state to compare after each event: status, attempt, number of outputs, whether there is an
/// error, and the calls.
type Step = (MessageStatus, u32, usize, bool, Calls);

fn steps(events: &[Event]) -> Vec<Step> {
    let mut fold = Fold::open(opening().view()).unwrap();
    let step = |(seq, event): (u64, &Event)| {
        fold.apply(
            Event {
                seq,
                ..event.clone()
            }
            .view(),
        );
        let message = fold.clone().into_message();
        (
            message.status,
            message.attempt,
            message.output.len(),
            message.error.is_some(),
            fold.calls.clone(),
        )
    };
    (OPENING_SEQ + 1..).zip(events).map(step).collect()
}

proptest! {
    #[test]
    fn a_turn_folds_alike_in_whatever_language_it_was_written(
        turn in vec(any_said(), 1..12),
        noise in vec(any_noise(), 3),
        is_odd in any::<bool>(),
    ) {
        let plain = |said: &Said| event(said.event_type(), said.written(PLAIN, &[]));
        let expected = steps(&turn.iter().map(plain).collect::<Vec<_>>());
        for language in LANGUAGES {
            let written = |(place, said): (usize, &Said)| {
                // A repeated assistant message repeats all of its fields.
                let place = if let Said::Output(number) = said { *number } else { place };
                let dialect = Dialect { language, is_odd };
                event(said.event_type(), said.written(dialect, &noise[place % noise.len()]))
            };
            let events: Vec<Event> = turn.iter().enumerate().map(written).collect();
            prop_assert_eq!(steps(&events), expected.clone(), "{:?}: {:?}", language, events);
        }
    }

    #[test]
    fn a_status_that_was_said_is_heard_whatever_surrounds_it(
        before in vec(any_field(any_json()), 0..3),
        after in vec(any_field(any_json()), 0..3),
        attempt in any_json(),
        error in any_json(),
    ) {
        let status = br#","\u0073tatus":"f\u0061iled","error":"#;
        let said = [br#""attempt":"#.as_slice(), &attempt, status, &error].concat();
        let fields = [before, vec![said], after].concat();
        let data = [b"{".as_slice(), &fields.join(&b","[..]), b"}"].concat();
        let mut fold = Fold::open(opening().view()).unwrap();
        let ended = Event { seq: OPENING_SEQ + 1, ..event(STATUS_CHANGED, data) };
        #[cfg(feature = "http")]
        prop_assert!(crate::turn::fold::may_end_turn(ended.view()));
        fold.apply(ended.view());
        let message = fold.into_message();
        prop_assert_eq!(message.status, MessageStatus::Failed);
        let is_null = lenient::from_slice::<serde_json::Value>(&error).unwrap() == json!(null);
        prop_assert_eq!(message.error.is_none(), is_null);
    }

    #[test]
    fn whatever_an_assistant_says_is_shown(said in any_json()) {
        let mut fold = Fold::open(opening().view()).unwrap();
        fold.apply(Event { seq: OPENING_SEQ + 1, ..event(ASSISTANT_COMPLETED, said) }.view());
        prop_assert_eq!(fold.into_message().output.len(), 1);
    }
}
