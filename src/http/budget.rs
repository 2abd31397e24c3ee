//! The memory that requests and answers may hold together: bodies on their way in, pages being read, answers that their clients are slow to
//! take. What would go beyond it waits a moment, and is then refused.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::http::error::ApiError;

/// How long to wait for others to be done.
const WAIT: Duration = Duration::from_secs(5);

/// What a share is counted in.
const UNIT: usize = 1024;

/// All that there is.
pub(super) struct Budget {
    units: Arc<Semaphore>,
    units_max: usize,
}

/// A part of it. It goes back when it is dropped.
pub(super) struct Share {
    units: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        let units_max = (bytes_max / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self { units: Arc::new(Semaphore::new(units_max)), units_max }
    }

    /// A share of so many bytes, once others leave room for it.
    pub(super) async fn share(&self, bytes: usize) -> Result<Share, ApiError> {
        match timeout(WAIT, self.acquire(self.units(bytes))).await {
            Ok(units) => Ok(Share { units }),
            Err(_late) => Err(refusal()),
        }
    }

    /// As [`share`](Self::share), for one who may wait for as long as it takes.
    pub(super) async fn share_in_time(&self, bytes: usize) -> Share {
        Share { units: self.acquire(self.units(bytes)).await }
    }

    /// Makes a share as large as so many bytes, once others leave room for it.
    pub(super) async fn grow(&self, share: &mut Share, bytes: usize) -> Result<(), ApiError> {
        let more = self.units(bytes).saturating_sub(share.units.num_permits());
        if more > 0 {
            let acquired = timeout(WAIT, self.acquire(more)).await;
            share.units.merge(acquired.map_err(|_late| refusal())?);
        }
        Ok(())
    }

    async fn acquire(&self, units: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.units).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    /// What is larger than all there is gets all of it.
    fn units(&self, bytes: usize) -> usize {
        bytes.div_ceil(UNIT).min(self.units_max)
    }
}

impl Share {
    /// Answers with `value` as JSON. The share is as large as the text from then on, and goes back when that is sent.
    pub(super) fn answer(mut self, value: &impl Serialize) -> Response {
        let text = serde_json::to_vec(value).expect("the shapes of answers have a JSON form");
        let surplus = self.units.num_permits().saturating_sub(text.len().div_ceil(UNIT));
        drop(self.units.split(surplus));
        let mut answer = Response::new(Body::from(Bytes::from_owner(Held { text, _share: self })));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }
}

/// A text, and the memory it takes.
struct Held {
    text: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

fn refusal() -> ApiError {
    let message = "the server has no memory left for this call while it answers others";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).retry_after(1)
}
