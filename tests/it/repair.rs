//! Damaged logs: every fault is found, and everything else is saved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sessionlog::repair::{Finding, IndexCheck, Loss, Salvaged, Told, Verified, salvage, verify};
use sessionlog::transfer::Export;
use sessionlog::{
    Batch, Compression, Delete, Error, Event, EventId, Fork, NewEvent, Options, SessionId,
    SessionInfo, SessionLog, SessionQuery,
};

use crate::support::{
    Place, append_notes, assert_error, embedded_alone, eventually, folder, note, read_all,
    seal_once, session, small_files,
};

/// Verifies a log, and returns what was found.
fn verified(folder: &Path) -> (Verified, Vec<Finding>) {
    let mut findings = Vec::new();
    let verified = verify(folder, |told| {
        if let Told::Finding(finding) = told {
            findings.push(finding);
        }
    })
    .unwrap();
    assert_eq!(verified.findings, findings.len() as u64);
    (verified, findings)
}

fn salvaged(from: &Path, to: &Path) -> (Salvaged, Vec<Loss>) {
    let mut losses = Vec::new();
    let salvaged = salvage(from, to, Options::new(), |told| {
        if let Told::Loss(loss) = told {
            losses.push(loss);
        }
    })
    .unwrap();
    (salvaged, losses)
}

/// A log with segments of two tiers, sessions of every standing, and a journal that is not sealed.
fn filled(folder: &Path) {
    let log = small_files().merge_fanout(2).open(folder).unwrap();
    for round in 0..3 {
        for n in 0..20 {
            let id = session(&format!("s{n}"));
            append_notes(&log, &id, &format!("r{round}"), 3);
            let turn = Batch::new().user_message("hello").event(note([7; 300]));
            log.append(&id, turn.idempotency_key(format!("k{round}")))
                .unwrap();
        }
        if round == 1 {
            log.fork(Fork::new(&session("s1")).at(5), &session("fork"))
                .unwrap();
            log.close_session(&session("s2")).unwrap();
            log.delete(&session("s3"), Delete::new()).unwrap();
            log.trim(&session("s4"), 4).unwrap();
            let second = read_all(&log, &session("s5"))[1].id;
            log.redact(second, "asked for").unwrap();
            log.reopen(&session("s2")).unwrap();
            log.compact(|_| ControlFlow::Continue(())).unwrap();
        }
        seal_once(&log, &session("filler"));
    }
    append_notes(&log, &session("fork"), "own", 3);
    append_notes(&log, &session("s0"), "end", 3);
    // The same segments each time: no tier has two that are still to be merged.
    let is_merged = || {
        let stats = log.stats();
        stats.index_lag == 0 && stats.tiers.iter().all(|tier| tier.segments < 2)
    };
    eventually("all is merged", is_merged);
    while log.stats().segments < 2 {
        seal_once(&log, &session("filler"));
        eventually("all is merged", is_merged);
    }
    log.close().unwrap();
}

/// What is done to the bytes of a file.
type Edit = fn(&mut Vec<u8>);

type Content = BTreeMap<SessionId, (SessionInfo, Vec<Event>)>;

/// Returns every session and its events.
fn content(log: &SessionLog) -> Content {
    let mut query = Some(SessionQuery::by_id().limit(7));
    let mut content = Content::new();
    while let Some(next) = query {
        let page = log.sessions(next).unwrap();
        for info in &page.items {
            content.insert(info.id.clone(), (info.clone(), read_all(log, &info.id)));
        }
        query = page.next_page();
    }
    content
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let in_folder = |name: &str| {
        let entries = fs::read_dir(folder.join(name)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let mut files = in_folder("segments");
    files.extend(in_folder("journal"));
    files.extend(["MANIFEST-0", "MANIFEST-1"].map(|slot| folder.join(slot)));
    files.sort();
    files
}

fn copied(from: &Path) -> Place {
    let to = folder();
    for name in ["segments", "journal"] {
        fs::create_dir(to.path().join(name)).unwrap();
    }
    for file in files(from) {
        fs::copy(&file, to.path().join(file.strip_prefix(from).unwrap())).unwrap();
    }
    to
}

/// Checks a log that was saved from a damaged copy of one with this content. Returns how many forks
/// begin later as well.
fn check_saved(damaged: &Path, original: &Content) -> (Salvaged, Vec<Loss>, usize) {
    let saved_to = folder();
    let (salvaged, losses) = salvaged(damaged, saved_to.path());
    let (again, findings) = verified(saved_to.path());
    assert_eq!(findings, [], "{again:?}");
    let log = SessionLog::open(saved_to.path()).unwrap();
    let saved = content(&log);
    // A fork shares its events with what it was forked from.
    let (mut lost, mut later) = (BTreeSet::new(), 0);
    for (id, (info, events)) in &saved {
        // What was removed comes back where the record and the state that say so are lost.
        let of_generation = original
            .get(id)
            .filter(|it| it.0.generation == info.generation);
        let Some((original_info, original)) = of_generation else {
            continue;
        };
        let kept = events.iter().filter(|it| it.seq >= original_info.first);
        for event in kept {
            let place = usize::try_from(event.seq - original_info.first).unwrap();
            if event.event_type.as_str() == "sessionlog.lost" {
                assert!(event.redacted && event.data.is_empty(), "{event:?}");
                lost.insert(event.id);
            } else {
                assert_eq!(event, &original[place]);
            }
        }
        assert!(info.last <= original_info.last);
        // What is lost of several sessions that a fork shares has IDs in the order of each alone.
        let is_fork = info.parent.is_some();
        later += usize::from(is_fork && info.first > original_info.first);
        let is_lost = |event: &&Event| event.event_type.as_str() == "sessionlog.lost";
        let own = events.iter().filter(|event| !(is_fork && is_lost(event)));
        let ids: Vec<EventId> = own.map(|event| event.id).collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }
    assert!(losses.len() as u64 >= salvaged.sessions_damaged);
    let lost = lost.len() as u64;
    assert!(lost <= salvaged.events_lost, "{lost} of {salvaged:?}");
    // It goes on as a log.
    append_notes(&log, &session("s0"), "more", 1);
    log.close().unwrap();
    (salvaged, losses, later)
}

#[test]
fn a_sound_log_has_no_fault_and_is_saved_whole() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    filled(dir.path());
    let before: Vec<Vec<u8>> = files(dir.path())
        .iter()
        .map(|file| fs::read(file).unwrap())
        .collect();
    let (verified, findings) = verified(dir.path());
    assert_eq!(findings, []);
    assert!(matches!(verified.index, IndexCheck::Compared(entries) if entries > 10));
    assert!(
        verified.segments >= 2 && verified.unsealed_events > 0,
        "{verified:?}"
    );
    let after: Vec<Vec<u8>> = files(dir.path())
        .iter()
        .map(|file| fs::read(file).unwrap())
        .collect();
    assert!(before == after, "verifying wrote something");
    let log = SessionLog::open(dir.path()).unwrap();
    let original = content(&log);
    assert_eq!(verified.sessions, Some(original.len() as u64));
    log.close().unwrap();
    let (salvaged, losses, _) = check_saved(dir.path(), &original);
    assert_eq!(
        (salvaged.findings, salvaged.events_lost, losses.len()),
        (0, 0, 0)
    );
    assert_eq!(salvaged.sessions, original.len() as u64);
    let copy = folder();
    salvage(dir.path(), copy.path(), Options::new(), |_| ()).unwrap();
    let log = SessionLog::open(copy.path()).unwrap();
    assert_same(&content(&log), &original);
    // What was removed is due to be erased, and is.
    log.compact(|_| ControlFlow::Continue(())).unwrap();
    assert_same(&content(&log), &original);
    log.close().unwrap();
    assert_eq!(verified_findings(copy.path()), 0);
}

/// Compares session by session, because a whole log is too much to print.
fn assert_same(is: &Content, should_be: &Content) {
    assert!(is.keys().eq(should_be.keys()));
    for (id, (info, events)) in is {
        let (expected, all) = &should_be[id];
        assert_eq!(info, expected);
        let different = events
            .iter()
            .zip(all)
            .find(|(is, should_be)| is != should_be);
        assert_eq!(different, None, "in {id}");
        assert_eq!(events.len(), all.len(), "in {id}");
    }
}

fn verified_findings(folder: &Path) -> u64 {
    verified(folder).0.findings
}

#[test]
fn a_log_is_verified_while_it_is_written() {
    let dir = folder();
    let log = small_files().open(dir.path()).unwrap();
    for n in 0..4 {
        append_notes(&log, &session("s"), &n.to_string(), 3);
        seal_once(&log, &session("filler"));
        let (verified, findings) = verified(dir.path());
        assert_eq!((findings, verified.sessions), (Vec::new(), Some(2)));
        assert!(matches!(
            verified.index,
            IndexCheck::InUse | IndexCheck::Absent
        ));
    }
    log.close().unwrap();
}

#[test]
fn every_flipped_byte_is_found_in_its_file_and_the_rest_is_saved() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    filled(dir.path());
    let log = SessionLog::open(dir.path()).unwrap();
    let original = content(&log);
    log.close().unwrap();
    let mut lost = 0;
    for file in files(dir.path()) {
        let name = file.strip_prefix(dir.path()).unwrap();
        let sound = fs::read(&file).unwrap();
        // Zeroes that nobody wrote something to stand for nothing.
        let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
        if used.is_empty() {
            continue;
        }
        for nth in 0..8 {
            let damaged = copied(dir.path());
            let mut bytes = sound.clone();
            // Spread over the file, with its beginning and its end.
            let at = used[(used.len() - 1) * nth / 7];
            bytes[at] ^= 0x20;
            fs::write(damaged.path().join(name), &bytes).unwrap();
            let (verified, findings) = verified(damaged.path());
            let is_here =
                |finding: &Finding| finding.file.ends_with(name) && finding.offset <= at as u64;
            let is_stale = name.starts_with("journal") && findings.is_empty();
            assert!(
                is_stale || findings.iter().any(is_here),
                "byte {at} of {name:?}: {findings:?} {verified:?}"
            );
            lost += check_saved(damaged.path(), &original).0.events_lost;
        }
    }
    // How many depends on where the bytes lie: most of a segment is filler.
    assert!(lost > 0, "nothing was lost");
}

#[test]
fn many_faults_at_once_are_each_found_and_the_rest_is_saved() {
    embedded_alone!("it is about a folder");
    let dir = folder();
    filled(dir.path());
    let log = SessionLog::open(dir.path()).unwrap();
    let original = content(&log);
    log.close().unwrap();
    let edits: [(&str, Edit); 5] = [
        ("segments", |bytes| {
            let step = bytes.len() / 16;
            bytes.iter_mut().step_by(step).for_each(|byte| *byte ^= 1);
        }),
        ("segments", |bytes| bytes.truncate(bytes.len() / 2)),
        ("segments", |bytes| {
            bytes
                .iter_mut()
                .skip(4096)
                .take(65536)
                .for_each(|byte| *byte = 0);
        }),
        ("journal", |bytes| {
            bytes.iter_mut().take(4096).for_each(|byte| *byte = 0);
        }),
        ("MANIFEST", |bytes| bytes.clear()),
    ];
    for (nth, (place, edit)) in edits.into_iter().enumerate() {
        let damaged = copied(dir.path());
        for file in files(damaged.path()) {
            let name = file.strip_prefix(damaged.path()).unwrap();
            if name.to_string_lossy().starts_with(place) {
                let mut bytes = fs::read(&file).unwrap();
                edit(&mut bytes);
                fs::write(&file, bytes).unwrap();
            }
        }
        let (verified, _) = verified(damaged.path());
        assert!(verified.findings > 0, "edit {nth}");
        let (salvaged, _, _) = check_saved(damaged.path(), &original);
        // Without the manifest nothing else is lost.
        assert!(
            place != "MANIFEST" || salvaged.events_lost == 0,
            "{salvaged:?}"
        );
    }
}

/// A log whose sessions are forked, deleted and made again, each step in a segment of its own.
fn forked(folder: &Path, options: impl Fn() -> Options) {
    // So many are never merged.
    let options = || options().merge_fanout(1_000).compression(Compression::None);
    let log = options().open(folder).unwrap();
    let seal = || log.backup(crate::support::folder().path()).unwrap();
    let fork = |from: &str, at, to: &str| {
        let fork = Fork::new(&session(from)).at(at);
        log.fork(fork, &session(to)).unwrap();
    };
    for name in ["mine", "old"] {
        for round in 0..4 {
            append_notes(&log, &session(name), &"x".repeat(1_800 + round), 3);
        }
    }
    seal();
    // Names before and after those that they share events with.
    fork("mine", 10, "a");
    fork("mine", 6, "z");
    append_notes(&log, &session("a"), "own", 3);
    seal();
    append_notes(&log, &session("mine"), "later", 3);
    fork("a", 12, "again");
    fork("old", 9, "keeps");
    log.trim(&session("keeps"), 4).unwrap();
    log.delete(&session("a"), Delete::new()).unwrap();
    log.delete(&session("old"), Delete::new()).unwrap();
    seal();
    append_notes(&log, &session("old"), "new", 3);
    seal();
    fork("keeps", 9, "last");
    log.delete(&session("keeps"), Delete::new()).unwrap();
    seal();
    append_notes(&log, &session("z"), "own", 3);
    log.close().unwrap();
}

/// Loses each of the pieces that segments consist of, their blocks of 4 KiB and whole files, alone
/// and with every `step`th of the others. Returns how many forks begin later.
fn check_any_two_losses(folder: &Path, step: usize) -> usize {
    let log = SessionLog::open(folder).unwrap();
    let original = content(&log);
    log.close().unwrap();
    let is_segment = |file: &PathBuf| file.extension().is_some_and(|name| name == "segment");
    let mut pieces = Vec::new();
    for file in files(folder).into_iter().filter(is_segment) {
        let bytes = fs::read(&file).unwrap();
        let name = file.strip_prefix(folder).unwrap().to_path_buf();
        pieces.extend((0..bytes.len() / 4096).map(|block| (name.clone(), Some(block))));
        pieces.push((name, None));
    }
    assert!((20..60).contains(&pieces.len()), "{pieces:?}");
    let mut later = 0;
    for (nth, one) in pieces.iter().enumerate() {
        for other in pieces[nth..].iter().step_by(step) {
            let damaged = copied(folder);
            for (name, block) in [one, other] {
                let place = damaged.path().join(name);
                match (block, fs::read(&place)) {
                    (Some(block), Ok(mut bytes)) => {
                        bytes[block * 4096..][..4096].fill(0);
                        fs::write(place, bytes).unwrap();
                    }
                    (None, Ok(_)) => fs::remove_file(place).unwrap(),
                    // It is lost whole already.
                    (_, Err(_)) => {}
                }
            }
            later += check_saved(damaged.path(), &original).2;
        }
    }
    later
}

#[test]
fn what_forks_share_is_saved_or_told_of_whatever_two_blocks_are_lost() {
    let dir = folder();
    forked(dir.path(), small_files);
    // Between any two batches there are free IDs for what stands for lost events.
    assert_eq!(check_any_two_losses(dir.path(), 1), 0);
}

#[test]
fn forks_begin_behind_lost_events_where_no_id_is_free() {
    // All IDs follow each other, as in a single millisecond.
    let dir = folder();
    forked(dir.path(), || small_files().clock(|| UNIX_EPOCH));
    assert!(check_any_two_losses(dir.path(), 7) > 0);
}

#[test]
fn a_folder_without_a_log_is_none_and_a_target_with_one_is_refused() {
    let (empty, dir, to) = (folder(), folder(), folder());
    let nothing = empty.path().join("nothing");
    for path in [empty.path(), &nothing] {
        assert_error!(verify(path, |_| ()), Error::Io { .. });
        assert_error!(
            salvage(path, to.path(), Options::new(), |_| ()),
            Error::Io { .. }
        );
    }
    assert!(!nothing.exists() && fs::read_dir(empty.path()).unwrap().next().is_none());
    let log = SessionLog::open(dir.path()).unwrap();
    log.append(
        &session("s"),
        Batch::new().event(NewEvent::new("note", "x")),
    )
    .unwrap();
    log.close().unwrap();
    let log = SessionLog::open(to.path()).unwrap();
    log.close().unwrap();
    assert_error!(
        salvage(dir.path(), to.path(), Options::new(), |_| ()),
        Error::Invalid { .. }
    );
}

/// Merging leaves out what was removed, while older segments still have states of before.
#[test]
fn removed_sessions_are_no_loss_and_stretches_without_records_no_fault() {
    let (dir, copy, imported) = (folder(), folder(), folder());
    let log = small_files().merge_fanout(2).open(dir.path()).unwrap();
    let backup = || {
        let to = folder();
        log.backup(to.path()).unwrap();
    };
    for name in ["a", "b", "c"] {
        append_notes(&log, &session(name), name, 5);
    }
    backup();
    backup();
    append_notes(&log, &session("c"), "more", 5);
    backup();
    log.delete(&session("a"), Delete::new()).unwrap();
    log.delete(&session("b"), Delete::new()).unwrap();
    log.trim(&session("c"), 4).unwrap();
    backup();
    log.compact(|_| ControlFlow::Continue(())).unwrap();
    let original = content(&log);
    eventually("it is merged", || log.stats().merges > 0);
    log.close().unwrap();
    assert_eq!(verified(dir.path()).1, []);
    let (salvaged, losses, _) = check_saved(dir.path(), &original);
    assert_eq!((salvaged.events_lost, losses.len()), (0, 0), "{losses:?}");
    salvage(dir.path(), copy.path(), Options::new(), |_| ()).unwrap();
    let log = SessionLog::open(copy.path()).unwrap();
    assert_same(&content(&log), &original);
    log.close().unwrap();
    let mut text = Vec::new();
    sessionlog::transfer::export(dir.path(), &mut text, &Export::new(), |_| ()).unwrap();
    sessionlog::transfer::import(&*text, "text", imported.path(), Options::new(), |_| ()).unwrap();
    assert_eq!(verified(imported.path()).1, []);
}

/// A hole of many events gets as many IDs, and hides nothing.
#[test]
fn a_missing_segment_is_told_event_by_event() {
    let dir = folder();
    // So many are never merged.
    let options = || small_files().merge_fanout(1_000);
    let log = options().open(dir.path()).unwrap();
    let id = session("s");
    append_notes(&log, &id, "before", 3);
    log.backup(folder().path()).unwrap();
    for _ in 0..4 {
        let many = (0..1_000).map(|_| note("lost"));
        log.append(&id, Batch::new().events(many)).unwrap();
    }
    append_notes(&log, &session("other"), "lost", 2);
    log.backup(folder().path()).unwrap();
    append_notes(&log, &id, "behind", 3);
    append_notes(&log, &session("other"), "behind", 2);
    log.close().unwrap();
    let log = options().open(dir.path()).unwrap();
    let original = content(&log);
    log.close().unwrap();
    let lost = dir.path().join("segments/0000000000000002.segment");
    fs::remove_file(lost).unwrap();
    let (salvaged, losses, _) = check_saved(dir.path(), &original);
    assert_eq!(
        (salvaged.events_lost, losses.len()),
        (4_002, 2),
        "{losses:?}"
    );
}
