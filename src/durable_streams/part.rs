//! Parts of a stream: what answers a read.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::durable_streams::headers::{CLOSED, NEXT_OFFSET, TRUE, UP_TO_DATE};
use crate::durable_streams::message::push;
use crate::durable_streams::offset::{Offset, Start};
use crate::durable_streams::settings::ContentType;
use crate::durable_streams::stream::{Stream, Streams, gone, unknown};
use crate::http::{ApiError, Share, blocking};
use crate::log::SessionLog;
use crate::model::{Event, Seq, SessionId};
use crate::read::PageRequest;

/// The seconds for which a cache may answer with a part of a stream, and in which it may still do
/// so while it asks again.
const FRESH_MAX: u64 = 60;
const STALE_MAX: u64 = 300;

/// The size of the pieces of an answer.
const PIECE_BYTES: usize = 64 * 1024;

/// The memory that a read takes for each byte of its answer: the events, and the body made from
/// them.
const COPIES: usize = 3;

/// A part of a stream.
pub(super) struct Part {
    pub stream: Stream,
    body: Pieces,
    share: Share,
    pub first: Offset,
    pub next: Offset,
    /// Whether it ends where the stream does.
    pub is_last: bool,
    redacted: u64,
}

impl Part {
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.next
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_last && self.stream.info.closed
    }

    /// A tag of what is in it. It changes when the stream is closed, when an event is redacted, and
    /// with a stream of the same name.
    fn tag(&self) -> String {
        let redacted = if self.redacted == 0 {
            String::new()
        } else {
            format!(":r{}", self.redacted)
        };
        let closed = if self.is_closed() { ":c" } else { "" };
        let made = self.stream.info.generation;
        format!("\"{made}:{}:{}{redacted}{closed}\"", self.first, self.next)
    }

    /// What caches may do. The end of an open stream is asked for each time.
    fn cache_control(&self, seconds_left: Option<u64>) -> String {
        if self.is_last && !self.stream.info.closed {
            return "private, no-cache".to_owned();
        }
        let fresh = seconds_left.map_or(FRESH_MAX, |left| left.min(FRESH_MAX));
        let stale = seconds_left.map_or(STALE_MAX, |left| (left - fresh).min(STALE_MAX));
        format!("private, max-age={fresh}, stale-while-revalidate={stale}")
    }

    /// Puts the headers that say where it ends.
    pub(super) fn describe(&self, headers: &mut HeaderMap) {
        headers.insert(NEXT_OFFSET, self.next.header());
        if self.is_last {
            headers.insert(UP_TO_DATE, TRUE);
        }
        if self.is_closed() {
            headers.insert(CLOSED, TRUE);
        }
    }
}

/// Answers with a part of a stream, or that the client has it.
pub(super) fn answer(streams: &Streams, part: Part, start: Start, asked: &HeaderMap) -> Response {
    let mut headers = HeaderMap::new();
    part.describe(&mut headers);
    let tag = (start != Start::Now).then(|| part.tag());
    let control = match &tag {
        Some(_tag) => part.cache_control(streams.seconds_left(&part.stream)),
        None => "no-store".to_owned(),
    };
    let control = HeaderValue::try_from(control).expect("words and digits are a header value");
    headers.insert(CACHE_CONTROL, control);
    // A browser keeps answers for the page, whichever key it has by then.
    headers.insert(VARY, HeaderValue::from_static("authorization"));
    if let Some(tag) = tag {
        let is_known = has_tag(asked, &tag);
        let tag = HeaderValue::try_from(tag).expect("digits are a header value");
        headers.insert(ETAG, tag);
        if is_known {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
    }
    headers.insert(CONTENT_TYPE, part.stream.settings.content_type.header());
    let body = part.share.body_of(part.body.pieces);
    (headers, body).into_response()
}

fn has_tag(asked: &HeaderMap, tag: &str) -> bool {
    let values = asked.get_all(IF_NONE_MATCH).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|asked| asked == "*" || asked.strip_prefix("W/").unwrap_or(asked) == tag)
}

impl Streams {
    /// Reads a part of a stream, and notes the use of it.
    pub(super) async fn part(
        self: &Arc<Self>,
        session: &SessionId,
        start: Start,
    ) -> Result<Part, ApiError> {
        let bytes_max = self.service.config.page_bytes_max;
        let share = self
            .service
            .budget
            .share(bytes_max.saturating_mul(COPIES))
            .await?;
        let (streams, session) = (Arc::clone(self), session.clone());
        blocking(move || {
            let stream = streams.live(&session)?;
            streams.note_use(&stream);
            let after = stream.seq_of(start)?;
            let mut part = read_part(streams.log(), &stream, after, bytes_max, share)?;
            // An event may come between the two looks that make a part.
            while part.is_empty() && !part.is_last {
                part = read_part(streams.log(), &stream, after, bytes_max, part.share)?;
            }
            Ok(part)
        })
        .await
    }
}

/// Reads the events after a seq, up to the one that reaches `bytes_max`.
fn read_part(
    log: &SessionLog,
    stream: &Stream,
    after: Seq,
    bytes_max: usize,
    share: Share,
) -> Result<Part, ApiError> {
    let session = &stream.info.id;
    let (mut body, mut next, mut redacted) = (Pieces::default(), after, 0);
    let content_type = &stream.settings.content_type;
    if content_type.is_json() {
        body.last().push(b'[');
    }
    let limit = log.limits().page_events_max;
    loop {
        let bytes_left = bytes_max.saturating_sub(body.bytes());
        let request = PageRequest::new()
            .after(next)
            .limit(limit)
            .bytes_max(bytes_left);
        let page = log.list(session, request)?;
        for event in &page.items {
            redacted += u64::from(event.redacted);
            body.push(event, content_type);
            next = event.seq;
        }
        if !page.has_more || body.bytes() >= bytes_max {
            break;
        }
    }
    if content_type.is_json() {
        body.last().push(b']');
    }
    // Whether this is the end is told by the stream as it is behind the events that were read.
    let now = Stream::read(log, session)?.ok_or_else(|| unknown(session))?;
    if now.info.generation != stream.info.generation {
        return Err(unknown(session));
    }
    if now.settings.gone {
        return Err(gone(session));
    }
    let stream = now;
    Ok(Part {
        first: stream.offset(after),
        next: stream.offset(next),
        is_last: next == stream.info.last,
        body,
        share,
        redacted,
        stream,
    })
}

/// The text of a part, in pieces. Memory of their size is used again, while the operating system
/// clears that of a text as large as a part for each one.
#[derive(Default)]
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    /// The bytes of all pieces but the last.
    bytes_before: usize,
}

impl Pieces {
    /// Adds what a stream shows of an event.
    fn push(&mut self, event: &Event, of: &ContentType) {
        let last = self.last();
        // A bracket alone is no piece: the next message would take it for another message.
        if last.len() > 1 && last.len() + event.data.len() > PIECE_BYTES {
            self.begin(Vec::with_capacity(PIECE_BYTES));
        }
        push(self.last(), event, of);
    }

    /// The piece that is added to.
    fn last(&mut self) -> &mut Vec<u8> {
        if self.pieces.is_empty() {
            self.begin(Vec::new());
        }
        self.pieces.back_mut().expect("a piece was begun")
    }

    fn begin(&mut self, piece: Vec<u8>) {
        self.bytes_before = self.bytes();
        self.pieces.push_back(piece);
    }

    fn bytes(&self) -> usize {
        self.bytes_before + self.pieces.back().map_or(0, Vec::len)
    }
}
