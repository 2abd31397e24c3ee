//! What a server tells a supervisor, and the socket that it gets from one.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{KEY, Place, Server, eventually, refused};

/// The socket of a supervisor.
struct Supervisor(UnixDatagram);

impl Supervisor {
    fn at(place: &Place) -> Self {
        let socket = UnixDatagram::bind(place.path("notify")).unwrap();
        let wait = Some(Duration::from_secs(30));
        socket.set_read_timeout(wait).unwrap();
        Self(socket)
    }

    /// Forgets what it was told so far.
    fn forget(&self) {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 4096]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
    }

    /// Waits until it is told this.
    fn told(&self, what: &str) -> String {
        loop {
            let mut buf = [0; 4096];
            let length = self.0.recv(&mut buf).expect(what);
            let told = String::from_utf8_lossy(&buf[..length]).into_owned();
            if told.lines().any(|line| line == what) {
                return told;
            }
        }
    }
}

#[test]
fn a_supervisor_hears_of_the_start_the_reload_and_the_stop() {
    let place = Place::new();
    let supervisor = Supervisor::at(&place);
    let mut command = place.with_key();
    let mut server = Server::start(command.env("NOTIFY_SOCKET", place.path("notify")));
    let told = supervisor.told("READY=1");
    assert!(
        told.contains(&format!("STATUS=listening on {}", server.url)),
        "{told}"
    );
    server.signal("HUP");
    assert!(supervisor.told("RELOADING=1").contains("MONOTONIC_USEC="));
    supervisor.told("READY=1");
    server.signal("TERM");
    supervisor.told("STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn the_watchdog_is_pinged_for_as_long_as_the_log_is_in_service() {
    let place = Place::new();
    let supervisor = Supervisor::at(&place);
    let mut command = place.with_key();
    command
        .env("NOTIFY_SOCKET", place.path("notify"))
        .env("WATCHDOG_USEC", "100000");
    let server = Server::start(&mut command);
    for _ in 0..3 {
        supervisor.told("WATCHDOG=1");
    }
    fs::rename(place.path("data"), place.path("moved")).unwrap();
    eventually("the log is out of service", || {
        server.post("s");
        server.status(KEY, "/healthz") == 503
    });
    eventually("no ping comes", || {
        server.log().contains("no ping for the watchdog")
    });
}

/// A restart makes no room on a disk, and ends the reads that a full one still serves.
#[test]
fn the_watchdog_is_pinged_while_the_log_waits_for_the_system() {
    let place = Place::new();
    let supervisor = Supervisor::at(&place);
    let serve = place.with_key();
    let mut command = Command::new("sh");
    // No file grows beyond 6 MiB, so the journal gets no second one, of 8 MiB.
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 12288; exec \"$@\"", "sh"])
        .arg(serve.get_program())
        .args(serve.get_args())
        .env("SESSIONLOG_API_KEY", KEY)
        .env("SESSIONLOG_DATA", place.path("data"))
        .env("SESSIONLOG_LISTEN", "127.0.0.1:0")
        .env("NOTIFY_SOCKET", place.path("notify"))
        .env("WATCHDOG_USEC", "100000");
    let server = Server::start(&mut command);
    eventually("the log is not ready", || {
        server.post("s");
        server.status(KEY, "/healthz") == 503
    });
    assert_eq!(server.status(KEY, "/livez"), 200);
    supervisor.forget();
    for _ in 0..3 {
        supervisor.told("WATCHDOG=1");
    }
    assert!(!server.log().contains("no ping"), "{}", server.log());
}

/// A server whose socket a supervisor opened, with the variables of the protocol.
fn activated(place: &Place, listener: TcpListener, sockets: &str) -> Command {
    let serve = place.with_key();
    let mut command = Command::new("sh");
    // The protocol passes sockets from the number 3 on.
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null", "sh"])
        .arg(serve.get_program())
        .args(serve.get_args())
        .env("SESSIONLOG_API_KEY", KEY)
        .env("SESSIONLOG_DATA", place.path("data"))
        .env("LISTEN_FDS", sockets)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::from(OwnedFd::from(listener)));
    command
}

#[test]
fn a_socket_that_is_passed_is_listened_on() {
    let place = Place::new();
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(any).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::start(&mut activated(&place, listener, "1"));
        assert_eq!(server.address(), address);
        assert_eq!(server.post("s"), 200);
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let said = refused(&mut activated(&place, listener, "2"));
    assert!(said.contains("one ListenStream"), "{said}");
}

#[test]
fn an_open_server_takes_no_socket_that_others_reach() {
    let place = Place::new();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let mut command = activated(&place, listener, "1");
    command
        .env_remove("SESSIONLOG_API_KEY")
        .env("SESSIONLOG_OPEN", "true");
    let said = refused(&mut command);
    assert!(said.contains("0.0.0.0 is not one"), "{said}");
}
