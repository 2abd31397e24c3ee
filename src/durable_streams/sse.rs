//! The server-sent events of a stream: data as it is read, and behind it where the client stands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::unfold;
use futures_util::{FutureExt, Stream as Frames, StreamExt};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use crate::durable_streams::cursor::cursor;
use crate::durable_streams::message::push;
use crate::durable_streams::stream::{Stream, Streams};
use crate::http::Share;
use crate::model::{Event, Result, Seq};
use crate::read::{AsyncEventStream, StreamItem};

/// After so long a client connects again, so that a proxy can serve others from one connection.
const LIFE: Duration = Duration::from_mins(1);

/// The size at which data is sent, although there is more to read.
const DATA_BYTES: usize = 64 * 1024;

/// The memory that data takes for each of its bytes: the events, the data, and its lines.
const COPIES: usize = 4;

/// A comment, which clients pass over.
const HEARTBEAT: &[u8] = b":\n\n";

/// A stream that is followed.
pub(super) struct Tail {
    streams: Arc<Streams>,
    stream: Stream,
    events: AsyncEventStream,
    /// What was looked at ahead of its turn.
    ahead: Option<Result<StreamItem>>,
    /// Events that were read and not sent. The last ones wait for the rest of a character.
    unsent: VecDeque<Event>,
    /// The last event that was sent.
    sent: Seq,
    has_begun: bool,
    cursor: Option<String>,
    ends: Instant,
    /// The memory of the last frame.
    share: Option<Share>,
}

/// How far a frame takes the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// There is more.
    Behind,
    UpToDate,
    Closed,
}

impl Tail {
    pub(super) fn new(
        streams: Arc<Streams>,
        stream: Stream,
        sent: Seq,
        events: AsyncEventStream,
        cursor: Option<String>,
    ) -> Self {
        Self {
            streams,
            stream,
            events,
            ahead: None,
            unsent: VecDeque::new(),
            sent,
            has_begun: false,
            cursor,
            ends: Instant::now() + LIFE,
            share: None,
        }
    }

    /// Returns what is sent, until the stream is closed or deleted, or the client is to connect
    /// again.
    pub(super) fn frames(self) -> impl Frames<Item = Bytes> + Send {
        unfold(Some(self), |tail| async {
            let mut tail = tail?;
            // This frame is polled only once nearly all of the last one is sent.
            tail.share = None;
            match tail.next().await? {
                (frame, Reach::Closed) => Some((frame, None)),
                (frame, _) => Some((frame, Some(tail))),
            }
        })
    }

    /// Returns the next frame, or `None` at the end.
    async fn next(&mut self) -> Option<(Bytes, Reach)> {
        let heartbeat = self.streams.service.config.heartbeat;
        let mut bytes = 0;
        loop {
            let until = self.ends.min(Instant::now() + heartbeat);
            let Ok(item) = timeout_at(until, self.item()).await else {
                let is_over = Instant::now() >= self.ends;
                return (!is_over).then(|| (Bytes::from_static(HEARTBEAT), Reach::Behind));
            };
            let reach = match item? {
                Ok(StreamItem::Event(event)) => {
                    bytes += event.data.len();
                    self.unsent.push_back(event);
                    if bytes < DATA_BYTES {
                        continue;
                    }
                    Reach::Behind
                }
                Ok(StreamItem::CaughtUp) if self.is_closed_next() => Reach::Closed,
                Ok(StreamItem::CaughtUp) => Reach::UpToDate,
                Ok(StreamItem::Closed) => Reach::Closed,
                Ok(StreamItem::Change(_)) => continue,
                // The client connects again and gets an answer with the reason.
                Ok(StreamItem::Deleted) | Err(_) => return None,
            };
            if reach == Reach::Closed && !self.is_live() {
                return None;
            }
            bytes = 0;
            if let Some(frame) = self.frame(reach).await {
                return Some((frame, reach));
            }
        }
    }

    async fn item(&mut self) -> Option<Result<StreamItem>> {
        match self.ahead.take() {
            Some(item) => Some(item),
            None => self.events.next().await,
        }
    }

    /// Whether the stream was closed behind what was read.
    fn is_closed_next(&mut self) -> bool {
        self.ahead = self.events.next().now_or_never().flatten();
        matches!(self.ahead, Some(Ok(StreamItem::Closed)))
    }

    /// Whether the stream is still there. The deletion of one that was forked closes its session.
    fn is_live(&self) -> bool {
        let read = Stream::read(self.streams.log(), &self.stream.info.id);
        let generation = self.stream.info.generation;
        read.is_ok_and(|read| {
            read.is_some_and(|now| now.info.generation == generation && !now.settings.gone)
        })
    }

    /// Makes the frame of what was read. `None` when there is nothing to say.
    async fn frame(&mut self, reach: Reach) -> Option<Bytes> {
        let count = match reach {
            Reach::Closed => self.unsent.len(),
            _ => self.whole(),
        };
        if count == 0 && self.has_begun && reach != Reach::Closed {
            return None;
        }
        let content_type = &self.stream.settings.content_type;
        let is_json = content_type.is_json();
        let mut data = Vec::new();
        let bytes: usize = self
            .unsent
            .iter()
            .take(count)
            .map(|event| event.data.len())
            .sum();
        if bytes >= DATA_BYTES {
            let share = self
                .streams
                .service
                .budget
                .share_in_time(bytes.saturating_mul(COPIES));
            self.share = Some(share.await);
        }
        if is_json {
            data.push(b'[');
        }
        for event in self.unsent.drain(..count) {
            push(&mut data, &event, content_type);
            self.sent = event.seq;
        }
        if is_json {
            data.push(b']');
        }
        let mut frame = Vec::with_capacity(data.len() + 256);
        if count > 0 {
            self.push_data(&mut frame, &data);
        }
        // Data that waits for the rest of a character is there, and the client does not have it.
        let reach = if self.unsent.is_empty() {
            reach
        } else {
            Reach::Behind
        };
        push_event(
            &mut frame,
            "control",
            self.control(reach).to_string().as_bytes(),
        );
        self.has_begun = true;
        Some(frame.into())
    }

    fn push_data(&self, frame: &mut Vec<u8>, data: &[u8]) {
        if self.stream.settings.content_type.is_text() {
            push_event(frame, "data", data);
        } else {
            push_event(frame, "data", BASE64_STANDARD.encode(data).as_bytes());
        }
    }

    fn control(&self, reach: Reach) -> Value {
        let mut control = Map::new();
        let next = self.stream.offset(self.sent).to_string();
        control.insert("streamNextOffset".to_owned(), next.into());
        if reach == Reach::Closed {
            control.insert("streamClosed".to_owned(), true.into());
        } else {
            let next = cursor(self.streams.log().now_ms(), self.cursor.as_deref());
            control.insert("streamCursor".to_owned(), next.to_string().into());
        }
        if reach != Reach::Behind {
            control.insert("upToDate".to_owned(), true.into());
        }
        Value::Object(control)
    }

    /// Returns how many of the unsent events end with a whole character. Text may be appended in
    /// parts that do not, and each frame is text by itself.
    fn whole(&self) -> usize {
        let content_type = &self.stream.settings.content_type;
        if !content_type.is_text() || content_type.is_json() {
            return self.unsent.len();
        }
        whole_parts(self.unsent.iter().map(|event| &*event.data))
    }
}

/// Returns how many parts of a text end with a whole character. The last one may wait for the rest
/// of its last character. Before others, what does not go on is no character.
fn whole_parts<'a>(parts: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut parts = parts.enumerate().peekable();
    let (mut last, mut whole) = (Vec::new(), 0);
    while let Some((place, part)) = parts.next() {
        let end = part.len().saturating_sub(4);
        last.extend_from_slice(part.get(end..).unwrap_or_default());
        let begin = last.len().saturating_sub(4);
        last.drain(..begin);
        let may_go_on = parts
            .peek()
            .is_none_or(|(_place, next)| next.first().is_some_and(|byte| byte & 0xC0 == 0x80));
        if !(may_go_on && ends_in_a_character(&last)) {
            whole = place + 1;
        }
    }
    whole
}

/// Whether bytes end in the middle of a character of UTF-8. Bytes that are no text do not.
fn ends_in_a_character(bytes: &[u8]) -> bool {
    let from_end = bytes
        .iter()
        .rev()
        .take(4)
        .position(|byte| byte & 0xC0 != 0x80);
    let Some(back) = from_end else { return false };
    let Some(lead) = bytes.iter().rev().nth(back) else {
        return false;
    };
    let length = match lead {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    back + 1 < length
}

/// Adds a server-sent event. Each line of the data is a line of it, so that no data ends the event.
fn push_event(frame: &mut Vec<u8>, name: &str, data: &[u8]) {
    frame.extend_from_slice(b"event: ");
    frame.extend_from_slice(name.as_bytes());
    let mut rest = Some(data);
    while let Some(data) = rest {
        let end = data.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (line, after) = match end {
            Some(end) => {
                let (line, after) = data.split_at(end);
                let ending = if after.starts_with(b"\r\n") { 2 } else { 1 };
                (line, after.get(ending..))
            }
            None => (data, None),
        };
        frame.extend_from_slice(b"\ndata:");
        if line.starts_with(b" ") {
            // A client takes one space away.
            frame.push(b' ');
        }
        frame.extend_from_slice(line);
        rest = after;
    }
    frame.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_data_ends_its_event() {
        for (data, lines) in [
            ("", "\ndata:"),
            ("a", "\ndata:a"),
            ("a\n", "\ndata:a\ndata:"),
            (
                "a\r\n\r\nevent: x\rb",
                "\ndata:a\ndata:\ndata:event: x\ndata:b",
            ),
            (" a", "\ndata:  a"),
        ] {
            let mut frame = Vec::new();
            push_event(&mut frame, "data", data.as_bytes());
            let frame = String::from_utf8(frame).unwrap();
            assert_eq!(frame, format!("event: data{lines}\n\n"));
        }
    }

    #[test]
    fn only_the_rest_of_a_character_is_waited_for() {
        let whole = |parts: &[&[u8]]| whole_parts(parts.iter().copied());
        assert_eq!(whole(&[b"a\xE2", b"\x82", b"\xACb", b"c\xE2"]), 3);
        assert_eq!(whole(&[b"a", b"\xE2", b"\x82"]), 1);
        // These are no text: what follows does not end the character.
        assert_eq!(whole(&[&b"a\xE2"[..]; 1000]), 999);
        assert_eq!(whole(&[b"\xE2", b"", b"\xE2"]), 2);
        assert_eq!(whole(&[&b"\x80"[..]; 1000]), 1000);
        assert_eq!(whole(&[]), 0);
    }

    #[test]
    fn a_part_of_a_character_is_told_from_a_whole_one() {
        for text in ["a", "é", "€", "😀"] {
            let bytes = text.as_bytes();
            for end in 1..bytes.len() {
                assert!(ends_in_a_character(&bytes[..end]), "{text} {end}");
            }
            assert!(!ends_in_a_character(bytes), "{text}");
        }
        for bytes in [&b""[..], b"\x80", b"\x80\x80\x80\x80", b"\xFF", b"a\x80"] {
            assert!(!ends_in_a_character(bytes), "{bytes:?}");
        }
    }
}
