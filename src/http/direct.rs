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
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
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

/// The most memory for a text that a connection keeps until its next answer, in bytes.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// How long a body may follow its head. The router decides on a slower one, which may lack a key.
const BODY_WAIT: Duration = Duration::from_secs(1);

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

/// Appends of another protocol, which the loop answers too.
pub(crate) trait Appends: Send + Sync {
    /// How the router knows them.
    fn route(&self) -> &Arc<str>;

    /// Returns the part of such an append's path that says what it is to.
    fn place_in(&self, path: &str) -> Option<Range<usize>>;

    /// Answers one to what that part says, as the router would behind the checks of every head.
    fn answer<'a>(
        &'a self,
        place: &'a str,
        headers: &'a HeaderMap,
        body: &'a [u8],
    ) -> Answering<'a>;
}

/// An answer under way. It is in memory as a whole.
pub(crate) type Answering<'a> = Pin<Box<dyn Future<Output = Response> + Send + 'a>>;

/// Answers appends until a request in another form comes, until `ends` resolves, or until the
/// connection ends.
///
/// Returns the bytes from which the router goes on, or `None` where the connection has ended.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    service: &Arc<Service>,
    appends: Option<&dyn Appends>,
    ends: impl Future<Output = ()>,
) -> Option<BytesMut> {
    let mut connection = Connection::new(socket, service, appends);
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
            Next::Nothing => return None,
        };
        if answered.is_err() {
            return None;
        }
    }
}

/// What comes next on a connection.
enum Next<'a> {
    Plain(Box<Plain<'a>>),
    /// A request in another form or with a slow body, or bytes that are none.
    Other,
    /// Its end, or no request in time.
    Nothing,
}

/// An append in the plain form.
struct Plain<'a> {
    head: Parts,
    /// The other protocol that it is of.
    of: Option<&'a dyn Appends>,
    /// The place of its session in its path, or what the other protocol takes from it.
    place: Range<usize>,
    /// The place of the body in the buffer, which ends with it.
    body: Range<usize>,
}

struct Connection<'a, S> {
    socket: &'a mut S,
    service: &'a Arc<Service>,
    appends: Option<&'a dyn Appends>,
    /// What has come and is not answered.
    buffer: BytesMut,
    timer: Timer,
    date: Date,
    /// The body of an answer.
    text: Vec<u8>,
    /// An answer.
    out: Vec<u8>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Connection<'a, S> {
    fn new(socket: &'a mut S, service: &'a Arc<Service>, appends: Option<&'a dyn Appends>) -> Self {
        Self {
            socket,
            service,
            appends,
            buffer: BytesMut::new(),
            timer: Timer::after(service.config.head_wait),
            date: Date::new(),
            text: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Reads until there is a request. The buffer has every byte of it, also if the call is
    /// dropped.
    async fn next(&mut self) -> Next<'a> {
        let config = &self.service.config;
        self.timer.restart(config.head_wait);
        let mut seen = 0;
        let request = loop {
            match parsed(&self.buffer, seen, config.body_bytes_max, self.appends) {
                Parsed::Plain(request) => break request,
                Parsed::Other => return Next::Other,
                Parsed::Partial => seen = self.buffer.len(),
            }
            match self.read().await {
                Read::More => {}
                Read::Ended if !self.buffer.is_empty() => return Next::Other,
                Read::Ended | Read::Late => return Next::Nothing,
            }
        };
        if self.buffer.len() < request.body.end {
            self.timer.restart(BODY_WAIT);
        }
        while self.buffer.len() < request.body.end {
            match self.read().await {
                Read::More => {}
                Read::Ended | Read::Late => return Next::Other,
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

    async fn answer(&mut self, request: &Plain<'_>) -> io::Result<()> {
        let metrics = Arc::clone(&self.service.metrics);
        let route = request.of.map_or(Route::Append, |other| {
            Route::Other(Arc::clone(other.route()))
        });
        let mut observed = Observed::begun(metrics, &request.head, route);
        self.text.clear();
        let bytes = self.buffer.get(request.body.clone()).unwrap_or_default();
        let head = &request.head;
        let place = head.uri.path().get(request.place.clone());
        let place = place.unwrap_or_default();
        // An answer that is not that of a stored append comes as a whole, in the error.
        let appended = async {
            service::check(head, &self.service.config).map_err(ApiError::into_response)?;
            match request.of {
                Some(other) => Err(other.answer(place, &head.headers, bytes).await),
                None => append(self.service, place, &head.headers, bytes, &mut self.text).await,
            }
        };
        let appended = appended.instrument(observed.span.clone()).await;
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
                self.send_whole(answer).await
            }
        }
    }

    /// Sends an answer that is in memory as a whole, as those of refusals are.
    async fn send_whole(&mut self, answer: Response) -> io::Result<()> {
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
        if head.status == StatusCode::NO_CONTENT {
            self.end_head_without_body()?;
        } else {
            self.end_head()?;
        }
        self.send().await
    }

    fn end_head_without_body(&mut self) -> io::Result<()> {
        write!(self.out, "date: {}\r\n\r\n", self.date.now())
    }

    /// Adds the fields that depend on the text and on the time, and the text.
    fn end_head(&mut self) -> io::Result<()> {
        write!(self.out, "content-length: {}\r\n", self.text.len())?;
        self.end_head_without_body()?;
        self.out.extend_from_slice(&self.text);
        Ok(())
    }

    async fn send(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.out).await?;
        self.socket.flush().await?;
        // A connection may stay open for long.
        for text in [&mut self.text, &mut self.out] {
            text.clear();
            text.shrink_to(KEPT_BYTES_MAX);
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = BytesMut::new();
        }
        Ok(())
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
    session: &str,
    headers: &HeaderMap,
    body: &[u8],
    text: &mut Vec<u8>,
) -> Result<((HeaderName, HeaderValue), Share), Response> {
    let refused = ApiError::into_response;
    let access = auth::access(headers, service).map_err(refused)?;
    access.check_rate().map_err(refused)?;
    let appended = async {
        let SessionPath(session) = SessionPath::of(session, &access)?;
        append_whole(service, &access, &session, headers, body, text).await
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

enum Parsed<'a> {
    Plain(Box<Plain<'a>>),
    /// More bytes are needed to tell.
    Partial,
    Other,
}

/// Parses the request at the start of `buffer`, whose first `seen` bytes were partial before.
fn parsed<'a>(
    buffer: &[u8],
    seen: usize,
    body_bytes_max: usize,
    appends: Option<&'a dyn Appends>,
) -> Parsed<'a> {
    // A head that comes byte by byte is not parsed with each.
    let is_same = seen > 0 && !ends_head(buffer, seen) && buffer.len() < REQUEST_BYTES_MAX;
    if buffer.is_empty() || is_same {
        return Parsed::Partial;
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(buffer) {
        Ok(Status::Complete(length)) => plain(&request, length, body_bytes_max, appends)
            .map_or(Parsed::Other, |plain| Parsed::Plain(Box::new(plain))),
        Ok(Status::Partial) if buffer.len() < REQUEST_BYTES_MAX => Parsed::Partial,
        Ok(Status::Partial) | Err(_) => Parsed::Other,
    }
}

/// Whether one of the bytes behind `seen` may end a head: it ends an empty line.
fn ends_head(buffer: &[u8], seen: usize) -> bool {
    let new = buffer.get(seen.saturating_sub(2)..).unwrap_or_default();
    let ends = |end: &[u8]| new.windows(end.len()).any(|bytes| bytes == end);
    ends(b"\n\r\n") || ends(b"\n\n")
}

/// Returns the request whose head has this length, if it is an append in the plain form.
fn plain<'a>(
    request: &httparse::Request<'_, '_>,
    length: usize,
    body_bytes_max: usize,
    appends: Option<&'a dyn Appends>,
) -> Option<Plain<'a>> {
    let (Some("POST"), Some(1), Some(path)) = (request.method, request.version, request.path)
    else {
        return None;
    };
    let (of, place) = match session_in(path) {
        Some(session) => (None, session),
        None => (appends, appends?.place_in(path)?),
    };
    let named = path.get(place.clone())?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut bytes = named.bytes();
    if named.is_empty() || !bytes.all(|byte| is_plain(byte) || byte == b'/' && of.is_some()) {
        return None;
    }
    let headers = headers(request.headers)?;
    let body_bytes = content_length(&headers)?;
    let room = REQUEST_BYTES_MAX.checked_sub(length)?;
    if body_bytes > body_bytes_max.min(room) {
        return None;
    }
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = Method::POST;
    head.uri = Uri::try_from(path).ok()?;
    head.headers = headers;
    Some(Plain {
        head,
        of,
        place,
        body: length..length + body_bytes,
    })
}

/// Returns the place of the session in the path of an append.
fn session_in(path: &str) -> Option<Range<usize>> {
    let (before, behind) = ("/v1/sessions/", "/events");
    let rest = path.strip_prefix(before)?.strip_suffix(behind)?;
    Some(before.len()..before.len() + rest.len())
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;
    use crate::http::config::Config;
    use crate::log::SessionLog;

    const WAIT: Duration = Duration::from_secs(7);

    /// A client whose bytes come in these pieces, each after a moment.
    #[derive(Default)]
    struct Client {
        pieces: VecDeque<Vec<u8>>,
        /// Whether the next piece is there.
        is_there: bool,
        /// Whether it sends no end behind them.
        stays: bool,
        answers: Vec<u8>,
    }

    impl Client {
        fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
            Self {
                pieces: pieces.into_iter().map(<[u8]>::to_vec).collect(),
                ..Self::default()
            }
        }

        fn answers(&self) -> usize {
            let answers = String::from_utf8_lossy(&self.answers);
            let ok = answers.matches("HTTP/1.1 200 OK\r\n").count();
            assert_eq!(ok, answers.matches("HTTP/1.1").count(), "{answers}");
            ok
        }
    }

    impl AsyncRead for Client {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.pieces.is_empty() && self.stays {
                return Poll::Pending;
            }
            self.is_there = !self.is_there;
            if self.is_there {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(piece) = self.pieces.pop_front() {
                let (now, later) = piece.split_at(piece.len().min(buf.remaining()));
                buf.put_slice(now);
                if !later.is_empty() {
                    self.pieces.push_front(later.to_vec());
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Client {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.answers.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Scene {
        service: Arc<Service>,
        _folder: tempfile::TempDir,
    }

    impl Scene {
        fn new(config: Config) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let log = SessionLog::open(folder.path()).unwrap();
            Self {
                service: Arc::new(Service::new(log, config)),
                _folder: folder,
            }
        }

        fn events(&self) -> u64 {
            self.service.log.stats().events
        }

        /// Serves the client until `ends`. Returns how many requests were answered, and what the
        /// router gets: what was read, and what was not.
        async fn serve(
            &self,
            client: &mut Client,
            ends: impl Future<Output = ()>,
        ) -> (usize, Option<Vec<u8>>) {
            let rest = serve(client, &self.service, None, ends).await;
            let unread = || client.pieces.iter().flatten().copied();
            let rest = rest.map(|read| read.into_iter().chain(unread()).collect());
            (client.answers(), rest)
        }
    }

    fn append() -> Vec<u8> {
        let body = r#"{"events":[{"type":"user.message","content":[]}]}"#;
        format!(
            "POST /v1/sessions/s/events HTTP/1.1\r\nHost: x\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    const OTHER: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

    #[tokio::test]
    async fn a_request_in_two_pieces_or_byte_by_byte_is_answered_once() {
        let (scene, request) = (Scene::new(Config::open()), append());
        let whole = [b"\r\n".to_vec(), request.clone(), request].concat();
        let mut stored = 0;
        let mut check = async |mut client: Client| {
            let served = scene.serve(&mut client, pending()).await;
            stored += 2;
            assert_eq!((served, scene.events()), ((2, None), stored));
        };
        for cut in 1..whole.len() {
            check(Client::of(<[_; 2]>::from(whole.split_at(cut)))).await;
        }
        check(Client::of(whole.chunks(1))).await;
    }

    #[tokio::test]
    async fn what_is_no_plain_append_is_passed_on_with_every_byte_however_it_comes() {
        let (scene, request) = (Scene::new(Config::open()), append());
        let whole = [&*request, OTHER, &*request].concat();
        for cut in 1..whole.len() {
            let mut client = Client::of(<[_; 2]>::from(whole.split_at(cut)));
            let (answered, rest) = scene.serve(&mut client, pending()).await;
            assert_eq!(answered, 1, "{cut}");
            assert_eq!(rest.as_deref(), whole.get(request.len()..), "{cut}");
        }
        let mut client = Client::of(whole.chunks(1));
        let (answered, rest) = scene.serve(&mut client, pending()).await;
        assert_eq!((answered, rest.as_deref()), (1, whole.get(request.len()..)));
    }

    #[tokio::test]
    async fn a_request_that_ends_too_early_is_passed_on_and_stores_nothing() {
        let (scene, request) = (Scene::new(Config::open()), append());
        for end in 1..request.len() {
            let sent = request.get(..end).unwrap();
            let mut client = Client::of([sent]);
            let served = scene.serve(&mut client, pending()).await;
            assert_eq!(served, (0, Some(sent.to_vec())));
        }
        let served = scene.serve(&mut Client::default(), pending()).await;
        assert_eq!((served, scene.events()), ((0, None), 0));
    }

    /// The end comes at each point at which the connection waits.
    #[tokio::test]
    async fn at_the_end_each_request_is_either_answered_or_passed_on() {
        let (scene, request) = (Scene::new(Config::open()), append());
        let whole = [&*request, &*request].concat();
        let mut stored = 0;
        for polls in 0.. {
            let mut left: usize = polls;
            let ends = std::future::poll_fn(|_context| {
                let is_over = left == 0;
                left = left.saturating_sub(1);
                if is_over {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            let mut client = Client::of(whole.chunks(3));
            let (answered, rest) = scene.serve(&mut client, ends).await;
            stored += answered as u64;
            assert_eq!(scene.events(), stored, "{polls}");
            let Some(rest) = rest else {
                assert_eq!(answered, 2);
                assert!(polls > whole.len() / 3, "it never ended before");
                break;
            };
            let unanswered = whole.get(answered * request.len()..);
            assert_eq!(Some(&*rest), unanswered, "{polls}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_waited_for_and_a_body_is_passed_on_when_it_is_slow() {
        let scene = Scene::new(Config::open().head_wait(WAIT).body_wait(Duration::MAX));
        let request = append();
        let body = request.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        let cut = |end: usize| request.get(..end).unwrap_or_default();
        let slow = request.len() - 1;
        for (end, waited, is_passed_on) in [
            (0, WAIT, false),
            (1, WAIT, false),
            (body - 1, WAIT, false),
            (body, BODY_WAIT, true),
            (slow, BODY_WAIT, true),
        ] {
            let sent = Some(cut(end)).filter(|sent| !sent.is_empty());
            let mut client = Client::of(sent);
            client.stays = true;
            let began = Instant::now();
            let (answered, rest) = scene.serve(&mut client, pending()).await;
            let passed_on = is_passed_on.then_some(cut(end));
            assert_eq!((answered, rest.as_deref()), (0, passed_on), "{end}");
            // A timer goes off at a whole millisecond.
            assert_eq!(began.elapsed().as_secs(), waited.as_secs(), "{end}");
        }
    }

    /// With no limit of a body's length there is still one of what is answered here.
    #[test]
    fn a_length_that_no_request_can_have_is_passed_on() {
        for (length, is_plain) in [
            ("0", true),
            ("16", true),
            ("16000", true),
            ("16384", false),
            ("18446744073709551615", false),
            ("18446744073709551616", false),
            ("+1", false),
            ("-1", false),
            ("1 1", false),
            ("1, 1", false),
            ("0x1", false),
            ("", false),
        ] {
            let head =
                format!("POST /v1/sessions/s/events HTTP/1.1\r\nContent-Length: {length}\r\n\r\n");
            let parsed = parsed(head.as_bytes(), 0, usize::MAX, None);
            assert_eq!(matches!(parsed, Parsed::Plain(_)), is_plain, "{length:?}");
            assert!(!matches!(parsed, Parsed::Partial), "{length:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_waits_keeps_little_memory() {
        let scene = Scene::new(Config::open());
        let events = [r#"{"type":"user.message","content":[]}"#; 400].join(",");
        let body = format!(r#"{{"events":[{events}]}}"#);
        let large = format!(
            "POST /v1/sessions/s/events HTTP/1.1\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = Client::of([large.as_bytes()]);
        let mut connection = Connection::new(&mut client, &scene.service, None);
        let Next::Plain(request) = connection.next().await else {
            panic!("it is plain");
        };
        connection.answer(&request).await.unwrap();
        let kept = [
            connection.buffer.capacity(),
            connection.text.capacity(),
            connection.out.capacity(),
        ];
        assert!(
            kept.iter().all(|bytes| *bytes <= KEPT_BYTES_MAX),
            "{kept:?}"
        );
        assert!(client.answers.len() > 10 * KEPT_BYTES_MAX);
    }
}
