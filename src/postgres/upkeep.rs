//! Background work: removes what retention says, erases what was removed, and deletes what shards
//! left behind that have moved. Every server does this work. What one has done, another finds done.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::disk::Halt;
use crate::maintain::{Own, look_every, remove_due};
use crate::model::Result;
use crate::postgres::connect::Site;
use crate::postgres::databases::Left;
use crate::postgres::erase::{Passed, erase};
use crate::postgres::handle::Core;
use crate::postgres::moving;
use crate::postgres::sql;
use crate::sync::Deadline;

/// The bounds of the time between two looks for something to erase.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);

/// The pause before each transaction that erases, for the appends that wait for the lock.
const ERASE_PAUSE: Duration = Duration::from_millis(5);

/// Runs the background thread until the log stops.
pub(super) fn run(core: &Core) {
    let options = &core.turns.store().options;
    let erase_every = (options.erase_within / 32).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
    let mut retained = Deadline::after(Duration::ZERO);
    // Each session is told of once.
    let (mut passed, mut told) = (Passed::default(), BTreeSet::new());
    let mut swept = Vec::new();
    loop {
        let signal = &core.signal;
        if signal.pause(erase_every, |orders| orders.look).is_err() {
            return;
        }
        let asked = signal.with(|orders| std::mem::take(&mut orders.look));
        // What fails is tried again at the next look. The work of callers reports it.
        if asked || retained.has_passed() {
            match retain(core) {
                Err(Halt::Stopped) => return,
                done => {
                    let every = done.ok().flatten().unwrap_or(LOOK_EVERY_MAX);
                    retained = Deadline::after(every);
                }
            }
        }
        let half = u64::try_from(options.erase_within.as_millis() / 2).unwrap_or(u64::MAX);
        let now = core.turns.store().now_ms();
        let failed = now.and_then(|now| {
            let goes_on = &mut || signal.pause(ERASE_PAUSE, |_orders| false).is_ok();
            erase(core, now.saturating_sub(half), &mut passed, goes_on)
        });
        for (session, error) in failed.into_iter().flatten() {
            if !Site::may_pass(&error) && told.insert(session.clone()) {
                tracing::warn!(
                    target: "sessionlog",
                    %session,
                    error = error.with_sources(),
                    "what was removed from a session cannot be erased"
                );
            }
        }
        drop(sweep(core, &mut swept));
    }
}

/// Removes what retention says. Returns how often to do so.
fn retain(core: &Core) -> Result<Option<Duration>, Halt> {
    let store = core.turns.store();
    let own = Own::from(core.shard()?.retains);
    let Some(every) = look_every(store.options.retention, own) else {
        return Ok(None);
    };
    remove_due(
        store,
        own,
        |calls| core.call_all(calls),
        |time| core.signal.pause(time, |_orders| false),
    )?;
    Ok(Some(every))
}

/// Deletes what shards left behind. `swept` has the moves of which nothing is left.
fn sweep(core: &Core, swept: &mut Vec<Left>) -> Result<()> {
    let databases = &core.tables.0.databases;
    if !databases.are_several() {
        return Ok(());
    }
    databases.block_on(async {
        for left in databases.left().await? {
            if !swept.contains(&left) {
                moving::sweep(databases, &left).await?;
                swept.push(left);
            }
        }
        Ok(())
    })
}

/// Makes room of what was erased.
pub(super) fn vacuum(core: &Core) -> Result<()> {
    let databases = &core.tables.0.databases;
    databases.block_on(async {
        for database in databases.all() {
            let site = &database.site;
            let link = site.connect(|| None).await?;
            let vacuumed = link.client.batch_execute(sql::VACUUM).await;
            vacuumed.map_err(|error| site.error("vacuum", &error))?;
        }
        Ok(())
    })
}
