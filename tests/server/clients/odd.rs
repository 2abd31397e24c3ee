//! Arbitrary events: any bytes as data, JSON of any shape and spelling, any type; and arbitrary
//! messages for requests.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;
use sessionlog::NewEvent;

/// Names with a meaning in a script, in a stream of server-sent events, or on the page.
const NAMES: &[&str] = &[
    "__proto__",
    "arguments",
    "constructor",
    "content",
    "data",
    "data_base64",
    "error",
    "file_id",
    "function",
    "hasOwnProperty",
    "id",
    "input",
    "length",
    "message",
    "name",
    "output",
    "status",
    "text",
    "toJSON",
    "toString",
    "tool",
    "type",
    "valueOf",
    "",
];

const TYPES: &[&str] = &[
    "user.message",
    "assistant.message_completed",
    "tool.call_requested",
    "message.status_changed",
    "__proto__",
    "caught_up",
    "close",
    "constructor",
    "error",
    "message",
    "open",
    "id: 1",
    ": a comment",
    " ",
    "<b>\"'&",
    "\u{202e}\u{2028}",
];

const NUMBERS: &[&str] = &[
    "0",
    "-0.0",
    "1.10",
    "1E+2",
    "1e400",
    "9007199254740993",
    "-12345678901234567890123456789",
    "null",
    "true",
    "false",
];

const STRINGS: &[&str] = &[
    r#""""#,
    r#""\ud800""#,
    r#""\udc00 \ud83d""#,
    r#""\u0000\u001b""#,
    r#""\\""#,
    r#""\"]},{\"id\":\"evt_1\"""#,
    r#""<img src=x onerror=window.broken=1><script>window.broken=1</script>""#,
    "\"\u{202e}\u{2066} \u{fffe} \u{2028}\"",
];

fn quoted(text: &str) -> String {
    json!(text).to_string()
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        select(STRINGS).prop_map(str::to_owned),
        select(NAMES).prop_map(quoted),
        "\\PC{0,20}".prop_map(|text| quoted(&text))
    ]
}

fn object(fields: &[(String, String)], between: &str) -> String {
    let fields: Vec<_> = fields
        .iter()
        .map(|(key, value)| format!("{key}:{between}{value}"))
        .collect();
    format!("{{{}}}", fields.join(&format!("{between},")))
}

fn field(value: impl Strategy<Value = String>) -> impl Strategy<Value = (String, String)> {
    (
        prop_oneof![3 => select(NAMES).prop_map(quoted), 1 => string()],
        value,
    )
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![select(NUMBERS).prop_map(str::to_owned), string()];
    leaf.prop_recursive(4, 24, 5, |inner| {
        let between = select(vec!["", " ", "\r\n\t"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5)
                .prop_map(|items| format!("[{}]", items.join(","))),
            (prop::collection::vec(field(inner), 0..5), between)
                .prop_map(|(fields, between)| object(&fields, between)),
        ]
    })
}

const ARRAY: (&str, &str) = ("[", "]");
const OBJECT: (&str, &str) = (r#"{"a":"#, "}");

/// Returns nested JSON arrays or objects. Tens of thousands of levels exhaust the stack of a
/// recursive reader.
fn nested(levels: usize, (open, close): (&str, &str)) -> String {
    format!("{}0{}", open.repeat(levels), close.repeat(levels))
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let fields =
        || prop::collection::vec(field(json()), 0..6).prop_map(|fields| object(&fields, ""));
    prop_oneof![
        4 => json().prop_map(String::into_bytes),
        4 => fields().prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..60),
        1 => fields().prop_map(|json| json.into_bytes()
                .split_last()
                .map(|(_last, cut_off)| cut_off.to_vec())
                .unwrap_or_default()),
        1 => (1_usize..50_000, select(vec![ARRAY, OBJECT]))
            .prop_map(|(levels, of)| nested(levels, of).into_bytes()),
    ]
}

fn event() -> impl Strategy<Value = NewEvent> {
    let name = prop_oneof![4 => select(TYPES).prop_map(str::to_owned), 1 => "\\PC{1,30}"];
    (name, data()).prop_map(|(name, data)| NewEvent::new(name, data))
}

/// The body of a request. The server refuses some, such as those with half a surrogate pair.
fn request() -> impl Strategy<Value = String> {
    let value = || {
        prop_oneof![
            6 => json(),
            1 => (1_usize..110, select(vec![ARRAY, OBJECT]))
                .prop_map(|(levels, of)| nested(levels, of))
        ]
    };
    let block = (string(), prop::collection::vec(field(value()), 0..4))
        .prop_map(|(name, fields)| object(&[vec![(quoted("type"), name)], fields].concat(), " "));
    let metadata =
        prop::collection::vec(field(value()), 0..3).prop_map(|fields| object(&fields, ""));
    (prop::collection::vec(block, 0..4), metadata).prop_map(|(content, metadata)| {
        format!(
            r#"{{"events":[{{"type":"user.message","content":[{}],"metadata":{metadata}}}]}}"#,
            content.join(", ")
        )
    })
}

/// The events that broke the page, and others like them, with types that have a meaning on the
/// page or in a stream.
pub(crate) fn odd_events() -> Vec<NewEvent> {
    let data = [
        r#"{"content":[{"type":"x","file_id":{"toString":1}}]}"#,
        r#"{"content":[{"type":{"toString":null,"valueOf":1}}, null, 1, "text", [], {}]}"#,
        r#"{"content":[{"__proto__":null,"constructor":1,"text":{"length":-1}}],"toJSON":1}"#,
        r#"{"content":{"length":3,"0":{}},"message":{"content":null}}"#,
        r#"{"content":null,"text":null,"message":null}"#,
        r#"{"status":"failed","error":{"toString":1}}"#,
        r#"{"name":{"toString":1},"arguments":{"n":9007199254740993}}"#,
        r#"{"function":{"name":[{"toString":1}]}}"#,
        r#"{"text":"\ud800","name":"\udfff"}"#,
        "{\"text\" :\r\n 1.10}",
        "[1e400]",
        "null",
        r#""text""#,
        "",
        "no JSON",
    ];
    let data: Vec<_> = data
        .into_iter()
        .map(Vec::from)
        .chain([vec![0xff, 0x00]])
        .collect();
    let types = [
        "user.message",
        "assistant.message_completed",
        "error",
        "open",
        "message",
        "caught_up",
        "\u{202e}",
    ];
    let of_type = |name: &'static str| {
        data.iter()
            .map(move |data| NewEvent::new(name, data.clone()))
    };
    let deep = [
        nested(20_000, ARRAY),
        format!(r#"{{"content":[{{"type":{}}}]}}"#, nested(20_000, OBJECT)),
    ];
    let deep = deep
        .iter()
        .flat_map(|data| ["user.message", "error"].map(|name| NewEvent::new(name, data.clone())));
    let large = [
        json!({"content": "long ".repeat(100_000)}),
        json!({"content": vec![1; 150_000]}),
    ];
    let large = large.map(|data| NewEvent::new("user.message", data.to_string()));
    types
        .into_iter()
        .flat_map(of_type)
        .chain(deep)
        .chain(large)
        .collect()
}

/// Makes events and requests.
pub(crate) struct Odd(TestRunner);

impl Odd {
    pub(crate) fn new() -> Self {
        Self(TestRunner::default())
    }

    fn make<T: std::fmt::Debug>(&mut self, of: impl Strategy<Value = T>) -> T {
        of.new_tree(&mut self.0).unwrap().current()
    }

    pub(crate) fn events(&mut self, count: usize) -> Vec<NewEvent> {
        (0..count).map(|_| self.make(event())).collect()
    }

    pub(crate) fn request(&mut self) -> String {
        self.make(request())
    }
}
