//! The trace that a request belongs to: its span, and its line in the access log.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use axum::body::Body;
use axum::http::Method;
use sessionlog::SessionLog;
use sessionlog::http::{self, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::here::{GET, LAST, Sent};
use crate::support::{KEY, Scene, request};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What a subscriber saw of the requests.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    spans: Vec<Fields>,
    lines: Vec<Fields>,
    /// The threads on which a span was entered.
    threads: Vec<ThreadId>,
}

type Named = BTreeMap<&'static str, String>;

#[derive(Clone, Default)]
struct Fields(Named);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0
            .insert(field.name(), format!("{value:?}").replace('"', ""));
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Seen {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let level = attributes.metadata().level().to_string();
        fields.0.insert("level", level);
        let span = context.span(id).unwrap();
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &tracing::span::Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        values.record(span.extensions_mut().get_mut::<Fields>().unwrap());
    }

    fn on_enter(&self, _id: &Id, _context: Context<'_, S>) {
        self.0.lock().unwrap().threads.push(thread::current().id());
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        let fields = span.extensions().get::<Fields>().unwrap().clone();
        self.0.lock().unwrap().spans.push(fields);
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        if event.metadata().target() == "sessionlog::access" {
            let mut fields = Fields::default();
            event.record(&mut fields);
            self.0.lock().unwrap().lines.push(fields);
        }
    }
}

/// Calls with these headers, and returns what was seen of that at this level.
async fn seen(level: Level, path: &str, headers: &[(&'static str, String)]) -> Record {
    let seen = Seen::default();
    let subscriber = tracing_subscriber::registry()
        .with(seen.clone())
        .with(LevelFilter::from_level(level));
    let scene = Scene::new();
    {
        let _here = tracing::subscriber::set_default(subscriber);
        let mut call = request(Method::GET, path, Body::empty());
        for (name, value) in headers {
            call.headers_mut().append(*name, value.parse().unwrap());
        }
        scene.call(call).await;
    }
    std::mem::take(&mut *seen.0.lock().unwrap())
}

fn traceparent(version: &str) -> (&'static str, String) {
    (
        "traceparent",
        format!("{version}-{TRACE}-00f067aa0ba902b7-01"),
    )
}

#[tokio::test]
async fn a_request_of_a_trace_runs_in_a_span_of_it_also_where_it_reads() {
    let state = ("tracestate", "vendor=value".to_owned());
    let seen = seen(Level::INFO, "/v1/sessions", &[traceparent("00"), state]).await;
    let [span] = &seen.spans[..] else {
        panic!("there is one span for one request");
    };
    let field = |name| span.0.get(name).map(String::as_str);
    assert_eq!(
        ["level", "trace_id", "method", "route", "status"].map(field),
        [
            Some("INFO"),
            Some(TRACE),
            Some("GET"),
            Some("/v1/sessions"),
            Some("200")
        ]
    );
    let id = field("span_id").unwrap();
    assert!(id.len() == 16 && id != "00f067aa0ba902b7", "{id}");
    let here = thread::current().id();
    assert!(
        seen.threads.iter().any(|thread| *thread != here),
        "the thread that reads from the disk is in no span"
    );
    assert_eq!(seen.lines[0].0["trace_id"], TRACE);
    let all = format!("{:?}{:?}", span.0, seen.lines[0].0);
    assert!(!all.contains(KEY), "{all}");
}

#[tokio::test]
async fn a_request_without_a_valid_trace_gets_one_of_its_own_when_it_is_debugged() {
    for headers in [vec![], vec![traceparent("ff")], vec![traceparent("00"); 2]] {
        let debugged = seen(Level::DEBUG, "/v1/sessions/s", &headers).await;
        let span = &debugged.spans[0].0;
        assert_eq!((&*span["level"], &*span["status"]), ("DEBUG", "404"));
        assert!(span["trace_id"].len() == 32 && span["trace_id"] != TRACE);
        assert_eq!(debugged.lines[0].0.get("trace_id"), None);
        let usual = seen(Level::INFO, "/v1/sessions/s", &headers).await;
        assert!(usual.spans.is_empty() && usual.lines.len() == 1);
    }
}

/// Sends this to a server on this thread, and returns what was seen of appends at this level.
async fn seen_of_appends(level: Level, sent: &[u8]) -> Record {
    let seen = Seen::default();
    let subscriber = tracing_subscriber::registry()
        .with(seen.clone())
        .with(LevelFilter::from_level(level));
    let _here = tracing::subscriber::set_default(subscriber);
    let folder = tempfile::tempdir().unwrap();
    let log = SessionLog::open(folder.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(sent).await.unwrap();
        socket.write_all(LAST.as_bytes()).await.unwrap();
        socket.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let served = http::serve(listener, log, Config::with_api_key(KEY), asked);
    served.await.unwrap();
    let mut seen = std::mem::take(&mut *seen.0.lock().unwrap());
    seen.spans.retain(|span| span.0["method"] == "POST");
    seen.lines.retain(|line| line.0["method"] == "POST");
    seen
}

/// The connection's own loop answers the first request of a connection if it is a plain append.
#[tokio::test]
async fn an_append_leaves_the_same_trace_whoever_answers_it() {
    let plain = Sent::append("s");
    for (sent, status, level) in [
        (plain.clone(), "200", Level::DEBUG),
        (plain.clone().body("{"), "400", Level::DEBUG),
        (plain.clone().key("x"), "401", Level::DEBUG),
        (
            plain.add(traceparent("00").0, &traceparent("00").1),
            "200",
            Level::INFO,
        ),
    ] {
        let direct = seen_of_appends(level, &sent.bytes()).await;
        let routed = [GET.as_bytes(), &sent.bytes()].concat();
        let routed = seen_of_appends(level, &routed).await;
        let random: &[_] = match level {
            Level::INFO => &["span_id"],
            _ => &["span_id", "trace_id"],
        };
        let [direct, routed] = [direct, routed].map(|mut seen| {
            let [span, line] = [&mut seen.spans, &mut seen.lines].map(|all| {
                assert_eq!(all.len(), 1, "one span and one line for one request");
                all.remove(0).0
            });
            (without(span, random), without(line, &["micros"]))
        });
        assert_eq!(direct, routed);
        let (span, line) = direct;
        assert_eq!((&*span["status"], &*line["status"]), (status, status));
        assert_eq!(span["route"], "/v1/sessions/{session_id}/events");
    }
}

/// The fields without those of these names, which must be there.
fn without(mut fields: Named, names: &[&'static str]) -> Named {
    for name in names {
        assert!(fields.remove(name).is_some(), "{name} in {fields:?}");
    }
    fields
}
