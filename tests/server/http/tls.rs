//! TLS of a server in this process: its protocols, and a stream over it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sessionlog::http::{Config, Tls};
use sessionlog::{Batch, NewEvent};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::here::{Here, Sent, Talk};
use crate::process::eventually;
use crate::support::{KEY, said};

fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tls");
    folder.join(name)
}

fn first() -> Tls {
    Tls::from_pem(file("first.pem"), file("first.key.pem")).unwrap()
}

/// A client of a connection that offers these protocols.
fn client(socket: TcpStream, protocols: &[&str]) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(file("first.pem")).unwrap();
    roots.add(root).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    let name = "localhost".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, socket)
}

#[test]
fn the_one_protocol_above_tls_is_http_1() {
    let server = Here::serve(Config::with_api_key(KEY).tls(first()));
    let health = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for protocols in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let mut client = client(server.connect(), protocols);
        client.write_all(health).unwrap();
        let mut answer = String::new();
        // Its end is announced, so a client knows that nothing was cut off.
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let chosen = client.conn.alpn_protocol();
        assert_eq!(chosen.is_some(), !protocols.is_empty());
        assert!(chosen.is_none_or(|chosen| chosen == b"http/1.1"));
    }
    let mut only_h2 = client(server.connect(), &["h2"]);
    assert!(only_h2.write_all(health).is_err());
}

#[test]
fn a_stream_over_tls_ends_with_the_server_and_a_slow_reader_is_let_go() {
    let config = Config::with_api_key(KEY)
        .tls(first())
        .stall_wait(Duration::from_millis(500))
        .heartbeat(Duration::from_millis(50));
    let mut server = Here::serve(config);
    let session = "s".parse().unwrap();
    let append = || {
        let event = NewEvent::new("note", vec![b'0'; 512 * 1024]);
        server
            .log
            .append(&session, Batch::new().event(event))
            .unwrap()
    };
    append();
    let open = || {
        let mut client = client(server.connect(), &[]);
        let head = format!(
            "GET /v1/sessions/s/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        );
        client.write_all(head.as_bytes()).unwrap();
        client
    };
    let stuck = open();
    eventually("the stream is open", || server.log.stats().streams == 1);
    // More than the sockets' buffers take.
    for _ in 0..40 {
        append();
    }
    eventually("the stream is freed", || server.log.stats().streams == 0);
    drop(stuck);
    let mut reader = open();
    let mut begun = vec![0; 1024 * 1024];
    reader.read_exact(&mut begun).unwrap();
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest.len())
    });
    eventually("the stream is open", || server.log.stats().streams == 1);
    server.stop();
    assert!(rest.join().unwrap().unwrap() > 0);
}

#[test]
fn appends_over_tls_are_answered_until_the_connection_ends_with_a_notice() {
    let config = Config::with_api_key(KEY)
        .tls(first())
        .head_wait(Duration::from_secs(2));
    let server = Here::serve(config);
    let mut talk = Talk::over(client(server.connect(), &[]));
    for seq in 1..=20 {
        let sent = Sent::append("s").body(said(&"x".repeat(seq * 500)));
        talk.send(sent.head());
        talk.send(said(&"x".repeat(seq * 500)));
        let told = talk.next().unwrap();
        assert_eq!((told.status, told.is_by_loop()), (200, true));
        assert_eq!(told.field("etag"), Some(&*format!("\"{seq}\"")));
    }
    // An end without a notice would be an error.
    assert_eq!(talk.next(), None);
}
