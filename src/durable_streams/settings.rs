//! What a stream is besides its events. It is kept in the metadata of its session.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::http::STREAM_SOURCE;
use crate::model::{Metadata, Seq, SessionId};

/// The member of the metadata that holds the settings.
const SETTINGS: &str = "durable_stream";

/// The member with the session that a stream was forked from. It is a string of its own, so that
/// sessions can be listed by it.
pub(super) const SOURCE: &str = STREAM_SOURCE;

pub(super) const JSON: &str = "application/json";

/// The content type of a stream that was created without one.
const BYTES: &str = "application/octet-stream";

/// The settings of a stream. A session that was not created as a stream is one of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// Of a session that was not created as a stream only what others note is stored.
    #[serde(default = "ContentType::json")]
    pub content_type: ContentType,
    /// The idle time after which the stream expires, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Where a fork branches off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<ForkedAt>,
    /// The last `Stream-Seq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<String>,
    /// Whether a stream was ever forked from this one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub forked: bool,
    /// Whether it was deleted while forks of it lived.
    #[serde(default, skip_serializing_if = "is_false")]
    pub gone: bool,
    /// The session that it was forked from.
    #[serde(skip)]
    pub source: Option<SessionId>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde gives this signature"
)]
fn is_false(value: &bool) -> bool {
    !*value
}

/// The point of a fork, as it was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ForkedAt {
    /// The last seq before the offset.
    pub seq: Seq,
    pub sub_offset: u64,
    /// The life that the offsets of the source name, but for how often its own name was deleted.
    pub life: u32,
}

impl Settings {
    pub(super) fn new(content_type: ContentType) -> Self {
        Self {
            content_type,
            ttl: None,
            expires_at: None,
            fork: None,
            last_seq: None,
            forked: false,
            gone: false,
            source: None,
        }
    }

    /// Reads the settings of a session.
    pub(super) fn of(metadata: &Metadata) -> Self {
        let stored = metadata.get(SETTINGS);
        let stored = stored.and_then(|stored| Self::deserialize(stored).ok());
        let mut settings = stored.unwrap_or_else(|| Self::new(ContentType::json()));
        let source = metadata.get(SOURCE).and_then(Value::as_str);
        settings.source = source.and_then(|source| SessionId::new(source).ok());
        settings
    }

    /// Returns a patch of metadata that makes these the settings, whatever was there.
    pub(super) fn patch(&self) -> Value {
        let mut settings = Map::new();
        for name in ["ttl", "expires_at", "fork", "last_seq", "forked", "gone"] {
            settings.insert(name.to_owned(), Value::Null);
        }
        if let Ok(Value::Object(own)) = serde_json::to_value(self) {
            settings.extend(own);
        }
        json!({ SETTINGS: settings, SOURCE: self.source.as_ref().map(SessionId::as_str) })
    }

    /// Returns a patch that notes the `Stream-Seq` of an append.
    pub(super) fn patch_of_seq(seq: &str) -> Value {
        json!({ SETTINGS: { "last_seq": seq } })
    }

    /// Returns a patch that notes that the stream was forked.
    pub(super) fn patch_of_fork() -> Value {
        json!({ SETTINGS: { "forked": true } })
    }

    /// Returns a patch that marks a stream as deleted while forks of it live. It leaves nothing of
    /// the metadata that others have put there.
    pub(super) fn patch_of_gone(&self, metadata: &Metadata) -> Value {
        let others = metadata.keys().filter(|name| *name != SOURCE);
        let mut patch: Map<_, _> = others.map(|name| (name.clone(), Value::Null)).collect();
        let settings = json!({ "content_type": self.content_type, "gone": true });
        patch.insert(SETTINGS.to_owned(), settings);
        Value::Object(patch)
    }
}

/// A content type as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct ContentType(String);

impl ContentType {
    /// The longest one that is taken, in bytes.
    const BYTES_MAX: usize = 256;

    /// Takes a type and subtype, with any parameters behind them.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let named = Self(text.trim().to_owned());
        let is_token = |token: &str| {
            let mut bytes = token.bytes();
            !token.is_empty()
                && bytes
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+*'`|~%".contains(&byte))
        };
        let is_type = named
            .essence()
            .split_once('/')
            .is_some_and(|(kind, sub)| is_token(kind) && is_token(sub));
        if text.len() > Self::BYTES_MAX {
            return Err(format!("it is longer than {} bytes", Self::BYTES_MAX));
        }
        if !is_type {
            return Err(format!("{text:?} is no type and subtype"));
        }
        Ok(named)
    }

    pub(super) fn json() -> Self {
        Self(JSON.to_owned())
    }

    pub(super) fn bytes() -> Self {
        Self(BYTES.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both are the same apart from case and parameters.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.essence().eq_ignore_ascii_case(other.essence())
    }

    /// Whether a stream of this type consists of JSON messages.
    pub(super) fn is_json(&self) -> bool {
        self.essence().eq_ignore_ascii_case(JSON)
    }

    /// Whether a stream of this type is text, which server-sent events carry as it is.
    pub(super) fn is_text(&self) -> bool {
        let kind = self.essence().split('/').next().unwrap_or_default();
        self.is_json() || kind.eq_ignore_ascii_case("text")
    }

    fn essence(&self) -> &str {
        self.0.split(';').next().unwrap_or_default().trim()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            ttl: Some(60),
            fork: Some(ForkedAt {
                seq: 3,
                sub_offset: 1,
                life: 0,
            }),
            source: Some(SessionId::new("ds/a").unwrap()),
            ..Settings::new(ContentType::parse("text/plain; charset=utf-8").unwrap())
        }
    }

    #[test]
    fn settings_replace_what_a_fork_takes_over() {
        let inherited = Settings {
            expires_at: Some("2030-01-01T00:00:00Z".parse().unwrap()),
            last_seq: Some("7".to_owned()),
            forked: true,
            gone: true,
            ..Settings::new(ContentType::bytes())
        };
        let mut metadata = Metadata::new();
        for patch in [inherited.patch(), settings().patch()] {
            let Value::Object(patch) = patch else {
                panic!("a patch is an object")
            };
            crate::model::merge(&mut metadata, &patch);
        }
        assert_eq!(Settings::of(&metadata), settings());
    }

    #[test]
    fn a_session_that_is_no_stream_is_one_of_json() {
        for metadata in [
            json!({}),
            json!({SETTINGS: 1}),
            json!({SETTINGS: {"ttl": "x"}}),
        ] {
            let Value::Object(metadata) = metadata else {
                panic!("it is an object")
            };
            assert_eq!(Settings::of(&metadata), Settings::new(ContentType::json()));
        }
    }

    #[test]
    fn a_note_is_read_without_a_content_type() {
        let metadata = |patch| match patch {
            Value::Object(metadata) => metadata,
            _ => panic!("a patch is an object"),
        };
        let noted = Settings::of(&metadata(Settings::patch_of_seq("2")));
        assert_eq!(noted.last_seq.as_deref(), Some("2"));
        let noted = Settings::of(&metadata(Settings::patch_of_fork()));
        assert!(noted.forked && noted.content_type.is_json());
    }

    #[test]
    fn content_types_are_compared_without_case_and_parameters() {
        let parse = |text| ContentType::parse(text).unwrap();
        assert!(parse("Text/PLAIN").is_like(&parse("text/plain; charset=utf-8")));
        assert!(!parse("text/plain").is_like(&parse("text/html")));
        assert!(parse("APPLICATION/json;a=b").is_json());
        assert!(parse("text/html").is_text() && !parse("image/png").is_text());
        for bad in ["", "text", "/plain", "text/", "a b/c", "a/b/c"] {
            assert!(ContentType::parse(bad).is_err(), "{bad}");
        }
    }
}
