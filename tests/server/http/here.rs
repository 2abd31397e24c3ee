//! A server in this process, over real sockets.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use sessionlog::http::{self, Config};
use sessionlog::{Options, SessionLog};
use tokio::runtime::Runtime;

use crate::support::{KEY, said};

/// A server, and the signal that stops it.
pub(crate) struct Here {
    pub(crate) log: SessionLog,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    stopped: Mutex<mpsc::Receiver<()>>,
    leave: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Here {
    /// Serves a log of its own.
    pub(crate) fn serve(config: Config) -> Self {
        Self::on(Runtime::new().unwrap(), config, Options::new())
    }

    /// Does the same on this runtime, with a log of these options.
    pub(crate) fn on(runtime: Runtime, config: Config, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = options.open(folder.path()).unwrap();
        Self::of(runtime, config, log, folder)
    }

    /// Serves a log. `kept` is dropped after the server.
    pub(crate) fn of(
        runtime: Runtime,
        config: Config,
        log: SessionLog,
        kept: impl Send + 'static,
    ) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (bound, address) = mpsc::channel();
        let (over, is_over) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let served = log.clone();
        let thread = thread::spawn(move || {
            let _kept = kept;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                http::serve(listener, served, config, async { drop(stopped.await) })
                    .await
                    .unwrap();
                over.send(()).unwrap();
                // The runtime keeps running, as that of an application does.
                let _left = left.recv();
            });
        });
        let (address, stop, leave) = (address.recv().unwrap(), Some(stop), Some(leave));
        Self {
            log,
            address,
            stop,
            stopped: Mutex::new(is_over),
            leave,
            thread: Some(thread),
        }
    }

    /// Lets the server stop, and waits until it has.
    pub(crate) fn stop(&mut self) {
        self.begin_to_stop();
        self.stopped.lock().unwrap().recv().unwrap();
    }

    /// Lets the server stop, and does not wait.
    pub(crate) fn begin_to_stop(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) fn connect(&self) -> TcpStream {
        self.try_connect().unwrap()
    }

    pub(crate) fn try_connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(socket)
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        drop((self.stop.take(), self.leave.take()));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A connection to a server, and its answers as they come.
pub(crate) struct Talk<S = TcpStream>(BufReader<S>);

/// An answer as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) status: u16,
    /// In the order in which they came, with names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Here {
    pub(crate) fn talk(&self) -> Talk {
        Talk::over(self.connect())
    }

    /// Sends this and [`LAST`] on a connection of its own, and returns every answer.
    pub(crate) fn told(&self, sent: impl AsRef<[u8]>) -> Vec<Told> {
        let mut talk = self.talk();
        talk.send([sent.as_ref(), LAST.as_bytes()].concat());
        talk.rest()
    }
}

impl<S: Read + Write> Talk<S> {
    pub(crate) fn over(socket: S) -> Self {
        Self(BufReader::new(socket))
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())?;
        self.0.get_mut().flush()
    }

    /// The next answer; `None` if the connection ends before its first byte.
    pub(crate) fn next(&mut self) -> Option<Told> {
        let line = self.line()?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .or(line.strip_prefix("HTTP/1.0 "));
        let status = status.unwrap_or_else(|| panic!("no answer: {line:?}"));
        let status = status[..3].parse().unwrap();
        let mut fields = Vec::new();
        loop {
            let line = self.line().expect("the head goes on");
            let Some((name, value)) = line.split_once(": ") else {
                assert_eq!(line, "");
                break;
            };
            fields.push((name.to_owned(), value.to_owned()));
        }
        let mut told = Told {
            status,
            fields,
            body: String::new(),
        };
        let length = told
            .field("content-length")
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        told.body = String::from_utf8(body).unwrap();
        Some(told)
    }

    /// The next line. A connection may be reset where bytes of its client were not read.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.strip_suffix("\r\n").expect("lines end so").to_owned()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    pub(crate) fn rest(&mut self) -> Vec<Told> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Told {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(given, _)| given == name);
        let value = values.next().map(|(_, value)| &**value);
        assert!(values.next().is_none(), "{name} comes twice: {self:?}");
        value
    }

    /// Whether the connection's own loop wrote it, which puts the field of a stored append behind
    /// those that every answer has.
    pub(crate) fn is_by_loop(&self) -> bool {
        let place = |name: &str| self.fields.iter().position(|(given, _)| given == name);
        let own = place("etag").or(place("idempotent-replayed"));
        self.status == 200 && own > place("x-content-type-options")
    }
}

/// A request as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    line: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Sent {
    /// An append of a message by a client.
    pub(crate) fn append(session: &str) -> Self {
        let bearer = format!("Bearer {KEY}");
        let fields = [
            ("Host", "x"),
            ("Authorization", &*bearer),
            ("Content-Type", "application/json"),
        ];
        Self {
            line: format!("POST /v1/sessions/{session}/events HTTP/1.1"),
            fields: fields
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            body: said("x").into_bytes(),
        }
    }

    /// A good append, whose answer tells who answers on its connection.
    pub(crate) fn probe() -> Self {
        Self::append("probe").set("Host", "localhost")
    }

    pub(crate) fn line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.line);
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.set("Authorization", &format!("Bearer {key}"))
    }

    pub(crate) fn set(self, name: &str, value: &str) -> Self {
        self.without(name).add(name, value)
    }

    pub(crate) fn add(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(given, _)| given != name);
        self
    }

    /// The head, with the length of the body unless another one or another framing is set.
    pub(crate) fn head(&self) -> String {
        let mut head = format!("{}\r\n", self.line);
        for (name, value) in &self.fields {
            head.extend([name, ": ", value, "\r\n"]);
        }
        let framed = ["Content-Length", "Transfer-Encoding"];
        if !self
            .fields
            .iter()
            .any(|(name, _)| framed.contains(&&**name))
        {
            let length = self.body.len().to_string();
            head.extend(["Content-Length: ", &length, "\r\n"]);
        }
        head + "\r\n"
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.head().as_bytes(), &self.body].concat()
    }
}

/// A request that is no append.
pub(crate) const GET: &str = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";

/// One that ends its connection.
pub(crate) const LAST: &str = "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
