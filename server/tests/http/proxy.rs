//! K3: the calls through a real nginx, as people put it before a server: with its defaults, with
//! compression, without buffering.
//!
//! Needs nginx; skipped with a message where it is not.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::page::Browser;
use crate::process::{Ending, Server, command, eventually, free_address, post};
use crate::support::KEY;

/// What stands in a location behind `proxy_pass`.
const VARIANTS: [(&str, &str); 4] = [
    ("the defaults", ""),
    (
        "compression",
        "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;",
    ),
    ("no buffering", "proxy_buffering off;"),
    (
        "kept connections",
        "proxy_http_version 1.1; proxy_set_header Connection \"\";",
    ),
];

struct Nginx {
    _process: Ending,
    url: String,
}

impl Nginx {
    /// `None` where there is none.
    fn program() -> Option<PathBuf> {
        let found = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "nginx"].map(PathBuf::from);
        let works = |program: &PathBuf| {
            Command::new(program)
                .arg("-v")
                .stderr(Stdio::null())
                .status()
                .is_ok()
        };
        let program = found.into_iter().find(works);
        if program.is_none() {
            println!("skipped: there is no nginx");
        }
        program
    }

    /// Before the server at `upstream`, and reachable at `listen`.
    fn start(program: &Path, folder: &Path, listen: &str, upstream: &str, settings: &str) -> Self {
        let folder = folder.to_str().unwrap();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|of| format!("{of}_temp_path {folder}/{of};"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
             events {{ }}
             http {{ {temporary} access_log off; client_max_body_size 8m;
               upstream server {{ server {upstream}; keepalive 8; }}
               server {{ listen {listen}; location / {{ proxy_pass http://server; {settings} }} }}
             }}"
        );
        let path = format!("{folder}/nginx.conf");
        fs::write(&path, config).unwrap();
        let mut command = Command::new(program);
        command
            .args(["-p", folder, "-c", &path])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Ending(command.spawn().unwrap());
        eventually("nginx takes connections", || {
            std::net::TcpStream::connect(listen).is_ok()
        });
        Self {
            _process: process,
            url: format!("http://{listen}"),
        }
    }
}

/// A server, and a place for what is before it.
struct Behind {
    program: PathBuf,
    folder: tempfile::TempDir,
    address: String,
    server: Option<Server>,
}

impl Behind {
    fn new() -> Option<Self> {
        let (program, folder, address) = (
            Nginx::program()?,
            tempfile::tempdir().unwrap(),
            free_address(),
        );
        let mut behind = Self {
            program,
            folder,
            address,
            server: None,
        };
        behind.start();
        Some(behind)
    }

    fn start(&mut self) {
        self.server = Some(Server::start(
            &self.folder.path().join("data"),
            &self.address,
        ));
    }

    fn nginx(&self, listen: &str, settings: &str) -> Nginx {
        let folder = self.folder.path().join("nginx");
        fs::create_dir_all(&folder).unwrap();
        Nginx::start(&self.program, &folder, listen, &self.address, settings)
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}

/// The IDs that a client has told so far.
type Seen = Arc<Mutex<Vec<String>>>;

/// Takes in what `lines` give, by what `id` finds in a line.
fn take_in(
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

fn id_of_frame(line: &str) -> Option<String> {
    line.strip_prefix("id: ").map(str::to_owned)
}

const CLIENTS: [(&str, &str); 2] = [("python3", "tail.py"), ("node", "tail.mjs")];

/// An example client that follows session `s`, and the IDs that it shows. `None` where there is
/// nothing to run it with.
fn start_client(program: &str, file: &str, url: &str) -> Option<(Ending, Seen)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/clients")
        .join(file);
    let mut command = Command::new(program);
    command
        .arg(path)
        .args([url, "s"])
        .env("SESSIONLOG_API_KEY", KEY)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let Ok(mut client) = command.spawn() else {
        println!("skipped: there is no {program} to run {file}");
        return None;
    };
    let id = |line: &str| {
        serde_json::from_str::<Value>(line).ok()?["id"]
            .as_str()
            .map(str::to_owned)
    };
    let seen = take_in(client.stdout.take().unwrap(), id);
    Some((Ending(client), seen))
}

fn has(seen: &Seen, count: usize) -> bool {
    seen.lock().unwrap().len() >= count
}

#[test]
fn a_stream_comes_through_a_proxy_at_once_and_is_resumed_there() {
    let Some(behind) = Behind::new() else { return };
    for (name, settings) in VARIANTS {
        let nginx = behind.nginx(&free_address(), settings);
        let session = name.replace(' ', "-");
        let stored = behind.server().post(&session, "1", "stored").unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let open = |last: &str| {
            // An answer that does not begin is a failure, and a stream takes as long as it takes.
            let begins =
                ureq::Agent::config_builder().timeout_recv_response(Some(Duration::from_secs(20)));
            let agent: ureq::Agent = begins.build().into();
            let request = agent.get(format!("{}/v1/sessions/{session}/stream", nginx.url));
            let request = request
                .header("authorization", format!("Bearer {KEY}"))
                .header("last-event-id", last);
            take_in(
                request.call().unwrap().into_body().into_reader(),
                id_of_frame,
            )
        };
        let seen = open("");
        eventually(
            &format!("{name}: what is stored comes while nothing is appended"),
            || has(&seen, 1),
        );
        let live = behind.server().post(&session, "2", "live").unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        eventually(&format!("{name}: what is new comes"), || has(&seen, 2));
        assert_eq!(
            *seen.lock().unwrap(),
            [stored.clone(), live.clone()],
            "{name}"
        );
        // At the tail nothing is to be sent, and the answer begins all the same.
        let resumed = open(&live);
        let next = behind.server().post(&session, "3", "next").unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        eventually(&format!("{name}: a resumed stream goes on"), || {
            has(&resumed, 1)
        });
        assert_eq!(*resumed.lock().unwrap(), [next], "{name}");
    }
}

#[test]
fn tags_keys_and_errors_mean_the_same_behind_a_proxy() {
    let Some(behind) = Behind::new() else { return };
    for (name, settings) in VARIANTS {
        let nginx = behind.nginx(&free_address(), settings);
        let url = format!(
            "{}/v1/sessions/{}/events",
            nginx.url,
            name.replace(' ', "-")
        );
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let key = format!("Bearer {KEY}");
        let large = "x".repeat(900_000);
        let send = |text: &str, tag: Option<&str>, key_of: Option<&str>| {
            let mut request = agent.post(&url).header("authorization", &key);
            for (header, value) in [("if-match", tag), ("idempotency-key", key_of)] {
                if let Some(value) = value {
                    request = request.header(header, value);
                }
            }
            request.send_json(json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": text}]}]})).unwrap()
        };
        let list = || {
            let request = agent
                .get(format!("{url}?limit=1000"))
                .header("authorization", &key)
                .header("accept-encoding", "gzip");
            request.call().unwrap()
        };
        assert_eq!(list().status(), 404, "{name}");
        for n in 0..5 {
            assert_eq!(
                send(&large, None, Some(&n.to_string())).status(),
                200,
                "{name}"
            );
        }
        let mut page = list();
        let tag = page.headers()["etag"].to_str().unwrap().to_owned();
        assert_eq!(
            tag.starts_with("W/"),
            name == "compression",
            "{name}: {tag}"
        );
        let mut bytes = Vec::new();
        page.body_mut().as_reader().read_to_end(&mut bytes).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            // The client here does not take compression apart; that it came whole is seen without.
            bytes.clear();
            let plain = agent
                .get(format!("{url}?limit=1000"))
                .header("authorization", &key)
                .header("accept-encoding", "identity");
            plain
                .call()
                .unwrap()
                .body_mut()
                .as_reader()
                .read_to_end(&mut bytes)
                .unwrap();
        }
        let page: Value = serde_json::from_slice(&bytes).unwrap();
        assert!(bytes.len() > 4_000_000, "{name}: the page is not whole");
        assert_eq!(
            page["events"].as_array().unwrap().last().unwrap()["seq"],
            5,
            "{name}"
        );
        assert_eq!(send("late", Some("\"4\""), None).status(), 412, "{name}");
        assert_eq!(
            send("in place", Some(&tag), Some("k")).status(),
            200,
            "{name}"
        );
        assert_eq!(
            send("in place", Some(&tag), Some("k")).headers()["idempotent-replayed"],
            "true",
            "{name}"
        );
    }
}

#[test]
fn clients_follow_through_a_proxy_that_stops_and_a_server_that_does() {
    let Some(mut behind) = Behind::new() else {
        return;
    };
    let listen = free_address();
    let mut nginx = Some(behind.nginx(&listen, ""));
    let mut running = Vec::new();
    behind.server().post("s", "first", "hello").unwrap();
    for (program, file) in CLIENTS {
        let Some((client, seen)) = start_client(program, file, &format!("http://{listen}")) else {
            continue;
        };
        eventually(&format!("{file} shows what is stored"), || has(&seen, 1));
        running.push((file, client, seen));
    }
    for round in 0..4 {
        for n in 0..10 {
            behind
                .server()
                .post("s", &format!("{round}/{n}"), "x")
                .unwrap();
        }
        if round % 2 == 0 {
            drop(nginx.take());
            nginx = Some(behind.nginx(&listen, ""));
        } else {
            behind.server.take().unwrap().kill();
            behind.start();
        }
    }
    let all = behind.server().ids("s");
    for (file, client, seen) in running {
        eventually(&format!("{file} has them all"), || has(&seen, all.len()));
        drop(client);
        assert_eq!(*seen.lock().unwrap(), all, "{file}");
    }
    check_curl(&listen, &all);
    drop(nginx);
}

fn check_curl(listen: &str, all: &[String]) {
    let mut command = Command::new("curl");
    command.args([
        "-sN",
        "-H",
        &format!("Authorization: Bearer {KEY}"),
        &format!("http://{listen}/v1/sessions/s/stream"),
    ]);
    let Ok(curl) = command.stdout(Stdio::piped()).spawn() else {
        return println!("skipped: there is no curl");
    };
    let mut curl = Ending(curl);
    let seen = take_in(curl.0.stdout.take().unwrap(), id_of_frame);
    eventually("curl shows all that is stored", || has(&seen, all.len()));
    assert_eq!(*seen.lock().unwrap(), all);
}

/// An answer that the server did not finish ends like any other, since nginx asks for it in
/// HTTP/1.0.
#[test]
fn a_frame_that_is_cut_off_behind_a_proxy_is_taken_when_it_is_whole() {
    let Some(program) = Nginx::program() else {
        return;
    };
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, folder) = (
        upstream.local_addr().unwrap().to_string(),
        tempfile::tempdir().unwrap(),
    );
    thread::spawn(move || cut_off_first(&upstream));
    let nginx = Nginx::start(&program, folder.path(), &free_address(), &address, "");
    for (program, file) in CLIENTS {
        let Some((_client, seen)) = start_client(program, file, &nginx.url) else {
            continue;
        };
        eventually(&format!("{file} has both"), || has(&seen, 2));
        assert_eq!(*seen.lock().unwrap(), ["1", "2"], "{file}");
    }
}

/// Ends each stream in the middle of its second event, which it sends whole to a client that comes
/// back after the first.
fn cut_off_first(upstream: &TcpListener) {
    let frame = |id: &str| format!("id: {id}\nevent: note\ndata: {{\"id\":\"{id}\"}}\n\n");
    let (first, second) = (frame("1"), frame("2"));
    let mut open = Vec::new();
    for socket in upstream.incoming() {
        let mut socket = socket.unwrap();
        let lines = BufReader::new(&socket).lines().map_while(Result::ok);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n\r\n").unwrap();
        if head
            .iter()
            .any(|line| line.eq_ignore_ascii_case("last-event-id: 1"))
        {
            socket.write_all(second.as_bytes()).unwrap();
            open.push(socket);
        } else {
            socket
                .write_all(format!("{first}{}", &second[..second.len() - 4]).as_bytes())
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_works_behind_a_proxy() {
    let Some(program) = Nginx::program() else {
        return;
    };
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (folder, address) = (tempfile::tempdir().unwrap(), free_address());
    let server = Server::of(command(&folder.path().join("data"), &address).arg("--open"));
    let settings = "proxy_set_header Host localhost; gzip on; gzip_types *; gzip_min_length 1;";
    let nginx = Nginx::start(&program, folder.path(), &free_address(), &address, settings);
    post(&server.url, "s", "1", "stored").unwrap();
    browser
        .client
        .goto(&format!("{}/#s", nginx.url))
        .await
        .unwrap();
    browser
        .until("document.querySelector('#state').dataset.is === 'live'")
        .await;
    browser.until_shown(&server.ids("s")).await;
    post(&nginx.url, "s", "2", "live").unwrap();
    browser.until_shown(&server.ids("s")).await;
    assert_eq!(
        browser
            .ask("document.querySelector('#trouble').textContent")
            .await,
        ""
    );
    browser.end().await;
}
