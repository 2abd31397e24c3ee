//! Calls for the operators of a store: its figures, the erasure of what was removed, and what a
//! retention would remove.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::body::JsonBody;
use crate::http::error::{ApiError, ErrorBody, RefusesBody, RefusesCall, RefusesClient};
use crate::http::key::Operator;
use crate::http::query::present;
use crate::http::service::Service;
use crate::log::SessionLog;
use crate::model::{Compacted, Erasure, Retention, RetentionPlan, Space, Stats, time_text};
use crate::sync::{AtomicBool, Ordering};

/// What was written anew.
#[derive(Serialize, ToSchema)]
#[schema(as = Compacted)]
pub(super) struct CompactedBody {
    /// The number of segments that were written.
    segments: u64,
    /// The bytes of all segments before.
    bytes_before: u64,
    /// The bytes of all segments after.
    bytes_after: u64,
}

impl From<Compacted> for CompactedBody {
    fn from(done: Compacted) -> Self {
        Self {
            segments: done.segments,
            bytes_before: done.bytes_before,
            bytes_after: done.bytes_after,
        }
    }
}

/// Erase what was removed
///
/// Writes each file anew that holds something removed, and answers when it is done. A caller that
/// leaves ends it: what is left is erased in time, in the background.
#[utoipa::path(
    post,
    path = "/v1/compact",
    operation_id = "compact",
    responses(
        (status = 200, description = "It is erased", body = CompactedBody),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn compact(
    Operator(access): Operator,
    State(service): State<Arc<Service>>,
) -> Result<Json<CompactedBody>, ApiError> {
    let _place = service.stream_place(&access)?;
    let left = CallerLeft::default();
    let (has_left, stopper) = (Arc::clone(&left.0), service.config.stopper());
    let done = service.read(move |log| {
        log.compact(|_progress| {
            if has_left.load(Ordering::Relaxed) || stopper.is_stopping() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    });
    Ok(Json(done.await?.into()))
}

/// Says, when it is dropped, that the caller does not wait any more.
#[derive(Default)]
struct CallerLeft(Arc<AtomicBool>);

impl Drop for CallerLeft {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The figures of the store.
#[derive(Serialize, ToSchema)]
#[schema(as = Stats)]
pub(super) struct StatsBody {
    /// The random number of the store, as 32 hexadecimal digits.
    store_id: String,
    /// The version of the format of its folder.
    #[schema(minimum = 1)]
    format: u32,
    /// The newest event or change. `null` in an empty store.
    last_id: Option<String>,
    /// The number of events in the store.
    events: u64,
    /// Batches since the start of the server.
    batches: u64,
    /// Commit groups since then: each is one write and one barrier.
    groups: u64,
    /// Bytes written to the journal since then.
    journal_bytes: u64,
    /// Seconds spent in writes and barriers of groups.
    barrier_seconds: f64,
    /// The longest of them.
    barrier_seconds_max: f64,
    /// The number of segments.
    segments: u64,
    /// The bytes of their files.
    segment_bytes: u64,
    /// The segments by tier, from the lowest. Merging makes those of the next tier.
    tiers: Vec<TierBody>,
    /// Merges of segments since the start of the server.
    merges: u64,
    /// The memory for events that are in no segment, by estimate.
    recent_bytes: u64,
    /// Segments that the index does not cover yet.
    index_lag: u64,
    /// How often the index was rebuilt since the start of the server.
    index_rebuilds: u64,
    /// The number of open streams.
    streams: u64,
    /// Failed attempts of background work since the start of the server.
    refusals: u64,
    /// Background work that the system refuses now.
    refused: Vec<RefusalBody>,
    erasure: ErasureBody,
    space: SpaceBody,
}

/// The segments of one tier.
#[derive(Serialize, ToSchema)]
#[schema(as = Tier)]
struct TierBody {
    tier: u8,
    /// The number of segments in it.
    segments: u64,
    /// The bytes of their files.
    bytes: u64,
}

/// The space that the log takes on the disk, without the index.
#[derive(Serialize, ToSchema)]
#[schema(as = Space)]
struct SpaceBody {
    /// The bytes of segments, without the dead ones.
    live_bytes: u64,
    /// The bytes of segments that hold what was removed, by estimate.
    dead_bytes: u64,
    /// The bytes of journal files, spare ones included.
    journal_bytes: u64,
    /// The bytes of the segments and of the journal.
    total_bytes: u64,
    /// The number of journal files, spare ones included.
    journal_files: u64,
    /// The number of segments and journal files.
    files: u64,
    /// The bytes of the segments that are being merged now.
    merging_bytes: u64,
    /// The bytes that were stored in the last 24 hours and are still there, by estimate.
    growth_bytes_a_day: u64,
    /// The time of the oldest stored event or change, which may have been removed since. `null` in
    /// an empty store.
    #[schema(format = DateTime)]
    oldest: Option<String>,
}

impl SpaceBody {
    fn new(space: Space) -> Self {
        Self {
            live_bytes: space.live_bytes,
            dead_bytes: space.dead_bytes,
            journal_bytes: space.journal_bytes,
            total_bytes: space.total_bytes,
            journal_files: space.journal_files,
            files: space.files,
            merging_bytes: space.merging_bytes,
            growth_bytes_a_day: space.growth_bytes_a_day,
            oldest: space.oldest.map(time_text),
        }
    }
}

/// Background work that the system refuses.
#[derive(Serialize, ToSchema)]
#[schema(as = Refusal)]
struct RefusalBody {
    work: &'static str,
    /// The code of the last error.
    code: &'static str,
    /// The last error, for people.
    error: String,
    /// How long it has been refused, in seconds.
    seconds: f64,
}

/// What was removed and is not erased yet.
#[derive(Serialize, ToSchema)]
#[schema(as = Erasure)]
struct ErasureBody {
    /// When the next of it has to be gone. `null` if nothing removed is stored.
    #[schema(format = DateTime)]
    due: Option<String>,
    /// Whether that time has passed.
    overdue: bool,
    /// The number of removed events that segments still hold, by estimate.
    events: u64,
}

impl StatsBody {
    pub(super) fn new(stats: Stats, erasure: Erasure) -> Self {
        let refused = stats.refused.into_iter().map(|refusal| RefusalBody {
            work: refusal.work,
            code: refusal.code,
            error: refusal.error,
            seconds: refusal.lasts.as_secs_f64(),
        });
        let tiers = stats.tiers.into_iter().map(|tier| TierBody {
            tier: tier.tier,
            segments: tier.segments,
            bytes: tier.bytes,
        });
        Self {
            store_id: stats.store_id,
            format: stats.format,
            last_id: stats.last_id.map(|id| id.to_string()),
            events: stats.events,
            batches: stats.batches,
            groups: stats.groups,
            journal_bytes: stats.journal_bytes,
            barrier_seconds: stats.barrier_time.as_secs_f64(),
            barrier_seconds_max: stats.barrier_time_max.as_secs_f64(),
            segments: stats.segments,
            segment_bytes: stats.segment_bytes,
            tiers: tiers.collect(),
            merges: stats.merges,
            recent_bytes: stats.recent_bytes,
            index_lag: stats.index_lag,
            index_rebuilds: stats.index_rebuilds,
            streams: stats.streams,
            refusals: stats.refusals,
            refused: refused.collect(),
            erasure: ErasureBody {
                due: erasure.due.map(time_text),
                overdue: erasure.overdue,
                events: erasure.events,
            },
            space: SpaceBody::new(stats.space),
        }
    }
}

/// Get the figures of the store
#[utoipa::path(
    get,
    path = "/v1/stats",
    operation_id = "get_stats",
    responses(
        (status = 200, description = "The figures", body = StatsBody),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn stats(
    _operator: Operator,
    State(service): State<Arc<Service>>,
) -> Result<Json<StatsBody>, ApiError> {
    let read = |log: &SessionLog| Ok(StatsBody::new(log.stats(), log.erasure()?));
    Ok(Json(service.read(read).await?))
}

/// How long sessions and their events would be kept. What is left out has no limit.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Retention)]
pub(super) struct RetentionBody {
    /// A session that got no event for so many seconds would be deleted.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1)]
    idle_seconds: Option<u64>,
    /// Events that are older, in seconds, would be trimmed.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1)]
    max_age_seconds: Option<u64>,
    /// The events that a session would keep at most.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1)]
    max_events: Option<u64>,
    /// The bytes of events that a session would keep at most.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = i64, required = false, minimum = 1)]
    max_bytes: Option<u64>,
}

impl TryFrom<RetentionBody> for Retention {
    type Error = ApiError;

    fn try_from(body: RetentionBody) -> Result<Self, ApiError> {
        let limits = [
            body.idle_seconds,
            body.max_age_seconds,
            body.max_events,
            body.max_bytes,
        ];
        if limits
            .into_iter()
            .flatten()
            .any(|limit| i64::try_from(limit).is_err())
        {
            return Err(ApiError::invalid("a limit does not fit 63 bits"));
        }
        let mut retention = Self::new();
        retention.idle = body.idle_seconds.map(Duration::from_secs);
        retention.max_age = body.max_age_seconds.map(Duration::from_secs);
        retention.max_events = body.max_events;
        retention.max_bytes = body.max_bytes;
        Ok(retention)
    }
}

/// What would be removed.
#[derive(Serialize, ToSchema)]
#[schema(as = RetentionPlan)]
pub(super) struct PlanBody {
    /// Sessions that would be deleted.
    sessions_deleted: u64,
    /// Sessions that would be trimmed.
    sessions_trimmed: u64,
    /// Events that would be removed.
    events: u64,
    /// The bytes of these events. Those of trimmed events are estimated by their number.
    bytes: u64,
}

impl From<RetentionPlan> for PlanBody {
    fn from(plan: RetentionPlan) -> Self {
        Self {
            sessions_deleted: plan.sessions_deleted,
            sessions_trimmed: plan.sessions_trimmed,
            events: plan.events,
            bytes: plan.bytes,
        }
    }
}

/// Say what a retention would remove now
///
/// Nothing is removed. Sessions on hold are exempt, and sessions with a retention of their own
/// count by that. It looks at every session, which takes seconds for a million of them.
#[utoipa::path(
    post,
    path = "/v1/retention/plan",
    operation_id = "plan_retention",
    request_body = RetentionBody,
    responses(
        (status = 200, description = "What would be removed", body = PlanBody),
        (status = 400, description = "A limit of 0, or no JSON", body = ErrorBody),
        RefusesBody,
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn plan(
    Operator(access): Operator,
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PlanBody>, ApiError> {
    let body = JsonBody::of(&headers, body, &service).await?;
    let retention = Retention::try_from(body.parsed::<RetentionBody>()?)?;
    let _place = service.stream_place(&access)?;
    let plan = service.read(move |log| log.plan(retention)).await?;
    Ok(Json(plan.into()))
}
