//! What one would write without the log: a transaction an append on a connection of its own, and
//! the least that a commit costs.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls, Statement};

use crate::{Case, EVENT_BYTES, SESSIONS, data};

/// The most connections at a time. The nodes take 200.
const CONNECTIONS_MAX: usize = 128;

pub(crate) const SCHEMA: &str = "sessionlog_bench_by_hand";

/// Dense seqs in each session, each event once, and found by its ID. There is no order over
/// sessions.
const TABLES: &str = "CREATE TABLE session (session bigint PRIMARY KEY, last_seq bigint NOT NULL, \
    last_id uuid NOT NULL) WITH (fillfactor = 80); \
    CREATE INDEX session_activity ON session (last_id); \
    CREATE TABLE event (session bigint NOT NULL, seq bigint NOT NULL, id uuid NOT NULL, \
    at_ms bigint NOT NULL, type text COLLATE \"C\" NOT NULL, data bytea NOT NULL, \
    PRIMARY KEY (session, seq)); CREATE UNIQUE INDEX event_id ON event (id); \
    CREATE TABLE key (session bigint NOT NULL, key text NOT NULL, first_seq bigint NOT NULL, \
    PRIMARY KEY (session, key)); \
    CREATE TABLE bare (nth bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea NOT NULL)";

/// Connects to the primary.
pub(crate) async fn connect(url: &str) -> Client {
    // A standby has no place here: all of this is about commits.
    let url = format!("{url}?target_session_attrs=read-write");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let set = format!("SET search_path TO {SCHEMA}; SET plan_cache_mode = force_generic_plan");
    client.batch_execute(&set).await.unwrap();
    client
}

/// Makes the tables, with all sessions.
pub(crate) async fn make_tables(client: &Client) {
    let make = format!(
        "CREATE SCHEMA {SCHEMA}; {TABLES}; INSERT INTO session SELECT n, 0, gen_random_uuid() \
         FROM generate_series(0, {SESSIONS} - 1) n"
    );
    client.batch_execute(&make).await.unwrap();
}

/// The connections of the appenders. Beyond their number appenders take turns.
pub(crate) struct ByHand(Vec<Mutex<Connection>>);

struct Connection {
    client: Client,
    lock: Statement,
    insert: Statement,
    find_key: Statement,
    insert_key: Statement,
}

impl ByHand {
    pub(crate) async fn open(url: &str, appenders: usize) -> Self {
        let mut connections = Vec::new();
        for _ in 0..appenders.min(CONNECTIONS_MAX) {
            connections.push(Mutex::new(Connection::open(url).await));
        }
        Self(connections)
    }

    pub(crate) async fn append(&self, case: Case, appender: usize, session: usize, nth: u64) {
        let connection = self.0[appender % self.0.len()].lock().await;
        connection
            .append(case, i64::try_from(session).unwrap(), nth)
            .await
            .unwrap();
    }
}

impl Connection {
    async fn open(url: &str) -> Self {
        let client = connect(url).await;
        let prepare = async |text: &str| client.prepare(text).await.unwrap();
        Self {
            lock: prepare(
                "UPDATE session SET last_seq = last_seq + $2, last_id = $3::text::uuid \
                 WHERE session = $1 RETURNING last_seq",
            )
            .await,
            insert: prepare(
                "INSERT INTO event (session, seq, id, at_ms, type, data) \
                 SELECT $1, seq, id, $2, 'bench.event', data \
                 FROM unnest($3::bigint[], $4::text[]::uuid[], $5::bytea[]) u(seq, id, data)",
            )
            .await,
            find_key: prepare("SELECT first_seq FROM key WHERE session = $1 AND key = $2").await,
            insert_key: prepare("INSERT INTO key VALUES ($1, $2, $3)").await,
            client,
        }
    }

    async fn append(
        &self,
        case: Case,
        session: i64,
        nth: u64,
    ) -> Result<(), tokio_postgres::Error> {
        let client = &self.client;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let at_ms = i64::try_from(at.as_millis()).unwrap();
        // IDs rise as those of the log do.
        let base = at.as_millis() << 80 | u128::from(nth) << 16;
        let ids: Vec<String> = (0..case.events)
            .map(|event| format!("{:032x}", base | event as u128))
            .collect();
        let events: Vec<&[u8]> = (0..case.events)
            .map(|event| data(nth, event, EVENT_BYTES))
            .collect();
        let last_id = ids.last().unwrap().as_str();
        client.batch_execute("BEGIN").await?;
        let count = i64::try_from(case.events).unwrap();
        let row = client
            .query_one(&self.lock, &[&session, &count, &last_id])
            .await?;
        let last: i64 = row.get(0);
        let seqs: Vec<i64> = (last - count + 1..=last).collect();
        if case.keyed {
            let key = nth.to_string();
            let known = client.query_opt(&self.find_key, &[&session, &key]).await?;
            assert!(known.is_none(), "each key is used once");
            client
                .execute(&self.insert_key, &[&session, &key, &seqs[0]])
                .await?;
        }
        client
            .execute(&self.insert, &[&session, &at_ms, &seqs, &ids, &events])
            .await?;
        client.batch_execute("COMMIT").await
    }
}

/// One connection that commits a row each.
pub(crate) struct Bare {
    client: Client,
    insert: Statement,
}

impl Bare {
    pub(crate) async fn open(url: &str) -> Self {
        let client = connect(url).await;
        let insert = client.prepare("INSERT INTO bare (data) VALUES ($1)");
        Self {
            insert: insert.await.unwrap(),
            client,
        }
    }

    /// Commits the data of an append.
    pub(crate) async fn append(&self, case: Case, nth: u64) {
        let data = data(nth, 0, case.events * EVENT_BYTES);
        self.client.execute(&self.insert, &[&data]).await.unwrap();
    }
}
