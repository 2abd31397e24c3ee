//! Connections to the primary, and what is checked of it.
//!
//! A commit whose wait for the quorum is cancelled answers as any other. It says so in a notice
//! alone, which comes before the answer. So the task that drives a connection looks at each notice.
//! No cancel request is ever sent from here.
//!
//! What a server keeps may be changed under a connection, by a reload of its settings. A commit
//! that waits for its standbys when none are asked for any more is released without a notice. So
//! each commit is followed by the question when this connection has loaded its settings last. If
//! that is not when they were checked, the commit is in doubt, and a new connection checks them.

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_postgres::error::Severity;
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::model::{Durability, Error, EventId, Result, in_one_line, may_pass};
use crate::postgres::sql::Id;
use crate::postgres::tls;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// How long one node may take to answer a new connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How long the other nodes may take once one of them was found to take writes.
const OTHERS_WITHIN: Duration = Duration::from_millis(100);

/// How long an attempt to connect and begin may take, at least.
const ATTEMPT_MIN: Duration = Duration::from_secs(5);

/// The pause before connecting again.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a machine that vanished is waited for.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The function of the server that waits for standbys.
const WAITS: &str = "SyncRepWaitForLSN";

/// The oldest version with everything that is used here.
const SERVER_VERSION_MIN: i32 = 150_000;

/// Returns when a wait ends: for one that is longer than a clock can count, as good as never.
pub(super) fn deadline_after(wait: Duration) -> Instant {
    const NEVER: Duration = Duration::from_hours(24 * 365);
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now + NEVER)
}

/// Where the log is, and how its connections are made.
pub(super) struct Site {
    config: Config,
    tls: MakeRustlsConnect,
    pub schema: String,
    pub durability: Durability,
    /// The site as errors name it.
    pub place: PathBuf,
    /// The highest timeline that a primary was seen on.
    timeline: AtomicU64,
    /// The shards of the log, once its tables were read.
    shards: AtomicU64,
    /// The ID of the database, once its tables were read.
    database: Mutex<Option<Id>>,
    /// The highest ID that this server has told a caller, of all databases of the log.
    pub told: Arc<Mutex<EventId>>,
}

/// A connection to the primary.
pub(super) struct Link {
    pub client: Client,
    /// Whether a wait for the quorum was cancelled on it: what it committed since is in doubt.
    cancelled: Arc<AtomicBool>,
    timeline: u64,
    /// When it had loaded the settings that were checked, as the server writes it.
    loaded: String,
}

/// Asks when a connection has loaded its settings. It takes over new ones before a statement.
pub(super) const LOADED: &str = "SELECT pg_conf_load_time()::text";

impl Link {
    /// Fails if a wait for the quorum was cancelled, or if the server may have been told to wait
    /// for none: what was committed before may be taken back.
    ///
    /// `loaded` answers [`LOADED`], which was asked after the commit.
    pub(super) fn check_kept(&self, site: &Site, loaded: &Row) -> Result<()> {
        if self.cancelled.load(Ordering::SeqCst) {
            return Err(site.io("commit to", "a wait for the standbys was cancelled"));
        }
        if loaded.get::<_, &str>(0) != self.loaded {
            self.cancelled.store(true, Ordering::SeqCst);
            return Err(site.io("commit to", "the server has loaded other settings"));
        }
        Ok(())
    }

    /// Commits a statement by itself, and checks that it is kept. What is seen on this connection
    /// is then on a quorum.
    pub(super) async fn commit_alone(&self, site: &Site, statement: &str) -> Result<()> {
        let commit = async { self.client.batch_execute(statement).await };
        let loaded = async { self.client.query_one(LOADED, &[]).await };
        let ended = timeout(SILENCE_MAX, join(commit, loaded)).await;
        let (committed, loaded) = ended.map_err(|_elapsed| {
            // It may still be under way, so nothing else goes over this connection.
            self.cancelled.store(true, Ordering::SeqCst);
            site.io("commit to", "no quorum answers")
        })?;
        let failed = |error: tokio_postgres::Error| site.error("commit to", &error);
        committed.map_err(failed)?;
        self.check_kept(site, &loaded.map_err(failed)?)
    }
}

/// Receives the notifications of a connection. It returns whether the connection is to be kept.
pub(super) type Ear = Box<dyn FnMut(&str) + Send>;

impl Site {
    pub(super) fn new(url: &str, schema: String, durability: Durability) -> Result<Self> {
        let (config, tls) = tls::read_url(url)?;
        if config.get_hosts().is_empty() {
            return Err(Error::invalid("URL", "it names no host"));
        }
        let hosts = config.get_hosts().iter().map(|host| match host {
            tokio_postgres::config::Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        });
        let hosts: Vec<_> = hosts.collect();
        let database = config.get_dbname().or(config.get_user());
        let place = format!(
            "postgres://{}/{}?schema={schema}",
            hosts.join(","),
            database.unwrap_or_default()
        );
        Ok(Self {
            config,
            tls,
            schema,
            durability,
            place: place.into(),
            timeline: AtomicU64::new(0),
            shards: AtomicU64::new(1),
            database: Mutex::new(None),
            told: Arc::new(Mutex::new(EventId::from_u128(0))),
        })
    }

    pub(super) fn shards(&self) -> u32 {
        u32::try_from(self.shards.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    pub(super) fn database(&self) -> Option<Id> {
        *self.database.lock()
    }

    /// Notes what its tables say.
    pub(super) fn set_meta(&self, shards: u32, database: Id) {
        self.shards.store(shards.into(), Ordering::Relaxed);
        *self.database.lock() = Some(database);
    }

    /// Connects to the primary: of the nodes that take writes, the one of the highest timeline. A
    /// primary that was replaced and came back has a lower one.
    ///
    /// A node that is silent keeps nobody waiting: once one was found, the others have a moment
    /// more. If that was a primary that was replaced, its first commit shows it.
    pub(super) async fn connect(&self, ear: impl Fn() -> Option<Ear>) -> Result<Link> {
        let mut attempts: FuturesUnordered<_> = (0..self.config.get_hosts().len())
            .map(|nth| {
                let attempt = self.connect_to(nth, ear());
                async move {
                    timeout(CONNECT_WITHIN, attempt)
                        .await
                        .unwrap_or_else(|_elapsed| Err(self.io("connect to", "it does not answer")))
                }
            })
            .collect();
        let known = self.timeline.load(Ordering::SeqCst);
        let mut best: Option<Link> = None;
        let (mut last, mut has_standby) = (None, false);
        let mut until = Instant::now() + 2 * CONNECT_WITHIN;
        while let Ok(Some(attempt)) = timeout_at(until, attempts.next()).await {
            match attempt {
                Ok(Some(link)) => {
                    let highest = best.as_ref().map_or(known, |best| best.timeline + 1);
                    if link.timeline >= highest {
                        until = until.min(Instant::now() + OTHERS_WITHIN);
                        best = Some(link);
                    }
                }
                Ok(None) => has_standby = true,
                // A node that refuses this client for good says nothing of the others, one of which
                // may become the primary.
                Err(error) if last.as_ref().is_some_and(Self::may_pass) => {
                    tracing::debug!(target: "sessionlog", error = error.with_sources(), "connecting");
                }
                Err(error) => last = Some(error),
            }
        }
        drop(attempts);
        let may_wait = has_standby && last.as_ref().is_some_and(|error| !Self::may_pass(error));
        match best {
            None if may_wait => Err(self.io("connect to", "no node takes writes")),
            Some(mut link) => {
                self.timeline.fetch_max(link.timeline, Ordering::SeqCst);
                self.prepare(&mut link).await?;
                Ok(link)
            }
            None => Err(last.unwrap_or_else(|| self.io("connect to", "no node takes writes"))),
        }
    }

    /// Makes attempts for so long, while another may end otherwise. A single one may take longer.
    pub(super) async fn retried<T>(
        &self,
        wait: Duration,
        attempt: impl AsyncFn() -> Result<T>,
    ) -> Result<T> {
        let deadline = deadline_after(wait);
        let mut last = None;
        loop {
            let until = deadline.max(Instant::now() + ATTEMPT_MIN);
            let error = match timeout_at(until, attempt()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => error,
                Err(_elapsed) => {
                    let slow = || self.io("connect to", "the server takes too long");
                    return Err(last.unwrap_or_else(slow));
                }
            };
            if !Self::may_pass(&error) || Instant::now() >= deadline {
                return Err(error);
            }
            last = Some(error);
            let next = Instant::now() + PAUSE;
            sleep_until(next.min(deadline)).await;
        }
    }

    /// Whether a connection leads to the newest primary that this server knows of.
    pub(super) fn is_current(&self, link: &Link) -> bool {
        !link.client.is_closed()
            && !link.cancelled.load(Ordering::SeqCst)
            && link.timeline >= self.timeline.load(Ordering::SeqCst)
    }

    /// Connects to one node. Returns nothing for one that takes no writes.
    async fn connect_to(&self, nth: usize, ear: Option<Ear>) -> Result<Option<Link>> {
        let config = self.of_node(nth);
        let (client, connection) = config
            .connect(self.tls.clone())
            .await
            .map_err(|error| self.error("connect to", &error))?;
        let cancelled = Arc::new(AtomicBool::new(false));
        tokio::spawn(drive(connection, Arc::clone(&cancelled), ear));
        let row = client
            .query_one(
                "SELECT CASE WHEN pg_is_in_recovery() THEN NULL \
                 ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END",
                &[],
            )
            .await
            .map_err(|error| self.error("connect to", &error))?;
        let timeline = row.get::<_, Option<&str>>(0);
        let timeline = timeline.map(|hex| u64::from_str_radix(hex, 16).unwrap_or(0));
        Ok(timeline.map(|timeline| Link {
            client,
            cancelled,
            timeline,
            loaded: String::new(),
        }))
    }

    fn of_node(&self, nth: usize) -> Config {
        let mut node = Config::new();
        if let Some(user) = self.config.get_user() {
            node.user(user);
        }
        if let Some(password) = self.config.get_password() {
            node.password(password);
        }
        if let Some(database) = self.config.get_dbname() {
            node.dbname(database);
        }
        if let Some(options) = self.config.get_options() {
            node.options(options);
        }
        match self.config.get_hosts().get(nth) {
            Some(tokio_postgres::config::Host::Tcp(name)) => {
                node.host(name);
            }
            #[cfg(unix)]
            Some(tokio_postgres::config::Host::Unix(path)) => {
                node.host_path(path);
            }
            _ => {}
        }
        let ports = self.config.get_ports();
        if let Some(port) = ports.get(nth).or(ports.first()) {
            node.port(*port);
        }
        node.ssl_mode(self.config.get_ssl_mode())
            .ssl_negotiation(self.config.get_ssl_negotiation())
            .channel_binding(self.config.get_channel_binding())
            .application_name(format!("sessionlog {}", self.schema))
            .connect_timeout(CONNECT_WITHIN)
            .tcp_user_timeout(SILENCE_MAX)
            .keepalives_idle(SILENCE_MAX);
        node
    }

    /// Makes the settings of a connection, and checks that the server keeps what it acknowledges.
    async fn prepare(&self, link: &mut Link) -> Result<()> {
        // Plans are made once, maybe while a table is empty, and each statement can find its rows
        // by an index.
        let set = format!(
            "SET search_path TO {}; SET plan_cache_mode = force_generic_plan; \
             SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
             SET jit = off; SET statement_timeout = 0; SET lock_timeout = '4s'; \
             SET idle_in_transaction_session_timeout = '2s'; \
             SET default_transaction_isolation = 'read committed'; \
             SET default_transaction_read_only = off; SET client_min_messages = warning; \
             SELECT CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN '' \
             ELSE set_config('synchronous_commit', 'on', false) END",
            quoted(&self.schema)
        );
        let client = &link.client;
        let failed = |error: tokio_postgres::Error| self.error("connect to", &error);
        client.batch_execute(&set).await.map_err(failed)?;
        let row = client
            .query_one(
                "SELECT current_setting('server_version_num')::int, \
                 current_setting('server_encoding'), current_setting('fsync'), \
                 current_setting('full_page_writes'), \
                 current_setting('synchronous_standby_names'), pg_conf_load_time()::text",
                &[],
            )
            .await
            .map_err(failed)?;
        let version: i32 = row.get(0);
        if version < SERVER_VERSION_MIN {
            return Err(Error::Unsupported {
                file: self.place.clone(),
                what: "a server of version",
                found: u64::try_from(version).unwrap_or(0),
                supported: u64::try_from(SERVER_VERSION_MIN).unwrap_or(0),
            });
        }
        self.check_setting(
            "server_encoding",
            row.get(1),
            |value| value == "UTF8",
            "UTF8",
        )?;
        if self.durability != Durability::EngineReplicates {
            self.check_setting("fsync", row.get(2), |value| value == "on", "on")?;
            self.check_setting("full_page_writes", row.get(3), |value| value == "on", "on")?;
        }
        if self.durability == Durability::Replicated {
            self.check_setting(
                "synchronous_standby_names",
                row.get(4),
                |value| !value.trim().is_empty(),
                "such as ANY 1 (a, b, c)",
            )?;
        }
        link.loaded = row.get(5);
        Ok(())
    }

    fn check_setting(
        &self,
        name: &'static str,
        value: &str,
        fits: impl Fn(&str) -> bool,
        wanted: &str,
    ) -> Result<()> {
        if fits(value) {
            return Ok(());
        }
        let why = format!(
            "{name} is {value:?} at {}, and has to be {wanted} for what `{:?}` promises",
            self.place.display(),
            self.durability
        );
        Err(Error::invalid("server setting", why))
    }

    /// An error that may pass.
    pub(super) fn io(&self, doing: &'static str, why: impl Into<String>) -> Error {
        self.io_of(doing, io::ErrorKind::Other, why)
    }

    /// An error that another attempt meets too.
    pub(super) fn lasting(&self, doing: &'static str, why: impl Into<String>) -> Error {
        self.io_of(doing, io::ErrorKind::InvalidData, why)
    }

    fn io_of(&self, doing: &'static str, kind: io::ErrorKind, why: impl Into<String>) -> Error {
        Error::Io {
            doing,
            path: self.place.clone(),
            source: Arc::new(io::Error::new(kind, why.into())),
        }
    }

    /// Returns what an error of the server or of the connection is for a caller.
    pub(super) fn error(&self, doing: &'static str, error: &tokio_postgres::Error) -> Error {
        if tls::is_untrusted(error) {
            return Error::invalid("certificate of the server", in_one_line(error));
        }
        let code = error.code().map_or("", |code| code.code());
        let class = code.get(..2).unwrap_or_default();
        match (class, code) {
            // A unique index of ours holds it already, which the lock rules out.
            (_, "23505") => Error::corrupt(self.place.clone(), 0, in_one_line(error)),
            // A wrong user, password or database.
            (_, "28000" | "28P01" | "3D000") => Error::invalid("URL", in_one_line(error)),
            // No privilege, or a transaction that was made read-only.
            (_, "42501" | "25006") => Error::ReadOnly,
            // A table or a column that is not there.
            (_, "42P01" | "42703") => Error::Unsupported {
                file: self.place.clone(),
                what: "tables of another format than",
                found: 0,
                supported: 1,
            },
            (_, "53100") => Error::NoSpace {
                path: self.place.clone(),
                source: Arc::new(io::Error::new(
                    io::ErrorKind::StorageFull,
                    in_one_line(error),
                )),
            },
            // Values, statements and sizes that the server does not take, damage that it found, and
            // errors of its disk. None passes by itself.
            ("0A" | "22" | "23" | "42" | "54", _) | (_, "58030" | "XX001" | "XX002") => {
                self.lasting(doing, in_one_line(error))
            }
            _ => self.io(doing, in_one_line(error)),
        }
    }

    /// Says that a shard is not in this database, or not any more.
    pub(super) fn moved(&self, doing: &'static str) -> Error {
        self.io(doing, "the shard is in another database")
    }

    /// Whether another attempt may end otherwise.
    pub(super) fn may_pass(error: &Error) -> bool {
        matches!(error, Error::Io { source, .. } if may_pass(source))
    }
}

/// Drives a connection until it ends.
async fn drive(
    mut connection: Connection<Socket, impl TlsStream + Unpin>,
    cancelled: Arc<AtomicBool>,
    mut ear: Option<Ear>,
) {
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) => {
                // Texts are translated, and the name of the function is not. A server greets with
                // warnings too, and triggers of its operators may give some.
                let is_warning = notice.parsed_severity() == Some(Severity::Warning);
                let is_of_wait = notice.routine().is_none_or(|routine| routine == WAITS);
                if is_warning && is_of_wait {
                    cancelled.store(true, Ordering::SeqCst);
                    tracing::warn!(
                        target: "sessionlog",
                        notice = notice.message(),
                        "the server warned: what the connection commits is in doubt"
                    );
                }
            }
            Ok(AsyncMessage::Notification(notification)) => {
                if let Some(ear) = &mut ear {
                    ear(notification.payload());
                }
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
}

/// Returns a name as an SQL identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
