//! Reads the journal back and changes nothing. Replay follows the chain of groups from file to file
//! and tells a torn tail from corruption.
//!
//! The chain ends at the first group that is not whole or does not continue it. That place is the
//! end of the log, unless a valid later group, witness, file header or the manifest records a
//! durable LSN above it. Then acknowledged bytes are damaged, and replay fails.
//!
//! A reader [follows](follow) the journal while another process writes it. A group that is not
//! whole yet ends the chain as a torn one does. Files may be removed, and be overwritten in another
//! use, as soon as the manifest no longer names them. So the reader has to look at the manifest
//! again after it has read them.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::codec::{Fault, FileHeader, GROUP_HEADER_BYTES, GroupHeader, StoreId};
use crate::disk::{BLOCK, Disk, Window, read_device};
use crate::journal::window::{End, ReplayedGroup, group_at, open_window};
use crate::journal::{self, HEADER_BYTES, group_bytes};
use crate::manifest::{JournalUse, Manifest};
use crate::model::{Error, EventId, JOURNAL_FILE_BYTES_CEILING, Result};

/// The longest journal file, in bytes. It has room for a group as large as the largest file size
/// that the options allow.
const FILE_BYTES_MAX: u64 = 2 * JOURNAL_FILE_BYTES_CEILING as u64;

/// The content of the journal.
pub(crate) struct Replayed {
    /// The files in use, in commit order. There is at least one.
    pub files: Vec<ReplayedFile>,
    /// Numbers and sizes of the files that hold nothing that counts.
    pub unused: Vec<(u32, u64)>,
    /// The end of the log.
    pub end_lsn: u64,
    pub last_id: EventId,
    /// Higher than the incarnation of any file that was ever used.
    pub next_incarnation: u64,
}

pub(crate) struct ReplayedFile {
    pub number: u32,
    pub bytes: u64,
    pub header: FileHeader,
    pub groups: Vec<ReplayedGroup>,
    pub end_lsn: u64,
    /// The chain value at `end_lsn`.
    pub end_chain: u32,
    /// The highest event ID assigned before `end_lsn`.
    pub end_id: EventId,
}

/// The position up to which a reader has followed the journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reached {
    number: u32,
    end: End,
}

impl Reached {
    pub(crate) fn lsn(&self) -> u64 {
        self.end.lsn
    }

    fn file(&self) -> JournalUse {
        JournalUse {
            number: self.number,
            incarnation: self.end.incarnation,
        }
    }
}

impl Replayed {
    /// Returns the position that was read up to.
    pub(crate) fn reached(&self) -> Option<Reached> {
        let last = self.files.last()?;
        let end = End {
            lsn: last.end_lsn,
            chain: last.end_chain,
            incarnation: last.header.incarnation,
            last_id: last.end_id,
        };
        let number = last.number;
        Some(Reached { number, end })
    }
}

impl ReplayedFile {
    pub(crate) fn used_as(&self) -> JournalUse {
        JournalUse {
            number: self.number,
            incarnation: self.header.incarnation,
        }
    }
}

/// Reads the files that `manifest` names, and the files that continue them.
///
/// # Errors
///
/// * [`Error::Corrupt`] if a named file is missing, does not continue the one before, or is too
///   short.
/// * [`Error::Corrupt`] if a file is of another store, or if bytes that were durable are damaged.
/// * [`Error::Unsupported`] if a file is of a later version.
/// * [`Error::Io`] if the disk fails.
pub(crate) fn replay(disk: &dyn Disk, folder: &Path, manifest: &Manifest) -> Result<Replayed> {
    let walked = walk(disk, folder, manifest, None)?;
    if walked.recorded_lsn > walked.replayed.end_lsn {
        return Err(walked.damage_at_the_end());
    }
    Ok(walked.replayed)
}

/// Reads the journal like [`replay`], beside a writer. With a position it reads on from there, if
/// the file is still in the same use. Otherwise it returns earlier groups too.
///
/// # Errors
///
/// Those of [`replay`]. They mean nothing if the manifest has changed meanwhile, and neither does
/// the result.
pub(crate) fn follow(
    disk: &dyn Disk,
    folder: &Path,
    manifest: &Manifest,
    reached: Option<Reached>,
) -> Result<Replayed> {
    let first = walk(disk, folder, manifest, reached)?;
    if first.recorded_lsn <= first.replayed.end_lsn {
        return Ok(first.replayed);
    }
    // The group at the end may have become whole, and have been recorded as durable, after it was
    // read and before the rest was. What was recorded by then is whole at the second look.
    let second = walk(disk, folder, manifest, reached)?;
    if second.replayed.end_lsn < first.recorded_lsn {
        return Err(second.damage_at_the_end());
    }
    Ok(second.replayed)
}

/// What a walk found, whether or not it is all that should be there.
struct Walked {
    replayed: Replayed,
    /// The highest durable LSN found anywhere.
    recorded_lsn: u64,
    /// The file with the end of the chain.
    last: PathBuf,
}

impl Walked {
    fn damage_at_the_end(&self) -> Error {
        let Replayed { files, end_lsn, .. } = &self.replayed;
        let start_lsn = files.last().map_or(0, |file| file.header.start_lsn);
        damage(&self.last, end_lsn - start_lsn, self.recorded_lsn)
    }
}

fn damage(file: &Path, at_lsn: u64, recorded_lsn: u64) -> Error {
    let what = format!("a group that was durable, up to LSN {recorded_lsn}, is not whole");
    Error::corrupt(file, HEADER_BYTES + at_lsn, what)
}

/// Follows the chain from file to file, and looks for durable LSNs behind its end.
fn walk(
    disk: &dyn Disk,
    folder: &Path,
    manifest: &Manifest,
    reached: Option<Reached>,
) -> Result<Walked> {
    let mut candidates = Candidates::read(disk, folder, manifest.store)?;
    let Some(first) = manifest.journal.first() else {
        return Err(Error::corrupt(
            folder,
            0,
            "the manifest names no journal file",
        ));
    };
    let resumed = reached.and_then(|reached| {
        let (file, named) = candidates.take_reached(reached.file(), &manifest.journal)?;
        Some((file, reached.end, named))
    });
    let last = manifest.journal.last().filter(|_| manifest.clean);
    let closed = last.map(|last| Closed {
        incarnation: last.incarnation,
        lsn: manifest.durable_lsn,
    });
    let (store, durable_lsn) = (manifest.store, manifest.durable_lsn);
    let mut walk = Walk {
        disk,
        store,
        closed,
        durable_lsn,
        scan: if resumed.is_some() {
            Scan::WhatWasRead
        } else {
            Scan::All
        },
        files: Vec::new(),
        end: None,
    };
    let (mut next, mut from, mut named) = match resumed {
        Some((file, end, named)) => (file, Some(end), named),
        None => (
            candidates.take_named(first.number, first.incarnation)?,
            None,
            1,
        ),
    };
    loop {
        let end = walk.follow(next, from.take())?;
        next = match manifest.journal.get(named) {
            Some(named) => {
                let file = candidates.take_named(named.number, named.incarnation)?;
                walk.durable_lsn = walk.durable_lsn.max(file.header.start_lsn);
                if !end.is_continued_by(&file.header) {
                    return Err(walk.damage_at_the_end());
                }
                file
            }
            None => match candidates.take_next(&end) {
                Some(file) => file,
                None => break,
            },
        };
        named += 1;
    }
    walk.finish(candidates, manifest.incarnation)
}

/// Returns whether a journal file holds anything that looks like a group, of any store.
pub(crate) fn holds_group(disk: &dyn Disk, path: &Path) -> Result<bool> {
    let start = read_device(disk, path, 2 * BLOCK)?;
    Ok(start
        .as_slice()
        .get(BLOCK..)
        .is_some_and(GroupHeader::is_begun))
}

/// Returns the store that a journal file is of, if its header says so.
pub(crate) fn store_of(disk: &dyn Disk, path: &Path) -> Result<Option<StoreId>> {
    let block = read_device(disk, path, BLOCK)?;
    let header = FileHeader::decode(block.as_slice());
    Ok(header.ok().flatten().map(|header| header.store))
}

struct Candidate {
    path: PathBuf,
    number: u32,
    bytes: u64,
    header: FileHeader,
}

/// The journal files that the walk has not reached yet.
struct Candidates {
    folder: PathBuf,
    used: HashMap<u32, Candidate>,
    /// Files with zeroes or damage instead of a header.
    others: Vec<(PathBuf, u32, u64)>,
}

impl Candidates {
    fn read(disk: &dyn Disk, folder: &Path, store: StoreId) -> Result<Self> {
        let mut found = Self {
            folder: folder.to_path_buf(),
            used: HashMap::new(),
            others: Vec::new(),
        };
        for (name, bytes) in disk.list(folder)? {
            let Some(number) = journal::number(&name) else {
                continue;
            };
            let path = folder.join(name);
            let length = BLOCK.min(usize::try_from(bytes).unwrap_or(BLOCK));
            let block = match read_device(disk, &path, length) {
                Ok(block) => block,
                // A writer beside has removed a file that it does not use.
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            // Bytes after the longest length that a file can be made with are not part of the
            // journal.
            let bytes = bytes.min(FILE_BYTES_MAX);
            match FileHeader::decode(block.as_slice()) {
                Ok(Some(header)) if header.store == store => {
                    let bytes = bytes.min(u64::from(header.blocks) * BLOCK as u64);
                    found.used.insert(
                        number,
                        Candidate {
                            path,
                            number,
                            bytes,
                            header,
                        },
                    );
                }
                Ok(Some(_of_another)) => {
                    return Err(Error::corrupt(path, 16, "a journal file of another store"));
                }
                Ok(None) | Err(Fault::Damaged { .. }) => found.others.push((path, number, bytes)),
                Err(unknown) => return Err(unknown.at(&path, 0)),
            }
        }
        Ok(found)
    }

    fn take_named(&mut self, number: u32, incarnation: u64) -> Result<Candidate> {
        match self.used.remove(&number) {
            Some(file) if file.header.incarnation == incarnation => Ok(file),
            _ => Err(Error::corrupt(
                journal::path(&self.folder, number),
                0,
                "not the journal file that the manifest names",
            )),
        }
    }

    /// Takes the file that a reader has read up to, and the number of named files up to it.
    ///
    /// Returns `None` if it is no longer in that use. A file that is not named is in use if it is
    /// newer than all that are.
    fn take_reached(
        &mut self,
        reached: JournalUse,
        named: &[JournalUse],
    ) -> Option<(Candidate, usize)> {
        let is_newer = |last: &JournalUse| reached.incarnation > last.incarnation;
        let place = match named.iter().position(|file| *file == reached) {
            Some(place) => place + 1,
            None if named.last().is_some_and(is_newer) => named.len(),
            None => return None,
        };
        let file = self.take_named(reached.number, reached.incarnation).ok()?;
        Some((file, place))
    }

    fn take_next(&mut self, end: &End) -> Option<Candidate> {
        let next = self
            .used
            .values()
            .filter(|file| end.is_continued_by(&file.header));
        // If a recovery was interrupted while it rewrote a file, two files continue the chain. The
        // one with the lower incarnation is whole.
        let number = next.min_by_key(|file| file.header.incarnation)?.number;
        self.used.remove(&number)
    }
}

/// The end of the log when it was closed, if the manifest was not written after that.
struct Closed {
    /// The incarnation of the file with that end.
    incarnation: u64,
    lsn: u64,
}

/// The part of the chain in one file.
struct Chain {
    groups: Vec<ReplayedGroup>,
    end: End,
    /// The highest durable LSN recorded in the file.
    durable_lsn: u64,
    /// Whether a header after the end continues the chain, though its group is not whole in the
    /// part of the file that was read.
    continues: bool,
}

/// Where a walk looks for a durable LSN above the end of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// In the rest of the last file, and in all files that may have been used after it.
    All,
    /// In the part of the last file that was read with the end, and in the headers of files. A
    /// reader that looks for news many times a second should not read a whole file each time.
    /// Damage beyond that shows once the writer has begun another file.
    WhatWasRead,
}

struct Walk<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    closed: Option<Closed>,
    scan: Scan,
    /// The highest durable LSN found anywhere so far.
    durable_lsn: u64,
    files: Vec<ReplayedFile>,
    end: Option<(PathBuf, End)>,
}

impl Walk<'_> {
    /// Reads one file up to the end of its chain, from its start or from a position in it.
    fn follow(&mut self, file: Candidate, from: Option<End>) -> Result<End> {
        let header = file.header;
        if journal::blocks(file.bytes) < header.blocks {
            return Err(Error::corrupt(
                file.path,
                file.bytes,
                "a journal file that was cut short",
            ));
        }
        let whole = to_length(&file.path, file.bytes)?;
        let used = self.length_used(&file, whole);
        let from = from.unwrap_or(End {
            lsn: header.start_lsn,
            chain: header.chain,
            incarnation: header.incarnation,
            last_id: header.last_id,
        });
        let mut chain = self.chain_in(&file, from, used)?;
        if used < whole && (chain.continues || !self.is_closed_at(&chain.end)) {
            chain = self.chain_in(&file, from, whole)?;
        }
        let Chain {
            groups,
            end,
            durable_lsn,
            ..
        } = chain;
        self.durable_lsn = self.durable_lsn.max(durable_lsn);
        let (number, bytes) = (file.number, file.bytes);
        let End {
            lsn: end_lsn,
            chain: end_chain,
            last_id: end_id,
            ..
        } = end;
        self.files.push(ReplayedFile {
            number,
            bytes,
            header,
            groups,
            end_lsn,
            end_chain,
            end_id,
        });
        self.end = Some((file.path, end));
        Ok(end)
    }

    /// Returns how many bytes of a file count if the log was closed in it: its header, the groups,
    /// and the block where the next group would begin.
    fn length_used(&self, file: &Candidate, whole: usize) -> usize {
        let closed = self
            .closed
            .as_ref()
            .filter(|closed| closed.incarnation == file.header.incarnation);
        let groups = closed.and_then(|closed| closed.lsn.checked_sub(file.header.start_lsn));
        let groups = groups.and_then(|groups| usize::try_from(groups).ok());
        groups.map_or(whole, |groups| groups.saturating_add(2 * BLOCK).min(whole))
    }

    fn is_closed_at(&self, end: &End) -> bool {
        self.closed
            .as_ref()
            .is_some_and(|closed| closed.lsn == end.lsn)
    }

    /// Reads the groups in the first `length` bytes of a file that continue the chain at `from`.
    fn chain_in(&self, file: &Candidate, from: End, length: usize) -> Result<Chain> {
        let mut end = from;
        let mut window = open_window(self.disk, &file.path, length)?;
        let (mut groups, mut durable_lsn) = (Vec::new(), 0);
        let mut at = BLOCK + to_length(&file.path, from.lsn - file.header.start_lsn)?;
        while let Some((group, checksum)) = group_at(self.store, &mut window, at, &end)? {
            let header = &group.header;
            durable_lsn = durable_lsn.max(header.durable_lsn);
            let bytes = group_bytes(header.record_bytes as usize);
            at += bytes;
            end = End {
                lsn: end.lsn + bytes as u64,
                chain: checksum,
                last_id: header.last_id,
                ..end
            };
            groups.push(group);
        }
        let next = GroupHeader::decode(self.store, window.from(at, GROUP_HEADER_BYTES)?);
        let continues = next.is_some_and(|(header, _)| end.is_continued_by_group(&header));
        let behind = match self.scan {
            Scan::All => durable_lsn_from(self.store, &mut window, at)?,
            Scan::WhatWasRead => durable_lsn_in(self.store, window.from(at, 0)?),
        };
        Ok(Chain {
            groups,
            end,
            durable_lsn: durable_lsn.max(behind),
            continues,
        })
    }

    fn finish(mut self, candidates: Candidates, named_incarnation: u64) -> Result<Walked> {
        let (last, end) = self.end.take().expect("the walk begins with a file");
        let closed_here = self.is_closed_at(&end);
        let used = candidates.used.into_values();
        let mut next_incarnation = named_incarnation.max(end.incarnation) + 1;
        let mut unused = Vec::new();
        for file in used {
            next_incarnation = next_incarnation.max(file.header.incarnation + 1);
            if !closed_here && file.header.incarnation > end.incarnation {
                // A file is begun only after everything before it is durable.
                self.durable_lsn = self.durable_lsn.max(file.header.start_lsn);
                self.scan(&file.path, file.bytes)?;
            }
            unused.push((file.number, file.bytes));
        }
        for (path, number, bytes) in candidates.others {
            if !closed_here {
                self.scan(&path, bytes)?;
            }
            unused.push((number, bytes));
        }
        let replayed = Replayed {
            files: self.files,
            unused,
            end_lsn: end.lsn,
            last_id: end.last_id,
            next_incarnation,
        };
        Ok(Walked {
            replayed,
            recorded_lsn: self.durable_lsn,
            last,
        })
    }

    /// Looks for durable LSNs in a file that the chain does not reach.
    fn scan(&mut self, path: &Path, bytes: u64) -> Result<()> {
        if self.scan == Scan::WhatWasRead {
            return Ok(());
        }
        let mut window = match open_window(self.disk, path, to_length(path, bytes)?) {
            Ok(window) => window,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.durable_lsn = self
            .durable_lsn
            .max(durable_lsn_from(self.store, &mut window, 0)?);
        Ok(())
    }

    fn damage_at_the_end(&self) -> Error {
        let (path, end) = self.end.as_ref().expect("the walk begins with a file");
        let start_lsn = self.files.last().map_or(0, |file| file.header.start_lsn);
        damage(path, end.lsn - start_lsn, self.durable_lsn)
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

/// Returns the highest durable LSN in a group header on any block boundary from `at` on.
fn durable_lsn_from(store: StoreId, window: &mut Window, mut at: usize) -> Result<u64> {
    let mut durable_lsn = 0;
    loop {
        let bytes = window.from(at, BLOCK)?;
        if bytes.is_empty() {
            return Ok(durable_lsn);
        }
        at += bytes.len();
        durable_lsn = durable_lsn.max(durable_lsn_in(store, bytes));
    }
}

/// Returns the highest durable LSN in a group header at the start of a block.
fn durable_lsn_in(store: StoreId, blocks: &[u8]) -> u64 {
    let headers = blocks
        .chunks(BLOCK)
        .filter_map(|block| GroupHeader::decode(store, block));
    let recorded = headers.map(|(header, _)| header.durable_lsn);
    recorded.max().unwrap_or(0)
}

fn to_length(path: &Path, bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_too_long| Error::corrupt(path, 0, "an impossible length"))
}
