//! Entity tags: the last seq of a session, as a condition of later changes.

use axum::http::HeaderValue;

use crate::model::Seq;

/// A seq as an entity tag, to be sent back in `If-Match`.
pub(super) fn etag(seq: Seq) -> HeaderValue {
    HeaderValue::try_from(format!("\"{seq}\"")).expect("a number in quotes is a header value")
}
