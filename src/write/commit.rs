//! The commit group: callers join the open group, and its leader commits it with one write and one
//! barrier while the next group fills.
//!
//! A lone caller leads its own group, so no work is handed to another thread. If the next group has
//! members when a group is done, a commit thread leads it, and so on until a group is empty. A
//! small group waits for the group before it: meanwhile it grows, and more members share a barrier.
//! A large group does not wait. Two groups are then in flight, and the disk has the second at hand
//! while the first is answered.
//!
//! Invariants:
//! * The [section](crate::write::section) assigns IDs and seqs under its lock, in the order in
//!   which requests join. Groups get their places in the journal one at a time, in the order in
//!   which they were open. They are published in that order, each after all before it. So ID order
//!   is commit order, and readers see events in that order.
//! * At most [`IN_FLIGHT_MAX`](crate::write::section::IN_FLIGHT_MAX) groups have a place and no
//!   outcome. All of them are in one journal file: the next file begins when no group is in flight.
//! * Every answer is given after the barrier of the group it was decided in, and of all groups
//!   before it. This includes replays, conflicts and mismatches. So no answer rests on anything
//!   that a crash could undo.
//! * After a failed write the log is poisoned and no group gets a place. No reader sees records of
//!   the failed group or of groups after it. A group that gets no place for lack of room undoes its
//!   assignments. So does the open group, which rests on it.
//! * The section does no I/O. Its lock is not held during I/O, nor while waking a waiter that might
//!   come back for it.

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

/// How long the log is without appends before a witness records the durable LSN.
const WITNESS_AFTER: Duration = Duration::from_millis(100);

/// The open group, and everything that committing a group needs.
pub(crate) struct Commit {
    section: Mutex<Section>,
    /// For the commit threads: there is work, or the log is closing.
    work: Condvar,
    /// For callers: there is room in the open group, or the log is closing.
    room: Condvar,
    /// For leaders: a group before theirs has its outcome.
    turn: Condvar,
    journal: Mutex<JournalWriter>,
    shared: Arc<Shared>,
    group_bytes_max: usize,
    stall_wait: Duration,
}

/// The result of submitting a request.
pub(crate) enum Submitted {
    /// A thread may wait for the answer here.
    Joined(Joined),
    /// There is no room. The request is to be submitted again once the waiter is woken.
    NoRoom(Box<Request>, Arc<Waiter>),
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

    /// Puts the request into the open group, and waits for room if need be. Leads the group on this
    /// thread if no other thread is about to.
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
            // No other thread attends to the next group, the next witness, or the closing.
            let is_due = was_witnessed && section.unwitnessed.is_some();
            if section.wants_leader() || is_due || section.closing {
                self.work.notify_one();
            }
        }
        Ok(joined)
    }

    /// Puts the request into the open group and leaves the write to a commit thread.
    pub(crate) fn submit(&self, mut request: Request) -> Result<Submitted> {
        // A task waits for the open group without a time limit, so its deadline starts here.
        request.deadline = Deadline::after(self.stall_wait);
        let mut section = self.section.lock();
        if let Some(request) = self.join(&mut section, request)? {
            let waiter = Arc::default();
            section.room_waiters.push(Arc::clone(&waiter));
            return Ok(Submitted::NoRoom(Box::new(request), waiter));
        }
        let joined = section.open.joined();
        if section.wants_leader() {
            self.work.notify_one();
        }
        Ok(Submitted::Joined(joined))
    }

    /// Puts the request into the open group. Returns it if the group has no room for it.
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

    /// Whether nothing is to be written until the next append.
    #[cfg(all(test, feature = "http"))]
    pub(crate) fn is_at_rest(&self) -> bool {
        let section = self.section.lock();
        !section.is_led() && section.open.members.is_empty() && section.unwitnessed.is_none()
    }

    /// Returns the error for a caller that waited for room in vain.
    fn no_room(&self) -> Error {
        let failed = self.shared.state.check_poison().err();
        failed.unwrap_or_else(|| self.shared.refusals.of_waiting(self.stall_wait))
    }

    /// Runs a commit thread until [`stop`](Commit::stop).
    pub(crate) fn run(&self) {
        let mut section = self.section.lock();
        loop {
            if section.wants_leader() {
                self.lead_group(&mut section);
            } else if section.is_led() && section.unwitnessed.is_some() {
                // A caller that leads alone does not wake this thread, so this thread checks by
                // itself when the witness is due.
                self.work.wait_for(&mut section, WITNESS_AFTER);
            } else if section.is_led() {
                self.work.wait(&mut section);
            } else if section.closing {
                // The other threads may be waiting for the group that this thread led.
                self.work.notify_all();
                return;
            } else if let Some(committed) = section.unwitnessed {
                let due = committed + WITNESS_AFTER;
                if Instant::now() < due {
                    self.work.wait_until(&mut section, due);
                    continue;
                }
                // An error has already poisoned the log, and there is nothing else to do about it.
                self.lead(&mut section, &mut Group::default(), |_lead, _group| {
                    drop(self.write_witness());
                });
                self.shared.seal.notify_idle();
            } else {
                self.work.wait(&mut section);
            }
        }
    }

    /// Accepts no more requests. The commit threads end once all joined requests are answered.
    pub(crate) fn stop(&self) {
        let mut section = self.section.lock();
        section.closing = true;
        self.work.notify_all();
        let waiters = self.let_in(&mut section);
        drop(section);
        wake_all(waiters);
    }

    /// Records the durable LSN in the journal, unless that was done since the last group, and
    /// returns it. No other thread may be leading. An error poisons the log.
    pub(crate) fn write_witness(&self) -> Result<u64> {
        let is_due = self.section.lock().unwitnessed.take().is_some();
        self.shared.state.check_poison()?;
        let durable_lsn = self.shared.state.durable_lsn();
        if !is_due {
            return Ok(durable_lsn);
        }
        // Every group leaves room for a witness after it.
        let mut buffer = GroupBuffer::default();
        let placed = self.journal.lock().place(&mut buffer, durable_lsn);
        placed.write(&buffer).map_err(|error| self.poison(error))?;
        self.shared.state.set_durable_lsn(placed.end_lsn);
        Ok(placed.end_lsn)
    }

    /// Ends the active journal file and begins one that holds nothing else. Returns its first LSN.
    ///
    /// All records so far can then be sealed.
    pub(crate) fn roll(&self) -> Result<u64> {
        let mut section = self.section.lock();
        while section.is_led() {
            self.turn.wait(&mut section);
        }
        self.check_open(&section)?;
        let mut rolled = Err(Error::Closed);
        self.lead(&mut section, &mut Group::default(), |_lead, _group| {
            rolled = self.begin_clean_file();
        });
        if section.wants_leader() || section.closing {
            self.work.notify_one();
        }
        rolled
    }

    fn begin_clean_file(&self) -> Result<u64> {
        let Shared {
            recent,
            spares,
            state,
            ..
        } = &*self.shared;
        state.check_poison()?;
        let mut journal = self.journal.lock();
        let spare = spares
            .take_clean(journal.active_bytes(), Deadline::after(self.stall_wait))
            .map_err(|_stopped| Error::Closed)?
            .ok_or_else(|| self.no_room())?;
        journal.rotate(spare);
        let start_lsn = journal.end_lsn();
        recent.begin_file(journal.active_use(), journal.active_bytes(), start_lsn);
        spares.prepare_next(journal.active_bytes());
        let mut buffer = GroupBuffer::default();
        let placed = journal.place(&mut buffer, state.durable_lsn());
        drop(journal);
        placed.write(&buffer).map_err(|error| self.poison(error))?;
        state.set_durable_lsn(placed.end_lsn);
        recent.note_begun();
        Ok(start_lsn)
    }

    /// Poisons the log if its folder was moved or replaced. No thread may be leading.
    pub(crate) fn check_place(&self) -> Result<()> {
        self.shared.state.check_poison()?;
        let placed = self.journal.lock().check_place();
        placed.map_err(|error| self.poison(error))
    }

    /// Stops all further writes after a failed one. Returns the error.
    fn poison(&self, error: Error) -> Error {
        let error = self.shared.state.poison(error);
        // Under the lock, so that no leader checks for a failure before this and waits after it.
        drop(self.section.lock());
        self.turn.notify_all();
        self.shared.seal.note_progress();
        error
    }

    fn check_open(&self, section: &Section) -> Result<()> {
        if section.closing {
            Err(Error::Closed)
        } else {
            self.shared.state.check_poison()
        }
    }

    /// Leads the open group: places it, writes it, waits for its turn and answers its members.
    /// Meanwhile the next group fills.
    fn lead_group(&self, section: &mut MutexGuard<'_, Section>) {
        let mut group = section.take_open();
        self.lead(section, &mut group, |lead, group| {
            self.commit(lead, group);
            group.buffer.clear();
        });
        section.done.push(group);
    }

    /// Leads a group while `act` runs, without the section's lock.
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
                // The state of the write is unknown, so nothing more is written. The log is
                // poisoned before the place is released and before any caller has its answer, so
                // that no group follows and no caller retries.
                self.poison(lost());
            }
            acted
        });
        let Err(panic) = acted else { return };
        // Dropping the requests answers their callers. The commit threads check whether the log is
        // closing.
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

    /// Gives the group its place in the journal, once there is room, and hands over to the next
    /// leader.
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

    /// Waits until there is memory for the group's records, and begins a new journal file if the
    /// active one has no room for the group.
    fn make_room(&self, journal: &mut JournalWriter, group: &Group) -> Result<()> {
        let Shared {
            state,
            seal,
            recent,
            spares,
            ..
        } = &*self.shared;
        // A log that has failed seals no more.
        let may_go_on = || recent.has_room() || state.failure().is_some();
        if !seal.wait_for_room(group.deadline, may_go_on) {
            return Err(self.no_room());
        }
        state.check_poison()?;
        let (deadline, group) = (group.deadline, &group.buffer);
        let is_large = recent.active_is_large() && !journal.active_is_empty();
        if journal.fits(group.record_bytes()) && !is_large {
            return Ok(());
        }
        let spare = spares
            .take(file_bytes_for(group.record_bytes()), deadline)
            .map_err(|_stopped| Error::Closed)?
            .ok_or_else(|| self.no_room())?;
        // A new file's header states that everything before it is durable.
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

    /// Makes the group visible to readers and then answers its members.
    fn publish(&self, group: &mut Group, placed: &Placed) {
        let appended = group
            .members
            .iter()
            .filter_map(|member| match &member.outcome {
                Outcome::Append { record, .. } => Some((&*member.session, record)),
                Outcome::Tell(_) => None,
            });
        let retains = appended.clone().any(|(_, record)| record.retains());
        let published = self.shared.recent.publish(appended);
        self.reach(placed.end_lsn);
        self.turn.notify_all();
        group.answer(Decided::answer);
        wake_all(published.to_wake);
        if published.seal_due {
            self.shared.seal.notify();
        }
        if retains {
            self.shared
                .retain
                .update(|orders| (orders.has_own, orders.look) = (true, true));
        }
    }

    /// Records that everything before `lsn` is durable. No witness in the journal says so yet. A
    /// group that writes nothing changes nothing, even if it comes late.
    fn reach(&self, lsn: u64) {
        // Under the lock, so that no leader checks the position before this and waits after it.
        let mut section = self.section.lock();
        if lsn > self.shared.state.durable_lsn() {
            self.shared.state.set_durable_lsn(lsn);
            section.unwitnessed = Some(Instant::now());
        }
    }

    /// Fails all members of a group that got no place, and of the open group, which may rest on it.
    /// Undoes their assignments. Groups that are in flight have their places before this one.
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

    /// Wakes the callers that wait for room. Returns the async ones, to be woken without the lock:
    /// a task may run where it is woken.
    #[must_use]
    fn let_in(&self, section: &mut Section) -> Vec<Arc<Waiter>> {
        self.room.notify_all();
        std::mem::take(&mut section.room_waiters)
    }
}

/// The group and the waiters that are answered or woken once the section's lock is released.
struct Abandoned {
    group: Group,
    waiters: Vec<Arc<Waiter>>,
}

fn wake_all(waiters: Vec<Arc<Waiter>>) {
    for waiter in waiters {
        waiter.wake();
    }
}

/// The right to lead.
///
/// Until [`hand_over`](Lead::hand_over) it is the exclusive right to the end of the journal. After
/// that it is the right to the place taken there.
struct Lead<'a> {
    commit: &'a Commit,
    has_place: bool,
}

impl Lead<'_> {
    /// Passes the end of the journal to the next leader. Fails if an earlier write failed.
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
