//! The calls through a real nginx, configured as users do: with its defaults, with compression,
//! without buffering.
//!
//! Needs nginx.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::find;
use crate::followers::{has, id_of_frame, start, take_in, told};
use crate::page::Browser;
use crate::process::{Ending, KEY, Server, command, eventually, free_address, post};

/// The settings of a location after `proxy_pass`.
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

pub(crate) struct Nginx {
    _process: Ending,
    pub(crate) url: String,
}

impl Nginx {
    /// Starts nginx in front of the server at `upstream`, reachable at `listen`.
    pub(crate) fn start(folder: &Path, listen: &str, upstream: &str, settings: &str) -> Self {
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
        let mut command = Command::new(find("nginx").expect("nginx is there"));
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

/// A server, and the address of the proxy in front.
struct Behind {
    folder: tempfile::TempDir,
    address: String,
    server: Option<Server>,
}

impl Behind {
    fn new() -> Self {
        let mut behind = Self {
            folder: tempfile::tempdir().unwrap(),
            address: free_address(),
            server: None,
        };
        behind.start();
        behind
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
        Nginx::start(&folder, listen, &self.address, settings)
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}

pub(crate) fn a_stream_comes_through_a_proxy_at_once_and_is_resumed_there() {
    let behind = Behind::new();
    for (name, settings) in VARIANTS {
        let nginx = behind.nginx(&free_address(), settings);
        let session = name.replace(' ', "-");
        let stored = behind.server().post(&session, "1", "stored").unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let open = |last: &str| {
            // An answer that does not begin is a failure. A stream takes as long as it takes.
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
        // At the tail there is nothing to send, and the answer begins all the same.
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

pub(crate) fn tags_keys_and_errors_mean_the_same_behind_a_proxy() {
    let behind = Behind::new();
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
            request
                .send_json(json!({"events": [
                    {"type": "user.message", "content": [{"type": "text", "text": text}]}
                ]}))
                .unwrap()
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
            // The client here does not decompress, so an uncompressed request checks the contents.
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

pub(crate) fn a_client_follows_through_a_proxy_that_stops_and_a_server_that_does(command: Command) {
    let mut behind = Behind::new();
    let listen = free_address();
    let mut nginx = Some(behind.nginx(&listen, ""));
    behind.server().post("s", "first", "hello").unwrap();
    let url = format!("http://{listen}");
    let (client, seen) = start(command, &[&url, "s"]);
    eventually("it shows what is stored", || has(&seen, 1));
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
    eventually("it has them all", || has(&seen, all.len()));
    assert_eq!(told(client, &seen), all);
    drop(nginx);
}

pub(crate) fn curl_shows_a_stream_through_a_proxy() {
    let behind = Behind::new();
    let nginx = behind.nginx(&free_address(), "");
    for n in 0..10 {
        behind.server().post("s", &n.to_string(), "x").unwrap();
    }
    let mut curl = Command::new("curl");
    curl.args(["-sN", "-H", &format!("Authorization: Bearer {KEY}")])
        .arg(format!("{}/v1/sessions/s/stream", nginx.url))
        .stdout(Stdio::piped());
    let mut curl = Ending(curl.spawn().unwrap());
    let seen = take_in(curl.0.stdout.take().unwrap(), id_of_frame);
    eventually("curl shows all that is stored", || has(&seen, 10));
    assert_eq!(*seen.lock().unwrap(), behind.server().ids("s"));
}

/// An answer that the server did not finish ends like any other, since nginx requests it with
/// HTTP/1.0.
pub(crate) fn a_frame_that_is_cut_off_behind_a_proxy_is_taken_when_it_is_whole(command: Command) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, folder) = (
        upstream.local_addr().unwrap().to_string(),
        tempfile::tempdir().unwrap(),
    );
    thread::spawn(move || cut_off_first(&upstream));
    let nginx = Nginx::start(folder.path(), &free_address(), &address, "");
    let (_client, seen) = start(command, &[&nginx.url, "s"]);
    eventually("it has both", || has(&seen, 2));
    assert_eq!(*seen.lock().unwrap(), ["1", "2"]);
}

/// Ends each stream in the middle of its second event. A client that reconnects after the first
/// event gets the second one whole.
fn cut_off_first(upstream: &TcpListener) {
    let frame = |id: &str| format!("id: {id}\nevent: note\ndata: {{\"id\":\"{id}\"}}\n\n");
    let (first, second) = (frame("1"), frame("2"));
    let mut open = Vec::new();
    for socket in upstream.incoming() {
        let mut socket = socket.unwrap();
        let lines = BufReader::new(&socket).lines().map_while(Result::ok);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        socket
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                  X-Accel-Buffering: no\r\n\r\n",
            )
            .unwrap();
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

pub(crate) async fn the_page_works_behind_a_proxy() {
    let browser = Browser::start().await;
    let (folder, address) = (tempfile::tempdir().unwrap(), free_address());
    let server = Server::of(command(&folder.path().join("data"), &address).arg("--open"));
    let settings = "proxy_set_header Host localhost; gzip on; gzip_types *; gzip_min_length 1;";
    let nginx = Nginx::start(folder.path(), &free_address(), &address, settings);
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
