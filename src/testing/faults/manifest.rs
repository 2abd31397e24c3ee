//! A log whose manifest cannot be written, or reached only one of its slots.

use std::sync::Arc;

use super::disk::Plan;
use super::{MIB, Scene, eventually, read};
use crate::disk::{Disk, Layout, RealDisk};
use crate::manifest::ManifestFile;
use crate::model::Error;
use crate::sync::{Ordering, yield_now};

#[test]
fn a_manifest_write_that_is_cut_short_leaves_the_slot_that_counted() {
    let (scene, log) = Scene::new();
    log.close().unwrap();
    let slots = || ["MANIFEST-0", "MANIFEST-1"].map(|name| read(&scene.folder.path().join(name)));
    // Opening writes the loaded slot once more, then both slots, each with a barrier. The refusal
    // meets the second of the two, then the first.
    scene.plan.refuse("MANIFEST", 4);
    assert!(scene.try_open().is_err());
    let before = slots();
    scene.plan.refuse("MANIFEST", 3);
    assert!(scene.try_open().is_err());
    let changed: Vec<_> = (0..2)
        .filter(|&slot| slots()[slot] != before[slot])
        .collect();
    // A slot's value begins at byte 24, with its sequence.
    let newer = usize::from(before[1][24] > before[0][24]);
    assert_eq!(changed, [1 - newer]);
}

/// Descriptors or space run out for a while. Nothing durable is touched.
#[test]
fn a_manifest_that_cannot_be_opened_or_has_no_room_is_written_later_and_appends_go_on() {
    for refuse in [
        |plan: &Plan| plan.refuse_to_open(|path| path.contains("MANIFEST")),
        |plan: &Plan| plan.refuse("MANIFEST", 0),
    ] {
        let (scene, log) = Scene::new();
        refuse(&scene.plan);
        let mut events = Vec::new();
        // Making the next journal file may take longer than an append waits.
        let append = || loop {
            match scene.append(&log, &vec![7; MIB]) {
                Err(error) if error.is_retryable() => yield_now(),
                appended => return appended.unwrap(),
            }
        };
        for _ in 0..7 {
            events.extend(append());
        }
        eventually("a seal was refused", || {
            scene.plan.refused.load(Ordering::SeqCst) > 0
        });
        log.health().unwrap();
        assert_eq!(
            RealDisk::default()
                .list(&scene.folder.path().join("segments"))
                .unwrap(),
            [],
            "it could not be named"
        );
        scene.plan.relent();
        events.extend(append());
        eventually("a segment was made", || log.stats().segments > 0);
        log.close().unwrap();
        let log = scene.open();
        assert_eq!(
            (scene.events(&log), log.stats().recovery.adopted_segments),
            (events, 0)
        );
    }
}

/// Otherwise a journal file that only the older slot names is overwritten.
#[test]
fn a_manifest_that_got_to_one_slot_alone_is_put_in_both_before_the_journal_is_written() {
    let (scene, log) = Scene::new();
    let is_in_both = || {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
        let found = ManifestFile::load(&disk, &Layout::of(scene.folder.path()));
        found.unwrap().unwrap().is_in_both()
    };
    assert!(is_in_both());
    // Both slots get room, and one is written.
    scene.plan.refuse("MANIFEST", 4);
    eventually("the log was poisoned", || {
        matches!(
            scene.append(&log, &vec![7; MIB]),
            Err(Error::Poisoned { .. })
        )
    });
    drop(log);
    assert!(!is_in_both());
    scene.plan.refuse("journal/", 0);
    assert!(scene.try_open().is_err());
    assert!(is_in_both());
}

#[test]
fn a_failed_manifest_write_poisons_the_log_and_loses_nothing() {
    let (scene, log) = Scene::new();
    // Both slots get room, and one is written.
    scene.plan.refuse("MANIFEST", 3);
    eventually("the log was poisoned", || {
        matches!(
            scene.append(&log, &vec![7; MIB]),
            Err(Error::Poisoned { .. })
        )
    });
    let events = scene.events(&log);
    scene.plan.relent();
    assert!(matches!(log.close(), Err(Error::Poisoned { .. })));
    assert_eq!(scene.events(&scene.open()), events);
}
