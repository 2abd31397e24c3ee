//! What a router may be told, with a default for everything but who may call it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Longer waits would not fit the clocks they are counted with.
const TIME_MAX: Duration = Duration::from_hours(24);

/// Who may call, and the limits of a call. Each limit that is exceeded has an answer of its own.
#[derive(Clone)]
#[must_use = "a configuration does nothing until it is given to a router"]
pub struct Config {
    /// The hashes of the tokens that are let in; `None` lets everybody in.
    pub(super) tokens: Option<Vec<blake3::Hash>>,
    /// The hosts that may be asked for; `None` for any.
    pub(super) hosts: Option<Vec<String>>,
    pub(super) body_bytes_max: usize,
    pub(super) body_wait: Duration,
    pub(super) url_bytes_max: usize,
    pub(super) head_bytes_max: usize,
    pub(super) head_wait: Duration,
    pub(super) streams_max: usize,
    pub(super) heartbeat: Duration,
    pub(super) connections_max: usize,
    pub(super) stall_wait: Duration,
    pub(super) drain_wait: Duration,
    pub(super) memory_bytes_max: usize,
    pub(super) page_bytes_max: usize,
    pub(super) answer_rate_min: usize,
    pub(super) stopper: Stopper,
}

impl Config {
    /// Lets in who sends `Authorization: Bearer` with this key, white space around it aside. An
    /// empty key lets nobody in.
    pub fn with_api_key(key: impl AsRef<[u8]>) -> Self {
        Self::with_tokens(Some(Vec::new())).api_key(key)
    }

    /// Lets everybody in. For a server that nobody else can reach, or that stands behind one that
    /// asks.
    pub fn open() -> Self {
        Self::with_tokens(None)
    }

    fn with_tokens(tokens: Option<Vec<blake3::Hash>>) -> Self {
        Self {
            tokens,
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
            stopper: Stopper::default(),
        }
    }

    /// One more key that is let in, such as the next one while keys are changed.
    pub fn api_key(mut self, key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref().trim_ascii();
        if !key.is_empty() {
            self.tokens.get_or_insert_default().push(blake3::hash(key));
        }
        self
    }

    /// Answers only requests for these hosts, by name or address, with any port (421). Of an
    /// [open](Config::open) server on loopback it keeps pages of other sites away, which may have
    /// their own name lead to it.
    pub fn hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.hosts = Some(hosts.into_iter().map(Into::into).collect());
        self
    }

    /// The largest body, in bytes: 4 MiB. A larger one is refused before it is read (413). nginx
    /// refuses more than 1 MiB by itself, unless its `client_max_body_size` says otherwise.
    pub fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.body_bytes_max = bytes;
        self
    }

    /// How long a body may take to arrive: 30 seconds (408).
    pub fn body_wait(mut self, wait: Duration) -> Self {
        self.body_wait = wait;
        self
    }

    /// The longest path with its query, in bytes as sent: 8 KiB (414).
    pub fn url_bytes_max(mut self, bytes: usize) -> Self {
        self.url_bytes_max = bytes;
        self
    }

    /// The largest head of a request, in bytes: 32 KiB (431).
    pub fn head_bytes_max(mut self, bytes: usize) -> Self {
        self.head_bytes_max = bytes;
        self
    }

    /// How long a connection may be without a whole request's head: 75 seconds, after which
    /// [`serve`](super::serve()) closes it. A proxy in front keeps idle connections for 60 as a
    /// rule, and must be the one that closes them first, or it sends a request into one that is
    /// closing.
    pub fn head_wait(mut self, wait: Duration) -> Self {
        self.head_wait = wait.min(TIME_MAX);
        self
    }

    /// How many may stream, or wait for a message, at once: 10,000 (429).
    pub fn streams_max(mut self, streams: usize) -> Self {
        self.streams_max = streams;
        self
    }

    /// How long a stream is silent before it says that it is alive: 10 seconds. At least a
    /// millisecond and at most a day.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every.clamp(Duration::from_millis(1), TIME_MAX);
        self
    }

    /// How many connections [`serve`](super::serve()) takes at once: 16,384. Others wait to be
    /// accepted.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.connections_max = connections;
        self
    }

    /// How long a client may leave what was sent to it untaken before [`serve`](super::serve())
    /// closes the connection: 60 seconds. So a client that vanished without a word is found out,
    /// and one that is too slow comes back from where it was. On Linux alone.
    pub fn stall_wait(mut self, wait: Duration) -> Self {
        self.stall_wait = wait;
        self
    }

    /// The most memory, in bytes, that bodies being received, pages being read and answers being
    /// sent take together: 256 MiB. A request that finds no room within five seconds is refused
    /// (503, with `Retry-After`); a stream waits.
    pub fn memory_bytes_max(mut self, bytes: usize) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// The most bytes of events on a page, one event at least: 4 MiB. A page ends early there, with
    /// `has_more`. A page of messages ends before the turn that would exceed it, and a message
    /// leaves out its earliest outputs beyond it.
    pub fn page_bytes_max(mut self, bytes: usize) -> Self {
        self.page_bytes_max = bytes;
        self
    }

    /// How many bytes a second a client must take of an answer, as long as some of it waits to be
    /// taken: 8 KiB, over ten seconds. A slower one is cut off by [`serve`](super::serve()); one
    /// that streams comes back from where it was.
    pub fn answer_rate_min(mut self, bytes_per_second: usize) -> Self {
        self.answer_rate_min = bytes_per_second;
        self
    }

    /// How long [`serve`](super::serve()) lets requests under way finish when it stops: 10 seconds.
    pub fn drain_wait(mut self, wait: Duration) -> Self {
        self.drain_wait = wait;
        self
    }

    /// Ends the streams of every router made from this configuration, for a server that is to be
    /// stopped.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("open", &self.tokens.is_none())
            .finish_non_exhaustive()
    }
}

/// Says that a server is about to stop: streams end, so that clients come back with the last ID
/// they have seen, and new calls are answered with 503.
#[derive(Clone)]
pub struct Stopper {
    stopping: Arc<watch::Sender<bool>>,
}

impl Stopper {
    /// From now on. It does not wait.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves when it is time to stop.
    pub(super) async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender lives as long as `self`, so there is no other end.
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

    /// Load balancers keep idle connections for 60 seconds as a rule, and must be the ones that
    /// close them.
    #[test]
    fn an_idle_connection_is_kept_for_longer_than_proxies_keep_it() {
        assert!(Config::open().head_wait > Duration::from_mins(1));
    }
}
