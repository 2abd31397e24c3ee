//! Appends in the plain form, which the loop of a connection answers, and the same ones through the
//! router. Both get the same answers and leave the same behind.

use sessionlog::http::{Config, Key, Scope};
use sessionlog::{SessionLog, durable_streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::durable_streams::{Ds, is};

/// The stream of the plain form, and the one whose path only the router decodes.
const PATHS: [&str; 2] = ["/ds/p", "/ds/%72"];

/// Sends a request on a connection of its own, and returns the answer without its time.
async fn call(address: &str, call: &str, path: &str, headers: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let headers = format!("Host: localhost\r\n{headers}Content-Length: {length}");
    let request = format!("{call} {path} HTTP/1.1\r\n{headers}\r\n\r\n{body}");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !is_whole(&answer) {
        let read = socket.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "there is no whole answer");
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.split("\r\n").collect();
    assert!(lines.iter().any(|line| line.starts_with("date: ")));
    lines.retain(|line| !line.starts_with("date: "));
    lines.get_mut(1..).unwrap().sort_unstable();
    format!("{}\n\n{body}", lines.join("\n")).replace("ds/r", "ds/p")
}

fn is_whole(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return false;
    };
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: "));
    body.len() == length.map_or(0, |length| length.parse().unwrap())
}

const WORKER: &str = "Authorization: Bearer w\r\n";
const TEXT: &str = "Content-Type: text/plain\r\n";

fn producer(epoch: u64, seq: u64) -> String {
    format!("{TEXT}Producer-Id: p\r\nProducer-Epoch: {epoch}\r\nProducer-Seq: {seq}\r\n")
}

/// Serves streams in the background. Returns the address.
async fn serve(log: SessionLog) -> String {
    let keys = [
        Key::new("w").scope(Scope::Worker),
        Key::new("c"),
        Key::new("e").scope(Scope::Worker).prefix("ds/elsewhere/"),
    ];
    let config = Config::with_keys(keys);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let until = std::future::pending();
    tokio::spawn(durable_streams::serve(listener, log, config, "/ds", until));
    address
}

/// Appends in turn, each with its status. The second creates the stream instead.
fn cases() -> Vec<(u16, String, &'static str)> {
    let worker = |headers: &str| format!("{WORKER}{headers}");
    vec![
        (404, worker(TEXT), "there is no stream yet"),
        (201, worker(TEXT), ""),
        (204, worker(TEXT), "a"),
        (
            204,
            worker(&format!("{TEXT}Origin: https://a.test\r\n")),
            "b",
        ),
        (400, worker(TEXT), ""),
        (400, WORKER.to_owned(), "no type"),
        (409, worker("Content-Type: text/html\r\n"), "c"),
        (
            415,
            worker(&format!("{TEXT}Content-Encoding: gzip\r\n")),
            "c",
        ),
        (401, TEXT.to_owned(), "no key"),
        (
            403,
            format!("Authorization: Bearer c\r\n{TEXT}"),
            "a client's",
        ),
        (
            404,
            format!("Authorization: Bearer e\r\n{TEXT}"),
            "another's",
        ),
        (204, worker(&format!("{TEXT}Stream-Seq: 2\r\n")), "d"),
        (409, worker(&format!("{TEXT}Stream-Seq: 1\r\n")), "e"),
        (200, worker(&producer(1, 0)), "f"),
        (204, worker(&producer(1, 0)), "f"),
        (409, worker(&producer(1, 2)), "g"),
        (403, worker(&producer(0, 0)), "h"),
        (400, worker(&format!("{TEXT}Producer-Id: p\r\n")), "i"),
        (
            200,
            worker(&format!("{}Stream-Closed: true\r\n", producer(1, 1))),
            "j",
        ),
        (409, worker(TEXT), "k"),
        (204, worker("Stream-Closed: true\r\n"), ""),
    ]
}

/// An application may run the router in a set of local tasks, where no task may block its thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_task_appends_through_the_router() {
    let ds = Ds::open();
    let appends = async move {
        is(ds.put("/ds/a", &[super::TEXT], "x").await, 201);
        // Behind a few appends without others it would be best to write on this thread.
        for _ in 0..20 {
            is(ds.post("/ds/a", &[super::TEXT], "y").await, 204);
        }
        assert_eq!(ds.text("/ds/a").await, format!("x{}", "y".repeat(20)));
    };
    let local = tokio::task::LocalSet::new();
    local.run_until(local.spawn_local(appends)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_is_answered_the_same_with_and_without_the_router() {
    let folder = tempfile::tempdir().unwrap();
    let address = serve(SessionLog::open(folder.path()).unwrap()).await;
    for (status, headers, body) in cases() {
        let mut answers = Vec::new();
        for path in PATHS {
            let answer = if status == 201 {
                call(&address, "PUT", path, &headers, "").await
            } else {
                call(&address, "POST", path, &headers, body).await
            };
            let begin = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&begin), "{path} {headers}: {answer}");
            answers.push(answer.replace("%72", "p"));
        }
        assert_eq!(answers[0], answers[1], "{headers}");
    }
    for path in PATHS {
        let read = call(&address, "GET", path, WORKER, "").await;
        assert!(read.ends_with("\n\nabdfj"), "{read}");
    }
}
