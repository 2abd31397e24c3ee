//! The server as a process of its own, over real sockets: what it requires, how it stops, and what
//! clients see of that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sessionlog::http::{Config, Key, Scope};
use sessionlog::{Batch, NewEvent, SessionLog};

use crate::here::Here;
use crate::process::{Server, agent, command, eventually, free_address, post};
use crate::support::KEY;

#[test]
fn a_worker_is_let_in_by_the_key_of_its_variable() {
    let folder = tempfile::tempdir().unwrap();
    let with_keys = |worker_key: &str| {
        let mut command = command(folder.path(), "127.0.0.1:0");
        command.env("SESSIONLOG_API_KEY", KEY);
        Server::of(command.env("SESSIONLOG_WORKER_KEY", worker_key))
    };
    let status = |server: &Server, key: &str| {
        let call = agent().get(format!("{}/v1/stats", server.url));
        let answer = call.header("authorization", format!("Bearer {key}")).call();
        match answer {
            Ok(answer) => answer.status().as_u16(),
            Err(ureq::Error::StatusCode(status)) => status,
            Err(error) => panic!("{error}"),
        }
    };
    let server = with_keys("a worker");
    assert_eq!(
        (status(&server, "a worker"), status(&server, KEY)),
        (200, 403)
    );
    drop(server);
    let without = with_keys("");
    assert_eq!(
        (status(&without, "a worker"), status(&without, KEY)),
        (401, 403)
    );
}

#[test]
fn it_starts_only_with_a_key_or_open_on_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let refused = |command: &mut Command, why: &str| {
        let output = command.stdout(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
        assert!(!data.exists(), "it made a folder and did not start");
    };
    refused(
        &mut command(&data, "127.0.0.1:0"),
        "SESSIONLOG_API_KEY is not set",
    );
    refused(
        command(&data, "127.0.0.1:0").env("SESSIONLOG_API_KEY", ""),
        "SESSIONLOG_API_KEY is not set",
    );
    refused(
        command(&data, "0.0.0.0:0").arg("--open"),
        "0.0.0.0 is not one",
    );
    refused(
        command(&data, "127.0.0.1:0")
            .arg("--open")
            .env("SESSIONLOG_API_KEY", KEY),
        "use either",
    );
    drop(Server::of(command(&data, "[::1]:0").arg("--open")));
    assert_eq!(data.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    // An existing folder keeps its permissions.
    for mode in [0o755, 0o1777] {
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).unwrap();
        drop(Server::start(&data, "127.0.0.1:0"));
        assert_eq!(data.metadata().unwrap().permissions().mode() & 0o7777, mode);
    }
    let help = command(&data, "127.0.0.1:0")
        .arg("--help")
        .output()
        .unwrap();
    assert!(
        help.status.success()
            && String::from_utf8_lossy(&help.stdout).contains("SESSIONLOG_API_KEY")
    );
}

#[test]
fn what_it_logs_holds_no_token_and_a_line_for_each_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut process = command(folder.path(), "127.0.0.1:0")
        .env("SESSIONLOG_API_KEY", KEY)
        .env("RUST_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let log = thread::spawn(move || {
        let mut logged = String::new();
        stderr.read_to_string(&mut logged).unwrap();
        logged
    });
    let posted = post(
        line.trim_end().trim_start_matches("listening on "),
        "s",
        "k",
        "hello",
    );
    process.kill().unwrap();
    process.wait().unwrap();
    let logged = log.join().unwrap();
    posted.unwrap();
    assert!(!logged.contains(KEY), "{logged}");
    let lines: Vec<Value> = logged
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let request = lines
        .iter()
        .find(|line| line["target"] == "sessionlog::access")
        .unwrap();
    let fields = &request["fields"];
    assert_eq!(
        (&fields["method"], &fields["path"], &fields["status"]),
        (&"POST".into(), &"/v1/sessions/s/events".into(), &200.into())
    );
}

#[test]
fn asked_to_stop_it_ends_its_streams_and_loses_nothing_that_it_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), "127.0.0.1:0");
    server.post("s", "first", "first").unwrap();
    let mut stream = open_stream(&server.url, "s");
    let acked = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for writer in 0..8 {
            let (server, acked) = (&server, &acked);
            scope.spawn(move || {
                for n in 0.. {
                    match server.post("s", &format!("{writer}/{n}"), "more") {
                        Ok(event) => acked
                            .lock()
                            .unwrap()
                            .push(event["id"].as_str().unwrap().to_owned()),
                        Err(_gone) => return,
                    }
                }
            });
        }
        eventually("some were answered", || acked.lock().unwrap().len() > 200);
        server.ask_to_stop();
    });
    let began = Instant::now();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("event: user.message"));
    assert!(server.wait().success());
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "it waited for what does not end"
    );
    let log = SessionLog::open(folder.path()).unwrap();
    assert!(log.stats().recovery.clean);
    log.close().unwrap();
    let found = Server::start(folder.path(), "127.0.0.1:0").ids("s");
    let lost: Vec<_> = acked
        .into_inner()
        .unwrap()
        .into_iter()
        .filter(|id| !found.contains(id))
        .collect();
    assert!(lost.is_empty(), "answered and lost: {lost:?}");
}

#[test]
fn killed_again_and_again_it_answers_retries_with_what_it_had_stored() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut stored: Vec<(String, Value)> = Vec::new();
    for round in 0..5 {
        let server = Server::start(folder.path(), &address);
        for (key, event) in &stored {
            assert_eq!(&server.post("s", key, "once").unwrap(), event);
        }
        for n in 0..20 {
            let key = format!("{round}/{n}");
            let event = server.post("s", &key, "once").unwrap();
            stored.push((key, event));
        }
        let conflict = server.post("s", "0/0", "another").unwrap_err();
        assert!(
            matches!(conflict, ureq::Error::StatusCode(409)),
            "{conflict}"
        );
        server.kill();
    }
    let ids: Vec<_> = stored
        .iter()
        .map(|(_, event)| event["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(Server::start(folder.path(), &address).ids("s"), ids);
}

/// Returns the bytes of a stream after its head.
fn open_stream(url: &str, session: &str) -> impl Read + use<> {
    let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
    let request = agent
        .get(format!("{url}/v1/sessions/{session}/stream"))
        .header("authorization", format!("Bearer {KEY}"));
    request.call().unwrap().into_body().into_reader()
}

#[test]
fn who_does_not_finish_a_head_or_a_body_is_not_waited_for() {
    let wait = Duration::from_millis(200);
    let server = Here::serve(Config::with_api_key(KEY).head_wait(wait).body_wait(wait));
    let answer_to = |sent: &str| {
        let mut socket = server.connect();
        socket.write_all(sent.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    assert_eq!(
        answer_to("GET /v1/sessions HTTP/1.1\r\nHost: x\r\nX-Slow"),
        ""
    );
    let head = format!(
        "POST /v1/sessions/s/events HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    );
    assert!(answer_to(&format!("{head}Content-Length: 100\r\n\r\n{{")).starts_with("HTTP/1.1 408"));
    assert!(
        answer_to(&format!("{head}Content-Length: 100000000\r\n\r\n")).starts_with("HTTP/1.1 413")
    );
    let huge = format!(
        "GET /v1/sessions HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "y".repeat(40_000)
    );
    assert!(answer_to(&huge).starts_with("HTTP/1.1 431"));
    assert!(answer_to("no http at all\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert_eq!(server.log.stats().events, 0);
}

#[test]
fn whoever_sends_too_much_or_without_a_key_hears_so_all_the_same() {
    let server = Here::serve(Config::with_api_key(KEY).url_bytes_max(100));
    let body = "x".repeat(10_000_000);
    let long = format!("POST /{}", "x".repeat(100));
    let cases = [
        (KEY, "POST /v1/sessions/s/events", "413"),
        ("wrong", "POST /v1/sessions/s/events", "401"),
        (KEY, "POST /v1/sessions/%00/events", "400"),
        (KEY, "POST /nowhere", "404"),
        (KEY, "PUT /v1/sessions/s/events", "405"),
        (KEY, &long, "414"),
    ];
    for (key, call, status) in cases {
        let head = |more: &str| {
            let length = body.len();
            format!(
                "{call} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
            )
        };
        let check = |sent: &str| {
            let mut socket = server.connect();
            // All of it is sent before the answer is read.
            socket
                .write_all(sent.as_bytes())
                .unwrap_or_else(|error| panic!("{call}: {error}"));
            let mut answer = [0; 12];
            socket
                .read_exact(&mut answer)
                .unwrap_or_else(|error| panic!("{call}: {error}"));
            assert_eq!(
                String::from_utf8_lossy(&answer),
                format!("HTTP/1.1 {status}"),
                "{call}"
            );
        };
        check(&format!("{}{body}", head("")));
        // The server does not ask for a body that it refuses unseen.
        check(&head("Expect: 100-continue\r\n"));
    }
}

#[test]
fn a_request_that_takes_too_long_when_the_server_stops_is_cut_off() {
    let mut server = Here::serve(Config::with_api_key(KEY).drain_wait(Duration::from_millis(50)));
    let body = crate::support::said("late");
    let (sent, rest) = body.split_at(body.len() / 2);
    let head = format!(
        "POST /v1/sessions/s/events HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut socket = server.connect();
    socket
        .write_all(format!("{head}Expect: 100-continue\r\n\r\n").as_bytes())
        .unwrap();
    let mut leave = [0; 25];
    socket.read_exact(&mut leave).unwrap();
    assert_eq!(&leave, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(sent.as_bytes()).unwrap();
    server.stop();
    let _gone_by_now = socket.write_all(rest.as_bytes());
    let mut answer = Vec::new();
    let _reset = socket.read_to_end(&mut answer);
    assert_eq!((answer, server.log.stats().events), (Vec::new(), 0));
}

#[test]
fn no_more_connections_are_taken_than_allowed() {
    let server = Here::serve(Config::with_api_key(KEY).connections_max(2));
    let ask = |socket: &mut TcpStream| {
        socket
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    };
    let (mut first, mut second) = (server.connect(), server.connect());
    ask(&mut first);
    ask(&mut second);
    let mut third = server.connect();
    third
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    third
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert!(
        third.read_exact(&mut [0; 12]).is_err(),
        "it was taken beside the two"
    );
    drop(first);
    third
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    third.read_exact(&mut [0; 12]).unwrap();
}

#[test]
fn a_client_that_takes_nothing_is_let_go_and_slows_no_writer() {
    let server = Here::serve(
        Config::with_api_key(KEY)
            .stall_wait(Duration::from_millis(500))
            .heartbeat(Duration::from_millis(50)),
    );
    let session = "s".parse().unwrap();
    let append = || {
        server
            .log
            .append(
                &session,
                Batch::new().event(NewEvent::new("note", vec![b'0'; 512 * 1024])),
            )
            .unwrap()
    };
    append();
    let mut stuck = server.connect();
    stuck
        .write_all(
            format!(
                "GET /v1/sessions/s/stream HTTP/1.1\r\nHost: x\r\n\
                 Authorization: Bearer {KEY}\r\n\r\n"
            )
            .as_bytes(),
        )
        .unwrap();
    eventually("the stream is open", || server.log.stats().streams == 1);
    // More than the sockets' buffers take.
    for _ in 0..40 {
        append();
    }
    eventually("the stream is freed", || server.log.stats().streams == 0);
}

#[test]
fn a_client_that_is_gone_frees_its_stream() {
    let server = Here::serve(Config::with_api_key(KEY).heartbeat(Duration::from_millis(50)));
    server
        .log
        .append(
            &"s".parse().unwrap(),
            Batch::new().event(NewEvent::new("note", "1")),
        )
        .unwrap();
    let request = format!(
        "GET /v1/sessions/s/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut socket = server.connect();
                    socket.write_all(request.as_bytes()).unwrap();
                    socket.read_exact(&mut [0; 12]).unwrap();
                }
            });
        }
    });
    eventually("all streams are freed", || server.log.stats().streams == 0);
}

/// A wait may be longer than a proxy lets it be, or than the client's network lasts.
#[test]
fn a_wait_whose_client_leaves_ends_and_loses_nothing() {
    let server = Here::serve(Config::with_keys([Key::new(KEY).scope(Scope::Worker)]));
    let session = "s".parse().unwrap();
    let opened = server
        .log
        .append(&session, Batch::new().user_message("x"))
        .unwrap();
    let (last, turn) = (opened.events[0].id, opened.events[0].message_id.unwrap());
    let get = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n")
    };
    let waits = [
        format!("/v1/sessions/s/events?after={last}&wait=60"),
        format!("/v1/feed?after={last}&wait=60"),
        format!("/v1/messages/{turn}?wait=60"),
    ];
    for path in &waits {
        let mut socket = server.connect();
        socket.write_all(get(path).as_bytes()).unwrap();
        eventually("it waits", || server.log.stats().streams == 1);
        drop(socket);
        eventually("it ends", || server.log.stats().streams == 0);
    }
    let ends = NewEvent::new("message.status_changed", r#"{"status":"completed"}"#);
    server.log.append(&session, ends.in_turn(turn)).unwrap();
    for path in &waits {
        let mut socket = server.connect();
        socket.write_all(get(path).as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let length = socket.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        assert!(answer.contains("completed"), "{path}: {answer}");
    }
}
