//! Power cuts at every call that an import makes of a disk.
//!
//! Whatever a cut leaves is no log, or the whole one. The same import then goes on, and makes the
//! whole one of it.

use std::path::Path;

use super::simulated::SimulatedDisk;
use super::support::crash_image::{Durability, Image, Left, NamesLeft};
use super::support::report::Dice;
use crate::disk::RealDisk;
use crate::transfer::{Export, Input, export_from, import_to};
use crate::{Batch, Delete, Error, Fork, NewEvent, Options, SessionId, SessionLog};

/// Without an index, an open is fast.
const ROOT: &str = "/dev/null/log";

/// One cut in this many is made at a step, of all that a disk allows.
const ONE_CUT_IN: u64 = 3;

/// Returns the export of a log with several segments, a fork, a deletion and a journal, and the
/// number of its events.
fn exported() -> (Vec<u8>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let id = |name: &str| SessionId::new(name).unwrap();
    let log = SessionLog::open(folder.path()).unwrap();
    for round in 0..3 {
        for name in ["a", "b", "gone"] {
            let event = NewEvent::new("note", format!("{round}"));
            let batch = Batch::new()
                .event(event)
                .idempotency_key(format!("k{round}"));
            log.append(&id(name), batch).unwrap();
        }
        if round == 1 {
            log.fork(Fork::new(&id("a")).at(1), &id("fork")).unwrap();
            log.delete(&id("gone"), Delete::new()).unwrap();
        }
        // It seals the journal.
        let copy = tempfile::tempdir().unwrap();
        log.backup(copy.path()).unwrap();
    }
    log.append(&id("fork"), NewEvent::new("note", "last"))
        .unwrap();
    log.close().unwrap();
    let mut options = Options::new();
    options.read_only = true;
    let mut text = Vec::new();
    let disk = std::sync::Arc::new(RealDisk::default());
    let everything = Export::new();
    let exported = export_from(disk, folder.path(), options, &mut text, &everything, |_| ());
    (text, exported.unwrap().events)
}

fn import(disk: &SimulatedDisk, text: &[u8]) -> crate::Result<()> {
    let input = Input::new(text, Path::new("the export"));
    let done = import_to(
        disk.handle(),
        Path::new(ROOT),
        Options::new(),
        input,
        |_| (),
    );
    done.map(|_imported| ())
}

fn events(disk: &SimulatedDisk) -> crate::Result<u64> {
    let log = Options::new().open_on(disk.handle(), Path::new(ROOT))?;
    Ok(log.stats().events)
}

#[test]
fn an_import_that_a_power_cut_ends_leaves_no_half_log_and_goes_on() {
    let root = Path::new(ROOT);
    let (text, all) = exported();
    let disk = SimulatedDisk::of(root, &Image::default());
    import(&disk, &text).unwrap();
    let steps = disk.steps();
    let (mut durability, mut dice) = (Durability::default(), Dice(1));
    let (mut whole, mut begun) = (0, 0);
    for (nth, step) in steps.iter().enumerate() {
        durability.step(step);
        let is_done = nth + 1 == steps.len();
        for left in Left::ALL {
            for names in NamesLeft::ALL {
                if !is_done && !dice.one_in(ONE_CUT_IN) {
                    continue;
                }
                let image = durability.cut(left, names, &mut dice);
                let cut = || SimulatedDisk::of(root, &image);
                let has_begun = image.names.keys().any(|name| name.ends_with("UNFINISHED"));
                match events(&cut()) {
                    Ok(events) if events == all => whole += 1,
                    Ok(events) => assert!(
                        events == 0 && !has_begun && !is_done,
                        "step {nth}: a log with {events} of {all} events"
                    ),
                    Err(Error::Corrupt { .. } | Error::Io { .. }) if !is_done => begun += 1,
                    Err(error) => panic!("step {nth}: {error:?}"),
                }
                let disk = cut();
                match import(&disk, &text) {
                    Ok(()) => {}
                    Err(Error::Invalid { why, .. }) if why.contains("a log already") => {}
                    Err(error) => panic!("step {nth}: it does not go on: {error:?}"),
                }
                assert_eq!(events(&disk).unwrap(), all, "step {nth}");
            }
        }
    }
    assert!(
        whole > 0 && begun > 10,
        "{whole} whole logs, {begun} that were begun"
    );
}
