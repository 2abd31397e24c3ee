//! Text for people: sizes, times, columns, and strings that cannot harm a terminal.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use jiff::Timestamp;

/// Characters that a terminal acts on, or that reorder what stands around them.
fn is_unsafe(char: char) -> bool {
    let reorders = matches!(
        char,
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    char.is_control() || reorders
}

/// The text on one line, with what a terminal acts on escaped.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if is_unsafe(char) {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    Cow::Owned(out)
}

/// The same JSON, with what a terminal acts on as escapes. JSON has such characters in strings
/// alone, and on several lines between its parts.
pub(crate) fn escaped_json(json: &str) -> Cow<'_, str> {
    let needs = |char: char| is_unsafe(char) && char != '\n';
    if !json.chars().any(needs) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    for char in json.chars() {
        if needs(char) {
            // Writing to a string cannot fail.
            let _written = write!(out, "\\u{:04x}", u32::from(char));
        } else {
            out.push(char);
        }
    }
    Cow::Owned(out)
}

/// Cuts a line to some columns. An ellipsis stands for the rest.
pub(crate) fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if text.chars().count() <= columns {
        return Cow::Borrowed(text);
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    Cow::Owned(format!("{kept}…"))
}

/// A number of bytes, such as `4.2 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    #[expect(clippy::cast_precision_loss, reason = "it is shown with two digits")]
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {name}")
    } else {
        format!("{value:.1} {name}")
    }
}

/// A number with its thousands apart, such as `1,204,000`.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number and what it counts, such as `1 event` or `2 events`.
pub(crate) fn count(many: u64, what: &str) -> String {
    let plural = if many == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(many))
}

/// A time, such as `2026-11-29 20:16:19Z`. What is no time is shown as it is.
pub(crate) fn time(rfc3339: &str) -> String {
    match rfc3339.parse::<Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_no_time) => escaped(rfc3339).into_owned(),
    }
}

/// How long ago a time was, such as `3 min ago`.
pub(crate) fn ago(rfc3339: &str) -> String {
    let Ok(time) = rfc3339.parse::<Timestamp>() else {
        return String::new();
    };
    let seconds = time.duration_until(Timestamp::now()).as_secs();
    match seconds {
        0..60 => "just now".to_owned(),
        60.. => format!(
            "{} ago",
            lasting(Duration::from_secs(seconds.unsigned_abs()))
        ),
        _ => format!(
            "in {}",
            lasting(Duration::from_secs(seconds.unsigned_abs()))
        ),
    }
}

/// A duration in its largest unit, such as `3 min`.
pub(crate) fn lasting(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min", seconds / 60),
        seconds @ 3_600..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A latency, such as `64 us`.
pub(crate) fn latency(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    match micros {
        0.0..10.0 => format!("{micros:.1} us"),
        10.0..10_000.0 => format!("{micros:.0} us"),
        _ => format!("{:.1} ms", micros / 1e3),
    }
}

/// Rows in aligned columns, under a heading. Columns whose numbers are given are aligned right.
pub(crate) fn columns(heading: &[&str], rows: Vec<Vec<String>>, right: &[usize]) -> Vec<String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(heading.to_vec());
    table.add_rows(rows);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}
