//! Appends over HTTP on a disk that is slow: which thread writes them, and what goes on meanwhile.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::*;
use crate::http::{Config, serve};

const RUNTIME: &str = "of the runtime";

/// A server, which stops when this value is dropped.
struct Server {
    address: SocketAddr,
    _running: oneshot::Sender<()>,
}

impl Server {
    fn start(runtime: Runtime, log: SessionLog) -> Self {
        let (bound, address) = mpsc::channel();
        let (running, stopped) = oneshot::channel::<()>();
        let served = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound.send(listener.local_addr().unwrap()).unwrap();
            let stopped = async { drop(stopped.await) };
            serve(listener, log, Config::open(), stopped).await.unwrap();
        };
        let thread = std::thread::Builder::new().name(RUNTIME.to_owned());
        let _ends_by_itself = thread.spawn(move || runtime.block_on(served)).unwrap();
        Self {
            address: address.recv().unwrap(),
            _running: running,
        }
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    fn append(&self) -> TcpStream {
        let body = r#"{"events":[{"type":"user.message","content":[]}]}"#;
        self.send(&format!(
            "POST /v1/sessions/s/events HTTP/1.1\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

/// The status line of an answer, or why there is none.
fn status(mut socket: TcpStream) -> std::io::Result<String> {
    let mut status = vec![0; "HTTP/1.1 200".len()];
    socket.read_exact(&mut status)?;
    Ok(String::from_utf8(status).unwrap())
}

const OK: &str = "HTTP/1.1 200";

/// Appends on a runtime, and returns the name of the thread that wrote the lone one.
fn writer_on(runtime: Runtime) -> String {
    let (scene, log) = Scene::new();
    let server = Server::start(runtime, log.clone());
    assert!(!log.has_lone_caller(), "nobody has called");
    let written = scene.plan.passed.load(Ordering::SeqCst);
    assert_eq!(status(server.append()).unwrap(), OK);
    // The write that is held back must be the one of the next append.
    eventually("a witness was written", || {
        scene.plan.passed.load(Ordering::SeqCst) >= written + 2
    });
    eventually("the caller is alone", || log.has_lone_caller());
    scene.plan.hold();
    let lone = server.append();
    eventually("it is being written", || {
        scene.plan.under_way.load(Ordering::SeqCst) == 1
    });
    let alone_meanwhile = log.has_lone_caller();
    let writer = scene.plan.writer.lock().clone();
    let others = [(); 3].map(|()| server.append());
    let health = status(server.send("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"));
    // Before anything can fail, so that the server ends in any case.
    scene.plan.release();
    assert_eq!(health.unwrap(), OK, "another request waits for the disk");
    assert!(!alone_meanwhile);
    for append in [lone].into_iter().chain(others) {
        assert_eq!(status(append).unwrap(), OK);
    }
    assert_eq!(scene.events(&log).len(), 5);
    log.close().unwrap();
    assert!(!log.has_lone_caller(), "a closed log has no caller");
    writer.unwrap()
}

#[test]
fn a_lone_caller_over_http_writes_on_its_own_thread_and_others_go_on() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(RUNTIME)
        .enable_all()
        .build();
    assert_eq!(writer_on(runtime.unwrap()), RUNTIME);
}

#[test]
fn a_runtime_of_one_thread_is_not_blocked_by_a_lone_caller() {
    let runtime = Builder::new_current_thread().enable_all().build();
    assert_ne!(writer_on(runtime.unwrap()), RUNTIME);
}
