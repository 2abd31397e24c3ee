//! The socket that the server listens on: its own, or one that systemd passes.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Takes the socket that was passed, or opens one at the address.
pub(super) async fn listener(
    passed: Option<TcpListener>,
    address: SocketAddr,
) -> Result<tokio::net::TcpListener, Box<dyn Error>> {
    let Some(passed) = passed else {
        let bound = tokio::net::TcpListener::bind(address).await;
        return Ok(bound.map_err(|error| cannot_listen(address, &error))?);
    };
    passed.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(passed)?)
}

pub(super) fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let next = match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program that uses it, or choose another port",
        io::ErrorKind::PermissionDenied => {
            "choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE"
        }
        _ => "give --listen an address of this host",
    };
    format!("cannot listen on {address}: {error}: {next}")
}

/// Takes the socket that a supervisor passed in `LISTEN_FDS`. It changes the environment, so it
/// comes before there are threads.
#[cfg(unix)]
pub(super) fn passed() -> Result<Option<TcpListener>, String> {
    let mut passed = listenfd::ListenFd::from_env();
    if passed.len() > 1 {
        return Err(format!(
            "{} sockets were passed in LISTEN_FDS: keep one ListenStream in the socket unit",
            passed.len()
        ));
    }
    passed.take_tcp_listener(0).map_err(|error| {
        format!("the socket in LISTEN_FDS is not taken: {error}: give the unit a TCP address")
    })
}

#[cfg(not(unix))]
pub(super) fn passed() -> Result<Option<TcpListener>, String> {
    Ok(None)
}

/// Raises the limit of open files as far as the system allows: each connection takes one.
#[cfg(unix)]
pub(super) fn allow_many_connections() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

#[cfg(not(unix))]
pub(super) fn allow_many_connections() {}
