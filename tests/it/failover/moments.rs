//! Moments of a failover that the campaign meets seldom, made on purpose.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::{Cluster, options};
use crate::support::{eventually, folder, note, read_all, schema_of, session};

const WAIT: Duration = Duration::from_secs(3);

/// A primary that starts again shows what it has on its own disk. If it dies then, that is gone.
#[test]
fn what_a_primary_that_came_back_has_alone_is_not_shown() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let place = folder();
    let log = options(&place, WAIT)
        .connect(&cluster.run(&["url"]))
        .unwrap();
    let id = session("s");
    let before = log.append(&id, note("before")).unwrap().events;
    let (primary, standbys) = (cluster.primary(), cluster.standbys());
    let ask = |text: &str| cluster.run(&["sql", &primary, text]);
    let records = format!(
        "SELECT count(*) FROM \"{}\".record",
        schema_of(place.path())
    );
    for standby in &standbys {
        cluster.run(&["freeze", standby]);
    }
    let (meanwhile, told) = thread::scope(|scope| {
        let append = scope.spawn(|| log.append(&id, note("alone")));
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                       AND query ~ '^(COMMIT|WITH held)'";
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("it waits", || ask(waiting) == "1");
            cluster.run(&["kill", &primary]);
            cluster.run(&["start", &primary]);
            assert_eq!(ask(&records), "2", "it does not have what it had");
            let page = log.list(&id, sessionlog::PageRequest::new());
            page.map(|page| page.items)
        }));
        for standby in &standbys {
            cluster.run(&["thaw", standby]);
        }
        (caught.unwrap(), append.join().unwrap())
    });
    // It fails, or shows what a quorum has.
    if let Ok(shown) = meanwhile {
        assert_eq!(shown, before, "it was shown, and no other node had it");
    }
    eventually("appends land", || log.append(&id, note("after")).is_ok());
    let all = read_all(&log, &id);
    assert_eq!(&*all[1].data, b"alone", "{told:?}");
}

/// The programs of PostgreSQL, with a `psql` that stops a promotion once it has the positions of
/// both standbys.
struct Programs {
    folder: tempfile::TempDir,
}

impl Programs {
    fn new() -> Self {
        let find =
            "echo ${SESSIONLOG_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)}";
        let found = Command::new("bash").args(["-c", find]).output().unwrap();
        let real = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        // PostgreSQL may run as another user.
        allow(at, 0o777);
        for program in std::fs::read_dir(&real).unwrap() {
            let program = program.unwrap();
            if program.file_name() != "psql" {
                symlink(program.path(), at.join(program.file_name())).unwrap();
            }
        }
        let psql = at.join("psql");
        let script = format!(
            r#"#!/bin/bash
cd "$(dirname "$0")"
"{}" "$@"; status=$?
if [[ "$*" == *pg_last_wal_receive_lsn* ]]; then
  echo >>asked
  if [ "$(wc -l <asked)" = 2 ]; then
    touch compared
    for _ in $(seq 1200); do [ -e go ] && break; sleep 0.05; done
  fi
fi
exit $status
"#,
            real.join("psql").display()
        );
        std::fs::write(&psql, script).unwrap();
        allow(&psql, 0o755);
        Self { folder }
    }

    /// Waits until the positions were compared.
    fn until_compared(&self) {
        eventually("the positions are compared", || {
            self.folder.path().join("compared").exists()
        });
    }

    fn go(&self) {
        std::fs::write(self.folder.path().join("go"), "").unwrap();
    }
}

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The primary is alive after all, as one that was frozen may be at any moment. What it sends while
/// the standbys are compared must not be acknowledged: the one that is promoted may not have it.
#[test]
fn what_is_acknowledged_while_standbys_are_compared_is_not_lost() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let (place, programs) = (folder(), Programs::new());
    let log = options(&place, WAIT)
        .connect(&cluster.run(&["url"]))
        .unwrap();
    let id = session("s");
    log.append(&id, note("before")).unwrap();
    let (primary, standbys) = (cluster.primary(), cluster.standbys());
    let ask = |text: &str| cluster.run(&["sql", &primary, text]);
    let behind = "SELECT count(*) FROM pg_stat_replication \
                  WHERE replay_lsn < pg_current_wal_insert_lsn()";
    eventually("the standbys have all", || ask(behind) == "0");
    // Of two that have the same the first is promoted. It gets nothing any more.
    let sender = format!(
        "SELECT pid FROM pg_stat_replication WHERE application_name = 'n{}'",
        standbys[0]
    );
    let stopped = Command::new("kill").args(["-STOP", &ask(&sender)]).status();
    assert!(stopped.unwrap().success());
    let (told, next) = thread::scope(|scope| {
        let promotion = scope.spawn(|| {
            let script = std::env::var("SESSION_LOG_POSTGRES_CLUSTER").unwrap();
            let mut promote = Command::new("bash");
            promote.args([script.as_str(), "promote", &primary]);
            promote.env("SESSIONLOG_PG_BIN", programs.folder.path());
            promote.output().unwrap()
        });
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            programs.until_compared();
            log.append(&id, note("meanwhile"))
        }));
        programs.go();
        let promoted = promotion.join().unwrap();
        let said = String::from_utf8_lossy(&promoted.stderr);
        assert!(promoted.status.success(), "{said}");
        let next = String::from_utf8(promoted.stdout).unwrap();
        (told.unwrap(), next.trim().to_owned())
    });
    cluster.run(&["kill", &primary]);
    eventually("appends land", || log.append(&id, note("after")).is_ok());
    let all = read_all(&log, &id);
    cluster.run(&["rejoin", &primary, &next]);
    if let Ok(ack) = told {
        assert!(all.contains(&ack.events[0]), "lost: {ack:?}");
    }
}
