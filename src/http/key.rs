//! Keys, and what a caller with one may do. A key is kept as a hash alone.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::http::error::ApiError;
use crate::http::places::{Place, Places};
use crate::http::rate::Rate;
use crate::model::{Error, EventId, MessageId, SessionId};

/// Which calls a key admits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Appends user messages, and reads everything.
    #[default]
    Client,
    /// Also appends events of any type, and creates, changes and removes sessions.
    Worker,
}

/// A key that callers send as bearer token.
///
/// ```
/// use sessionlog::http::{Config, Key, Scope};
///
/// let of_tenant = Key::new("a secret of tenant 9").prefix("t9/").scope(Scope::Worker);
/// let config = Config::with_api_key("a secret").key(of_tenant);
/// ```
#[derive(Clone)]
#[must_use = "a key admits nobody until it is given to a configuration"]
pub struct Key {
    hash: Option<blake3::Hash>,
    access: Access,
    requests_per_second: Option<u32>,
    burst: Option<u32>,
    streams_max: Option<usize>,
}

impl Key {
    /// A key of the scope [`Client`](Scope::Client) for all sessions. White space around it is
    /// ignored. An empty key admits nobody.
    pub fn new(secret: impl AsRef<[u8]>) -> Self {
        let secret = secret.as_ref().trim_ascii();
        Self {
            hash: (!secret.is_empty()).then(|| blake3::hash(secret)),
            access: Access::everywhere(Scope::Client),
            requests_per_second: None,
            burst: None,
            streams_max: None,
        }
    }

    /// Binds the key to the sessions whose IDs begin with `prefix`. For its callers there are no
    /// others.
    ///
    /// End the prefix with a character that its IDs use nowhere else: `t9` includes `t90`.
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.access.prefix = prefix.as_ref().into();
        self
    }

    /// Sets the calls that the key admits.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.access.scope = scope;
        self
    }

    /// The rate of requests that the key admits. Default: any. Minimum: 1. A request beyond it gets
    /// status 429 with the code `too_many_requests`, and `Retry-After` says when there is room.
    ///
    /// All callers with the key share it, and so do all routers made from one configuration.
    pub fn requests_per_second(mut self, requests: u32) -> Self {
        self.requests_per_second = Some(requests);
        self.limited()
    }

    /// How many requests the key admits at once after a pause. Default: those of one second.
    /// Minimum: 1.
    pub fn burst(mut self, requests: u32) -> Self {
        self.burst = Some(requests);
        self.limited()
    }

    /// The most open streams and waits of the key's callers. Default: any number within
    /// [`Config::streams_max`](crate::http::Config::streams_max). More get status 429 with the code
    /// `too_many_streams`.
    pub fn streams_max(mut self, streams: usize) -> Self {
        self.streams_max = Some(streams);
        self.limited()
    }

    fn limited(mut self) -> Self {
        let rate = |per_second| Rate::new(per_second, self.burst.unwrap_or(per_second));
        self.access.limits = Some(Arc::new(KeyLimits {
            rate: self.requests_per_second.map(rate),
            streams: self.streams_max.map(Places::new),
        }));
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hash.is_none()
    }

    pub(super) fn is_for_clients(&self) -> bool {
        self.access.scope == Scope::Client
    }

    /// Returns what a caller with this token may do. Of equal keys the last one decides.
    ///
    /// All hashes are compared, each in constant time, so that the time reveals nothing about a
    /// key.
    pub(super) fn access_of(token: &[u8], keys: &[Key]) -> Option<Access> {
        let given = blake3::hash(token);
        let found = keys.iter().fold(None, |found, key| {
            if key.hash.is_some_and(|hash| hash == given) {
                Some(key)
            } else {
                found
            }
        });
        found.map(|key| key.access.clone())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

/// What all callers with a key share.
#[derive(Debug)]
struct KeyLimits {
    rate: Option<Rate>,
    streams: Option<Places>,
}

/// What the caller of a request may do.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    scope: Scope,
    prefix: Arc<str>,
    limits: Option<Arc<KeyLimits>>,
}

impl Access {
    pub(crate) fn everywhere(scope: Scope) -> Self {
        Self {
            scope,
            prefix: Arc::from(""),
            limits: None,
        }
    }

    pub(crate) fn is_worker(&self) -> bool {
        self.scope == Scope::Worker
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether the caller's key is bound to a part of the sessions.
    pub(super) fn is_bound(&self) -> bool {
        !self.prefix.is_empty()
    }

    pub(super) fn has(&self, session: &SessionId) -> bool {
        session.as_str().starts_with(&*self.prefix)
    }

    /// Passes a session that the caller may know of. Any other one does not exist for it.
    pub(crate) fn check(&self, session: &SessionId) -> Result<(), Error> {
        if self.has(session) {
            return Ok(());
        }
        Err(Error::UnknownSession {
            session: session.clone(),
        })
    }

    /// Passes an event of a session that the caller may know of.
    pub(super) fn check_event(&self, session: &SessionId, id: EventId) -> Result<(), Error> {
        if self.has(session) {
            return Ok(());
        }
        Err(Error::UnknownEvent { id })
    }

    /// Passes a message of a session that the caller may know of.
    pub(super) fn check_message(&self, session: &SessionId, id: MessageId) -> Result<(), Error> {
        if self.has(session) {
            return Ok(());
        }
        Err(Error::UnknownMessage { id })
    }

    /// Counts a request, and refuses it when the key has sent too many.
    pub(crate) fn check_rate(&self) -> Result<(), ApiError> {
        let limits = self.limits.as_deref();
        let Some(rate) = limits.and_then(|limits| limits.rate.as_ref()) else {
            return Ok(());
        };
        rate.take()
            .map_err(|wait| ApiError::too_many_requests(rate.per_second(), wait))
    }

    /// Returns a place for one more stream or wait of the key, if it limits them.
    pub(super) fn stream_place(&self) -> Result<Option<Place>, ApiError> {
        let limits = self.limits.as_deref();
        let places = limits.and_then(|limits| limits.streams.as_ref());
        places
            .map(|places| places.take("with this key"))
            .transpose()
    }

    /// Refuses what only a worker may do.
    pub(crate) fn check_worker(&self, what: &str) -> Result<(), ApiError> {
        if self.is_worker() {
            return Ok(());
        }
        Err(forbidden(format!("{what} takes the key of a worker")))
    }
}

fn forbidden(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Infallible;

    /// A request that passed no authorization has the access of a client to no session.
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let access = parts.extensions.get::<Self>().cloned();
        Ok(access.unwrap_or_else(|| Self {
            scope: Scope::Client,
            // No session ID holds a control character.
            prefix: Arc::from("\0"),
            limits: None,
        }))
    }
}

/// The access of a caller with the key of a worker. Others are refused.
///
/// It comes first among the arguments of a handler, so that a refusal says nothing about the rest
/// of the request.
pub(super) struct Worker(pub Access);

impl<S: Send + Sync> FromRequestParts<S> for Worker {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Ok(access) = Access::from_request_parts(parts, state).await;
        access.check_worker("this call")?;
        Ok(Self(access))
    }
}

/// A caller with the key of a worker for all sessions.
pub(super) struct Operator(pub Access);

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Worker(access) = Worker::from_request_parts(parts, state).await?;
        if access.is_bound() {
            return Err(forbidden("this call takes a key for all sessions"));
        }
        Ok(Self(access))
    }
}
