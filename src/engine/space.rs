//! The space that a log takes, as its manifest and its memory have it. Nothing is read.

use crate::engine::Engine;
use crate::model::{EventId, Space, now_ms, timestamp};
use crate::segment::{SegmentInfo, SegmentSet};
use crate::sync::Ordering;

const DAY_MS: u64 = 24 * 3_600_000;

impl Engine {
    pub(super) fn space(&self, segments: &SegmentSet) -> Space {
        let recent = &self.recent;
        let infos = || segments.iter().map(|segment| &segment.info);
        let segment_bytes: u64 = infos().map(|info| info.file_bytes).sum();
        let (mut journal_files, mut journal_bytes) = recent.journal();
        if let Some(writer) = &self.writer {
            let (files, bytes) = writer.shared.spares.ready();
            journal_files += files;
            journal_bytes += bytes;
        }
        let dead_bytes = self.with_manifest(0, |manifest| {
            manifest.dead_bytes().map(|(_, bytes)| bytes).sum()
        });
        let now = now_ms(&self.store.options.clock);
        let last_day: u64 = infos().map(|info| bytes_of_last_day(info, now)).sum();
        Space {
            live_bytes: segment_bytes.saturating_sub(dead_bytes),
            dead_bytes,
            journal_bytes,
            total_bytes: segment_bytes + journal_bytes,
            journal_files,
            files: infos().count() as u64 + journal_files,
            merging_bytes: self.counters.merging_bytes.load(Ordering::Relaxed),
            growth_bytes_a_day: last_day + recent.bytes(),
            oldest: infos()
                .map(SegmentInfo::first_id)
                .find(|id| *id > EventId::from_u128(0))
                .or_else(|| Some(recent.records_from(EventId::from_u128(0), 1).first()?.base))
                .map(|id| timestamp(id.timestamp_ms())),
        }
    }
}

/// Returns the bytes of a segment's part of the last day, as if its bytes came evenly in time.
fn bytes_of_last_day(info: &SegmentInfo, now_ms: u64) -> u64 {
    let (first, last) = (
        info.first_id().timestamp_ms(),
        info.last_id().timestamp_ms(),
    );
    let from = now_ms.saturating_sub(DAY_MS);
    if last < from {
        return 0;
    }
    let (whole, part) = (last - first + 1, last - from.max(first) + 1);
    let bytes = u128::from(info.file_bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(bytes).unwrap_or(info.file_bytes)
}
