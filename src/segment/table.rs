//! Sorted tables in a segment. A table is a tree of pages of about 4 KiB. It is written once, from
//! the leaves up, and read through the cache.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::{ByteReader, Decoded, Fault, PAGE_HEADER_BYTES, Salt, put_prefixed, put_varint};
use crate::model::Result;
use crate::segment::sink::Sink;

const PAGE_BYTES: usize = 4096;

/// The offset of an entry in its page.
type Start = u16;
type StartBytes = [u8; size_of::<Start>()];

/// The place of a table's root page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableRoot {
    page: PageAddress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PageAddress {
    pub offset: u64,
    pub bytes: u32,
}

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// Writes a table from entries in strictly ascending order of their keys.
pub(crate) fn write_table<S: Sink>(
    sink: &mut S,
    salt: Salt,
    entries: impl Iterator<Item = Result<Pair>>,
) -> Result<TableRoot> {
    let mut level = 0;
    let mut pages = write_level(sink, salt, level, entries)?;
    while pages.len() > 1 {
        level += 1;
        let above = pages.into_iter().map(|(key, page)| {
            let mut value = Vec::with_capacity(8);
            put_varint(&mut value, page.offset);
            put_varint(&mut value, page.bytes.into());
            Ok((key, value))
        });
        pages = write_level(sink, salt, level, above)?;
    }
    let page = match pages.pop() {
        Some((_first_key, page)) => page,
        None => write_page(sink, salt, 0, &[])?,
    };
    Ok(TableRoot { page })
}

/// Writes the pages of one level and returns each page's first key and address.
fn write_level<S: Sink>(
    sink: &mut S,
    salt: Salt,
    level: u8,
    entries: impl Iterator<Item = Result<Pair>>,
) -> Result<Vec<(Vec<u8>, PageAddress)>> {
    let mut pages = Vec::new();
    let mut page = Vec::with_capacity(PAGE_BYTES);
    let mut first_key = None;
    for entry in entries {
        let (key, value) = entry?;
        if !page.is_empty()
            && page.len() + key.len() + value.len() + 4 > PAGE_BYTES - PAGE_HEADER_BYTES
        {
            pages.push((
                first_key.take().unwrap_or_default(),
                write_page(sink, salt, level, &page)?,
            ));
            page.clear();
        }
        put_prefixed(&mut page, &key);
        put_prefixed(&mut page, &value);
        first_key.get_or_insert(key);
    }
    if let Some(first_key) = first_key {
        pages.push((first_key, write_page(sink, salt, level, &page)?));
    }
    Ok(pages)
}

fn write_page<S: Sink>(sink: &mut S, salt: Salt, level: u8, entries: &[u8]) -> Result<PageAddress> {
    let offset = sink.offset();
    let length = u32::try_from(entries.len()).expect("a page holds a few entries with short keys");
    let checksum = salt
        .at(offset)
        .over(&length.to_le_bytes())
        .over(&[level])
        .checksum(entries);
    let mut page = Vec::with_capacity(PAGE_HEADER_BYTES + entries.len());
    page.extend_from_slice(&length.to_le_bytes());
    page.extend_from_slice(&checksum.to_le_bytes());
    page.push(level);
    page.extend_from_slice(entries);
    sink.put(&page)?;
    Ok(PageAddress {
        offset,
        bytes: u32::try_from(page.len()).expect("a page holds a few entries with short keys"),
    })
}

/// Checks a page's bytes and appends the offsets of its entries, for binary search. This is done
/// once, when they are read.
pub(crate) fn admit_page(salt: Salt, page: &mut Vec<u8>) -> Decoded<()> {
    let mut reader = ByteReader::new(page);
    let (length, checksum, level) = (reader.array::<4>()?, reader.u32()?, reader.u8()?);
    let entries = reader.take(reader.left())?;
    let matches = salt.over(&length).over(&[level]).checksum(entries) == checksum;
    if !matches || u32::from_le_bytes(length) as usize != entries.len() {
        return Err(Fault::Damaged {
            at: 4,
            what: "a checksum that does not match",
        });
    }
    put_starts(page)
}

fn put_starts(page: &mut Vec<u8>) -> Decoded<()> {
    let mut starts = Vec::new();
    let mut entries = ByteReader::from(page, PAGE_HEADER_BYTES)?;
    while entries.left() > 0 {
        let start = Start::try_from(entries.position())
            .map_err(|_too_large| entries.damaged("a page that is too large"))?;
        starts.extend_from_slice(&start.to_le_bytes());
        entries.prefixed()?;
        entries.prefixed()?;
    }
    // Reserves no more than the cache counts.
    page.reserve_exact(starts.len());
    page.append(&mut starts);
    Ok(())
}

/// A source of pages as [`admit_page`] leaves them.
pub(crate) trait Pages {
    fn page(&self, address: PageAddress) -> Result<Bytes>;
    /// Returns the error for a page whose entries do not decode.
    fn fault(&self, address: PageAddress, fault: Fault) -> crate::model::Error;
}

/// The key and the value of an entry.
pub(crate) type TableEntry = (Bytes, Bytes);

impl TableRoot {
    /// Returns the last entry whose key is at most `key`.
    pub(crate) fn floor(&self, pages: &impl Pages, key: &[u8]) -> Result<Option<TableEntry>> {
        let mut address = self.page;
        loop {
            let mut page = OpenPage::read(pages, address)?;
            let found = page
                .floor(key)
                .map_err(|fault| pages.fault(address, fault))?;
            let (Some((_, value)), false) = (&found, page.is_leaf()) else {
                return Ok(found);
            };
            address = child(value).map_err(|fault| pages.fault(address, fault))?;
        }
    }

    /// Returns the last entry whose key is below `key`.
    pub(crate) fn below(&self, pages: &impl Pages, key: &[u8]) -> Result<Option<TableEntry>> {
        let mut address = self.page;
        loop {
            let mut page = OpenPage::read(pages, address)?;
            let found = page
                .below(key)
                .map_err(|fault| pages.fault(address, fault))?;
            let (Some((_, value)), false) = (&found, page.is_leaf()) else {
                return Ok(found);
            };
            address = child(value).map_err(|fault| pages.fault(address, fault))?;
        }
    }

    /// Returns the entries from `key` on, in order.
    pub(crate) fn iter_from<'a, P: Pages>(
        &self,
        pages: &'a P,
        key: &[u8],
    ) -> Result<TableIter<'a, P>> {
        let mut iter = TableIter {
            pages,
            path: Vec::new(),
            failed: false,
        };
        let mut address = self.page;
        loop {
            let mut page = OpenPage::read(pages, address)?;
            let below = page
                .seek(key)
                .map_err(|fault| pages.fault(address, fault))?;
            let is_leaf = page.is_leaf();
            iter.path.push(page);
            if is_leaf {
                return Ok(iter);
            }
            address = below.ok_or_else(|| {
                pages.fault(
                    address,
                    Fault::Damaged {
                        at: 0,
                        what: "an empty page",
                    },
                )
            })?;
        }
    }
}

impl TableRoot {
    /// Returns the place of the root page.
    pub(super) fn offset(&self) -> u64 {
        self.page.offset
    }

    /// Passes every entry to `visit`, in order, also behind pages that cannot be read. Those are
    /// passed to `report`, and what is below them is left out.
    pub(crate) fn visit(
        &self,
        pages: &impl Pages,
        mut visit: impl FnMut(&Bytes, &Bytes),
        mut report: impl FnMut(crate::model::Error),
    ) {
        let mut left = vec![(self.page, None)];
        while let Some((address, level)) = left.pop() {
            let mut below = Vec::new();
            let visited = OpenPage::read(pages, address).and_then(|mut page| {
                let fault = |fault| pages.fault(address, fault);
                let own = page.level();
                if level.is_some_and(|expected| own != expected) {
                    return Err(fault(damaged("a page of another level")));
                }
                while let Some((key, value)) = page.next().map_err(fault)? {
                    match own.checked_sub(1) {
                        None => visit(&key, &value),
                        Some(level) => below.push((child(&value).map_err(fault)?, Some(level))),
                    }
                }
                Ok(())
            });
            if let Err(error) = visited {
                report(error);
            }
            left.extend(below.into_iter().rev());
        }
    }
}

fn damaged(what: &'static str) -> Fault {
    Fault::Damaged { at: 0, what }
}

/// An iterator over the entries of a table.
pub(crate) struct TableIter<'a, P> {
    pages: &'a P,
    /// The pages from the root to a leaf. Each is positioned just after the entry that was
    /// followed.
    path: Vec<OpenPage>,
    failed: bool,
}

impl<P: Pages> Iterator for TableIter<'_, P> {
    type Item = Result<TableEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let page = self.path.last_mut()?;
            let (address, is_leaf) = (page.address, page.is_leaf());
            match page.next() {
                Ok(Some(entry)) if is_leaf => return Some(Ok(entry)),
                Ok(Some((_, value))) => {
                    let below = child(&value).map_err(|fault| self.pages.fault(address, fault));
                    match below.and_then(|below| OpenPage::read(self.pages, below)) {
                        Ok(below) => self.path.push(below),
                        Err(error) => return Some(Err(self.fail(error))),
                    }
                }
                Ok(None) => {
                    self.path.pop();
                }
                Err(fault) => return Some(Err(self.fail(self.pages.fault(address, fault)))),
            }
        }
        None
    }
}

impl<P> TableIter<'_, P> {
    fn fail(&mut self, error: crate::model::Error) -> crate::model::Error {
        self.failed = true;
        error
    }
}

fn child(value: &[u8]) -> Decoded<PageAddress> {
    let mut reader = ByteReader::new(value);
    Ok(PageAddress {
        offset: reader.varint()?,
        bytes: reader.varint_u32()?,
    })
}

/// A page, its address and a position in it.
struct OpenPage {
    address: PageAddress,
    bytes: Bytes,
    /// The position of the next entry.
    nth: usize,
}

impl OpenPage {
    fn read(pages: &impl Pages, address: PageAddress) -> Result<Self> {
        Ok(Self {
            address,
            bytes: pages.page(address)?,
            nth: 0,
        })
    }

    fn is_leaf(&self) -> bool {
        self.level() == 0
    }

    fn level(&self) -> u8 {
        let level = self.bytes.get(PAGE_HEADER_BYTES - 1);
        level
            .copied()
            .expect("a page that was admitted has a header")
    }

    fn next(&mut self) -> Decoded<Option<TableEntry>> {
        let Some(start) = self.starts().get(self.nth) else {
            return Ok(None);
        };
        let mut reader = self.entry(*start)?;
        let key = reader.prefixed()?.len();
        let key_end = reader.position();
        let value = reader.prefixed()?.len();
        let end = reader.position();
        self.nth += 1;
        Ok(Some((
            self.bytes.slice(key_end - key..key_end),
            self.bytes.slice(end - value..end),
        )))
    }

    /// Returns the last entry whose key is at most `key`.
    fn floor(&mut self, key: &[u8]) -> Decoded<Option<TableEntry>> {
        let above = self.partition_point(|found| found <= key)?;
        let Some(floor) = above.checked_sub(1) else {
            return Ok(None);
        };
        self.nth = floor;
        self.next()
    }

    /// Returns the last entry whose key is below `key`.
    fn below(&mut self, key: &[u8]) -> Decoded<Option<TableEntry>> {
        let at_or_above = self.partition_point(|found| found < key)?;
        let Some(below) = at_or_above.checked_sub(1) else {
            return Ok(None);
        };
        self.nth = below;
        self.next()
    }

    /// In a leaf, moves to the first entry whose key is at least `key`.
    ///
    /// Above the leaves, moves past the entry under which `key` belongs and returns the page below
    /// that entry.
    fn seek(&mut self, key: &[u8]) -> Decoded<Option<PageAddress>> {
        if self.is_leaf() {
            self.nth = self.partition_point(|found| found < key)?;
            return Ok(None);
        }
        // A key before all entries belongs under the first.
        self.nth = self
            .partition_point(|found| found <= key)?
            .saturating_sub(1);
        self.next()?.map(|(_, value)| child(&value)).transpose()
    }

    /// Returns the number of leading entries for which `is_before` holds. It holds for none after
    /// them.
    fn partition_point(&self, is_before: impl Fn(&[u8]) -> bool) -> Decoded<usize> {
        let (mut before, mut left) = (0, self.starts());
        loop {
            let (lower, upper) = left.split_at(left.len() / 2);
            let Some((middle, higher)) = upper.split_first() else {
                return Ok(before);
            };
            if is_before(self.entry(*middle)?.prefixed()?) {
                before += lower.len() + 1;
                left = higher;
            } else {
                left = lower;
            }
        }
    }

    fn entry(&self, start: StartBytes) -> Decoded<ByteReader<'_>> {
        ByteReader::from(&self.bytes, Start::from_le_bytes(start).into())
    }

    /// Returns the offsets that were appended to the page. The page begins with its own length.
    fn starts(&self) -> &[StartBytes] {
        let length = self
            .bytes
            .first_chunk()
            .map_or(0, |length| u32::from_le_bytes(*length));
        let starts = self
            .bytes
            .get(PAGE_HEADER_BYTES + length as usize..)
            .unwrap_or_default();
        starts.as_chunks().0
    }
}

/// Walks a page that was not checked.
#[cfg(fuzzing)]
pub(crate) fn decode_page(bytes: &[u8]) {
    let (mut page, address) = (
        bytes.to_vec(),
        PageAddress {
            offset: 0,
            bytes: 0,
        },
    );
    let Some((length, entries)) = page.split_first_chunk_mut() else {
        return;
    };
    let Some(entries) = entries.len().checked_sub(PAGE_HEADER_BYTES - length.len()) else {
        return;
    };
    *length = (entries as u32).to_le_bytes();
    if put_starts(&mut page).is_err() {
        return;
    }
    let mut page = OpenPage {
        address,
        bytes: page.into(),
        nth: 0,
    };
    let _refused_or_not = (page.seek(b"key"), page.floor(b"key"));
    page.nth = 0;
    while let Ok(Some(_)) = page.next() {}
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Error;

    #[derive(Default)]
    pub(in crate::segment) struct InMemory(pub Vec<u8>);

    impl Sink for InMemory {
        fn offset(&self) -> u64 {
            self.0.len() as u64
        }

        fn put(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    impl Pages for InMemory {
        fn page(&self, address: PageAddress) -> Result<Bytes> {
            let from = usize::try_from(address.offset).unwrap();
            let mut page = self.0[from..from + address.bytes as usize].to_vec();
            admit_page(Salt::NONE.at(address.offset), &mut page)
                .map_err(|fault| self.fault(address, fault))?;
            Ok(page.into())
        }

        fn fault(&self, address: PageAddress, fault: Fault) -> Error {
            fault.at("table".as_ref(), address.offset)
        }
    }

    proptest! {
        #[test]
        fn a_table_answers_like_a_sorted_map(
            entries in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 1..60),
                proptest::collection::vec(any::<u8>(), 0..60),
                1..600,
            ),
            probes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 50),
        ) {
            let mut file = InMemory::default();
            let sorted = entries.clone().into_iter().map(Ok);
            let root = write_table(&mut file, Salt::NONE, sorted).unwrap();
            for probe in probes.iter().chain(entries.keys()) {
                let floor = root
                    .floor(&file, probe)
                    .unwrap()
                    .map(|(key, value)| (key.to_vec(), value.to_vec()));
                let expected = entries
                    .range(..=probe.clone())
                    .next_back()
                    .map(|(key, value)| (key.clone(), value.clone()));
                prop_assert_eq!(floor, expected);
                let from: Vec<Bytes> = root
                    .iter_from(&file, probe)
                    .unwrap()
                    .take(5)
                    .map(|entry| entry.unwrap().0)
                    .collect();
                let expected: Vec<Bytes> = entries
                    .range(probe.clone()..)
                    .take(5)
                    .map(|(key, _)| Bytes::copy_from_slice(key))
                    .collect();
                prop_assert_eq!(from, expected);
            }
            prop_assert_eq!(root.iter_from(&file, &[]).unwrap().count(), entries.len());
        }
    }
}
