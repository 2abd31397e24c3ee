//! Options and their variables, the check of them, and the end of a server.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::{KEY, Place, Server, certificate, eventually, refused, said};

#[test]
fn each_option_has_a_variable_of_its_name() {
    let place = Place::new();
    let help = said(&place.serve().arg("--help").output().unwrap());
    let options = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .filter_map(|line| line.split_whitespace().next());
    let mut found = 0;
    // The one is for a run by hand, and the other is of all commands.
    for option in options.filter(|option| !["check", "json"].contains(option)) {
        let variable = option.to_uppercase().replace('-', "_");
        let shown = format!("[env: SESSIONLOG_{variable}");
        // The value of a URL with a password is not shown.
        let is_shown = ["=", "]"].map(|end| help.contains(&format!("{shown}{end}")));
        assert!(is_shown.contains(&true), "{option} has no {shown}");
        found += 1;
    }
    assert!(found > 20, "{help}");
    for variable in ["`SESSIONLOG_API_KEY`", "`SESSIONLOG_WORKER_KEY`"] {
        assert!(help.contains(variable), "{help}");
    }
}

#[test]
fn variables_stand_for_options() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sessionlog"));
    command
        .arg("serve")
        .env("SESSIONLOG_DATA", place.path("elsewhere"))
        .env("SESSIONLOG_LISTEN", "127.0.0.1:0")
        .env("SESSIONLOG_OPEN", "1")
        .env("SESSIONLOG_LOG", "text")
        .env("SESSIONLOG_BODY_BYTES_MAX", "1KiB");
    let server = Server::start(&mut command);
    assert!(place.path("elsewhere").exists());
    let body = " ".repeat(1025);
    let call = super::agent().post(format!("{}/v1/sessions/s/events", server.url));
    let answer = call.header("content-type", "application/json").send(body);
    assert_eq!(answer.unwrap().status(), 413);
    assert!(server.log().contains("INFO"), "{}", server.log());
}

#[test]
fn a_value_that_is_none_is_refused_with_an_example() {
    let place = Place::new();
    for (option, value, example) in [
        ("--body-bytes-max", "4 apples", "4MiB"),
        ("--memory-bytes-max", "0", "4MiB"),
        ("--drain-wait", "10", "90s"),
        ("--long-poll-wait", "20", "90s"),
        ("--durable-streams", "/v1", "HTTP API"),
        ("--durable-streams", "ds", "begin with /"),
        ("--retention-max-age", "0s", "30d"),
        ("--streams-max", "0", "whole number"),
        ("--event-bytes-max", "1GiB", "correct the option"),
        ("--tls-cert", "x", "--tls-key"),
    ] {
        let said = refused(place.with_key().args([option, value]));
        assert!(said.contains(example), "{option} {value}: {said}");
    }
    let said = refused(place.with_key().env("RUST_LOG", "info,=,"));
    assert!(said.contains("RUST_LOG"), "{said}");
}

#[test]
fn a_retention_removes_what_is_older() {
    let place = Place::new();
    let server = Server::start(place.with_key().args(["--retention-idle", "50ms"]));
    assert_eq!(server.post("s"), 200);
    eventually("the session is deleted", || {
        server.status(KEY, "/v1/sessions/s") == 404
    });
}

/// A folder whose disk is not mounted is missing or empty.
#[test]
fn a_log_that_must_exist_is_not_begun_where_there_is_none() {
    let place = Place::new();
    let mut by_option = place.with_key();
    by_option.arg("--must-exist");
    let mut by_variable = place.with_key();
    by_variable.env("SESSIONLOG_MUST_EXIST", "true");
    let refuses = |command: &mut Command, what: &str| {
        let said = refused(command);
        assert!(
            said.contains(what) && said.contains("mount its disk"),
            "{said}"
        );
        let (is_fine, said) = checked(place.with_key().arg("--must-exist"));
        assert!(!is_fine && said.contains("mount its disk"), "{said}");
    };
    refuses(&mut by_option, "there is no folder");
    assert!(!place.path("data").exists());
    fs::create_dir(place.path("data")).unwrap();
    refuses(&mut by_variable, "is empty");
    assert_eq!(fs::read_dir(place.path("data")).unwrap().count(), 0);
    drop(Server::start(&mut place.with_key()));
    let server = Server::start(&mut by_option);
    assert_eq!(server.post("s"), 200);
}

/// What `--check` prints, and whether it found nothing wrong.
fn checked(command: &mut Command) -> (bool, String) {
    let output = command.arg("--check").output().unwrap();
    (output.status.success(), said(&output))
}

#[test]
fn a_check_says_what_would_be_served_and_leaves_no_trace() {
    let place = Place::new();
    let mut command = place.with_key();
    command
        .arg("--tls-cert")
        .arg(certificate("first.pem"))
        .arg("--tls-key")
        .arg(certificate("first.key.pem"))
        .args([
            "--retention-max-age",
            "30d",
            "--retention-max-bytes",
            "10GiB",
        ]);
    let (is_fine, said) = checked(&mut command);
    assert!(is_fine, "{said}");
    for shown in [
        "1 key ",
        "first.pem",
        "https://127.0.0.1:0",
        "is new",
        "30days",
        "10.0 GiB",
    ] {
        assert!(said.contains(shown), "{shown}: {said}");
    }
    assert!(
        !place.path("data").exists() && !said.contains(KEY),
        "{said}"
    );
}

#[test]
fn a_check_beside_a_running_server_finds_its_log() {
    let place = Place::new();
    let server = Server::start(&mut place.with_key());
    assert_eq!(server.post("s"), 200);
    let listen = server.address().to_string();
    let (is_fine, said) = checked(place.with_key().args(["--listen", &listen]));
    assert!(is_fine && said.contains("1 event"), "{said}");
    assert!(said.contains("is in use"), "{said}");
    let second = refused(&mut place.with_key());
    assert!(second.contains("stop that process first"), "{second}");
    let port_taken = refused(place.with_key().args(["--listen", &listen]));
    assert!(port_taken.contains("choose another port"), "{port_taken}");
}

#[test]
fn a_check_finds_all_that_is_wrong_at_once() {
    let place = Place::new();
    fs::write(place.path("data"), "a file").unwrap();
    let (is_fine, said) = checked(place.serve().args(["--tls-cert", "x", "--tls-key", "y"]));
    assert!(!is_fine, "{said}");
    for problem in [
        "SESSIONLOG_API_KEY is not set",
        "cannot read x",
        "is no folder",
    ] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
    fs::remove_file(place.path("data")).unwrap();
    let (is_fine, said) = checked(place.with_key().args(["--event-bytes-max", "1GiB"]));
    assert!(!is_fine && said.contains("event_bytes_max"), "{said}");
    damage(&place);
    let (is_fine, said) = checked(&mut place.with_key());
    assert!(!is_fine && said.contains("backup"), "{said}");
}

/// Makes a log whose manifest is damaged.
fn damage(place: &Place) {
    let mut server = Server::start(&mut place.with_key());
    assert_eq!(server.post("s"), 200);
    server.signal("TERM");
    assert!(server.wait().success());
    let files = fs::read_dir(place.path("data")).unwrap();
    for file in files.map(|file| file.unwrap().path()) {
        if file.is_file() && file.metadata().unwrap().len() > 0 {
            let mut bytes = fs::read(&file).unwrap();
            for byte in &mut bytes {
                *byte = !*byte;
            }
            fs::write(&file, bytes).unwrap();
        }
    }
}

#[test]
fn a_check_finds_a_folder_that_cannot_be_made() {
    let place = Place::new();
    let parent = place.path("locked");
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o500)).unwrap();
    let below = |path: &Path| {
        let mut command = place.with_key();
        command.arg("--data").arg(path.join("data"));
        checked(&mut command)
    };
    // The administrator may write anywhere.
    let may_write = fs::write(parent.join("probe"), "").is_ok();
    let (is_fine, said) = below(&parent);
    assert_eq!(is_fine, may_write, "{said}");
    let (is_fine, said) = below(&place.file("file", ""));
    assert!(!is_fine && said.contains("is no folder"), "{said}");
}

#[test]
fn a_second_signal_ends_what_the_first_one_waits_for() {
    let place = Place::new();
    let mut server = Server::start(place.with_key().args(["--drain-wait", "10m"]));
    let mut late = server.connect();
    let head = format!(
        "POST /v1/sessions/s/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    );
    late.write_all(head.as_bytes()).unwrap();
    late.read_exact(&mut [0; 25]).unwrap();
    server.signal("TERM");
    eventually("it listens no more", || {
        TcpListener::bind(server.address()).is_ok()
    });
    assert!(
        server.process.try_wait().unwrap().is_none(),
        "it waits for the request"
    );
    server.signal("INT");
    let status = server.wait();
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
}
