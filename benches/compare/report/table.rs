//! The table, for a terminal and as Markdown.

use std::collections::BTreeMap;

use super::{Results, Spread};
use crate::marks::{self, EQUAL, Limit, MEAN};
use crate::work::{Row, Unit};

/// The contender that the marks are for.
const OURS: &str = "plyfs";

/// For a terminal: columns under each other.
pub fn terminal(results: &Results) -> String {
    let table = cells(results);
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::from("\n");
    for (n, row) in table.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            text.push_str(&if column == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") });
        }
        text.push('\n');
        if n == 0 {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * (columns.max(1) - 1)));
            text.push('\n');
        }
    }
    text.push('\n');
    for line in remarks(results) {
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// As Markdown, with what it was measured on above it.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for (what, value) in &results.machine {
        text.push_str(&format!("- {what}: {value}\n"));
    }
    for contender in &results.contenders {
        text.push_str(&format!("- {}: {}\n", contender.name, contender.version));
    }
    text.push('\n');
    for (n, row) in cells(results).iter().enumerate() {
        let row: Vec<String> = row.iter().map(|cell| cell.replace("  ", "&nbsp;&nbsp;")).collect();
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if n == 0 {
            text.push_str(&format!("|---|{}\n", "--:|".repeat(row.len() - 1)));
        }
    }
    text.push('\n');
    for line in remarks(results) {
        text.push_str(&format!("{line}\n\n"));
    }
    text
}

/// Head and rows: work, the kernel's time, the others' ratio to it (or their time, if there is no kernel), mark.
fn cells(results: &Results) -> Vec<Vec<String>> {
    let mut head = vec!["work".to_owned()];
    head.extend(results.contenders.iter().map(|contender| contender.name.clone()));
    head.extend(["mark".to_owned(), "met".to_owned()]);
    let mut table = vec![head];
    for row in results.rows() {
        let mut cells = vec![row.title.to_owned()];
        cells.extend(results.contenders.iter().map(|contender| cell(results, row, &contender.name)));
        cells.push(marks::of(row.id).map_or(String::new(), |mark| limit(mark.limit)));
        cells.push(verdict(results.meets(row, OURS)));
        table.push(cells);
    }
    for (title, pass) in [("128 layers against 1, warm", "warm"), ("128 layers against 1, cold", "cold")] {
        table.extend(growth(results, title, pass));
    }
    table.extend(mean(results));
    table
}

fn cell(results: &Results, row: &Row, contender: &str) -> String {
    let kernel = results.kernel().is_some_and(|kernel| kernel.name == contender);
    match (results.ratio(row, contender), results.value(row.id, contender)) {
        (Some(ratio), _) if !kernel => ratio_text(ratio),
        (_, Some(value)) if row.unit == Unit::Bytes => size(value.median),
        (_, Some(value)) => duration(value.median),
        _ => "-".to_owned(),
    }
}

fn growth(results: &Results, title: &str, pass: &str) -> Option<Vec<String>> {
    let of = |name: &str| results.growth(name, pass);
    let kernel = results.kernel().and_then(|kernel| of(&kernel.name));
    results.contenders.iter().find_map(|contender| of(&contender.name))?;
    let limit = if pass == "warm" { Some(EQUAL) } else { kernel };
    let mut cells = vec![title.to_owned()];
    cells
        .extend(results.contenders.iter().map(|c| of(&c.name).map_or("-".to_owned(), |times| format!("x {times:.2}"))));
    cells.push(limit.map_or(String::new(), |limit| format!("x {limit:.2}")));
    cells.push(verdict(of(OURS).zip(limit).map(|(times, limit)| times <= limit)));
    Some(cells)
}

fn mean(results: &Results) -> Option<Vec<String>> {
    results.kernel()?;
    let of = |name: &str| results.mean(name);
    let rows = results.contenders.iter().filter_map(|contender| of(&contender.name)).map(|(_, rows)| rows).max()?;
    let mut cells = vec![format!("geometric mean of {rows} rows with a mark")];
    for contender in &results.contenders {
        cells.push(match of(&contender.name) {
            Some((mean, all)) if all == rows => format!("{mean:.2}"),
            Some((mean, some)) => format!("{mean:.2} (of {some})"),
            None => "-".to_owned(),
        });
    }
    cells.push(format!("{MEAN}"));
    cells.push(verdict(of(OURS).map(|(mean, _)| mean <= MEAN)));
    Some(cells)
}

fn remarks(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    if results.kernel().is_some() {
        lines.push("Ratios to the kernel's overlay in the same round: median (smallest to largest).".to_owned());
    }
    let mut slower: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (row, rival, times) in results.slower_than_rivals(OURS) {
        slower.entry(rival).or_default().push(format!("{row} ({times:.2})"));
    }
    for (rival, rows) in slower {
        lines.push(format!("{OURS} is slower than {rival}, beyond the spread: {}.", rows.join("; ")));
    }
    let mut failures: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for (work, contender, reason) in results.failures() {
        failures.entry((contender, reason)).or_default().push(work);
    }
    for ((contender, reason), works) in failures {
        lines.push(format!("{contender} failed at {}: {reason}.", works.join(", ")));
    }
    lines.extend(results.notes.iter().map(|note| format!("{note}.")));
    lines
}

fn verdict(met: Option<bool>) -> String {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    }
    .to_owned()
}

fn limit(limit: Limit) -> String {
    match limit {
        Limit::Ratio(ratio) => format!("{ratio}"),
        Limit::Bytes(bytes) => size(bytes),
    }
}

fn ratio_text(ratio: Spread) -> String {
    format!("{} ({}-{})", figure(ratio.median), figure(ratio.least), figure(ratio.most))
}

fn figure(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.1}") }
}

/// Seconds in a unit that fits.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} us", s * 1e6),
    }
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 1024.0 * 1024.0 => format!("{:.1} MiB", b / (1024.0 * 1024.0)),
        b if b >= 4096.0 => format!("{:.1} KiB", b / 1024.0),
        b => format!("{b:.0} B"),
    }
}
