//! Whether what is found after a power cut is what may be found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::model::{Entry, File, Tree};
use crate::script::Op;

/// A step, and when it was: how much the disk had been asked when it began and when it was answered.
pub struct Step {
    pub op: Op,
    pub began: usize,
    pub done: usize,
    /// Up to which step everything is on disk since, on a file system that keeps the order of all names.
    pub synced: Option<usize>,
}

/// What was done, and what there was before it and after each step.
pub struct History {
    /// Step `n` leads from version `n` to version `n + 1`.
    pub steps: Vec<Step>,
    pub versions: Vec<Tree>,
}

/// In which order a file system brings names to disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In that of the calls, all in one journal.
    Total,
    /// What is synced may overtake the rest.
    PerName,
}

/// What is found at a path.
enum Found {
    Dir,
    Link(String),
    /// The contents only where anything was changed.
    File {
        mode: u32,
        size: usize,
        content: Option<Vec<u8>>,
    },
    Broken(String),
}

/// What a cut leaves open.
struct Window<'a> {
    history: &'a History,
    /// The last version that can be there.
    last: usize,
    /// Of each file, the last version that was synced.
    files: BTreeMap<u32, usize>,
}

impl History {
    /// The steps that were answered before the disk had been asked `cut` things.
    fn done(&self, cut: usize) -> impl Iterator<Item = (usize, &Step)> {
        self.steps.iter().enumerate().map(|(n, step)| (n + 1, step)).filter(move |(_, step)| step.done <= cut)
    }

    /// Looks at the union at `root` after a cut. `Err` is what is wrong with it.
    pub fn check(&self, root: &Path, cut: usize, order: Order) -> Result<(), String> {
        let touched = self.touched();
        let mut found = BTreeMap::new();
        walk(root, "", &touched, &mut found).map_err(|error| format!("listing: {error}"))?;
        let last = self.steps.iter().take_while(|step| step.began < cut).count();
        let mut window = Window { history: self, last, files: BTreeMap::new() };
        for (version, step) in self.done(cut) {
            match &step.op {
                Op::Fsync(path) => window.files.extend(self.versions[version].file(path).map(|(id, _)| (id, version))),
                Op::SyncDisk => window.files.extend(self.versions[version].files.keys().map(|id| (*id, version))),
                _ => {}
            }
        }
        match order {
            Order::Total => {
                let first = self.done(cut).filter_map(|(_, step)| step.synced).max().unwrap_or(0);
                let of = |version: usize| window.wrong(version, &found);
                let best =
                    (first..=last).rev().map(|version| (version, of(version))).min_by_key(|(_, wrong)| wrong.len());
                match best {
                    Some((_, wrong)) if wrong.is_empty() => Ok(()),
                    Some((version, wrong)) => Err(format!(
                        "is no version of {first} to {last}; next to {version}: {}; steps: {}",
                        wrong.join(", "),
                        self.around(first, last)
                    )),
                    None => Err(format!("a sync was answered in version {first}, which had not begun at {last}")),
                }
            }
            Order::PerName => {
                let first = self.synced_names(cut);
                let paths: BTreeSet<&String> =
                    found.keys().chain(touched.iter()).chain(self.versions[0].entries.keys()).collect();
                let mut wrong = Vec::new();
                for path in paths {
                    let first = first.get(path).max(first.get("")).copied().unwrap_or(0);
                    if let Some(why) = window.wrong_name(path, first, found.get(path)) {
                        let steps = self.about(path, first, last);
                        wrong.push(format!("{why} in version {first} to {last}; steps: {steps}"));
                    }
                }
                if wrong.is_empty() { Ok(()) } else { Err(wrong.join(", ")) }
            }
        }
    }

    /// From which version on each name is on disk; the empty one stands for all.
    fn synced_names(&self, cut: usize) -> BTreeMap<String, usize> {
        let mut first = BTreeMap::new();
        for (version, step) in self.done(cut) {
            let tree = &self.versions[version];
            match &step.op {
                Op::Fsync(path)
                    if let Some((_, file)) = tree.file(path)
                        && file.upper =>
                {
                    first.insert(path.clone(), file.changed.max(tree.named.get(path).copied().unwrap_or(0)));
                }
                Op::FsyncDir(dir) => {
                    for (path, named) in tree.children_named(dir) {
                        let known = first.entry(path.clone()).or_insert(0);
                        *known = named.max(*known);
                    }
                }
                Op::SyncDisk => {
                    first.insert(String::new(), version);
                }
                _ => {}
            }
        }
        first
    }

    /// The paths that any step speaks of.
    fn touched(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        for step in &self.steps {
            match &step.op {
                Op::Chmod(path, _)
                | Op::Write(path, ..)
                | Op::Truncate(path, _)
                | Op::Create(path)
                | Op::Unlink(path) => {
                    paths.insert(path.clone());
                }
                Op::Rename(from, to) | Op::Link(from, to) => paths.extend([from.clone(), to.clone()]),
                Op::Mkdir(path) | Op::Rmdir(path) | Op::Symlink(_, path) => {
                    paths.insert(path.clone());
                }
                Op::Fsync(_) | Op::FsyncDir(_) | Op::SyncDisk => {}
            }
        }
        paths
    }

    fn around(&self, first: usize, last: usize) -> String {
        let from = first.saturating_sub(3);
        let names = self
            .steps
            .iter()
            .enumerate()
            .take(last)
            .skip(from)
            .map(|(n, step)| format!("{}={}", n + 1, step.op.name()));
        names.collect::<Vec<_>>().join("; ")
    }

    fn about(&self, path: &str, first: usize, last: usize) -> String {
        let dir = crate::model::parent(path);
        let about =
            |name: &String| name.contains(path) || (name.contains("Fsync") && name.contains(&format!("\"{dir}")));
        let names = self.steps.iter().enumerate().take(last).skip(first.saturating_sub(3));
        let names =
            names.map(|(n, step)| format!("{}={}@{}-{}", n + 1, step.op.name(), step.began, step.done)).filter(about);
        names.collect::<Vec<_>>().join("; ")
    }
}

impl Window<'_> {
    /// What differs from a version.
    fn wrong(&self, version: usize, found: &BTreeMap<String, Found>) -> Vec<String> {
        let entries = &self.history.versions[version].entries;
        let paths: BTreeSet<&String> = found.keys().chain(entries.keys()).collect();
        paths.into_iter().filter_map(|path| self.wrong_at(version, path, found.get(path))).collect()
    }

    /// What differs at one path from each version since `first`.
    fn wrong_name(&self, path: &str, first: usize, found: Option<&Found>) -> Option<String> {
        let mut problems = BTreeSet::new();
        for version in first..=self.last {
            problems.insert(self.wrong_at(version, path, found)?);
        }
        // The log that btrfs makes of a synced file has it under its new name, but no whiteout under the old one: the lower
        // file shows there, as it was before anything of it was synced.
        let absent = |version: usize| !self.history.versions[version].entries.contains_key(path);
        if (first..=self.last).any(absent) {
            let unsynced = Window { history: self.history, last: self.last, files: BTreeMap::new() };
            unsynced.wrong_at(0, path, found)?;
        }
        Some(problems.into_iter().collect::<Vec<_>>().join(" / "))
    }

    fn wrong_at(&self, version: usize, path: &str, found: Option<&Found>) -> Option<String> {
        let expected = self.history.versions[version].entries.get(path);
        match (expected, found) {
            (None, None) | (Some(Entry::Dir), Some(Found::Dir)) => None,
            (Some(Entry::Link(wanted)), Some(Found::Link(target))) if wanted == target => None,
            (Some(Entry::File(id)), Some(Found::File { mode, size, content })) => {
                self.wrong_file(version, *id, (*mode, *size, content.as_deref())).map(|what| format!("{path}: {what}"))
            }
            (_, Some(Found::Broken(error))) => Some(format!("{path}: {error}")),
            (Some(_), None) => Some(format!("{path} is missing")),
            (None, Some(_)) => Some(format!("{path} is there")),
            (Some(_), Some(_)) => Some(format!("{path} is of another kind")),
        }
    }

    fn wrong_file(
        &self,
        version: usize,
        id: u32,
        (mode, size, content): (u32, usize, Option<&[u8]>),
    ) -> Option<String> {
        let of = |version: usize| self.history.versions[version].files.get(&id);
        // Nothing but its contents was synced since then.
        let version = version.max(self.files.get(&id).copied().unwrap_or(0));
        let file: &File = of(version)?;
        let lengths = || file.mixes.iter().map(|mix| mix.len());
        let (shortest, longest) = (lengths().min()?, lengths().max()?);
        if size < shortest || size > longest {
            return Some(format!("has {size} bytes and not {shortest} to {longest}"));
        }
        if mode != file.mode {
            return Some(format!("has mode {mode:o} and not {:o}", file.mode));
        }
        let content = content?;
        if file.mixes.iter().any(|mix| mix.as_slice() == content) {
            return None;
        }
        // Contents overtake names: what was written later may be there.
        let later = (version..=self.last).filter_map(of).filter(|_| file.upper).flat_map(|file| &file.mixes);
        let mut mixes: Vec<&[u8]> = file.mixes.iter().chain(later).map(|mix| mix.as_slice()).collect();
        mixes.dedup_by_key(|mix| (mix.as_ptr(), mix.len()));
        // There a file that grows shows what was on the disk before, until it is synced.
        let stale = crate::words("PLYFS_POWERCUT_MOUNT").contains("data=writeback");
        let known = |(at, byte): (usize, &u8)| {
            mixes.iter().any(|mix| mix.get(at) == Some(byte)) || (at >= shortest && (*byte == 0 || stale))
        };
        let at = content.iter().enumerate().position(|byte| !known(byte))?;
        Some(format!(
            "has at {at} of {size} what never was there ({}); {} zeros",
            content[at],
            content.iter().filter(|byte| **byte == 0).count()
        ))
    }
}

fn walk(
    root: &Path,
    dir: &str,
    touched: &BTreeSet<String>,
    found: &mut BTreeMap<String, Found>,
) -> std::io::Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let name = entry?.file_name().into_string().map_err(|_| std::io::Error::other("a name that nobody gave"))?;
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        let object = look(&root.join(&path), touched.contains(&path));
        let is_dir = matches!(object, Ok(Found::Dir));
        found.insert(path.clone(), object.unwrap_or_else(|error| Found::Broken(error.to_string())));
        if is_dir {
            walk(root, &path, touched, found)?;
        }
    }
    Ok(())
}

fn look(path: &Path, whole: bool) -> std::io::Result<Found> {
    let meta = path.symlink_metadata()?;
    if meta.is_dir() {
        return Ok(Found::Dir);
    }
    if meta.is_symlink() {
        return Ok(Found::Link(fs::read_link(path)?.display().to_string()));
    }
    if !meta.is_file() {
        return Ok(Found::Broken(format!("is of mode {:o}", meta.permissions().mode())));
    }
    let content = if whole { Some(fs::read(path)?) } else { None };
    let size = usize::try_from(meta.len()).map_err(std::io::Error::other)?;
    if content.as_ref().is_some_and(|content| content.len() != size) {
        return Ok(Found::Broken("has another size than contents".to_owned()));
    }
    Ok(Found::File { mode: meta.permissions().mode() & 0o7777, size, content })
}
