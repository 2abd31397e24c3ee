//! A connection whose client must take its answers at a minimum rate. A slower client would hold
//! the memory of its answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// The time over which the rate is measured.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

pub(super) struct Paced {
    socket: TcpStream,
    /// The fewest bytes to take in a window. Without a window no rate is required.
    bytes_min: usize,
    window: Option<Window>,
}

/// A measurement. It begins when the client leaves data waiting and ends when it has taken all.
struct Window {
    ends: Pin<Box<Sleep>>,
    taken: usize,
}

impl Paced {
    /// Requires at least `rate_min` bytes per second.
    pub(super) fn new(socket: TcpStream, rate_min: usize) -> Self {
        let bytes_min =
            rate_min.saturating_mul(usize::try_from(WINDOW.as_secs()).unwrap_or(usize::MAX));
        Self {
            socket,
            bytes_min,
            window: None,
        }
    }

    /// Returns the first bytes that the client sent, and leaves them to be read.
    #[cfg(feature = "tls")]
    pub(super) async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.socket.peek(buf).await
    }

    /// Counts the result of a write of `offered` bytes. Fails at the end of a window in which too
    /// few bytes were taken.
    fn watch(
        &mut self,
        written: Poll<io::Result<usize>>,
        offered: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(taken)) if *taken == offered => self.window = None,
            Poll::Ready(Ok(taken)) => {
                let new = || Window {
                    ends: Box::pin(sleep(WINDOW)),
                    taken: 0,
                };
                self.window.get_or_insert_with(new).taken += taken;
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => ready!(self.wait(context))?,
        }
        written
    }

    /// Stays pending until the client proves too slow.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let window = self.window.get_or_insert_with(|| Window {
            ends: Box::pin(sleep(WINDOW)),
            taken: 0,
        });
        while window.ends.as_mut().poll(context).is_ready() {
            if window.taken < self.bytes_min {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client takes its answer too slowly",
                )));
            }
            window.taken = 0;
            window.ends.as_mut().reset(Instant::now() + WINDOW);
        }
        Poll::Pending
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buf)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.watch(written, bytes.len(), context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, parts);
        self.watch(written, parts.iter().map(|part| part.len()).sum(), context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Paced, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (Paced::new(accepted.unwrap().0, 1024), client.unwrap())
    }

    /// The paused clock of the runtime jumps ahead when every task waits.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off_and_one_that_is_only_silent_is_not() {
        let (mut paced, mut client) = pair().await;
        paced
            .write_all(b"all of it is taken by the system")
            .await
            .unwrap();
        tokio::time::advance(WINDOW * 10).await;
        paced.write_all(b"and this").await.unwrap();
        let endless = vec![0; 1024 * 1024];
        let cut_off = async { while paced.write_all(&endless).await.is_ok() {} };
        cut_off.await;
        let mut buf = vec![0; 1024 * 1024];
        assert!(
            client.read(&mut buf).await.unwrap() > 0,
            "what was written before is there"
        );
    }
}
