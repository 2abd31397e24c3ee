//! A group in one flight: what a server knows of a shard from its own last commit to it.
//!
//! As long as nobody else commits to a shard, its row, and the sessions that were read or written,
//! are as this server left them. Then a group is decided by what is remembered, and one statement
//! writes it all, if the shard's row shows that nobody came between. If it does not, the statement
//! writes nothing, and the group takes its [two flights](crate::postgres::commit).
//!
//! The statement moves the shard's row in a part of its own, `held`, if the row still has the
//! `last_id` and the `epoch` that this server saw last. All else that it writes does so only if
//! `held` has a row.
//!
//! Why it writes either nothing, or what the two flights would have written:
//! * *The row is compared under its lock.* An update that finds its row locked waits. It then reads
//!   the row anew, whatever the snapshot of its statement, and compares that. A row that does not
//!   match leaves `held` empty.
//! * *A row that matches shows that the sessions are as remembered.* Whoever writes a session or
//!   adds a record gives the shard's row a higher `last_id` in the same transaction, under the same
//!   lock. IDs only rise, so a row that has moved never has the old one again. After a failover it
//!   can have a lower one than was seen, but none that was seen here: a commit that was answered is
//!   on a quorum.
//! * *Keys are looked up in the snapshot of the statement*, which may be older than the lock. It is
//!   not older than the last commit of this server, which had returned. Since then nobody has added
//!   a record. Somebody may have erased some under the lock: then a key may be found that is gone,
//!   which leaves `held` empty, and never the other way round. What is erased is in no state, and a
//!   key that is found is always left to the two flights.
//! * *A statement in doubt is over once it was asked for.* It was sent without the lock, so it may
//!   lie in a buffer when the question is asked, and be carried out later. The question is asked
//!   under the lock, and its transaction raises `epoch`. So the statement comes before it, and its
//!   record is found, or it finds another epoch, and writes nothing.
//! * *A shard that moves takes all of that along.* Its row gets the `last_id` and the `epoch` of the
//!   one that it leaves, and that one is not here any more.
//! * *Its time is that of the database.* It is taken from when the server showed it last, and the
//!   time that has passed since. The statement compares it with the clock: IDs are no more than
//!   some milliseconds ahead of that. A step of the clock leaves `held` empty.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::model::{Expected, SessionId};
use crate::postgres::group::{Read, Session};
use crate::postgres::rows::{KeyRows, Shard};
use crate::postgres::sql;
use crate::write::Proposal;

/// The bytes of the sessions that all lanes remember, about.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a session takes beside its name and its details, about.
const SESSION_BYTES: usize = 256;

/// The groups without another server between that are wanted after the last quick one failed.
const WANTED_MAX: u32 = 64;

/// What a lane remembers.
pub(super) struct Memory {
    /// The shard as of the last commit. `None` while it is not known what became of that.
    seen: Option<Seen>,
    sessions: Remembered,
    /// The groups of this server that came one after the other.
    in_a_row: u32,
    /// How many have to before a quick one is tried.
    wanted: u32,
}

/// A shard as it was left.
pub(super) struct Seen {
    shard: Shard,
    clock: Clock,
}

/// What a quick group is decided by, and what has to hold when it is written.
pub(super) struct Quick {
    /// The shard's row as it has to be, and the database's time by now.
    pub shard: Shard,
    pub read: Read,
    /// What must not be there.
    pub keys: KeyRows,
}

impl Memory {
    /// The memory of one of so many lanes.
    pub(super) fn of_lanes(lanes: usize) -> Self {
        Self {
            seen: None,
            sessions: Remembered::new(BYTES_MAX / lanes),
            in_a_row: 0,
            wanted: 0,
        }
    }

    /// Returns the shard as it was left. It is forgotten, unless the group that begins now comes to
    /// a good end.
    pub(super) fn take(&mut self) -> Option<Seen> {
        self.seen.take()
    }

    /// Returns what some proposals are decided by, if all of it is remembered.
    pub(super) fn quick<'a>(
        &self,
        seen: &Seen,
        shard: i32,
        proposals: impl Iterator<Item = &'a Proposal>,
    ) -> Option<Quick> {
        if seen.shard.number != shard || self.in_a_row < self.wanted {
            return None;
        }
        let mut read = Read::default();
        let mut keys = KeyRows::default();
        for proposal in proposals {
            if !is_plain(proposal) {
                return None;
            }
            let name = proposal.session();
            let session = self.sessions.get(name)?;
            if let Some(key) = proposal.batch.key() {
                keys.put(session.number?, sql::key_hash(&key.text));
            }
            let read = read.sessions.entry(name.clone());
            read.or_insert_with(|| session.unchanged());
        }
        let now_ms = seen.clock.now_ms();
        let shard = Shard {
            now_ms,
            ..seen.shard
        };
        Some(Quick { shard, read, keys })
    }

    /// Notes that a quick group was written, at a time by the database's clock.
    pub(super) fn note_quick(
        &mut self,
        seen: &Seen,
        shard: Shard,
        now_ms: u64,
        sessions: HashMap<SessionId, Session>,
    ) {
        self.wanted /= 2;
        self.note(shard, seen.clock.or_later(now_ms), sessions);
    }

    /// Notes that a quick group was not written.
    pub(super) fn note_missed(&mut self) {
        self.in_a_row = 0;
        self.wanted = (self.wanted * 2).clamp(1, WANTED_MAX);
    }

    /// Notes the shard as it was locked. Sessions are forgotten if somebody came between.
    pub(super) fn note_locked(&mut self, seen: Option<&Seen>, locked: &Shard) {
        let is_as_left = seen.is_some_and(|seen| {
            (seen.shard.number, seen.shard.last_id) == (locked.number, locked.last_id)
        });
        if is_as_left {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.in_a_row = 0;
            self.sessions.clear();
        }
    }

    /// Notes the shard and the sessions as a group has left them. It showed the time at an instant.
    pub(super) fn note_committed(
        &mut self,
        shard: Shard,
        at: Instant,
        sessions: HashMap<SessionId, Session>,
    ) {
        let shown_ms = shard.now_ms;
        self.note(shard, Clock { shown_ms, at }, sessions);
    }

    fn note(&mut self, shard: Shard, clock: Clock, sessions: HashMap<SessionId, Session>) {
        for (name, session) in sessions {
            // One that was never begun may be begun without its name being looked up here.
            if session.number.is_some() {
                self.sessions.put(&name, session.unchanged());
            }
        }
        self.seen = Some(Seen { shard, clock });
    }
}

/// Whether a proposal is decided by the state of its session, and by its key, and changes nothing
/// but that session.
fn is_plain(proposal: &Proposal) -> bool {
    let scans = matches!(proposal.expected, Expected::NothingSince { .. });
    !scans && proposal.parent.is_none() && proposal.batch.ops().is_empty()
}

/// A time that the database's clock showed, and when it had come here.
#[derive(Clone, Copy)]
struct Clock {
    shown_ms: u64,
    at: Instant,
}

impl Clock {
    /// Returns the time by now, a little late.
    fn now_ms(self) -> u64 {
        let since = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shown_ms.saturating_add(since)
    }

    /// Returns this clock, or that of a time that came now. The later one was less late.
    fn or_later(self, now_ms: u64) -> Self {
        if now_ms > self.now_ms() {
            Self {
                shown_ms: now_ms,
                at: Instant::now(),
            }
        } else {
            self
        }
    }
}

/// Sessions with their numbers and states. What was not used for long is forgotten.
struct Remembered {
    new: HashMap<SessionId, Session>,
    /// What was new before that had so many bytes.
    old: HashMap<SessionId, Session>,
    bytes: usize,
    bytes_max: usize,
}

impl Remembered {
    fn new(bytes_max: usize) -> Self {
        Self {
            new: HashMap::new(),
            old: HashMap::new(),
            bytes: 0,
            bytes_max,
        }
    }

    fn get(&self, name: &SessionId) -> Option<&Session> {
        self.new.get(name).or_else(|| self.old.get(name))
    }

    fn put(&mut self, name: &SessionId, session: Session) {
        let bytes = |session: &Session| {
            let state = &session.state;
            let details = state.details.as_ref().map(|_| sql::stored_state(state));
            SESSION_BYTES + name.as_str().len() + details.map_or(0, |details| details.len())
        };
        self.bytes += bytes(&session);
        if let Some(before) = self.new.insert(name.detached(), session) {
            self.bytes -= bytes(&before);
        }
        if self.bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.new);
            self.bytes = 0;
        }
    }

    fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }
}

#[cfg(all(test, not(shuttle)))]
#[allow(clippy::unwrap_used, clippy::panic, reason = "it is a test")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Batch, Durability, Error, NewEvent, Options, Result, fresh_store_number};
    use crate::postgres::commit::{Committer, Member, Outcome};
    use crate::postgres::connect::Site;
    use crate::postgres::rows::Rows;
    use crate::write::{Landed, Outcome as Became};

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

    #[test]
    fn what_is_remembered_has_a_bound() {
        let name = |nth: usize| SessionId::new(format!("s{nth}")).unwrap();
        let mut sessions = Remembered::new(100 * SESSION_BYTES);
        for nth in 0..1_000 {
            for _again in 0..3 {
                sessions.put(&name(nth), Session::default());
            }
            assert!(nth < 40 || sessions.get(&name(nth - 40)).is_some(), "{nth}");
            assert!(
                nth < 100 || sessions.get(&name(nth - 100)).is_none(),
                "{nth}"
            );
        }
    }
}
