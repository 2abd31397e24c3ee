//! The feed: the events and changes of all sessions in commit order, page by page.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::Response;
use axum::response::sse::Event as Frame;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use crate::http::error::{ApiError, ErrorBody, RefusesCall, RefusesClient};
use crate::http::key::{Access, Worker};
use crate::http::query::{InQuery, checked_wait, present};
use crate::http::service::Service;
use crate::http::stream::{Show, StreamFrame, last_seen, one_line, respond};
use crate::http::wire::{EventBody, hide_source};
use crate::log::SessionLog;
use crate::model::{
    Change, Event, EventId, Limit, Result, SessionChange, SessionId, check_limit, time_text,
};
use crate::read::{AsyncEventStream, StreamItem};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;

/// The most events and changes of other sessions that a page skips before it is answered.
const SKIPPED_MAX: usize = 10_000;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FeedParams {
    /// Only what was committed after this: the `last_id` of a page, or the ID of an event.
    #[serde(default, deserialize_with = "present")]
    #[param(pattern = "^evt_[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
    after: Option<String>,
    /// Only sessions whose IDs begin so.
    #[serde(default)]
    prefix: Option<String>,
    /// The most seconds to wait until there is something after `after`.
    #[serde(default)]
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait: u64,
    /// The most items on the page. A page of large events may have fewer.
    #[serde(default, deserialize_with = "present")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// A page of the feed.
#[derive(Serialize, ToSchema)]
pub(super) struct Feed {
    items: Vec<FeedItem>,
    /// Whether there may be more already.
    has_more: bool,
    /// The position up to which the page has looked, for `after`. `null` before the first item of
    /// the store.
    last_id: Option<String>,
}

/// An event, or another change of a session.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FeedItem {
    Event(EventBody),
    Change(ChangeBody),
}

/// A change of a session that is no event.
#[derive(Serialize, ToSchema)]
#[schema(as = Change)]
pub(super) struct ChangeBody {
    /// In the order of events' IDs.
    #[schema(example = "evt_01JQ3W8K5T0000000000000001")]
    id: String,
    session_id: String,
    /// How often the session had begun.
    generation: u32,
    #[schema(format = DateTime)]
    created_at: String,
    /// What changed, with a `type`: `created`, `forked`, `described`, `closed`, `reopened`,
    /// `trimmed`, `redacted` or `deleted`.
    #[schema(value_type = Object)]
    change: Value,
}

impl ChangeBody {
    /// A parent or a source that the caller may not know of is left out.
    pub(super) fn new(change: &SessionChange, access: &Access) -> Self {
        let mut what = serde_json::to_value(&change.change).unwrap_or_default();
        let parent = what.get_mut("parent");
        if let (Change::Forked { parent: id, .. }, Some(parent)) = (&change.change, parent)
            && !access.has(id)
        {
            *parent = Value::Null;
        }
        if let Some(Value::Object(metadata)) = what.get_mut("metadata") {
            hide_source(metadata, access);
        }
        Self {
            id: change.id.to_string(),
            session_id: change.session_id.to_string(),
            generation: change.generation,
            created_at: time_text(change.created_at),
            change: what,
        }
    }
}

/// Read the feed of all sessions
///
/// Events and other changes in commit order. With `wait` it answers as soon as there is something
/// behind `after`, or with an empty page when the time is over.
///
/// To a client that accepts `text/event-stream` it sends them as server-sent events, and goes on
/// with new ones: `event` or `change` with its `id` and, as `data`, what a page shows of it. An
/// event `caught_up` without an ID follows once all stored ones were sent.
#[utoipa::path(
    get,
    path = "/v1/feed",
    operation_id = "read_feed",
    params(
        FeedParams,
        (
            "Last-Event-ID" = Option<String>,
            Header,
            description = "Only what comes after this, of a stream",
            pattern = "^(evt_[0-7][0-9A-HJKMNP-TV-Z]{25})?$",
        ),
    ),
    responses(
        (
            status = 200,
            description = "A page, or a stream of server-sent events",
            content(
                (Feed = "application/json"),
                (StreamFrame = "text/event-stream"),
            ),
        ),
        (status = 400, description = "A bad ID, limit or time", body = ErrorBody),
        (
            status = 404,
            description = "The store has not come so far, as after a restore from an older copy",
            body = ErrorBody,
        ),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn read(
    Worker(access): Worker,
    State(service): State<Arc<Service>>,
    InQuery(params): InQuery<FeedParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + checked_wait(params.wait)?;
    let after = params.after.map(|id| id.parse::<EventId>()).transpose()?;
    let last_seen = last_seen(&headers)?
        .map(str::parse::<EventId>)
        .transpose()?;
    let shown = Shown {
        access,
        prefix: params.prefix.unwrap_or_default(),
    };
    if accepts_stream(&headers) {
        let place = service.stream_place(&shown.access)?;
        let feed = service.feed(last_seen.or(after)).await?;
        return Ok(respond(service, feed, shown, place));
    }
    let limit = params.limit.unwrap_or(LIMIT_DEFAULT);
    check_limit(Limit::PageEvents, limit, LIMIT_MAX)?;
    if limit == 0 {
        return Err(ApiError::invalid(
            "limit is 0, and a page has at least one item",
        ));
    }
    let page = PageOfFeed {
        shown,
        limit,
        bytes_max: service.config.page_bytes_max,
        bytes: 0,
        skipped: 0,
        items: Vec::new(),
        last: after,
    };
    let fill = |page: PageOfFeed| service.read_page(move |log| page.filled(log));
    let ((mut page, mut left), mut share) = fill(page).await?;
    if left == Left::Nothing && page.items.is_empty() && params.wait > 0 {
        // A waiting call holds no memory of the budget.
        drop(share);
        let _place = service.stream_place(&page.shown.access)?;
        let stopper = service.config.stopper();
        let mut feed = service.feed(page.last).await?.into_async();
        tokio::select! {
            news = timeout_at(deadline, page.wait(&mut feed)) => news.unwrap_or(Ok(()))?,
            () = stopper.stopped() => {}
        }
        ((page, left), share) = fill(page).await?;
    }
    Ok(share.answer(&page.answer(left)))
}

/// What a page leaves of the feed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    More,
    Nothing,
}

/// Whether a client wants the feed as server-sent events, as an `EventSource` says.
fn accepts_stream(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter();
    accepted.any(|types| {
        let types = types.to_str().unwrap_or_default();
        types.split(',').any(|one| {
            let essence = one.split(';').next().unwrap_or_default().trim();
            essence.eq_ignore_ascii_case("text/event-stream")
        })
    })
}

/// The part of the feed that is shown.
struct Shown {
    access: Access,
    prefix: String,
}

impl Shown {
    fn has(&self, session: &SessionId) -> bool {
        self.access.has(session) && session.as_str().starts_with(&self.prefix)
    }
}

impl Show for Shown {
    fn takes(&self, event: &Event) -> bool {
        self.has(&event.session_id)
    }

    fn event(&self, event: &Event) -> Frame {
        frame(event.id, "event", &EventBody::from(event))
    }

    fn change(&self, change: &SessionChange) -> Option<Frame> {
        let body = || ChangeBody::new(change, &self.access);
        self.has(&change.session_id)
            .then(|| frame(change.id, "change", &body()))
    }
}

fn frame(id: EventId, name: &str, body: &impl Serialize) -> Frame {
    Frame::default()
        .id(id.to_string())
        .event(name)
        .data(one_line(body))
}

struct PageOfFeed {
    shown: Shown,
    limit: usize,
    bytes_max: usize,
    bytes: usize,
    skipped: usize,
    items: Vec<FeedItem>,
    last: Option<EventId>,
}

impl PageOfFeed {
    /// Reads on from where the page has come, until it is full or nothing is left for now.
    fn filled(mut self, log: &SessionLog) -> Result<(Self, Left)> {
        let mut feed = log.feed_from(self.last)?;
        while !self.is_full() {
            match feed.next().transpose()? {
                None | Some(StreamItem::CaughtUp) => return Ok((self, Left::Nothing)),
                Some(item) => self.take(item),
            }
        }
        Ok((self, Left::More))
    }

    /// Waits until the page has an item.
    async fn wait(&mut self, feed: &mut AsyncEventStream) -> Result<()> {
        while self.items.is_empty()
            && let Some(item) = feed.next().await.transpose()?
        {
            self.take(item);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.items.len() >= self.limit
            || self.bytes >= self.bytes_max
            || self.skipped >= SKIPPED_MAX
    }

    fn take(&mut self, item: StreamItem) {
        match item {
            StreamItem::Event(event) => {
                self.last = Some(event.id);
                if self.has(&event.session_id) {
                    self.bytes = self.bytes.saturating_add(event.data.len());
                    self.items.push(FeedItem::Event(EventBody::from(&event)));
                }
            }
            StreamItem::Change(change) => {
                self.last = Some(change.id);
                if self.has(&change.session_id) {
                    self.items.push(FeedItem::Change(ChangeBody::new(
                        &change,
                        &self.shown.access,
                    )));
                }
            }
            StreamItem::CaughtUp | StreamItem::Closed | StreamItem::Deleted => {}
        }
    }

    /// Whether the page shows a session. One that it does not show is counted.
    fn has(&mut self, session: &SessionId) -> bool {
        let has = self.shown.has(session);
        self.skipped += usize::from(!has);
        has
    }

    fn answer(self, left: Left) -> Feed {
        Feed {
            items: self.items,
            has_more: left == Left::More,
            last_id: self.last.map(|id| id.to_string()),
        }
    }
}
