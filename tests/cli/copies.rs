//! `backup`, `restore`, `compact` and `bench`.

use std::fs;
use std::path::Path;

use crate::support::{fixture, run, state_of};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn events(folder: &Path, session: &str) -> String {
    run(["show", text(folder), session, "--json"]).ok()
}

#[test]
fn a_backup_is_restored_with_every_event() {
    let (log, parent) = (fixture().copy(), tempfile::tempdir().unwrap());
    let (backup, back) = (parent.path().join("backup"), parent.path().join("back"));
    let said = run(["backup", text(log.path()), text(&backup)]).ok();
    assert!(
        said.contains("is a backup of") && said.contains("2 segments"),
        "{said}"
    );
    let before = state_of(&backup);
    let said = run(["restore", text(&backup), text(&back)]).ok();
    assert!(said.contains("28 events"), "{said}");
    assert_eq!(state_of(&backup), before, "the backup stays as it is");
    for session in ["talk", "late", "refund", "over", "talk-fork"] {
        assert_eq!(events(&back, session), events(fixture().path(), session));
    }
    let append = ["append", text(&back), "talk", "--close"];
    run(append).ok();
    let again = run(["backup", text(log.path()), text(&backup), "--json"]).json();
    assert_eq!(again[0]["copied_bytes"], 0);
}

#[cfg(unix)]
#[test]
fn a_restored_log_shares_no_file_with_its_backup_unless_that_is_asked_for() {
    use std::os::unix::fs::MetadataExt;

    let (log, parent) = (fixture().copy(), tempfile::tempdir().unwrap());
    let backup = parent.path().join("backup");
    run(["backup", text(log.path()), text(&backup)]).ok();
    let inodes = |folder: &Path| {
        let files = state_of(folder).into_keys().filter(|path| path.is_file());
        files
            .map(|path| (path.metadata().unwrap().ino(), path))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let of_backup = inodes(&backup);
    let shared = |folder: &Path| {
        let files = inodes(folder)
            .into_iter()
            .filter(|(inode, _)| of_backup.contains_key(inode));
        files.map(|(_, path)| path).collect::<Vec<_>>()
    };
    let (copied, linked) = (parent.path().join("copied"), parent.path().join("linked"));
    run(["restore", text(&backup), text(&copied)]).ok();
    assert!(shared(&copied).is_empty());
    run(["restore", "--link", text(&backup), text(&linked)]).ok();
    let shared = shared(&linked);
    assert_eq!(shared.len(), 2);
    assert!(
        shared
            .iter()
            .all(|path| path.extension().unwrap() == "segment"),
        "{shared:?}"
    );
    let before = state_of(&backup);
    run(["append", text(&linked), "talk", "--close"]).ok();
    run(["compact", text(&linked)]).ok();
    assert_eq!(state_of(&backup), before);
}

#[test]
fn a_restore_or_backup_into_a_folder_of_others_is_refused() {
    let (log, other) = (fixture().copy(), tempfile::tempdir().unwrap());
    fs::write(other.path().join("file"), "of others").unwrap();
    let before = state_of(other.path());
    run(["restore", text(log.path()), text(other.path())]).failed(1);
    run(["backup", text(log.path()), text(other.path())]).failed(1);
    assert_eq!(state_of(other.path()), before);
    let (into, before) = (fixture().copy(), state_of(log.path()));
    run(["restore", text(log.path()), text(into.path())]).failed(1);
    assert_eq!(state_of(log.path()), before);
    let empty = tempfile::tempdir().unwrap();
    run(["restore", text(log.path()), text(empty.path())]).ok();
}

#[test]
fn compacting_erases_what_was_removed() {
    let folder = fixture().copy();
    let log = sessionlog::SessionLog::open(folder.path()).unwrap();
    log.delete(&"talk".parse().unwrap(), sessionlog::Delete::new())
        .unwrap();
    log.close().unwrap();
    let info = |fact: &str| {
        let said = run(["info", text(folder.path())]).ok();
        assert!(said.contains(fact), "{said}");
    };
    info("due by ");
    let said = run(["compact", text(folder.path())]).ok();
    assert!(said.contains("everything removed is erased"), "{said}");
    info("nothing to erase");
}

#[test]
fn a_disk_is_measured_and_nothing_is_left_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let bench = ["bench", text(folder.path()), "--seconds", "0.2"];
    let json = &run(bench.into_iter().chain(["--json"])).json()[0];
    let appenders = json["appends"].as_array().unwrap().iter();
    let appenders: Vec<u64> = appenders
        .map(|case| case["appenders"].as_u64().unwrap())
        .collect();
    assert_eq!(appenders, [1, 16, 64]);
    for figure in [
        &json["floor"]["p50_us"],
        &json["appends"][0]["p99_us"],
        &json["read_per_second"],
    ] {
        assert!(figure.as_f64().unwrap() > 0.0, "{json}");
    }
    let said = run(bench).ok();
    assert!(said.contains("64 appenders together store"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    run(["bench", text(&folder.path().join("missing"))]).failed(1);
    assert_eq!(
        run(["bench", text(folder.path()), "--seconds", "0"]).code,
        Some(2)
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_in_memory_is_no_disk_to_trust() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: there is no folder in memory");
        return;
    };
    let bench = ["bench", text(folder.path()), "--seconds", "0.1"];
    let said = run(bench).ok();
    assert!(
        said.contains("Do not trust this disk: this folder is in memory"),
        "{said}"
    );
}

#[cfg(unix)]
#[test]
fn a_measurement_that_is_ended_leaves_nothing() {
    use crate::support::{Running, command, eventually};

    let folder = tempfile::tempdir().unwrap();
    let args = ["bench", text(folder.path()), "--seconds", "600"];
    let running = Running::new(command(args));
    eventually("the folder of the measurement", || {
        fs::read_dir(folder.path()).unwrap().count() > 0
    });
    running.interrupt();
    running.end().failed(1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
