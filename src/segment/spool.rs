//! Entries of a table that is being made, until they are written in the order of their keys.

/// Entries in memory, in the order in which they came.
#[derive(Default)]
pub(super) struct Spool {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// The place of an entry: its key, then its value.
#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    key_bytes: u32,
    value_bytes: u32,
}

impl Spool {
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) {
        let bytes = |part: &[u8]| u32::try_from(part.len()).expect("keys and values are short");
        self.entries.push(Entry {
            at: self.bytes.len(),
            key_bytes: bytes(key),
            value_bytes: bytes(value),
        });
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the entries in the order of their keys.
    pub(super) fn into_sorted(mut self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let bytes = std::mem::take(&mut self.bytes);
        let part = |at: usize, length: u32| {
            bytes
                .get(at..at + length as usize)
                .expect("an entry lies within the spooled bytes")
        };
        let key = |entry: &Entry| part(entry.at, entry.key_bytes);
        self.entries.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        let entries = std::mem::take(&mut self.entries);
        entries.into_iter().map(move |entry| {
            let end = entry.at + (entry.key_bytes + entry.value_bytes) as usize;
            let (key, value) = bytes
                .get(entry.at..end)
                .expect("an entry lies within the spooled bytes")
                .split_at(entry.key_bytes as usize);
            (key.to_vec(), value.to_vec())
        })
    }
}
