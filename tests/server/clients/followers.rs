//! Programs that follow a session and print each event: the commands of the clients in
//! `examples/clients`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::process::{Ending, KEY, Server, eventually, free_address};

/// The IDs that a client has printed so far.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

/// Starts the command of a client.
pub(crate) fn start(mut command: Command, arguments: &[&str]) -> (Ending, Seen) {
    command
        .args(arguments)
        .env("SESSIONLOG_API_KEY", KEY)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut client = Ending(command.spawn().unwrap());
    let id = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["id"].as_str().map(str::to_owned)
    };
    let seen = take_in(client.0.stdout.take().unwrap(), id);
    (client, seen)
}

/// Records the lines, from each of which `id` extracts an event's ID.
pub(crate) fn take_in(
    lines: impl Read + Send + 'static,
    id: impl Fn(&str) -> Option<String> + Send + 'static,
) -> Seen {
    let seen = Seen::default();
    let told = Arc::clone(&seen);
    thread::spawn(move || {
        for line in BufReader::new(lines).lines().map_while(Result::ok) {
            told.lock().unwrap().extend(id(&line));
        }
    });
    seen
}

pub(crate) fn id_of_frame(line: &str) -> Option<String> {
    line.strip_prefix("id: ").map(str::to_owned)
}

pub(crate) fn has(seen: &Seen, count: usize) -> bool {
    seen.lock().unwrap().len() >= count
}

/// Ends a client, and returns everything that it printed.
pub(crate) fn told(client: Ending, seen: &Seen) -> Vec<String> {
    drop(client);
    eventually("its output ends", || Arc::strong_count(seen) == 1);
    std::mem::take(&mut *seen.lock().unwrap())
}

pub(crate) fn an_example_client_comes_back_without_gap_or_duplicate(command: Command) {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut server = Some(Server::start(folder.path(), &address));
    let (client, seen) = start(command, &[&format!("http://{address}"), "a b/c", "hello"]);
    eventually("the message it sent came back", || has(&seen, 1));
    for round in 0..3 {
        for n in 0..30 {
            // Some programs take these for the end of a line, which they are not.
            server
                .as_ref()
                .unwrap()
                .post("a%20b%2Fc", &format!("{round}/{n}"), "x\n\u{2028}\u{85}y")
                .unwrap();
        }
        let mut ended = server.take().unwrap();
        if round == 1 {
            ended.ask_to_stop();
            assert!(ended.wait().success());
        } else {
            ended.kill();
        }
        server = Some(Server::start(folder.path(), &address));
    }
    let server = server.unwrap();
    let all = server.ids("a%20b%2Fc");
    eventually("it has them all", || has(&seen, all.len()));
    assert_eq!(told(client, &seen), all);
}
