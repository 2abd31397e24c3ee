//! A server around the router. It keeps the limits that only a server can keep: on the time of a
//! request's head, on connections, and on clients that take no data.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::http::config::Config;
use crate::http::direct::{self, Appends};
#[cfg(feature = "tls")]
use crate::http::handshake::Handshakes;
use crate::http::pace::Paced;
use crate::http::rewound::Rewound;
use crate::http::router_with;
use crate::http::service::Service;
use crate::log::SessionLog;

/// How long to wait after a failed accept. Without descriptors or memory it would fail again at
/// once.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Serves the [`router`](crate::http::router()) over HTTP/1.1 until `until` resolves.
///
/// Then it accepts nothing new, ends streams, and lets running requests finish for at most
/// [`drain_wait`](Config::drain_wait). Requests that take longer are cut off. A client without an
/// answer does not know whether its batch was stored. The log stays open, for the caller to close.
/// An append that the disk holds up cannot be cut off while it is the only one under way.
///
/// Dropping the future instead stops accepting and closes idle connections, and leaves streams
/// open.
///
/// # Errors
///
/// When the listener has no address.
pub async fn serve(
    listener: TcpListener,
    log: SessionLog,
    config: Config,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    let service = Arc::new(Service::new(log, config));
    let router = router_with(Arc::clone(&service), |routes| routes);
    serve_router(listener, service, router, None, until).await
}

/// Serves a router that was made of this service, and appends of another protocol that need none.
pub(crate) async fn serve_router(
    listener: TcpListener,
    service: Arc<Service>,
    router: Router,
    appends: Option<Arc<dyn Appends>>,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    let config = &service.config;
    tracing::info!(target: "sessionlog::http", address = %listener.local_addr()?, "listening");
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.head_wait);
    http.max_buf_size(
        config
            .head_bytes_max
            .saturating_add(config.url_bytes_max)
            .max(64 * 1024),
    );
    let places = Arc::new(Semaphore::new(
        config.connections_max.min(Semaphore::MAX_PERMITS),
    ));
    let (stopper, stall_wait, drain_wait) =
        (config.stopper(), config.stall_wait, config.drain_wait);
    let server = Server {
        http,
        #[cfg(feature = "tls")]
        tls: Handshakes::of(&service.config),
        router: TowerToHyperService::new(router),
        service,
        appends,
    };
    let graceful = GracefulShutdown::new();
    let ending = watch::Sender::new(());
    let cut_off = watch::Sender::new(());
    let mut until = pin!(until);
    loop {
        let accepted = async {
            let place = place_in(&places).await;
            (place, accept(&listener, stall_wait).await)
        };
        let (place, socket) = tokio::select! {
            () = &mut until => break,
            accepted = accepted => accepted,
        };
        let life = Life {
            watcher: graceful.watcher(),
            ending: ending.subscribe(),
            cut_off: cut_off.subscribe(),
            _place: place,
        };
        server.serve(socket, life);
    }
    stopper.stop();
    drop(ending);
    drop(listener);
    if timeout(drain_wait, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            target: "sessionlog::http",
            ?drain_wait,
            "requests were cut off that took longer"
        );
        cut_off.send_replace(());
        // Waits until the last connection is gone.
        cut_off.closed().await;
    }
    Ok(())
}

async fn place_in(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let place = Arc::clone(places).acquire_owned().await;
    place.expect("the semaphore is never closed")
}

/// What is needed to serve a connection.
struct Server {
    http: http1::Builder,
    #[cfg(feature = "tls")]
    tls: Option<Handshakes>,
    router: TowerToHyperService<Router>,
    service: Arc<Service>,
    appends: Option<Arc<dyn Appends>>,
}

impl Server {
    /// Serves a connection in a task of its own.
    fn serve(&self, socket: TcpStream, life: Life) {
        let socket = Paced::new(socket, self.service.config.answer_rate_min);
        let calls = Calls {
            http: self.http.clone(),
            router: self.router.clone(),
            service: Arc::clone(&self.service),
            appends: self.appends.clone(),
        };
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.clone() {
            tokio::spawn(async move {
                if let Some(stream) = tls.shaken(socket).await {
                    life.of(calls, stream).await;
                }
            });
            return;
        }
        tokio::spawn(life.of(calls, socket));
    }
}

/// What answers the requests of a connection.
struct Calls {
    http: http1::Builder,
    router: TowerToHyperService<Router>,
    service: Arc<Service>,
    appends: Option<Arc<dyn Appends>>,
}

/// A connection's place among the others, and how it ends with the server.
struct Life {
    watcher: Watcher,
    /// Its sender is gone once the server ends.
    ending: watch::Receiver<()>,
    cut_off: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
}

impl Life {
    /// Serves a connection until either side ends it.
    async fn of(self, calls: Calls, mut socket: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let Self {
            watcher,
            mut ending,
            mut cut_off,
            _place,
        } = self;
        let served = async move {
            let ends = async { while ending.changed().await.is_ok() {} };
            let appends = calls.appends.as_deref();
            let read = direct::serve(&mut socket, &calls.service, appends, ends).await;
            let Some(read) = read else {
                // Over TLS the client learns that nothing was cut off.
                let _at_best = socket.shutdown().await;
                return;
            };
            let rest = TokioIo::new(Rewound { read, socket });
            let mut connection = calls.http.serve_connection(rest, calls.router);
            // A connection that ends before it has read anything forgets what is there to be read.
            let begun =
                poll_fn(|context| Poll::Ready(Pin::new(&mut connection).poll(context))).await;
            let served = match begun {
                Poll::Ready(served) => served,
                Poll::Pending => watcher.watch(connection).await,
            };
            if let Err(error) = served {
                tracing::debug!(target: "sessionlog::http", %error, "a connection broke off");
            }
        };
        tokio::select! {
            () = served => {}
            Ok(()) = cut_off.changed() => {}
        }
    }
}

/// Returns the next connection. A connection that broke off before it was accepted is skipped.
async fn accept(listener: &TcpListener, stall_wait: Duration) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _peer)) => {
                let options = SockRef::from(&socket);
                // Without these options answers are later, and vanished clients are detected later.
                // Neither is a reason to refuse a connection.
                let _best = (
                    options.set_tcp_nodelay(true),
                    set_stall_wait(&options, stall_wait),
                );
                return socket;
            }
            Err(error) => {
                tracing::warn!(target: "sessionlog::http", %error, "could not accept a connection");
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn set_stall_wait(socket: &SockRef<'_>, wait: Duration) -> io::Result<()> {
    socket.set_tcp_user_timeout(Some(wait))
}

#[cfg(not(target_os = "linux"))]
fn set_stall_wait(_socket: &SockRef<'_>, _wait: Duration) -> io::Result<()> {
    Ok(())
}
