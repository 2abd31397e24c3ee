//! What a reader beside a writer shows while writes are under way or fail, and when its own
//! barriers do.

use super::*;

impl Scene {
    /// Opens the log for reading, on a disk of its own with its own plan.
    fn beside(&self) -> (SessionLog, Arc<Plan>) {
        let disk = FaultyDisk::default();
        let plan = Arc::clone(&disk.plan);
        let options = Options::new().read_only();
        let reader = options.open_on(Arc::new(disk), self.folder.path());
        (reader.unwrap(), plan)
    }
}

#[test]
fn a_reader_shows_no_group_before_a_barrier_came_after_it() {
    let (scene, log) = Scene::new();
    let mut events = scene.append(&log, b"first").unwrap();
    let (reader, plan) = scene.beside();
    assert_eq!(scene.events(&reader), events);
    // Nothing in the journal records yet that the second is durable, once a group follows.
    for _ in 0..3 {
        let before = events.clone();
        plan.refuse_barriers(".journal", ErrorKind::Other);
        events.extend(scene.append(&log, b"more").unwrap());
        if reader.refresh().is_ok() {
            // The writer was idle for so long that it wrote a witness.
            assert_eq!(scene.events(&reader), events);
            continue;
        }
        assert_eq!(scene.events(&reader), before);
        plan.relent();
        reader.refresh().unwrap();
        assert_eq!(scene.events(&reader), events);
    }
    assert!(plan.refused.load(Ordering::SeqCst) > 0);
}

#[test]
fn what_the_writer_has_recorded_as_durable_needs_no_further_barrier() {
    let (scene, log) = Scene::new();
    scene.append(&log, b"first").unwrap();
    let (reader, plan) = scene.beside();
    plan.refuse_barriers(".journal", ErrorKind::Other);
    scene.append(&log, b"second").unwrap();
    eventually("the witness is written", || reader.refresh().is_ok());
    assert_eq!(scene.events(&reader), scene.events(&log));
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
