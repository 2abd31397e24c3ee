//! The traits of `rmcp` 3.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::Stream;
use rmcp::model::ServerJsonRpcMessage;
use rmcp::transport::streamable_http_server::session::{
    EventStore, EventStoreError, EventStream, ServerSseMessage, SessionState, SessionStore,
    SessionStoreError,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::mcp::handed::HandedId;
use crate::mcp::store::{EVENT, Kind, SESSION, Store, newest};
use crate::model::{Error, Event, Expected, NewEvent, Result, SessionId};
use crate::read::{AsyncEventStream, SessionQuery, StartAt, StreamItem};

/// The type of an event that answers the request of its stream.
const ANSWER: &str = "mcp.answer";

/// A stream whose newest event is no answer to a request.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Unanswered {
    /// The ID of the stream, as `store_event` takes it.
    pub stream_id: String,
    /// The JSON-RPC message of its newest event. `None` if that event only says when to reconnect.
    pub message: Option<serde_json::Value>,
}

impl Store {
    /// Returns the streams of `rmcp` whose newest event is no answer, in no particular order.
    ///
    /// Before a server begins to serve, these are the calls that its last run has left unfinished.
    /// An application that can finish one stores the rest of its events, the response last. The
    /// client may be waiting for them, or resume later. The streams of sessions themselves are
    /// among them: they have no answer.
    ///
    /// It blocks while it reads the newest event of every stream that is kept.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot be read; [`Error::Closed`].
    /// [`Error::Invalid`] when the newest event of a stream is not what a store has written.
    pub fn unanswered(&self) -> Result<Vec<Unanswered>> {
        let prefix = self.name(Kind::RmcpStream, "");
        let mut unanswered = Vec::new();
        let mut next = Some(SessionQuery::by_id().prefix(&prefix));
        while let Some(query) = next {
            let page = self.log.sessions(query)?;
            for session in &page.items {
                let Some(newest) = newest(&self.log, &session.id, [EVENT, ANSWER])? else {
                    continue;
                };
                if newest.event_type == EVENT && !newest.redacted {
                    let stored: Stored = newest.json()?;
                    let stream_id = self.stream_of(&session.id).unwrap_or_default();
                    unanswered.push(Unanswered {
                        stream_id: stream_id.to_owned(),
                        message: stored.message()?,
                    });
                }
            }
            next = page.next_page();
        }
        Ok(unanswered)
    }

    /// Returns the stream that a session of the log is.
    fn stream_of<'a>(&self, session: &'a SessionId) -> Option<&'a str> {
        session
            .as_str()
            .strip_prefix(&self.name(Kind::RmcpStream, ""))
    }
}

/// An event of a stream as it is stored. Its ID is that of the event in the log.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// As text: inside of this object a message may be nested as deep as by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_ms: Option<u64>,
}

impl Stored {
    /// Refuses a message that no replay could read back, as one that is nested too deep.
    fn new(event: &ServerSseMessage) -> Result<Self> {
        let message = event.message.as_deref().map(to_raw_value);
        let stored = Self {
            message: message.transpose().map_err(not_a_message)?,
            retry_ms: event.retry.map(whole_ms),
        };
        let _message: Option<ServerJsonRpcMessage> = stored.message()?;
        Ok(stored)
    }

    fn message<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let message = self.message.as_deref();
        let read = message.map(|json| serde_json::from_str(json.get()));
        read.transpose().map_err(not_a_message)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn not_a_message(error: serde_json::Error) -> Error {
    Error::invalid("MCP message", error.to_string())
}

/// When `store_event` returns, the event is on stable storage. When it fails, the stream is as it
/// was, unless the log is [poisoned](Error::Poisoned). It fails for a stream ID that is no part of
/// a [session ID](crate::SessionId), for a message that is nested deeper than 127 levels, for an
/// event of more than [`event_bytes_max`](crate::Options::event_bytes_max), and with the errors of
/// [`append`](crate::SessionLog::append).
///
/// `replay_events_after` fails with [`Error::Invalid`] for a text that is no event ID, and with
/// [`Error::UnknownEvent`] for an event that was removed, or is in no stream of this store. The
/// stream that it returns does not end before an answer came, so it waits for new events. It ends
/// early when the stream was removed or the log cannot be read: the client then asks again.
#[async_trait]
impl EventStore for Store {
    async fn store_event(
        &self,
        stream_id: &str,
        event: &ServerSseMessage,
    ) -> Result<String, EventStoreError> {
        let session = self.session(Kind::RmcpStream, stream_id)?;
        let stored = Stored::new(event)?;
        let event_type = match event.message.as_deref() {
            Some(ServerJsonRpcMessage::Response(_) | ServerJsonRpcMessage::Error(_)) => ANSWER,
            _ => EVENT,
        };
        let ack = self
            .append(&session, NewEvent::json(event_type, &stored)?)
            .await?;
        let event = ack.events.first().expect("a batch of one event");
        Ok(HandedId::new(event.id, stream_id).to_string())
    }

    async fn replay_events_after(
        &self,
        last_event_id: &str,
    ) -> Result<EventStream, EventStoreError> {
        let last: HandedId = last_event_id.parse()?;
        let store = self.clone();
        let replay = self.reading(move |log| {
            let event = log.event(last.event)?;
            let stream_id = store
                .stream_of(&event.session_id)
                .filter(|stream_id| last.is_of(stream_id))
                .ok_or(Error::UnknownEvent { id: last.event })?;
            let after = log.stream(&event.session_id, StartAt::after(event.seq))?;
            // Nothing has to come behind an answer, so nobody waits for it.
            let after = if event.event_type == ANSWER {
                after.until_tail()
            } else {
                after
            };
            Ok(Replay {
                events: after.into_async(),
                stream_id: stream_id.to_owned(),
                ended: false,
            })
        });
        Ok(Box::pin(replay.await?))
    }
}

/// A session has the parameters of its `initialize`. `store` replaces what was there, and is on
/// stable storage when it returns. No ID is an error to load or to delete: one that no session can
/// have has none.
#[async_trait]
impl SessionStore for Store {
    async fn load(&self, session_id: &str) -> Result<Option<SessionState>, SessionStoreError> {
        let stored = self.record(Kind::RmcpSession, session_id).await?;
        Ok(stored.map(|event| event.json()).transpose()?)
    }

    async fn store(&self, session_id: &str, state: &SessionState) -> Result<(), SessionStoreError> {
        let session = self.session(Kind::RmcpSession, session_id)?;
        let record = NewEvent::json(SESSION, state)?;
        Ok(self.put(&session, record, None, Expected::Any).await?)
    }

    async fn delete(&self, session_id: &str) -> Result<(), SessionStoreError> {
        Ok(self.remove(Kind::RmcpSession, session_id).await?)
    }
}

/// The events of a stream after one of them, up to its answer.
struct Replay {
    events: AsyncEventStream,
    stream_id: String,
    ended: bool,
}

impl Stream for Replay {
    type Item = ServerSseMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.ended {
            let next = ready!(Pin::new(&mut self.events).poll_next(context));
            let event = match next {
                Some(Ok(StreamItem::Event(event))) => event,
                Some(Ok(StreamItem::CaughtUp | StreamItem::Change(_))) => continue,
                Some(Ok(StreamItem::Closed | StreamItem::Deleted)) | None => break,
                Some(Err(error)) => {
                    tracing::warn!(%error, "a replay of MCP events ends early");
                    break;
                }
            };
            self.ended = event.event_type == ANSWER;
            match message(&event, &self.stream_id) {
                Ok(Some(message)) => return Poll::Ready(Some(message)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, id = %event.id, "a replay of MCP events ends early");
                    break;
                }
            }
        }
        self.ended = true;
        Poll::Ready(None)
    }
}

/// Returns the message that was stored with an event. There is none in an event that somebody else
/// has appended, and in a redacted one.
fn message(event: &Event, stream_id: &str) -> Result<Option<ServerSseMessage>> {
    if event.redacted || !(event.event_type == EVENT || event.event_type == ANSWER) {
        return Ok(None);
    }
    let stored: Stored = event.json()?;
    let mut message = ServerSseMessage::default();
    message.event_id = Some(HandedId::new(event.id, stream_id).to_string());
    message.message = stored.message()?.map(Arc::new);
    message.retry = stored.retry_ms.map(Duration::from_millis);
    Ok(Some(message))
}

/// Returns the milliseconds that the protocol has for a time to wait.
fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
