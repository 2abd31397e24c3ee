//! What a server would do: its configuration, made from the options and from the files they name.

use std::error::Error;
use std::net::SocketAddr;

use sessionlog::http::{Config, Tls};

use super::args::Args;
use super::keys::Keys;

pub(super) struct Plan {
    pub(super) config: Config,
    pub(super) tls: Option<Tls>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    /// Reads the keys and the certificate. `address` is where the server is to listen.
    pub(super) fn of(args: &Args, address: SocketAddr) -> Result<Self, Box<dyn Error>> {
        let admission = Admission::of(args, address)?;
        let tls = tls(args)?;
        let mut config = args.limited(admission.config);
        if let Some(tls) = &tls {
            config = config.tls(tls.clone());
        }
        Ok(Self {
            config,
            tls,
            warnings: admission.warnings,
        })
    }
}

/// The callers that are admitted.
pub(super) struct Admission {
    config: Config,
    /// They, for people.
    pub(super) shown: String,
    pub(super) warnings: Vec<String>,
}

impl Admission {
    pub(super) fn of(args: &Args, address: SocketAddr) -> Result<Self, Box<dyn Error>> {
        let keys = Keys::of(args)?;
        check_admission(args, address, &keys)?;
        let workers = counted(keys.workers.len(), "key", "of workers");
        let clients = counted(keys.clients.len(), "key", "of clients");
        let all = keys.clients.into_iter().chain(keys.workers);
        let (config, clients) = if args.open {
            let open = Config::open().hosts(["localhost", "127.0.0.1", "[::1]"]);
            (
                all.fold(open, Config::key),
                "every caller as a client".into(),
            )
        } else {
            (Config::with_keys(all), clients)
        };
        Ok(Self {
            config,
            shown: format!("{clients}, {workers}"),
            warnings: keys.warnings,
        })
    }
}

/// Reads the certificate and its key, if there are any.
pub(super) fn tls(args: &Args) -> Result<Option<Tls>, String> {
    let (Some(cert), Some(key)) = (&args.tls.tls_cert, &args.tls.tls_key) else {
        return Ok(None);
    };
    Tls::from_pem(cert, key)
        .map(Some)
        .map_err(|error| format!("{error}: correct the files of --tls-cert and --tls-key"))
}

/// The URL of the server.
pub(super) fn url(tls: Option<&Tls>, address: SocketAddr) -> String {
    let scheme = if tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// A number of things, for people.
pub(super) fn counted(count: usize, thing: &str, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural} {what}")
}

fn check_admission(args: &Args, address: SocketAddr, keys: &Keys) -> Result<(), String> {
    if args.open && !keys.clients.is_empty() {
        return Err("use either --open or keys of clients: leave one of them out".into());
    }
    if args.open && !address.ip().is_loopback() {
        return Err(format!(
            "--open needs a loopback address, and {} is not one: \
             listen on 127.0.0.1, or give a key instead of --open",
            address.ip()
        ));
    }
    if !args.open && keys.clients.is_empty() && keys.workers.is_empty() {
        return Err(
            "there is no key, since SESSIONLOG_API_KEY is not set: set it, or give --api-key-file \
             or --keys; on loopback, --open admits every caller"
                .into(),
        );
    }
    Ok(())
}
