//! The tables, and the migrations between their formats.

use std::io;
use std::sync::Arc;

use tokio_postgres::{Client, Row, Transaction};

use crate::codec::StoreId;
use crate::model::{Error, EventId, Result, SHARDS_MAX, fresh_store_number};
use crate::postgres::connect::{Link, Site, quoted};
use crate::postgres::sql::Id;

/// What leads from each format to the next. The first makes the tables.
const MIGRATIONS: [&str; FORMAT as usize] = [include_str!("schema.sql")];

/// The format that this version writes.
pub(super) const FORMAT: u32 = 1;

/// What is new in each of several shards is found by it. One shard has it by its primary key.
const RECORD_SHARD: &str = "CREATE INDEX record_shard ON record ((session >> 40), last_id)";

/// What the tables are made with where there are none.
#[derive(Debug, Clone, Copy)]
pub(super) enum Made {
    /// A log of its own, with so many shards.
    Alone(u32),
    /// A further database of a log, with so many shards, of which none is here.
    Further(StoreId, u32),
}

/// Makes the tables, or brings them to the format of this version. Returns the store's ID.
///
/// It is one transaction. Of several that open the same schema, one does it. Tables that are there
/// keep their number of shards.
pub(super) async fn migrate(site: &Site, made: Made, link: &mut Link) -> Result<StoreId> {
    let failed = |error: tokio_postgres::Error| site.error("make the tables in", &error);
    let work = link.client.transaction().await.map_err(failed)?;
    make_if_missing(site, made, &work).await?;
    let store = store(site, work.client()).await?;
    work.commit().await.map_err(failed)?;
    Ok(store)
}

/// Does so as a part of a transaction. Another that does the same waits for its end.
pub(super) async fn make_if_missing(site: &Site, made: Made, work: &Transaction<'_>) -> Result<()> {
    let failed = |error: tokio_postgres::Error| site.error("make the tables in", &error);
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('sessionlog:' || $1, 0))";
    work.query_one(lock, &[&site.schema])
        .await
        .map_err(failed)?;
    let found = format(site, work.client()).await?;
    bring_up(work, &quoted(&site.schema), found, made)
        .await
        .map_err(failed)
}

/// Returns the store's ID of a log that is there.
pub(super) async fn found(site: &Site) -> Result<StoreId> {
    find(site).await?.ok_or_else(|| Error::Io {
        doing: "open the log in",
        path: site.place.clone(),
        source: Arc::new(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no log in this schema",
        )),
    })
}

/// Returns the store's ID of a log of this version, if there is one.
pub(super) async fn find(site: &Site) -> Result<Option<StoreId>> {
    let link = site.connect(|| None).await?;
    match format(site, &link.client).await? {
        0 => Ok(None),
        FORMAT => store(site, &link.client).await.map(Some),
        older => Err(unsupported(site, older)),
    }
}

/// Returns the format of the tables, and 0 if there are none. A later one is an error.
async fn format(site: &Site, client: &Client) -> Result<u32> {
    let failed = |error: tokio_postgres::Error| site.error("read the tables in", &error);
    let exists = "SELECT to_regclass($1) IS NOT NULL";
    let meta = format!("{}.meta", quoted(&site.schema));
    let exists = client.query_one(exists, &[&meta]).await.map_err(failed)?;
    if !exists.get::<_, bool>(0) {
        return Ok(0);
    }
    let row = client.query_one("SELECT format FROM meta", &[]).await;
    let found = u32::try_from(row.map_err(failed)?.get::<_, i32>(0)).unwrap_or(u32::MAX);
    if found > FORMAT {
        return Err(unsupported(site, found));
    }
    Ok(found)
}

fn unsupported(site: &Site, found: u32) -> Error {
    Error::Unsupported {
        file: site.place.clone(),
        what: "format",
        found: found.into(),
        supported: FORMAT.into(),
    }
}

/// Returns the store's ID, and notes the number of its shards.
pub(super) async fn store(site: &Site, client: &Client) -> Result<StoreId> {
    let row = client
        .query_one("SELECT store, shards, database FROM meta", &[])
        .await;
    let row = row.map_err(|error| site.error("read the tables in", &error))?;
    let shards = u32::try_from(row.get::<_, i32>(1)).unwrap_or(0);
    if !(1..=SHARDS_MAX).contains(&shards) {
        return Err(Error::Unsupported {
            file: site.place.clone(),
            what: "a number of shards of",
            found: shards.into(),
            supported: SHARDS_MAX.into(),
        });
    }
    site.set_meta(shards, row.get(2));
    Ok(StoreId(row.get::<_, Id>(0).0.to_u128()))
}

/// Refuses tables that were brought to another format since they were opened.
///
/// `locked` is the shard's row under its lock, so the format stays what it is.
pub(super) fn check_format(site: &Site, locked: &Row) -> Result<()> {
    let found = locked.get::<_, i32>("format").unsigned_abs();
    if found == FORMAT {
        Ok(())
    } else {
        Err(unsupported(site, found))
    }
}

/// Brings the tables from a format to that of this version; from 0 it makes them.
async fn bring_up(
    work: &Transaction<'_>,
    schema: &str,
    found: u32,
    made: Made,
) -> Result<(), tokio_postgres::Error> {
    for step in MIGRATIONS.iter().skip(found as usize) {
        if found == 0 {
            // Making one needs a privilege, also if it is there.
            let exists = "SELECT to_regnamespace($1) IS NOT NULL";
            let exists: bool = work.query_one(exists, &[&schema]).await?.get(0);
            if !exists {
                let create = format!("CREATE SCHEMA {schema}");
                work.batch_execute(&create).await?;
            }
        }
        work.batch_execute(step).await?;
    }
    if found == 0 {
        let fresh = || Id(EventId::from_u128(fresh_store_number()));
        let (store, shards, here) = match made {
            Made::Alone(shards) => (fresh(), shards, shards),
            Made::Further(store, shards) => (Id(EventId::from_u128(store.0)), shards, 0),
        };
        let none = Id(EventId::from_u128(0));
        let number = |of: u32| i32::try_from(of).unwrap_or(i32::MAX);
        let format = number(FORMAT);
        let meta = "INSERT INTO meta (format, store, shards, database) VALUES ($1, $2, $3, $4)";
        work.execute(meta, &[&format, &store, &number(shards), &fresh()])
            .await?;
        let rows = "INSERT INTO shard SELECT n, $1, 0, 0, 0, 0, $1, false, $2, true \
                    FROM generate_series(0, $3 - 1) n";
        work.execute(rows, &[&none, &format, &number(here)]).await?;
        if shards > 1 {
            work.batch_execute(RECORD_SHARD).await?;
        }
    } else if found < FORMAT {
        let format = i32::try_from(FORMAT).unwrap_or(i32::MAX);
        work.execute("UPDATE meta SET format = $1", &[&format])
            .await?;
        // Servers of the version before find it at their next commit, and make none.
        work.execute("UPDATE shard SET format = $1", &[&format])
            .await?;
    }
    Ok(())
}
