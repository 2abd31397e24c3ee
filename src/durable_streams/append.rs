//! Appends to a stream, closes it, or both.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{ETAG, HeaderName};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use tokio::task::block_in_place;

use crate::durable_streams::headers::{
    self, CLOSED, EXPECTED_SEQ, NEXT_OFFSET, PRODUCER_EPOCH, PRODUCER_SEQ, RECEIVED_SEQ, Sender,
    TRUE,
};
use crate::durable_streams::message::is_for_clients;
use crate::durable_streams::settings::{ContentType, Settings};
use crate::durable_streams::stream::{InPath, Stream, Streams, conflict, session_at};
use crate::http::{Access, ApiError, BODY_COPIES, blocking, check_encoding, received};
use crate::model::{Batch, Error, NewEvent, SessionId};
use crate::write::{Landed, Outcome};

pub(super) async fn append(
    State(streams): State<Arc<Streams>>,
    access: Access,
    InPath(session): InPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut sent = Sent::of(&headers, &access, &streams)?;
    let (body, _share) = received(&headers, body, &streams.service).await?;
    sent.body = body;
    streams.append(&session, &sent, Writes::AsATask).await
}

/// Does the same for a request that is there as a whole, in the same order.
pub(super) async fn append_whole(
    streams: &Arc<Streams>,
    access: &Access,
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, ApiError> {
    let session = session_at(path, access)?;
    let mut sent = Sent::of(headers, access, streams)?;
    let budget = &streams.service.budget;
    let _share = budget.share(body.len().saturating_mul(BODY_COPIES)).await?;
    sent.body = Bytes::copy_from_slice(body);
    streams.append(&session, &sent, Writes::Itself).await
}

/// How an append is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// By the thread that runs it, if that is best.
    Itself,
    /// An application may run the router where no thread may block.
    AsATask,
}

/// An append as it was sent.
struct Sent {
    content_type: Option<ContentType>,
    closes: bool,
    sender: Option<Sender>,
    stream_seq: Option<String>,
    /// Whether the caller may append more than a user's messages.
    may_write: bool,
    body: Bytes,
}

impl Sent {
    /// Reads what the headers say. The body is still to come.
    fn of(headers: &HeaderMap, access: &Access, streams: &Streams) -> Result<Self, ApiError> {
        check_encoding(headers)?;
        let sent = Self {
            content_type: headers::content_type(headers)?,
            closes: headers::closes(headers),
            sender: headers::sender(headers)?,
            stream_seq: headers::stream_seq(headers)?.map(str::to_owned),
            may_write: streams.may_write(access),
            body: Bytes::new(),
        };
        if sent.closes || sent.sender.is_some() || sent.stream_seq.is_some() {
            streams.check_writer(
                access,
                "an append that closes, or with a producer or Stream-Seq,",
            )?;
        }
        Ok(sent)
    }
}

impl Streams {
    /// Appends to a stream. One that has changed meanwhile, other than by events, is read again.
    async fn append(
        self: &Arc<Self>,
        to: &SessionId,
        sent: &Sent,
        writes: Writes,
    ) -> Result<Response, ApiError> {
        loop {
            let stream = self.live_now(to).await?;
            if let Some(answer) = self.append_as_read(&stream, sent, writes).await? {
                return Ok(answer);
            }
        }
    }

    /// Reads a stream that can be used, on this thread unless it has to be removed first.
    pub(super) async fn live_now(
        self: &Arc<Self>,
        session: &SessionId,
    ) -> Result<Stream, ApiError> {
        let read = Stream::read(self.log(), session)?.filter(|stream| !stream.settings.gone);
        if let Some(stream) = read.filter(|stream| !self.is_expired(stream)) {
            return Ok(stream);
        }
        let (streams, session) = (Arc::clone(self), session.clone());
        blocking(move || streams.live(&session)).await
    }

    /// Appends to a stream as it was read. `None` when it has changed since.
    async fn append_as_read(
        &self,
        stream: &Stream,
        sent: &Sent,
        writes: Writes,
    ) -> Result<Option<Response>, ApiError> {
        let session = &stream.info.id;
        let batch = match self.batch(stream, sent) {
            // That a stream is closed comes before what else is wrong.
            Err(_other) if stream.info.closed => return Ok(Some(closed(stream))),
            batch => batch?,
        };
        let (log, caller) = (self.log(), self.service.callers.enter());
        let landed = if writes == Writes::Itself && caller.may_block() {
            block_in_place(|| log.append_as_read(&stream.info, batch))
        } else {
            log.append_as_read_async(&stream.info, batch).await
        };
        let answer = match landed {
            Ok(None) => return Ok(None),
            Ok(Some(landed)) => {
                let after = Stream::of(landed.state.info(session));
                self.note_use(&after);
                appended(&after, &landed, sent)
            }
            Err(error) => {
                // It may have been closed just now, by others.
                let now = Stream::read(self.log(), session)?
                    .filter(|now| now.info.closed && !now.settings.gone);
                match (now, error) {
                    (Some(now), error) if is_of_order(&error) => closed(&now),
                    (None, Error::SessionClosed { .. }) => return Ok(None),
                    (_, error) => self.refusal(session, sent.sender.as_ref(), error)?,
                }
            }
        };
        Ok(Some(answer))
    }

    /// Makes the batch of an append to a stream as it was read.
    fn batch(&self, stream: &Stream, sent: &Sent) -> Result<Batch, ApiError> {
        let mut batch = Batch::new().events(self.events(stream, sent)?);
        if let Some(sender) = &sent.sender {
            batch = batch.producer(sender.producer());
        }
        if let Some(seq) = &sent.stream_seq
            && !sent.body.is_empty()
        {
            let is_replay = self.is_replay(stream, sent)?;
            let last = stream.settings.last_seq.as_deref();
            if !is_replay && last.is_some_and(|last| seq.as_bytes() <= last.as_bytes()) {
                return Err(conflict(
                    "stream_seq",
                    "the Stream-Seq is not above the last one",
                ));
            }
            batch = batch.metadata(Settings::patch_of_seq(seq));
        }
        Ok(if sent.closes { batch.closing() } else { batch })
    }

    /// Whether the log will answer a retry of an earlier append, whose `Stream-Seq` is not
    /// compared.
    fn is_replay(&self, stream: &Stream, sent: &Sent) -> Result<bool, ApiError> {
        let Some(sender) = &sent.sender else {
            return Ok(false);
        };
        let known = self.log().producer_of(&stream.info.id, &sender.id)?;
        Ok(known.is_some_and(|(epoch, seq)| {
            sender.epoch < epoch
                || sender.epoch == epoch && seq.is_some_and(|seq| sender.seq <= seq)
        }))
    }

    fn events(&self, stream: &Stream, sent: &Sent) -> Result<Vec<NewEvent>, ApiError> {
        if sent.body.is_empty() {
            return if sent.closes {
                Ok(Vec::new())
            } else {
                Err(ApiError::invalid(
                    "the body is empty, and the call does not close the stream",
                ))
            };
        }
        let Some(content_type) = &sent.content_type else {
            return Err(ApiError::invalid("the header content-type is missing"));
        };
        let own = &stream.settings.content_type;
        if !own.is_like(content_type) {
            let message = format!("the content type of the stream is {}", own.as_str());
            return Err(conflict("content_type", &message));
        }
        let events = self.first_events(own, &sent.body)?;
        if events.is_empty() {
            return Err(ApiError::invalid("the body is an array without messages"));
        }
        if !sent.may_write && !events.iter().all(is_for_clients) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "appending other than user messages takes the key of a worker",
            ));
        }
        Ok(events)
    }

    /// Answers what the log refuses of a producer. Passes on any other error.
    fn refusal(
        &self,
        session: &SessionId,
        sender: Option<&Sender>,
        error: Error,
    ) -> Result<Response, ApiError> {
        let numbers: Vec<(HeaderName, u64)> = match (&error, sender) {
            (Error::Fenced { current, .. }, _) => vec![(PRODUCER_EPOCH, *current)],
            (
                Error::ProducerGap {
                    expected, received, ..
                },
                Some(sender),
            ) => {
                let known = self.log().producer_of(session, &sender.id)?;
                if known.is_some_and(|(epoch, _seq)| sender.epoch > epoch) {
                    return Err(ApiError::invalid(
                        "the first append of an epoch has another Producer-Seq than 0",
                    ));
                }
                vec![(EXPECTED_SEQ, *expected), (RECEIVED_SEQ, *received)]
            }
            _ => return Err(error.into()),
        };
        let mut answer = ApiError::from(error).into_response();
        for (name, number) in numbers {
            answer.headers_mut().insert(name, number.into());
        }
        Ok(answer)
    }
}

/// Whether an append is refused for what came before it. That its stream is closed goes before
/// that.
fn is_of_order(error: &Error) -> bool {
    matches!(
        error,
        Error::SessionClosed { .. } | Error::Fenced { .. } | Error::ProducerGap { .. }
    )
}

fn appended(stream: &Stream, landed: &Landed, sent: &Sent) -> Response {
    let is_stored = matches!(landed.outcome, Outcome::Stored(_));
    let is_news = is_stored && sent.sender.is_some() && !sent.body.is_empty();
    let status = if is_news {
        StatusCode::OK
    } else {
        StatusCode::NO_CONTENT
    };
    let mut answer = (status, [(NEXT_OFFSET, stream.tail().header())]).into_response();
    let headers = answer.headers_mut();
    if stream.info.closed {
        headers.insert(CLOSED, TRUE);
    }
    if let Some(sender) = &sent.sender {
        let known = landed.state.producer(&sender.id);
        let seq = known.and_then(|known| known.seq).unwrap_or(sender.seq);
        headers.insert(PRODUCER_EPOCH, sender.epoch.into());
        headers.insert(PRODUCER_SEQ, seq.into());
    }
    answer
}

/// The answer to an append to a closed stream.
fn closed(stream: &Stream) -> Response {
    let error = Error::SessionClosed {
        session: stream.info.id.clone(),
        last: stream.info.last,
    };
    let mut answer = ApiError::from(error).into_response();
    let headers = answer.headers_mut();
    // The tag of the HTTP API is none of this protocol.
    headers.remove(ETAG);
    headers.insert(CLOSED, TRUE);
    headers.insert(NEXT_OFFSET, stream.tail().header());
    answer
}
