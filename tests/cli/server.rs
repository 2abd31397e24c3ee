//! The same commands on a running server.

use serde_json::json;

use crate::support::{CLIENT_KEY, Ran, Served, command, finished, fixture, run, run_with};

#[test]
fn a_server_shows_what_its_folder_shows() {
    let folder = fixture().copy();
    let server = Served::new(folder.path());
    let path = folder.path().to_str().unwrap();
    let (event, message) = (fixture().event.as_str(), fixture().message.as_str());
    for args in [
        &["sessions"][..],
        &["sessions", "--order", "id", "--reverse"],
        &[
            "sessions",
            "--order",
            "created",
            "--reverse",
            "--limit",
            "2",
        ],
        &["sessions", "--metadata", "agent=a1"],
        &["sessions", "--closed"],
        &[
            "sessions",
            "--active-since",
            "2000-01-01T00:00:00Z",
            "--prefix",
            "t",
        ],
        &["show", "talk"],
        &["show", "talk", "--after", "2", "--before", "5"],
        &["show", "talk", "--after", event, "--last", "2"],
        &["show", "talk", "--before", message],
        &["show", "talk", "--type", "odd"],
        &["show", "late", "--last", "3"],
        &["show", "talk-fork", "--full"],
        &["tail", "talk", "-n", "3"],
        &["message", message],
        &["get", event],
    ] {
        for form in [&[][..], &["--json"]] {
            let all = [args, form].concat();
            let mut of_folder = vec![all[0], path];
            of_folder.extend(&all[1..]);
            assert_eq!(server.run(&all).ok(), run(of_folder).ok(), "{all:?}");
        }
    }
    let tail = |ran: Ran| ran.ok();
    assert_eq!(
        tail(server.run(&["tail", "-n", "99"])),
        tail(run(["tail", path, "-n", "99"]))
    );
}

#[test]
fn info_asks_the_server_for_its_figures() {
    let folder = fixture().copy();
    let server = Served::new(folder.path());
    let said = server.run(&["info"]).ok();
    for fact in [
        "sessions     5",
        "events       28",
        "running",
        "format 2, store ",
    ] {
        assert!(said.contains(fact), "{fact:?} is missing in:\n{said}");
    }
    let info = &server.run(&["info", "--json"]).json()[0];
    assert_eq!(
        (&info["sessions"], &info["stats"]["events"]),
        (&json!(5), &json!(28))
    );
    assert_eq!(info["health"], json!("ok"));
    // No append goes into a folder that was moved, and none goes on when it is back.
    let moved = folder.path().with_extension("moved");
    std::fs::rename(folder.path(), &moved).unwrap();
    let note = "{\"type\":\"note\",\"data\":{}}";
    finished(&mut server.command(&["append", "s"]), note).failed(1);
    std::fs::rename(&moved, folder.path()).unwrap();
    let said = server.run(&["info"]).ok();
    assert!(said.contains("out of service, poisoned: "), "{said}");
    assert_eq!(
        server.run(&["info", "--json"]).json()[0]["health"],
        json!("poisoned")
    );
    let mut client = command(["info", "--url", &server.url]);
    client.env("SESSIONLOG_API_KEY", CLIENT_KEY);
    let said = finished(&mut client, "").failed(1);
    assert!(said.contains("SESSIONLOG_WORKER_KEY"), "{said}");
}

#[test]
fn events_are_appended_through_a_server() {
    let folder = fixture().copy();
    let server = Served::new(folder.path());
    let append = |args: &[&str], input: &str| {
        let all = [&["append", "new/1 ü"], args].concat();
        finished(&mut server.command(&all), input)
    };
    let note = "{\"type\":\"note\",\"data\":{\"n\":1}}\n";
    append(&["--key", "k"], note).ok();
    let again = append(&["--key", "k", "--json"], note).json();
    assert_eq!(
        (&again[0]["seq"], &again[0]["replayed"]),
        (&json!(1), &json!(true))
    );
    let said = append(&["--expect", "9"], note).failed(1);
    assert!(said.contains("its last seq"), "{said}");
    append(&["--expect", "1"], note).ok();
    let said = append(&["--each", "--key", "e", "--close"], &note.repeat(3)).ok();
    assert!(said.contains("3 events stored"), "{said}");
    append(&[], note).failed(1);
    let shown = server.run(&["show", "new/1 ü", "--json"]).json();
    assert_eq!(shown.len(), 5);
}

#[test]
fn the_place_and_the_key_come_from_the_environment_or_a_file() {
    let folder = fixture().copy();
    let server = Served::new(folder.path());
    let mut by_environment = command(["show", "over", "--json"]);
    by_environment
        .env("SESSIONLOG_URL", &server.url)
        .env("SESSIONLOG_API_KEY", CLIENT_KEY);
    assert_eq!(finished(&mut by_environment, "").json().len(), 1);
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{CLIENT_KEY}\n")).unwrap();
    let key = key.to_str().unwrap();
    let by_file = [
        "show",
        "over",
        "--json",
        "--url",
        &server.url,
        "--key-file",
        key,
    ];
    assert_eq!(run(by_file).json().len(), 1);
    // A folder that is named wins over the environment.
    let path = fixture().path().to_str().unwrap();
    let mut by_folder = command(["sessions", path, "--json"]);
    by_folder.env("SESSIONLOG_URL", "http://127.0.0.1:1");
    assert_eq!(finished(&mut by_folder, "").json().len(), 5);
    let both = run(["sessions", path, "--url", &server.url]);
    assert_eq!(both.code, Some(2));
}

#[test]
fn a_server_that_refuses_or_is_not_there_is_a_failure_with_a_hint() {
    let folder = fixture().copy();
    let server = Served::new(folder.path());
    let said = run(["sessions", "--url", &server.url]).failed(1);
    assert!(said.contains("SESSIONLOG_API_KEY"), "{said}");
    // As of the folder, so the server is told where to begin.
    let said = server.run(&["show", "talk", "--after", "9999"]).failed(1);
    assert!(said.contains("beyond the tail"), "{said}");
    let said = server.run(&["show", "nobody"]).failed(1);
    assert!(said.contains("no session nobody"), "{said}");
    server
        .run(&["get", "evt_01JQ3W8K5T0000000000000001"])
        .failed(1);
    server.run(&["get", "no ID"]).failed(1);
    server.run(&["tail", "nobody", "-f"]).failed(1);
    let said = run(["sessions", "--url", "http://127.0.0.1:1"]).failed(1);
    assert!(said.contains("no answer"), "{said}");
    run(["tail", "s", "-f", "--url", "http://127.0.0.1:1"]).failed(1);
    let append = ["append", "s", "--url", "http://127.0.0.1:1"];
    let said = run_with(append, "{\"type\":\"note\",\"data\":1}").failed(1);
    assert!(
        said.contains("may be stored or not") && said.contains("--key"),
        "{said}"
    );
    let ran = run(["sessions", "--url", "127.0.0.1:8080"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let wrong = run([
        "sessions",
        "--url",
        &format!("{}/openapi.json?", server.url),
    ]);
    wrong.failed(1);
}
