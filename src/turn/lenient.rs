//! Reads JSON as other languages write it, which is more than `serde_json` accepts.
//!
//! JavaScript cuts a string within an emoji, Python nests hundreds of levels, and Lua writes
//! strings of any bytes. One such leaf makes `serde_json` refuse the whole text. [`from_slice`]
//! then reads the text again, with each refused leaf replaced:
//!
//! | written | read as |
//! |---|---|
//! | in a string, an escape for no character: a lone `\ud83d`, `\d` | the escape's characters |
//! | in a string, a control character | itself |
//! | bytes that are not UTF-8 | U+FFFD |
//! | a number too large for a double: `1e400` | a string of its text |
//! | `NaN`, `Infinity`, `inf`, in either case, with a sign or without | a string of its text |
//! | an array or object below [`LEVELS_MAX`] others | a string of its text |
//! | a byte order mark before everything | nothing |
//!
//! In a string only the escape is replaced, so the rest of a long text with one cut emoji stays
//! readable. The structure is never guessed: text that ends early, or that is not JSON in another
//! way, stays refused.

use std::fmt::Write;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_json::value::RawValue;

/// The most arrays and objects that may be nested: `serde_json` reads no more.
pub(crate) const LEVELS_MAX: usize = 127;

/// Reads `json` like `serde_json`, and repairs leaves that it refuses.
///
/// # Errors
///
/// The error of `serde_json`, when the repaired text is not JSON either, or is of another shape.
pub(crate) fn from_slice<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| {
        // Text of another shape was not refused because of a leaf.
        let repaired = if error.is_data() {
            None
        } else {
            repaired(json)
        };
        repaired.map_or(Err(error), |repaired| serde_json::from_str(&repaired.text))
    })
}

/// Returns the text of a string or a number. `None` for any other value, and for the empty string,
/// which Go writes for an unset field.
///
/// A number counts by its value: `1`, `1.0` and `"1"` are the same, since Lua may have no integers
/// and protobuf writes 64-bit integers as strings.
pub(crate) fn text_of(json: &RawValue) -> Option<String> {
    // An array or object has no such text, and may be large.
    let is_leaf = !json.get().starts_with(['[', '{']);
    match is_leaf.then(|| from_slice(json.get().as_bytes()).ok())?? {
        Value::String(text) => Some(text).filter(|text| !text.is_empty()),
        Value::Number(number) => match number.as_f64() {
            // Adding 0.0 removes the sign of a zero. An integral double has no fraction in this
            // form.
            Some(double) if number.is_f64() => Some((double + 0.0).to_string()),
            _ => Some(number.to_string()),
        },
        _ => None,
    }
}

/// Returns the items of a list.
///
/// An object counts as a list when its keys are whole numbers, which give the order. Lua and PHP
/// write lists so that are empty or have holes.
pub(crate) fn items_of(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(items) => Some(items),
        Value::Object(fields) => {
            let place =
                |(key, item): (String, Value)| key.parse::<u64>().ok().map(|place| (place, item));
            let mut items = fields.into_iter().map(place).collect::<Option<Vec<_>>>()?;
            items.sort_by_key(|(place, _)| *place);
            Some(items.into_iter().map(|(_, item)| item).collect())
        }
        _ => None,
    }
}

/// JSON that `serde_json` accepts.
#[derive(Debug)]
pub(crate) struct Repaired {
    pub(crate) text: String,
    /// The nesting depth of the original.
    #[cfg_attr(
        not(any(feature = "http", test)),
        expect(dead_code, reason = "only appends over HTTP have a bound")
    )]
    pub(crate) levels: usize,
}

/// Repairs the leaves of a text by the rules of the module's doc and drops white space. `None` when
/// the text is not JSON even so.
///
/// It takes time and memory in proportion to `json`, however deep the nesting.
pub(crate) fn repaired(json: &[u8]) -> Option<Repaired> {
    let json = String::from_utf8_lossy(json);
    let json = json.strip_prefix('\u{feff}').unwrap_or(&json);
    Repair {
        json,
        at: 0,
        out: String::with_capacity(json.len()),
        ends: Vec::new(),
        levels: 0,
        too_deep: None,
    }
    .document()
}

/// A pass over a JSON text. Its steps return `None` if the text is not JSON.
struct Repair<'a> {
    json: &'a str,
    /// The position in `json`.
    at: usize,
    out: String,
    /// The bytes that will close the open arrays and objects.
    ends: Vec<u8>,
    /// The most arrays and objects that were open at once.
    levels: usize,
    /// Where the array or object that is too deep begins, in `json` and in `out`.
    too_deep: Option<(usize, usize)>,
}

impl Repair<'_> {
    fn document(mut self) -> Option<Repaired> {
        self.value()?;
        while self.has_more()? {
            self.value()?;
        }
        self.peek().is_none().then_some(Repaired {
            text: self.out,
            levels: self.levels,
        })
    }

    /// Reads a leaf or an empty container, with the openings before it.
    fn value(&mut self) -> Option<()> {
        loop {
            let end = match self.peek()? {
                b'[' => b']',
                b'{' => b'}',
                b'"' => return self.string(),
                _ => return self.word(),
            };
            self.open(end);
            if self.peek()? == end {
                return Some(());
            }
            self.key()?;
        }
    }

    /// Closes the containers that end after a value. Returns whether another value follows.
    fn has_more(&mut self) -> Option<bool> {
        while let Some(end) = self.ends.last().copied() {
            match self.peek()? {
                b',' => {
                    self.take(b',');
                    self.key()?;
                    return Some(true);
                }
                found if found == end => self.close(end)?,
                _ => return None,
            }
        }
        Some(false)
    }

    fn open(&mut self, end: u8) {
        if self.ends.len() == LEVELS_MAX {
            self.too_deep = Some((self.at, self.out.len()));
        }
        self.take(if end == b'}' { b'{' } else { b'[' });
        self.ends.push(end);
        self.levels = self.levels.max(self.ends.len());
    }

    fn close(&mut self, end: u8) -> Option<()> {
        self.take(end);
        self.ends.pop();
        if self.ends.len() == LEVELS_MAX
            && let Some((from, to)) = self.too_deep.take()
        {
            let container = self.json.get(from..self.at)?;
            self.out.truncate(to);
            self.out.push_str(&serde_json::to_string(container).ok()?);
        }
        Some(())
    }

    /// Reads a key and its colon, if within an object.
    fn key(&mut self) -> Option<()> {
        if self.ends.last() != Some(&b'}') {
            return Some(());
        }
        self.peek().filter(|byte| *byte == b'"')?;
        self.string()?;
        self.peek().filter(|byte| *byte == b':')?;
        self.take(b':');
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        self.take(b'"');
        loop {
            let rest = self.rest()?;
            let is_plain = |byte: u8| byte != b'"' && byte != b'\\' && byte >= b' ';
            let (plain, byte) = rest
                .bytes()
                .enumerate()
                .find(|(_, byte)| !is_plain(*byte))?;
            self.copy(plain)?;
            match byte {
                b'"' => {
                    self.take(b'"');
                    return Some(());
                }
                b'\\' => self.escape()?,
                control => {
                    self.at += 1;
                    write!(self.out, "\\u{control:04x}").ok()?;
                }
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        if let Some(bytes) = escape_bytes(self.rest()?.as_bytes()) {
            return self.copy(bytes);
        }
        // An escaped backslash makes the rest of the escape plain characters.
        self.at += 1;
        self.out.push_str(r"\\");
        Some(())
    }

    /// Reads a leaf that is not a string.
    fn word(&mut self) -> Option<()> {
        let rest = self.rest()?;
        let bytes = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
            .count();
        let word = rest.get(..bytes)?;
        if serde_json::from_str::<Value>(word).is_ok() {
            return self.copy(bytes);
        }
        // `IgnoredAny` accepts a number of any size.
        let is_known = is_not_finite(word) || serde_json::from_str::<IgnoredAny>(word).is_ok();
        self.out.push('"');
        self.copy(bytes).filter(|()| is_known)?;
        self.out.push('"');
        Some(())
    }

    /// Returns the next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let space = self
            .rest()?
            .bytes()
            .take_while(|byte| b" \t\r\n".contains(byte))
            .count();
        self.at += space;
        self.rest()?.bytes().next()
    }

    fn rest(&self) -> Option<&str> {
        self.json.get(self.at..)
    }

    /// Moves past the next byte, which is ASCII.
    fn take(&mut self, byte: u8) {
        self.at += 1;
        self.out.push(char::from(byte));
    }

    fn copy(&mut self, bytes: usize) -> Option<()> {
        let end = self.at + bytes;
        self.out.push_str(self.json.get(self.at..end)?);
        self.at = end;
        Some(())
    }
}

/// The length of the escape at the start of `rest`. `None` when it encodes no character.
fn escape_bytes(rest: &[u8]) -> Option<usize> {
    match rest.get(1)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(2),
        _ => match code_unit(rest)? {
            0xD800..0xDC00 => matches!(code_unit(rest.get(6..)?)?, 0xDC00..0xE000).then_some(12),
            0xDC00..0xE000 => None,
            _ => Some(6),
        },
    }
}

/// The UTF-16 code unit of the `\u` escape at the start of `rest`.
fn code_unit(rest: &[u8]) -> Option<u32> {
    let digits = rest.strip_prefix(br"\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        Some(unit * 16 + char::from(*digit).to_digit(16)?)
    })
}

/// Whether `word` is a name for a double that has no JSON number.
fn is_not_finite(word: &str) -> bool {
    let name = word.strip_prefix(['-', '+']).unwrap_or(word);
    ["nan", "inf", "infinity"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(json: impl AsRef<[u8]>, expected: &Value) {
        let json = json.as_ref();
        let shown = String::from_utf8_lossy(json);
        assert_eq!(from_slice::<Value>(json).unwrap(), *expected, "{shown}");
        assert_eq!(
            serde_json::from_str::<Value>(&repaired(json).unwrap().text).unwrap(),
            *expected,
            "{shown}"
        );
    }

    fn nested(levels: usize) -> String {
        let opens = (0..levels).map(|level| if level % 2 == 0 { r#"{ "a": "# } else { "[ " });
        let closes = (0..levels)
            .rev()
            .map(|level| if level % 2 == 0 { " }" } else { " ]" });
        opens.chain(["1"]).chain(closes).collect()
    }

    #[test]
    fn a_leaf_that_is_refused_reads_as_its_text() {
        let cases = [
            (r#""cut \ud83d""#, json!(r"cut \ud83d")),
            (
                r#""\ud83d\ud83d\ude00\ude00\n""#,
                json!("\\ud83d\u{1f600}\\ude00\n"),
            ),
            (
                r#""\ud83d\u0041 \uDC00x \\ud83d""#,
                json!(r"\ud83dA \uDC00x \ud83d"),
            ),
            (r#""\u12""#, json!(r"\u12")),
            (
                r#""\d+ \x41 \u12 \u+123 \'""#,
                json!(r"\d+ \x41 \u12 \u+123 \'"),
            ),
            (
                "\"a\tb\r\nc\u{0}\u{1f}\u{7f}\"",
                json!("a\tb\r\nc\u{0}\u{1f}\u{7f}"),
            ),
            (
                r#"{"\ud83d":1,"a":{"\udc00":[]}}"#,
                json!({r"\ud83d": 1, "a": {r"\udc00": []}}),
            ),
            (
                "[1e400,-1E+999,1.5e308,1e-400]",
                json!(["1e400", "-1E+999", 1.5e308, 0.0]),
            ),
            (
                "[NaN,Infinity,-Infinity]",
                json!(["NaN", "Infinity", "-Infinity"]),
            ),
            (
                "[nan,-nan,inf,-inf,Inf,+inf]",
                json!(["nan", "-nan", "inf", "-inf", "Inf", "+inf"]),
            ),
            ("\u{feff}{\"a\":\"\u{feff}\"}", json!({"a": "\u{feff}"})),
            (
                " [ null ,\ttrue\r, { } ,\n[ ] , NaN ] ",
                json!([null, true, {}, [], "NaN"]),
            ),
            ("nan", json!("nan")),
        ];
        for (json, expected) in cases {
            check(json, &expected);
        }
        check(
            b"{\"\xFF\":\"a\xED\xA0\xBDb\xE2\x82\"}",
            &json!({"\u{fffd}": "a\u{fffd}\u{fffd}\u{fffd}b\u{fffd}"}),
        );
        let digits = "9".repeat(400);
        check(
            format!("[{digits},-{digits}]"),
            &json!([digits, format!("-{digits}")]),
        );
    }

    #[test]
    fn what_lies_too_deep_reads_as_its_text() {
        for levels in [1, LEVELS_MAX - 1, LEVELS_MAX] {
            check(
                nested(levels),
                &serde_json::from_str(&nested(levels)).unwrap(),
            );
            assert_eq!(repaired(nested(levels).as_bytes()).unwrap().levels, levels);
        }
        for levels in [LEVELS_MAX + 1, LEVELS_MAX + 2, 900, 100_000] {
            let json = nested(levels);
            let repaired = repaired(json.as_bytes()).unwrap();
            assert_eq!(repaired.levels, levels);
            let mut innermost: Value = serde_json::from_str(&repaired.text).unwrap();
            for level in 0..LEVELS_MAX {
                innermost = if level % 2 == 0 {
                    innermost["a"].take()
                } else {
                    innermost[0].take()
                };
            }
            let text = innermost.as_str().unwrap();
            assert!(
                json.contains(text) && (text.starts_with('{') || text.starts_with('[')),
                "{text}"
            );
            assert_eq!(text.matches(['{', '[']).count(), levels - LEVELS_MAX);
        }
        let wide = format!(
            "{}[\"\\ud83d\t\"],[NaN],[] {}",
            "[".repeat(LEVELS_MAX),
            "]".repeat(LEVELS_MAX)
        );
        let text = repaired(wide.as_bytes()).unwrap().text;
        assert!(
            text.contains(r#"["[\"\\ud83d\t\"]","[NaN]","[]"]"#),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_json_stays_refused() {
        let cases = [
            "",
            " ",
            "Done.",
            "{",
            "[1",
            "[1,",
            "[1,]",
            "[,]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{1:1}",
            "{'a':1}",
            "{\"a\":1]",
            "[1}",
            "]",
            "1 1",
            "NaN NaN",
            "\"",
            "\"a",
            "\"\\",
            "\"\\\"",
            "\"\\ud83d",
            "01",
            "+1",
            ".5",
            "1.",
            "1e",
            "--1",
            "-",
            "--inf",
            "-true",
            "nano",
            "undefined",
            "None",
            "True",
            "1e400x",
            "/**/1",
            "\u{feff}",
            "\u{feff}\u{feff}1",
            "1\u{feff}",
            "\u{a0}1",
            "\u{0}",
            "#",
        ];
        for json in cases {
            from_slice::<Value>(json.as_bytes()).unwrap_err();
            assert!(repaired(json.as_bytes()).is_none(), "{json}");
        }
        assert!(repaired(&[0xFF]).is_none() && repaired(b"[1]\xFF").is_none());
        assert!(repaired("[".repeat(1_000_000).as_bytes()).is_none());
    }

    #[test]
    fn strings_and_numbers_say_their_text() {
        let cases = [
            ("\"a\"", Some("a")),
            ("\"1.0\"", Some("1.0")),
            ("\"\"", None),
            ("null", None),
            ("true", None),
            ("[1]", None),
            ("{}", None),
            ("7", Some("7")),
            ("-7", Some("-7")),
            ("7.0", Some("7")),
            ("-0.0", Some("0")),
            ("0.5", Some("0.5")),
            ("1e+15", Some("1000000000000000")),
            ("18446744073709551615", Some("18446744073709551615")),
            ("1e20", Some("100000000000000000000")),
            ("1e400", Some("1e400")),
        ];
        for (json, text) in cases {
            assert_eq!(
                text_of(serde_json::from_str(json).unwrap()).as_deref(),
                text,
                "{json}"
            );
        }
    }

    #[test]
    fn a_list_may_be_an_object_with_its_places_as_keys() {
        assert_eq!(items_of(json!([1, 2])), Some(vec![json!(1), json!(2)]));
        assert_eq!(
            items_of(json!({"10": "c", "1": "a", "2": "b"})),
            Some(vec![json!("a"), json!("b"), json!("c")])
        );
        assert_eq!(items_of(json!({})), Some(vec![]));
        for other in [
            json!(null),
            json!("1"),
            json!({"1": 1, "n": 2}),
            json!({"id": "a"}),
        ] {
            assert_eq!(items_of(other), None);
        }
    }

    /// The inside of a string as some language writes it, without a closing quotation mark.
    fn any_pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            "[ !#-\\[\\]-~é☃😀]{1,6}".prop_map(String::into_bytes),
            r#"\\["\\/bfnrt]"#.prop_map(String::into_bytes),
            r"\\u[0-9a-f]{4}".prop_map(String::into_bytes),
            r"\\u[dD][89a-fA-F][0-9a-f]{2}".prop_map(String::into_bytes),
            r"\\[ac-eg-mo-qsv-zA-Z0-9]".prop_map(String::into_bytes),
            "[\\x00-\\x1f]".prop_map(String::into_bytes),
            vec(0x80_u8..=0xFF, 1..4),
        ];
        vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    fn any_string() -> impl Strategy<Value = Vec<u8>> {
        any_pieces().prop_map(|pieces| [b"\"".as_slice(), &pieces, b"\""].concat())
    }

    fn any_word() -> impl Strategy<Value = Vec<u8>> {
        let names = vec![
            "null",
            "true",
            "false",
            "NaN",
            "nan",
            "-nan",
            "Infinity",
            "-Infinity",
            "inf",
            "-inf",
            "INF",
            "+Inf",
        ];
        let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,4})?";
        prop_oneof![
            select(names).prop_map(str::to_owned),
            number,
            "-?[1-9][0-9]{300,320}"
        ]
        .prop_map(String::into_bytes)
    }

    /// JSON in any form that a language may write.
    pub(crate) fn any_json() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![any_word(), any_string()];
        leaf.prop_recursive(4, 24, 4, |item| {
            let deep = (item.clone(), 100_usize..300).prop_map(|(item, levels)| {
                [b"[".repeat(levels), item, b"]".repeat(levels)].concat()
            });
            let list = vec(item.clone(), 0..4)
                .prop_map(|items| [b"[ ".as_slice(), &items.join(&b"\t,"[..]), b"\n]"].concat());
            prop_oneof![2 => list, 2 => any_object(item), 1 => deep]
        })
    }

    fn any_object(item: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        vec(any_field(item), 0..4)
            .prop_map(|fields| [b"{".as_slice(), &fields.join(&b","[..]), b"\r}"].concat())
    }

    /// A field whose name begins with an `x`.
    pub(crate) fn any_field(
        item: impl Strategy<Value = Vec<u8>>,
    ) -> impl Strategy<Value = Vec<u8>> {
        (any_pieces(), item)
            .prop_map(|(name, item)| [b" \"x".as_slice(), &name, b"\" :", &item].concat())
    }

    fn any_valid_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<Option<bool>>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,8}|[\\x00-\\x7f]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |item| {
            prop_oneof![
                vec(item.clone(), 0..4).prop_map(Value::from),
                vec(("\\PC{0,4}", item), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_can_be_read(json in any_json()) {
            let repaired = repaired(&json).unwrap();
            let value: Value = serde_json::from_str(&repaired.text).unwrap();
            prop_assert_eq!(from_slice::<Value>(&json).unwrap(), value.clone());
            prop_assert!(repaired.text.len() <= 6 * json.len() + 2);
            let again = super::repaired(repaired.text.as_bytes()).unwrap();
            prop_assert_eq!(again.text, repaired.text);
        }

        #[test]
        fn valid_json_says_the_same_after_the_repair(value in any_valid_json()) {
            for json in [
                serde_json::to_string(&value).unwrap(),
                serde_json::to_string_pretty(&value).unwrap(),
            ] {
                let plain: Value = serde_json::from_str(&json).unwrap();
                let repaired = repaired(json.as_bytes()).unwrap().text;
                prop_assert_eq!(serde_json::from_str::<Value>(&repaired).unwrap(), plain);
            }
        }

        /// A text that is cut off anywhere or has bytes removed is JSON or is refused. Accepted
        /// text can be read.
        #[test]
        fn whatever_is_taken_can_be_read(
            json in any_json(),
            from in any::<prop::sample::Index>(),
            bytes in 0_usize..8,
        ) {
            let from = from.index(json.len());
            let mut damaged = json;
            damaged.drain(from..damaged.len().min(from + bytes));
            for json in [&damaged, damaged.get(..from).unwrap_or_default()] {
                let value = repaired(json)
                    .map(|repaired| serde_json::from_str::<Value>(&repaired.text).unwrap());
                prop_assert_eq!(from_slice(json).ok(), value);
            }
        }
    }
}
