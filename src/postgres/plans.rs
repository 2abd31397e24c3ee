//! A test of how the server carries out each statement.
//!
//! Statements are planned once for all values. A plan that reads all of a session, or of a table,
//! is fast in a small log, and holds the shard's lock for seconds in a large one.
#![allow(clippy::unwrap_used, reason = "it is a test")]

use serde_json::Value;

use crate::model::{Durability, Options};
use crate::postgres::connect::{Site, quoted};
use crate::postgres::{commit, moving, pool, sql};

/// A log in which the most of a thing is far from the usual number of it.
const FILL: &str = "
    INSERT INTO session SELECT pg_temp.number(n), 's' || n, pg_temp.id(n), pg_temp.id(n), ''
        FROM generate_series(1, 50000) n;
    INSERT INTO record SELECT pg_temp.id(n), pg_temp.id(n), pg_temp.number(n), 1, 1, 1,
        decode(md5(n::text), 'hex'), 'x' FROM generate_series(2, 50000) n;
    INSERT INTO record SELECT pg_temp.id(n + 100000), pg_temp.id(n + 100000), pg_temp.number(1),
        1, n, n, decode(md5(n::text), 'hex'), 'x' FROM generate_series(1, 50000) n;
    INSERT INTO record SELECT pg_temp.id(n + 200000), pg_temp.id(n + 200000), pg_temp.number(n),
        1, 2, 1, NULL, 'x' FROM generate_series(1, 5000) n;
    INSERT INTO removal SELECT 's' || n, pg_temp.id(n), n, 1 FROM generate_series(1, 20000) n;
    INSERT INTO fork SELECT 's' || n, 1, 's' || (n + 1) FROM generate_series(1, 20000) n;
    INSERT INTO pin SELECT pg_temp.id(n), 's' || n FROM generate_series(1, 20000) n;
    INSERT INTO ticket SELECT pg_temp.id(n) FROM generate_series(1, 20000) n;
    ANALYZE pin, ticket, meta, shard, session, record, removal, fork;";

/// What has to be found by an index, also within a session.
const SOUGHT: [&str; 8] = [
    "key",
    "name",
    "session",
    "generation",
    "first_seq",
    "at_ms",
    "active_id",
    "created_id",
];

/// Statements that read a whole table: its size, and what is counted for a figure.
const WHOLE: [&str; 3] = [sql::SIZE, sql::REMOVED, sql::ITEMS];

#[test]
fn every_statement_finds_its_rows_by_an_index() {
    let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
        eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
        return;
    };
    let wrong: Vec<_> = [1, 4].map(|shards| wrong_plans(&url, shards)).concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Returns what is wrong with the plans of a log of so many shards.
fn wrong_plans(url: &str, shards: u32) -> Vec<String> {
    let schema = format!("plans_{:032x}", crate::model::fresh_store_number());
    let options = Options::new().schema(schema.as_str()).shards(shards);
    let log = options
        .durability(Durability::OneNode)
        .connect(url)
        .unwrap();
    log.close().unwrap();
    let site = Site::new(url, schema.clone(), Durability::OneNode).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let link = site.connect(|| None).await.unwrap();
        let id = format!(
            "CREATE FUNCTION pg_temp.id(n int) RETURNS uuid LANGUAGE sql IMMUTABLE \
             AS $$ SELECT lpad(to_hex(n), 32, '0')::uuid $$; \
             CREATE FUNCTION pg_temp.number(n int) RETURNS bigint LANGUAGE sql IMMUTABLE \
             AS $$ SELECT (n % {shards})::bigint << 40 | n $$;"
        );
        link.client
            .batch_execute(&format!("{id} {FILL}"))
            .await
            .unwrap();
        let otherwise = pool::ASKED_OTHERWISE.iter().map(|(_, text)| text);
        let of_several = sql::OF_SEVERAL.iter().chain(moving::TEXTS).chain(otherwise);
        let of_several = of_several.filter(|_| shards > 1);
        let texts = commit::TEXTS.iter().chain(pool::TEXTS).chain(sql::OTHERS);
        let texts = texts.chain(of_several);
        let mut wrong = Vec::new();
        for text in texts.filter(|text| !WHOLE.contains(text)) {
            let params = link.client.prepare(text).await.unwrap().params().len();
            let prepare = format!("PREPARE asked AS {text}");
            link.client.batch_execute(&prepare).await.unwrap();
            let nulls = vec!["NULL"; params].join(", ");
            let nulls = if params == 0 {
                nulls
            } else {
                format!("({nulls})")
            };
            let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE asked{nulls}");
            let rows = link.client.simple_query(&explain).await.unwrap();
            let plan: String = rows
                .iter()
                .filter_map(|row| match row {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                })
                .collect();
            let faults = faults(&serde_json::from_str(&plan).unwrap());
            wrong.extend(faults.into_iter().map(|fault| format!("{fault} in {text}")));
            link.client.batch_execute("DEALLOCATE asked").await.unwrap();
        }
        let drop = format!("DROP SCHEMA {} CASCADE", quoted(&schema));
        link.client.batch_execute(&drop).await.unwrap();
        wrong
    })
}

/// Returns what a plan and its parts read row by row.
fn faults(plan: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    match plan {
        Value::Object(node) => {
            let text = |name: &str| node.get(name).and_then(Value::as_str).unwrap_or_default();
            let table = text("Relation Name");
            // These have few rows.
            let is_small = ["shard", "meta"].contains(&table);
            if text("Node Type").contains("Seq Scan") && !is_small {
                faults.push(format!("all of {table} is read"));
            }
            for filter in ["Filter", "Join Filter"].map(text) {
                // What has left or arrives is passed over: there is none, or not for long.
                if filter.starts_with("((session >> 40) = ANY (") {
                    continue;
                }
                let words = filter.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
                if !is_small && words.into_iter().any(|word| SOUGHT.contains(&word)) {
                    faults.push(format!("each row is compared: {filter}"));
                }
            }
            faults.extend(node.values().flat_map(self::faults));
        }
        Value::Array(parts) => faults.extend(parts.iter().flat_map(self::faults)),
        _ => {}
    }
    faults
}
