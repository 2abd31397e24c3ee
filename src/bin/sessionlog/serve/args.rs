//! The options of `serve`, and the configurations made from them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use sessionlog::{Options, Retention, durable_streams, http};

use crate::failure::Failure;
use crate::folder::check_is_log;
use crate::postgres;

/// How long requests wait for another primary.
const FAILOVER_WAIT: Duration = Duration::from_secs(30);

/// Serves a session log over HTTP.
///
/// Clients and workers send a key as bearer token. A key is in the environment variable
/// `SESSIONLOG_API_KEY` (clients) or `SESSIONLOG_WORKER_KEY` (workers), in a file, or in a file of
/// many keys. Without a key for workers their calls are refused. Changed keys take effect with a
/// restart.
///
/// SIGTERM and SIGINT stop the server without losing anything; a second one ends it at once. SIGHUP
/// reads the TLS certificate and its key again. `RUST_LOG` filters the log, for example
/// `info,sessionlog::access=off`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the log; a missing one is created, with access for its owner
    #[arg(
        long,
        env = "SESSIONLOG_DATA",
        value_name = "DIR",
        default_value = "data"
    )]
    pub(super) data: PathBuf,

    /// Refuse a folder without a log, as where a disk is not mounted, and begin none in it
    #[arg(long, env = "SESSIONLOG_MUST_EXIST", value_parser = FalseyValueParser::new())]
    must_exist: bool,

    /// URL of a log on PostgreSQL, in place of a folder; a missing one is begun
    #[arg(
        long,
        env = "SESSIONLOG_POSTGRES",
        hide_env_values = true,
        value_name = "URL",
        value_parser = postgres::parse_url,
        conflicts_with_all = ["data", "must_exist"]
    )]
    pub(super) postgres: Option<String>,

    /// Address to listen on; a socket passed by systemd takes precedence
    #[arg(
        long,
        env = "SESSIONLOG_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    pub(super) listen: SocketAddr,

    /// Admit every caller without a key, as a client; only on a loopback address
    #[arg(long, env = "SESSIONLOG_OPEN", value_parser = FalseyValueParser::new())]
    pub(super) open: bool,

    /// Host that requests may name, by name or address; repeatable [default: any]
    #[arg(
        long = "host",
        env = "SESSIONLOG_HOST",
        value_name = "HOST",
        value_delimiter = ','
    )]
    hosts: Vec<String>,

    /// Serve durable streams too, below this path, such as /ds [default: no]
    #[arg(
        long,
        env = "SESSIONLOG_DURABLE_STREAMS",
        value_name = "PATH",
        value_parser = streams_path
    )]
    pub(super) durable_streams: Option<String>,

    /// Form of the log lines [default: text on a terminal, and JSON elsewhere]
    #[arg(long, env = "SESSIONLOG_LOG", value_enum)]
    pub(super) log: Option<LogForm>,

    /// Check the options, keys, certificate, address and folder, say what would be served, and end
    #[arg(long)]
    pub(super) check: bool,

    #[command(flatten)]
    pub(super) keys: KeyArgs,

    #[command(flatten)]
    pub(super) tls: TlsArgs,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    retention: RetentionArgs,

    #[command(flatten)]
    of_postgres: postgres::Args,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogForm {
    Text,
    Json,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Keys")]
pub(super) struct KeyArgs {
    /// File with the key of clients
    #[arg(long, env = "SESSIONLOG_API_KEY_FILE", value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,

    /// File with the key of workers
    #[arg(long, env = "SESSIONLOG_WORKER_KEY_FILE", value_name = "FILE")]
    pub(super) worker_key_file: Option<PathBuf>,

    /// TOML file with any number of keys, as `[[key]]` with `secret` or `secret_file`, `scope`
    /// ("client" or "worker"), `prefix`, `requests_per_second`, `burst` and `streams_max`
    #[arg(long, env = "SESSIONLOG_KEYS", value_name = "FILE")]
    pub(super) keys: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsArgs {
    /// PEM file with the certificate of the server and the chain behind it
    #[arg(
        long,
        env = "SESSIONLOG_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub(super) tls_cert: Option<PathBuf>,

    /// PEM file with the private key of the certificate
    #[arg(
        long,
        env = "SESSIONLOG_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub(super) tls_key: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits of requests")]
struct LimitArgs {
    /// Largest body [default: 4MiB]
    #[arg(long, env = "SESSIONLOG_BODY_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    body_bytes_max: Option<usize>,

    /// Most bytes of events on a page [default: 4MiB]
    #[arg(long, env = "SESSIONLOG_PAGE_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    page_bytes_max: Option<usize>,

    /// Memory for bodies, pages and answers together [default: 256MiB]
    #[arg(long, env = "SESSIONLOG_MEMORY_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    memory_bytes_max: Option<usize>,

    /// Most connections; further ones wait [default: 16384]
    #[arg(long, env = "SESSIONLOG_CONNECTIONS_MAX", value_name = "COUNT", value_parser = count)]
    connections_max: Option<usize>,

    /// Most open streams and waits [default: 10000]
    #[arg(long, env = "SESSIONLOG_STREAMS_MAX", value_name = "COUNT", value_parser = count)]
    streams_max: Option<usize>,

    /// Time for the head of a request, and for a TLS handshake [default: 75s]
    #[arg(long, env = "SESSIONLOG_HEAD_WAIT", value_name = "TIME", value_parser = time)]
    head_wait: Option<Duration>,

    /// Time for a body to arrive [default: 30s]
    #[arg(long, env = "SESSIONLOG_BODY_WAIT", value_name = "TIME", value_parser = time)]
    body_wait: Option<Duration>,

    /// Silence of a stream before a comment is sent [default: 10s]
    #[arg(long, env = "SESSIONLOG_HEARTBEAT", value_name = "TIME", value_parser = time)]
    heartbeat: Option<Duration>,

    /// Time that a long poll of a durable stream waits for data [default: 20s]
    #[arg(long, env = "SESSIONLOG_LONG_POLL_WAIT", value_name = "TIME", value_parser = time)]
    long_poll_wait: Option<Duration>,

    /// Time for requests in progress when the server stops [default: 10s]
    #[arg(long, env = "SESSIONLOG_DRAIN_WAIT", value_name = "TIME", value_parser = time)]
    drain_wait: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits of the log")]
struct StoreArgs {
    /// Largest data of an event [default: 1MiB]
    #[arg(long, env = "SESSIONLOG_EVENT_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    event_bytes_max: Option<usize>,

    /// Largest data of the events of a request together [default: 4MiB]
    #[arg(long, env = "SESSIONLOG_BATCH_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    batch_bytes_max: Option<usize>,

    /// Memory for events that are not yet in a segment [default: 192MiB]
    #[arg(long, env = "SESSIONLOG_RECENT_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    recent_bytes_max: Option<usize>,

    /// Memory for blocks read from segments [default: 64MiB]
    #[arg(long, env = "SESSIONLOG_CACHE_BYTES_MAX", value_name = "SIZE", value_parser = size)]
    cache_bytes_max: Option<usize>,

    /// Memory for the index [default: 32MiB]
    #[arg(
        long, env = "SESSIONLOG_INDEX_CACHE_BYTES_MAX", value_name = "SIZE", value_parser = size
    )]
    index_cache_bytes_max: Option<usize>,

    /// Memory for the heads of idle sessions [default: 128MiB]
    #[arg(
        long, env = "SESSIONLOG_HEAD_CACHE_BYTES_MAX", value_name = "SIZE", value_parser = size
    )]
    head_cache_bytes_max: Option<usize>,

    /// Time in which removed bytes leave the files of the log [default: 24h]
    #[arg(long, env = "SESSIONLOG_ERASE_WITHIN", value_name = "TIME", value_parser = time)]
    erase_within: Option<Duration>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Retention, of every session that has none of its own")]
struct RetentionArgs {
    /// Trim events that are older, such as 365d [default: never]
    #[arg(
        long = "retention-max-age",
        env = "SESSIONLOG_RETENTION_MAX_AGE",
        value_name = "TIME",
        value_parser = time
    )]
    max_age: Option<Duration>,

    /// Delete a session that got no event for so long, such as 90d [default: never]
    #[arg(
        long = "retention-idle",
        env = "SESSIONLOG_RETENTION_IDLE",
        value_name = "TIME",
        value_parser = time
    )]
    idle: Option<Duration>,

    /// Trim a session to its newest events [default: all]
    #[arg(
        long = "retention-max-events",
        env = "SESSIONLOG_RETENTION_MAX_EVENTS",
        value_name = "COUNT",
        value_parser = count
    )]
    max_events: Option<usize>,

    /// Trim a session to its newest events of so many bytes, such as 10GiB [default: all]
    #[arg(
        long = "retention-max-bytes",
        env = "SESSIONLOG_RETENTION_MAX_BYTES",
        value_name = "SIZE",
        value_parser = size
    )]
    max_bytes: Option<usize>,
}

/// Sets each option that was given.
macro_rules! set {
    ($on:expr, $from:expr, $($name:ident),+) => {{
        let mut on = $on;
        $(if let Some(value) = $from.$name {
            on = on.$name(value);
        })+
        on
    }};
}

impl Args {
    /// Applies the limits to a configuration.
    pub(super) fn limited(&self, config: http::Config) -> http::Config {
        let config = set!(
            config,
            self.limits,
            body_bytes_max,
            page_bytes_max,
            memory_bytes_max,
            connections_max,
            streams_max,
            head_wait,
            body_wait,
            heartbeat,
            long_poll_wait,
            drain_wait
        );
        if self.hosts.is_empty() {
            config
        } else {
            config.hosts(&self.hosts)
        }
    }

    /// Fails if the log must exist and does not.
    pub(super) fn check_exists(&self) -> Result<(), Failure> {
        if !self.must_exist {
            return Ok(());
        }
        check_is_log(&self.data).map_err(|failure| {
            failure.hint(
                "mount its disk, or correct --data; to begin a log there, start once without \
                 --must-exist",
            )
        })
    }

    /// The options of the log.
    pub(super) fn options(&self) -> Options {
        let mut options = Options::new().retention(self.retention());
        if self.postgres.is_some() {
            options = self.of_postgres.to(options).stall_wait(FAILOVER_WAIT);
        }
        set!(
            options,
            self.store,
            event_bytes_max,
            batch_bytes_max,
            recent_bytes_max,
            cache_bytes_max,
            index_cache_bytes_max,
            head_cache_bytes_max,
            erase_within
        )
    }

    pub(super) fn retention(&self) -> Retention {
        let given = &self.retention;
        let mut retention = Retention::new();
        retention.max_age = given.max_age;
        retention.idle = given.idle;
        retention.max_events = given.max_events.map(|events| events as u64);
        retention.max_bytes = given.max_bytes.map(|bytes| bytes as u64);
        retention
    }
}

fn streams_path(text: &str) -> Result<String, String> {
    durable_streams::check_path(text).map(|()| text.to_owned())
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = text.parse::<ByteSize>().ok();
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes.as_u64()).ok());
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "give a size above 0, such as 65536, 4MiB or 1.5GiB".to_owned())
}

fn count(text: &str) -> Result<usize, String> {
    let count = text.parse::<usize>().ok();
    count
        .filter(|count| *count > 0)
        .ok_or_else(|| "give a whole number above 0".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok();
    time.filter(|time| !time.is_zero()).ok_or_else(|| {
        "give a time above 0 with its unit, such as 500ms, 90s, 12h or 30d".to_owned()
    })
}
