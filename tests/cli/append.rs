//! `append` to a folder.

use std::path::Path;

use serde_json::Value;

use crate::support::{Ran, run, run_with};

const NOTE: &str = "{\"type\":\"note\",\"data\":{\"n\":1}}\n";

fn append(folder: &Path, args: &[&str], input: &str) -> Ran {
    let mut all = vec!["append", folder.to_str().unwrap(), "s"];
    all.extend(args);
    run_with(all, input)
}

fn stored(folder: &Path) -> Vec<Value> {
    run(["show", folder.to_str().unwrap(), "s", "--json"]).json()
}

/// A folder with a log in which the session has one event.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    append(folder.path(), &["--create"], NOTE).ok();
    folder
}

#[test]
fn events_of_both_shapes_are_stored_as_one_batch() {
    let folder = folder();
    let message =
        r#"{"type":"user.message","content":[{"type":"text","text":"Hi"}],"metadata":{}}"#;
    let answer = append(folder.path(), &["--json"], &format!("{message}\n\n{NOTE}")).json();
    assert_eq!(answer.len(), 2);
    assert_eq!(
        (&answer[0]["seq"], &answer[1]["seq"]),
        (&2.into(), &3.into())
    );
    let turn = answer[0]["message_id"].as_str().unwrap();
    let done = format!(
        r#"{{"type":"message.status_changed","message_id":"{turn}","data":{{"status":"failed"}}}}"#
    );
    append(folder.path(), &[], &done).ok();
    let path = folder.path().to_str().unwrap();
    let message = run(["message", path, turn, "--json"]).json();
    assert_eq!(message[0]["status"], "failed");
}

#[test]
fn a_repeated_batch_is_stored_once() {
    let folder = folder();
    append(folder.path(), &["--key", "k"], NOTE).ok();
    let again = append(folder.path(), &["--key", "k"], NOTE).ok();
    assert!(again.contains("1 event were there already") || again.contains("there already"));
    assert_eq!(stored(folder.path()).len(), 2);
    let other = append(folder.path(), &["--key", "k"], &NOTE.repeat(2)).failed(1);
    assert!(other.contains("another --key"), "{other}");
}

#[test]
fn a_bad_line_is_named_and_nothing_of_its_batch_is_stored() {
    let folder = folder();
    for bad in [
        "nonsense",
        "{}",
        "[1]",
        "{\"type\":\"note\"}",
        "{\"type\":\"note\",\"data\":1,\"other\":1}",
        "{\"type\":\"user.message\",\"content\":\"no list\"}",
        "{\"type\":\"note\",\"data\":1,\"message_id\":\"no ID\"}",
    ] {
        let said = append(folder.path(), &[], &format!("{NOTE}\n{bad}\n{NOTE}")).failed(1);
        assert!(said.contains("line 3: "), "{said}");
        assert!(said.contains("nothing was stored"), "{said}");
    }
    assert_eq!(stored(folder.path()).len(), 1);
    append(folder.path(), &[], "\n").failed(1);
}

#[test]
fn line_by_line_a_repeated_run_goes_on_where_it_failed() {
    let folder = folder();
    let lines = |from: u32, to: u32| {
        let lines = (from..=to).map(|n| format!("{{\"type\":\"step\",\"data\":{n}}}\n"));
        lines.collect::<Vec<_>>().concat()
    };
    let args = ["--each", "--key", "run"];
    let broken = format!("{}nonsense\n{}", lines(1, 3), lines(5, 6));
    let said = append(folder.path(), &args, &broken).failed(1);
    assert!(
        said.contains("line 4: ") && said.contains("3 lines before it are stored"),
        "{said}"
    );
    let said = append(folder.path(), &args, &lines(1, 6)).ok();
    assert!(
        said.contains("3 events stored") && said.contains("3 events were there"),
        "{said}"
    );
    let said = append(
        folder.path(),
        &["--each", "--key", "run", "--json"],
        &lines(1, 6),
    )
    .json();
    assert!(said.iter().all(|line| line["replayed"] == true), "{said:?}");
    let data: Vec<u64> = stored(folder.path())
        .iter()
        .filter_map(|event| event["data"].as_u64())
        .collect();
    assert_eq!(data, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_session_is_closed_behind_the_events() {
    for args in [&["--close"][..], &["--close", "--each"]] {
        let folder = folder();
        append(folder.path(), args, &NOTE.repeat(2)).ok();
        assert_eq!(stored(folder.path()).len(), 3);
        let said = append(folder.path(), &[], NOTE).failed(1);
        assert!(said.contains("is closed"), "{said}");
    }
    let folder = folder();
    append(folder.path(), &["--close"], "").ok();
    append(folder.path(), &[], NOTE).failed(1);
}

#[test]
fn an_append_may_depend_on_the_last_seq() {
    let folder = folder();
    let said = append(folder.path(), &["--expect", "0"], NOTE).failed(1);
    assert!(said.contains("--expect 1"), "{said}");
    append(folder.path(), &["--expect", "1"], NOTE).ok();
    assert_eq!(
        append(folder.path(), &["--expect", "1", "--each"], NOTE).code,
        Some(2)
    );
}

#[test]
fn a_log_is_begun_where_that_is_asked_for_alone() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("new");
    append(&folder, &[], NOTE).failed(1);
    assert!(!folder.exists());
    append(&folder, &["--create"], NOTE).ok();
    append(&folder, &["--create"], NOTE).ok();
    assert_eq!(stored(&folder).len(), 2);
    std::fs::write(parent.path().join("file"), "of others").unwrap();
    append(parent.path(), &["--create"], NOTE).failed(1);
}
