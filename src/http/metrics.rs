//! Observability: a log line for each request, and metrics in the text format of Prometheus.

use std::fmt;
use std::iter::once;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing::{Instrument, Span};

use crate::http::trace::{self, TraceParent};
use crate::log::SessionLog;
use crate::model::{Erasure, Stats};

/// The buckets of the request time, in seconds.
const SECONDS: [f64; 12] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0,
];

/// The route of appends, which are not all matched by the router.
const APPEND: &str = "/v1/sessions/{session_id}/events";

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
    /// Those of appends with status 200, kept at hand so that no labels are looked up for them.
    appended: (Counter, Histogram),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    #[prometheus(flatten)]
    call: CallLabels,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    /// The route of the API. The paths of requests would be unlimited in number.
    route: String,
}

impl Metrics {
    pub(super) fn new(log: SessionLog) -> Self {
        let mut registry = Registry::with_prefix("sessionlog");
        let requests = Family::default();
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> _);
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register(
            "http_request_seconds",
            "Time until a request was answered, streams until they began",
            seconds.clone(),
        );
        registry.register_collector(Box::new(OfLog(log)));
        let call = CallLabels::of(&Method::POST, APPEND);
        let appended = (
            requests.get_or_create_owned(&RequestLabels {
                call: call.clone(),
                status: OK,
            }),
            seconds.get_or_create_owned(&call),
        );
        Self {
            registry,
            requests,
            seconds,
            appended,
        }
    }

    pub(super) fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    fn note(&self, method: &Method, route: &Route, status: u16, took: Duration) {
        let seconds = took.as_secs_f64();
        if let (Route::Append, OK) = (route, status) {
            let (requests, times) = &self.appended;
            requests.inc();
            times.observe(seconds);
            return;
        }
        let call = CallLabels::of(method, route.as_str());
        self.seconds.get_or_create(&call).observe(seconds);
        self.requests
            .get_or_create(&RequestLabels { call, status })
            .inc();
    }
}

impl CallLabels {
    fn of(method: &Method, route: &str) -> Self {
        Self {
            method: label_of(method),
            route: route.to_owned(),
        }
    }
}

/// Returns the label of a method. Clients can make up methods, and each label is kept forever.
fn label_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Wraps every request: runs it in a span, counts it, and writes an access log line. Of the headers
/// the line has the trace alone, and so no token.
pub(super) async fn observe(
    State(metrics): State<Arc<Metrics>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let route = Route::Matched(parts.extensions.get().cloned());
    let mut observed = Observed::begun(metrics, &parts, route);
    let request = Request::from_parts(parts, body);
    let mut response = next.run(request).instrument(observed.span.clone()).await;
    observed.answered(response.status().as_u16());
    add_fields(response.headers_mut());
    response
}

/// Adds the fields that every answer has.
pub(super) fn add_fields(headers: &mut HeaderMap) {
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Pages of other sites cannot embed the answer, even if no key is required.
    headers.insert(
        CROSS_ORIGIN_RESOURCE_POLICY,
        HeaderValue::from_static("same-origin"),
    );
}

/// The status of a request whose client left before the answer, or that was cut off when the server
/// stopped.
const CLIENT_LEFT: u16 = 499;

const OK: u16 = 200;

/// What a request asks for.
pub(super) enum Route {
    /// What the router found.
    Matched(Option<MatchedPath>),
    /// An append that takes no router.
    Append,
    /// An append of another protocol that takes none.
    Other(Arc<str>),
}

impl Route {
    fn as_str(&self) -> &str {
        match self {
            Self::Matched(Some(path)) => path.as_str(),
            Self::Matched(None) => "none",
            Self::Append => APPEND,
            Self::Other(route) => route,
        }
    }
}

/// A request in progress. It is logged when it ends, even if its client left.
pub(super) struct Observed {
    metrics: Arc<Metrics>,
    trace: Option<TraceParent>,
    began: Instant,
    method: Method,
    uri: Uri,
    route: Route,
    status: u16,
    /// The span to run the request in.
    pub span: Span,
}

impl Observed {
    pub(super) fn begun(metrics: Arc<Metrics>, request: &Parts, route: Route) -> Self {
        let trace = TraceParent::of(&request.headers);
        Self {
            metrics,
            trace,
            began: Instant::now(),
            method: request.method.clone(),
            uri: request.uri.clone(),
            status: CLIENT_LEFT,
            span: trace::span(request, route.as_str(), trace),
            route,
        }
    }

    pub(super) fn answered(&mut self, status: u16) {
        self.status = status;
        self.span.record("status", status);
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Self {
            metrics,
            trace,
            began,
            method,
            uri,
            route,
            status,
            span: _,
        } = self;
        let took = began.elapsed();
        metrics.note(method, route, *status, took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(
            target: "sessionlog::access",
            %method,
            path = uri.path(),
            status,
            micros,
            trace_id = trace.map(|trace| tracing::field::display(trace.trace_id())),
            "request"
        );
    }
}

/// The log's own metrics, read when they are collected.
#[derive(Debug)]
struct OfLog(SessionLog);

impl Collector for OfLog {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.0.stats();
        let is_up = u64::from(self.0.health().is_ok());
        let up = (
            "up",
            "Whether the log is open and no write has failed",
            Gauge(is_up),
        );
        let erasure = self.0.erasure().ok();
        let all = once(up).chain(of_appends(&stats)).chain(of_store(&stats));
        let all = all.chain(of_background(&stats));
        for (name, help, value) in all.chain(erasure.iter().flat_map(of_erasure)) {
            value.put(name, help, &mut encoder)?;
        }
        Ok(())
    }
}

use Value::{Count, Gauge, Level, Sum};

/// A metric's name, what it means, and its value.
type Metric = (&'static str, &'static str, Value);

enum Value {
    Count(u64),
    /// A counter that need not be whole.
    Sum(f64),
    Gauge(u64),
    /// A gauge that need not be whole.
    Level(f64),
}

fn of_appends(stats: &Stats) -> [Metric; 6] {
    let (time, longest) = (stats.barrier_time, stats.barrier_time_max);
    let mean = stats.batches_per_group();
    [
        ("appends", "Batches appended", Count(stats.batches)),
        (
            "groups",
            "Commit groups written, each with one barrier",
            Count(stats.groups),
        ),
        (
            "group_batches_mean",
            "Batches in a commit group, on average",
            Level(mean),
        ),
        (
            "barrier_seconds",
            "Time spent in the groups' writes and barriers",
            Sum(time.as_secs_f64()),
        ),
        (
            "barrier_seconds_max",
            "The longest of them",
            Level(longest.as_secs_f64()),
        ),
        (
            "journal_bytes",
            "Bytes written to the journal",
            Count(stats.journal_bytes),
        ),
    ]
}

fn of_store(stats: &Stats) -> [Metric; 9] {
    [
        ("events", "Durable events in the store", Gauge(stats.events)),
        ("segments", "Segments in the store", Gauge(stats.segments)),
        (
            "segment_bytes",
            "Bytes of the segments",
            Gauge(stats.segment_bytes),
        ),
        (
            "dead_bytes",
            "Bytes of the segments that hold what was removed, by estimate",
            Gauge(stats.space.dead_bytes),
        ),
        (
            "space_bytes",
            "Bytes of the segments and of the journal",
            Gauge(stats.space.total_bytes),
        ),
        (
            "growth_bytes_a_day",
            "Bytes of the segments of the last day",
            Gauge(stats.space.growth_bytes_a_day),
        ),
        (
            "merging_bytes",
            "Bytes of the segments that are being merged",
            Gauge(stats.space.merging_bytes),
        ),
        (
            "recent_bytes",
            "Memory for what is not yet in a segment",
            Gauge(stats.recent_bytes),
        ),
        ("streams", "Streams that are open", Gauge(stats.streams)),
    ]
}

fn of_erasure(erasure: &Erasure) -> [Metric; 2] {
    [
        (
            "erasure_overdue",
            "Whether something removed is stored for longer than it may be",
            Gauge(u64::from(erasure.overdue)),
        ),
        (
            "erasure_events",
            "Removed events that are still stored, by estimate",
            Gauge(erasure.events),
        ),
    ]
}

fn of_background(stats: &Stats) -> [Metric; 5] {
    let skew = stats.clock_skew.unwrap_or_default().as_secs_f64();
    let lasting = stats
        .refused
        .iter()
        .map(|refusal| refusal.lasts.as_secs_f64());
    [
        (
            "index_lag_segments",
            "Segments that the index does not cover yet",
            Gauge(stats.index_lag),
        ),
        (
            "index_rebuilds",
            "How often the index was built again",
            Count(stats.index_rebuilds),
        ),
        (
            "clock_skew_seconds",
            "How far the clock is from the newest event ID, 0 up to a day",
            Level(skew),
        ),
        (
            "background_refusals",
            "Calls that the system refused the background work",
            Count(stats.refusals),
        ),
        (
            "background_refused_seconds",
            "How long some of that work has been refused something; 0 when none is",
            Level(lasting.fold(0.0, f64::max)),
        ),
    ]
}

impl Value {
    fn put(&self, name: &str, help: &str, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        match *self {
            Count(count) => put(&ConstCounter::new(count), name, help, encoder),
            Sum(sum) => put(&ConstCounter::new(sum), name, help, encoder),
            Gauge(value) => put(&ConstGauge::new(value), name, help, encoder),
            Level(value) => put(&ConstGauge::new(value), name, help, encoder),
        }
    }
}

fn put(
    metric: &impl EncodeMetric,
    name: &str,
    help: &str,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
