//! The memory that requests and answers may hold together.
//!
//! It covers bodies being received, pages being read, and answers that clients are slow to take. A
//! request beyond it waits a moment and is then refused.

use std::sync::Arc;
use std::time::Duration;
#[cfg(feature = "durable-streams")]
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

#[cfg(feature = "durable-streams")]
use axum::body::HttpBody;
use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
#[cfg(feature = "durable-streams")]
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::http::error::{ApiError, RETRY_SOON};

/// How long a request waits for others to release memory.
const WAIT: Duration = Duration::from_secs(5);

/// The unit of a share, in bytes.
const UNIT: usize = 1024;

/// All memory for requests and answers.
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    units_max: usize,
}

/// A part of the budget. Dropping it returns it.
pub(crate) struct Share {
    units: OwnedSemaphorePermit,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Self {
        let units_max = (bytes_max / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            units: Arc::new(Semaphore::new(units_max)),
            units_max,
        }
    }

    /// Returns a share of `bytes`, once there is room for it.
    pub(crate) async fn share(&self, bytes: usize) -> Result<Share, ApiError> {
        if let Some(units) = self.acquire_now(self.units(bytes)) {
            return Ok(Share { units });
        }
        match timeout(WAIT, self.acquire(self.units(bytes))).await {
            Ok(units) => Ok(Share { units }),
            Err(_late) => Err(refusal()),
        }
    }

    /// Like [`share`](Self::share), but waits for as long as it takes.
    pub(crate) async fn share_in_time(&self, bytes: usize) -> Share {
        Share {
            units: self.acquire(self.units(bytes)).await,
        }
    }

    /// Grows a share to `bytes`, once there is room for it.
    pub(super) async fn grow(&self, share: &mut Share, bytes: usize) -> Result<(), ApiError> {
        let more = self.units(bytes).saturating_sub(share.units.num_permits());
        if more > 0 {
            let acquired = timeout(WAIT, self.acquire(more)).await;
            share.units.merge(acquired.map_err(|_late| refusal())?);
        }
        Ok(())
    }

    /// Acquires units if there are so many, and nobody waits for some.
    fn acquire_now(&self, units: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.units).try_acquire_many_owned(units).ok()
    }

    async fn acquire(&self, units: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        Arc::clone(&self.units)
            .acquire_many_owned(units)
            .await
            .expect("the semaphore is never closed")
    }

    /// A request for more than the whole budget gets all of it.
    fn units(&self, bytes: usize) -> usize {
        bytes.div_ceil(UNIT).min(self.units_max)
    }
}

impl Share {
    /// Answers with `value` as JSON. The share shrinks to the size of the text and is returned once
    /// the text is sent.
    pub(super) fn answer(self, value: &impl Serialize) -> Response {
        let text = serde_json::to_vec(value).expect("the shapes of answers have a JSON form");
        let mut answer = Response::new(self.body(text));
        answer
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    }

    /// Makes a body of bytes. The share shrinks to their size and is returned once they are sent.
    fn body(mut self, text: Vec<u8>) -> Body {
        self.shrink(text.len());
        Body::from(Bytes::from_owner(Held { text, _share: self }))
    }

    /// Makes a body of pieces. The share shrinks to their size and is returned once they are sent.
    #[cfg(feature = "durable-streams")]
    pub(crate) fn body_of(mut self, pieces: VecDeque<Vec<u8>>) -> Body {
        let bytes = pieces.iter().map(Vec::len).sum();
        self.shrink(bytes);
        Body::new(Pieces {
            left: pieces,
            bytes_left: bytes,
            _share: self,
        })
    }

    fn shrink(&mut self, bytes: usize) {
        let surplus = self
            .units
            .num_permits()
            .saturating_sub(bytes.div_ceil(UNIT));
        drop(self.units.split(surplus));
    }
}

/// Pieces of a text and the memory they take.
#[cfg(feature = "durable-streams")]
struct Pieces {
    left: VecDeque<Vec<u8>>,
    bytes_left: usize,
    _share: Share,
}

#[cfg(feature = "durable-streams")]
impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.left.pop_front();
        self.bytes_left -= next.as_ref().map_or(0, Vec::len);
        Poll::Ready(next.map(|piece| Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left as u64)
    }
}

/// A text and the memory it takes.
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
    ApiError::unavailable("busy", message, RETRY_SOON)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;

    const ALL: usize = 16 * UNIT;

    fn free(budget: &Budget) -> usize {
        budget.units.available_permits() * UNIT
    }

    async fn is_refused(share: impl Future<Output = Result<(), ApiError>>) -> bool {
        let began = Instant::now();
        match share.await {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(began.elapsed(), WAIT, "it was not waited for others");
                let answer = axum::response::IntoResponse::into_response(error);
                assert_eq!(
                    (answer.status(), &answer.headers()["retry-after"]),
                    (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
                );
                true
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_waits_a_moment_and_is_refused() {
        let budget = Budget::new(ALL);
        let half = budget.share(ALL / 2).await.unwrap();
        assert!(is_refused(async { budget.share(ALL / 2 + 1).await.map(drop) }).await);
        assert!(!is_refused(async { budget.share(ALL / 2).await.map(drop) }).await);
        let leave = async {
            tokio::time::sleep(WAIT / 2).await;
            drop(half);
        };
        let (taken, ()) = tokio::join!(budget.share(ALL), leave);
        assert_eq!((taken.is_ok(), free(&budget)), (true, 0));
        drop(taken);
        // A request for more than the whole budget gets all of it.
        assert!(budget.share(100 * ALL).await.is_ok());
        assert_eq!(free(&budget), ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_grows_as_far_as_there_is_room() {
        let budget = Budget::new(ALL);
        let mut share = budget.share(0).await.unwrap();
        for (bytes, left) in [
            (1, ALL - UNIT),
            (UNIT, ALL - UNIT),
            (UNIT + 1, ALL - 2 * UNIT),
            (1, ALL - 2 * UNIT),
        ] {
            budget.grow(&mut share, bytes).await.unwrap();
            assert_eq!(free(&budget), left, "{bytes}");
        }
        let other = budget.share(ALL / 2).await.unwrap();
        assert!(is_refused(budget.grow(&mut share, ALL)).await);
        assert_eq!(free(&budget), ALL / 2 - 2 * UNIT, "a refusal takes nothing");
        drop(other);
        budget.grow(&mut share, ALL).await.unwrap();
        drop(share);
        assert_eq!(free(&budget), ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_waits_as_long_as_it_takes() {
        let budget = Budget::new(ALL);
        let all = budget.share(ALL).await.unwrap();
        let leave = async {
            tokio::time::sleep(WAIT * 100).await;
            drop(all);
        };
        let (share, ()) = tokio::join!(budget.share_in_time(ALL), leave);
        assert_eq!(free(&budget), 0);
        drop(share);
        assert_eq!(free(&budget), ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_keeps_what_its_text_takes_until_it_is_sent_or_dropped() {
        let budget = Budget::new(ALL);
        let answer = async || {
            budget
                .share(ALL)
                .await
                .unwrap()
                .answer(&"x".repeat(3 * UNIT))
        };
        let dropped = answer().await;
        assert_eq!(
            free(&budget),
            ALL - 4 * UNIT,
            "the rest of the share goes back with the text made"
        );
        drop(dropped);
        assert_eq!(free(&budget), ALL);
        let mut body = answer().await.into_body();
        let sent = body.frame().await.unwrap().unwrap().into_data().unwrap();
        drop(body);
        let mut rest = sent.clone();
        drop(rest.split_to(3 * UNIT));
        drop(sent);
        assert_eq!(free(&budget), ALL - 4 * UNIT, "the last of it is not sent");
        drop(rest);
        assert_eq!(free(&budget), ALL);
    }
}
