//! Mutants of the engine on PostgreSQL and of the script that promotes a standby.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::Mutant;

/// The tests that need three nodes.
pub(super) const ON_POSTGRES: &[&str] = &["--features", "postgres", "--test", "it"];

pub(super) const UNIT_ON_POSTGRES: &[&str] = &["--features", "postgres", "--lib"];

pub(super) const OF_POSTGRES: &[Mutant] = &[
    Mutant {
        name: "a new connection commits nothing before it is read from",
        edits: &[(
            "src/postgres/pool.rs",
            "        link.commit_alone(&self.site, sql::BARRIER).await?;\n        let texts",
            "        let texts",
        )],
        test: "failover::moments::what_a_primary_that_came_back_has_alone",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "nobody looks at the server's warnings",
        edits: &[(
            "src/postgres/connect.rs",
            "if is_warning && is_of_wait {",
            "if false && is_warning && is_of_wait {",
        )],
        test: "failover::an_append_whose_wait_for_the_standbys_is_cancelled",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "the shard's row is read without its lock",
        edits: &[(
            "src/postgres/sql.rs",
            "    WHERE shard = $1 FOR UPDATE\"",
            "    WHERE shard = $1\"",
        )],
        test: "postgres::of_servers_that_expect_the_same_seq",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "a quick group does not look who has committed last",
        edits: &[(
            "src/postgres/sql.rs",
            "WHERE shard = $1 AND last_id = $2 AND epoch = $3",
            "WHERE shard = $1 AND $2::uuid IS NOT NULL AND epoch = $3",
        )],
        test: "postgres::turns::ids_rise_over_servers",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "a quick group that was asked for in vain is written later",
        edits: &[(
            "src/postgres/sql.rs",
            "AND last_id = $2 AND epoch = $3",
            "AND last_id = $2 AND $3::bigint IS NOT NULL",
        )],
        test: "postgres::flights::a_group_that_was_asked_for",
        target: UNIT_ON_POSTGRES,
    },
    Mutant {
        name: "a quick group does not look for its keys",
        edits: &[(
            "src/postgres/sql.rs",
            "ON r.session = k.session AND r.key = k.key",
            "ON r.session = k.session AND r.key = k.key AND false",
        )],
        test: "postgres::turns::servers_that_take_turns",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "the feed reads on from the present, and not from the shard's last ID",
        edits: &[(
            "src/postgres/feed.rs",
            "        Ok(Some(closed))\n",
            "        Ok(Some(EventId::from_u128(closed.to_u128() + (1 << 90))))\n",
        )],
        test: "postgres::what_one_server_appends_the_streams_of_another",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "the feed over shards is not closed",
        edits: &[(
            "src/postgres/sql.rs",
            "FROM (SELECT last_id FROM shard WHERE here ORDER BY last_id LIMIT 1) closed",
            "FROM (SELECT last_id FROM shard WHERE here ORDER BY last_id DESC LIMIT 1) closed",
        )],
        test: "postgres::shards::the_feed_over_shards",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "waiters hear of news by notification alone",
        edits: &[(
            "src/postgres/news.rs",
            "let _by_time = timeout(LOOK_EVERY, signals.rung.notified()).await;",
            "signals.rung.notified().await;",
        )],
        test: "postgres::readers::news_come_also_if_the_bell",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "a group in doubt is committed again, and not asked for",
        edits: &[(
            "src/postgres/lane.rs",
            "timeout_at(until, committer.was_committed(first)).await {",
            "timeout_at(until, async { let _ = first; Ok(Outcome::Nothing) }).await {",
        )],
        test: "postgres::appends_go_on_when_connections_are_cut",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "a shard leaves without what came while it was copied",
        edits: &[(
            "src/postgres/moving.rs",
            "            self.write(&sessions, &records).await?;\n            at = *last;",
            "            at = *last;",
        )],
        test: "postgres::moves::shards_move_while_servers",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "a group is committed where its shard has left",
        edits: &[(
            "src/postgres/commit.rs",
            "if rows.len() == count && rows.iter().all(|row| row.get(\"here\")) {",
            "if rows.len() == count {",
        )],
        test: "postgres::moves::a_stream_goes_on_where",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "what is removed while its shard is copied is erased at once",
        edits: &[(
            "src/postgres/erase.rs",
            "if locked.get::<_, Option<Id>>(\"move\").is_some() {",
            "if false {",
        )],
        test: "postgres::moves::what_is_removed_while",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "a fork is committed although its ticket was taken away",
        edits: &[(
            "src/postgres/pins.rs",
            "match (held.is_empty(), pins.has_parent) {",
            "match (false && held.is_empty(), pins.has_parent) {",
        )],
        test: "postgres::moves::a_fork_whose_ticket_was_taken",
        target: ON_POSTGRES,
    },
    Mutant {
        name: "standbys are compared before they are cut off",
        edits: &[
            (
                "tests/postgres/cluster.sh",
                "  for node in $others; do\n    follow \"$node\" ''\n    \
                 sql \"$node\" \"SELECT pg_reload_conf()\" >/dev/null\n  done\n",
                "",
            ),
            (
                "tests/postgres/cluster.sh",
                "    await 0 sql \"$node\" \"SELECT count(*) FROM pg_stat_wal_receiver\"\n",
                "",
            ),
            (
                "tests/postgres/cluster.sh",
                "  sql \"$best\" \"SELECT pg_promote(true, 30)\" >/dev/null\n",
                "  for node in $others; do\n    follow \"$node\" ''\n    \
                 sql \"$node\" \"SELECT pg_reload_conf()\" >/dev/null\n    \
                 await 0 sql \"$node\" \"SELECT count(*) FROM pg_stat_wal_receiver\"\n  done\n  \
                 sql \"$best\" \"SELECT pg_promote(true, 30)\" >/dev/null\n",
            ),
        ],
        test: "failover::moments::what_is_acknowledged_while_standbys_are_compared",
        target: ON_POSTGRES,
    },
];

/// The script that makes the nodes.
const SCRIPT: &str = "tests/postgres/cluster.sh";

/// How it says that PostgreSQL is not installed.
const NOT_INSTALLED: i32 = 69;

/// Three nodes, by the script of the mutant.
pub(super) struct Nodes {
    script: PathBuf,
}

impl Nodes {
    /// Returns why there can be none here, if so.
    pub(super) fn obstacle(source: &Path) -> Option<String> {
        let asked = Command::new("bash").arg(source.join(SCRIPT)).output();
        let code = asked.expect("bash").status.code();
        (code == Some(NOT_INSTALLED)).then(|| "PostgreSQL is not installed".to_owned())
    }

    pub(super) fn create(of: &Path) -> Self {
        let nodes = Self {
            script: of.join(SCRIPT),
        };
        nodes.run(&["create", "3"]);
        nodes
    }

    /// Tells tests where the nodes are.
    pub(super) fn tell(&self, tests: &mut Command) {
        let url = self.run(&["url"]).stdout;
        tests
            .envs(Self::place())
            .env("SESSION_LOG_POSTGRES_CLUSTER", &self.script)
            .env(
                "SESSION_LOG_POSTGRES_URL",
                String::from_utf8_lossy(&url).trim(),
            );
    }

    /// They are beside those of other tests, and PostgreSQL may run as another user.
    fn place() -> [(&'static str, String); 2] {
        let root = format!("sessionlog-mutants-{}", std::process::id());
        let root = std::env::temp_dir().join(root);
        [
            ("SESSIONLOG_PG_ROOT", root.display().to_string()),
            ("SESSIONLOG_PG_PORT", "5841".to_owned()),
        ]
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut script = Command::new("bash");
        script.arg(&self.script).args(words).envs(Self::place());
        let done = script.output().expect("bash");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{words:?}: {said}");
        done
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.run(&["destroy"]);
    }
}
