//! The second database of the tests.

/// Returns the URL of the second database of a server. `cluster.sh` makes it.
pub(crate) fn further(url: &str) -> String {
    let (server, parameters) = match url.split_once('?') {
        Some((server, parameters)) => (server, format!("?{parameters}")),
        None => (url, String::new()),
    };
    let (hosts, _database) = server.rsplit_once('/').unwrap();
    format!("{hosts}/further{parameters}")
}
