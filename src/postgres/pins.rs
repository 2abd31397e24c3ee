//! Forks whose session is in one database, and events that it shares in another.
//!
//! No transaction spans two databases. So what the fork shares is *pinned* in the databases that
//! have it, each in a transaction of its own, and then the fork is committed to its own. A fork
//! under way has a *ticket* there, without which it is not committed.
//!
//! Invariants:
//! * *Taking the ticket decides.* The commit of the fork deletes it. So does a server that erases
//!   from a session with a pin, under its lock and before it looks at the forks of the session. So
//!   the fork is found with them, or will never be there. A ticket is taken from all databases:
//!   the one of the fork may have moved.
//! * *The parent was as the fork needs it, while all was pinned.* Its state is compared under its
//!   lock in the last of these transactions, or in that of the fork. It shares what the fork
//!   shares, so until then nothing of that was erased, and from then on the pins hold it.
//! * *What is looked for is what is there.* Before it is erased, there is a commit in each
//!   database. So no primary that was replaced says that there is no pin, or no fork.
//! * *A pin stays until the outcome is known.* One that is left by a server that died costs
//!   the next that erases from the session a moment, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_postgres::types::ToSql;

use crate::model::{EventId, Op, Result, SessionId, fresh_store_number};
use crate::postgres::commit::Committer;
use crate::postgres::databases::Databases;
use crate::postgres::group::{Apart, Pins};
use crate::postgres::pool::Ask;
use crate::postgres::sql::{self, Id};
use crate::write::Proposal;

/// The sessions whose events a fork shares, in one database.
#[derive(Default)]
struct Part<'a> {
    shards: Vec<i32>,
    ancestors: Vec<&'a str>,
    has_parent: bool,
}

/// Returns the sessions that a fork rests on, by the place of their database. That of the fork
/// itself is among them.
fn parts<'a>(databases: &Databases, proposal: &'a Proposal) -> BTreeMap<usize, Part<'a>> {
    let site = &databases.first().site;
    let parent = proposal.parent.iter().map(|parent| &parent.session);
    let shared = proposal.batch.ops().iter().flat_map(|op| match op {
        Op::Fork(lineage) => lineage.pieces.as_slice(),
        _ => &[],
    });
    let others: Vec<&SessionId> = parent
        .clone()
        .chain(shared.map(|piece| &piece.session))
        .collect();
    let mut parts: BTreeMap<usize, Part<'a>> = BTreeMap::new();
    for session in std::iter::once(proposal.session()).chain(others.iter().copied()) {
        let part = parts.entry(databases.place_of(session)).or_default();
        part.shards.push(site.shard_of(session));
        part.has_parent |= parent.clone().any(|parent| parent == session);
        if others.contains(&session) {
            part.ancestors.push(session.as_str());
        }
    }
    for part in parts.values_mut() {
        part.shards.sort_unstable();
        part.shards.dedup();
        part.ancestors.sort_unstable();
        part.ancestors.dedup();
    }
    parts
}

/// Returns a ticket that nobody else has.
pub(super) fn new_ticket() -> Id {
    Id(EventId::from_u128(fresh_store_number()))
}

/// Whether a proposal rests on several databases, by where their shards were found last.
pub(super) fn are_needed(databases: &Databases, proposal: &Proposal) -> bool {
    databases.are_several() && proposal.parent.is_some() && parts(databases, proposal).len() > 1
}

/// Pins what a fork shares of other databases than its own. Returns nothing if its parent has
/// changed.
///
/// `committer` leads to its own database. After an error something may be pinned.
pub(super) async fn pin(
    databases: &Databases,
    proposal: &Proposal,
    committer: &Committer,
    ticket: Id,
) -> Result<Option<Pins>> {
    let mut parts = parts(databases, proposal);
    let own = parts
        .remove(&databases.place_of(proposal.session()))
        .unwrap_or_default();
    let number = ticket.0.to_u128();
    let text = format!("INSERT INTO ticket VALUES (lpad('{number:x}', 32, '0')::uuid)");
    committer.link.commit_alone(&committer.site, &text).await?;
    let pins = Pins {
        ticket,
        locks: own.shards,
        has_parent: !own.has_parent,
    };
    let mut parts: Vec<_> = parts.into_iter().collect();
    // That of the parent is the last.
    parts.sort_by_key(|(_, part)| part.has_parent);
    for (nth, part) in parts {
        let Some(database) = databases.all().get(nth) else {
            continue;
        };
        let committer = Committer::open(&database.site).await?;
        if !committer.pin(&part, &pins, proposal).await? {
            return Ok(None);
        }
    }
    Ok(Some(pins))
}

/// Takes back what was pinned for forks whose outcome is known.
pub(super) async fn release(databases: &Arc<Databases>, tickets: Vec<Id>) {
    for ticket in tickets {
        // What fails is left to the next that erases.
        drop(revoke(databases, ticket).await);
    }
}

/// Takes a ticket away, and then what was pinned with it.
async fn revoke(databases: &Databases, ticket: Id) -> Result<()> {
    for ask in [Ask::Revoke, Ask::Unpin] {
        for database in databases.all() {
            database.pool.kept(ask, &[&ticket]).await?;
        }
    }
    Ok(())
}

/// Has each fork under way that shares events of a session be there, or never come. What is read of
/// any database after that is what its newest primary has.
pub(super) async fn settle(databases: &Databases, session: &SessionId) -> Result<()> {
    let settled = databases.all().iter().map(|database| async {
        database.pool.kept(Ask::Barrier, &[]).await?;
        let pins = database.pool.now(Ask::Pins, &[&session.as_str()]).await?;
        for pin in &pins {
            revoke(databases, pin.get(0)).await?;
        }
        Ok(())
    });
    join_all(settled).await.into_iter().collect()
}

impl Committer {
    /// Pins sessions of this database. Returns whether the parent is still as it has to be, if it
    /// is one of them.
    async fn pin(&self, part: &Part<'_>, pins: &Pins, proposal: &Proposal) -> Result<bool> {
        let failed = |error: tokio_postgres::Error| self.error(&error);
        let client = &self.link.client;
        let begin = "BEGIN; SET LOCAL lock_timeout = '1s'";
        client.batch_execute(begin).await.map_err(failed)?;
        let locked = client.query(sql::LOCK_ALL, &[&part.shards]).await;
        self.check_here(&locked.map_err(failed)?, part.shards.len())?;
        if let Some(parent) = proposal.parent.as_ref().filter(|_| part.has_parent) {
            let names = [parent.session.as_str()];
            let rows = client.query(sql::HEADS, &[&names.as_slice()]).await;
            let sessions = self.sessions(&rows.map_err(failed)?)?;
            let session = sessions.get(&parent.session);
            if session.is_none_or(|session| proposal.parent_has_changed(&session.state)) {
                return Ok(false);
            }
        }
        let pinned: [&(dyn ToSql + Sync); 2] = [&pins.ticket, &part.ancestors];
        client.execute(sql::PIN, &pinned).await.map_err(failed)?;
        self.end("COMMIT").await?;
        Ok(true)
    }

    /// Holds the ticket of a fork until the end of the transaction. Returns what is known by it.
    pub(super) async fn hold(&self, pins: &Pins) -> Result<Apart> {
        let held = self.link.client.query(sql::HOLD, &[&pins.ticket]).await;
        let held = held.map_err(|error| self.error(&error))?;
        Ok(match (held.is_empty(), pins.has_parent) {
            (true, _) => Apart::Lost,
            (false, true) => Apart::Pinned,
            (false, false) => Apart::None,
        })
    }
}
