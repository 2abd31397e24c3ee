//! Creates a stream, or finds it as it was asked for.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, State};
use axum::http::header::{CONTENT_TYPE, HOST, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use crate::durable_streams::asked::{Asked, AskedFork};
use crate::durable_streams::headers::{self, CLOSED, NEXT_OFFSET, TRUE};
use crate::durable_streams::message::{events_of_bytes, events_of_json};
use crate::durable_streams::settings::{ContentType, Settings};
use crate::durable_streams::stream::{InPath, Stream, Streams, conflict, unknown};
use crate::http::{Access, ApiError, blocking, check_encoding, received};
use crate::model::{Ack, Batch, Error, NewEvent, Op, Result, SessionId, SessionPatch};

/// Of a proxy that ends TLS.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

pub(super) async fn create(
    State(streams): State<Arc<Streams>>,
    access: Access,
    InPath(session): InPath,
    OriginalUri(whole): OriginalUri,
    nested: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    streams.check_writer(&access, "creating a stream")?;
    check_encoding(&headers)?;
    let mount = whole.path().strip_suffix(nested.path());
    let asked = Asked {
        content_type: headers::content_type(&headers)?,
        lifetime: headers::lifetime(&headers)?,
        closed: headers::closes(&headers),
        fork: headers::fork(&headers)?
            .map(|fork| AskedFork::of(&fork, mount.unwrap_or_default(), &access))
            .transpose()?,
    };
    let (body, _share) = received(&headers, body, &streams.service).await?;
    let (stream, is_new) = if let Some(made) = streams.made_now(&session, &asked, &body).await? {
        (made, true)
    } else {
        blocking(move || streams.created(&session, &asked, &body)).await?
    };
    let mut answer = if is_new {
        let place = place(&headers, &whole);
        (StatusCode::CREATED, [(LOCATION, place)]).into_response()
    } else {
        StatusCode::OK.into_response()
    };
    let described = answer.headers_mut();
    described.insert(NEXT_OFFSET, stream.tail().header());
    described.insert(CONTENT_TYPE, stream.settings.content_type.header());
    if stream.info.closed {
        described.insert(CLOSED, TRUE);
    }
    Ok(answer)
}

/// The URL of a stream, as its client asked for it.
fn place(headers: &HeaderMap, uri: &Uri) -> HeaderValue {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let scheme = if text(FORWARDED_PROTO) == Some("https") {
        "https"
    } else {
        uri.scheme_str().unwrap_or("http")
    };
    let host = text(HOST).or_else(|| uri.authority().map(axum::http::uri::Authority::as_str));
    let place = host.map_or_else(
        || uri.path().to_owned(),
        |host| format!("{scheme}://{host}{}", uri.path()),
    );
    HeaderValue::try_from(place).expect("its parts come from a request's head")
}

impl ContentType {
    pub(super) fn header(&self) -> HeaderValue {
        let value = HeaderValue::try_from(self.as_str());
        // Metadata that others have written may hold what no header can.
        value.unwrap_or_else(|_error| HeaderValue::from_static("application/octet-stream"))
    }
}

impl Streams {
    /// Creates a stream that is no fork and is not there, without a thread that waits. `None` for
    /// any other.
    async fn made_now(
        &self,
        session: &SessionId,
        asked: &Asked,
        body: &Bytes,
    ) -> Result<Option<Stream>, ApiError> {
        if asked.fork.is_some() || Stream::read(self.log(), session)?.is_some() {
            return Ok(None);
        }
        let batch = self.first_batch(asked, body)?;
        if is_made(self.log().append_async(session, batch).await)? {
            return Ok(Stream::read(self.log(), session)?);
        }
        Ok(None)
    }

    /// Returns the stream that was asked for, and whether it is new.
    fn created(
        &self,
        session: &SessionId,
        asked: &Asked,
        body: &Bytes,
    ) -> Result<(Stream, bool), ApiError> {
        loop {
            match self.find(session)? {
                Some(stream) if stream.settings.gone => {
                    return Err(conflict("stream_gone", "its name is kept for its forks"));
                }
                Some(stream) if asked.is(&stream) => return Ok((stream, false)),
                Some(_other) => {
                    return Err(conflict(
                        "stream_exists",
                        "there is another stream of this name",
                    ));
                }
                None => {}
            }
            let made = match &asked.fork {
                Some(fork) => self.fork(session, fork, asked, body)?,
                None => is_made(self.log().append(session, self.first_batch(asked, body)?))?,
            };
            if made {
                let stream = Stream::read(self.log(), session)?;
                return Ok((stream.ok_or_else(|| unknown(session))?, true));
            }
        }
    }

    /// Makes the batch that creates a stream.
    fn first_batch(&self, asked: &Asked, body: &Bytes) -> Result<Batch, ApiError> {
        let content_type = asked
            .content_type
            .clone()
            .unwrap_or_else(ContentType::bytes);
        let mut batch = Batch::new().events(self.first_events(&content_type, body)?);
        let settings = Settings {
            ttl: asked.lifetime.ttl,
            expires_at: asked.lifetime.expires_at,
            ..Settings::new(content_type)
        };
        let patch = SessionPatch::new().metadata(settings.patch());
        batch.ops = vec![Op::Create, Op::Describe(patch)];
        if asked.closed {
            batch = batch.closing();
        }
        Ok(batch)
    }

    /// Returns the events that a stream begins with. A body may be empty, and so may an array.
    pub(super) fn first_events(
        &self,
        content_type: &ContentType,
        body: &Bytes,
    ) -> Result<Vec<NewEvent>, ApiError> {
        let limits = self.log().limits();
        if body.is_empty() {
            Ok(Vec::new())
        } else if content_type.is_json() {
            events_of_json(body, &limits)
        } else {
            Ok(events_of_bytes(body, &limits))
        }
    }
}

/// Returns `false` when a stream came in between.
fn is_made(made: Result<Ack>) -> Result<bool, ApiError> {
    match made {
        Err(Error::SessionExists { .. }) => Ok(false),
        made => Ok(made.map(|_ack| true)?),
    }
}
