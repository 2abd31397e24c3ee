//! `tail -f`, on a folder and on a server.

use std::net::TcpListener;

use serde_json::Value;

use crate::support::{Running, Served, WORKER_KEY, command, finished, fixture, run_with};

fn note(n: u32) -> String {
    format!("{{\"type\":\"note\",\"data\":{n}}}\n")
}

/// The data of an event that is a line.
fn data(line: &str) -> u64 {
    let line: Value = serde_json::from_str(line).unwrap();
    let event = line.get("event").unwrap_or(&line);
    event["data"].as_u64().unwrap()
}

#[test]
fn a_folder_is_followed_while_others_append_until_the_session_is_closed() {
    let folder = fixture().copy();
    let path = folder.path().to_str().unwrap();
    run_with(["append", path, "s"], &(note(1) + &note(2))).ok();
    let tail = Running::new(command(["tail", path, "s", "-f", "-n", "1", "--json"]));
    assert_eq!(data(&tail.line()), 2);
    for n in 3..6 {
        run_with(["append", path, "s"], &note(n)).ok();
        assert_eq!(data(&tail.line()), u64::from(n));
    }
    run_with(["append", path, "s", "--close"], &note(6)).ok();
    assert_eq!(data(&tail.line()), 6);
    let ran = tail.end();
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
}

#[test]
fn the_end_of_a_session_is_said_to_people() {
    let folder = fixture().copy();
    let path = folder.path().to_str().unwrap();
    let ran = Running::new(command(["tail", path, "over", "-f"])).end();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.err.contains("the session is closed"), "{ran:?}");
    let server = Served::new(folder.path());
    let ran = Running::new(server.command(&["tail", "over", "-f"])).end();
    assert!(
        ran.code == Some(0) && ran.err.contains("the session is closed"),
        "{ran:?}"
    );
}

#[test]
fn the_feed_of_all_sessions_shows_events_and_changes() {
    let folder = fixture().copy();
    let path = folder.path().to_str().unwrap();
    let server = Served::new(folder.path());
    let of_folder = Running::new(command(["tail", path, "-f", "-n", "1", "--json"]));
    let of_server = Running::new(server.command(&["tail", "-f", "-n", "1", "--json"]));
    let first = (of_folder.line(), of_server.line());
    assert_eq!(first.0, first.1);
    for session in ["a", "b"] {
        finished(
            &mut server.command(&["append", session, "--close"]),
            &note(7),
        )
        .ok();
        for tail in [&of_folder, &of_server] {
            assert_eq!(data(&tail.line()), 7);
            let closed: Value = serde_json::from_str(&tail.line()).unwrap();
            assert_eq!(closed["change"]["change"]["type"], "closed");
            assert_eq!(closed["change"]["session_id"], session);
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_as_a_success() {
    let folder = fixture().copy();
    let path = folder.path().to_str().unwrap();
    let server = Served::new(folder.path());
    for tail in [
        command(["tail", path, "late", "-f", "-n", "1"]),
        server.command(&["tail", "late", "-f", "-n", "1"]),
    ] {
        let tail = Running::new(tail);
        tail.line();
        tail.interrupt();
        let ran = tail.end();
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    }
}

#[test]
fn a_lost_connection_is_made_again_without_a_gap_or_a_duplicate() {
    let folder = fixture().copy();
    // A port that is free a moment later too, as a rule.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let server = Served::at(folder.path(), &address);
    finished(&mut server.command(&["append", "s"]), &note(1)).ok();
    let mut tail = command(["tail", "s", "-f", "--json", "--url", &server.url]);
    tail.env("SESSIONLOG_WORKER_KEY", WORKER_KEY);
    let tail = Running::new(tail);
    assert_eq!(data(&tail.line()), 1);
    finished(&mut server.command(&["append", "s"]), &note(2)).ok();
    assert_eq!(data(&tail.line()), 2);
    drop(server);
    let path = folder.path().to_str().unwrap();
    run_with(["append", path, "s"], &(note(3) + &note(4))).ok();
    let server = Served::at(folder.path(), &address);
    for n in 3..5 {
        assert_eq!(data(&tail.line()), n);
    }
    finished(&mut server.command(&["append", "s", "--close"]), &note(5)).ok();
    assert_eq!(data(&tail.line()), 5);
    assert_eq!(tail.end().code, Some(0));
}
