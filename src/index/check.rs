//! Compares the index with the segments.

use crate::index::entry::{IndexEntry, KIND_COVERAGE, entry_key};
use crate::index::{Index, guarded};
use crate::model::Error;
use crate::segment::SegmentSet;

impl Index {
    /// Compares every entry with the segment that it names, and passes what is wrong to `report`.
    /// Returns the number of entries.
    ///
    /// Entries of segments that are gone are passed over, as readers do.
    pub(crate) fn check(&self, segments: &SegmentSet, report: &mut dyn FnMut(Error)) -> u64 {
        let mut fault = |what: String| report(Error::corrupt(&*self.folder, 0, what));
        let db = match self.opened(segments) {
            Ok(db) => db,
            Err(failure) => {
                fault(failure.what());
                return 0;
            }
        };
        let (mut checked, mut entries) = (0, db.iter());
        loop {
            match guarded(|| entries.next()) {
                Some(None) => break,
                Some(Some(Ok((key, value)))) => {
                    if key.first() == Some(&KIND_COVERAGE) {
                        continue;
                    }
                    checked += 1;
                    if let Err(what) = check_entry(segments, &key, &value) {
                        fault(what);
                    }
                }
                Some(Some(Err(error))) => {
                    fault(error.to_string());
                    break;
                }
                None => {
                    fault("reading it panics".to_owned());
                    break;
                }
            }
        }
        drop((entries, db));
        self.close();
        checked
    }
}

/// Checks that an entry names the first record of its run.
fn check_entry(segments: &SegmentSet, key: &[u8], value: &[u8]) -> Result<(), String> {
    let entry = IndexEntry::read(key, value).ok_or("an entry that does not decode")?;
    let Some(segment) = segments.by_number(entry.segment) else {
        return Ok(());
    };
    let record = segment.record_at(entry.run.address);
    let record = record.map_err(|error| format!("an entry that leads nowhere: {error}"))?;
    let named = entry_key(&record.session, record.generation, record.first);
    if named == key {
        Ok(())
    } else {
        let path = segment.path().display();
        Err(format!("an entry that leads to another record, in {path}"))
    }
}
