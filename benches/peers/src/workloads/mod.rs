//! The workloads: what each does, its metrics, and its targets.

mod appends;
mod lifecycle;
mod live;
mod reads;
mod stores;

use clap::ValueEnum;

use crate::measure::Figures;
use crate::store::Load;
use crate::stores::Contender;

/// In the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Workload {
    Append1,
    Append8,
    Append64,
    Async256,
    Bulk8,
    Bulk64,
    Sustained,
    SustainedAgent,
    Sessions,
    Reads,
    Scattered,
    Live,
    Reopen,
    ReopenFew,
    Calls,
    Deletes,
    Directory,
}

/// The parameters of a run.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    pub contender: Contender,
    pub folder: &'a std::path::Path,
    pub seconds: f64,
    /// The fraction of the full size: of bytes, of sessions, of events.
    pub scale: f64,
}

impl Task<'_> {
    /// Returns this fraction of `full`, at least one.
    pub fn scaled(&self, full: u32) -> u32 {
        ((f64::from(full) * self.scale) as u32).max(1)
    }
}

/// The target of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Bar {
    pub figure: &'static str,
    pub wanted: Wanted,
}

#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// At least this many times the best peer's.
    MoreThanPeers(f64),
    /// At most this many times the best peer's.
    LessThanPeers(f64),
    /// At least this many times the floor's metric of this name.
    MoreThanFloor(&'static str, f64),
    /// At most this many times the floor's metric of this name.
    LessThanFloor(&'static str, f64),
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
    /// At most this many times the metric of the log that merges no segments.
    LessThanUnmerged(f64),
}

use Wanted::{
    AtLeast, AtMost, LessThanFloor, LessThanPeers, LessThanUnmerged, MoreThanFloor, MoreThanPeers,
};

const COSTS: [Bar; 2] = [
    bar("cpu us/event", LessThanPeers(1.0)),
    bar("written/byte", LessThanPeers(1.0)),
];

const fn bar(figure: &'static str, wanted: Wanted) -> Bar {
    Bar { figure, wanted }
}

impl Workload {
    pub fn title(self) -> &'static str {
        match self {
            Self::Append1 => "1 writer, 1 event of 256 B",
            Self::Append8 => "8 writers, 1 event of 256 B",
            Self::Append64 => "64 writers, 1 event of 256 B",
            Self::Async256 => "256 async appenders on 2 threads, 1 event of 256 B",
            Self::Bulk8 => "8 writers, batches of 16 x 4 KiB, in bursts of 96 MiB",
            Self::Bulk64 => "64 writers, batches of 16 x 2 KiB, in bursts of 96 MiB",
            Self::Sustained => {
                "sustained: 1 KiB events in batches of 4, 16 writers, 10,000 sessions, \
                 4 GiB, to the end of background work"
            }
            Self::SustainedAgent => {
                "sustained: events of agent sessions in batches of 4, 16 writers, 10,000 sessions, \
                 about 4 GiB, to the end of background work"
            }
            Self::Sessions => "1,000,000 sessions: one event each, then one more each, 64 writers",
            Self::Reads => "reads from 1,000,000 events of 256 B in 10,000 sessions",
            Self::Scattered => {
                "reads from 2,000,000 events of 1 KiB in 10,000 sessions, which came one by one"
            }
            Self::Live => "append to delivery on a live stream",
            Self::Reopen => "opening 10 GB in 10,000 sessions",
            Self::ReopenFew => "opening 10 GB in 1,000 sessions",
            Self::Calls => "calls that change a session",
            Self::Deletes => "500,000 of 1,000,000 sessions deleted, while appends go on",
            Self::Directory => "pages of 1,000,000 sessions, and their end by retention",
        }
    }

    /// Whether its size can be scaled.
    pub fn is_scaled(self) -> bool {
        matches!(
            self,
            Self::Sustained
                | Self::SustainedAgent
                | Self::Sessions
                | Self::Reads
                | Self::Scattered
                | Self::Reopen
                | Self::ReopenFew
                | Self::Deletes
                | Self::Directory
        )
    }

    /// Returns the metrics of the report. The first sorts the stores and is drawn in the chart.
    pub fn figures(self) -> &'static [&'static str] {
        match self {
            Self::Append1 | Self::Append8 | Self::Append64 | Self::Async256 => &[
                "appends/s",
                "p50 us",
                "p99 us",
                "cpu us/event",
                "written/byte",
            ],
            Self::Bulk8 | Self::Bulk64 => {
                &["MB/s", "p50 us", "p99 us", "cpu us/event", "written/byte"]
            }
            Self::Sustained | Self::SustainedAgent => &[
                "MB/s",
                "p99 us",
                "max ms",
                "rss MB",
                "disk/byte",
                "cpu us/event",
                "written/byte",
            ],
            Self::Sessions => &[
                "first/s",
                "second/s",
                "rss MB",
                "cpu us/event",
                "written/byte",
            ],
            Self::Reads => &["warm us", "cold us", "newest us", "find us", "turn us"],
            Self::Scattered => &["warm us", "cold us"],
            Self::Live => &["p50 us", "p99 us", "p50 us of 1000", "ack p50 us"],
            Self::Reopen | Self::ReopenFew => &["clean s", "killed s", "rss MB"],
            Self::Calls => &["append us", "set_metadata us", "close us", "delete us"],
            Self::Deletes => &[
                "deletes/s",
                "appends/s",
                "appends/s alone",
                "back s",
                "given back",
                "rss MB",
            ],
            Self::Directory => &[
                "by activity us",
                "by ID us",
                "by creation us",
                "expired/s",
                "kept rate",
                "rss MB",
                "disk MB after",
            ],
        }
    }

    pub fn bars(self) -> Vec<Bar> {
        let own: &[Bar] = match self {
            Self::Append1 => &[
                bar("p50 us", LessThanPeers(1.0)),
                bar("p50 us", LessThanFloor("floor p50 us", 1.25)),
            ],
            Self::Append8 => &[bar("appends/s", MoreThanPeers(1.25))],
            Self::Append64 => &[
                bar("appends/s", MoreThanPeers(1.5)),
                bar("p99 us", LessThanPeers(1.0)),
            ],
            Self::Async256 => &[bar("appends/s", MoreThanPeers(1.5))],
            Self::Bulk8 => &[
                bar("MB/s", MoreThanPeers(1.1)),
                bar("MB/s", MoreThanFloor("floor MB/s", 0.7)),
            ],
            Self::Bulk64 => &[bar("MB/s", MoreThanPeers(1.1))],
            Self::Sustained => &[
                bar("MB/s", MoreThanPeers(1.25)),
                bar("rss MB", AtMost(512.0)),
                bar("disk/byte", AtMost(1.1)),
                bar("max ms", AtMost(250.0)),
                bar("p99 us", LessThanUnmerged(1.5)),
                bar("written/byte", AtMost(4.0)),
            ],
            Self::SustainedAgent => &[
                bar("MB/s", MoreThanPeers(1.25)),
                bar("rss MB", AtMost(512.0)),
                bar("disk/byte", AtMost(0.4)),
                bar("max ms", AtMost(250.0)),
                bar("p99 us", LessThanUnmerged(1.5)),
                bar("written/byte", AtMost(2.0)),
            ],
            Self::Sessions => &[
                bar("first/s", MoreThanPeers(1.0)),
                bar("cpu us/event", LessThanPeers(1.3)),
                bar("first/second", AtMost(1.5)),
                bar("rss MB", AtMost(1000.0)),
            ],
            Self::Reads => &[
                bar("warm us", LessThanPeers(1.0)),
                bar("cold us", LessThanPeers(1.0)),
                bar("newest us", LessThanPeers(1.0)),
                bar("find us", LessThanPeers(1.0)),
                bar("turn us", LessThanPeers(1.0)),
            ],
            Self::Scattered => &[
                bar("warm us", LessThanPeers(1.0)),
                bar("cold us", LessThanPeers(1.0)),
            ],
            Self::Live => &[
                bar("over ack us", AtMost(50.0)),
                bar("over ack us of 1000", AtMost(50.0)),
            ],
            Self::Reopen | Self::ReopenFew => &[
                bar("clean s", LessThanPeers(1.0)),
                bar("clean s", AtMost(1.0)),
                bar("killed s", AtMost(1.0)),
            ],
            Self::Calls => &[
                bar("set_metadata/append", AtMost(1.25)),
                bar("close/append", AtMost(1.25)),
                bar("delete/append", AtMost(1.25)),
            ],
            Self::Deletes => &[
                bar("given back", AtLeast(0.9)),
                bar("kept rate", AtLeast(0.8)),
            ],
            Self::Directory => &[
                bar("kept rate", AtLeast(0.8)),
                bar("rss MB", AtMost(1000.0)),
            ],
        };
        let is_own = |cost: &Bar| own.iter().any(|own| own.figure == cost.figure);
        let costs = COSTS
            .into_iter()
            .filter(|cost| self.figures().contains(&COSTS[0].figure) && !is_own(cost));
        own.iter().copied().chain(costs).collect()
    }

    pub fn run(self, task: Task<'_>) -> Figures {
        let one = Load::noise(1, 256);
        match self {
            Self::Append1 => appends::blocking(task, 1, one),
            Self::Append8 => appends::blocking(task, 8, one),
            Self::Append64 => appends::blocking(task, 64, one),
            Self::Async256 => appends::asynchronous(task, 256, one),
            Self::Bulk8 => appends::bursts(task, 8, Load::noise(16, 4096)),
            Self::Bulk64 => appends::bursts(task, 64, Load::noise(16, 2048)),
            Self::Sustained => stores::sustained(task),
            Self::SustainedAgent => stores::sustained_agent(task),
            Self::Sessions => stores::sessions(task),
            Self::Reads => reads::reads(task),
            Self::Scattered => reads::scattered(task),
            Self::Live => live::live(task),
            Self::Reopen => stores::reopen(task, 10_000),
            Self::ReopenFew => stores::reopen(task, 1_000),
            Self::Calls => lifecycle::calls(task),
            Self::Deletes => lifecycle::deletes(task),
            Self::Directory => lifecycle::directory(task),
        }
    }
}
