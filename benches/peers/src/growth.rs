//! How the log's metrics change as its store grows: appends, pages, memory, opening.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use plotters::prelude::*;

use crate::measure::{drop_caches, micros, percentile, rss_mb};
use crate::report::{OURS_COLOR, short};
use crate::store::{Ids, Load, Open, Store};
use crate::stores::sessionlog::Ours;

const SESSIONS: u32 = 10_000;
const BATCH_EVENTS: usize = 16;
const BATCH_EVENT_BYTES: usize = 1_000;
const SAMPLES: u32 = 2_000;
const GIGABYTES: [f64; 5] = [0.1, 1.0, 3.0, 10.0, 30.0];
const STRIDE: u32 = 7_919;

/// A million events in total, over this many sessions.
const SESSION_COUNTS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
const SPREAD_EVENTS: u32 = 1_000_000;
const SPREAD_BYTES: usize = 256;
const SPREAD: Load = Load::noise(1, SPREAD_BYTES);

const ABOUT: &str = "\
# As a store grows

Each row is measured in a process of its own: 16 writers fill the store on, then \
2,000 appends of one event of 256 B to as many sessions, one after the
other; 2,000 with an idempotency key that is new; 2,000 that each begin a session; \
and 2,000 pages of up to 100 events, read once before. \
Up to 30 GB in 10,000 sessions, in batches of 16 x 1,000 B; and a million events of
256 B, one a batch, in ever more sessions. By `cargo run --release -- growth`.
";

/// A row of a table: how to fill a store further before it is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Row {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    sessions: u32,
    #[arg(long)]
    events: usize,
    #[arg(long)]
    bytes: usize,
    #[arg(long)]
    from: u32,
    #[arg(long)]
    to: u32,
}

/// The metrics of each store, in this order.
const FIGURES: [&str; 8] = [
    "filled at events/s",
    "append p50 us",
    "append p99 us",
    "with a key, p50 us",
    "in a new session, p50 us",
    "page of up to 100, p50 us",
    "opening s",
    "RSS MB",
];

/// A metric of all stores, over their sizes.
type Curve = Vec<(f64, f64)>;

/// Stores of growing size, and their metrics.
struct Series {
    /// The quantity that grows, and its unit.
    by: &'static str,
    rows: Vec<(f64, Vec<f64>)>,
}

/// Prints a row for each size up to `gigabytes`, and one for each number of sessions. Writes tables
/// and plots to `out`.
pub fn follow(folder: &Path, gigabytes: f64, out: Option<&Path>) {
    fs::create_dir_all(folder).expect("the folder for the stores");
    let all = [by_size(folder, gigabytes), by_sessions(folder)];
    let tables = all.iter().map(Series::table).collect::<Vec<_>>().join("\n");
    print!("{tables}");
    if let Some(out) = out {
        fs::create_dir_all(out).expect("the folder for the report");
        fs::write(
            out.join("growth.md"),
            format!("{ABOUT}\n![All of it as curves](growth.svg)\n\n{tables}"),
        )
        .expect("the report is written");
        draw(&all, &out.join("growth.svg"));
    }
}

/// One store that grows, in ten thousand sessions.
fn by_size(folder: &Path, gigabytes: f64) -> Series {
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    let mut series = Series {
        by: "GB",
        rows: Vec::new(),
    };
    let mut from = 0;
    for size in GIGABYTES.into_iter().filter(|size| *size <= gigabytes) {
        let to = (size * 1e9 / (BATCH_EVENTS * BATCH_EVENT_BYTES) as f64) as u32;
        series.measure(
            size,
            &Row {
                folder: folder.path().into(),
                sessions: SESSIONS,
                events: BATCH_EVENTS,
                bytes: BATCH_EVENT_BYTES,
                from,
                to,
            },
        );
        from = to;
    }
    series
}

/// Stores of a million events each, in more and more sessions.
fn by_sessions(folder: &Path) -> Series {
    let mut series = Series {
        by: "sessions",
        rows: Vec::new(),
    };
    for sessions in SESSION_COUNTS {
        let folder = tempfile::tempdir_in(folder).expect("a folder");
        let row = Row {
            folder: folder.path().into(),
            sessions,
            events: 1,
            bytes: SPREAD_BYTES,
            from: 0,
            to: SPREAD_EVENTS,
        };
        series.measure(f64::from(sessions), &row);
    }
    series
}

impl Series {
    /// Measures in a process of its own, whose memory is only that of this store.
    fn measure(&mut self, size: f64, row: &Row) {
        let Row {
            folder,
            sessions,
            events,
            bytes,
            from,
            to,
        } = row;
        let mut measure = Command::new(std::env::current_exe().expect("this program's file"));
        measure.arg("grown").arg("--folder").arg(folder);
        for (name, value) in [
            ("sessions", u64::from(*sessions)),
            ("events", *events as u64),
            ("bytes", *bytes as u64),
        ] {
            measure.arg(format!("--{name}={value}"));
        }
        let measured = measure
            .arg(format!("--from={from}"))
            .arg(format!("--to={to}"))
            .output()
            .expect("the process runs");
        let figures: Vec<f64> = serde_json::from_slice(&measured.stdout).expect("figures are JSON");
        eprintln!("{size} {}: {figures:?}", self.by);
        self.rows.push((size, figures));
    }

    fn table(&self) -> String {
        let mut table = format!(
            "| {} | {} |\n|{}\n",
            self.by,
            FIGURES.join(" | "),
            "---|".repeat(FIGURES.len() + 1)
        );
        for (size, figures) in &self.rows {
            let cells: Vec<String> = figures.iter().map(|&figure| short(figure)).collect();
            table.push_str(&format!("| {size} | {} |\n", cells.join(" | ")));
        }
        table
    }

    fn curve(&self, figure: usize) -> Curve {
        self.rows
            .iter()
            .map(|(size, figures)| (*size, figures[figure]))
            .collect()
    }
}

/// Draws a panel for each metric of each series. Sizes grow by factors and metrics start at zero,
/// so that a constant looks flat.
fn draw(all: &[Series], file: &Path) {
    const PANEL: (u32, u32) = (430, 190);
    let root = SVGBackend::new(
        file,
        (PANEL.0 * all.len() as u32, PANEL.1 * FIGURES.len() as u32),
    )
    .into_drawing_area();
    root.fill(&WHITE).expect("a plot");
    let areas = root.split_evenly((FIGURES.len(), all.len()));
    let panels = FIGURES
        .iter()
        .enumerate()
        .flat_map(|(figure, name)| all.iter().map(move |series| (figure, name, series)));
    for (area, (figure, name, series)) in areas.iter().zip(panels) {
        let curve = series.curve(figure);
        let most = curve.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let (least_size, most_size) = (curve[0].0, curve[curve.len() - 1].0);
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(34)
            .caption(format!("{name}, by {}", series.by), ("sans-serif", 14))
            .x_label_area_size(24)
            .y_label_area_size(60)
            .build_cartesian_2d((least_size..most_size).log_scale(), 0.0..most * 1.15)
            .expect("a plot");
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .y_labels(4)
            .x_label_formatter(&|size| short(*size))
            .y_label_formatter(&|value| short(*value))
            .draw()
            .expect("a plot");
        chart
            .draw_series(LineSeries::new(
                curve.iter().copied(),
                OURS_COLOR.stroke_width(2),
            ))
            .expect("a plot");
        chart
            .draw_series(
                curve
                    .iter()
                    .map(|point| Circle::new(*point, 3, OURS_COLOR.filled())),
            )
            .expect("a plot");
    }
    root.present().expect("the plots are written");
}

/// Fills a store further, and prints its metrics.
pub fn measure(row: &Row) {
    let Row {
        sessions, from, to, ..
    } = *row;
    let load = Load::noise(row.events, row.bytes);
    let open = Open {
        folder: &row.folder,
        sessions,
        ids: Ids::Unused,
    };
    let store = Ours::open(open);
    let began = Instant::now();
    fill(&store, sessions, load, from..to);
    let rate = f64::from(to - from) * load.events as f64 / began.elapsed().as_secs_f64();
    store.settle();
    let nth = |nth: u32| (u64::from(nth) * u64::from(STRIDE) % u64::from(sessions)) as u32;
    let mut appends = timed(|at| store.append(nth(at), SPREAD));
    // No other row of the store has these names.
    let name = |at| format!("{sessions}-{to}-{at}");
    let mut keyed = timed(|at| store.append_keyed(nth(at), SPREAD, &name(at)));
    let mut first = timed(|at| store.begin(&name(at), SPREAD));
    store.settle();
    let page = |at| store.page(nth(at), 0, 100, &mut |_| ());
    // Each page is read once before, so that the disk is not measured.
    timed(page);
    let mut pages = timed(page);
    let rss = rss_mb();
    drop(store);
    drop_caches();
    let began = Instant::now();
    let store = Ours::open(open);
    let opened = began.elapsed().as_secs_f64();
    drop(store);
    let p99 = percentile(&mut appends, 0.99);
    let [p50, keyed, first, page] =
        [&mut appends, &mut keyed, &mut first, &mut pages].map(|times| percentile(times, 0.5));
    println!(
        "{}",
        serde_json::json!([rate, p50, p99, keyed, first, page, opened, rss])
    );
}

fn timed(what: impl Fn(u32)) -> Vec<f64> {
    let one = |nth| {
        let began = Instant::now();
        what(nth);
        micros(began.elapsed())
    };
    (0..SAMPLES).map(one).collect()
}

fn fill(store: &dyn Store, sessions: u32, load: Load, batches: Range<u32>) {
    const WRITERS: u32 = 16;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let own = batches
                .clone()
                .filter(move |batch| batch % sessions % WRITERS == writer);
            scope.spawn(move || {
                for batch in own {
                    store.append(batch % sessions, load);
                }
            });
        }
    });
}
