//! Damage of every kind, at any place, to the files of a closed log. A read returns what was
//! written, or an error that names the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::simulated::SimulatedDisk;
use super::support::crash_image::{self, Durability, Image, Left, NamesLeft, Node};
use super::support::ledger::{Tag, Works};
use super::support::report::{Dice, Report, Runs, is_full, seed};
use crate::model::{Error, Result};
use crate::sync::{Instant, yield_now};
use crate::{Event, Options, PageRequest, SessionId, SessionLog, SessionQuery};

const RUNS: Runs = Runs {
    quick: 1_500,
    full: 300_000,
};
const NO_INDEX: &str = "/dev/null/log";
const BATCHES: &[u64] = &[40, 200, 1_000, 4_000];
const KIB: usize = 1024;
const BLOCK: u64 = 4096;

#[test]
fn campaign_damage() {
    let seed = seed();
    let mut report = Report::new("damage", seed, RUNS.planned());
    let mut dice = Dice(seed);
    if is_full() {
        let store = Store::new(dice.roll());
        for (file, bytes) in store.one_file_of_each_kind() {
            for at in 0..bytes {
                let flip = Damage::Flip {
                    file: file.clone(),
                    at,
                    bit: u32::try_from(dice.below(8)).unwrap(),
                };
                store.check(&flip, &mut report);
                store.check(
                    &Damage::Truncate {
                        file: file.clone(),
                        len: at,
                    },
                    &mut report,
                );
            }
        }
    }
    while !report.is_done() {
        let (store, other) = (Store::new(dice.roll()), Store::new(dice.roll()));
        for _ in 0..RUNS.quick / 4 {
            let damage = Damage::random(&store, &other, &mut dice);
            store.check(&damage, &mut report);
        }
    }
    for expected in ["outcomes: an error", "outcomes: identical"] {
        assert!(report.figure(expected) > 0, "no {expected}");
    }
    report.end();
}

/// The files of a log, and what can be read from them.
struct Store {
    image: Image,
    contents: Contents,
}

/// Every event, in the order of the feed and by session.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    feed: Vec<Event>,
    sessions: BTreeMap<SessionId, Vec<Event>>,
}

#[derive(Debug, Clone)]
enum Damage {
    Flip {
        file: PathBuf,
        at: u64,
        bit: u32,
    },
    Truncate {
        file: PathBuf,
        len: u64,
    },
    /// Overwrites from an offset to the end of the file, or of what the log wrote there.
    Fill {
        file: PathBuf,
        from: u64,
        len: u64,
        with: Filling,
    },
    Remove {
        file: PathBuf,
    },
    /// Replaces a file with another one of the same store.
    Replace {
        file: PathBuf,
        by: PathBuf,
    },
    Swap {
        one: PathBuf,
        other: PathBuf,
    },
    /// Replaces a file with the one of the same name from another store.
    Foreign {
        file: PathBuf,
        bytes: Vec<u8>,
    },
    /// Overwrites a block with another one of the same file.
    Copy {
        file: PathBuf,
        from: u64,
        to: u64,
    },
}

#[derive(Debug, Clone, Copy)]
enum Filling {
    Byte(u8),
    Noise(u64),
}

impl Store {
    fn new(seed: u64) -> Self {
        let (works, disk) = (
            Works {
                seed,
                bytes: BATCHES,
            },
            SimulatedDisk::of(Path::new(NO_INDEX), &Image::default()),
        );
        let log = open(&disk).unwrap();
        for nth in 0..90 {
            let work = works.of(Tag {
                life: 1,
                writer: 0,
                nth,
            });
            log.append(&work.session, work.batch()).unwrap();
        }
        // The log seals when it is idle.
        let began = Instant::now();
        while log.stats().segments == 0 && began.elapsed() < Duration::from_secs(10) {
            yield_now();
        }
        for nth in 90..100 {
            let work = works.of(Tag {
                life: 1,
                writer: 0,
                nth,
            });
            log.append(&work.session, work.batch()).unwrap();
        }
        let contents = Contents::of(&log).unwrap();
        log.close().unwrap();
        let mut durability = Durability::default();
        disk.steps().iter().for_each(|step| durability.step(step));
        Self {
            image: durability.cut(Left::Everything, NamesLeft::InOrder, &mut Dice(seed)),
            contents,
        }
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        let files = self
            .image
            .names
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(file) if path != Path::new("LOCK") => {
                    Some((path.clone(), self.image.files[*file].len))
                }
                _ => None,
            });
        files.collect()
    }

    /// Returns a slot of the manifest, a journal file that holds groups, and a segment.
    fn one_file_of_each_kind(&self) -> Vec<(PathBuf, u64)> {
        let mut files = self.files();
        files.retain(|(path, bytes)| {
            let Node::File(file) = self.image.names[path] else {
                return false;
            };
            let mut second_block = [0];
            self.image.files[file].read(BLOCK.min(bytes - 1), &mut second_block);
            path.extension()
                .is_none_or(|extension| extension != "journal")
                || second_block != [0]
        });
        files.dedup_by_key(|(path, _)| path.extension().map(std::ffi::OsStr::to_owned));
        files
    }

    fn check(&self, damage: &Damage, report: &mut Report) {
        let what = format!("{damage:?}").chars().take(300).collect::<String>();
        let mut image = self.image.clone();
        damage.apply(&mut image);
        if let Some(outcome) = report.run(|| what, || self.outcome(&image)) {
            report.count(format!("outcomes: {outcome}"), 1);
        }
    }

    fn outcome(&self, image: &Image) -> &'static str {
        let disk = SimulatedDisk::of(Path::new(NO_INDEX), image);
        let read = open(&disk).and_then(|log| Contents::of(&log));
        match read {
            Ok(contents) => {
                assert!(
                    contents == self.contents,
                    "{} events where there were {}",
                    contents.feed.len(),
                    self.contents.feed.len()
                );
                "identical"
            }
            Err(Error::Corrupt { file, .. } | Error::Unsupported { file, .. }) => {
                assert!(
                    file.starts_with(NO_INDEX),
                    "the error names {}",
                    file.display()
                );
                "an error"
            }
            Err(error) => panic!("damage is answered by {error:?}"),
        }
    }
}

impl Contents {
    fn of(log: &SessionLog) -> Result<Self> {
        let feed = log
            .feed()?
            .until_tail()
            .events()
            .collect::<Result<Vec<Event>>>()?;
        let mut sessions = BTreeMap::new();
        for session in log.sessions(SessionQuery::by_id().limit(1_000))?.items {
            let session = session.id;
            let mut page = log.list(&session, PageRequest::new().limit(1_000))?;
            let mut events = page.items;
            while page.has_more {
                page = log.list(&session, PageRequest::new().after(page.last).limit(1_000))?;
                events.append(&mut page.items);
            }
            sessions.insert(session, events);
        }
        Ok(Self { feed, sessions })
    }
}

impl Damage {
    fn random(store: &Store, other: &Store, dice: &mut Dice) -> Self {
        let files = store.files();
        let (file, bytes) = files[dice.index(files.len())].clone();
        let blocks = bytes.div_ceil(BLOCK);
        let kin: Vec<&PathBuf> = files
            .iter()
            .map(|(path, _)| path)
            .filter(|path| path.extension() == file.extension())
            .collect();
        let kin = kin[dice.index(kin.len())].clone();
        match dice.below(10) {
            0..3 => Self::Flip {
                file,
                at: dice.below(bytes),
                bit: u32::try_from(dice.below(8)).unwrap(),
            },
            3 => Self::Truncate {
                file,
                len: dice.below(bytes),
            },
            4 => {
                let from = dice.below(bytes);
                let with = [
                    Filling::Byte(0),
                    Filling::Byte(0xFF),
                    Filling::Noise(dice.roll()),
                ][dice.index(3)];
                let len = if dice.flip() {
                    bytes - from
                } else {
                    (1 + dice.below(BLOCK)).min(bytes - from)
                };
                Self::Fill {
                    file,
                    from,
                    len,
                    with,
                }
            }
            5 => Self::Remove { file },
            6 => Self::Replace { file, by: kin },
            7 => Self::Swap {
                one: file,
                other: kin,
            },
            8 => match other.image.names.get(&file) {
                Some(Node::File(number)) => Self::Foreign {
                    file,
                    bytes: other.bytes(*number),
                },
                _ => Self::Remove { file },
            },
            _ => Self::Copy {
                file,
                from: dice.below(blocks) * BLOCK,
                to: dice.below(blocks) * BLOCK,
            },
        }
    }

    fn apply(&self, image: &mut Image) {
        match self {
            Self::Flip { file, at, bit } => {
                let content = &mut image.files[number(&image.names, file)];
                let mut byte = [0];
                content.read(*at, &mut byte);
                content.write(*at, &[byte[0] ^ (1 << bit)]);
            }
            Self::Truncate { file, len } => {
                image.files[number(&image.names, file)].resize(*len, crash_image::Cut::Yes);
            }
            Self::Fill {
                file,
                from,
                len,
                with,
            } => {
                let mut noise = match with {
                    Filling::Noise(seed) => Dice(*seed),
                    Filling::Byte(_) => Dice(0),
                };
                let bytes = (0..*len).map(|_| match with {
                    Filling::Byte(byte) => *byte,
                    Filling::Noise(_) => noise.roll().to_le_bytes()[0],
                });
                let bytes: Vec<u8> = bytes.collect();
                image.files[number(&image.names, file)].write(*from, &bytes);
            }
            Self::Remove { file } => drop(image.names.remove(file)),
            Self::Replace { file, by } => {
                image.files[number(&image.names, file)] =
                    image.files[number(&image.names, by)].clone();
            }
            Self::Swap { one, other } => image
                .files
                .swap(number(&image.names, one), number(&image.names, other)),
            Self::Foreign { file, bytes } => {
                let content = &mut image.files[number(&image.names, file)];
                content.resize(0, crash_image::Cut::Yes);
                content.write(0, bytes);
            }
            Self::Copy { file, from, to } => {
                let content = &mut image.files[number(&image.names, file)];
                let mut block =
                    vec![
                        0;
                        usize::try_from(BLOCK.min(content.len - from).min(content.len - to))
                            .unwrap()
                    ];
                content.read(*from, &mut block);
                content.write(*to, &block);
            }
        }
    }
}

impl Store {
    fn bytes(&self, file: usize) -> Vec<u8> {
        let content = &self.image.files[file];
        let mut bytes = vec![0; usize::try_from(content.len).unwrap()];
        content.read(0, &mut bytes);
        bytes
    }
}

fn number(names: &crash_image::Names, file: &Path) -> usize {
    match names.get(file) {
        Some(Node::File(number)) => *number,
        _ => panic!("{} is no file", file.display()),
    }
}

fn open(disk: &SimulatedDisk) -> Result<SessionLog> {
    let mut options = Options::new()
        .journal_file_bytes_max(64 * KIB)
        .group_bytes_max(64 * KIB)
        .recent_bytes_max(512 * KIB);
    options.journal_file_bytes_min = 64 * KIB;
    options.open_on(disk.handle(), Path::new(NO_INDEX))
}
