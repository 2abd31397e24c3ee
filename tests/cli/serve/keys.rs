//! Keys in files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{KEY, Place, Server, refused};

const STATS: &str = "/v1/stats";
const SESSIONS: &str = "/v1/sessions";

fn chmod(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_key_in_a_file_admits_like_one_in_the_environment() {
    let place = Place::new();
    let (client, worker) = (
        place.file("client", "a client\n"),
        place.file("worker", "a worker"),
    );
    chmod(&client, 0o600);
    chmod(&worker, 0o644);
    let mut command = place.with_key();
    command.arg("--api-key-file").arg(&client);
    let server = Server::start(command.env("SESSIONLOG_WORKER_KEY_FILE", &worker));
    let statuses = [KEY, "a client", "a worker", "nobody"]
        .map(|key| (server.status(key, SESSIONS), server.status(key, STATS)));
    assert_eq!(statuses, [(200, 403), (200, 403), (200, 200), (401, 401)]);
    let log = server.log();
    let warned = |file: &Path| log.contains(&format!("read the keys in {}", file.display()));
    assert_eq!((warned(&client), warned(&worker)), (false, true), "{log}");
    assert!(!log.contains("a worker"), "{log}");
}

#[test]
fn a_file_of_keys_gives_each_its_scope_prefix_and_limits() {
    let place = Place::new();
    place.file("secret", "of tenant 2\n");
    let keys = r#"
        [[key]]
        secret = "of tenant 1"
        scope = "worker"
        prefix = "t1/"

        [[key]]
        secret_file = "secret"
        prefix = "t2/"
        requests_per_second = 1
        burst = 2
        streams_max = 0
    "#;
    let mut command = place.serve();
    let server = Server::start(command.arg("--keys").arg(place.file("keys.toml", keys)));
    let session = |key, id: &str| server.status(key, &format!("/v1/sessions/{id}/stream"));
    assert_eq!(session("of tenant 1", "t1%2Fx"), 404);
    assert_eq!(
        server.status("of tenant 1", STATS),
        403,
        "it is bound to a prefix"
    );
    assert_eq!(session("of tenant 2", "t2%2Fx"), 429, "it has no streams");
    assert_eq!(server.status("of tenant 2", SESSIONS), 200);
    assert_eq!(
        server.status("of tenant 2", SESSIONS),
        429,
        "its burst is over"
    );
    assert_eq!(server.status("of tenant 1", SESSIONS), 200);
}

#[test]
fn a_file_of_keys_with_a_mistake_is_refused_with_the_line() {
    let place = Place::new();
    let path = place.path("keys.toml");
    let secret = "a secret that nobody may see";
    for (text, line, why) in [
        (
            "[[key]]\nsecret = \"S\"\nscop = \"worker\"",
            3,
            "unknown field `scop`",
        ),
        (
            "[[key]]\nsecret = \"S\"\nscope = \"admin\"",
            3,
            "unknown variant `admin`",
        ),
        ("[[keys]]\nsecret = \"S\"", 1, "unknown field `keys`"),
        ("\n[[key]]\nprefix = \"x\"", 2, "`secret_file`: give one"),
        (
            "[[key]]\nsecret = \"S\"\nsecret_file = \"x\"",
            1,
            "`secret_file`: give one",
        ),
        (
            "[[key]]\nsecret = \"S\"\nburst = 1",
            1,
            "`requests_per_second` too",
        ),
        (
            "[[key]]\nsecret = \"S\"\nrequests_per_second = 0",
            3,
            "nonzero",
        ),
        ("[[key]]\nsecret = \" \"", 1, "is empty"),
        (
            "[[key]]\nsecret = \"S\"\n[[key]]\nsecret = \"S\"",
            3,
            "another key's",
        ),
        ("[[key]]\nsecret = \"S", 2, "correct this line"),
        ("", 1, "no key"),
    ] {
        fs::write(&path, text.replace('S', secret)).unwrap();
        let said = refused(place.serve().arg("--keys").arg(&path));
        let at = format!("{}:{line}: ", path.display());
        assert!(said.contains(&at) && said.contains(why), "{text}: {said}");
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn a_key_file_that_serves_nobody_is_refused_by_its_name() {
    let place = Place::new();
    let (empty, two) = (place.file("empty", "\n"), place.file("two", "a\nb\n"));
    for (file, why) in [
        (empty, "is empty"),
        (two, "several lines"),
        (place.path("missing"), "correct the path"),
    ] {
        let said = refused(place.serve().arg("--api-key-file").arg(&file));
        let named = said.contains(file.to_str().unwrap());
        assert!(named && said.contains(why), "{said}");
    }
    let same = place.file("same", KEY);
    let said = refused(place.with_key().arg("--worker-key-file").arg(same));
    assert!(said.contains("another key's"), "{said}");
    assert!(
        !place.path("data").exists(),
        "it made a folder and did not start"
    );
}
