//! Locks, threads and time under a scheduler that explores many orders of events. The types have
//! the names of those they replace.
//!
//! Time advances only in waits with a deadline. A random part of these times out at once.

use std::ops::{Add, Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64 as PlainU64, Ordering as PlainOrdering};
use std::time::Duration;

use shuttle::rand::Rng;
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use shuttle::thread::{Builder as Threads, JoinHandle, current, scope, yield_now};

/// One in this many waits with a deadline times out.
const ONE_TIMEOUT_IN: u32 = 4;

/// The current time, in nanoseconds.
static NOW: PlainU64 = PlainU64::new(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(u64);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(NOW.load(PlainOrdering::SeqCst))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Duration::from_nanos(Self::now().0 - self.0)
    }

    pub(crate) fn checked_add(self, wait: Duration) -> Option<Self> {
        u64::try_from(wait.as_nanos())
            .ok()
            .and_then(|nanos| self.0.checked_add(nanos))
            .map(Self)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, wait: Duration) -> Self {
        self.checked_add(wait).expect("time does not end")
    }
}

/// A count outside the explored state. It continues from one run to the next.
pub(crate) struct Tally(PlainU64);

impl Tally {
    pub(crate) const fn new() -> Self {
        Self(PlainU64::new(0))
    }

    pub(crate) fn count(&self) {
        self.0.fetch_add(1, PlainOrdering::SeqCst);
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(PlainOrdering::SeqCst)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: &self.0,
            held: Some(lock(&self.0)),
        }
    }
}

fn lock<T>(mutex: &shuttle::sync::Mutex<T>) -> shuttle::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a shuttle::sync::Mutex<T>,
    held: Option<shuttle::sync::MutexGuard<'a, T>>,
}

impl<T> MutexGuard<'_, T> {
    pub(crate) fn unlocked<U>(this: &mut Self, act: impl FnOnce() -> U) -> U {
        this.held = None;
        let acted = act();
        this.held = Some(lock(this.mutex));
        acted
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held
            .as_ref()
            .expect("it is held but within `unlocked`")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held
            .as_mut()
            .expect("it is held but within `unlocked`")
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

pub(crate) struct TimedOut(bool);

impl TimedOut {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect("it is held");
        guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> TimedOut {
        let times_out = shuttle::rand::thread_rng().gen_range(0..ONE_TIMEOUT_IN) == 0;
        if times_out {
            MutexGuard::unlocked(guard, yield_now);
            NOW.fetch_max(deadline.0, PlainOrdering::SeqCst);
        } else {
            self.wait(guard);
        }
        TimedOut(times_out)
    }

    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, wait: Duration) -> TimedOut {
        self.wait_until(guard, Instant::now() + wait)
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> shuttle::sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
