//! What was measured, and what follows from it: medians, ratios to the kernel, their spread, the marks.

mod json;
mod plot;
mod table;

use std::collections::BTreeMap;
use std::path::Path;

use crate::Result;
use crate::args::{Args, Who};
use crate::marks::{self, Limit};
use crate::plan::{Contender, Kind, Plan};
use crate::work::{Row, Unit, WORKS};

/// All samples of a run.
#[derive(Debug)]
pub struct Results {
    /// Who took part.
    pub contenders: Vec<Contender>,
    /// What was measured on, line by line.
    pub machine: Vec<(&'static str, String)>,
    /// What has to be known about this run.
    pub notes: Vec<String>,
    // By row and contender: round and value.
    samples: BTreeMap<(String, String), Vec<(u32, f64)>>,
    failures: BTreeMap<(String, String), String>,
}

/// A value with the smallest and the largest that were seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Of any values; none of none.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
        Some(Spread { median, least, most })
    }
}

impl Results {
    /// Nothing measured yet.
    pub fn new(plan: &Plan, backing: &str) -> Results {
        let who = match plan.who {
            Who::User => "an ordinary user in a user namespace",
            Who::Root => "root",
            Who::Plain => "an ordinary user without namespaces",
        };
        let layers = match plan.lowers.len() {
            0 => format!("generated, {} files", plan.scaled(60_000)),
            n => format!("{n} given"),
        };
        let machine = vec![
            ("kernel", first_line("/proc/sys/kernel/osrelease")),
            ("processors", processors()),
            ("backing file system", backing.to_owned()),
            ("mounted by", who.to_owned()),
            ("layers", layers),
            ("rounds", plan.rounds.to_string()),
        ];
        let mut notes = Vec::new();
        if plan.scale != 1.0 {
            notes.push(format!("all sizes and counts times {}: the marks were set with 1", plan.scale));
        }
        if plan.who != Who::User {
            notes.push("the marks were set as an ordinary user in a user namespace".to_owned());
        }
        Results {
            contenders: plan.contenders.clone(),
            machine,
            notes,
            samples: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Takes in one sample.
    pub fn add(&mut self, row: &str, contender: &str, round: u32, value: f64) {
        self.samples.entry((row.to_owned(), contender.to_owned())).or_default().push((round, value));
    }

    /// A contender could not do a work.
    pub fn fail(&mut self, work: &str, contender: &str, reason: &str) {
        self.failures.insert((work.to_owned(), contender.to_owned()), reason.to_owned());
    }

    /// A remark.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Works that contenders could not do: work, contender, reason.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.failures.iter().map(|((work, contender), reason)| (work.as_str(), contender.as_str(), reason.as_str()))
    }

    /// The rows that have any sample, in the order of the works.
    pub fn rows(&self) -> impl Iterator<Item = &'static Row> {
        let measured = |row: &&'static Row| self.samples.keys().any(|(id, _)| id == row.id);
        WORKS.iter().flat_map(|work| work.rows).filter(measured)
    }

    /// All samples of a contender in a row: round and value.
    pub fn samples(&self, row: &str, contender: &str) -> &[(u32, f64)] {
        self.samples.get(&(row.to_owned(), contender.to_owned())).map(Vec::as_slice).unwrap_or_default()
    }

    /// What a contender took.
    pub fn value(&self, row: &str, contender: &str) -> Option<Spread> {
        Spread::of(self.samples(row, contender).iter().map(|(_, value)| *value).collect())
    }

    /// The contender that is the measure of the others.
    pub fn kernel(&self) -> Option<&Contender> {
        self.contenders.iter().find(|contender| contender.kind == Kind::Kernel)
    }

    /// What a contender took, over what the kernel took in the same round.
    pub fn ratio(&self, row: &Row, contender: &str) -> Option<Spread> {
        if row.unit == Unit::Bytes {
            return None;
        }
        let kernel = self.samples(row.id, &self.kernel()?.name);
        let of_round = |round: u32| kernel.iter().find(|(other, _)| *other == round).map(|(_, value)| *value);
        let samples = self.samples(row.id, contender).iter();
        Spread::of(samples.filter_map(|(round, value)| Some(value / of_round(*round)?)).collect())
    }

    /// Whether a contender meets the mark of a row; none if there is no mark or nothing to judge.
    pub fn meets(&self, row: &Row, contender: &str) -> Option<bool> {
        match marks::of(row.id)?.limit {
            Limit::Ratio(limit) => Some(self.ratio(row, contender)?.median <= limit),
            Limit::Bytes(limit) => Some(self.value(row.id, contender)?.median <= limit),
        }
    }

    /// The geometric mean of a contender's ratios over the rows that have a mark, and over how many rows.
    pub fn mean(&self, contender: &str) -> Option<(f64, usize)> {
        let ratios: Vec<f64> = self
            .rows()
            .filter(|row| marks::of(row.id).is_some())
            .filter_map(|row| Some(self.ratio(row, contender)?.median.ln()))
            .collect();
        let count = ratios.len();
        (count > 0).then(|| ((ratios.iter().sum::<f64>() / count as f64).exp(), count))
    }

    /// How many times as long a walk of 128 layers took as one of 1 layer.
    pub fn growth(&self, contender: &str, pass: &str) -> Option<f64> {
        let median = |depth| self.value(&format!("layers-{depth}-{pass}"), contender).map(|value| value.median);
        Some(median(128)? / median(1)?)
    }

    /// Rows in which `contender` took longer than a fuse-overlayfs: title, rival, how many times as long.
    pub fn slower_than_rivals(&self, contender: &str) -> Vec<(&'static str, &str, f64)> {
        let mut slower = Vec::new();
        for row in self.rows().filter(|row| row.unit != Unit::Bytes) {
            for rival in self.contenders.iter().filter(|other| other.name.starts_with("fuse-overlayfs")) {
                if let (Some(ours), Some(theirs)) = (self.value(row.id, contender), self.value(row.id, &rival.name)) {
                    let times = ours.median / theirs.median;
                    // Where the spreads touch nobody was slower.
                    if times > 1.0 && ours.least > theirs.most {
                        slower.push((row.title.trim(), rival.name.as_str(), times));
                    }
                }
            }
        }
        slower
    }
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn processors() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} x {}", model.map_or("unknown", |(_, model)| model))
}

/// Prints the table and writes the files that were asked for.
pub fn write(results: &Results, args: &Args) -> Result<()> {
    print!("{}", table::terminal(results));
    store(args.json.as_deref(), || json::render(results))?;
    store(args.markdown.as_deref(), || Ok(table::markdown(results)))?;
    store(args.svg.as_deref(), || Ok(plot::render(results)))
}

fn store(path: Option<&Path>, content: impl FnOnce() -> Result<String>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, content()?).map_err(|error| format!("{}: {error}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}
