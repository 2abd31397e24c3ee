//! A proxy before the server, which loses what a network loses.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A proxy on a port of its own. It ends with the process.
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    server: String,
    state: Mutex<State>,
    changed: Condvar,
    /// The connections that were refused or cut.
    lost: AtomicUsize,
}

#[derive(Default)]
struct State {
    fault: Fault,
    connections: Vec<TcpStream>,
}

/// What befalls connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Fault {
    #[default]
    None,
    /// All are cut, and new ones are refused.
    Away,
    /// Nothing gets through, and nothing is cut.
    Silent,
    /// The first request with this text reaches the server. Once that has had the time to carry it
    /// out, the client gets an error that ends its connection instead of an answer.
    Verdict(&'static str),
    /// Requests with this text do not get through.
    Lost(&'static str),
}

impl Proxy {
    /// A proxy to the first host of a URL.
    pub(super) fn new(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            server: host(url).to_owned(),
            ..Shared::default()
        });
        let address = listener.local_addr().unwrap();
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&accepting);
                thread::spawn(move || drop(shared.serve(&client)));
            }
        });
        Self { address, shared }
    }

    /// The URL with this proxy in the place of its host.
    pub(super) fn url(&self, url: &str) -> String {
        url.replacen(host(url), &self.address.to_string(), 1)
    }

    pub(super) fn set(&self, fault: Fault) {
        let mut state = self.shared.state.lock().unwrap();
        if fault == Fault::Away {
            for connection in state.connections.drain(..) {
                drop(connection.shutdown(Shutdown::Both));
            }
        }
        state.fault = fault;
        self.shared.changed.notify_all();
    }

    /// The connections that came to grief.
    pub(super) fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }
}

/// The host and port of a URL.
fn host(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap();
    let rest = rest.split_once('@').map_or(rest, |(_, rest)| rest);
    rest.split(['/', ',', '?']).next().unwrap()
}

impl Shared {
    fn serve(self: Arc<Self>, client: &TcpStream) -> std::io::Result<()> {
        if self.state.lock().unwrap().fault == Fault::Away {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return client.shutdown(Shutdown::Both);
        }
        let server = TcpStream::connect(&self.server)?;
        let ends = [client.try_clone()?, server.try_clone()?];
        self.state.lock().unwrap().connections.extend(ends);
        let is_mute = Arc::new(AtomicBool::new(false));
        let back = {
            let (shared, is_mute) = (Arc::clone(&self), Arc::clone(&is_mute));
            let (from, to) = (server.try_clone()?, client.try_clone()?);
            thread::spawn(move || drop(shared.pass(&from, &to, &is_mute, |_, _| false)))
        };
        let mute = Arc::clone(&is_mute);
        let forth = self.pass(client, &server, &AtomicBool::new(false), |fault, bytes| {
            let Fault::Verdict(text) = fault else {
                return false;
            };
            let is_it = contains(bytes, text);
            mute.fetch_or(is_it, Ordering::SeqCst);
            is_it
        });
        if is_mute.load(Ordering::SeqCst) {
            // The answers that are lost show that the server is done.
            thread::sleep(Duration::from_millis(700));
            let mut client = client;
            client.write_all(&fatal())?;
            self.lost.fetch_add(1, Ordering::SeqCst);
        }
        drop(client.shutdown(Shutdown::Both));
        drop(server.shutdown(Shutdown::Both));
        drop(back.join());
        forth
    }

    /// Passes on what comes, until the end or until `is_last` says so of what was passed on.
    fn pass(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        is_mute: &AtomicBool,
        is_last: impl Fn(&Fault, &[u8]) -> bool,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from.read(&mut buffer)?;
            let bytes = &buffer[..count];
            let mut state = self.state.lock().unwrap();
            while state.fault == Fault::Silent {
                state = self.changed.wait(state).unwrap();
            }
            let is_over = count == 0 || is_last(&state.fault, bytes);
            if is_over && count > 0 {
                state.fault = Fault::None;
            }
            let vanishes = matches!(state.fault, Fault::Lost(text) if contains(bytes, text));
            drop(state);
            if !vanishes && !is_mute.load(Ordering::SeqCst) {
                to.write_all(bytes)?;
            }
            if is_over {
                return Ok(());
            }
        }
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// An error that ends a connection, as the server would send it.
fn fatal() -> Vec<u8> {
    let fields = b"SFATAL\0VFATAL\0C08P01\0Mserver conn crashed?\0\0";
    let length = u32::try_from(fields.len() + 4).unwrap();
    let mut message = vec![b'E'];
    message.extend(length.to_be_bytes());
    message.extend(fields);
    message
}
