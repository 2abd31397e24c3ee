//! What a reader beside a writer shows while writes are under way or fail, and when its own
//! barriers do.

use super::*;
use crate::disk::{BLOCK, read_device};

impl Scene {
    /// Opens the log for reading, on a disk of its own with its own plan.
    fn beside(&self) -> (SessionLog, Arc<Plan>) {
        let plan = Arc::default();
        (self.beside_with(&plan), plan)
    }

    fn beside_with(&self, plan: &Arc<Plan>) -> SessionLog {
        let disk = FaultyDisk {
            real: RealDisk::default(),
            plan: Arc::clone(plan),
        };
        let options = Options::new().read_only();
        let reader = options.open_on(Arc::new(disk), self.folder.path());
        reader.unwrap()
    }
}

#[test]
fn a_reader_shows_no_group_before_a_barrier_came_after_it() {
    let (scene, log) = Scene::new();
    let mut events = scene.append(&log, b"first").unwrap();
    let (reader, plan) = scene.beside();
    assert_eq!(scene.events(&reader), events);
    for _ in 0..3 {
        let before = events.clone();
        plan.refuse_barriers(".journal", ErrorKind::Other);
        events.extend(scene.append(&log, b"more").unwrap());
        assert!(matches!(reader.refresh(), Err(Error::Io { .. })));
        assert_eq!(scene.events(&reader), before);
        plan.relent();
        reader.refresh().unwrap();
        assert_eq!(scene.events(&reader), events);
    }
}

#[test]
fn a_group_that_is_half_written_is_no_damage_and_is_not_shown() {
    let (scene, log) = Scene::new();
    let kept = scene.append(&log, b"kept").unwrap();
    let (reader, _plan) = scene.beside();
    for nth in 1..4 {
        scene.plan.hold_halfway();
        let appended = scope(|scope| {
            let appending = scope.spawn(|| scene.append(&log, &vec![b'x'; 100_000]));
            eventually("half of it is written", || {
                scene.plan.begun.load(Ordering::SeqCst) == nth
            });
            let shown = scene.events(&log);
            reader.refresh().unwrap();
            assert_eq!(scene.events(&reader), shown);
            assert_eq!(scene.events(&scene.beside().0), shown);
            scene.plan.release();
            appending.join().unwrap()
        });
        let last = appended.unwrap().remove(0);
        assert_eq!(reader.refresh().unwrap(), Some(last.id));
        assert_eq!(scene.events(&reader).last(), Some(&last));
    }
    assert_eq!(scene.events(&reader)[..1], kept);
}

#[test]
fn a_group_that_failed_is_not_shown_and_the_log_is_followed_once_it_is_opened_again() {
    let (scene, log) = Scene::new();
    let kept = scene.append(&log, b"kept").unwrap();
    let (reader, _plan) = scene.beside();
    scene.plan.refuse("journal/", 0);
    assert!(scene.append(&log, b"failed").is_err());
    scene.plan.relent();
    reader.refresh().unwrap();
    assert_eq!(scene.events(&reader), kept);
    drop(log);
    let log = scene.open();
    scene.append(&log, b"next").unwrap();
    reader.refresh().unwrap();
    assert_eq!(scene.events(&reader), scene.events(&log));
}

#[test]
fn a_reader_that_cannot_open_a_segment_says_so_and_shows_what_it_showed() {
    let (scene, log) = Scene::new();
    let kept = scene.append(&log, b"kept").unwrap();
    let (reader, plan) = scene.beside();
    while log.stats().segments == 0 {
        scene.append(&log, &vec![b'x'; MIB]).unwrap();
    }
    plan.refuse_to_open(|path| path.contains(".segment"));
    assert!(matches!(reader.refresh(), Err(Error::Io { .. })));
    assert_eq!(scene.events(&reader), kept);
    plan.relent();
    reader.refresh().unwrap();
    assert_eq!(scene.events(&reader), scene.events(&log));
}

/// Whatever a reader comes upon after the end of what it read is no damage if the end has moved.
#[test]
fn a_group_that_is_completed_while_the_rest_is_read_is_no_damage() {
    let (scene, log) = Scene::new();
    log.close().unwrap();
    RealDisk::default()
        .remove_tree(scene.folder.path())
        .unwrap();
    let mut options = Options::new();
    options.journal_file_bytes_min = 32 * MIB;
    let log = scene.open_with(options).unwrap();
    let kept = scene.append(&log, b"kept").unwrap();
    let plan = Arc::<Plan>::default();
    // Between the read of the end and each read of what lies behind it, a large group comes, and a
    // small one that records that the large one is durable.
    let (writer, session) = (log.clone(), scene.session.clone());
    let (mut end, mut is_due) = (0, false);
    plan.watch(move |path, offset| {
        if path
            .extension()
            .is_none_or(|extension| extension != "journal")
        {
            return;
        }
        is_due |= offset.is_none();
        if is_due && offset.is_some_and(|offset| offset > end + MIB as u64 / 4) {
            let large = NewEvent::new("note", vec![b'x'; 3 * MIB / 4]);
            let batch = Batch::new().events([large.clone(), large]);
            writer.append(&session, batch).unwrap();
            writer
                .append(&session, Batch::new().event(NewEvent::new("note", "small")))
                .unwrap();
            (end, is_due) = (end + 3 * MIB as u64 / 2, false);
        }
    });
    let reader = scene.beside_with(&plan);
    assert!(
        scene.events(&reader).len() > kept.len(),
        "nothing came meanwhile"
    );
    plan.watch(|_path, _offset| {});
    reader.refresh().unwrap();
    assert_eq!(scene.events(&reader), scene.events(&log));
}

/// The end of what was read may be overwritten, by a group without a header near it.
#[test]
fn a_journal_file_that_is_used_again_while_it_is_read_hides_nothing() {
    let (scene, log) = Scene::new();
    scene.append(&log, b"kept").unwrap();
    let (reader, plan) = scene.beside();
    let last = scene.append(&log, b"acknowledged").unwrap();
    let [first, ..] = &*scene.journal() else {
        panic!("the log has a journal")
    };
    let file = scene.folder.path().join("journal").join(&first.0);
    let (writer, session, watched) = (log.clone(), scene.session.clone(), file.clone());
    let mut opens = 0;
    plan.watch(move |path, offset| {
        if path != watched || offset.is_some() {
            return;
        }
        // The first time its header is read, and the second time the rest.
        opens += 1;
        if opens != 2 {
            return;
        }
        let header = read_device(&RealDisk::default(), &file, BLOCK).unwrap();
        let is_overwritten = || {
            let bytes = read_device(&RealDisk::default(), &file, 2 * MIB).unwrap();
            let bytes = bytes.as_slice();
            bytes[..BLOCK] != *header.as_slice()
                && bytes[BLOCK..]
                    .chunks(BLOCK)
                    .skip(1)
                    .all(|block| !block.starts_with(b"sgrp"))
        };
        while !is_overwritten() {
            let large = NewEvent::new("note", vec![b'x'; 3 * MIB / 4]);
            let batch = Batch::new().events([large.clone(), large.clone(), large]);
            writer.append(&session, batch).unwrap();
        }
    });
    reader.refresh().unwrap();
    let shown = scene.events(&reader);
    assert!(shown.len() > 2, "the file was not used again");
    assert!(
        shown.contains(&last[0]),
        "what was acknowledged before is not shown"
    );
    plan.watch(|_path, _offset| {});
    reader.refresh().unwrap();
    assert_eq!(scene.events(&reader), scene.events(&log));
}
