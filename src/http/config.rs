//! The configuration of a router. Everything has a default except authorization.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::http::key::{Key, Scope};
#[cfg(feature = "tls")]
use crate::http::tls::Tls;

/// Longer waits would overflow the clocks.
const TIME_MAX: Duration = Duration::from_hours(24);

/// Authorization, and the limits of a call. A call beyond a limit gets that limit's own error.
#[derive(Clone)]
#[must_use = "a configuration does nothing until it is given to a router"]
pub struct Config {
    pub(crate) keys: Vec<Key>,
    /// Whether a caller without a key is accepted as a client.
    pub(crate) open: bool,
    /// The hosts that requests may name. `None` accepts any.
    pub(super) hosts: Option<Vec<String>>,
    pub(super) body_bytes_max: usize,
    pub(super) body_wait: Duration,
    pub(super) url_bytes_max: usize,
    pub(super) head_bytes_max: usize,
    pub(super) head_wait: Duration,
    pub(super) streams_max: usize,
    pub(crate) heartbeat: Duration,
    pub(super) connections_max: usize,
    pub(super) stall_wait: Duration,
    pub(super) drain_wait: Duration,
    pub(super) memory_bytes_max: usize,
    pub(crate) page_bytes_max: usize,
    pub(super) answer_rate_min: usize,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Tls>,
    #[cfg(feature = "durable-streams")]
    pub(crate) long_poll_wait: Duration,
    pub(super) stopper: Stopper,
}

impl Config {
    /// Accepts callers that send `Authorization: Bearer` with this key. White space around the key
    /// is ignored. An empty key accepts no caller.
    pub fn with_api_key(key: impl AsRef<[u8]>) -> Self {
        Self::with_keys([Key::new(key)])
    }

    /// Accepts callers that send one of these keys.
    pub fn with_keys(keys: impl IntoIterator<Item = Key>) -> Self {
        let closed = Self {
            open: false,
            ..Self::open()
        };
        keys.into_iter().fold(closed, Self::key)
    }

    /// Accepts every caller as a client. For a server that is not reachable from outside, or
    /// behind a proxy that authorizes.
    pub fn open() -> Self {
        Self {
            keys: Vec::new(),
            open: true,
            hosts: None,
            body_bytes_max: 4 * 1024 * 1024,
            body_wait: Duration::from_secs(30),
            url_bytes_max: 8 * 1024,
            head_bytes_max: 32 * 1024,
            head_wait: Duration::from_secs(75),
            streams_max: 10_000,
            heartbeat: Duration::from_secs(10),
            connections_max: 16_384,
            stall_wait: Duration::from_mins(1),
            drain_wait: Duration::from_secs(10),
            memory_bytes_max: 256 * 1024 * 1024,
            page_bytes_max: 4 * 1024 * 1024,
            answer_rate_min: 8 * 1024,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "durable-streams")]
            long_poll_wait: Duration::from_secs(20),
            stopper: Stopper::default(),
        }
    }

    /// Accepts one more key, such as the next one while keys are rotated.
    pub fn api_key(self, key: impl AsRef<[u8]>) -> Self {
        self.key(Key::new(key))
    }

    /// Accepts a key of the scope [`Worker`](Scope::Worker) for all sessions. Without one, the
    /// calls of workers are refused with status 403.
    pub fn worker_key(self, key: impl AsRef<[u8]>) -> Self {
        self.key(Key::new(key).scope(Scope::Worker))
    }

    /// Accepts a key, which may be bound to a part of the sessions.
    ///
    /// A key for clients ends an [open](Config::open) configuration. A key for workers does not.
    pub fn key(mut self, key: Key) -> Self {
        self.open &= !key.is_for_clients() || key.is_empty();
        self.keys.push(key);
        self
    }

    /// Answers only requests for these hosts, by name or address, with any port. Others get status
    /// 421. Default: any host.
    ///
    /// On an [open](Config::open) server on loopback this keeps other sites' pages out, since such
    /// a site may point its own name at the server.
    pub fn hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }

    /// The largest body, in bytes. Default: 4 MiB. A larger one gets status 413, before it is read
    /// if its length is announced.
    ///
    /// nginx by itself refuses more than 1 MiB: raise its `client_max_body_size` too.
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.body_bytes_max = bytes;
        self
    }

    /// How long a body may take to arrive. Default: 30 seconds. A slower one gets status 408.
    pub fn body_wait(mut self, wait: Duration) -> Self {
        self.body_wait = wait;
        self
    }

    /// The longest path with query, in bytes as sent. Default: 8 KiB. A longer one gets status 414.
    pub fn url_bytes_max(mut self, bytes: usize) -> Self {
        self.url_bytes_max = bytes;
        self
    }

    /// The largest head of a request, in bytes. Default: 32 KiB. A larger one gets status 431.
    pub fn head_bytes_max(mut self, bytes: usize) -> Self {
        self.head_bytes_max = bytes;
        self
    }

    /// How long a connection may wait for a complete request head. Default: 75 seconds. Maximum: a
    /// day.
    ///
    /// After that [`serve`](super::serve()) closes it. A proxy usually keeps idle connections for
    /// 60 seconds. It must be the side that closes first, or it sends a request into a closing
    /// connection.
    pub fn head_wait(mut self, wait: Duration) -> Self {
        self.head_wait = wait.min(TIME_MAX);
        self
    }

    /// The most streams and waits for a message at once. Default: 10,000. More get status 429.
    pub fn streams_max(mut self, streams: usize) -> Self {
        self.streams_max = streams;
        self
    }

    /// How long a stream may be silent before it sends a heartbeat. Default: 10 seconds. Minimum: a
    /// millisecond. Maximum: a day.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every.clamp(Duration::from_millis(1), TIME_MAX);
        self
    }

    /// The most connections of [`serve`](super::serve()) at once. Default: 16,384. Others wait to
    /// be accepted.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections;
        self
    }

    /// How long sent data may stay unacknowledged before [`serve`](super::serve()) closes the
    /// connection. Default: 60 seconds. Only on Linux.
    ///
    /// This detects clients that vanished. A client that was only too slow can reconnect and
    /// continue.
    pub fn stall_wait(mut self, wait: Duration) -> Self {
        self.stall_wait = wait;
        self
    }

    /// The memory for bodies being received, pages being read and answers being sent, in bytes.
    /// Default: 256 MiB.
    ///
    /// A request that finds no room within five seconds gets status 503 with `Retry-After`. A
    /// stream waits.
    pub fn memory_bytes_max(mut self, bytes: usize) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// The most bytes of events on a page. Default: 4 MiB. A page has at least one event.
    ///
    /// A page ends early there, with `has_more`. A page of messages ends before the turn that would
    /// exceed the limit. A message beyond it leaves out its earliest outputs.
    pub fn page_bytes_max(mut self, bytes: usize) -> Self {
        self.page_bytes_max = bytes;
        self
    }

    /// The slowest rate at which a client may take an answer, in bytes per second. Default: 8 KiB.
    ///
    /// It is measured over ten seconds while data waits to be sent. [`serve`](super::serve())
    /// disconnects a slower client. A client that streams can reconnect and continue.
    pub fn answer_rate_min(mut self, bytes_per_second: usize) -> Self {
        self.answer_rate_min = bytes_per_second;
        self
    }

    /// How long [`serve`](super::serve()) lets running requests finish when it stops. Default: 10
    /// seconds.
    pub fn drain_wait(mut self, wait: Duration) -> Self {
        self.drain_wait = wait;
        self
    }

    /// How long a long poll of a durable stream waits for data. Default: 20 seconds. Maximum: a
    /// day. Feature `durable-streams`.
    #[cfg(feature = "durable-streams")]
    pub fn long_poll_wait(mut self, wait: Duration) -> Self {
        self.long_poll_wait = wait.min(TIME_MAX);
        self
    }

    /// Makes [`serve`](super::serve()) speak TLS, and nothing else. Default: plain HTTP. Feature
    /// `tls`.
    ///
    /// A handshake may take as long as a [head](Self::head_wait).
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Returns a handle that ends the streams of every router made from this configuration.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

/// Announces that a server is about to stop.
///
/// Streams end, so that clients reconnect with the last ID they have seen. New calls get status
/// 503.
#[derive(Clone)]
pub struct Stopper {
    stopping: Arc<watch::Sender<bool>>,
}

impl Stopper {
    /// Announces the stop. It does not wait.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves once the server is to stop.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender lives as long as `self`, so waiting ends only with a stop.
        let _stopping = stopping.wait_for(|stopping| *stopping).await;
    }
}

impl Default for Stopper {
    fn default() -> Self {
        Self {
            stopping: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper")
            .field("stopping", &self.is_stopping())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Load balancers usually keep idle connections for 60 seconds, and must be the side that
    /// closes them.
    #[test]
    fn an_idle_connection_is_kept_for_longer_than_proxies_keep_it() {
        assert!(Config::open().head_wait > Duration::from_mins(1));
    }
}
