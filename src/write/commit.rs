//! The commit group: callers join the open group, and whoever leads gives it one write and one
//! barrier while the next one fills.
//!
//! A lone caller leads its own group, so that nothing is handed from thread to thread. As soon as
//! the next group has members when one is done, a commit thread leads, until it finds none. A small
//! group waits for the one before, since it grows meanwhile and shares a barrier among more. A
//! group that has grown large does not: then two are in flight, and the disk has the second at hand
//! while the first is answered.
//!
//! Invariants:
//! * IDs and seqs are given out in the [section](crate::write::section), under its lock, in the
//!   order in which requests join; groups get their places in the journal one at a time, in the
//!   order in which they were open, and are published in that order, each when all before it are.
//!   So ID order is commit order is the order that readers see.
//! * At most [`IN_FLIGHT_MAX`](crate::write::section::IN_FLIGHT_MAX) groups have a place and no
//!   outcome, all in one journal file: the next file is begun when none has.
//! * Every answer, also a replay, a conflict or a mismatch, is given after the barrier of the group
//!   it was decided in, and of all before it: it never rests on something that a crash could take
//!   back.
//! * After a failed write no group gets a place: the log is poisoned, and records of the failed
//!   group and of those behind it reach no reader. A group that got no place for lack of room takes
//!   back what it was given, and so does the open group, which rests on it.
//! * The section does no I/O and its lock is not held over any, nor while anybody is woken who
//!   might come back for it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::journal::{GroupBuffer, JournalWriter, Placed, file_bytes_for};
use crate::model::{Error, IdClock, Options, Result};
use crate::sync::{Condvar, Deadline, Instant, Mutex, MutexGuard, Waiter};
use crate::write::request::Request;
use crate::write::section::{Decided, Group, Outcome, Section};
use crate::write::shared::Shared;
use crate::write::ticket::{Joined, lost};

/// How long the log is without appends before the durable LSN is recorded in a witness.
const WITNESS_AFTER: Duration = Duration::from_millis(100);

/// The open group, and what writes groups.
pub(crate) struct Commit {
    section: Mutex<Section>,
    /// For the commit threads: there is work, or an end to it.
    work: Condvar,
    /// For callers: there is room in the open group, or an end to waiting.
    room: Condvar,
    /// For leaders: a group before theirs has its outcome.
    turn: Condvar,
    journal: Mutex<JournalWriter>,
    shared: Arc<Shared>,
    group_bytes_max: usize,
    stall_wait: Duration,
}

/// What became of a request that was submitted.
pub(crate) enum Submitted {
    Joined,
    /// It comes back, to be submitted again once the waiter is woken.
    NoRoom(Request, Arc<Waiter>),
}

impl Commit {
    pub(crate) fn new(
        journal: JournalWriter,
        clock: IdClock,
        shared: Arc<Shared>,
        options: &Options,
    ) -> Self {
        Self {
            section: Mutex::new(Section::new(clock)),
            work: Condvar::new(),
            room: Condvar::new(),
            turn: Condvar::new(),
            journal: Mutex::new(journal),
            shared,
            group_bytes_max: options.group_bytes_max,
            stall_wait: options.stall_wait,
        }
    }

    /// Puts the request into the open group, waiting for room, and writes that here and now if
    /// nobody else is about to.
    pub(crate) fn append(&self, mut request: Request) -> Result<Joined> {
        let mut section = self.section.lock();
        let mut in_time = true;
        while let Some(full) = self.join(&mut section, request)? {
            if !in_time {
                return Err(self.no_room());
            }
            in_time = full.deadline.wait(&self.room, &mut section);
            request = full;
        }
        let joined = section.open.joined();
        if section.wants_leader() {
            let was_witnessed = section.unwitnessed.is_none();
            self.lead_group(&mut section);
            // Nobody else sees to the next group, the next witness, or the end.
            let is_due = was_witnessed && section.unwitnessed.is_some();
            if section.wants_leader() || is_due || section.closing {
                self.work.notify_one();
            }
        }
        Ok(joined)
    }

    /// Puts the request into the open group and leaves the writing to a commit thread.
    pub(crate) fn submit(&self, mut request: Request) -> Result<Submitted> {
        // A task waits for room in a group without a limit, so the wait begins here.
        request.deadline = Deadline::after(self.stall_wait);
        let mut section = self.section.lock();
        if let Some(request) = self.join(&mut section, request)? {
            let waiter = Arc::default();
            section.room_waiters.push(Arc::clone(&waiter));
            return Ok(Submitted::NoRoom(request, waiter));
        }
        if section.wants_leader() {
            self.work.notify_one();
        }
        Ok(Submitted::Joined)
    }

    /// Gives the request its place in the open group. It comes back when that has no room for it.
    fn join(
        &self,
        section: &mut MutexGuard<'_, Section>,
        mut request: Request,
    ) -> Result<Option<Request>> {
        loop {
            self.check_open(section)?;
            if section.open.is_full_for(&request, self.group_bytes_max) {
                return Ok(Some(request));
            }
            let Some(stale) = section.join(request) else {
                return Ok(None);
            };
            let look_up = || stale.with_key_looked_up(&self.shared.locator);
            request = MutexGuard::unlocked(section, look_up)?;
        }
    }

    fn no_room(&self) -> Error {
        self.shared.refusals.of_waiting(self.stall_wait)
    }

    /// The work of each commit thread, until [`stop`](Commit::stop).
    pub(crate) fn run(&self) {
        let mut section = self.section.lock();
        loop {
            if section.wants_leader() {
                self.lead_group(&mut section);
            } else if section.is_led() && section.unwitnessed.is_some() {
                // A caller who leads alone does not wake this thread, so it looks for itself when
                // the witness is due.
                self.work.wait_for(&mut section, WITNESS_AFTER);
            } else if section.is_led() {
                self.work.wait(&mut section);
            } else if section.closing {
                // The other threads may be waiting for the group that this one led.
                self.work.notify_all();
                return;
            } else if let Some(committed) = section.unwitnessed {
                let due = committed + WITNESS_AFTER;
                if Instant::now() < due {
                    self.work.wait_until(&mut section, due);
                    continue;
                }
                // A failure has poisoned the log, which is all there is to do about it.
                self.lead(&mut section, &mut Group::default(), |_lead, _group| {
                    drop(self.write_witness());
                });
                self.shared.seal.notify_idle();
            } else {
                self.work.wait(&mut section);
            }
        }
    }

    /// Takes no more requests. The commit threads end once those that have joined are answered.
    pub(crate) fn stop(&self) {
        let mut section = self.section.lock();
        section.closing = true;
        self.work.notify_all();
        let waiters = self.let_in(&mut section);
        drop(section);
        wake_all(waiters);
    }

    /// Records the durable LSN in the journal, unless that was done since the last group; returns
    /// it. Nobody else may be leading. Errors poison the log.
    pub(crate) fn write_witness(&self) -> Result<u64> {
        let is_due = self.section.lock().unwitnessed.take().is_some();
        self.shared.state.check_poison()?;
        let durable_lsn = self.shared.state.durable_lsn();
        if !is_due {
            return Ok(durable_lsn);
        }
        // Every group leaves room for one behind it.
        let mut buffer = GroupBuffer::default();
        let placed = self.journal.lock().place(&mut buffer, durable_lsn);
        placed.write(&buffer).map_err(|error| self.poison(error))?;
        self.shared.state.set_durable_lsn(placed.end_lsn);
        Ok(placed.end_lsn)
    }

    /// Poisons the log when it is no longer where it was opened. Nobody may be leading.
    pub(crate) fn check_place(&self) -> Result<()> {
        self.shared.state.check_poison()?;
        let placed = self.journal.lock().check_place();
        placed.map_err(|error| self.poison(error))
    }

    /// Lets nothing more be written, because a write failed. Returns the error.
    fn poison(&self, error: Error) -> Error {
        let error = self.shared.state.poison(error);
        // Under the lock, so that no leader looks for a failure before and waits after.
        drop(self.section.lock());
        self.turn.notify_all();
        error
    }

    fn check_open(&self, section: &Section) -> Result<()> {
        if section.closing {
            Err(Error::Closed)
        } else {
            self.shared.state.check_poison()
        }
    }

    /// Takes the open group through its place, its write, its turn and its answers, while the next
    /// one fills.
    fn lead_group(&self, section: &mut MutexGuard<'_, Section>) {
        let mut group = section.take_open();
        self.lead(section, &mut group, |lead, group| {
            self.commit(lead, group);
            group.buffer.clear();
        });
        section.done.push(group);
    }

    /// Leads a group for as long as `act` takes, without the section's lock.
    fn lead(
        &self,
        section: &mut MutexGuard<'_, Section>,
        group: &mut Group,
        act: impl FnOnce(&mut Lead<'_>, &mut Group),
    ) {
        section.placing = true;
        let waiters = self.let_in(section);
        let acted = MutexGuard::unlocked(section, || {
            let mut lead = Lead {
                commit: self,
                has_place: false,
            };
            let acted = catch_unwind(AssertUnwindSafe(|| {
                wake_all(waiters);
                act(&mut lead, group);
            }));
            if acted.is_err() {
                // What was going on is unknown, so nothing more is written. Said before the place
                // is given up and before anybody is told, so that nobody goes on behind it or tries
                // again.
                self.poison(lost());
            }
            acted
        });
        let Err(panic) = acted else { return };
        // Those who wait are told when their requests are dropped, and the commit threads look
        // whether the log is closing.
        self.work.notify_all();
        let abandoned = self.abandon_open_group(section);
        MutexGuard::unlocked(section, || {
            drop(std::mem::take(group));
            drop(abandoned.group);
            wake_all(abandoned.waiters);
        });
        resume_unwind(panic)
    }

    fn commit(&self, lead: &mut Lead<'_>, group: &mut Group) {
        match self.place(lead, group) {
            Ok(placed) => {
                let durable = self
                    .write(&placed, &group.buffer)
                    .and_then(|()| self.wait_for_turn(&placed));
                match durable {
                    Ok(()) => self.publish(group, &placed),
                    Err(error) => group.answer(|member| member.finish(Err(error.clone()))),
                }
            }
            Err(error) => self.take_back(group, &error),
        }
    }

    /// Gives the group its place in the journal, once there is room, and lets the next leader do
    /// the same.
    fn place(&self, lead: &mut Lead<'_>, group: &mut Group) -> Result<Placed> {
        let state = &self.shared.state;
        state.check_poison()?;
        let mut journal = self.journal.lock();
        let placed = if group.buffer.records() == 0 {
            journal.place_nothing()
        } else {
            self.make_room(&mut journal, group)?;
            journal.place(&mut group.buffer, state.durable_lsn())
        };
        drop(journal);
        lead.hand_over()?;
        Ok(placed)
    }

    /// Sees to it that the group fits the active journal file and that memory for its records is
    /// left.
    fn make_room(&self, journal: &mut JournalWriter, group: &Group) -> Result<()> {
        let Shared {
            seal,
            recent,
            spares,
            ..
        } = &*self.shared;
        if !seal.wait_for_room(group.deadline, || recent.has_room()) {
            return Err(self.no_room());
        }
        let (deadline, group) = (group.deadline, &group.buffer);
        let is_large = recent.active_is_large() && !journal.active_is_empty();
        if journal.fits(group.record_bytes()) && !is_large {
            return Ok(());
        }
        let spare = spares
            .take(file_bytes_for(group.record_bytes()), deadline)
            .map_err(|_stopped| Error::Closed)?
            .ok_or_else(|| self.no_room())?;
        // The header of a file says that all before it is durable.
        self.wait_for_groups_in_flight();
        journal.rotate(spare);
        recent.begin_file(
            journal.active_use(),
            journal.active_bytes(),
            journal.end_lsn(),
        );
        spares.prepare_next(journal.active_bytes());
        Ok(())
    }

    fn wait_for_groups_in_flight(&self) {
        let mut section = self.section.lock();
        while section.in_flight > 0 {
            self.turn.wait(&mut section);
        }
    }

    fn write(&self, placed: &Placed, group: &GroupBuffer) -> Result<()> {
        let began = Instant::now();
        let bytes = placed.write(group).map_err(|error| self.poison(error))?;
        if group.records() > 0 {
            self.shared
                .counters
                .note_group(group.records(), bytes, began.elapsed());
        }
        Ok(())
    }

    /// Waits until all groups before this one are published.
    fn wait_for_turn(&self, placed: &Placed) -> Result<()> {
        let mut section = self.section.lock();
        while self.shared.state.durable_lsn() < placed.lsn {
            if let Some(failure) = self.shared.state.failure() {
                return Err(failure.clone());
            }
            self.turn.wait(&mut section);
        }
        Ok(())
    }

    /// Lets readers see the group, and then answers those who wait for it.
    fn publish(&self, group: &mut Group, placed: &Placed) {
        let appended = group
            .members
            .iter()
            .filter_map(|member| match &member.outcome {
                Outcome::Append(record) => Some((&*member.session, record)),
                Outcome::Tell(_) => None,
            });
        let published = self.shared.recent.publish(appended);
        self.reach(placed.end_lsn);
        self.turn.notify_all();
        group.answer(Decided::answer);
        wake_all(published.to_wake);
        if published.seal_due {
            self.shared.seal.notify();
        }
    }

    /// Counts everything before `lsn` as durable, of which no witness tells yet. A group that
    /// writes nothing changes nothing, also when it comes late.
    fn reach(&self, lsn: u64) {
        // Under the lock, so that no leader looks at the position before and waits after.
        let mut section = self.section.lock();
        if lsn > self.shared.state.durable_lsn() {
            self.shared.state.set_durable_lsn(lsn);
            section.unwitnessed = Some(Instant::now());
        }
    }

    /// Tells all members of a group that got no place, and those of the open group, which may rest
    /// on it, and gives back what they were given. Those who lead meanwhile have their places
    /// before it.
    fn take_back(&self, group: &mut Group, error: &Error) {
        let mut section = self.section.lock();
        let mut behind = self.abandon_open_group(&mut section);
        group
            .members
            .iter()
            .chain(&behind.group.members)
            .rev()
            .for_each(Decided::take_back);
        drop(section);
        wake_all(behind.waiters);
        for group in [group, &mut behind.group] {
            group.answer(|member| member.finish(Err(error.clone())));
        }
    }

    /// Empties the open group, which makes room.
    fn abandon_open_group(&self, section: &mut Section) -> Abandoned {
        Abandoned {
            group: std::mem::take(&mut section.open),
            waiters: self.let_in(section),
        }
    }

    /// Lets callers in who wait for room. Returns those that the lock must be given back for first:
    /// a task may run where it is woken.
    #[must_use]
    fn let_in(&self, section: &mut Section) -> Vec<Arc<Waiter>> {
        self.room.notify_all();
        std::mem::take(&mut section.room_waiters)
    }
}

/// Those who are owed an answer, or room, once the section's lock is given back.
struct Abandoned {
    group: Group,
    waiters: Vec<Arc<Waiter>>,
}

fn wake_all(waiters: Vec<Arc<Waiter>>) {
    for waiter in waiters {
        waiter.wake();
    }
}

/// The right to lead: first, alone, to the end of the journal, and then to the place that was taken
/// there.
struct Lead<'a> {
    commit: &'a Commit,
    has_place: bool,
}

impl Lead<'_> {
    /// Leaves the end of the journal to the next leader. A failed write before forbids it.
    fn hand_over(&mut self) -> Result<()> {
        let mut section = self.commit.section.lock();
        self.commit.shared.state.check_poison()?;
        section.placing = false;
        section.in_flight += 1;
        self.has_place = true;
        if section.wants_leader() {
            self.commit.work.notify_one();
        }
        Ok(())
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut section = self.commit.section.lock();
        if self.has_place {
            section.in_flight -= 1;
        } else {
            section.placing = false;
        }
        drop(section);
        self.commit.turn.notify_all();
    }
}
