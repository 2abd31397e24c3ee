//! Folders that the user may not write to, or not enter.

#![cfg(unix)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::support::{Ran, command, finished, fixture, state_of};

/// A user without rights, as which the tests run the command if they are run by root.
const NOBODY: u32 = 65_534;

fn run_without_rights(args: &[&str]) -> Ran {
    let mut command = command(args);
    let own = tempfile::tempdir().unwrap();
    if fs::metadata(own.path()).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    finished(&mut command, "{\"type\":\"note\",\"data\":1}\n")
}

/// Sets the rights of all below a folder.
fn protect(path: &Path, of_folders: u32, of_files: u32) {
    let is_folder = path.is_dir();
    if is_folder {
        for entry in fs::read_dir(path).unwrap() {
            protect(&entry.unwrap().path(), of_folders, of_files);
        }
    }
    let mode = if is_folder { of_folders } else { of_files };
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn reading_takes_no_right_to_write() {
    let folder = fixture().copy();
    protect(folder.path(), 0o555, 0o444);
    let (path, before) = (folder.path().to_str().unwrap(), state_of(folder.path()));
    for args in [
        &["info", path][..],
        &["sessions", path],
        &["show", path, "talk"],
        &["tail", path, "talk"],
        &["message", path, &fixture().message],
        &["get", path, &fixture().event],
    ] {
        run_without_rights(args).ok();
    }
    let said = run_without_rights(&["append", path, "talk"]).failed(1);
    assert!(said.contains("user that owns"), "{said}");
    assert_eq!(state_of(folder.path()), before);
    protect(folder.path(), 0o755, 0o644);
}

#[test]
fn a_folder_that_may_not_be_entered_is_said_to_be_so() {
    let folder = fixture().copy();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o000)).unwrap();
    let path = folder.path().to_str().unwrap();
    for args in [
        &["info", path][..],
        &["compact", path],
        &["append", path, "talk"],
    ] {
        let said = run_without_rights(args).failed(1);
        assert!(said.contains("user that owns"), "{said}");
    }
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
}
