//! Many runs: which seeds, how long, and what is said about a failure.
//!
//! `PLYFS_DIFF_FS` (tmpfs,ext4,xfs,btrfs), `PLYFS_DIFF_RUNS`, `PLYFS_DIFF_OPS`, `PLYFS_DIFF_SEED` (only this one),
//! `PLYFS_DIFF_OPTIONS` (sets of mount options with `;` between them, taken in turn; `all` for each option and each pair,
//! once on each file system unless `PLYFS_DIFF_RUNS` says how often), `PLYFS_DIFF_SECONDS` (stop after), `PLYFS_DIFF_SHRINK`
//! (seconds), `PLYFS_DIFF_KEEP_GOING` (one report for each sort of difference instead of stopping at the first),
//! `PLYFS_DIFF_KERNEL` (the kernel on both sides).

use super::bench::Bench;
use super::exceptions::{EXCEPTIONS, NOT_GENERATED};
use super::generate::{Company, Generator};
use super::layers::{Rights, layer, let_in, share, split_data};
use super::options;
use super::rng::Rng;
use super::run::{Failure, Layers, Scenario, Source, kernel_layer, run};
use super::shrink::shrink;
use super::tree::{Marks, Tree};
use crate::common::backing::Kind;
use crate::common::mounts::{DATA, Maker, OF_ALICE, PASSTHROUGH};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// What to run.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// On what.
    pub kinds: Vec<Kind>,
    /// The seeds, in order.
    pub seeds: Vec<u64>,
    /// Sets of mount options, taken in turn; each option with a comma before it.
    pub options: Vec<String>,
    /// Operations in each run.
    pub operations: usize,
    /// Who makes the two unions.
    pub makers: [Maker; 2],
    /// Who asks for the operations.
    pub company: Company,
    /// How long altogether.
    pub limit: Duration,
    /// How long making a failure small may take.
    pub patience: Duration,
    /// Whether to go on after a failure.
    pub keep_going: bool,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// A seed that nobody had before.
fn fresh_seed() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |now| now.as_micros() as u64 % 1_000_000_000_000)
}

impl Campaign {
    /// From the environment; without it a few fixed seeds and as many fresh ones, in less than a minute.
    pub fn from_environment() -> Campaign {
        let kinds = std::env::var("PLYFS_DIFF_FS").unwrap_or_else(|_| "tmpfs,ext4,xfs,btrfs".to_owned());
        let runs = number("PLYFS_DIFF_RUNS");
        let fresh = fresh_seed();
        let seeds = match (number("PLYFS_DIFF_SEED"), runs) {
            (Some(seed), None) => vec![seed],
            (Some(seed), Some(runs)) => (seed..).take(runs as usize).collect(),
            (None, Some(runs)) => (fresh..).take(runs as usize).collect(),
            (None, None) => (1..=4).chain((fresh..).take(4)).collect(),
        };
        let options = std::env::var("PLYFS_DIFF_OPTIONS").unwrap_or_default();
        let comma = |set: &str| if set.is_empty() { String::new() } else { format!(",{set}") };
        Campaign {
            options: options.split(';').map(comma).collect(),
            kinds: kinds.split(',').map(|name| Kind::parse(name).expect("a known file system")).collect(),
            seeds,
            operations: number("PLYFS_DIFF_OPS").unwrap_or(200) as usize,
            makers: [
                Maker::Kernel,
                if std::env::var_os("PLYFS_DIFF_KERNEL").is_some() { Maker::Kernel } else { Maker::Plyfs },
            ],
            company: Company::Owner,
            limit: Duration::from_secs(number("PLYFS_DIFF_SECONDS").unwrap_or(if runs.is_some() {
                1 << 20
            } else {
                50
            })),
            patience: Duration::from_secs(number("PLYFS_DIFF_SHRINK").unwrap_or(30)),
            keep_going: std::env::var_os("PLYFS_DIFF_KEEP_GOING").is_some(),
        }
    }

    /// The same with each option of the kernel's overlay and each pair of them: a few of these sets, others each time, or
    /// all of them if asked for.
    pub fn with_options() -> Campaign {
        let campaign = Campaign::from_environment();
        let asked = std::env::var("PLYFS_DIFF_OPTIONS").unwrap_or_default();
        if !["", "all"].contains(&asked.as_str()) {
            return campaign;
        }
        let bench = Bench::new(Kind::Tmpfs).expect("root can mount a tmpfs");
        let options = options::taken_by_the_kernel(&bench);
        let mut seeds = campaign.seeds;
        let mut limit = campaign.limit / 3;
        if asked == "all" && number("PLYFS_DIFF_RUNS").is_none() && number("PLYFS_DIFF_SEED").is_none() {
            seeds = (fresh_seed()..).take(options.len()).collect();
            limit = Duration::from_secs(1 << 20);
        }
        eprintln!("differential: {} sets of options, seeds {:?}", options.len(), (seeds.first(), seeds.last()));
        Campaign { options, seeds, limit, ..campaign }
    }

    /// The same with data that goes past the server.
    pub fn with_passthrough() -> Campaign {
        let all = Campaign::from_environment();
        let options = all.options.iter().map(|set| format!("{set}{PASSTHROUGH}")).collect();
        Campaign { options, limit: all.limit / 3, ..all }
    }

    /// The same for a plain user, on the kinds that `from_environment` says.
    pub fn for_user() -> Campaign {
        let all = Campaign::from_environment();
        Campaign { makers: [Maker::Plain, Maker::Plyfs], limit: all.limit / 3, ..all }
    }

    /// The same with two ordinary users in the place of root.
    pub fn for_two_users() -> Campaign {
        let all = Campaign::from_environment();
        Campaign { company: Company::TwoUsers, limit: all.limit / 5, ..all }
    }

    /// The same on the mount of one of them, with the marks that plain users can write.
    pub fn for_guest() -> Campaign {
        Campaign {
            company: Company::Guest,
            options: vec![format!(",userxattr{OF_ALICE}")],
            ..Campaign::for_two_users()
        }
    }

    /// Runs everything as root. `Err` is the report of what differed.
    pub fn go(&self) -> Result<(), String> {
        let mut found = Reports::default();
        let end = Instant::now() + self.limit;
        for (index, kind) in self.kinds.iter().enumerate() {
            // Every file system gets its share of the time that is left.
            let share = end.saturating_duration_since(Instant::now()) / (self.kinds.len() - index) as u32;
            match Bench::new(*kind) {
                Ok(bench) => self.on(&bench, Instant::now() + share, &mut found)?,
                Err(reason) => crate::common::skip("differential", &reason),
            }
        }
        found.end(self.operations)
    }

    /// Runs everything in a directory, with the rights of whoever asks.
    pub fn go_inside(&self, dir: &Path, name: &str) -> Result<(), String> {
        let mut found = Reports::default();
        self.on(&Bench::inside(dir, name), Instant::now() + self.limit, &mut found)?;
        found.end(self.operations)
    }

    fn on(&self, bench: &Bench, stop: Instant, found: &mut Reports) -> Result<(), String> {
        for seed in &self.seeds {
            if Instant::now() > stop {
                break;
            }
            found.runs += 1;
            // Other sets on each file system.
            let turn = seed.wrapping_add(61 * bench.turn());
            let options = self.options.get((turn % self.options.len().max(1) as u64) as usize);
            let mut scenario = scenario(bench, *seed, self.makers, options.map_or("", String::as_str));
            match self.company {
                Company::Owner => {}
                Company::TwoUsers => share_with_two(&mut scenario, *seed, share),
                Company::Guest => share_with_two(&mut scenario, *seed, let_in),
            }
            let rights = rights(self.makers, &scenario.options);
            let mut generator = Generator::new(seed.wrapping_mul(31), rights, Marks::of_kernel(&scenario.options));
            generator.company = self.company;
            let generator = Box::new(generator);
            let Err(failure) = run(bench, &scenario, Source::Random { generator, count: self.operations }) else {
                continue;
            };
            let known = found.sorts.entry(failure.sort.clone()).or_default();
            *known += 1;
            if *known == 1 {
                let report = self.report(bench, *seed, &scenario, failure);
                eprintln!("{report}");
                if !self.keep_going {
                    return Err(report);
                }
            }
        }
        Ok(())
    }

    fn report(&self, bench: &Bench, seed: u64, scenario: &Scenario, failure: Failure) -> String {
        let first = failure.calls.len();
        let (scenario, failure) = shrink(bench, scenario, failure, self.patience);
        let mut text = format!("\n=== {} (PLYFS_DIFF_FS={} PLYFS_DIFF_SEED={seed}", failure.sort, bench.name());
        text += &format!(" PLYFS_DIFF_OPS={}; operation {first})\n", self.operations);
        let Scenario { umasks, spread, names, options, .. } = &scenario;
        text += &format!(
            "umasks {}{}{}{}",
            umasks.map(|umask| format!("{umask:03o}")).join(" "),
            if options.is_empty() { String::new() } else { format!(", options{options}") },
            if scenario.settle { ", copy-up at open" } else { "" },
            if *spread { ", lowers on two file systems" } else { "" }
        );
        text +=
            &format!("{}\n", if names.contains(&true) { format!(", .wh. names in {names:?}") } else { String::new() });
        text += &format!("upper:\n{:?}", scenario.layers.upper);
        for (index, tree) in scenario.layers.lowers.iter().enumerate() {
            text += &format!("lower {index}:\n{tree:?}");
        }
        if options.contains(DATA) {
            text += &format!("data:\n{:?}", scenario.layers.data);
        }
        text += "operations:\n";
        for call in &failure.calls {
            text += &format!("    {:?} {:?}\n", call.caller, call.op);
        }
        text += "difference:\n";
        for line in &failure.lines {
            text += &format!("    {line}\n");
        }
        text
    }
}

/// How many runs there were and what they found.
#[derive(Default)]
struct Reports {
    runs: usize,
    sorts: BTreeMap<String, usize>,
}

impl Reports {
    fn end(self, operations: usize) -> Result<(), String> {
        eprintln!("differential: {} runs of {operations} operations, but for:", self.runs);
        EXCEPTIONS.iter().for_each(|exception| eprintln!("  {}", exception.reason));
        NOT_GENERATED.iter().for_each(|(what, why)| eprintln!("  {what}: {why}"));
        if self.sorts.is_empty() {
            return Ok(());
        }
        let mut counts: Vec<(usize, String)> = self.sorts.into_iter().map(|(sort, count)| (count, sort)).collect();
        counts.sort_by(|a, b| b.cmp(a));
        Err(counts.into_iter().map(|(count, sort)| format!("{count:5} x {sort}\n")).collect())
    }
}

/// The scenario that a seed stands for on a bench.
pub fn scenario(bench: &Bench, seed: u64, makers: [Maker; 2], options: &str) -> Scenario {
    let mut rng = Rng::new(seed);
    let plain = makers[0] == Maker::Plain;
    let rights = rights(makers, options);
    let mut lowers: Vec<Tree> = Vec::new();
    for _ in 0..=rng.below(4) {
        let next = next_layer(bench, &mut rng, &lowers, rights, options);
        lowers.insert(0, next);
    }
    let upper = if rng.chance(40) { Tree::empty() } else { next_layer(bench, &mut rng, &lowers, rights, options) };
    let settle = makers[1] == Maker::Kernel || rng.chance(40) || (!plain && options.contains("metacopy=on"));
    let mut upper = upper;
    let index = options.contains("index=on") || options.contains("nfs_export=on");
    if !settle && !index {
        // What a copy-up does to lower hard links shows at open to the kernel's callers and at first write to ours.
        lowers.iter_mut().chain([&mut upper]).for_each(Tree::separate_links);
    }
    // An index belongs to its lower layers: the two unions need the same.
    let with_names =
        makers[1] == Maker::Plyfs && !index && Marks::of_kernel(options) == Marks::Kernel && rng.chance(30);
    let mut data = Tree::empty();
    if options.contains(DATA) {
        // Without metacopy=on the kernel follows from the last layer only.
        let followed = if options.contains("metacopy=on") { 0 } else { lowers.len() - 1 };
        lowers[followed..].iter_mut().for_each(|lower| split_data(&mut rng, lower, &mut data));
    }
    Scenario {
        makers,
        names: lowers.iter().map(|_| with_names && rng.chance(70)).collect(),
        spread: !plain && rng.chance(15),
        options: options.to_owned(),
        umasks: [*rng.pick(&[0o022, 0o022, 0, 0o077]); 3],
        every: *rng.pick(&[0, 10, 50]),
        layers: Layers { lowers, upper, data },
        settle,
        numbers: bench.name() == "tmpfs" && makers[1] == Maker::Plyfs,
        fault: None,
    }
}

/// What the layers may hold, and what is asked for.
fn rights(makers: [Maker; 2], options: &str) -> Rights {
    if makers[0] == Maker::Plain || options.contains(OF_ALICE) { Rights::User } else { Rights::Root }
}

/// Makes a scenario one for two users, each with a umask of its own; `share` says who has what.
fn share_with_two(scenario: &mut Scenario, seed: u64, share: fn(&mut Rng, &mut Tree)) {
    let mut rng = Rng::new(seed ^ 0x2);
    let layers = &mut scenario.layers;
    layers.lowers.iter_mut().chain([&mut layers.upper]).for_each(|layer| share(&mut rng, layer));
    scenario.umasks = [0, 0, 0].map(|_| *rng.pick(&[0o022, 0o002, 0o007, 0, 0o077]));
}

/// A layer on top of `below`: a random one, or one that the kernel wrote.
fn next_layer(bench: &Bench, rng: &mut Rng, below: &[Tree], rights: Rights, options: &str) -> Tree {
    let refs: Vec<&Tree> = below.iter().collect();
    if rights == Rights::Root && !below.is_empty() && rng.chance(40) {
        let (seed, count) = (rng.bits(), 20 + rng.below(60) as usize);
        return kernel_layer(bench, below.to_vec(), seed, count, options);
    }
    let entries = 4 + rng.below(30);
    layer(rng, &refs, rights, entries)
}
