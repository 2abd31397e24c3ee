//! Appends to streams in the plain form, which the loop of a connection answers without the router.

use std::ops::Range;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::IntoResponse;

use crate::durable_streams::append::append_whole;
use crate::durable_streams::origin::Origin;
use crate::durable_streams::stream::Streams;
use crate::durable_streams::sweep;
use crate::http::{Answering, Appends};

/// The streams below a path.
pub(super) struct Direct {
    below: String,
    route: Arc<str>,
    streams: Arc<Streams>,
}

impl Direct {
    /// `route` is the path of a stream in the router.
    pub(super) fn below(path: &str, route: &str, streams: Arc<Streams>) -> Self {
        Self {
            below: format!("{path}/"),
            route: format!("{path}{route}").into(),
            streams,
        }
    }
}

impl Appends for Direct {
    fn route(&self) -> &Arc<str> {
        &self.route
    }

    fn place_in(&self, path: &str) -> Option<Range<usize>> {
        path.starts_with(&self.below)
            .then_some(self.below.len()..path.len())
    }

    fn answer<'a>(
        &'a self,
        place: &'a str,
        headers: &'a HeaderMap,
        body: &'a [u8],
    ) -> Answering<'a> {
        let streams = &self.streams;
        Box::pin(async move {
            sweep::begin(streams);
            let origin = Origin::of(headers, streams);
            let answer = match origin.admit(headers, streams) {
                Ok(access) => append_whole(streams, &access, place, headers, body).await,
                Err(refused) => Err(refused),
            };
            origin.allow(answer.unwrap_or_else(IntoResponse::into_response), streams)
        })
    }
}
