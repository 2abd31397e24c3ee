//! Appends that a connection's own loop answers, without hyper and the router.
//!
//! Most requests of a server are small appends in a plain form. The loop reads such a request from
//! its buffer and calls what the router would call, in the same order. With the first request in
//! another form the connection passes to hyper and the router for good, with all bytes that are not
//! answered yet. So whatever is unusual is decided there alone.
//!
//! Invariants:
//! * An answer has the status, the fields and the body that the router would give.
//! * A request is either answered here or passed on as a whole, never both.

use std::io::{self, Write};
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::request::{Parts, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use httparse::Status;
use httpdate::HttpDate;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::Instrument;

use crate::http::append::append_whole;
use crate::http::auth;
use crate::http::body;
use crate::http::budget::Share;
use crate::http::error::ApiError;
use crate::http::metrics::{Observed, Route, add_fields};
use crate::http::service::{self, Service, SessionPath};
use crate::model::{WallClock, system_clock};

/// The largest request that is answered here, in bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// The most fields of a request that is answered here.
const FIELDS_MAX: usize = 32;

/// The least room in the buffer for a read, in bytes.
const READ_BYTES: usize = 4 * 1024;

/// The lines of an answer to an append that are always the same.
static HEAD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut fields = HeaderMap::new();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    add_fields(&mut fields);
    let mut head = b"HTTP/1.1 200 OK\r\n".to_vec();
    fields
        .iter()
        .for_each(|(name, value)| put_field(&mut head, name, value));
    head
});

/// Answers appends until a request in another form comes, until `ends` resolves, or until the
/// connection ends.
///
/// Returns the bytes from which the router goes on, or `None` where the connection has ended.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    service: &Arc<Service>,
    ends: impl Future<Output = ()>,
) -> Option<BytesMut> {
    let mut connection = Connection {
        socket,
        service,
        buffer: BytesMut::new(),
        timer: Timer::after(service.config.head_wait),
        date: Date::new(),
        text: Vec::new(),
        out: Vec::new(),
    };
    let mut ends = pin!(ends);
    loop {
        let next = tokio::select! {
            biased;
            () = &mut ends => Next::Other,
            next = connection.next() => next,
        };
        let answered = match next {
            Next::Plain(request) => connection.answer(&request).await,
            Next::Other => return Some(connection.buffer),
            Next::Late => {
                let late = body::late(service.config.body_wait).into_response();
                // What comes next is the rest of the body, and no request.
                let _at_best = connection.refuse(late).await;
                return None;
            }
            Next::Nothing => return None,
        };
        if answered.is_err() {
            return None;
        }
    }
}

/// What comes next on a connection.
enum Next {
    Plain(Box<Plain>),
    /// A request in another form, or bytes that are none.
    Other,
    /// A request whose body took too long.
    Late,
    /// Its end, or no request in time.
    Nothing,
}

/// An append in the plain form.
struct Plain {
    head: Parts,
    session: Range<usize>,
    /// The place of the body in the buffer, which ends with it.
    body: Range<usize>,
}

struct Connection<'a, S> {
    socket: &'a mut S,
    service: &'a Arc<Service>,
    /// What has come and is not answered.
    buffer: BytesMut,
    timer: Timer,
    date: Date,
    /// The body of an answer.
    text: Vec<u8>,
    /// An answer.
    out: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    /// Reads until there is a request. The buffer has every byte of it, also if the call is
    /// dropped.
    async fn next(&mut self) -> Next {
        let config = &self.service.config;
        self.timer.restart(config.head_wait);
        let request = loop {
            match parsed(&self.buffer, config.body_bytes_max) {
                Parsed::Plain(request) => break request,
                Parsed::Other => return Next::Other,
                Parsed::Partial => {}
            }
            match self.read().await {
                Read::More => {}
                Read::Ended if !self.buffer.is_empty() => return Next::Other,
                Read::Ended | Read::Late => return Next::Nothing,
            }
        };
        if self.buffer.len() < request.body.end {
            self.timer.restart(config.body_wait);
        }
        while self.buffer.len() < request.body.end {
            match self.read().await {
                Read::More => {}
                Read::Ended => return Next::Other,
                Read::Late => return Next::Late,
            }
        }
        Next::Plain(request)
    }

    async fn read(&mut self) -> Read {
        self.buffer.reserve(READ_BYTES);
        tokio::select! {
            biased;
            read = self.socket.read_buf(&mut self.buffer) => match read {
                Ok(1..) => Read::More,
                Ok(0) | Err(_) => Read::Ended,
            },
            () = self.timer.over() => Read::Late,
        }
    }

    async fn answer(&mut self, request: &Plain) -> io::Result<()> {
        let metrics = Arc::clone(&self.service.metrics);
        let mut observed = Observed::begun(metrics, &request.head, Route::Append);
        self.text.clear();
        let bytes = self.buffer.get(request.body.clone()).unwrap_or_default();
        let appended = append(self.service, request, bytes, &mut self.text)
            .instrument(observed.span.clone())
            .await;
        self.buffer.advance(request.body.end);
        match appended {
            Ok(((name, value), _share)) => {
                observed.answered(200);
                drop(observed);
                self.out.clear();
                self.out.extend_from_slice(&HEAD);
                put_field(&mut self.out, &name, &value);
                self.end_head()?;
                self.send().await
            }
            Err(answer) => {
                observed.answered(answer.status().as_u16());
                drop(observed);
                self.refuse(answer).await
            }
        }
    }

    /// Sends an answer that is in memory as a whole, as those of refusals are.
    async fn refuse(&mut self, answer: Response) -> io::Result<()> {
        let (mut head, body) = answer.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        add_fields(&mut head.headers);
        self.text.clear();
        self.text.extend_from_slice(&body);
        self.out.clear();
        write!(self.out, "HTTP/1.1 {}\r\n", head.status)?;
        for (name, value) in &head.headers {
            put_field(&mut self.out, name, value);
        }
        self.end_head()?;
        self.send().await
    }

    /// Adds the fields that depend on the text and on the time, and the text.
    fn end_head(&mut self) -> io::Result<()> {
        let (length, date) = (self.text.len(), self.date.now());
        write!(self.out, "content-length: {length}\r\ndate: {date}\r\n\r\n")?;
        self.out.extend_from_slice(&self.text);
        Ok(())
    }

    async fn send(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.out).await?;
        self.socket.flush().await
    }
}

/// What came of a read.
enum Read {
    More,
    Ended,
    Late,
}

/// Appends what a request says, as the router would.
async fn append(
    service: &Service,
    request: &Plain,
    body: &[u8],
    text: &mut Vec<u8>,
) -> Result<((HeaderName, HeaderValue), Share), Response> {
    let head = &request.head;
    let refused = ApiError::into_response;
    service::check(head, &service.config).map_err(refused)?;
    let access = auth::access(&head.headers, service).map_err(refused)?;
    access.check_rate().map_err(refused)?;
    let appended = async {
        let session = head.uri.path().get(request.session.clone());
        let SessionPath(session) = SessionPath::of(session.unwrap_or_default(), &access)?;
        append_whole(service, &access, &session, &head.headers, body, text).await
    };
    appended.await.map_err(|error| {
        let answer = error.into_response();
        if access.is_bound() {
            auth::hidden(answer)
        } else {
            answer
        }
    })
}

enum Parsed {
    Plain(Box<Plain>),
    /// More bytes are needed to tell.
    Partial,
    Other,
}

fn parsed(buffer: &[u8], body_bytes_max: usize) -> Parsed {
    if buffer.is_empty() {
        return Parsed::Partial;
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(buffer) {
        Ok(Status::Complete(length)) => plain(&request, length, body_bytes_max)
            .map_or(Parsed::Other, |plain| Parsed::Plain(Box::new(plain))),
        Ok(Status::Partial) if buffer.len() < REQUEST_BYTES_MAX => Parsed::Partial,
        Ok(Status::Partial) | Err(_) => Parsed::Other,
    }
}

/// Returns the request whose head has this length, if it is an append in the plain form.
fn plain(
    request: &httparse::Request<'_, '_>,
    length: usize,
    body_bytes_max: usize,
) -> Option<Plain> {
    let (Some("POST"), Some(1), Some(path)) = (request.method, request.version, request.path)
    else {
        return None;
    };
    let (before, behind) = ("/v1/sessions/", "/events");
    let session = path.strip_prefix(before)?.strip_suffix(behind)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if session.is_empty() || !session.bytes().all(is_plain) {
        return None;
    }
    let headers = headers(request.headers)?;
    let body_bytes = content_length(&headers)?;
    if body_bytes > body_bytes_max || length + body_bytes > REQUEST_BYTES_MAX {
        return None;
    }
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = Method::POST;
    head.uri = Uri::try_from(path).ok()?;
    head.headers = headers;
    Some(Plain {
        head,
        session: before.len()..path.len() - behind.len(),
        body: length..length + body_bytes,
    })
}

fn headers(fields: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Some(headers)
}

/// Returns the length of a body, if nothing else says where the request ends and what follows it.
fn content_length(headers: &HeaderMap) -> Option<usize> {
    let others = [EXPECT, TRANSFER_ENCODING, UPGRADE];
    if others.iter().any(|other| headers.contains_key(other)) {
        return None;
    }
    let mut connection = headers.get_all(CONNECTION).iter();
    if !connection.all(|option| option.as_bytes().eq_ignore_ascii_case(b"keep-alive")) {
        return None;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (Some(length), None) = (lengths.next(), lengths.next()) else {
        return None;
    };
    let length = length.to_str().ok()?;
    let is_number = length.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| length.parse().ok()).flatten()
}

fn put_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A time limit that often starts anew. The runtime's timer is set again only once it goes off.
struct Timer {
    ends: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    fn after(wait: Duration) -> Self {
        let ends = Instant::now() + wait;
        Self {
            ends,
            sleep: Box::pin(sleep_until(ends)),
        }
    }

    fn restart(&mut self, wait: Duration) {
        self.ends = Instant::now() + wait;
        if self.ends < self.sleep.deadline() {
            self.sleep.as_mut().reset(self.ends);
        }
    }

    /// Resolves when the time is over.
    async fn over(&mut self) {
        loop {
            self.sleep.as_mut().await;
            if self.sleep.deadline() >= self.ends {
                return;
            }
            self.sleep.as_mut().reset(self.ends);
        }
    }
}

/// The text of the field `Date`, which changes once a second.
struct Date {
    clock: WallClock,
    second: u64,
    text: String,
}

impl Date {
    fn new() -> Self {
        Self {
            clock: system_clock(),
            second: 0,
            text: String::new(),
        }
    }

    fn now(&mut self) -> &str {
        let now = (self.clock)();
        let second = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text = HttpDate::from(now).to_string();
        }
        &self.text
    }
}
