//! `sessionlog bench`: what appends take on the disk of a folder, beside the least that any durable
//! log takes there.

mod floor;
mod measure;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use sessionlog::SessionLog;

use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::{HEADING, Output, WARNING};
use crate::progress::Progress;
use crate::text::{columns, latency, number};

use floor::Floor;
use measure::{Measured, append, percentile, read_back};

const APPENDERS: [usize; 3] = [1, 16, 64];

/// The fastest barrier of a disk that keeps its data without power. The best ones take ten
/// microseconds, and memory takes one or two.
const BARRIER_MIN: Duration = Duration::from_micros(6);

/// Measures appends on the disk of a folder.
///
/// It appends events of 256 bytes with 1, 16 and 64 threads to a log in a new folder inside DIR,
/// which is removed at the end, also after Ctrl-C. Beside it, it writes blocks of 4 KiB to a file,
/// each with a barrier: no durable log is faster than that with one thread.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder on the disk to measure
    dir: PathBuf,

    /// How long to measure each case
    #[arg(long, value_name = "N", default_value = "3", value_parser = seconds)]
    seconds: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_error| "it is no number".to_owned())?;
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        return Err("it is 0".to_owned());
    }
    Ok(duration)
}

/// All results.
struct Results {
    floor: Vec<Duration>,
    cases: Vec<Measured>,
    read_per_second: f64,
    file_system: Option<&'static str>,
}

pub(crate) fn run(args: Args, output: &Output) -> Result<()> {
    if !args.dir.is_dir() {
        let message = format!("there is no folder {}", args.dir.display());
        return Err(Failure::new("no_folder", message).hint("give a folder on the disk to measure"));
    }
    let interrupt = Interrupt::watch();
    let room = Room::new(&args.dir)?;
    let progress = Progress::new(output, "measuring");
    let measured = measure(&room, args.seconds, &interrupt, &progress);
    drop(progress);
    drop(room);
    let results = measured?;
    if output.is_json() {
        output.json(json_of(&results))
    } else {
        show(&results, output)
    }
}

/// The folder of the measurement, which is removed in any case.
struct Room(PathBuf);

impl Room {
    fn new(dir: &Path) -> Result<Self> {
        let path = dir.join(format!("sessionlog-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| Failure::of_file("make", &path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What cannot be removed is in a folder that names itself.
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

fn measure(
    room: &Room,
    seconds: Duration,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<Results> {
    let ended = || {
        Failure::new("interrupted", "it was ended before all was measured")
            .hint("nothing is left of it: repeat the command")
    };
    progress.say("measuring the disk");
    let failed = |error: std::io::Error| Failure::of_file("write to", &room.0, &error);
    let floor = Floor::new(&room.0)
        .and_then(|mut floor| floor.measure(seconds, interrupt))
        .map_err(failed)?;
    let mut cases = Vec::new();
    let log = SessionLog::open(room.0.join("log"))?;
    for appenders in APPENDERS {
        progress.say(format!("measuring {appenders} appenders"));
        cases.push(append(&log, appenders, seconds, interrupt)?);
        if interrupt.is_set() {
            return Err(ended());
        }
    }
    progress.say("reading back");
    let appended = cases.iter().map(|case| case.latencies.len() as u64).sum();
    let read_per_second = read_back(&log, appended)?;
    log.close()?;
    Ok(Results {
        floor,
        cases,
        read_per_second,
        file_system: floor::in_memory(&room.0),
    })
}

/// What a case comes to.
struct Figures {
    appenders: usize,
    per_second: f64,
    p50: Duration,
    p99: Duration,
    batches_per_group: f64,
    /// Against the rate of one barrier after the other.
    of_floor: f64,
}

impl Figures {
    fn of(case: &Measured, floor_per_second: f64) -> Self {
        let per_second = case.per_second();
        Self {
            appenders: case.appenders,
            per_second,
            p50: percentile(&case.latencies, 0.5),
            p99: percentile(&case.latencies, 0.99),
            batches_per_group: case.batches_per_group,
            of_floor: per_second / floor_per_second,
        }
    }
}

fn figures(results: &Results) -> (f64, Vec<Figures>) {
    let floor_per_second = measure::rate(&results.floor);
    let cases = results
        .cases
        .iter()
        .map(|case| Figures::of(case, floor_per_second));
    (floor_per_second, cases.collect())
}

/// Why the disk may not keep what it says it keeps.
fn suspicion(results: &Results) -> Option<String> {
    if let Some(name) = results.file_system {
        return Some(format!(
            "this folder is in memory ({name}): a restart loses all of it"
        ));
    }
    let barrier = percentile(&results.floor, 0.5);
    (barrier < BARRIER_MIN).then(|| {
        format!(
            "a barrier takes {}, and the fastest disks with a battery take 10 us: this disk, or \
             the virtual machine below it, says that data is durable before it is",
            latency(barrier)
        )
    })
}

fn show(results: &Results, output: &Output) -> Result<()> {
    let (floor_per_second, cases) = figures(results);
    let (p50, p99) = (
        percentile(&results.floor, 0.5),
        percentile(&results.floor, 0.99),
    );
    let whole = |value: f64| {
        format!("{value:.0}")
            .parse()
            .map_or_else(|_| "?".to_owned(), number)
    };
    let mut rows = vec![vec![
        "the disk alone, 4 KiB".to_owned(),
        whole(floor_per_second),
        latency(p50),
        latency(p99),
        String::new(),
        "1.0".to_owned(),
    ]];
    rows.extend(cases.iter().map(|case| {
        let appenders = if case.appenders == 1 {
            "appender"
        } else {
            "appenders"
        };
        vec![
            format!("{} {appenders}", case.appenders),
            whole(case.per_second),
            latency(case.p50),
            latency(case.p99),
            format!("{:.1}", case.batches_per_group),
            format!("{:.2}", case.of_floor),
        ]
    }));
    let heading = ["", "a second", "p50", "p99", "a barrier", "x the disk"];
    for (at, line) in columns(&heading, rows, &[1, 2, 3, 4, 5]).iter().enumerate() {
        let style = if at == 0 {
            HEADING
        } else {
            anstyle::Style::new()
        };
        output.line(output.styled(style, line))?;
    }
    output.line("")?;
    if let Some(one) = cases.first() {
        output.line(format!(
            "An append that is alone takes {} at the median, and 1 of 100 takes more than {}.",
            latency(one.p50),
            latency(one.p99)
        ))?;
    }
    if let Some(many) = cases.last() {
        output.line(format!(
            "{} appenders together store {} events a second, {:.1} with each barrier.",
            many.appenders,
            whole(many.per_second),
            many.batches_per_group
        ))?;
    }
    output.line(format!(
        "Reading back yields {} events a second.",
        whole(results.read_per_second)
    ))?;
    match suspicion(results) {
        Some(why) => output.line(output.styled(WARNING, format!("Do not trust this disk: {why}."))),
        None => output.line(format!(
            "A barrier takes {}, as that of a real disk does.",
            latency(p50)
        )),
    }
}

fn json_of(results: &Results) -> String {
    let (floor_per_second, cases) = figures(results);
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let cases = cases.iter().map(|case| {
        json!({
            "appenders": case.appenders,
            "per_second": case.per_second,
            "p50_us": micros(case.p50),
            "p99_us": micros(case.p99),
            "batches_per_barrier": case.batches_per_group,
            "of_floor": case.of_floor,
        })
    });
    json!({
        "floor": {
            "per_second": floor_per_second,
            "p50_us": micros(percentile(&results.floor, 0.5)),
            "p99_us": micros(percentile(&results.floor, 0.99)),
        },
        "appends": cases.collect::<Vec<_>>(),
        "read_per_second": results.read_per_second,
        "suspicion": suspicion(results),
    })
    .to_string()
}
