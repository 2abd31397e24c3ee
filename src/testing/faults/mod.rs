//! Tests on a disk that refuses calls: what the log reports, what it shows, and what it still has
//! afterwards.

mod beside;
#[cfg(all(feature = "http", not(shuttle)))]
mod connections;
mod disk;
mod manifest;
mod reads;
mod refusals;
mod tasks;
mod turns;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Disk, Layout, Mode, RealDisk};
use crate::journal::Spares;
use crate::model::{Error, Result};
use crate::sync::{Instant, Ordering, scope, yield_now};
use crate::{Batch, Event, NewEvent, Options, PageRequest, SessionId, SessionLog, StartAt};
use disk::{FaultyDisk, Plan};

const MIB: usize = 1024 * 1024;

struct Scene {
    folder: tempfile::TempDir,
    plan: Arc<Plan>,
    session: SessionId,
}

impl Scene {
    fn new() -> (Self, SessionLog) {
        let folder = tempfile::Builder::new().prefix("log").tempdir().unwrap();
        let scene = Self {
            folder,
            plan: Arc::default(),
            session: SessionId::new("s").unwrap(),
        };
        let log = scene.open();
        (scene, log)
    }

    fn open(&self) -> SessionLog {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<SessionLog> {
        self.open_with(
            Options::new()
                .journal_file_bytes_max(4 * MIB)
                .stall_wait(Duration::from_millis(300)),
        )
    }

    fn open_with(&self, options: Options) -> Result<SessionLog> {
        let disk = FaultyDisk {
            real: RealDisk::default(),
            plan: Arc::clone(&self.plan),
        };
        options.open_on(Arc::new(disk), self.folder.path())
    }

    /// Returns the journal files that are ready or in use, with their sizes.
    fn journal(&self) -> Vec<(String, u64)> {
        let mut files = RealDisk::default()
            .list(&self.folder.path().join("journal"))
            .unwrap();
        files.retain(|(name, _)| name.ends_with("journal"));
        files.sort();
        files
    }

    fn append(&self, log: &SessionLog, data: &[u8]) -> Result<Vec<Event>> {
        log.append(
            &self.session,
            Batch::new().event(NewEvent::new("note", data.to_vec())),
        )
        .map(|ack| ack.events)
    }

    fn events(&self, log: &SessionLog) -> Vec<Event> {
        let events: Result<Vec<Event>> = log
            .stream(&self.session, StartAt::Beginning)
            .unwrap()
            .until_tail()
            .events()
            .collect();
        let events = events.unwrap();
        let page = log
            .list(&self.session, PageRequest::new().limit(1_000))
            .unwrap();
        // A page ends early where events are large.
        assert_eq!(
            page.items,
            events[..page.items.len()],
            "a list and a stream differ"
        );
        assert!(
            page.has_more || page.items.len() == events.len(),
            "a list ends before a stream does"
        );
        events
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to this: {what}");
        yield_now();
    }
}

#[test]
fn a_failed_write_of_a_group_poisons_the_log_until_it_is_opened_again() {
    let (scene, log) = Scene::new();
    let kept = scene.append(&log, b"kept").unwrap();
    scene.plan.refuse("journal/", 0);
    assert!(matches!(
        scene.append(&log, b"failed"),
        Err(Error::Io { .. })
    ));
    scene.plan.relent();
    for _ in 0..3 {
        assert!(matches!(
            scene.append(&log, b"refused"),
            Err(Error::Poisoned { .. })
        ));
    }
    assert_eq!(scene.events(&log), kept, "reads of what was durable go on");
    assert!(matches!(log.health(), Err(Error::Poisoned { .. })));
    assert!(matches!(log.close(), Err(Error::Poisoned { .. })));
    let log = scene.open();
    log.health().unwrap();
    assert_eq!(scene.events(&log), kept);
    let next = scene.append(&log, b"next").unwrap();
    assert!(next[0].id > kept[0].id && next[0].seq == 2);
}

#[cfg(feature = "http")]
#[test]
fn a_poisoned_log_is_said_to_be_out_of_service_and_is_still_read() {
    use axum::body::Body;
    use axum::http::Request;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    let (scene, log) = Scene::new();
    scene.append(&log, b"1").unwrap();
    let router = crate::http::router(log.clone(), crate::http::Config::open());
    let service = TowerToHyperService::new(router);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let status = |method: &str, path: &str, body: String| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        let answer = service.call(request.body(Body::from(body)).unwrap());
        runtime.block_on(answer).unwrap().status().as_u16()
    };
    let probes = ["/livez", "/readyz", "/healthz"];
    let answers = || probes.map(|path| status("GET", path, String::new()));
    assert_eq!(answers(), [200; 3]);
    scene.plan.refuse(".journal", 0);
    assert!(scene.append(&log, b"2").is_err());
    assert_eq!(answers(), [503; 3]);
    let body = format!(
        r#"{{"events":[{{"type":"{}","content":[]}}]}}"#,
        crate::model::USER_MESSAGE
    );
    assert_eq!(status("POST", "/v1/sessions/s/events", body), 503);
    assert_eq!(status("GET", "/v1/sessions/s/events", String::new()), 200);
}

#[test]
fn a_first_open_that_is_cut_short_anywhere_leaves_a_folder_that_opens() {
    for (part, passes) in [
        ("journal/", 0),
        ("journal/", 1),
        ("journal/", 6),
        ("MANIFEST", 0),
        ("MANIFEST", 1),
        ("MANIFEST", 2),
        ("MANIFEST", 3),
    ] {
        let (scene, log) = Scene::new();
        drop(log);
        RealDisk::default()
            .remove_tree(scene.folder.path())
            .unwrap();
        scene.plan.refuse(part, passes);
        assert!(scene.try_open().is_err(), "{part} {passes}");
        scene.plan.relent();
        let log = scene.open();
        let events = scene.append(&log, b"first").unwrap();
        log.close().unwrap();
        assert_eq!(scene.events(&scene.open()), events, "{part} {passes}");
    }
}

/// It may still be on its way to the disk, and must not appear among the files of the next store.
#[test]
fn what_was_begun_of_a_manifest_is_gone_before_another_store_is_begun() {
    let (scene, log) = Scene::new();
    drop(log);
    RealDisk::default()
        .remove_tree(scene.folder.path())
        .unwrap();
    RealDisk::default().make_dir(scene.folder.path()).unwrap();
    let slot = scene.folder.path().join("MANIFEST-0");
    RealDisk::default()
        .open(&slot, Mode::Write)
        .unwrap()
        .write_all_at(&[0; 4096], 0)
        .unwrap();
    scene.plan.refuse("journal/", 0);
    assert!(scene.try_open().is_err());
    assert!(
        !RealDisk::default().exists(&slot).unwrap(),
        "it may come back"
    );
    scene.plan.relent();
    scene.append(&scene.open(), b"first").unwrap();
}

#[test]
fn a_closed_log_opens_without_reading_what_its_journal_does_not_use() {
    let (scene, log) = Scene::new();
    let appended = (0..5).flat_map(|_| scene.append(&log, &vec![7; MIB]).unwrap());
    let events: Vec<_> = appended.collect();
    log.close().unwrap();
    let files = scene.journal();
    scene.plan.read.store(0, Ordering::SeqCst);
    let log = scene.open();
    let read = scene.plan.read.load(Ordering::SeqCst);
    // The full journal file, and two events of the one in which the log was closed.
    assert!(
        read < 6 * MIB as u64 + 100_000,
        "{read} bytes were read of {files:?}"
    );
    assert_eq!(scene.events(&log), events);
}

#[test]
fn a_log_that_goes_idle_records_what_is_durable_also_after_a_lone_writer() {
    let (scene, log) = Scene::new();
    let began = Instant::now();
    // Takes longer than the log waits for more events, so that the wait ends while a caller leads.
    while began.elapsed() < Duration::from_millis(300) {
        scene.append(&log, b"one after the other").unwrap();
    }
    let written = scene.plan.passed.load(Ordering::SeqCst);
    scene.append(&log, b"the last one").unwrap();
    eventually("a witness was written", || {
        scene.plan.passed.load(Ordering::SeqCst) >= written + 2
    });
}

#[test]
fn a_witness_is_not_counted_as_a_group_that_was_replayed() {
    let (scene, log) = Scene::new();
    let before = scene.plan.passed.load(Ordering::SeqCst);
    scene.append(&log, b"one").unwrap();
    eventually("a witness was written", || {
        scene.plan.passed.load(Ordering::SeqCst) >= before + 2
    });
    drop(log);
    let recovery = scene.open().stats().recovery;
    assert_eq!(
        (
            recovery.clean,
            recovery.replayed_events,
            recovery.replayed_groups
        ),
        (false, 1, 1)
    );
}

#[test]
fn a_full_journal_on_a_full_disk_is_left_as_it_is_by_an_idle_log() {
    let (scene, log) = Scene::new();
    eventually("a spare journal file was made", || {
        scene.journal().len() == 2
    });
    scene.plan.refuse(".tmp", 0);
    let filled = scene.journal();
    let mut written;
    loop {
        written = scene.plan.passed.load(Ordering::SeqCst);
        if scene.append(&log, b"one block").is_err() {
            break;
        }
    }
    eventually("a witness was written", || {
        scene.plan.passed.load(Ordering::SeqCst) > written
    });
    // There is room neither for a group nor for another witness.
    assert!(matches!(
        scene.append(&log, b"no room"),
        Err(Error::NoSpace { .. })
    ));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(300) {
        yield_now();
    }
    assert_eq!(scene.journal(), filled, "no file grew");
    scene.plan.relent();
    scene.append(&log, b"goes on").unwrap();
}

#[test]
fn callers_that_share_a_failed_group_all_hear_of_it_and_none_is_left_waiting() {
    for (data, at_once) in [(vec![1; 4], 1), (vec![2; 200_000], 2)] {
        check_shared_failure(&data, at_once);
    }
}

fn check_shared_failure(data: &[u8], at_once: u64) {
    let (scene, log) = Scene::new();
    scene.append(&log, b"kept").unwrap();
    // Only groups are refused: a disk that is slow to make the next file does not poison the log.
    scene.plan.refuse(".journal", 20);
    let is_retryable =
        |appended: Result<_>| appended.err().is_none_or(|error| error.is_retryable());
    scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| while is_retryable(scene.append(&log, data)) {});
        }
    });
    assert_eq!(
        scene.plan.under_way_max.load(Ordering::SeqCst),
        at_once,
        "groups in flight"
    );
    assert!(matches!(
        scene.append(&log, b"refused"),
        Err(Error::Poisoned { .. })
    ));
    let shown = scene.events(&log);
    scene.plan.relent();
    drop(log);
    let found = scene.events(&scene.open());
    assert_eq!(
        found[..shown.len()],
        shown,
        "what a reader saw is there after reopening"
    );
}

#[test]
fn a_group_is_neither_shown_nor_answered_before_the_one_it_follows() {
    let (scene, log) = Scene::new();
    let written_at_first = scene.plan.passed.load(Ordering::SeqCst);
    let kept = scene.append(&log, b"kept").unwrap();
    // The blocked write must be a group and the copied folder complete, so an idle log finishes its
    // background work first.
    eventually("a witness was written", || {
        scene.plan.passed.load(Ordering::SeqCst) >= written_at_first + 2
    });
    eventually("a spare journal file was made", || {
        scene.journal().len() == 2
    });
    scene.plan.hold();
    scope(|scope| {
        let first = scope.spawn(|| scene.append(&log, &vec![1; 200_000]).unwrap());
        eventually("the first group is being written", || {
            scene.plan.under_way.load(Ordering::SeqCst) == 1
        });
        let written = scene.plan.passed.load(Ordering::SeqCst);
        let second = scope.spawn(|| scene.append(&log, &vec![2; 200_000]).unwrap());
        eventually("the second group is written", || {
            scene.plan.passed.load(Ordering::SeqCst) > written
        });
        assert_eq!(scene.events(&log), kept);
        assert!(!second.is_finished());
        // The image of a power cut: the second group is whole, the first is missing.
        let image = tempfile::tempdir().unwrap();
        copy(scene.folder.path(), image.path());
        let cut = Options::new().open(image.path()).unwrap();
        assert_eq!(scene.events(&cut), kept);
        assert_eq!(scene.append(&cut, b"goes on").unwrap()[0].seq, 2);
        scene.plan.release();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(scene.events(&log), [kept.clone(), first, second].concat());
    });
}

fn read(path: &Path) -> Vec<u8> {
    let file = RealDisk::default().open(path, Mode::Read).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn copy(from: &Path, to: &Path) {
    for folder in ["", "journal", "segments"] {
        RealDisk::default().make_dir(&to.join(folder)).unwrap();
        for (name, _) in RealDisk::default().list(&from.join(folder)).unwrap() {
            let copied = RealDisk::default()
                .open(&to.join(folder).join(&name), Mode::Write)
                .unwrap();
            copied
                .write_all_at(&read(&from.join(folder).join(&name)), 0)
                .unwrap();
        }
    }
}

/// A filter over 16 segments is one over many.
#[test]
fn a_failed_segment_write_is_done_again_and_appends_go_on_meanwhile() {
    let (scene, log) = Scene::new();
    scene.plan.refuse("segments/", 0);
    let mut events = Vec::new();
    for _ in 0..7 {
        events.extend(scene.append(&log, &vec![7; MIB]).unwrap());
    }
    eventually("a segment was refused", || {
        scene.plan.refused.load(Ordering::SeqCst) > 0
    });
    assert_eq!(
        (scene.events(&log), log.stats().segments),
        (events.clone(), 0)
    );
    scene.plan.relent();
    eventually("a segment was made", || log.stats().segments > 0);
    events.extend(scene.append(&log, b"after").unwrap());
    assert_eq!(scene.events(&log), events);
    log.close().unwrap();
    assert_eq!(scene.events(&scene.open()), events);
}

/// One read after the other would take a multiple of the time.
#[test]
fn a_page_that_lies_in_several_segments_is_fetched_from_all_of_them_at_once() {
    let (scene, log) = Scene::new();
    let filler = SessionId::new("filler").unwrap();
    let mut events = Vec::new();
    while log.stats().segments < 3 {
        events.extend(scene.append(&log, b"one in each").unwrap());
        for _ in 0..4 {
            log.append(
                &filler,
                Batch::new().event(NewEvent::new("note", vec![7; MIB])),
            )
            .unwrap();
        }
    }
    log.close().unwrap();
    let log = scene.open();
    eventually("the index knows all segments", || {
        log.stats().index_lag == 0
    });
    let page = || log.list(&scene.session, PageRequest::new()).unwrap().items;
    assert_eq!(page(), events);
    let announced = scene.plan.announced.swap(0, Ordering::SeqCst);
    assert!(
        announced >= 3,
        "{announced} reads were announced, of {} segments",
        log.stats().segments
    );
    assert_eq!(
        (page(), scene.plan.announced.load(Ordering::SeqCst)),
        (events, 0),
        "what is in memory is fetched again"
    );
}

#[test]
fn a_full_disk_is_a_retryable_error_once_the_journal_is_full_and_passes_without_reopening() {
    let (scene, log) = Scene::new();
    eventually("a spare journal file was made", || {
        scene.journal().len() == 2
    });
    scene.plan.refuse(".tmp", 0);
    let mut events = Vec::new();
    let error = loop {
        match scene.append(&log, &vec![7; MIB]) {
            Ok(stored) => events.extend(stored),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, Error::NoSpace { .. }) && error.is_retryable(),
        "{error:?}"
    );
    assert_eq!(
        scene.events(&log),
        events,
        "reads go on while the disk is full"
    );
    scene.plan.relent();
    events.extend(scene.append(&log, b"after").unwrap());
    assert_eq!(scene.events(&log), events);
    log.close().unwrap();
    assert_eq!(scene.events(&scene.open()), events);
}

#[test]
fn spare_files_that_cannot_be_named_or_opened_do_not_fill_the_disk() {
    for refused in [
        |path: &str| path.ends_with("/journal"),
        |path: &str| path.ends_with(".journal"),
    ] {
        let (scene, log) = Scene::new();
        log.close().unwrap();
        let (before, folder) = (scene.journal(), Layout::of(scene.folder.path()).journal);
        let disk = FaultyDisk {
            real: RealDisk::default(),
            plan: Arc::clone(&scene.plan),
        };
        let spares = Spares::new(Arc::new(disk), folder, 4 * MIB as u64, 50, Arc::default());
        scene.plan.refuse_to_open(refused);
        for _ in 0..3 {
            assert!(spares.make_now(MIB as u64).is_err());
        }
        assert_eq!(scene.journal(), before);
        scene.plan.relent();
        let spare = spares.make_now(MIB as u64).unwrap();
        assert_eq!(spare.number, 50, "a number is used up by a file alone");
        scene.plan.refuse_to_open(|path| path.ends_with(".journal"));
        assert!(spares.give(spare.number, spare.bytes).is_err());
        assert_eq!(scene.journal(), before);
    }
}

/// Uses the log's default sizes: the next file is larger than the active one.
#[test]
fn after_a_crash_a_full_disk_is_opened_with_what_lies_ready() {
    let (scene, log) = Scene::new();
    log.close().unwrap();
    RealDisk::default()
        .remove_tree(scene.folder.path())
        .unwrap();
    let log = scene.open_with(Options::new()).unwrap();
    eventually("a spare journal file was made", || {
        scene.journal().len() == 2
    });
    let sizes: Vec<_> = scene
        .journal()
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(sizes, [4 * MIB as u64, 8 * MIB as u64]);
    let events = scene.append(&log, b"kept").unwrap();
    drop(log);
    scene.plan.refuse(".tmp", 0);
    for crash in 1..4 {
        let log = scene.open_with(Options::new()).unwrap();
        let kept = scene.events(&log);
        assert_eq!((&kept[..events.len()], kept.len()), (&*events, crash));
        scene.append(&log, b"goes on").unwrap();
    }
}

/// Such a file system takes no barriers either, and there is nothing to wait for.
#[test]
fn a_log_on_a_file_system_that_cannot_be_written_is_read() {
    let (scene, log) = Scene::new();
    let events = scene.append(&log, b"kept").unwrap();
    log.close().unwrap();
    let read = || scene.open_with(Options::new().read_only());
    scene
        .plan
        .refuse_barriers(".journal", ErrorKind::InvalidInput);
    assert_eq!(scene.events(&read().unwrap()), events);
    // A kernel that remounted the file system after a failed write reports the first of these.
    for kind in [ErrorKind::ReadOnlyFilesystem, ErrorKind::Other] {
        scene.plan.refuse_barriers(".journal", kind);
        assert!(
            matches!(read(), Err(Error::Io { .. })),
            "{kind}: a barrier that failed is no barrier"
        );
    }
}
