//! A workload on a recorded disk, and the disk as a power cut leaves it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::check::{History, Order, Step};
use crate::common::backing::Kind;
use crate::common::caller::own_mounts;
use crate::common::mounts::{Maker, Mounted, Stack};
use crate::common::scratch::Scratch;
use crate::disk::{Disk, Event, Image, Volume, run};
use crate::rng::Rng;
use crate::script::{Author, lowers};

/// xfs takes no less than 300 MB.
const SIZE: u64 = 400 << 20;

/// How many steps a workload has, at least.
const STEPS: usize = 110;

/// What is looked at.
#[derive(Clone, Copy)]
pub struct Subject {
    pub kind: Kind,
    pub maker: Maker,
    /// Nothing is synced, by the union nor through it.
    pub volatile: bool,
    /// Half of the lowers lies on the same disk, so that their extents can be shared.
    pub near: bool,
    /// Further options of the union, with a leading comma.
    pub extra: &'static str,
}

/// Where it happens.
pub struct Area {
    subject: Subject,
    // Dropped in this order.
    disk: Disk,
    scratch: Scratch,
}

/// What the disk was asked from the first step to the last.
struct Record {
    base: Image,
    log: Vec<Event>,
    history: History,
}

impl Area {
    /// Makes the disk, with an empty file system on it.
    pub fn new(subject: Subject) -> Result<Area, String> {
        own_mounts();
        let scratch = Scratch::new("powercut");
        for dir in ["mnt", "union", "far", "near"] {
            fs::create_dir(scratch.path().join(dir)).map_err(|error| error.to_string())?;
        }
        let disk = Disk::new(&scratch.path().join("disk"), SIZE)?;
        disk.format(subject.kind)?;
        Ok(Area { subject, disk, scratch })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn near(&self) -> PathBuf {
        if self.subject.near { self.at("mnt/lower") } else { self.at("near") }
    }

    fn volume(&self) -> Result<Volume, String> {
        self.disk.mount(self.subject.kind, &self.at("mnt"))
    }

    fn union(&self) -> Result<Mounted, String> {
        let mnt = self.at("mnt");
        let stack =
            Stack { lowers: vec![self.near(), self.at("far")], upper: mnt.join("upper"), work: mnt.join("work") };
        let extra = if self.subject.volatile { ",volatile" } else { self.subject.extra };
        let extra = format!("{extra}{}", crate::words("PLYFS_POWERCUT_UNION"));
        Mounted::new(self.subject.maker, &stack, &self.at("union"), &extra)
    }

    /// Runs the workload that `seed` names and cuts the power `cuts` times. Returns what was found wrong.
    pub fn workload(&self, seed: u64, cuts: usize) -> Result<Vec<String>, String> {
        let record = self.record(seed)?;
        let mut rng = Rng::new(seed + 1000);
        let flushes: Vec<usize> =
            record.log.iter().enumerate().filter(|(_, event)| matches!(event, Event::Flush)).map(|(n, _)| n).collect();
        println!(
            "seed {seed}: {} steps, {} requests, {} flushes",
            record.history.steps.len(),
            record.log.len(),
            flushes.len()
        );
        let mut points: Vec<usize> = (0..cuts)
            .map(|_| match rng.chance(35) {
                true => *rng.pick(&flushes) + 1,
                false => usize::try_from(rng.below(record.log.len() as u64)).unwrap(),
            })
            .collect();
        points.sort_unstable();
        let mut durable = (record.base.clone(), 0);
        let mut wrong = Vec::new();
        for cut in points {
            let image = remains(&record.log, &mut durable, cut, &mut rng);
            if let Err(what) = self.look(image, cut, &record.history) {
                wrong.push(format!("seed {seed}, cut {cut}: {what}"));
            }
        }
        Ok(wrong)
    }

    fn record(&self, seed: u64) -> Result<Record, String> {
        let failed = |error: std::io::Error| error.to_string();
        let mnt = self.at("mnt");
        let mut rng = Rng::new(seed);
        let volume = self.volume()?;
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(mnt.join(dir)).map_err(failed)?;
        }
        let first = lowers(&mut rng, &self.near(), &self.at("far")).map_err(failed)?;
        if self.subject.kind == Kind::Btrfs {
            run(Command::new("btrfs").args(["subvolume", "create"]).arg(mnt.join("side")))?;
        }
        volume.unmount()?;
        let base = {
            let mut state = self.disk.state();
            state.recording = true;
            state.image.clone()
        };
        let volume = self.volume()?;
        let union = self.union()?;
        let history = self.play(first, rng);
        let log = {
            let mut state = self.disk.state();
            state.recording = false;
            std::mem::take(&mut state.log)
        };
        union.unmount()?;
        volume.unmount()?;
        Ok(Record { base, log, history: history? })
    }

    /// Runs the steps, while somebody else makes the file system write its journal again and again.
    fn play(&self, first: crate::model::Tree, mut rng: Rng) -> Result<History, String> {
        let root = self.at("union");
        let mnt = self.at("mnt");
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let commits = scope.spawn(|| commits(self.subject.kind, &mnt, &ended));
            let mut author = Author::new(Rng::new(rng.bits()), !self.subject.volatile);
            let mut history = History { steps: Vec::new(), versions: vec![first] };
            let mut result = Ok(());
            'all: while history.steps.len() < STEPS {
                let tree = history.versions.last().unwrap().clone();
                for op in author.next(&tree) {
                    let began = self.disk.position();
                    if let Err(error) = op.run(&root, &mnt) {
                        result = Err(format!("{}: {error}", op.name()));
                        break 'all;
                    }
                    let done = self.disk.position();
                    let mut tree = history.versions.last().unwrap().clone();
                    let synced = tree.apply(&op, history.steps.len() + 1);
                    history.steps.push(Step { op, began, done, synced });
                    history.versions.push(tree);
                }
            }
            ended.store(true, Ordering::Relaxed);
            commits.join().unwrap()?;
            result.map(|()| history)
        })
    }

    /// Mounts what is left and looks at it.
    fn look(&self, image: Image, cut: usize, history: &History) -> Result<(), String> {
        self.disk.state().image = image;
        let volume = self.volume()?;
        let seen = self.look_mounted(cut, history);
        volume.unmount()?;
        seen
    }

    fn look_mounted(&self, cut: usize, history: &History) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let work = self.at("mnt/work/work");
        let mark = work.join("incompat/volatile");
        if self.subject.volatile && mark.exists() {
            fs::remove_dir(&mark).map_err(failed)?;
        }
        let union = self.union()?;
        let order = if self.subject.kind == Kind::Btrfs { Order::PerName } else { Order::Total };
        let left: Vec<_> = fs::read_dir(&work)
            .map_err(failed)?
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| name != "incompat")
            .collect();
        let root = union.point();
        let seen = history.check(root, cut, order).and_then(|()| {
            fs::write(root.join("d0/probe"), "probe")
                .and_then(|()| fs::remove_file(root.join("d0/probe")))
                .map_err(failed)
        });
        union.unmount()?;
        if !left.is_empty() {
            return Err(format!("left in the work directory: {left:?}"));
        }
        seen
    }
}

/// Has the journal written until `ended`, without syncing anything of the union.
fn commits(kind: Kind, mnt: &Path, ended: &AtomicBool) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut file = fs::File::create(mnt.join("beside")).map_err(failed)?;
    let mut count = 0;
    while !ended.load(Ordering::Relaxed) {
        count += 1;
        if kind == Kind::Btrfs && count % 4 == 0 {
            // A transaction, where an fsync makes a log of one file only.
            let (side, copy) = (mnt.join("side"), mnt.join(format!("side-{count}")));
            run(Command::new("btrfs").args(["subvolume", "snapshot"]).args([side, copy]))?;
        }
        file.write_all(b"beside").and_then(|()| file.sync_all()).map_err(failed)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a cut leaves: all up to the last flush, and of what was written after it whatever luck leaves. `durable` is the image
/// up to an earlier flush, with how much of the log is in it.
fn remains(log: &[Event], durable: &mut (Image, usize), cut: usize, rng: &mut Rng) -> Image {
    let flushed = log[..cut].iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |flush| flush + 1);
    for event in log[..flushed].iter().skip(durable.1) {
        if let Event::Write(offset, data) = event {
            durable.0.write(*offset, data);
        }
    }
    durable.1 = durable.1.max(flushed);
    let mut image = durable.0.clone();
    let survives = *rng.pick(&[0, 10, 50, 90, 100]);
    for event in &log[flushed..cut] {
        let Event::Write(offset, data) = event else { continue };
        for (n, piece) in data.chunks(4096).enumerate() {
            if rng.chance(survives) {
                image.write(offset + n as u64 * 4096, piece);
            }
        }
    }
    image
}
