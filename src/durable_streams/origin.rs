//! Pages of other origins: what a browser lets them send and read.
//!
//! With keys, any page may call, for it must have a key. A server for development has none, so that
//! only pages of this host are let in.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HOST, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::Response;

use crate::durable_streams::stream::Streams;
use crate::http::{self, Access, ApiError};

const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";

const SENT: &str = "authorization, content-type, if-none-match, stream-seq, stream-ttl, \
                    stream-expires-at, stream-closed, stream-forked-from, stream-fork-offset, \
                    stream-fork-sub-offset, producer-id, producer-epoch, producer-seq";

const SHOWN: &str = "stream-next-offset, stream-cursor, stream-up-to-date, stream-closed, \
                     stream-ttl, stream-expires-at, stream-sse-data-encoding, producer-epoch, \
                     producer-seq, producer-expected-seq, producer-received-seq, etag, location, \
                     retry-after";

/// The seconds for which a browser may keep the answer to its question.
const ASK_AGAIN_AFTER: &str = "600";

/// Whether the page that sent a request may read the answer.
pub(super) enum Origin {
    /// No page, or one that may call: its origin is allowed in the answer.
    Admitted(Option<HeaderValue>),
    /// A page of another site, at a server that admits every caller.
    Foreign,
}

impl Origin {
    pub(super) fn of(headers: &HeaderMap, streams: &Streams) -> Self {
        let Some(origin) = headers.get(ORIGIN) else {
            return Self::Admitted(None);
        };
        if !streams.is_for_development() {
            return Self::Admitted(Some(HeaderValue::from_static("*")));
        }
        if is_of_this_host(origin, headers.get(HOST)) {
            return Self::Admitted(Some(origin.clone()));
        }
        Self::Foreign
    }

    /// Returns what the caller of a request from here may do.
    pub(super) fn admit(&self, headers: &HeaderMap, streams: &Streams) -> Result<Access, ApiError> {
        let access = http::access(headers, &streams.service)?;
        self.check()?;
        access.check_rate()?;
        Ok(access)
    }

    /// Refuses a page of another site. A browser sends some requests without asking before.
    fn check(&self) -> Result<(), ApiError> {
        match self {
            Self::Admitted(_) => Ok(()),
            Self::Foreign => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "foreign_origin",
                "a server without keys takes no calls from pages of other sites",
            )),
        }
    }

    /// Lets the page read the answer.
    pub(super) fn allow(self, mut answer: Response, streams: &Streams) -> Response {
        let headers = answer.headers_mut();
        if streams.is_for_development() {
            // What a cache keeps for another caller allows no page, or another one.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        if let Self::Admitted(Some(origin)) = self {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(
                ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static(SHOWN),
            );
        }
        answer
    }
}

/// Says which calls there are.
pub(super) fn allow_calls(headers: &mut HeaderMap) {
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (ACCESS_CONTROL_ALLOW_HEADERS, SENT),
        (ACCESS_CONTROL_MAX_AGE, ASK_AGAIN_AFTER),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

fn is_of_this_host(origin: &HeaderValue, asked: Option<&HeaderValue>) -> bool {
    let uri = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.parse::<Uri>().ok());
    let Some(authority) = uri.as_ref().and_then(Uri::authority) else {
        return false;
    };
    let host = authority.host();
    ["localhost", "127.0.0.1", "[::1]"].contains(&host)
        || asked.is_some_and(|asked| asked.as_bytes() == authority.as_str().as_bytes())
}
