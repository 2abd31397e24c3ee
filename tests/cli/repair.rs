//! `verify` and `salvage` on folders in every state.

use std::fs;
use std::path::Path;

use crate::damage;
use crate::support::{Served, copy_folder, fixture, run, state_of};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is done to a copy of the log, and the file that is then named.
type Damage = (fn(&Path), &'static str);

const DAMAGED: [Damage; 3] = [
    (damage::manifest, "MANIFEST-"),
    (damage::segment, ".segment:"),
    (damage::journal, ".journal:"),
];

#[test]
fn a_sound_log_is_verified_without_a_write_also_beside_a_server() {
    let folder = fixture().copy();
    let before = state_of(folder.path());
    let said = run(["verify", text(folder.path())]).ok();
    assert!(
        said.contains("no fault") && said.contains("28 events in 5 sessions"),
        "{said}"
    );
    assert_eq!(state_of(folder.path()), before);
    let _server = Served::new(folder.path());
    let said = run(["verify", text(folder.path())]).ok();
    assert!(said.contains("no fault"), "{said}");
    let json = run(["verify", text(folder.path()), "--json"]).json();
    assert_eq!(
        (json.len(), &json[0]["verified"]["findings"]),
        (1, &0.into())
    );
}

#[test]
fn each_fault_is_listed_with_file_and_offset_and_ends_with_code_3() {
    for (damage, file) in DAMAGED {
        let folder = fixture().copy();
        damage(folder.path());
        let before = state_of(folder.path());
        let ran = run(["verify", text(folder.path())]);
        let (out, code) = (ran.out.clone(), ran.code);
        let said = ran.failed(3);
        assert_eq!(
            (code, said.contains("sessionlog salvage")),
            (Some(3), true),
            "{said}"
        );
        assert!(out.contains(file), "{out}");
        assert_eq!(state_of(folder.path()), before);
        let json = run(["verify", text(folder.path()), "--json"]);
        assert_eq!(json.code, Some(3));
        let lines: Vec<serde_json::Value> = json
            .out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let finding = &lines[0]["finding"];
        assert!(
            finding["offset"].is_u64() && finding["file"].is_string(),
            "{lines:?}"
        );
        assert!(lines.last().unwrap()["verified"]["findings"].as_u64() > Some(0));
        let error: serde_json::Value = serde_json::from_str(&json.err).unwrap();
        assert_eq!(error["error"]["code"], "corrupt");
    }
}

#[test]
fn a_damaged_log_is_salvaged_into_one_that_is_sound() {
    for (damage, _) in DAMAGED {
        let (folder, parent) = (fixture().copy(), tempfile::tempdir().unwrap());
        damage(folder.path());
        let (before, new) = (state_of(folder.path()), parent.path().join("new"));
        let said = run(["salvage", text(folder.path()), text(&new)]).ok();
        assert!(said.contains("holds ") && said.contains(" lost"), "{said}");
        assert_eq!(
            state_of(folder.path()),
            before,
            "the damaged log stays as it is"
        );
        let verified = run(["verify", text(&new)]).ok();
        assert!(verified.contains("no fault"), "{verified}");
        run(["append", text(&new), "talk", "--close"]).ok();
        // It is never overwritten.
        run(["salvage", text(folder.path()), text(&new)]).failed(1);
    }
    let (folder, parent) = (fixture().copy(), tempfile::tempdir().unwrap());
    damage::segment(folder.path());
    let new = parent.path().join("new");
    let json = run(["salvage", text(folder.path()), text(&new), "--json"]).json();
    let losses = json.iter().filter(|line| line.get("loss").is_some());
    let salvaged = &json.last().unwrap()["salvaged"];
    assert!(losses.count() as u64 >= salvaged["sessions_damaged"].as_u64().unwrap());
    assert!(salvaged["events_lost"].as_u64() > Some(0), "{json:?}");
}

#[test]
fn what_cannot_be_verified_or_salvaged_says_so_and_makes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/notes.txt"), "of somebody else").unwrap();
    fs::write(path("file"), "no folder").unwrap();
    copy_folder(fixture().path(), &path("later"));
    damage::later_version(&path("later"));
    for name in ["missing", "empty", "foreign", "file", "later"] {
        let before = state_of(&path(name));
        run(["verify", text(&path(name))]).failed(1);
        run(["salvage", text(&path(name)), text(&path("new"))]).failed(1);
        assert_eq!(state_of(&path(name)), before);
        assert!(!path("new").exists(), "{name}");
    }
    let used = fixture().copy();
    let _server = Served::new(used.path());
    let said = run(["salvage", text(used.path()), text(&path("new"))]).failed(1);
    assert!(said.contains("in use"), "{said}");
    for target in ["foreign", "later", "file"] {
        let before = state_of(&path(target));
        run(["salvage", text(fixture().path()), text(&path(target))]).failed(1);
        assert_eq!(state_of(&path(target)), before);
    }
}
