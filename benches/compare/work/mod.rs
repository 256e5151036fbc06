//! The works: what each contender has to do, on which layers, and which rows of the table come of it.
//!
//! A work runs once on a fresh mount. It knows the mount point, never the contender.

mod copy_up;
mod data;
mod names;
mod programs;
mod read;
mod scale;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use rustix::process::Pid;

use crate::Result;
use crate::fixture::Layers;
use crate::plan::Plan;
use crate::tree::{self, Names};

/// A piece of work on one fresh mount.
#[derive(Debug)]
pub struct Work {
    /// Its name, for `--only`.
    pub id: &'static str,
    /// What lies below the upper.
    pub layers: Layers,
    /// The options of the kernel's overlay that it is about.
    pub options: &'static [(&'static str, &'static str)],
    /// What it measures.
    pub rows: &'static [Row],
    run: fn(&mut Run<'_>) -> Result<()>,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// Its name, for `--only` and in the JSON.
    pub id: &'static str,
    /// As people read it.
    pub title: &'static str,
    /// What its values are.
    pub unit: Unit,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds for all of it.
    Total,
    /// Seconds per operation.
    Each,
    /// Bytes of memory.
    Bytes,
}

const fn total(id: &'static str, title: &'static str) -> Row {
    Row { id, title, unit: Unit::Total }
}

const fn each(id: &'static str, title: &'static str) -> Row {
    Row { id, title, unit: Unit::Each }
}

const fn bytes(id: &'static str, title: &'static str) -> Row {
    Row { id, title, unit: Unit::Bytes }
}

macro_rules! work {
    ($id:literal, $layers:expr, $run:path, [$($row:expr),+ $(,)?] $(, $key:literal = $value:literal)?) => {
        Work { id: $id, layers: $layers, options: &[$(($key, $value))?], rows: &[$($row),+], run: $run }
    };
}

/// All works, in the order in which they run. Memory comes last: it has the kernel's caches dropped.
#[rustfmt::skip]
pub static WORKS: &[Work] = &[
    work!("walk", Layers::Tree, read::walk, [total("walk-cold", "tree walk with attributes, cold"), total("walk-warm", "tree walk with attributes, warm")]),
    work!("walk2", Layers::Tree, read::walk_twice_at_once, [total("walk2-cold", "two walks at once, cold")]),
    work!("stat", Layers::Tree, read::stat, [each("stat-cold", "stat, cold"), each("stat-warm", "stat, warm")]),
    work!("open", Layers::Tree, read::open, [each("open-cold", "open+read+close, cold"), each("open-warm", "open+read+close, warm")]),
    work!("miss", Layers::Tree, read::miss, [each("miss-cold", "missing names, cold"), each("miss-warm", "missing names, warm")]),
    work!("xattr", Layers::Tree, read::xattr, [each("xattr-cold", "lstat+getxattr+listxattr, cold"), each("xattr-warm", "lstat+getxattr+listxattr, warm")]),
    work!("read", Layers::Big, read::sequential, [total("read-cold", "500 MB read, cold"), total("read-warm", "500 MB read, warm")]),
    work!("randread", Layers::Big, read::random, [each("randread-cold", "random 4 KiB reads, cold"), each("randread-warm", "random 4 KiB reads, warm")]),
    work!("untar", Layers::Tree, names::untar, [total("untar", "untar 8,000 small files"), total("rm-upper", "rm -rf of an upper tree")]),
    work!("rm-lower", Layers::Tree, names::remove_lower, [total("rm-lower", "rm -rf of a lower tree")]),
    work!("create", Layers::Tree, names::create, [each("create", "create"), each("rename", "rename"), each("unlink", "unlink"), each("mkdir", "mkdir")]),
    work!("create2", Layers::Tree, names::create_two, [each("create2", "two clients creating at once")]),
    work!("whiteout", Layers::Tree, names::whiteout, [each("whiteout", "whiteout (unlink a lower file)")]),
    work!("chmod-reflink", Layers::Tree, copy_up::chmod, [each("chmod-reflink", "chmod of lower files, same file system")]),
    work!("append-reflink", Layers::Tree, copy_up::append, [each("append-reflink", "append to lower files, same file system")]),
    work!("chmod", Layers::TreeElsewhere, copy_up::chmod, [each("chmod", "chmod of lower files, other file system")]),
    work!("append", Layers::TreeElsewhere, copy_up::append, [each("append", "append to lower files, other file system")]),
    work!("chmod-metacopy", Layers::TreeElsewhere, copy_up::chmod_many, [total("chmod-metacopy", "chmod of 8,000 lower files, metacopy=on")], "metacopy" = "on"),
    work!("rename-dir", Layers::Wide, names::rename_directory, [total("rename-dir", "rename of a lower directory of 50,000 files, redirect_dir=on")], "redirect_dir" = "on"),
    work!("onebyte", Layers::Big, copy_up::one_byte, [total("onebyte", "one byte into a 500 MB lower file, reflink")]),
    work!("onebyte-copy", Layers::BigElsewhere, copy_up::one_byte_copied, [total("onebyte-copy", "one byte into a 500 MB lower file, no reflink")]),
    work!("write", Layers::Tree, data::write_large, [total("write", "512 MB write")]),
    work!("write-4k", Layers::Tree, data::write_small, [total("write-4k", "512 MB write in 4 KiB calls")]),
    work!("overwrite", Layers::Tree, data::overwrite, [each("overwrite", "random 4 KiB overwrite")]),
    work!("fsync", Layers::Tree, data::fsync, [each("fsync", "create+write+fsync+close")]),
    work!("sqlite", Layers::Tree, programs::sqlite, [each("sqlite", "SQLite transactions")]),
    work!("git", Layers::Source, programs::git, [total("git", "git add+commit+status+checkout"), total("git-add", "  git add"), total("git-commit", "  git commit"), total("git-status", "  git status"), total("git-checkout", "  git checkout")]),
    work!("compile", Layers::Project, programs::compile, [total("compile", "make -j2 of C files")]),
    work!("layers-1", Layers::Stacked(1), scale::stacked, [total("layers-1-cold", "walk of 1 layer, cold"), total("layers-1-warm", "walk of 1 layer, warm")]),
    work!("layers-10", Layers::Stacked(10), scale::stacked, [total("layers-10-cold", "walk of 10 layers, cold"), total("layers-10-warm", "walk of 10 layers, warm")]),
    work!("layers-50", Layers::Stacked(50), scale::stacked, [total("layers-50-cold", "walk of 50 layers, cold"), total("layers-50-warm", "walk of 50 layers, warm")]),
    work!("layers-128", Layers::Stacked(128), scale::stacked, [total("layers-128-cold", "walk of 128 layers, cold"), total("layers-128-warm", "walk of 128 layers, warm")]),
    work!("layers-500", Layers::Stacked(500), scale::stacked, [total("layers-500-cold", "walk of 500 layers, cold"), total("layers-500-warm", "walk of 500 layers, warm")]),
    work!("memory", Layers::Many, scale::memory, [bytes("memory-idle", "resident, idle"), bytes("memory-entry", "resident per remembered entry"), bytes("memory-forgotten", "resident per forgotten entry")]),
];

/// Prints the works and their rows.
pub fn list() {
    for work in WORKS {
        for row in work.rows {
            println!("{:14} {:18} {}", work.id, row.id, row.title.trim());
        }
    }
}

/// One work on one mount.
#[derive(Debug)]
pub struct Run<'a> {
    /// The mount point.
    pub merged: &'a Path,
    /// What the mount shows at first.
    pub names: Rc<Names>,
    /// A directory outside the mount, for archives and the like, that stays from run to run.
    pub outside: PathBuf,
    /// The server process, if there is one.
    pub server: Option<Pid>,
    /// Sizes, counts and what can be asked for.
    pub plan: &'a Plan,
    rows: &'static [Row],
    samples: Vec<(&'static str, f64)>,
}

impl Work {
    /// Whether any of its rows is wanted.
    pub fn wanted(&self, plan: &Plan) -> bool {
        self.rows.iter().any(|row| plan.wants(self.id, row.id))
    }

    /// Does the work; returns row and value of what was measured.
    pub fn run(
        &self,
        merged: &Path,
        names: Rc<Names>,
        outside: PathBuf,
        server: Option<Pid>,
        plan: &Plan,
    ) -> Result<Vec<(&'static str, f64)>> {
        let mut run = Run { merged, names, outside, server, plan, rows: self.rows, samples: Vec::new() };
        (self.run)(&mut run)?;
        Ok(run.samples)
    }
}

impl Run<'_> {
    /// Times `operations` operations for a row: seconds per operation.
    fn time<T>(&mut self, row: &'static str, operations: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let begin = Instant::now();
        let result = work()?;
        let elapsed = begin.elapsed().as_secs_f64();
        self.sample(row, elapsed / operations.max(1) as f64);
        Ok(result)
    }

    fn sample(&mut self, row: &'static str, value: f64) {
        self.samples.push((row, value));
    }

    fn count(&self, count: u64) -> usize {
        self.plan.scaled(count) as usize
    }

    /// The first `count` lower files, or as many as there are.
    fn files(&self, count: u64) -> Result<Vec<PathBuf>> {
        let count = self.count(count).min(self.names.files.len());
        if count == 0 {
            return Err("the layers hold no file".into());
        }
        Ok(self.names.files[..count].to_vec())
    }

    fn root(&self) -> Result<Root> {
        Ok(Root(tree::open(self.merged)?))
    }
}

/// The root of the mount, as a descriptor that paths are relative to.
#[derive(Debug)]
struct Root(OwnedFd);

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
