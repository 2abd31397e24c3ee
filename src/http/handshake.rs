//! The TLS handshakes of a server's connections. Each has a time limit, and holds up no other
//! connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::http::config::{Config, Stopper};
use crate::http::pace::Paced;

/// The first byte of a TLS connection: a record of the handshake.
const HANDSHAKE: u8 = 0x16;

/// The answer to a client that speaks HTTP where TLS is spoken.
const NO_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 46\r\n\
    Connection: close\r\n\r\nThis port speaks TLS: use https:// in the URL.";

/// The bytes of a request that is refused so. They are read, because closing a connection with
/// unread bytes would break off the answer.
const REFUSED_BYTES_MAX: u64 = 64 * 1024;

/// The handshakes of a server's connections.
#[derive(Clone)]
pub(super) struct Handshakes {
    acceptor: TlsAcceptor,
    wait: Duration,
    stopper: Stopper,
}

impl Handshakes {
    /// `None` for a server without TLS.
    pub(super) fn of(config: &Config) -> Option<Self> {
        let tls = config.tls.as_ref()?;
        Some(Self {
            acceptor: tls.acceptor(),
            wait: config.head_wait,
            stopper: config.stopper(),
        })
    }

    /// Makes the handshake with a client. `None` when it fails or takes too long, and when the
    /// server stops.
    pub(super) async fn shaken(&self, socket: Paced) -> Option<TlsStream<Paced>> {
        let shaken = tokio::select! {
            shaken = timeout(self.wait, self.shake(socket)) => shaken,
            () = self.stopper.stopped() => return None,
        };
        let error = match shaken {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => error,
            Err(_late) => io::ErrorKind::TimedOut.into(),
        };
        tracing::debug!(target: "sessionlog::http", %error, "a TLS handshake failed");
        None
    }

    async fn shake(&self, mut socket: Paced) -> io::Result<TlsStream<Paced>> {
        let mut first = [0; 1];
        let [begins_with] = match socket.peek(&mut first).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => first,
        };
        if begins_with != HANDSHAKE {
            refuse(&mut socket).await?;
            return Err(io::Error::other("the client does not speak TLS"));
        }
        self.acceptor.accept(socket).await
    }
}

/// Answers a client that does not speak TLS, and reads what it sends until it leaves.
async fn refuse(socket: &mut Paced) -> io::Result<()> {
    socket.write_all(NO_TLS).await?;
    socket.shutdown().await?;
    let mut rest = socket.take(REFUSED_BYTES_MAX);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}
