//! TLS, with the certificates of the tests.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::{fs, thread};

use tokio_rustls::rustls::crypto::ring::default_provider;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::{KEY, Place, Server, certificate, eventually, refused};

/// A server that uses copies of the first certificate and its key.
fn start(place: &Place) -> Server {
    install(place, "first");
    Server::start(&mut with_tls(
        place.with_key(),
        &place.path("cert"),
        &place.path("key"),
    ))
}

fn install(place: &Place, name: &str) {
    fs::copy(certificate(&format!("{name}.pem")), place.path("cert")).unwrap();
    fs::copy(certificate(&format!("{name}.key.pem")), place.path("key")).unwrap();
}

fn with_tls(mut command: Command, cert: &Path, key: &Path) -> Command {
    command
        .arg("--tls-cert")
        .arg(cert)
        .arg("--tls-key")
        .arg(key);
    command
}

/// A client that trusts one certificate alone.
fn trusting(name: &str) -> ureq::Agent {
    let pem = fs::read(certificate(&format!("{name}.pem"))).unwrap();
    let root = Certificate::from_pem(&pem).unwrap();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[root]))
        .unversioned_rustls_crypto_provider(Arc::new(default_provider()));
    let config = ureq::Agent::config_builder().tls_config(tls.build());
    config.http_status_as_error(false).build().into()
}

fn answers(agent: &ureq::Agent, server: &Server) -> bool {
    let call = agent.get(format!("{}/v1/sessions", server.url));
    let call = call.header("authorization", format!("Bearer {KEY}"));
    call.call().is_ok_and(|answer| answer.status() == 200)
}

#[test]
fn a_renewed_certificate_is_used_from_the_signal_on() {
    let place = Place::new();
    let server = start(&place);
    assert!(server.url.starts_with("https://"), "{}", server.url);
    let (of_first, of_second) = (trusting("first"), trusting("second"));
    assert!(answers(&of_first, &server) && !answers(&of_second, &server));
    fs::write(place.path("key"), "no key").unwrap();
    server.signal("HUP");
    eventually("it keeps the certificate in use", || {
        server.log().contains("was not read again")
    });
    assert!(answers(&trusting("first"), &server));
    install(&place, "second");
    server.signal("HUP");
    eventually("it uses the new one", || {
        answers(&trusting("second"), &server)
    });
    assert!(!answers(&trusting("first"), &server));
    // The pool of this client holds its connection from before.
    assert!(
        answers(&of_first, &server),
        "the open connection was dropped"
    );
}

#[test]
fn a_client_without_tls_is_told_so_and_let_go() {
    let place = Place::new();
    let server = start(&place);
    let mut plain = server.connect();
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("https:// in the URL."));
}

/// Whether the server closes a connection on which nothing more is sent.
fn is_closed(mut socket: TcpStream) -> bool {
    matches!(socket.read(&mut [0; 64]), Ok(0))
}

#[test]
fn a_handshake_that_takes_too_long_holds_nobody_up() {
    let place = Place::new();
    install(&place, "first");
    let mut command = with_tls(place.with_key(), &place.path("cert"), &place.path("key"));
    let server = Server::start(command.args(["--head-wait", "2s", "--connections-max", "3"]));
    let (silent, mut begun) = (server.connect(), server.connect());
    begun.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    assert!(
        answers(&trusting("first"), &server),
        "they take two of three places"
    );
    let full = server.connect();
    thread::scope(|scope| {
        let closed = [silent, begun].map(|socket| scope.spawn(|| is_closed(socket)));
        assert!(closed.into_iter().all(|closed| closed.join().unwrap()));
    });
    drop(full);
    assert!(answers(&trusting("first"), &server));
}

#[test]
fn a_stop_ends_a_handshake_in_progress() {
    let place = Place::new();
    let mut server = start(&place);
    let begun = server.connect();
    assert!(answers(&trusting("first"), &server));
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(is_closed(begun));
}

#[test]
fn files_that_are_no_pair_are_refused_by_their_names() {
    let place = Place::new();
    let text = place.file("text", "no certificate");
    let cases = [
        (
            certificate("first.pem"),
            certificate("second.key.pem"),
            "second.key.pem",
        ),
        (
            certificate("first.key.pem"),
            certificate("first.key.pem"),
            "no certificate",
        ),
        (text.clone(), certificate("first.key.pem"), "text"),
        (certificate("first.pem"), text, "text"),
        (
            certificate("missing.pem"),
            certificate("first.key.pem"),
            "cannot read",
        ),
    ];
    for (cert, key, named) in cases {
        let said = refused(&mut with_tls(place.with_key(), &cert, &key));
        assert!(
            said.contains(named) && said.contains("--tls-cert"),
            "{said}"
        );
    }
    assert!(!place.path("data").exists());
}
