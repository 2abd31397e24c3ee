//! Tests of a group in one flight, between two servers of which a test decides each step.
#![allow(clippy::unwrap_used, clippy::panic, reason = "it is a test")]

use std::sync::Arc;

use crate::model::{
    Batch, Durability, Error, Expected, NewEvent, Options, Result, SessionId, fresh_store_number,
};
use crate::postgres::commit::{Committer, Member, Outcome};
use crate::postgres::connect::Site;
use crate::postgres::quick::{Memory, Quick};
use crate::postgres::rows::{KeyRows, Rows};
use crate::write::{Landed, Outcome as Became, Proposal};

/// A server of one shard.
struct Server {
    committer: Committer,
    memory: Memory,
}

/// Runs a test of two servers. The first has committed last, and has begun the session.
fn with_servers(test: impl AsyncFnOnce(Server, Server)) {
    let Ok(url) = std::env::var("SESSION_LOG_POSTGRES_URL") else {
        eprintln!("skipped: SESSION_LOG_POSTGRES_URL names no server");
        return;
    };
    let schema = format!("quick_{:032x}", fresh_store_number());
    let options = Options::new().schema(schema.as_str());
    let log = options.durability(Durability::OneNode).connect(&url);
    log.unwrap().close().unwrap();
    let site = Arc::new(Site::new(&url, schema, Durability::OneNode).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let open = async || Server {
            committer: Committer::open(&site).await.unwrap(),
            memory: Memory::of_lanes(1),
        };
        let (mut one, two) = (open().await, open().await);
        assert_eq!(stored(one.append(batch("first")).await), 1);
        test(one, two).await;
    });
}

fn batch(data: &str) -> Batch {
    Batch::from(NewEvent::new("note", data.to_owned()))
}

fn proposal(batch: Batch) -> Proposal {
    let session = SessionId::new("s").unwrap();
    Proposal::new(&Options::new().limits, &session, batch).unwrap()
}

fn member(proposal: &Proposal) -> Member<'_> {
    Member {
        proposal,
        created_ms: None,
        pins: None,
    }
}

/// The seq at which a batch was stored.
fn stored(landed: Result<Landed>) -> u64 {
    match landed.unwrap().outcome {
        Became::Stored(record) => record.first,
        other => panic!("{other:?}"),
    }
}

impl Server {
    /// Commits a batch as a group.
    async fn append(&mut self, batch: Batch) -> Result<Landed> {
        let (proposal, mut sent) = (proposal(batch), None);
        let members = [member(&proposal)];
        let commit = self.committer.commit(&members, &mut self.memory, &mut sent);
        commit.await?;
        sent.unwrap().answers.remove(0)
    }

    /// Makes a quick group of a batch, at so many milliseconds after the time. Returns its rows
    /// and its first record.
    fn decide(&mut self, batch: Batch, ms: i64) -> (Rows, KeyRows, crate::codec::Record) {
        let proposal = proposal(batch);
        let seen = self.memory.take().unwrap();
        let quick = self.memory.quick(&seen, 0, [&proposal].into_iter());
        let Quick {
            mut shard,
            mut read,
            keys,
        } = quick.unwrap();
        shard.now_ms = shard.now_ms.saturating_add_signed(ms);
        let members = [member(&proposal)];
        let (rows, sent) = self.committer.decide(&members, &mut read, shard);
        self.memory.seen = Some(seen);
        let first = sent.first.unwrap();
        (rows.unwrap(), keys, Arc::unwrap_or_clone(first))
    }

    /// Sends a quick group. Returns whether it was written.
    async fn send(&self, rows: &Rows, keys: &KeyRows) -> bool {
        let sent = self.committer.write_quickly(rows, keys, &mut None).await;
        sent.unwrap().is_some()
    }
}

#[test]
fn a_group_after_one_of_the_same_server_takes_one_flight() {
    with_servers(async |mut one, _two| {
        let failing = "SELECT 1 / 0 WHERE $1 = 0";
        let failing = one.committer.link.client.prepare(failing).await.unwrap();
        one.committer.lock = failing;
        for seq in 2..5 {
            let keyed = batch("n").idempotency_key(seq.to_string());
            assert_eq!(stored(one.append(keyed).await), seq);
        }
        // A session of which nothing is remembered needs the lock.
        one.memory.sessions.clear();
        assert!(one.append(batch("n")).await.is_err());
    });
}

#[test]
fn what_another_server_has_committed_is_not_passed_over() {
    with_servers(async |mut one, mut two| {
        assert_eq!(stored(two.append(batch("n")).await), 2);
        assert_eq!(stored(two.append(batch("n")).await), 3);
        assert_eq!(stored(one.append(batch("n")).await), 4);
        assert_eq!(stored(one.append(batch("n")).await), 5);
        let stale = batch("n").expected(Expected::Seq(3));
        let told = two.append(stale).await;
        assert!(
            matches!(told, Err(Error::ExpectedMismatch { actual: 5, .. })),
            "{told:?}"
        );
    });
}

#[test]
fn a_key_of_which_nothing_is_remembered_is_found() {
    with_servers(async |mut one, _two| {
        let keyed = || batch("n").idempotency_key("k");
        assert_eq!(stored(one.append(keyed()).await), 2);
        assert_eq!(stored(one.append(batch("between")).await), 3);
        let again = one.append(keyed()).await.unwrap();
        assert!(matches!(again.outcome, Became::Replay(_)), "{again:?}");
        assert_eq!(stored(one.append(batch("after")).await), 4);
    });
}

/// It was sent without the lock, so the question may overtake it.
#[test]
fn a_group_that_was_asked_for_writes_nothing_later() {
    with_servers(async |mut one, two| {
        let (rows, keys, first) = one.decide(batch("late"), 0);
        let asked = two.committer.was_committed(&first).await.unwrap();
        assert_eq!(asked, Outcome::Nothing);
        assert!(!one.send(&rows, &keys).await);
        assert_eq!(stored(one.append(batch("again")).await), 2);
        let (rows, keys, first) = one.decide(batch("in time"), 0);
        assert!(one.send(&rows, &keys).await);
        let asked = two.committer.was_committed(&first).await.unwrap();
        assert_eq!(asked, Outcome::Committed);
    });
}

#[test]
fn a_group_whose_time_is_not_the_databases_writes_nothing() {
    with_servers(async |mut one, _two| {
        for (ms, is_written) in [(60_000, false), (5_000, false), (-60_000, false), (0, true)] {
            let (rows, keys, _) = one.decide(batch("n"), ms);
            assert_eq!(one.send(&rows, &keys).await, is_written, "{ms} ms");
        }
    });
}

#[test]
fn a_group_of_another_format_writes_nothing() {
    with_servers(async |mut one, two| {
        let (rows, keys, _) = one.decide(batch("n"), 0);
        let other = "UPDATE shard SET format = format + 1";
        two.committer
            .link
            .client
            .batch_execute(other)
            .await
            .unwrap();
        assert!(!one.send(&rows, &keys).await);
    });
}
