//! The export of spans, to a collector that is a socket of the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{KEY, Place, Server, agent};

/// An export that a collector got: its head and its body.
struct Got {
    head: String,
    body: Vec<u8>,
}

/// Answers each export with success, and hands it over.
fn collector() -> (String, mpsc::Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, got) = mpsc::channel();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let send = send.clone();
            thread::spawn(move || {
                while let Some(got) = receive(socket.as_ref().unwrap()) {
                    send.send(got).unwrap();
                }
            });
        }
    });
    (format!("http://{address}"), got)
}

fn receive(mut socket: &TcpStream) -> Option<Got> {
    let mut reader = BufReader::new(socket);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    socket
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .ok()?;
    Some(Got { head, body })
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_collector_gets_the_span_of_a_request_in_the_trace_of_its_client() {
    let (endpoint, got) = collector();
    let place = Place::new();
    let mut command = place.with_key();
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=t9")
        .env("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .env("RUST_LOG", "error");
    let mut server = Server::start(&mut command);
    let (trace, parent) = (
        0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128,
        0x00f0_67aa_0ba9_02b7_u64,
    );
    let send = |flags: &str, trace: u128| {
        let call = agent().get(format!("{}/v1/sessions", server.url));
        let call = call
            .header("authorization", format!("Bearer {KEY}"))
            .header(
                "traceparent",
                format!("00-{trace:032x}-{parent:016x}-{flags}"),
            )
            .header("tracestate", "vendor=value");
        assert_eq!(call.call().unwrap().status(), 200);
    };
    send("01", trace);
    send("00", !trace);
    server.signal("TERM");
    assert!(server.wait().success(), "{}", server.log());
    // The spans wait for an hour, so the stop has sent them.
    let Got { head, body } = got.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(head.starts_with("post /v1/traces "), "{head}");
    assert!(head.contains("x-tenant: t9"), "{head}");
    for part in [
        &trace.to_be_bytes()[..],
        &parent.to_be_bytes(),
        b"vendor=value",
        b"GET /v1/sessions",
        b"sessionlog",
    ] {
        assert!(holds(&body, part), "{}", String::from_utf8_lossy(part));
    }
    assert!(
        !holds(&body, &(!trace).to_be_bytes()),
        "its client did not sample it"
    );
    assert!(!holds(&body, KEY.as_bytes()));
}

#[test]
fn without_an_endpoint_nothing_is_exported() {
    let place = Place::new();
    let mut server = Server::start(&mut place.with_key());
    assert_eq!(server.post("s"), 200);
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!server.log().contains("opentelemetry"), "{}", server.log());
}
