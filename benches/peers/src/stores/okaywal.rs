//! okaywal: a write-ahead log alone. It forgets what has been checkpointed, so it only runs
//! workloads that read nothing.

use std::io;

use okaywal::{
    Configuration, Entry as Recovered, EntryId, LogManager, SegmentReader, WriteAheadLog,
};

use super::{Described, Finds};
use crate::store::{Entry, Open, Peer};

pub(super) const DESCRIBED: Described = Described {
    name: "okaywal",
    form: None,
    groups: true,
    finds: Finds::Nothing,
    setting: "its defaults (always synced), segments of 64 MiB, used again; \
              keeps nothing that can be read",
};

const SEGMENT_BYTES: u32 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 20;

pub(super) struct OkayWal {
    log: WriteAheadLog,
}

/// Ignores the entries of recycled segments.
#[derive(Debug)]
struct Forgetful;

impl LogManager for Forgetful {
    fn recover(&mut self, _entry: &mut Recovered<'_>) -> io::Result<()> {
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last: EntryId,
        _entries: &mut SegmentReader,
        _log: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

impl OkayWal {
    pub(super) fn open(open: Open<'_>) -> Self {
        let configuration = Configuration::default_for(open.folder)
            .preallocate_bytes(SEGMENT_BYTES)
            .checkpoint_after_bytes(u64::from(SEGMENT_BYTES) / 10 * 9)
            .buffer_bytes(BUFFER_BYTES);
        Self {
            log: configuration.open(Forgetful).expect("okaywal opens"),
        }
    }
}

impl Peer for OkayWal {
    fn commit(&self, entries: &[Entry]) {
        let mut writer = self.log.begin_entry().expect("an entry");
        for entry in entries {
            writer.write_chunk(&entry.value).expect("a chunk");
        }
        writer.commit().expect("the commit succeeds");
    }
}
