//! A refusal that background work meets is reported. It is in the errors of appends that fail
//! of it, in the metrics, in the health, and in the program's log.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use crate::model::Error;
use crate::sync::Mutex;
use crate::testing::faults::{Scene, eventually};

/// The error of an append that needs the refused call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    NoSpace,
    Stalled,
    Refused,
}

const KINDS: [(ErrorKind, Told); 12] = [
    (ErrorKind::StorageFull, Told::NoSpace),
    (ErrorKind::QuotaExceeded, Told::NoSpace),
    (ErrorKind::OutOfMemory, Told::Stalled),
    (ErrorKind::ResourceBusy, Told::Stalled),
    (ErrorKind::TimedOut, Told::Stalled),
    (ErrorKind::PermissionDenied, Told::Refused),
    (ErrorKind::FileTooLarge, Told::Refused),
    (ErrorKind::NotFound, Told::Refused),
    (ErrorKind::ReadOnlyFilesystem, Told::Refused),
    (ErrorKind::NotADirectory, Told::Refused),
    (ErrorKind::InvalidInput, Told::Refused),
    (ErrorKind::StaleNetworkFileHandle, Told::Refused),
];

fn check(error: &Error, kind: ErrorKind, told: Told) {
    let found = match error {
        Error::NoSpace { .. } => Told::NoSpace,
        Error::Stalled { .. } => Told::Stalled,
        Error::Refused { .. } => Told::Refused,
        other => panic!("{kind:?}: {other:?}"),
    };
    assert_eq!(found, told, "{kind:?}: {error:?}");
    assert_eq!(
        error.is_retryable(),
        told != Told::Refused,
        "{kind:?}: only what a wait can cure is worth another try"
    );
    assert_eq!(cause(error), Some(kind), "{error:?}");
}

/// Returns the kind of the system's error at the end of the chain.
fn cause(error: &Error) -> Option<ErrorKind> {
    let first: &dyn std::error::Error = error;
    let chain = std::iter::successors(Some(first), |error| error.source());
    chain
        .filter_map(|error| {
            error
                .downcast_ref::<Arc<io::Error>>()
                .map(|error| error.kind())
                .or_else(|| error.downcast_ref::<io::Error>().map(io::Error::kind))
        })
        .last()
}

#[test]
fn an_append_that_finds_no_journal_file_says_why_and_goes_on_once_that_is_mended() {
    for (kind, told) in KINDS {
        let (scene, log) = Scene::new();
        eventually("a spare journal file was made", || {
            scene.journal().len() == 2
        });
        scene.plan.refuse_as(".tmp", kind);
        let refused = loop {
            if let Err(error) = scene.append(&log, &vec![7; 300_000]) {
                break error;
            }
        };
        check(&refused, kind, told);
        eventually("the health follows", || log.health().is_err());
        check(&log.health().unwrap_err(), kind, told);
        let stats = log.stats();
        let refusal = stats
            .refused
            .iter()
            .find(|refusal| refusal.work == "journal files")
            .unwrap();
        assert!(
            stats.refusals > 0
                && refusal.lasts >= Duration::from_millis(300)
                && refusal.code == "io",
            "{stats:?}"
        );
        assert!(refusal.error.contains(".tmp"), "{refusal:?}");
        scene.plan.relent();
        eventually("appends go on", || scene.append(&log, b"goes on").is_ok());
        eventually("nothing is refused", || {
            log.stats().refused.is_empty() && log.health().is_ok()
        });
        log.close().unwrap();
    }
}

#[test]
fn an_append_that_waits_for_a_segment_says_why_there_is_none() {
    for (kind, told) in KINDS {
        let (scene, log) = Scene::new();
        drop(log);
        let options = crate::Options::new()
            .journal_file_bytes_max(4 * 1024 * 1024)
            .recent_bytes_max(3 * 1024 * 1024)
            .stall_wait(Duration::from_millis(100));
        let log = scene.open_with(options).unwrap();
        scene.plan.refuse_as("segments", kind);
        let refused = loop {
            if let Err(error) = scene.append(&log, &vec![7; 300_000]) {
                break error;
            }
        };
        check(&refused, kind, told);
        assert!(
            log.stats()
                .refused
                .iter()
                .any(|refusal| refusal.work == "sealing"),
            "{:?}",
            log.stats()
        );
        scene.plan.relent();
        eventually("appends go on", || scene.append(&log, b"goes on").is_ok());
        eventually("nothing is refused", || {
            log.stats().refused.is_empty() && log.health().is_ok()
        });
    }
}

#[cfg(feature = "http")]
#[test]
fn a_lasting_refusal_is_told_over_http_and_asks_for_another_try_when_it_may_be_mended() {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    for (kind, told) in KINDS {
        let (scene, log) = Scene::new();
        eventually("a spare journal file was made", || {
            scene.journal().len() == 2
        });
        let router = crate::http::router(log.clone(), crate::http::Config::open());
        let service = TowerToHyperService::new(router);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let get = |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let answer = runtime.block_on(service.call(request)).unwrap();
            let (status, again) = (
                answer.status().as_u16(),
                answer.headers().get("retry-after").cloned(),
            );
            let body = runtime
                .block_on(to_bytes(answer.into_body(), usize::MAX))
                .unwrap();
            (status, again, String::from_utf8(body.to_vec()).unwrap())
        };
        scene.plan.refuse_as(".tmp", kind);
        while scene.append(&log, &vec![7; 300_000]).is_ok() {}
        eventually("the health follows", || get("/healthz").0 == 503);
        let (_status, again, body) = get("/healthz");
        let seconds = if told == Told::Stalled { "1" } else { "30" };
        assert_eq!(again.unwrap(), seconds, "{kind:?}: {body}");
        assert_eq!((get("/readyz").0, get("/livez").0), (503, 200), "{kind:?}");
        let metrics = get("/metrics").2;
        let figure = |name: &str| {
            metrics
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok())
        };
        assert!(
            figure("sessionlog_background_refusals_total ").is_some_and(|count| count >= 1.0),
            "{metrics}"
        );
        assert!(
            figure("sessionlog_background_refused_seconds ").is_some_and(|seconds| seconds > 0.0),
            "{metrics}"
        );
        assert_eq!(figure("sessionlog_up "), Some(0.0), "{metrics}");
    }
}

/// The lines of the program's own log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _metadata: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        use std::fmt::Write;

        let mut line = String::new();
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                let _always_fits = write!(line, "{field}={value:?} ");
            },
        );
        self.0.lock().push(line);
    }

    fn enter(&self, _span: &tracing::span::Id) {}

    fn exit(&self, _span: &tracing::span::Id) {}
}

#[test]
fn a_refusal_is_a_line_of_the_log_when_it_begins_when_it_changes_and_when_it_ends() {
    use crate::disk::{Refusals, Work};

    let lines = Lines::default();
    let refused = |kind: ErrorKind| {
        crate::disk::io_error("write", std::path::Path::new("journal"))(kind.into())
    };
    tracing::subscriber::with_default(lines.clone(), || {
        let refusals = Refusals::default();
        for kind in [
            ErrorKind::StorageFull,
            ErrorKind::StorageFull,
            ErrorKind::PermissionDenied,
        ] {
            refusals.note(Work::JournalFiles, Some(&refused(kind)));
        }
        refusals.note(Work::Indexing, Some(&refused(ErrorKind::NotFound)));
        for _ in 0..2 {
            refusals.note(Work::JournalFiles, None);
        }
        assert_eq!(refusals.count(), 4);
        refusals.check(Duration::ZERO).unwrap();
    });
    let lines = lines.0.lock().clone();
    let of_journal = lines.iter().filter(|line| line.contains("journal files"));
    assert_eq!((lines.len(), of_journal.count()), (4, 3), "{lines:?}");
    for cause in ["no storage space", "permission denied"] {
        assert!(lines.iter().any(|line| line.contains(cause)), "{lines:?}");
    }
}
