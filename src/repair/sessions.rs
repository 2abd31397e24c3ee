//! Checks each session over all segments and the journal: that its seqs have no holes, that its
//! records follow each other, and that nothing is missing of what it shares with others.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Record, SessionState};
use crate::model::{Error, Result, Seq, SessionId};
use crate::read::shared_with;
use crate::segment::{RunEntry, RunTail, Segment, split_run_key};

/// Events that a session shares with others.
struct Shared {
    fork: SessionId,
    ancestor: SessionId,
    generation: u32,
    seqs: RangeInclusive<Seq>,
}

/// Checks the sessions, and returns how many there are. `journal` has the records that are in no
/// segment, in commit order.
pub(super) fn check_sessions(
    segments: &[Arc<Segment>],
    journal: &[Record],
    report: &mut dyn FnMut(Error),
) -> Result<u64> {
    let mut recent: BTreeMap<&SessionId, Vec<&Record>> = BTreeMap::new();
    for record in journal {
        recent.entry(&record.session).or_default().push(record);
    }
    let mut sources = segments
        .iter()
        .map(Source::new)
        .collect::<Result<Vec<_>>>()?;
    let (mut sessions, mut shared) = (0, Vec::new());
    let mut names = recent.keys().copied().peekable();
    loop {
        let sealed = sources.iter().filter_map(Source::next_name).min();
        let name = match (sealed, names.peek()) {
            (Some(sealed), Some(name)) if **name < sealed => (*name).clone(),
            (Some(sealed), _) => sealed,
            (None, Some(name)) => (*name).clone(),
            (None, None) => break,
        };
        if names.peek().is_some_and(|next| **next == name) {
            names.next();
        }
        let mut history = History {
            session: name.clone(),
            runs: Vec::new(),
            state: SessionState::default(),
            place: None,
        };
        for source in &mut sources {
            source.take(&mut history)?;
        }
        for record in recent.get(&name).into_iter().flatten() {
            history.add(record);
        }
        history.check(report);
        sessions += u64::from(history.state.is_there());
        history.note_shared(&mut shared);
    }
    for shared in &shared {
        check_shared(segments, journal, shared, report)?;
    }
    Ok(sessions)
}

/// The run table of a segment, session by session.
struct Source<'a> {
    segment: &'a Arc<Segment>,
    runs: Box<dyn Iterator<Item = Result<(Bytes, RunEntry)>> + 'a>,
    next: Option<(SessionId, RunEntry)>,
}

impl<'a> Source<'a> {
    fn new(segment: &'a Arc<Segment>) -> Result<Self> {
        let mut source = Self {
            segment,
            runs: Box::new(segment.runs()?),
            next: None,
        };
        source.step()?;
        Ok(source)
    }

    fn step(&mut self) -> Result<()> {
        let next = self.runs.next().transpose()?;
        let named = next.and_then(|(key, entry)| {
            let (name, _, _) = split_run_key(&key)?;
            Some((SessionId::from_stored(name, &key).ok()?.detached(), entry))
        });
        self.next = named;
        Ok(())
    }

    fn next_name(&self) -> Option<SessionId> {
        self.next.as_ref().map(|(name, _)| name.clone())
    }

    /// Adds what the segment has of a session.
    fn take(&mut self, history: &mut History) -> Result<()> {
        while let Some((name, entry)) = &self.next
            && *name == history.session
        {
            let run = entry.run;
            if run.events > 0 {
                history.runs.push((run.generation, run.first..=run.last()));
            }
            if let RunTail::State(state) = &entry.tail {
                history.state = self.segment.decode_state(state)?;
                history.place = Some((Arc::clone(self.segment), run.address.block_offset));
            }
            self.step()?;
        }
        Ok(())
    }
}

/// Everything that is stored of a session.
struct History {
    session: SessionId,
    /// In commit order.
    runs: Vec<(u32, RangeInclusive<Seq>)>,
    state: SessionState,
    /// Where the newest state in a segment belongs.
    place: Option<(Arc<Segment>, u64)>,
}

impl History {
    fn add(&mut self, record: &Record) {
        if record.count > 0 {
            self.runs
                .push((record.generation, record.first..=record.last()));
        }
        self.state.apply(record);
    }

    fn check(&self, report: &mut dyn FnMut(Error)) {
        let mut fault = |what: String| {
            let what = format!("session {}: {what}", self.session);
            report(match &self.place {
                Some((segment, offset)) => Error::corrupt(segment.path(), *offset, what),
                None => Error::corrupt("journal", 0, what),
            });
        };
        for pair in self.runs.windows(2) {
            let [(before, seqs), (after, next)] = pair else {
                continue;
            };
            let follows = before < after || (before == after && seqs.end() < next.start());
            if !follows {
                fault(format!("seq {} is stored twice", next.start()));
            }
        }
        if !self.state.is_there() {
            return;
        }
        let branched = self.state.lineage().map_or(0, |lineage| lineage.at);
        let own = self.state.first.max(branched + 1)..=self.state.last;
        for hole in holes(&self.runs, self.state.generation, &own) {
            fault(format!(
                "the events {} to {} are missing",
                hole.start(),
                hole.end()
            ));
        }
    }

    fn note_shared(&self, shared: &mut Vec<Shared>) {
        for piece in self.state.pieces() {
            let seqs = shared_with(&self.state, &piece.session, piece.generation);
            shared.extend(seqs.map(|seqs| Shared {
                fork: self.session.clone(),
                ancestor: piece.session.clone(),
                generation: piece.generation,
                seqs,
            }));
        }
    }
}

/// Returns the seqs of a generation that no run has.
fn holes(
    runs: &[(u32, RangeInclusive<Seq>)],
    generation: u32,
    wanted: &RangeInclusive<Seq>,
) -> Vec<RangeInclusive<Seq>> {
    let (mut next, mut holes) = (*wanted.start(), Vec::new());
    for (_, seqs) in runs.iter().filter(|(of, _)| *of == generation) {
        let first = *seqs.start();
        if first > next && next <= *wanted.end() {
            holes.push(next..=(first - 1).min(*wanted.end()));
        }
        next = next.max(*seqs.end() + 1);
    }
    if next <= *wanted.end() {
        holes.push(next..=*wanted.end());
    }
    holes
}

/// Returns the events of a generation that no segment has, and no record of the journal.
pub(super) fn missing<'a>(
    segments: impl Iterator<Item = &'a Arc<Segment>>,
    journal: &[Record],
    (session, generation): (&SessionId, u32),
    wanted: &RangeInclusive<Seq>,
) -> Result<Vec<RangeInclusive<Seq>>> {
    let mut runs = Vec::new();
    for segment in segments {
        for run in segment.runs_of(session, generation)? {
            runs.push((run.generation, run.first..=run.last()));
        }
    }
    for record in journal {
        if record.session == *session && record.count > 0 {
            runs.push((record.generation, record.first..=record.last()));
        }
    }
    Ok(holes(&runs, generation, wanted))
}

/// Checks that an ancestor still has what a fork shares with it.
fn check_shared(
    segments: &[Arc<Segment>],
    journal: &[Record],
    shared: &Shared,
    report: &mut dyn FnMut(Error),
) -> Result<()> {
    let (fork, ancestor) = (&shared.fork, &shared.ancestor);
    let of = (ancestor, shared.generation);
    for hole in missing(segments.iter(), journal, of, &shared.seqs)? {
        let (first, last) = (hole.start(), hole.end());
        let what = format!(
            "session {ancestor}: the events {first} to {last} are missing, which session {fork} \
             shares"
        );
        let path = segments.last().map(|segment| segment.path().to_path_buf());
        report(Error::corrupt(path.unwrap_or_default(), 0, what));
    }
    Ok(())
}
