//! Names segments and journal files in the manifest.
//!
//! Invariants:
//! * A file is removed or used again only after both slots are durable that no longer name it.
//! * After a failed write of one slot, this process writes neither of them again.

use crate::engine::Writer;
use crate::manifest::{Manifest, Reserved};
use crate::model::{Error, Result};

/// Returns the slots of the next manifest. Poisons the log if its folder was moved or replaced.
pub(super) fn reserve(writer: &Writer) -> Result<Reserved> {
    let manifest = writer.manifest.lock();
    manifest.reserve().map_err(|error| match error {
        Error::Displaced { .. } => writer.shared.state.poison(error),
        other => other,
    })
}

/// Writes the current state to the manifest: what `change` leaves, and the journal files after its
/// segments. A failure poisons the log.
pub(super) fn name_segments(
    writer: &Writer,
    slots: &Reserved,
    change: impl FnOnce(&mut Manifest),
) -> Result<()> {
    let state = &writer.shared.state;
    let mut manifest = writer.manifest.lock();
    // The write of another thread may have failed meanwhile, and its slot may be torn. The slot
    // that it wrote before must then stay as it is.
    state.check_poison()?;
    let value = &mut manifest.value;
    change(value);
    // By position, not by what is released yet: sealing and merging both come here.
    value.journal = writer.shared.recent.files_in_use(value.sealed_lsn());
    value.durable_lsn = state.durable_lsn();
    if let Some(newest) = value.journal.last() {
        value.incarnation = newest.incarnation;
    }
    manifest
        .store_in(slots)
        .map_err(|error| state.poison(error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Options;
    use crate::disk::RealDisk;

    #[test]
    fn the_slot_that_a_failed_write_left_whole_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::default());
        let engine = crate::engine::open(disk, folder.path(), Options::new()).unwrap();
        let writer = engine.writer().unwrap();
        let slots = reserve(writer).unwrap();
        let read = || {
            ["MANIFEST-0", "MANIFEST-1"]
                .map(|slot| std::fs::read(folder.path().join(slot)).unwrap())
        };
        let before = read();
        // As another thread does whose write fails.
        drop(writer.shared.state.poison(Error::Closed));
        name_segments(writer, &slots, |_manifest| ()).unwrap_err();
        writer.record_clean_stop().unwrap_err();
        assert!(read() == before, "a slot was written");
    }
}
