//! Commands on a disk without room. It takes a file system of its own, which root alone can mount.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{copy_folder, fixture, run, run_with, state_of};

/// A small file system in memory.
struct Disk(TempDir);

impl Disk {
    /// `None`, and the reason printed, where nothing can be mounted.
    fn new(megabytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            Ok(output) => {
                eprintln!(
                    "SKIPPED: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: mount does not start: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut ballast = File::create(self.path().join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}

#[test]
fn a_full_disk_is_read_from_and_named_where_room_is_needed() {
    let Some(disk) = Disk::new(32) else {
        return;
    };
    let log = disk.path().join("log");
    copy_folder(fixture().path(), &log);
    disk.fill();
    let (path, before) = (log.to_str().unwrap(), state_of(&log));
    run(["info", path]).ok();
    run(["sessions", path]).ok();
    run(["show", path, "talk"]).ok();
    run(["tail", path]).ok();
    run(["message", path, &fixture().message]).ok();
    run(["get", path, &fixture().event]).ok();
    assert_eq!(state_of(&log), before);
    let says_it = |said: String| assert!(said.contains("make room on the disk"), "{said}");
    let new = disk.path().join("new");
    let new_path = new.to_str().unwrap();
    says_it(run(["restore", fixture().path().to_str().unwrap(), new_path]).failed(1));
    assert!(!new.exists(), "what was restored in part is removed");
    says_it(run(["bench", disk.path().to_str().unwrap()]).failed(1));
    let line = format!(
        "{{\"type\":\"note\",\"data\":\"{}\"}}\n",
        "x".repeat(500_000)
    );
    says_it(run_with(["append", path, "big", "--each"], &line.repeat(60)).failed(1));
    let export = disk.path().join("log.jsonl");
    let elsewhere = tempfile::tempdir().unwrap();
    let whole = elsewhere.path().join("log.jsonl");
    run(["export", path, whole.to_str().unwrap()]).ok();
    says_it(run(["export", path, export.to_str().unwrap()]).failed(1));
    says_it(run(["import", new_path, whole.to_str().unwrap()]).failed(1));
    says_it(run(["salvage", path, new_path]).failed(1));
    run(["verify", path]).ok();
    fs::remove_file(&export).unwrap();
    let _begun = fs::remove_dir_all(&new);
    let left = fs::read_dir(disk.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["ballast", "log"]);
}
