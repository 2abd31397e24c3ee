//! The feed: the events and changes of all sessions in commit order, page by page.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use crate::http::error::{ApiError, ErrorBody, RefusesCall, RefusesClient};
use crate::http::key::{Access, Worker};
use crate::http::query::{InQuery, checked_wait, present};
use crate::http::service::Service;
use crate::http::wire::EventBody;
use crate::log::SessionLog;
use crate::model::{
    Change, EventId, Limit, Result, SessionChange, SessionId, check_limit, time_text,
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
struct ChangeBody {
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
    /// A parent that the caller may not know of is left out.
    fn new(change: &SessionChange, access: &Access) -> Self {
        let mut what = serde_json::to_value(&change.change).unwrap_or_default();
        let parent = what.get_mut("parent");
        if let (Change::Forked { parent: id, .. }, Some(parent)) = (&change.change, parent)
            && !access.has(id)
        {
            *parent = Value::Null;
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
#[utoipa::path(
    get,
    path = "/v1/feed",
    operation_id = "read_feed",
    params(FeedParams),
    responses(
        (status = 200, description = "A page", body = Feed),
        (status = 400, description = "A bad ID, limit or time", body = ErrorBody),
        (
            status = 404,
            description = "The store has not come so far, as after a restore from an older copy",
            body = ErrorBody,
        ),
        (status = 429, description = "Too many wait already", body = ErrorBody),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn read(
    Worker(access): Worker,
    State(service): State<Arc<Service>>,
    InQuery(params): InQuery<FeedParams>,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + checked_wait(params.wait)?;
    let after = params.after.map(|id| id.parse::<EventId>()).transpose()?;
    let limit = params.limit.unwrap_or(LIMIT_DEFAULT);
    check_limit(Limit::PageEvents, limit, LIMIT_MAX)?;
    if limit == 0 {
        return Err(ApiError::invalid(
            "limit is 0, and a page has at least one item",
        ));
    }
    let _place = service.stream_permit()?;
    let page = PageOfFeed {
        access,
        prefix: params.prefix.unwrap_or_default(),
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

struct PageOfFeed {
    access: Access,
    prefix: String,
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
                    self.items
                        .push(FeedItem::Change(ChangeBody::new(&change, &self.access)));
                }
            }
            StreamItem::CaughtUp | StreamItem::Closed | StreamItem::Deleted => {}
        }
    }

    /// Whether the page shows a session. One that it does not show is counted.
    fn has(&mut self, session: &SessionId) -> bool {
        let has = self.access.has(session) && session.as_str().starts_with(&self.prefix);
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
