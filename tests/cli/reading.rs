//! `info`, `sessions`, `show`, `message` and `get` on a folder.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Ran, fixture, run};

fn on(folder: &Path, command: &str, args: &[&str]) -> Ran {
    let mut all = vec![command, folder.to_str().unwrap()];
    all.extend(args);
    run(all)
}

fn read(command: &str, args: &[&str]) -> Ran {
    on(fixture().path(), command, args)
}

fn ids(ran: Ran) -> Vec<String> {
    let lines = ran.json();
    lines
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect()
}

fn seqs(ran: Ran) -> Vec<u64> {
    ran.json()
        .iter()
        .map(|line| line["seq"].as_u64().unwrap())
        .collect()
}

#[test]
fn info_says_what_a_folder_holds() {
    let said = read("info", &[]).ok();
    for fact in [
        "closed cleanly",
        "format 2, store ",
        "sessions     5",
        "events       28",
        "tier 0: 1 of ",
        "20 events not in a segment yet",
        "nothing to erase",
        "index        none",
        " free",
    ] {
        assert!(said.contains(fact), "{fact:?} is missing in:\n{said}");
    }
    let info = &read("info", &["--json"]).json()[0];
    assert_eq!(
        (&info["sessions"], &info["in_use"]),
        (&json!(5), &json!(false))
    );
    assert_eq!(
        (&info["unsealed_events"], &info["closed_cleanly"]),
        (&json!(20), &json!(true))
    );
    assert_eq!(info["stats"]["tiers"][0]["segments"], 1);
    assert_eq!(info["stats"]["store_id"].as_str().unwrap().len(), 32);
    assert!(
        info["stats"]["last_id"]
            .as_str()
            .unwrap()
            .starts_with("evt_")
    );
    assert!(info["free_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn info_says_what_an_open_would_recover() {
    let folder = fixture().copy();
    let log = sessionlog::SessionLog::open(folder.path()).unwrap();
    log.append(
        &"late".parse().unwrap(),
        sessionlog::NewEvent::new("note", "{}"),
    )
    .unwrap();
    drop(log);
    let said = on(folder.path(), "info", &[]).ok();
    assert!(
        said.contains("not closed: the next open recovers 21 events"),
        "{said}"
    );
}

#[test]
fn sessions_are_listed_in_each_order_and_by_each_filter() {
    let list = |args: &[&str]| {
        let mut all = vec!["--json"];
        all.extend(args);
        ids(read("sessions", &all))
    };
    assert_eq!(
        list(&["--order", "id"]),
        ["late", "over", "refund", "talk", "talk-fork"]
    );
    assert_eq!(
        list(&["--order", "id", "--reverse", "--limit", "2"]),
        ["talk-fork", "talk"]
    );
    assert_eq!(
        list(&["--order", "created"]),
        ["late", "talk-fork", "over", "refund", "talk"]
    );
    assert_eq!(list(&["--limit", "1"]), ["late"]);
    assert_eq!(list(&["--closed"]), ["over"]);
    assert_eq!(list(&["--open-only", "--prefix", "o"]), [] as [&str; 0]);
    assert_eq!(list(&["--metadata", "agent=a1"]), ["refund"]);
    assert_eq!(
        list(&["--metadata", "agent=a1", "--metadata", "a=b"]),
        [] as [&str; 0]
    );
    assert_eq!(
        list(&["--active-since", "2100-01-01T00:00:00Z"]),
        [] as [&str; 0]
    );
    assert_eq!(list(&["--active-since", "2000-01-01T00:00:00Z"]).len(), 5);
    assert_eq!(read("sessions", &["--metadata", "no pair"]).code, Some(2));
}

#[test]
fn the_table_of_sessions_is_aligned_and_has_flags_and_titles() {
    let said = read("sessions", &["--order", "id"]).ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 6, "{said}");
    assert!(lines[0].starts_with("ID "), "{said}");
    let column = lines[0].find("last activity").unwrap();
    for line in &lines[1..] {
        assert_eq!(
            &line[column..column + 2],
            "20",
            "a year begins the column in {line:?}"
        );
    }
    assert!(lines[2].contains("closed"), "{said}");
    assert!(
        lines[3].contains("held") && lines[3].ends_with("Refund"),
        "{said}"
    );
    assert!(lines[5].contains("fork"), "{said}");
    let said = read("sessions", &["--limit", "2"]).ok();
    assert!(said.contains("there are more"), "{said}");
    let said = read("sessions", &["--limit", "5"]).ok();
    assert!(!said.contains("there are more"), "{said}");
}

#[test]
fn show_tells_a_session_and_its_events() {
    let said = read("show", &["talk"]).ok();
    for fact in [
        "6 events (seq 1 to 6)",
        "What is 6 x 7?",
        "assistant.message_completed",
        "It is 42.",
        r#"{"name":"multiply","call_id":"c1"}"#,
        "bytes that are not JSON",
    ] {
        assert!(said.contains(fact), "{fact:?} is missing in:\n{said}");
    }
    let said = read("show", &["talk", "--full", "--last", "4"]).ok();
    assert!(said.contains("\"text\": \"It is 42.\""), "{said}");
    let said = read("show", &["talk-fork"]).ok();
    assert!(said.contains("fork of talk at seq 2"), "{said}");
}

#[test]
fn show_takes_a_part_of_the_events() {
    let shown = |args: &[&str]| {
        let mut all = vec!["talk", "--json"];
        all.extend(args);
        seqs(read("show", &all))
    };
    assert_eq!(shown(&[]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(shown(&["--after", "2", "--before", "5"]), [3, 4]);
    assert_eq!(shown(&["--after", &fixture().event, "--last", "2"]), [5, 6]);
    assert_eq!(
        shown(&["--after", &fixture().message, "--before", "4"]),
        [2, 3]
    );
    assert_eq!(
        shown(&["--type", "odd", "--type", "user.message"]),
        [1, 5, 6]
    );
    assert_eq!(shown(&["--type", "odd", "--last", "1"]), [6]);
    assert_eq!(read("show", &["talk", "--after", "nonsense"]).code, Some(2));
    let said = read("show", &["talk", "--after", "99"]).failed(1);
    assert!(said.contains("the last seq is 6"), "{said}");
}

#[test]
fn a_message_reads_as_question_tools_and_answer() {
    let message = &fixture().message;
    let said = read("message", &[message]).ok();
    let order = [
        "completed",
        "What is 6 x 7?",
        "tool.call_requested",
        "multiply",
        "It is 42.",
    ];
    let mut rest = said.as_str();
    for part in order {
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("{part:?} is missing in:\n{said}"));
        rest = &rest[at..];
    }
    let json = &read("message", &[message, "--json"]).json()[0];
    assert_eq!(
        (&json["id"], &json["status"]),
        (&json!(message), &json!("completed"))
    );
    assert_eq!(json["output"], json!([{"text": "It is 42."}]));
}

#[test]
fn an_event_is_found_by_its_id() {
    let event = &fixture().event;
    let said = read("get", &[event]).ok();
    assert!(
        said.contains("session talk") && said.contains("What is 6 x 7?"),
        "{said}"
    );
    let json: &Value = &read("get", &[event, "--json"]).json()[0];
    assert_eq!((&json["id"], &json["seq"]), (&json!(event), &json!(1)));
}

#[test]
fn what_is_unknown_is_a_failure_with_a_hint() {
    let said = read("show", &["nobody"]).failed(1);
    assert!(
        said.contains("no session nobody") && said.contains("sessionlog sessions"),
        "{said}"
    );
    read("tail", &["nobody"]).failed(1);
    read("get", &["evt_01JQ3W8K5T0000000000000001"]).failed(1);
    read("message", &["msg_01JQ3W8K5T0000000000000001"]).failed(1);
    read("get", &["no ID at all"]).failed(1);
}
