//! Retention beside calls that come between its look and its removals, and beside wrong clocks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::{Call, passing_over, proposal};
use crate::maintain::{Own, remove_due};
use crate::sync::{AtomicU64, Ordering};
use crate::{Delete, NewEvent, Options, Result, Retention, SessionId, SessionLog};

fn note(data: &'static str) -> NewEvent {
    NewEvent::new("note", data)
}

/// Makes the calls of a look, as an engine does.
fn make_all(log: &SessionLog, calls: Vec<Call>) -> Result<()> {
    let engine = log.engine();
    for mut call in calls {
        if let Some(proposal) = passing_over(proposal(engine.turns(), &mut call))? {
            passing_over(engine.append(proposal))?;
        }
    }
    Ok(())
}

/// It has the same last seq as the session that was looked at, and is another one.
#[test]
fn retention_leaves_a_session_alone_that_began_again_since_the_look() {
    let folder = tempfile::tempdir().unwrap();
    let now_ms = Arc::new(AtomicU64::new(1_800_000_000_000));
    let clock = Arc::clone(&now_ms);
    let log = Options::new()
        .clock(move || SystemTime::UNIX_EPOCH + Duration::from_millis(clock.load(Ordering::SeqCst)))
        .open(folder.path())
        .unwrap();
    let [idle, grown, again] = ["idle", "grown", "again"].map(|id| SessionId::new(id).unwrap());
    for id in [&idle, &grown, &again] {
        log.append(id, note("before")).unwrap();
    }
    let store = log.engine().turns().store();
    let mut options = store.options.clone();
    options.retention = Retention::new().idle(Duration::from_hours(1));
    let judging = crate::read::Store::new(Arc::clone(&store.records), Arc::default(), options);
    now_ms.fetch_add(7_200_000, Ordering::SeqCst);
    let looked = remove_due(
        &judging,
        Own::Never,
        |calls| {
            assert_eq!(calls.len(), 3);
            log.append(&grown, note("meanwhile")).unwrap();
            log.delete(&again, Delete::new()).unwrap();
            log.append(&again, note("meanwhile")).unwrap();
            make_all(&log, calls)
        },
        |_time| Ok(()),
    );
    assert!(looked.is_ok());
    assert!(log.head(&idle).is_err());
    assert_eq!(log.head(&grown).unwrap().last, 2);
    let again = log.head(&again).unwrap();
    assert_eq!((again.first, again.last), (1, 1));
}

/// Events are stamped by the database's clock, so their age is measured by it.
#[cfg(feature = "postgres")]
#[test]
fn a_server_with_a_wrong_clock_removes_nothing_before_its_time() {
    let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
        eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
        return;
    };
    let mut options = Options::new();
    let clock = Arc::clone(&options.clock);
    let fast = move || clock() + Duration::from_hours(2);
    let schema = format!("clock_{:032x}", crate::model::fresh_store_number());
    options = options
        .schema(schema)
        .durability(crate::Durability::OneNode)
        .erase_within(Duration::from_hours(1))
        .clock(fast);
    // It is the system's clock that is fast.
    options.has_own_clock = false;
    let log = options.connect(&url).unwrap();
    let id = SessionId::new("s").unwrap();
    log.append(&id, note("first")).unwrap();
    log.append(&id, note("second")).unwrap();
    let removed = log.trim(&id, 2).unwrap();
    let store = log.engine().turns().store();
    let mut options = store.options.clone();
    options.retention = Retention::new().idle(Duration::from_hours(1));
    let judging = crate::read::Store::new(Arc::clone(&store.records), Arc::default(), options);
    let looked = remove_due(
        &judging,
        Own::Never,
        |calls| {
            assert!(calls.is_empty(), "a session that is not idle is due");
            Ok(())
        },
        |_time| Ok(()),
    );
    assert!(looked.is_ok());
    let erasure = log.erasure().unwrap();
    assert!(!erasure.overdue);
    assert_eq!(erasure.due, Some(removed.erased_by));
}
