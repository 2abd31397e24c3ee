//! The tables, and the migrations between their formats.

use tokio_postgres::{Row, Transaction};

use crate::codec::StoreId;
use crate::model::{Error, EventId, Result, fresh_store_number};
use crate::postgres::connect::{Link, Site, quoted};
use crate::postgres::sql::Id;

/// What leads from each format to the next. The first makes the tables.
const MIGRATIONS: [&str; FORMAT as usize] = [include_str!("schema.sql")];

/// The format that this version writes.
pub(super) const FORMAT: u32 = 1;

/// Makes the tables, or brings them to the format of this version. Returns the store's ID.
///
/// It is one transaction. Of several that open the same schema, one does it.
pub(super) async fn migrate(site: &Site, link: &mut Link) -> Result<StoreId> {
    let failed = |error: tokio_postgres::Error| site.error("make the tables in", &error);
    let schema = quoted(&site.schema);
    let work = link.client.transaction().await.map_err(failed)?;
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('sessionlog:' || $1, 0))";
    work.query_one(lock, &[&site.schema])
        .await
        .map_err(failed)?;
    let exists = "SELECT to_regclass($1) IS NOT NULL";
    let meta = format!("{schema}.meta");
    let exists: bool = work
        .query_one(exists, &[&meta])
        .await
        .map_err(failed)?
        .get(0);
    let found: u32 = if exists {
        let row = work
            .query_one("SELECT format FROM meta", &[])
            .await
            .map_err(failed)?;
        u32::try_from(row.get::<_, i32>(0)).unwrap_or(u32::MAX)
    } else {
        0
    };
    if found > FORMAT {
        return Err(unsupported(site, found.into()));
    }
    bring_up(&work, &schema, found).await.map_err(failed)?;
    let row = work
        .query_one("SELECT store, shards FROM meta", &[])
        .await
        .map_err(failed)?;
    let shards: i32 = row.get(1);
    if shards != 1 {
        return Err(Error::Unsupported {
            file: site.place.clone(),
            what: "a number of shards of",
            found: u64::try_from(shards).unwrap_or(0),
            supported: 1,
        });
    }
    work.commit().await.map_err(failed)?;
    Ok(StoreId(row.get::<_, Id>(0).0.to_u128()))
}

/// Refuses tables that were brought to another format since they were opened.
///
/// `locked` is the shard's row under its lock, so the format stays what it is.
pub(super) fn check_format(site: &Site, locked: &Row) -> Result<()> {
    let found = u64::from(locked.get::<_, i32>("format").unsigned_abs());
    if found == u64::from(FORMAT) {
        Ok(())
    } else {
        Err(unsupported(site, found))
    }
}

fn unsupported(site: &Site, found: u64) -> Error {
    Error::Unsupported {
        file: site.place.clone(),
        what: "format",
        found,
        supported: FORMAT.into(),
    }
}

/// Brings the tables from a format to that of this version; from 0 it makes them.
async fn bring_up(
    work: &Transaction<'_>,
    schema: &str,
    found: u32,
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
        let store = Id(EventId::from_u128(fresh_store_number()));
        let none = Id(EventId::from_u128(0));
        work.execute(
            "INSERT INTO meta (format, store, shards) VALUES ($1, $2, 1)",
            &[&i32::try_from(FORMAT).unwrap_or(i32::MAX), &store],
        )
        .await?;
        work.execute(
            "INSERT INTO shard VALUES (0, $1, 0, 0, 0, 0, $1, false, $2)",
            &[&none, &i32::try_from(FORMAT).unwrap_or(i32::MAX)],
        )
        .await?;
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
