//! The trace that a request belongs to, as the W3C recommendation "Trace Context" describes it, and
//! the span that the request runs in.
//!
//! A request with a valid `traceparent` runs in a span of the level `INFO`, since its client wants
//! to find it. Other requests run in one of the level `DEBUG`. Both have the target
//! `sessionlog::http`. A span that no subscriber wants costs a comparison of levels.

use std::fmt;

use axum::http::HeaderMap;
use axum::http::header::HeaderName;
use axum::http::request::Parts;
use tracing::Span;
use tracing::field::{Empty, display};
use ulid::Ulid;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The place of a request in a trace, as its client sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TraceParent {
    trace: u128,
    /// The span of the client.
    parent: u64,
    flags: u8,
}

impl TraceParent {
    /// Returns what the client sent. A header that breaks the recommendation counts as none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut sent = headers.get_all(TRACEPARENT).iter();
        match (sent.next(), sent.next()) {
            (Some(one), None) => Self::parsed(one.as_bytes()),
            _ => None,
        }
    }

    /// Parses `version-trace-parent-flags`. A later version may have more behind it.
    fn parsed(sent: &[u8]) -> Option<Self> {
        let (version, rest) = hex_before_dash(sent, 2)?;
        let (trace, rest) = hex_before_dash(rest, 32)?;
        let (parent, rest) = hex_before_dash(rest, 16)?;
        let (flags, more) = rest.split_at_checked(2)?;
        let flags = hex(flags)?;
        let is_known = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.is_empty() || more.starts_with(b"-"),
        };
        let valid = is_known && trace != 0 && parent != 0;
        valid.then_some(Self {
            trace,
            parent: u64::try_from(parent).ok()?,
            flags: u8::try_from(flags).ok()?,
        })
    }

    /// The ID of the trace, for the access log.
    pub(super) fn trace_id(self) -> impl fmt::Display {
        format_args_hex(self.trace)
    }
}

fn format_args_hex(trace: u128) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{trace:032x}"))
}

/// Reads `digits` hexadecimal digits in front of a dash, and returns what is behind it.
fn hex_before_dash(text: &[u8], digits: usize) -> Option<(u128, &[u8])> {
    let (value, rest) = text.split_at_checked(digits)?;
    Some((hex(value)?, rest.strip_prefix(b"-")?))
}

/// Reads lower-case hexadecimal digits, the only ones that the recommendation allows.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((value << 4) | u128::from(digit))
    })
}

/// Returns the span for a request by this route.
pub(super) fn span(request: &Parts, route: &str, parent: Option<TraceParent>) -> Span {
    macro_rules! request_span {
        ($span:ident) => {
            tracing::$span!(
                target: "sessionlog::http",
                "request",
                method = %request.method,
                route,
                trace_id = Empty,
                span_id = Empty,
                status = Empty,
                otel.name = Empty,
                otel.kind = Empty,
            )
        };
    }
    let span = if parent.is_some() {
        request_span!(info_span)
    } else {
        request_span!(debug_span)
    };
    if !span.is_disabled() {
        let (trace, id) = identified(&span, parent, request, route);
        span.record("trace_id", display(format_args_hex(trace)));
        span.record(
            "span_id",
            display(fmt::from_fn(move |f| write!(f, "{id:016x}"))),
        );
    }
    span
}

/// Returns the trace and the ID of a new span.
#[cfg(not(feature = "otel"))]
fn identified(
    _span: &Span,
    parent: Option<TraceParent>,
    _request: &Parts,
    _route: &str,
) -> (u128, u64) {
    own_ids(parent)
}

fn own_ids(parent: Option<TraceParent>) -> (u128, u64) {
    let random = Ulid::generate();
    let trace = parent.map_or(random.0, |parent| parent.trace);
    // The lower half of it is random.
    let id = u64::try_from(random.0 & u128::from(u64::MAX)).unwrap_or(1);
    (trace, id.max(1))
}

/// As above, with the IDs under which the span is exported.
#[cfg(feature = "otel")]
fn identified(
    span: &Span,
    parent: Option<TraceParent>,
    request: &Parts,
    route: &str,
) -> (u128, u64) {
    use opentelemetry::trace::TraceContextExt;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    span.record("otel.kind", "server");
    span.record(
        "otel.name",
        display(format_args!("{} {route}", request.method)),
    );
    if let Some(parent) = parent {
        let context = exported::context(parent, &request.headers);
        // A subscriber that exports nothing has no use for it.
        let _unused = span.set_parent(context);
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    if !context.is_valid() {
        return own_ids(parent);
    }
    (
        u128::from_be_bytes(context.trace_id().to_bytes()),
        u64::from_be_bytes(context.span_id().to_bytes()),
    )
}

#[cfg(feature = "otel")]
mod exported {
    use axum::http::HeaderMap;
    use opentelemetry::Context;
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
    };

    use super::TraceParent;

    /// The parent of an exported span.
    pub(super) fn context(parent: TraceParent, headers: &HeaderMap) -> Context {
        let sampled = TraceFlags::new(parent.flags) & TraceFlags::SAMPLED;
        let context = SpanContext::new(
            TraceId::from_bytes(parent.trace.to_be_bytes()),
            SpanId::from_bytes(parent.parent.to_be_bytes()),
            sampled,
            true,
            state(headers),
        );
        Context::new().with_remote_span_context(context)
    }

    /// The `tracestate` of other systems. A malformed one counts as none, and the trace stays.
    fn state(headers: &HeaderMap) -> TraceState {
        let lists = headers.get_all("tracestate").iter();
        let lists: Result<Vec<&str>, _> = lists.map(|list| list.to_str()).collect();
        let state = lists.ok().and_then(|lists| lists.join(",").parse().ok());
        state.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(sent: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for one in sent {
            headers.append(TRACEPARENT, one.parse().unwrap());
        }
        TraceParent::of(&headers).map(|parent| parent.trace_id().to_string())
    }

    #[test]
    fn a_traceparent_of_the_recommendation_names_its_trace() {
        let trace = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
        assert_eq!(of(&[SENT]), trace);
        for later in ["", "-", "-more of a later version"] {
            assert_eq!(
                of(&[&format!("{}{later}", SENT.replacen("00", "01", 1))]),
                trace
            );
        }
    }

    #[test]
    fn a_malformed_traceparent_counts_as_none() {
        for sent in [
            "",
            "00",
            &SENT.to_uppercase(),
            &SENT.replacen("00", "ff", 1),
            &SENT.replacen("00", "0g", 1),
            &format!("{SENT}-more"),
            &format!("{SENT} "),
            &format!("{}x", SENT.replacen("00", "01", 1)),
            &SENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &SENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &SENT.replace('-', "_"),
            SENT.strip_suffix('1').unwrap(),
            SENT.strip_suffix("-01").unwrap(),
        ] {
            assert_eq!(of(&[sent]), None, "{sent:?}");
        }
        assert_eq!(of(&[SENT, SENT]), None, "two of them contradict each other");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_span_that_nobody_wants_is_disabled() {
        let (request, ()) = axum::http::Request::new(()).into_parts();
        assert!(span(&request, "none", None).is_disabled());
    }
}
