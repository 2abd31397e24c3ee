//! The results of the rounds: a chart, and for each workload a table with medians, their spread,
//! the ratio to the log, and the targets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::ValueEnum;
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::driver::Results;
use crate::measure::{Figures, median};
use crate::stores::Contender;
use crate::workloads::{Bar, Wanted, Workload};

const OURS: &str = "sessionlog";
pub const OURS_COLOR: RGBColor = RGBColor(0, 114, 178);

/// The results, which are read back so that workloads can be measured one by one.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    results: Results,
    settings: BTreeMap<String, String>,
    /// The fraction of its full size that a workload had.
    scales: BTreeMap<String, f64>,
}

/// A metric of one contender, over all rounds.
#[derive(Clone, Copy)]
struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl Report {
    pub fn read(folder: &Path) -> Self {
        fs::read(folder.join("peers.json")).map_or_else(
            |_absent| Self::default(),
            |text| serde_json::from_slice(&text).expect("a report"),
        )
    }

    /// Deletes the results of a workload, which is measured again.
    pub fn begin(&mut self, workload: Workload, scale: f64) {
        self.results.remove(&workload.name());
        self.scales.insert(workload.name(), scale);
    }

    pub fn add(&mut self, workload: Workload, contender: Contender, figures: Figures) {
        self.settings
            .insert(contender.to_string(), contender.setting().to_owned());
        self.results
            .entry(workload.name())
            .or_default()
            .entry(contender.to_string())
            .or_default()
            .push(figures);
    }

    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("the folder for the report");
        fs::write(
            folder.join("peers.json"),
            serde_json::to_vec_pretty(self).expect("figures are JSON"),
        )
        .expect("the report is written");
        fs::write(folder.join("peers.md"), self.markdown()).expect("the report is written");
        self.draw(&folder.join("peers.svg"));
    }

    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for workload in Workload::value_variants() {
            self.write_workload(*workload, &mut text)
                .expect("text takes text");
        }
        text
    }

    /// Returns the targets that are missed by more than half. Skips `written/byte`: what a log
    /// writes in its first seconds is mostly the zeroes of its journal, which is no loss.
    pub fn gross_losses(&self) -> Vec<String> {
        let workloads = Workload::value_variants().iter();
        let bars = workloads
            .flat_map(|workload| workload.bars().into_iter().map(move |bar| (*workload, bar)));
        let bars = bars.filter(|(_, bar)| bar.figure != "written/byte");
        bars.filter_map(|(workload, bar)| {
            let found = self.held_against(workload, bar)?;
            (found.share < 0.5).then(|| format!("{}: {}", workload.title(), found.text))
        })
        .collect()
    }

    fn summary(&self, workload: Workload, contender: &str, figure: &str) -> Option<Summary> {
        let rounds = self.results.get(&workload.name())?.get(contender)?;
        let values: Vec<f64> = rounds
            .iter()
            .filter_map(|figures| figures.get(figure).copied())
            .collect();
        let (least, most) = (
            values.iter().copied().fold(f64::NAN, f64::min),
            values.iter().copied().fold(f64::NAN, f64::max),
        );
        (!values.is_empty()).then(|| Summary {
            median: median(values),
            least,
            most,
        })
    }

    /// Returns the contenders with their medians of a metric, the best first.
    fn ranked(&self, workload: Workload, figure: &str) -> Vec<(&str, f64)> {
        let contenders = self
            .results
            .get(&workload.name())
            .into_iter()
            .flat_map(BTreeMap::keys);
        let mut ranked: Vec<_> = contenders
            .filter_map(|contender| {
                Some((
                    contender.as_str(),
                    self.summary(workload, contender, figure)?.median,
                ))
            })
            .collect();
        ranked.sort_by(|(_, one), (_, other)| {
            if is_rate(figure) {
                other.total_cmp(one)
            } else {
                one.total_cmp(other)
            }
        });
        ranked
    }

    fn write_workload(&self, workload: Workload, text: &mut String) -> std::fmt::Result {
        let Some(results) = self.results.get(&workload.name()) else {
            return Ok(());
        };
        let rounds = results.get(OURS).map_or(0, Vec::len);
        let figures = workload.figures();
        let scale = self
            .scales
            .get(&workload.name())
            .filter(|scale| **scale < 1.0 && workload.is_scaled());
        let size = scale.map_or_else(String::new, |scale| format!(" At {scale} of that size."));
        writeln!(text, "### {}\n", workload.title())?;
        writeln!(
            text,
            "Medians of {rounds} rounds, least and most in brackets; \
             in the last column ours beside it.{size}\n"
        )?;
        writeln!(
            text,
            "| store | {} | ours : this |\n|{}",
            figures.join(" | "),
            "---|".repeat(figures.len() + 2)
        )?;
        for (contender, value) in self.ranked(workload, figures[0]) {
            let cells = figures.iter().map(|figure| {
                self.summary(workload, contender, figure)
                    .map_or_else(|| "-".into(), cell)
            });
            let ours = self
                .summary(workload, OURS, figures[0])
                .map_or(f64::NAN, |ours| ours.median);
            let ratio = if contender == OURS {
                "-".to_owned()
            } else {
                format!("{:.2}", ours / value)
            };
            let name = if contender == OURS {
                format!("**{contender}**")
            } else {
                contender.to_owned()
            };
            writeln!(
                text,
                "| {name} | {} | {ratio} |",
                cells.collect::<Vec<_>>().join(" | ")
            )?;
        }
        let floor: Vec<Option<Summary>> = figures
            .iter()
            .map(|figure| self.summary(workload, OURS, &format!("floor {figure}")))
            .collect();
        if floor.iter().any(Option::is_some) {
            let cells = floor
                .into_iter()
                .map(|found| found.map_or_else(|| "-".into(), cell));
            writeln!(
                text,
                "| *the floor* | {} | |",
                cells.collect::<Vec<_>>().join(" | ")
            )?;
        }
        writeln!(text)?;
        for bar in workload.bars() {
            if let Some(found) = self.held_against(workload, bar) {
                writeln!(
                    text,
                    "- {} {}",
                    if found.share >= 1.0 {
                        "held:"
                    } else {
                        "**missed:**"
                    },
                    found.text
                )?;
            }
        }
        writeln!(text)
    }

    fn held_against(&self, workload: Workload, bar: Bar) -> Option<Held> {
        let figure = bar.figure;
        let ours = self.summary(workload, OURS, figure)?.median;
        let best = || {
            self.ranked(workload, figure)
                .into_iter()
                .find(|(contender, _)| !contender.starts_with(OURS))
        };
        let floor = |name: &str| self.summary(workload, OURS, name).map(|found| found.median);
        let (share, text) = match bar.wanted {
            Wanted::MoreThanPeers(times) => {
                let (peer, best) = best()?;
                (
                    ours / best / times,
                    format!(
                        "{figure} {:.2} of the best peer's ({peer}), at least {times} wanted",
                        ours / best
                    ),
                )
            }
            Wanted::LessThanPeers(times) => {
                let (peer, best) = best()?;
                (
                    times * best / ours,
                    format!(
                        "{figure} {:.2} of the best peer's ({peer}), at most {times} wanted",
                        ours / best
                    ),
                )
            }
            Wanted::MoreThanFloor(name, times) => {
                let floor = floor(name)?;
                (
                    ours / floor / times,
                    format!(
                        "{figure} {:.2} of the floor's, at least {times} wanted",
                        ours / floor
                    ),
                )
            }
            Wanted::LessThanFloor(name, times) => {
                let floor = floor(name)?;
                (
                    times * floor / ours,
                    format!(
                        "{figure} {:.2} of the floor's, at most {times} wanted",
                        ours / floor
                    ),
                )
            }
            Wanted::LessThanUnmerged(times) => {
                let unmerged = Contender::Unmerged.to_string();
                let unmerged = self.summary(workload, &unmerged, figure)?.median;
                (
                    times * unmerged / ours,
                    format!(
                        "{figure} {:.2} of the log's without merging, at most {times} wanted",
                        ours / unmerged
                    ),
                )
            }
            Wanted::AtLeast(least) => (
                if ours >= least { 1.0 } else { ours / least },
                format!("{figure} {}, at least {least} wanted", short(ours)),
            ),
            Wanted::AtMost(most) => (
                if ours <= most { 1.0 } else { most / ours },
                format!("{figure} {}, at most {most} wanted", short(ours)),
            ),
        };
        Some(Held { share, text })
    }

    /// Draws the first metric of the workloads that are rates, as bars: ours and the five best
    /// peers.
    fn draw(&self, file: &Path) {
        let shown: Vec<(Workload, Vec<(&str, f64)>)> = Workload::value_variants()
            .iter()
            .filter(|workload| is_rate(workload.figures()[0]))
            .map(|workload| (*workload, self.ranked(*workload, workload.figures()[0])))
            .filter(|(_, ranked)| !ranked.is_empty())
            .collect();
        const WIDTH: u32 = 860;
        const ROW: u32 = 20;
        const ROWS: usize = 6;
        let panel = ROW * (ROWS as u32 + 2);
        let root =
            SVGBackend::new(file, (WIDTH, panel * shown.len().max(1) as u32)).into_drawing_area();
        root.fill(&WHITE).expect("a chart");
        for ((workload, ranked), area) in
            shown.iter().zip(root.split_evenly((shown.len().max(1), 1)))
        {
            let text = |size: i32, bold: bool| {
                let style = if bold {
                    FontStyle::Bold
                } else {
                    FontStyle::Normal
                };
                ("sans-serif", size, style)
                    .into_font()
                    .color(&RGBColor(40, 40, 40))
            };
            let figure = workload.figures()[0];
            let title = format!(
                "{}: {figure}",
                workload
                    .title()
                    .split(", ")
                    .take(2)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            area.draw_text(&title, &text(14, true), (10, 6))
                .expect("a chart");
            let most = ranked.iter().map(|(_, value)| *value).fold(0.0, f64::max);
            for (nth, (contender, value)) in ranked.iter().take(ROWS).enumerate() {
                let top = (ROW * (nth as u32 + 1) + 6) as i32;
                let length = (value / most * 500.0) as i32;
                let color = if *contender == OURS {
                    OURS_COLOR
                } else {
                    RGBColor(170, 178, 186)
                };
                area.draw_text(contender, &text(12, false), (10, top + 2))
                    .expect("a chart");
                let bar = Rectangle::new(
                    [(230, top), (230 + length, top + ROW as i32 - 5)],
                    color.filled(),
                );
                area.draw(&bar).expect("a chart");
                area.draw_text(&short(*value), &text(12, false), (236 + length, top + 2))
                    .expect("a chart");
            }
        }
        root.present().expect("the chart is written");
    }
}

/// How well a target is met: from 1 on it is.
struct Held {
    share: f64,
    text: String,
}

/// Returns whether more is better, as for these metrics. For all others less is.
fn is_rate(figure: &str) -> bool {
    figure.ends_with("/s")
}

fn cell(summary: Summary) -> String {
    let Summary {
        median,
        least,
        most,
    } = summary;
    if (least - most).abs() < f64::EPSILON {
        short(median)
    } else {
        format!("{} ({}-{})", short(median), short(least), short(most))
    }
}

/// Three significant digits.
pub fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1e6 => format!("{:.2} M", value / 1e6),
        large if large >= 1e4 => format!("{:.0} k", value / 1e3),
        large if large >= 1e3 => format!("{:.1} k", value / 1e3),
        medium if medium >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
