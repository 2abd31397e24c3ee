//! What was removed leaves the tables, in small steps, and what has to stay is not touched.

use std::ops::ControlFlow;
use std::time::Duration;

use sessionlog::{Delete, Error, Fork, SessionLog};

use super::{Schema, schema};
use crate::support::{append_notes, assert_error, eventually, note, notes, session};

fn compact(log: &SessionLog) -> sessionlog::Result<()> {
    log.compact(|_progress| ControlFlow::Continue(())).map(drop)
}

impl Schema {
    /// The records that hold a word.
    fn holding(&self, word: &str) -> usize {
        self.count(&format!(
            "record WHERE position('{word}'::bytea IN record) > 0"
        ))
    }
}

#[test]
fn what_was_erased_is_not_written_again() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let id = session("s");
    let events = ["amber", "birch", "cedar"].map(|tag| append_notes(&log, &id, tag, 1).remove(0));
    let written =
        || schema.ask("SELECT xmin FROM record WHERE last_seq >= first_seq ORDER BY last_id");
    let erase = |nth: usize| {
        log.redact(events[nth].id, "asked for").unwrap();
        compact(&log).unwrap();
        written()
    };
    let before = written();
    let first = erase(0);
    assert!(
        first[0] != before[0] && first[1..] == before[1..],
        "{first:?}"
    );
    let second = erase(1);
    assert!(second[0] == first[0] && second[1] != first[1], "{second:?}");
    let words = ["amber", "birch", "cedar"];
    assert_eq!(words.map(|word| schema.holding(word)), [0, 0, 1]);
}

/// Two forks keep the ends of a record whose session is gone.
#[test]
fn a_record_with_a_gap_is_not_written_again() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let (parent, head, tail) = (session("parent"), session("head"), session("tail"));
    log.append(&parent, notes("shared", 6)).unwrap();
    log.fork(Fork::new(&parent).at(2), &head).unwrap();
    log.fork(Fork::new(&parent), &tail).unwrap();
    let own = append_notes(&log, &tail, "own", 1).remove(0);
    log.trim(&tail, 5).unwrap();
    log.delete(&parent, Delete::new()).unwrap();
    let erased = || {
        compact(&log).unwrap();
        assert_eq!(schema.count("removal"), 0);
        schema.ask("SELECT xmin FROM record WHERE last_seq - first_seq = 5")
    };
    let written = erased();
    let is_kept = |nth: &u32| schema.holding(&format!("shared/{nth}")) > 0;
    assert_eq!((0..6).filter(is_kept).collect::<Vec<_>>(), [0, 1, 4, 5]);
    // All that it shares with others is looked through again.
    log.redact(own.id, "asked for").unwrap();
    assert_eq!(schema.count("removal"), 2);
    assert_eq!(erased(), written);
}

/// The first of three is damaged, and two of its removals are due.
#[test]
fn a_session_that_cannot_be_erased_from_holds_up_no_other() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let ids = ["amber", "birch", "cedar"].map(|word| {
        let id = session(word);
        append_notes(&log, &id, word, 3);
        id
    });
    let flip = || {
        let last = "octet_length(record) - 1";
        let flipped = format!("set_byte(record, {last}, get_byte(record, {last}) # 1)");
        let of_first = "(SELECT session FROM session WHERE name = 'amber') AND first_seq = 2";
        schema.ask(&format!(
            "UPDATE record SET record = {flipped} WHERE session = {of_first}"
        ));
    };
    assert_eq!(schema.holding("birch."), 3);
    flip();
    log.trim(&ids[0], 2).unwrap();
    for id in &ids {
        log.delete(id, Delete::new()).unwrap();
    }
    assert_eq!(schema.count("removal"), 4);
    assert_error!(compact(&log), Error::Corrupt { .. });
    assert_eq!((schema.holding("birch."), schema.holding("cedar.")), (0, 0));
    assert_eq!(schema.count("removal WHERE name = 'amber'"), 2);
    assert_eq!(schema.count("removal"), 2);
    // The same of what is done by itself, again and again.
    let within = Duration::from_millis(40);
    let by_itself = schema.options().erase_within(within).connect(&schema.url);
    let by_itself = by_itself.unwrap();
    append_notes(&by_itself, &ids[1], "dogwood", 1);
    assert_eq!(schema.holding("dogwood."), 1);
    by_itself.delete(&ids[1], Delete::new()).unwrap();
    eventually("the others are erased", || schema.holding("dogwood.") == 0);
    assert_eq!(schema.count("removal WHERE name = 'amber'"), 2);
    flip();
    eventually("it is erased too", || schema.count("removal") == 0);
    assert_eq!(schema.holding("amber."), 0);
}

#[test]
fn a_transaction_that_erases_reads_few_bytes() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let id = session("s");
    for _ in 0..12 {
        log.append(&id, note("x".repeat(256 * 1024))).unwrap();
    }
    log.delete(&id, Delete::new()).unwrap();
    let count = || schema.count("record WHERE last_seq >= first_seq");
    let (mut before, mut steps) = (count(), Vec::new());
    log.compact(|_progress| {
        let now = count();
        steps.push(before - now);
        before = now;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(count(), 0);
    assert_eq!(steps.iter().max(), Some(&4), "{steps:?}");
}

#[test]
fn what_comes_behind_many_that_cannot_be_erased_is_erased() {
    let Some(schema) = schema() else { return };
    let log = schema.open();
    let remove = |id: &str, word: &str| {
        append_notes(&log, &session(id), word, 1);
        log.delete(&session(id), Delete::new()).unwrap();
    };
    let many = 70;
    for nth in 0..many {
        remove(&format!("damaged {nth}"), "n");
    }
    schema.ask("UPDATE record SET record = set_byte(record, octet_length(record) - 1, 0)");
    remove("sound", "amber");
    let within = Duration::from_millis(40);
    let by_itself = schema.options().erase_within(within).connect(&schema.url);
    assert_eq!(schema.holding("amber."), 1);
    eventually("it is erased", || schema.count("removal") == many);
    assert_eq!(schema.holding("amber."), 0);
    drop(by_itself);
}
