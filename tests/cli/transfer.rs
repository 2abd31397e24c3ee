//! `export` and `import`: a log as text, and transcripts of others.

use std::fs;
use std::path::Path;

use crate::damage;
use crate::support::{Served, fixture, run, run_with, state_of};

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn export_of(folder: &Path) -> String {
    run(["export", text(folder)]).ok()
}

/// An export without what differs in every log: the store ID, and the sizes of filters.
pub(crate) fn compared(export: &str) -> Vec<&str> {
    let lines = export.lines().skip(1);
    lines
        .filter(|line| !line.starts_with(r#"{"part":"#))
        .collect()
}

#[test]
fn a_log_comes_back_bit_for_bit_plain_and_compressed() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let plain = export_of(fixture().path());
    for (file, folder) in [("log.jsonl", "plain"), ("log.jsonl.zst", "compressed")] {
        let before = state_of(fixture().path());
        run(["export", text(fixture().path()), text(&path(file))]).ok();
        assert_eq!(state_of(fixture().path()), before);
        let said = run(["import", text(&path(folder)), text(&path(file))]).ok();
        assert!(said.contains("28 events"), "{said}");
        assert_eq!(compared(&export_of(&path(folder))), compared(&plain));
        run(["verify", text(&path(folder))]).ok();
        // Neither is overwritten.
        run(["import", text(&path(folder)), text(&path(file))]).failed(1);
        run(["export", text(fixture().path()), text(&path(file))]).failed(1);
    }
    let size = |name: &str| fs::metadata(path(name)).unwrap().len();
    assert!(size("log.jsonl.zst") < size("log.jsonl") / 2);
    run_with(["import", text(&path("piped"))], &plain).ok();
    assert_eq!(compared(&export_of(&path("piped"))), compared(&plain));
}

#[test]
fn an_export_is_taken_beside_a_server_and_of_some_sessions() {
    let folder = fixture().copy();
    let _server = Served::new(folder.path());
    let all = export_of(folder.path());
    assert_eq!(compared(&all), compared(&export_of(fixture().path())));
    let some = run(["export", text(folder.path()), "--prefix", "talk"]).ok();
    assert!(
        some.contains("talk-fork") && !some.contains("refund"),
        "{some}"
    );
    let one = run(["export", text(folder.path()), "--session", "refund"]).ok();
    assert!(one.contains("Refund") && !one.contains("talk"), "{one}");
    run(["export", text(folder.path()), "--session", "unknown"]).failed(1);
}

#[test]
fn what_was_cut_short_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let all = export_of(fixture().path());
    for file in ["log.jsonl", "log.jsonl.zst"] {
        let (whole, folder) = (path(file), path(&format!("{file}.log")));
        run(["export", text(fixture().path()), text(&whole)]).ok();
        let bytes = fs::read(&whole).unwrap();
        let mut cuts = 0;
        // The last bytes are a checksum, behind everything that counts.
        for cut in (1..bytes.len() - 8).step_by(bytes.len() / 12) {
            fs::write(&whole, &bytes[..cut]).unwrap();
            let failed = run(["import", text(&folder), text(&whole)]);
            let said = failed.failed(1);
            assert!(said.contains("repeat the command") || cut < 64, "{said}");
            cuts += 1;
            let went_on = run(["export", text(fixture().path()), text(&whole)]);
            if went_on.code == Some(0) {
                // A part that follows an earlier run says so.
                let into = path(&format!("{file}.{cut}"));
                run(["import", text(&into), text(&whole)]).ok();
                assert_eq!(compared(&export_of(&into)), compared(&all), "cut at {cut}");
            } else {
                // So little is left that it may be anything.
                assert!(cut < 200, "cut at {cut} of {file}: {went_on:?}");
                fs::write(&whole, &bytes).unwrap();
            }
        }
        assert!(cuts >= 12);
        run(["import", text(&folder), text(&whole)]).ok();
        assert_eq!(
            compared(&export_of(&folder)),
            compared(&export_of(fixture().path()))
        );
    }
    fs::write(path("notes"), "of somebody else").unwrap();
    run(["export", text(fixture().path()), text(&path("notes"))]).failed(1);
    assert_eq!(fs::read(path("notes")).unwrap(), b"of somebody else");
    let damaged = fixture().copy();
    damage::segment(damaged.path());
    run(["export", text(damaged.path()), text(&path("of damage"))]).failed(3);
}

const TRANSCRIPT: &str = concat!(
    r#"{"sessionId":"a","message":{"role":"user","content":"What is 6 x 7?"},"n":1}"#,
    "\n",
    r#"{"sessionId":"b","message":{"role":"system","content":"be kind"},"n":12345678901234567890123}"#,
    "\n\n",
    r#"{"sessionId":"a","message":{"role":"assistant","content":[{"text":"42"}]},"n":2}"#,
    "\n",
);

#[test]
fn a_transcript_is_mapped_and_can_be_imported_again_when_it_has_grown() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let (file, folder) = (path("transcript.jsonl"), path("log"));
    fs::write(&file, TRANSCRIPT).unwrap();
    let mapping = "--session-at sessionId --type-at message.role --user-type user \
                   --content-at message.content";
    let args = || {
        let place = ["import", text(&folder), text(&file)].map(str::to_owned);
        place
            .into_iter()
            .chain(mapping.split_whitespace().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let said = run(args()).ok();
    assert!(said.contains("3 lines stored"), "{said}");
    let events = run(["show", text(&folder), "a", "--json"]).json();
    let types: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["user.message", "assistant"]);
    assert_eq!(events[0]["data"]["content"][0]["text"], "What is 6 x 7?");
    assert_eq!(
        events[0]["message_id"], events[1]["message_id"],
        "the answer is in the turn"
    );
    let other = run(["show", text(&folder), "b", "--json"]).ok();
    assert!(other.contains("12345678901234567890123"), "{other}");
    let more = format!(
        "{TRANSCRIPT}{}\n",
        r#"{"sessionId":"b","message":{"role":"user","content":"x"}}"#
    );
    fs::write(&file, more).unwrap();
    let said = run(args()).ok();
    assert!(
        said.contains("1 line stored") && said.contains("3 lines were there"),
        "{said}"
    );
    fs::write(&file, format!("{TRANSCRIPT}{{\"sessionId\":7}}\n")).unwrap();
    let said = run(args()).failed(1);
    assert!(
        said.contains("line 5 of ") && said.contains("no type"),
        "{said}"
    );
    fs::write(&file, "no JSON\n").unwrap();
    let said = run(args()).failed(1);
    assert!(said.contains("line 1 of "), "{said}");
    let said = run(["import", text(&path("new")), text(&file)]).failed(1);
    assert!(
        said.contains("--session-at") && !path("new").exists(),
        "{said}"
    );
}

#[test]
fn what_cannot_be_imported_into_says_so_and_stays_as_it_is() {
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name);
    let export = export_of(fixture().path());
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/notes.txt"), "of somebody else").unwrap();
    fs::write(path("file"), "no folder").unwrap();
    let used = fixture().copy();
    let _server = Served::new(used.path());
    for folder in [path("foreign"), path("file"), fixture().path().to_owned()] {
        let before = state_of(&folder);
        run_with(["import", text(&folder)], &export).failed(1);
        assert_eq!(state_of(&folder), before);
    }
    run_with(["import", text(used.path())], &export).failed(1);
    run(["import", text(&path("new")), text(&path("missing"))]).failed(1);
    assert!(!path("new").exists());
    for name in ["missing", "foreign", "file"] {
        run(["export", text(&path(name))]).failed(1);
    }
    let later = fixture().copy();
    damage::later_version(later.path());
    run(["export", text(later.path())]).failed(1);
    let newer = export.replacen(r#""version":1"#, r#""version":2"#, 1);
    let said = run_with(["import", text(&path("new"))], &newer).failed(1);
    assert!(said.contains("newer sessionlog"), "{said}");
}
