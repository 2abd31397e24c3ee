//! What a server would do: its configuration, made from the options and from the files they name.

use std::error::Error;
use std::net::SocketAddr;

use sessionlog::http::{Config, Tls};

use super::args::Args;
use super::keys::Keys;

pub(super) struct Plan {
    pub(super) config: Config,
    pub(super) tls: Option<Tls>,
    /// Who is admitted, for people.
    pub(super) admits: String,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    /// Reads the keys and the certificate. `address` is where the server is to listen.
    pub(super) fn of(args: &Args, address: SocketAddr) -> Result<Self, Box<dyn Error>> {
        let keys = Keys::of(args)?;
        check_admission(args, address, &keys)?;
        let admits = match (args.open, keys.clients.len(), keys.workers.len()) {
            (true, _, workers) => {
                format!("every caller as a client, and {workers} keys of workers")
            }
            (false, clients, workers) => {
                format!("{clients} keys of clients and {workers} keys of workers")
            }
        };
        let all = keys.clients.into_iter().chain(keys.workers);
        let config = if args.open {
            let open = Config::open().hosts(["localhost", "127.0.0.1", "[::1]"]);
            all.fold(open, Config::key)
        } else {
            Config::with_keys(all)
        };
        let tls = match (&args.tls.tls_cert, &args.tls.tls_key) {
            (Some(cert), Some(key)) => Some(Tls::from_pem(cert, key).map_err(|error| {
                format!("{error}: correct the files of --tls-cert and --tls-key")
            })?),
            _ => None,
        };
        let mut config = args.limited(config);
        if let Some(tls) = &tls {
            config = config.tls(tls.clone());
        }
        Ok(Self {
            config,
            tls,
            admits,
            warnings: keys.warnings,
        })
    }

    /// The address with its scheme.
    pub(super) fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }
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
