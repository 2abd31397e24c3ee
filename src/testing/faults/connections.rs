//! Appends over HTTP on a disk that is slow: which thread writes them, and what goes on meanwhile.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::*;
use crate::http::{ALONE_MIN, Config, serve};
use crate::model::USER_MESSAGE;
use crate::sync::Threads;

const RUNTIME: &str = "of the runtime";

/// A server, which stops when this value is dropped.
struct Server {
    address: SocketAddr,
    _running: oneshot::Sender<()>,
}

impl Server {
    fn start(runtime: Runtime, log: SessionLog) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (running, stopped) = oneshot::channel::<()>();
        let served = async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let stopped = async { drop(stopped.await) };
            serve(listener, log, Config::open(), stopped).await.unwrap();
        };
        let thread = Threads::new().name(RUNTIME.to_owned());
        let _ends_by_itself = thread.spawn(move || runtime.block_on(served)).unwrap();
        Self {
            address,
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
        let body = format!(r#"{{"events":[{{"type":"{USER_MESSAGE}","content":[]}}]}}"#);
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
    for _ in 1..ALONE_MIN {
        assert_eq!(status(server.append()).unwrap(), OK);
    }
    // The write that is held back must be the one of the next append.
    eventually("a witness was written", || log.is_at_rest());
    scene.plan.hold();
    let lone = server.append();
    eventually("it is being written", || {
        scene.plan.under_way.load(Ordering::SeqCst) == 1
    });
    let writer = scene.plan.writer.lock().clone();
    let others = [(); 3].map(|()| server.append());
    let health = status(server.send("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"));
    // Before anything can fail, so that the server ends in any case.
    scene.plan.release();
    assert_eq!(health.unwrap(), OK, "another request waits for the disk");
    for append in [lone].into_iter().chain(others) {
        assert_eq!(status(append).unwrap(), OK);
    }
    assert_eq!(scene.events(&log).len() as u64, ALONE_MIN + 3);
    log.close().unwrap();
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
