//! Damage to every file of a log: torn tails, flipped bytes, lost and outdated files.
//!
//! A copy of the folder stands for the image that a crash leaves. It is made right after an append
//! returned and with none under way.
//!
//! Offsets come from comparing such images and from the format's specification beside the codec.
//! The constants below are the only place that repeats the format's field offsets.

#![allow(clippy::print_stdout, reason = "it says how many flips were noticed")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Access, ListIds, open_for};
use sessionlog::{
    Ack, Batch, Error, Event, EventId, Expected, NewEvent, Options, PageRequest, SessionId,
    SessionLog, SessionQuery, StartAt,
};

/// Every header has its format version here: journal file, segment, and framed value.
const VERSION_AT: usize = 8;
/// The format version that is written, and the one after it.
const VERSION: u8 = 2;
const LATER_VERSION: u8 = VERSION + 1;
/// A framed value begins after such a header.
const VALUE_AT: usize = 24;
const JOURNAL_MAGIC: &[u8] = b"slogjrnl";
const JOURNAL_HEADER_BYTES: usize = 72;
/// A segment ends with its trailer.
const TRAILER_BYTES: usize = 4096;
/// A group of the journal begins on such a boundary.
const BLOCK: usize = 4096;
/// How often the last groups are written to one log, at most.
const ATTEMPTS_MAX: u64 = 100;
const DEADLINE: Duration = Duration::from_mins(2);
const PAGE: usize = 1_000;
const WORKERS: usize = 2;

#[test]
fn a_group_torn_at_any_byte_is_wholly_gone_and_nothing_else_is() {
    let scene = Scene::new(Past::Short, End::Crash);
    each_in_parallel(scene.last.clone(), |at| {
        scene.check_torn(&format!("zeroed from byte {at}"), |journal| {
            journal[at..].fill(0);
        });
        if at.is_multiple_of(3) {
            scene.check_torn(&format!("garbage from byte {at}"), |journal| {
                let end = scene.last.end.next_multiple_of(BLOCK).max(at + 1);
                journal[at..end].copy_from_slice(&noise(at as u64, end - at));
            });
        }
    });
}

#[test]
fn a_torn_group_whose_later_bytes_reached_the_disk_first_is_wholly_gone() {
    let scene = Scene::new(Past::Short, End::Crash);
    each_in_parallel(scene.last.clone().step_by(8), |at| {
        scene.check_torn(&format!("zeroed up to byte {at}"), |journal| {
            journal[scene.last.start..=at].fill(0);
        });
        scene.check_torn(&format!("eight bytes zeroed at {at}"), |journal| {
            journal[at..at + 8].fill(0);
        });
    });
}

#[test]
fn a_torn_group_in_a_journal_file_that_was_used_before_is_wholly_gone_and_nothing_else_is() {
    let scene = Scene::new(Past::Recycled, End::Crash);
    let behind = scene.last.end.next_multiple_of(BLOCK);
    assert!(
        scene.image[&scene.journal][behind..]
            .iter()
            .any(|byte| *byte != 0),
        "an earlier use of the file lies behind its end"
    );
    each_in_parallel(scene.last.clone().step_by(24), |at| {
        scene.check_torn(&format!("old bytes from byte {at}"), |journal| {
            journal[at..].copy_from_slice(&scene.before_last[at..]);
        });
        scene.check_torn(&format!("zeroed from byte {at}"), |journal| {
            journal[at..behind].fill(0);
        });
    });
    check_flips_are_corruption(&scene, scene.earlier.clone().step_by(24));
}

#[test]
fn a_flipped_byte_before_what_is_known_to_be_durable_is_corruption_that_changes_nothing() {
    let scene = Scene::new(Past::Short, End::Crash);
    check_flips_are_corruption(&scene, scene.earlier.clone());
}

#[test]
fn a_flipped_byte_in_the_header_of_the_journal_file_is_an_error_that_changes_nothing() {
    for scene in [
        Scene::new(Past::Short, End::Crash),
        Scene::new(Past::Short, End::Close),
    ] {
        let names_the_file = |error: &Error| {
            matches!(
                error,
                Error::Corrupt { file, .. } | Error::Unsupported { file, .. }
                    if file.ends_with(&scene.journal)
            )
        };
        for at in 0..JOURNAL_HEADER_BYTES {
            let flip = |image: &mut Image| bytes_of(image, &scene.journal)[at] ^= 0x10;
            check_refused(
                &scene.image,
                &format!("byte {at} of the header flipped"),
                flip,
                names_the_file,
            );
        }
    }
}

#[test]
fn after_a_clean_close_a_flipped_byte_of_the_last_group_is_corruption() {
    let scene = Scene::new(Past::Short, End::Close);
    check_flips_are_corruption(&scene, scene.last.clone());
}

#[test]
fn once_the_log_was_idle_a_flipped_byte_of_the_last_group_is_corruption() {
    let scene = Scene::new(Past::Short, End::Idle);
    check_flips_are_corruption(&scene, scene.last.clone());
}

#[test]
fn what_follows_a_file_that_was_made_longer_is_not_looked_at() {
    for scene in [
        Scene::new(Past::Short, End::Crash),
        Scene::new(Past::Short, End::Close),
    ] {
        for name in SLOTS.map(Path::new).into_iter().chain([&*scene.journal]) {
            for access in [Access::ReadOnly, Access::Write] {
                let folder = lay_out(&scene.image);
                // Images have no folders without files.
                fs::create_dir_all(folder.path().join("segments")).expect("make a folder");
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(folder.path().join(name))
                    .expect("open a file");
                file.set_len(1 << 40).expect("a file system with holes");
                let log = open_for(access, options(), folder.path())
                    .unwrap_or_else(|error| panic!("{}: {error:?}", name.display()));
                assert!(
                    contents(&log).expect("read") == scene.whole,
                    "{}: other contents",
                    name.display()
                );
            }
            // The file counts again once it was written.
            for other in SLOTS
                .into_iter()
                .filter(|slot| SLOTS.map(Path::new).contains(&name) && Path::new(slot) != name)
            {
                let folder = lay_out(&scene.image);
                let file = fs::OpenOptions::new()
                    .write(true)
                    .open(folder.path().join(name))
                    .expect("open a file");
                file.set_len(1 << 40).expect("a file system with holes");
                options()
                    .open(folder.path())
                    .and_then(|log| log.close())
                    .expect("open and close");
                fs::write(folder.path().join(other), "no manifest").expect("damage the other");
                let log = options()
                    .open(folder.path())
                    .expect("the slot that is left counts");
                assert!(
                    contents(&log).expect("read") == scene.whole,
                    "{}: other contents",
                    name.display()
                );
            }
        }
    }
}

#[test]
fn a_journal_file_that_is_missing_cut_short_or_wiped_is_an_error_and_never_fewer_events() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // One full file is not yet sealed, and the second is not yet in the manifest.
    let log = options()
        .journal_file_bytes_max(16 << 20)
        .open(folder.path())
        .expect("open");
    let session = SessionId::new("filler").expect("the name follows the rules");
    let slots = || {
        SLOTS.map(|slot| {
            (
                PathBuf::from(slot),
                read_image(folder.path())[Path::new(slot)].clone(),
            )
        })
    };
    let journals = || {
        read_image(folder.path())
            .into_iter()
            .filter(|(_, bytes)| bytes.starts_with(JOURNAL_MAGIC))
            .count()
    };
    let before = slots();
    // The first file is full, the second holds some groups, and the manifest names it.
    until(|| {
        log.append(
            &session,
            Batch::new().event(NewEvent::new("note", noise(1, 100_000))),
        )
        .expect("an append");
        journals() == 2
    });
    until(|| slots() != before);
    assert_eq!(journals(), 2);
    (0..4).for_each(|n| drop(append(&log, 0, n)));
    let image = read_image(folder.path());
    let last = image
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(JOURNAL_MAGIC))
        .max_by_key(|(_, bytes)| bytes[32]);
    let last = last.expect("a log has a journal").0.clone();
    contents_of(lay_out(&image).path()).expect("the image is whole");
    check_refused(
        &image,
        "missing",
        |image| drop(image.remove(&last)),
        is_corrupt,
    );
    let cut_or_wiped = |image: &Image, how: &str, lengths: &[usize]| {
        for left in lengths {
            let cut = |image: &mut Image| bytes_of(image, &last).truncate(*left);
            check_refused(image, &format!("{how}cut to {left}"), cut, is_corrupt);
        }
        let wipe = |image: &mut Image| bytes_of(image, &last)[..2 * BLOCK].fill(0);
        check_refused(image, &format!("{how}two blocks wiped"), wipe, is_corrupt);
    };
    let whole = image[&last].len();
    cut_or_wiped(&image, "", &[0, 1, BLOCK, 2 * BLOCK, whole - BLOCK]);
    // Also where a crash came before the manifest named it.
    let unnamed = with(&image, |image| image.extend(before.clone()));
    contents_of(lay_out(&unnamed).path()).expect("the image is whole");
    cut_or_wiped(&unnamed, "unnamed and ", &[2 * BLOCK]);
}

#[test]
fn what_was_known_to_be_durable_stays_known_when_the_journal_is_sealed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = options().open(folder.path()).expect("open");
    let session = SessionId::new("filler").expect("the name follows the rules");
    // Without a pause, so that nothing is sealed yet.
    (0..50).for_each(|n| {
        drop(
            log.append(
                &session,
                Batch::new().event(NewEvent::new("note", noise(n, 100_000))),
            )
            .expect("an append"),
        );
    });
    drop(log);
    let log = options().open(folder.path()).expect("reopen");
    until(|| !segments(folder.path()).is_empty());
    drop(log);
    let image = read_image(folder.path());
    let newest = image
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(JOURNAL_MAGIC))
        .max_by_key(|(_, bytes)| bytes[32]);
    let newest = newest.expect("a log has a journal").0.clone();
    let last_record = image[&newest]
        .windows(4)
        .rposition(|four| four == b"sgrp")
        .expect("it holds a group")
        + 3 * BLOCK / 2;
    check_refused(
        &image,
        "the last group flipped",
        |image| bytes_of(image, &newest)[last_record] ^= 1,
        is_corrupt,
    );
}

#[test]
fn a_stream_yields_all_that_lies_before_damage() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = options()
        .recent_bytes_max(64 * 1024)
        .open(folder.path())
        .expect("open");
    let session = SessionId::new("s").expect("the name follows the rules");
    let mut n = 0;
    while segments(folder.path()).len() < 2 {
        n += 1;
        log.append(
            &session,
            Batch::new().event(NewEvent::new("note", noise(n, 9_000))),
        )
        .expect("an append");
    }
    log.close().expect("close");
    let image = read_image(folder.path());
    let segment = segments(folder.path()).remove(1);
    let damaged = with(&image, |image| {
        bytes_of(image, &segment)[BLOCK + 1_000] ^= 1;
    });
    let folder = lay_out(&damaged);
    let log = options().open_read_only(folder.path()).expect("open");
    let readable = (1..=n)
        .take_while(|seq| {
            log.list(&session, PageRequest::new().after(seq - 1).limit(1))
                .is_ok()
        })
        .count();
    assert!(
        readable > 0 && readable < usize::try_from(n).expect("a few"),
        "{readable} of {n}"
    );
    let mut stream = log
        .stream(&session, StartAt::Beginning)
        .expect("a stream")
        .until_tail()
        .events();
    let before: Vec<_> = stream.by_ref().take_while(Result::is_ok).collect();
    assert_eq!(before.len(), readable, "events before the damage");
}

#[test]
fn a_flipped_byte_of_a_segment_is_healed_or_an_error_that_names_the_file() {
    let sealed = Sealed::new();
    let bytes = sealed.image[&sealed.segment].len();
    // Every byte of the header's fields, and every record.
    let places = (0..bytes).filter(|at| *at < 64 || at % 24 == 0);
    let folder = || lay_out(&sealed.image);
    let noticed = each_in_parallel_with(folder, places, |folder, at| {
        sealed.check_flip(folder.path(), at)
    });
    let corrupt = noticed.into_iter().filter(|noticed| *noticed).count();
    println!("flips in a segment of {bytes} bytes: {corrupt} were errors");
    assert!(
        corrupt > 100,
        "only {corrupt} flips were noticed in a segment of {bytes} bytes"
    );
}

#[test]
fn a_segment_that_is_cut_short_or_missing_is_an_error_and_never_fewer_events() {
    let sealed = Sealed::new();
    let bytes = sealed.image[&sealed.segment].len();
    for left in [
        0,
        1,
        100,
        TRAILER_BYTES,
        bytes / 2,
        bytes - TRAILER_BYTES,
        bytes - 1,
    ] {
        sealed.check_lost(&format!("cut to {left} bytes"), |image| {
            bytes_of(image, &sealed.segment).truncate(left);
        });
    }
    sealed.check_lost("missing", |image| drop(image.remove(&sealed.segment)));
}

#[test]
fn damage_to_the_index_changes_nothing_that_a_reader_or_an_appender_sees() {
    let sealed = Sealed::new();
    let index: Vec<PathBuf> = sealed
        .image
        .keys()
        .filter(|name| name.starts_with("index"))
        .cloned()
        .collect();
    assert!(!index.is_empty(), "a sealed log has an index");
    let on_each = |image: &mut Image, damage: &dyn Fn(&mut Vec<u8>)| {
        for name in &index {
            damage(bytes_of(image, name));
        }
    };
    sealed.check_index("untouched", |_| ());
    sealed.check_index("deleted", |image| {
        image.retain(|name, _| !name.starts_with("index"));
    });
    sealed.check_index("empty files", |image| {
        on_each(image, &|bytes| bytes.clear());
    });
    sealed.check_index("cut in half", |image| {
        on_each(image, &|bytes| bytes.truncate(bytes.len() / 2));
    });
    sealed.check_index("zeroed", |image| on_each(image, &|bytes| bytes.fill(0)));
    sealed.check_index("an older copy", |image| {
        image.retain(|name, _| !name.starts_with("index"));
        image.extend(sealed.older_index.clone());
    });
    for seed in 0..4 {
        sealed.check_index(&format!("scribbled over with seed {seed}"), |image| {
            on_each(image, &|bytes| scribble(bytes, seed));
        });
    }
    for name in &index {
        sealed.check_index(&format!("without {}", name.display()), |image| {
            drop(image.remove(name));
        });
    }
}

#[test]
fn damage_to_one_manifest_slot_changes_nothing() {
    let damages: [fn(&mut Vec<u8>); 4] = [
        |b| b.fill(0),
        |b| b.truncate(10),
        Vec::clear,
        |b| b[VALUE_AT] ^= 1,
    ];
    for image in [
        &Scene::new(Past::Short, End::Crash).image,
        &Scene::new(Past::Short, End::Close).image,
        &Sealed::new().image,
    ] {
        let before = contents_of(lay_out(image).path()).expect("the log is whole");
        let check = |how: &str, image: &Image| {
            assert!(
                contents_of(lay_out(image).path()).expect("one slot is enough") == before,
                "{how}: other contents"
            );
        };
        for slot in SLOTS.map(Path::new) {
            for (n, damage) in damages.iter().enumerate() {
                check(
                    &format!("damage {n} to {}", slot.display()),
                    &with(image, |image| damage(bytes_of(image, slot))),
                );
            }
            check(
                &format!("no {}", slot.display()),
                &with(image, |image| drop(image.remove(slot))),
            );
        }
    }
}

#[test]
fn damage_to_both_manifest_slots_is_an_error_and_never_an_empty_log() {
    let both = |image: &mut Image, damage: &dyn Fn(&mut Vec<u8>)| {
        for slot in SLOTS {
            damage(bytes_of(image, Path::new(slot)));
        }
    };
    for image in [
        &Scene::new(Past::Short, End::Close).image,
        &Sealed::new().image,
    ] {
        check_refused(
            image,
            "zeroed",
            |image| both(image, &|bytes| bytes.fill(0)),
            is_corrupt,
        );
        check_refused(
            image,
            "cut",
            |image| both(image, &|bytes| bytes.truncate(30)),
            is_corrupt,
        );
        check_refused(
            image,
            "emptied",
            |image| both(image, &|bytes| bytes.clear()),
            is_corrupt,
        );
        check_refused(
            image,
            "flipped",
            |image| both(image, &|bytes| bytes[VALUE_AT] ^= 1),
            is_corrupt,
        );
        check_refused(
            image,
            "missing",
            |image| image.retain(|name, _| !SLOTS.map(Path::new).contains(&name.as_path())),
            is_corrupt,
        );
    }
}

#[test]
fn a_later_format_version_is_refused_as_unsupported_and_nothing_is_changed() {
    let sealed = Sealed::new();
    let set = |name: &Path, at: usize| {
        with(&sealed.image, |image| {
            bytes_of(image, name)[at] = LATER_VERSION;
        })
    };
    for slot in SLOTS {
        check_refused(
            &set(Path::new(slot), VERSION_AT),
            slot,
            |_| (),
            is_unsupported,
        );
    }
    check_refused(
        &set(&sealed.journal, VERSION_AT),
        "the journal",
        |_| (),
        is_unsupported,
    );
    let trailer_at = sealed.image[&sealed.segment].len() - TRAILER_BYTES;
    for (part, at) in [
        ("the segment's header", 0),
        ("the segment's trailer", trailer_at),
    ] {
        let folder = lay_out(&set(&sealed.segment, at + VERSION_AT));
        let error = contents_of(folder.path()).expect_err(part);
        assert!(
            is_unsupported(&error),
            "{part} has a later version: {error:?}"
        );
    }
}

const SLOTS: [&str; 2] = ["MANIFEST-0", "MANIFEST-1"];

/// The files of a folder, by their path in it.
type Image = BTreeMap<PathBuf, Vec<u8>>;

/// A small log as a crash or a close left it, with the places of its last two groups.
struct Scene {
    image: Image,
    /// The journal file.
    journal: PathBuf,
    /// The bytes of the last group, and of the one before.
    last: Range<usize>,
    earlier: Range<usize>,
    /// The contents of the journal file before the last group was written over them.
    before_last: Vec<u8>,
    whole: Contents,
    without_last: Contents,
}

/// The appends of the log before its last groups.
#[derive(Clone, Copy)]
enum Past {
    /// A few small appends: zeroes follow the last group.
    Short,
    /// Enough to reuse journal files: an earlier use of the file follows the last group.
    Recycled,
}

/// The events between the last append and the image.
#[derive(Clone, Copy)]
enum End {
    /// Nothing: the process was killed.
    Crash,
    Close,
    /// Time, so that a witness was written after the last group, then a kill.
    Idle,
}

impl Scene {
    fn new(past: Past, end: End) -> Self {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let log = options().open(folder.path()).expect("open");
            past.make(&log, folder.path());
            for nth in 0..ATTEMPTS_MAX {
                if let Some(scene) = Self::attempt(&log, folder.path(), end, nth) {
                    return scene;
                }
                if begun.elapsed() > DEADLINE {
                    break;
                }
            }
        }
        panic!("no undisturbed crash image within {DEADLINE:?}")
    }

    /// Writes the last groups, unless background work disturbs. A log that was idle for a while
    /// writes a witness, which makes a torn tail provable damage. It is one more block that
    /// changes.
    fn attempt(log: &SessionLog, folder: &Path, end: End, nth: u64) -> Option<Self> {
        let n = 7 * nth;
        append(log, 0, n + 4);
        let first = read_image_of(folder, "journal");
        append(log, 1, n + 5);
        let second = read_image_of(folder, "journal");
        let ack = append(log, 0, n + 6);
        let third = read_image(folder);
        let (journal, earlier) = difference(&first, &second)?;
        let (last_journal, last) = difference(&second, &third)?;
        if journal != last_journal {
            return None;
        }
        let whole = contents_of(lay_out(&third).path()).expect("a crash image opens");
        assert_eq!(
            whole.newest(),
            ack.events[0].id,
            "the last append is stored"
        );
        let without_last = whole.without(&ack);
        let image = match end {
            End::Crash => third,
            End::Close => {
                log.close().expect("close");
                read_image(folder)
            }
            End::Idle => {
                until(|| read_image(folder)[&journal] != third[&journal]);
                read_image(folder)
            }
        };
        let before_last = second[&journal].clone();
        // A crash may also have come while another journal file was being prepared.
        let image = with(&image, |image| {
            drop(image.insert("journal/00000099.tmp".into(), vec![0; BLOCK]));
        });
        Some(Self {
            image,
            journal,
            last,
            earlier,
            before_last,
            whole,
            without_last,
        })
    }

    /// Opens with the journal changed by `tear`. If that changed the last group, all of the group
    /// is gone.
    fn check_torn(&self, how: &str, tear: impl FnOnce(&mut [u8])) {
        let torn = with(&self.image, |image| tear(bytes_of(image, &self.journal)));
        let untouched =
            torn[&self.journal][self.last.clone()] == self.image[&self.journal][self.last.clone()];
        let expected = if untouched {
            &self.whole
        } else {
            &self.without_last
        };
        let folder = lay_out(&torn);
        let log = options()
            .open(folder.path())
            .unwrap_or_else(|error| panic!("{how}: the log does not open: {error:?}"));
        assert!(
            contents(&log).unwrap_or_else(|error| panic!("{how}: {error:?}")) == *expected,
            "{how}: other contents"
        );
        let ack = append(&log, 1, 99);
        assert!(
            ack.events[0].id > expected.newest(),
            "{how}: {} is not above what is stored",
            ack.events[0].id
        );
        let grown = contents(&log).expect("read what was appended");
        assert!(
            grown.without(&ack) == *expected,
            "{how}: an append changed what was there"
        );
        drop(log);
        let reopened = options()
            .open_read_only(folder.path())
            .and_then(|log| contents(&log));
        assert!(
            reopened.expect("reopen") == grown,
            "{how}: reopened with other contents"
        );
    }
}

impl Past {
    fn make(self, log: &SessionLog, folder: &Path) {
        match self {
            Past::Short => (0..4).for_each(|n| drop(append(log, n % 2, n))),
            Past::Recycled => {
                let session = SessionId::new("filler").expect("the name follows the rules");
                let mut n = 0;
                while segments(folder).len() < 4 {
                    n += 1;
                    log.append(
                        &session,
                        Batch::new().event(NewEvent::new("note", noise(n, 30_000))),
                    )
                    .expect("an append");
                }
                (0..40).for_each(|n| drop(append(log, n % 2, n + 1_000)));
            }
        }
    }
}

/// Damages the journal at each place in turn. The error names the file and the block.
fn check_flips_are_corruption(scene: &Scene, places: impl Iterator<Item = usize>) {
    let folder = || lay_out(&scene.image);
    each_in_parallel_with(folder, places, |folder, at| {
        let block = (at - at % BLOCK) as u64..(at - at % BLOCK + BLOCK) as u64;
        let names_the_place = |error: &Error| match error {
            Error::Corrupt { file, offset, .. } => {
                file.ends_with(&scene.journal) && block.contains(offset)
            }
            _ => false,
        };
        let damaged = with(&scene.image, |image| {
            bytes_of(image, &scene.journal)[at] ^= 0x10;
        });
        put_byte(folder.path(), &damaged, &scene.journal, at);
        assert_refused(
            folder.path(),
            &damaged,
            &format!("byte {at} flipped"),
            names_the_place,
        );
        put_byte(folder.path(), &scene.image, &scene.journal, at);
    });
}

/// Opening the damaged image fails as `expected`, and leaves every byte as it was.
fn check_refused(
    image: &Image,
    how: &str,
    damage: impl FnOnce(&mut Image),
    expected: impl Fn(&Error) -> bool,
) {
    let damaged = with(image, damage);
    assert_refused(lay_out(&damaged).path(), &damaged, how, expected);
}

fn assert_refused(folder: &Path, image: &Image, how: &str, expected: impl Fn(&Error) -> bool) {
    for (kind, access) in [("", Access::Write), ("reading only, ", Access::ReadOnly)] {
        let opened = open_for(access, options(), folder);
        let error = opened.map(drop).expect_err(how);
        assert!(expected(&error), "{kind}{how}: {error:?}");
    }
    let after = read_image(folder);
    let is_changed =
        |name: &&PathBuf| **name != Path::new("LOCK") && after.get(*name) != image.get(*name);
    let changed: Vec<_> = after
        .keys()
        .chain(image.keys())
        .filter(is_changed)
        .collect();
    assert!(
        changed.is_empty(),
        "{how}: the failing open changed {changed:?}"
    );
}

fn put_byte(folder: &Path, image: &Image, name: &Path, at: usize) {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(folder.join(name))
        .expect("open a file");
    file.seek(SeekFrom::Start(at as u64)).expect("a place");
    file.write_all(&image[name][at..=at]).expect("write a byte");
}

fn is_corrupt(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. })
}

fn is_unsupported(error: &Error) -> bool {
    matches!(
        error,
        Error::Unsupported { found, supported, .. }
            if (*found, *supported) == (LATER_VERSION.into(), VERSION.into())
    )
}

/// A closed log with three small segments, an index, and some more events in its journal.
struct Sealed {
    image: Image,
    /// The second segment.
    segment: PathBuf,
    /// A journal file that is or was in use.
    journal: PathBuf,
    /// The index as it was before the last two segments.
    older_index: Image,
    contents: Contents,
}

const SEALED_SESSIONS: u64 = 5;

impl Sealed {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let numbers = &mut (0..);
        // With so little memory for what is not sealed yet, a few dozen records make a segment.
        let grow = |numbers: &mut dyn Iterator<Item = u64>, count: usize| {
            let log = options()
                .recent_bytes_max(64 * 1024)
                .open(folder.path())
                .expect("open");
            for n in numbers.take_while(|n| *n < 10_000) {
                append(&log, n % SEALED_SESSIONS, n);
                if segments(folder.path()).len() >= count {
                    break;
                }
            }
            log.close().expect("close");
            read_image(folder.path())
        };
        let older_index = grow(numbers, 1)
            .into_iter()
            .filter(|(name, _)| name.starts_with("index"))
            .collect();
        let image = grow(numbers, 3);
        let segment = segments(folder.path()).remove(1);
        let used = |name: &Path, bytes: &[u8]| {
            name.starts_with("journal") && bytes.starts_with(JOURNAL_MAGIC)
        };
        let journal = image
            .iter()
            .find(|(name, bytes)| used(name, bytes))
            .expect("a log has a journal")
            .0
            .clone();
        let contents = contents_of(lay_out(&image).path()).expect("the log is whole");
        Self {
            image,
            segment,
            journal,
            older_index,
            contents,
        }
    }

    /// Returns whether the flip was noticed. For some flips the log is opened for writing.
    fn check_flip(&self, folder: &Path, at: usize) -> bool {
        let segment = folder.join(&self.segment);
        let mut damaged = Image::from([(self.segment.clone(), self.image[&self.segment].clone())]);
        bytes_of(&mut damaged, &self.segment)[at] ^= 0x04;
        put_byte(folder, &damaged, &self.segment, at);
        let noticed = self.check_damaged(&segment, options().open_read_only(folder), at);
        if at.is_multiple_of(96) {
            self.check_damaged(&segment, options().open(folder), at);
            self.check_replay(&segment, options().open(folder), at);
        }
        put_byte(folder, &self.image, &self.segment, at);
        noticed
    }

    /// An unknown version or kind is no damage, so a flip may also make a file unsupported.
    fn check_damaged(&self, segment: &Path, opened: Result<SessionLog, Error>, at: usize) -> bool {
        match opened.and_then(|log| contents(&log)) {
            Ok(contents) => assert!(
                contents == self.contents,
                "byte {at} flipped: other contents"
            ),
            Err(Error::Corrupt { file, .. } | Error::Unsupported { file, .. }) => {
                assert_eq!(file, segment, "byte {at} flipped: another file is named");
                return true;
            }
            Err(error) => panic!("byte {at} flipped: {error:?}"),
        }
        false
    }

    /// A key of a damaged segment replays or is an error; it never lands again.
    fn check_replay(&self, segment: &Path, opened: Result<SessionLog, Error>, at: usize) {
        let event = &self.contents.feed[self.contents.feed.len() / 2];
        match opened.and_then(|log| log.append(&event.session_id, batch(number_of(event)))) {
            Ok(ack) => assert!(
                ack.replayed && ack.events == [event.clone()],
                "byte {at} flipped: {ack:?}"
            ),
            Err(Error::Corrupt { file, .. } | Error::Unsupported { file, .. }) => {
                assert_eq!(file, segment, "byte {at} flipped");
            }
            Err(error) => panic!("byte {at} flipped: {error:?}"),
        }
    }

    fn check_lost(&self, how: &str, damage: impl FnOnce(&mut Image)) {
        let folder = lay_out(&with(&self.image, damage));
        match contents_of(folder.path()) {
            Ok(contents) => assert!(
                contents == self.contents,
                "the segment {how}: other contents"
            ),
            Err(Error::Corrupt { file, .. }) => {
                assert!(
                    file.ends_with(&self.segment),
                    "the segment {how}: {} is named",
                    file.display()
                );
            }
            Err(error) => panic!("the segment {how}: {error:?}"),
        }
    }

    fn check_index(&self, how: &str, damage: impl FnOnce(&mut Image)) {
        let folder = lay_out(&with(&self.image, damage));
        let log = options()
            .open(folder.path())
            .unwrap_or_else(|error| panic!("index {how}: {error:?}"));
        assert!(
            contents(&log).unwrap_or_else(|error| panic!("index {how}: {error:?}"))
                == self.contents,
            "index {how}: other contents"
        );
        for (session, events) in &self.contents.sessions {
            check_appends(how, &log, session, events);
        }
        let grown = contents(&log).expect("read");
        log.close().expect("close");
        drop(log);
        assert!(
            contents_of(folder.path()).expect("reopen") == grown,
            "index {how}: reopened with other contents"
        );
    }
}

/// Old keys replay, keys with other content conflict, and expectations are compared with the true
/// tail.
fn check_appends(how: &str, log: &SessionLog, session: &SessionId, events: &[Event]) {
    for event in [events.first(), events.get(events.len() / 2), events.last()]
        .into_iter()
        .flatten()
    {
        let n = number_of(event);
        let again = log.append(session, batch(n)).expect("a replay");
        assert!(
            again.replayed && again.events.contains(event),
            "index {how}: key {n} of {session} is no replay"
        );
        let other = log.append(session, batch(n).event(NewEvent::new("more", "x")));
        assert!(
            matches!(
                other,
                Err(Error::IdempotencyConflict { first_seq, .. }) if first_seq == again.first
            ),
            "index {how}: {other:?}"
        );
    }
    let tail = events.last().expect("a session has events").seq;
    let absent = log.append(
        session,
        Batch::new()
            .event(NewEvent::new("more", "x"))
            .expected(Expected::NoSession),
    );
    assert!(
        matches!(absent, Err(Error::ExpectedMismatch { actual, .. }) if actual == tail),
        "index {how}: {absent:?}"
    );
    let next = log
        .append(session, batch(1_000_000).expected(Expected::Seq(tail)))
        .expect("an append at the tail");
    assert!(
        !next.replayed && next.first == tail + 1,
        "index {how}: the append after {tail} went to {}",
        next.first
    );
}

/// Everything that readers can see of a log.
#[derive(Clone, PartialEq)]
struct Contents {
    sessions: Vec<(SessionId, Vec<Event>)>,
    recent: Vec<SessionId>,
    feed: Vec<Event>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events of {} sessions",
            self.feed.len(),
            self.sessions.len()
        )
    }
}

impl Contents {
    fn without(&self, ack: &Ack) -> Self {
        let keep = |events: &[Event]| {
            events
                .iter()
                .filter(|event| !ack.events.contains(event))
                .cloned()
                .collect::<Vec<_>>()
        };
        let feed = keep(&self.feed);
        let sessions = self
            .sessions
            .iter()
            .map(|(session, events)| (session.clone(), keep(events)))
            .filter(|(_, events)| !events.is_empty());
        Self {
            sessions: sessions.collect(),
            recent: recent_of(&feed),
            feed,
        }
    }

    fn newest(&self) -> EventId {
        self.feed
            .last()
            .map_or(EventId::from_u128(0), |event| event.id)
    }
}

fn recent_of(feed: &[Event]) -> Vec<SessionId> {
    let mut recent: Vec<SessionId> = Vec::new();
    for event in feed.iter().rev() {
        if !recent.contains(&event.session_id) {
            recent.push(event.session_id.clone());
        }
    }
    recent
}

/// Reads everything in every way there is. All ways must agree.
fn contents(log: &SessionLog) -> Result<Contents, Error> {
    let feed = log
        .feed()?
        .until_tail()
        .events()
        .collect::<Result<Vec<_>, _>>()?;
    let mut sessions = Vec::new();
    for session in log.session_ids(SessionQuery::by_id().limit(PAGE))? {
        let events = all_pages(log, &session)?;
        let head = log.head(&session)?;
        assert_eq!(
            (head.first, head.last, head.last_id),
            (1, events.len() as u64, events.last().map(|e| e.id)),
            "the head of {session}"
        );
        assert!(
            events
                .iter()
                .eq(feed.iter().filter(|event| event.session_id == session)),
            "{session} is not what the feed has of it"
        );
        let turns: Vec<EventId> = events
            .iter()
            .filter(|event| event.event_type == "user.message")
            .map(|event| event.id)
            .collect();
        let messages = log
            .messages(&session, PageRequest::new().limit(PAGE))?
            .items;
        assert!(
            messages
                .iter()
                .map(|message| message.id.event_id())
                .eq(turns),
            "the messages of {session}"
        );
        sessions.push((session, events));
    }
    assert_eq!(
        sessions
            .iter()
            .map(|(_, events)| events.len())
            .sum::<usize>(),
        feed.len(),
        "the sessions hold what the feed holds"
    );
    for event in feed.iter().step_by(feed.len() / 50 + 1) {
        assert_eq!(log.event(event.id)?, *event, "an event by its ID");
    }
    Ok(Contents {
        sessions,
        recent: log.recent_ids(PAGE)?,
        feed,
    })
}

fn all_pages(log: &SessionLog, session: &SessionId) -> Result<Vec<Event>, Error> {
    let mut events = Vec::new();
    loop {
        let page = log.list(
            session,
            PageRequest::new().after(events.len() as u64).limit(PAGE),
        )?;
        events.extend(page.items);
        if !page.has_more {
            break;
        }
    }
    let newest = log
        .list(session, PageRequest::new().newest_first().limit(PAGE))?
        .items;
    // A page may hold fewer, where events are large.
    assert!(
        !newest.is_empty() && newest.iter().eq(events.iter().rev().take(newest.len())),
        "{session} reads otherwise from its end"
    );
    Ok(events)
}

fn contents_of(folder: &Path) -> Result<Contents, Error> {
    let log = options().open(folder)?;
    let contents = contents(&log)?;
    log.close()?;
    Ok(contents)
}

fn options() -> Options {
    Options::new().journal_file_bytes_max(4 * 1024 * 1024)
}

/// Returns a keyed batch whose events hold its number.
fn batch(n: u64) -> Batch {
    let message = NewEvent::new(
        "user.message",
        format!(r#"{{"content":[{{"type":"text","text":"{n}"}}]}}"#),
    );
    let event = if n.is_multiple_of(7) {
        message
    } else {
        NewEvent::new("note", format!("{n}"))
    };
    Batch::new().event(event).idempotency_key(n.to_string())
}

fn number_of(event: &Event) -> u64 {
    let digits: String = event
        .data
        .iter()
        .map(|byte| char::from(*byte))
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse().expect("an event tells its number")
}

fn append(log: &SessionLog, session: u64, n: u64) -> Ack {
    let session = SessionId::new(format!("session {session}")).expect("the name follows the rules");
    log.append(&session, batch(n))
        .unwrap_or_else(|error| panic!("append {n} to {session}: {error:?}"))
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join("segments"))
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("a folder entry").file_name());
    let mut names: Vec<PathBuf> = files.map(|name| Path::new("segments").join(name)).collect();
    names.retain(|name| {
        name.extension()
            .is_some_and(|extension| extension == "segment")
    });
    names.sort();
    names
}

/// Returns the one journal file in which the later image differs, and the differing bytes. Does not
/// wait for background work.
fn difference(earlier: &Image, later: &Image) -> Option<(PathBuf, Range<usize>)> {
    let mut changed = later.iter().filter(|(name, bytes)| {
        name.starts_with("journal") && earlier.get(*name).is_some_and(|old| old != *bytes)
    });
    let (name, bytes) = changed.next()?;
    let differs = |at: &usize| earlier[name].get(*at) != bytes.get(*at);
    // A group is padded with zeroes, which may differ from what was there before.
    let range = (0..bytes.len()).find(differs)?
        ..(0..bytes.len()).rfind(|at| differs(at) && bytes[*at] != 0)? + 1;
    (changed.next().is_none() && range.start.is_multiple_of(BLOCK) && range.len() <= BLOCK)
        .then(|| (name.clone(), range))
}

fn bytes_of<'a>(image: &'a mut Image, name: &Path) -> &'a mut Vec<u8> {
    image.get_mut(name).expect("a file of the image")
}

fn with(image: &Image, change: impl FnOnce(&mut Image)) -> Image {
    let mut image = image.clone();
    change(&mut image);
    image
}

fn lay_out(image: &Image) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in image {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("make a folder");
        fs::write(path, bytes).expect("write a file");
    }
    folder
}

/// Returns all files. Skips one that disappears meanwhile, which was only being prepared.
fn read_image(folder: &Path) -> Image {
    read_image_of(folder, "")
}

/// Returns the files below one folder of a log.
fn read_image_of(folder: &Path, inner: &str) -> Image {
    let mut image = Image::new();
    let mut folders = vec![folder.join(inner)];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(inner).expect("a folder of the log") {
            let path = entry.expect("a folder entry").path();
            let name = path
                .strip_prefix(folder)
                .expect("it lies in the folder")
                .to_path_buf();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                image.insert(name, bytes);
            }
        }
    }
    image
}

fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < DEADLINE,
            "it did not come true within {DEADLINE:?}"
        );
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// Calls `check` with every item, on a few threads.
fn each_in_parallel<I: Send>(items: impl Iterator<Item = I>, check: impl Fn(I) + Sync) {
    each_in_parallel_with(|| (), items, |(), item| check(item));
}

/// Works as [`each_in_parallel`] with a value that each thread makes for itself. Returns the
/// results of `check`, in no particular order.
fn each_in_parallel_with<S, I: Send, R: Send>(
    make: impl Fn() -> S + Sync,
    items: impl Iterator<Item = I>,
    check: impl Fn(&S, I) -> R + Sync,
) -> Vec<R> {
    let mut shares: Vec<Vec<I>> = (0..WORKERS).map(|_| Vec::new()).collect();
    items
        .enumerate()
        .for_each(|(n, item)| shares[n % WORKERS].push(item));
    let work = |share: Vec<I>| {
        let own = make();
        share
            .into_iter()
            .map(|item| check(&own, item))
            .collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(|| work(share)))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

/// Ruins one byte in about sixty.
fn scribble(bytes: &mut [u8], seed: u64) {
    let noise = noise(seed, bytes.len());
    bytes
        .iter_mut()
        .zip(noise)
        .filter(|(_, noise)| *noise < 4)
        .for_each(|(byte, noise)| *byte ^= noise + 1);
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
