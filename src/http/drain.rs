//! Reads the rest of a refused request for a while. Closing the connection on it at once would
//! break off the answer too.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Error;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;

use crate::sync::Mutex;

const DRAINED_BYTES_MAX: usize = 16 * 1024 * 1024;
const DRAINED_FOR_MAX: Duration = Duration::from_secs(2);

/// Wraps everything that may refuse a request.
pub(super) async fn drain_refused(mut request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let sends_when_told = request
        .headers()
        .get(EXPECT)
        .is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let body = Shared::from(std::mem::take(request.body_mut()));
    *request.body_mut() = Body::new(body.clone());
    let response = next.run(request).await;
    let is_refused = response.status().is_client_error() || response.status().is_server_error();
    // A client with `Expect: 100-continue` sends its body only after a handler began to read it.
    if is_refused && (body.was_begun() || !sends_when_told) {
        drain(body).await;
    }
    response
}

async fn drain(mut body: Shared) {
    let mut left = DRAINED_BYTES_MAX;
    let drained = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // A client that sends more, or for longer, is disconnected.
    let _in_time = timeout(DRAINED_FOR_MAX, drained).await;
}

/// A body that the handler and the draining share.
#[derive(Clone)]
struct Shared(Arc<Mutex<Shareable>>);

struct Shareable {
    body: Body,
    was_begun: bool,
    /// Whether the body has ended. It may not be polled after that.
    has_ended: bool,
}

impl From<Body> for Shared {
    fn from(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Shareable {
            body,
            was_begun: false,
            has_ended: false,
        })))
    }
}

impl Shared {
    fn was_begun(&self) -> bool {
        self.0.lock().was_begun
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut shared = self.0.lock();
        shared.was_begun = true;
        if shared.has_ended {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut shared.body).poll_frame(context);
        shared.has_ended = matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}
