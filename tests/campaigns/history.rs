//! What sixteen threads did and saw, compared with the order of time. An append that was answered
//! before another began comes before it, and every later read sees it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;
use sessionlog::{Batch, Error, EventId, NewEvent, PageRequest, SessionId, SessionLog};

use super::process::small_files;
use super::support::report::{Dice, Report, Runs, seed};

const HISTORIES: Runs = Runs {
    quick: 2,
    full: 100,
};
const THREADS: u64 = 16;
const CALLS: u32 = 150;
const SESSIONS: usize = 5;

pub(crate) fn campaign() {
    let seed = seed();
    let mut report = Report::new("histories of 16 threads", seed, HISTORIES.planned());
    let mut dice = Dice(seed);
    while !report.is_done() {
        let seed = dice.roll();
        let calls = report.run(|| format!("seed {seed}"), || History::of(seed).check());
        report.count("calls", calls.unwrap_or_default());
    }
    report.end();
}

/// The times at which a call began and ended, by one logical clock.
#[derive(Debug, Clone, Copy)]
struct Span {
    begun: u64,
    ended: u64,
}

#[derive(Debug)]
struct Append {
    span: Span,
    session: usize,
    first: u64,
    last: u64,
    id: EventId,
}

/// What a reader saw of a session: its length, and its last event.
#[derive(Debug)]
struct Look {
    span: Span,
    session: usize,
    tail: u64,
}

#[derive(Default)]
struct History {
    appends: Vec<Append>,
    looks: Vec<Look>,
}

impl History {
    fn of(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = small_files().open(folder.path()).expect("open");
        let (clock, history) = (AtomicU64::new(0), Mutex::new(Self::default()));
        let sessions = (0..SESSIONS)
            .map(|n| SessionId::new(format!("session {n}")).expect("a name"))
            .collect::<Vec<_>>();
        thread::scope(|scope| {
            for n in 0..THREADS {
                let (log, clock, history, sessions) = (&log, &clock, &history, &sessions[..]);
                scope.spawn(move || {
                    let mut own = Self::default();
                    own.act(log, clock, sessions, Dice(seed ^ n << 56));
                    let mut all = history.lock();
                    all.appends.append(&mut own.appends);
                    all.looks.append(&mut own.looks);
                });
            }
        });
        history.into_inner()
    }

    fn act(&mut self, log: &SessionLog, clock: &AtomicU64, sessions: &[SessionId], mut dice: Dice) {
        for _ in 0..CALLS {
            let session = dice.index(sessions.len());
            let begun = clock.fetch_add(1, Ordering::SeqCst);
            if dice.one_in(3) {
                let longest = if dice.one_in(20) { 100_000 } else { 300 };
                let bytes = dice.index(longest);
                let events = (0..=dice.below(3)).map(|_| NewEvent::new("note", vec![7; bytes]));
                let ack = log
                    .append(&sessions[session], Batch::new().events(events))
                    .expect("append");
                let span = Span {
                    begun,
                    ended: clock.fetch_add(1, Ordering::SeqCst),
                };
                self.appends.push(Append {
                    span,
                    session,
                    first: ack.first,
                    last: ack.last,
                    id: ack.events[0].id,
                });
            } else {
                let tail = look(log, &sessions[session], &mut dice);
                let span = Span {
                    begun,
                    ended: clock.fetch_add(1, Ordering::SeqCst),
                };
                self.looks.push(Look {
                    span,
                    session,
                    tail,
                });
            }
        }
    }

    /// Returns how many calls there were.
    fn check(mut self) -> u64 {
        self.check_order_of_appends();
        for session in 0..SESSIONS {
            self.check_session(session);
        }
        (self.appends.len() + self.looks.len()) as u64
    }

    fn check_order_of_appends(&mut self) {
        self.appends.sort_by_key(|append| append.span.begun);
        let mut by_end: Vec<&Append> = self.appends.iter().collect();
        by_end.sort_by_key(|append| append.span.ended);
        let (mut answered, mut highest) = (by_end.into_iter().peekable(), None);
        for append in &self.appends {
            while let Some(before) =
                answered.next_if(|before| before.span.ended < append.span.begun)
            {
                highest = highest.max(Some(before.id));
            }
            assert!(
                highest < Some(append.id),
                "{append:?} began after {highest:?} was answered"
            );
        }
    }

    fn check_session(&self, session: usize) {
        let mut appends: Vec<&Append> = self
            .appends
            .iter()
            .filter(|append| append.session == session)
            .collect();
        appends.sort_by_key(|append| append.first);
        let mut end = 0;
        for append in &appends {
            assert_eq!(
                append.first,
                end + 1,
                "a gap or an overlap before {append:?}"
            );
            end = append.last;
        }
        assert!(
            appends.is_sorted_by_key(|append| append.id),
            "the order of IDs is the order of seqs"
        );
        for look in self.looks.iter().filter(|look| look.session == session) {
            let answered = appends
                .iter()
                .filter(|append| append.span.ended < look.span.begun)
                .map(|append| append.last)
                .max();
            let begun = appends
                .iter()
                .filter(|append| append.span.begun < look.span.ended)
                .map(|append| append.last)
                .max();
            assert!(
                answered.unwrap_or(0) <= look.tail,
                "{look:?} misses what was answered, up to {answered:?}"
            );
            assert!(
                look.tail <= begun.unwrap_or(0),
                "{look:?} saw what had not begun, behind {begun:?}"
            );
        }
        let mut looks: Vec<&Look> = self
            .looks
            .iter()
            .filter(|look| look.session == session)
            .collect();
        looks.sort_by_key(|look| look.span.begun);
        for (n, look) in looks.iter().enumerate() {
            let before = looks[..n]
                .iter()
                .filter(|before| before.span.ended < look.span.begun)
                .map(|before| before.tail)
                .max();
            assert!(
                before.unwrap_or(0) <= look.tail,
                "{look:?} saw less than an earlier one, {before:?}"
            );
        }
    }
}

/// Returns the length of a session, by one of the ways to read it.
fn look(log: &SessionLog, session: &SessionId, dice: &mut Dice) -> u64 {
    let seen = if dice.flip() {
        log.head(session).map(|head| head.last)
    } else {
        log.list(session, PageRequest::new().newest_first().limit(10))
            .map(|page| page.items.first().map_or(0, |event| event.seq))
    };
    match seen {
        Ok(tail) => tail,
        Err(Error::UnknownSession { .. }) => 0,
        Err(error) => panic!("a look failed: {error:?}"),
    }
}
