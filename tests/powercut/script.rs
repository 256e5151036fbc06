//! What is done to the union: steps of one system call's effect each, the same for the same seed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use crate::model::{Entry, Tree, parent};
use crate::rng::Rng;

/// A step.
#[derive(Clone, Debug)]
pub enum Op {
    Chmod(String, u32),
    /// These bytes at this offset.
    Write(String, usize, Vec<u8>),
    Truncate(String, usize),
    Create(String),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Mkdir(String),
    Rmdir(String),
    /// The target, then the link.
    Symlink(String, String),
    Fsync(String),
    FsyncDir(String),
    /// syncfs(2) on the disk, beside the union.
    SyncDisk,
}

impl Op {
    /// A short word on it.
    pub fn name(&self) -> String {
        match self {
            Op::Write(path, at, data) => format!("write {path} {at}+{}", data.len()),
            other => format!("{other:?}"),
        }
    }

    /// Does it in the union at `root`, whose upper is on `disk`.
    pub fn run(&self, root: &Path, disk: &Path) -> io::Result<()> {
        let at = |path: &str| root.join(path);
        match self {
            Op::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
            Op::Write(path, offset, data) => {
                OpenOptions::new().write(true).open(at(path))?.write_all_at(data, *offset as u64)
            }
            Op::Truncate(path, 0) => OpenOptions::new().write(true).truncate(true).open(at(path)).map(drop),
            Op::Truncate(path, size) => OpenOptions::new().write(true).open(at(path))?.set_len(*size as u64),
            Op::Create(path) => OpenOptions::new().write(true).create_new(true).open(at(path)).map(drop),
            Op::Unlink(path) => fs::remove_file(at(path)),
            Op::Rename(from, to) => fs::rename(at(from), at(to)),
            Op::Link(from, to) => fs::hard_link(at(from), at(to)),
            Op::Mkdir(path) => fs::create_dir(at(path)),
            Op::Rmdir(path) => fs::remove_dir(at(path)),
            Op::Symlink(target, path) => symlink(target, at(path)),
            Op::Fsync(path) | Op::FsyncDir(path) => File::open(at(path))?.sync_all(),
            Op::SyncDisk => Ok(rustix::fs::syncfs(File::open(disk)?)?),
        }
    }
}

/// Bytes none of which is 0.
pub fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length.div_ceil(8)).flat_map(|_| (rng.bits() | 0x0101_0101_0101_0101).to_le_bytes()).take(length).collect()
}

const SIZES: [usize; 8] = [10, 3000, 4096, 5000, 20_000, 70_000, 300_000, 1_048_593];

/// The lower layers: what is near, on the disk of the upper, and what is far, elsewhere.
pub fn lowers(rng: &mut Rng, near: &Path, far: &Path) -> io::Result<Tree> {
    let mut tree = Tree::default();
    let mut add = |layer: &Path, dir: &str, name: String, size: usize| {
        tree.entries.insert(dir.to_owned(), Entry::Dir);
        let content = bytes(rng, size);
        let path = format!("{dir}/{name}");
        fs::create_dir_all(layer.join(dir))?;
        fs::write(layer.join(&path), &content)?;
        fs::set_permissions(layer.join(&path), fs::Permissions::from_mode(0o644))?;
        tree.add_lower(&path, content);
        io::Result::Ok(())
    };
    for (layer, name) in [(near, "near"), (far, "far")] {
        for dir in 0..4 {
            for size in SIZES {
                add(layer, &format!("d{dir}"), format!("{name}-{size}"), size)?;
            }
        }
        add(layer, "d0", format!("{name}-big"), 3_333_333)?;
        for dir in 0..2 {
            add(layer, &format!("empty-{name}{dir}"), "only".to_owned(), 2000)?;
        }
    }
    Ok(tree)
}

/// Makes up the steps.
pub struct Author {
    rng: Rng,
    /// Whether anything is synced.
    syncs: bool,
    names: usize,
}

impl Author {
    pub fn new(rng: Rng, syncs: bool) -> Author {
        Author { rng, syncs, names: 0 }
    }

    /// Some file, rather one that was never changed.
    fn file(&mut self, tree: &Tree) -> String {
        let lower = self.rng.chance(80);
        let files = |wanted: Option<bool>| -> Vec<&String> {
            let fits =
                |path: &&String| tree.file(path).is_some_and(|(_, file)| wanted.is_none_or(|is| file.upper != is));
            tree.entries.keys().filter(fits).collect()
        };
        let some = files(Some(lower));
        let some = if some.is_empty() { files(None) } else { some };
        (*self.rng.pick(&some)).clone()
    }

    /// A path that nothing is at: a new name, or one that was taken away.
    fn free(&mut self, tree: &Tree) -> String {
        let is_free =
            |path: &&String| !tree.entries.contains_key(*path) && tree.entries.get(parent(path)) == Some(&Entry::Dir);
        let gone: Vec<&String> = tree.named.keys().filter(is_free).collect();
        if !gone.is_empty() && self.rng.chance(40) {
            return (*self.rng.pick(&gone)).clone();
        }
        let dirs: Vec<&String> =
            tree.entries.iter().filter(|(_, entry)| **entry == Entry::Dir).map(|(path, _)| path).collect();
        self.names += 1;
        format!("{}/new-{}", self.rng.pick(&dirs), self.names)
    }

    fn data(&mut self) -> Vec<u8> {
        let length = *self.rng.pick(&SIZES[..7]);
        bytes(&mut self.rng, length)
    }

    /// What makes a change stay, or what makes only its neighbours stay.
    fn perhaps_synced(&mut self, steps: &mut Vec<Op>, path: &str, tree: &Tree) {
        if !self.syncs {
            return;
        }
        let dir = parent(path).to_owned();
        match self.rng.below(10) {
            0..3 => steps.push(Op::Fsync(path.to_owned())),
            3..5 => steps.push(Op::FsyncDir(dir)),
            5 => {
                self.names += 1;
                let beside = format!("{dir}/beside-{}", self.names);
                steps.push(Op::Create(beside.clone()));
                steps.push(Op::Write(beside.clone(), 0, self.data()));
                steps.push(Op::Fsync(beside));
            }
            6 => {
                let taken =
                    |op: &Op, other: &String| matches!(op, Op::Rename(path, _) | Op::Unlink(path) if path == other);
                let stays = |other: &String| !steps.iter().any(|op| taken(op, other));
                let beside = tree.children(&dir).into_iter().find(|other| {
                    other != path && stays(other) && tree.file(other).is_some_and(|(_, file)| file.upper)
                });
                steps.extend(beside.map(Op::Fsync));
            }
            _ => {}
        }
    }

    /// The next few steps that belong together.
    pub fn next(&mut self, tree: &Tree) -> Vec<Op> {
        let file = self.file(tree);
        let length = tree.file(&file).unwrap().1.now().len();
        let mut steps = Vec::new();
        match self.rng.below(32) {
            0..6 => {
                steps.push(Op::Chmod(file.clone(), *self.rng.pick(&[0o600, 0o640, 0o755])));
                self.perhaps_synced(&mut steps, &file, tree);
            }
            6..9 => {
                steps.push(Op::Write(file.clone(), length, self.data()));
                self.perhaps_synced(&mut steps, &file, tree);
            }
            9..12 => {
                let at = usize::try_from(self.rng.below(length as u64)).unwrap();
                let mut data = self.data();
                data.truncate((length - at).max(1));
                steps.push(Op::Write(file.clone(), at, data));
                self.perhaps_synced(&mut steps, &file, tree);
            }
            12..15 => {
                let size =
                    if self.rng.chance(50) { 0 } else { usize::try_from(self.rng.below(length as u64)).unwrap() };
                steps.push(Op::Truncate(file.clone(), size));
                if self.rng.chance(60) {
                    steps.push(Op::Write(file.clone(), size, self.data()));
                }
                self.perhaps_synced(&mut steps, &file, tree);
            }
            15..18 => {
                let new = self.free(tree);
                steps.extend([Op::Create(new.clone()), Op::Write(new.clone(), 0, self.data())]);
                self.perhaps_synced(&mut steps, &new, tree);
            }
            18..20 => {
                let new = self.free(tree);
                steps.extend([Op::Create(new.clone()), Op::Write(new.clone(), 0, self.data())]);
                if self.syncs {
                    steps.push(Op::Fsync(new.clone()));
                }
                steps.push(Op::Rename(new, file));
            }
            20..23 => {
                let to = if self.rng.chance(60) { self.file(tree) } else { self.free(tree) };
                if tree.entries.get(&to) != tree.entries.get(&file) {
                    steps.push(Op::Rename(file, to.clone()));
                    self.perhaps_synced(&mut steps, &to, tree);
                }
            }
            23..25 => {
                let to = self.free(tree);
                steps.push(Op::Link(file, to.clone()));
                self.perhaps_synced(&mut steps, &to, tree);
            }
            25..28 => {
                steps.push(Op::Unlink(file.clone()));
                self.perhaps_synced_dir(&mut steps, parent(&file));
            }
            28 => self.empty_a_directory(&mut steps, tree),
            29 => {
                let dir = self.free(tree);
                let inside = format!("{dir}/inside");
                steps.extend([Op::Mkdir(dir), Op::Create(inside.clone()), Op::Write(inside, 0, self.data())]);
            }
            30 => steps.push(Op::Symlink("where/ever".to_owned(), self.free(tree))),
            _ => steps.push(Op::SyncDisk),
        }
        steps
    }

    fn perhaps_synced_dir(&mut self, steps: &mut Vec<Op>, dir: &str) {
        if self.syncs && self.rng.chance(50) {
            steps.push(Op::FsyncDir(dir.to_owned()));
        }
    }

    /// A directory of a lower layer loses what is in it and itself, and may come back.
    fn empty_a_directory(&mut self, steps: &mut Vec<Op>, tree: &Tree) {
        let dirs: Vec<&String> =
            tree.entries.keys().filter(|path| path.starts_with("empty-") && !path.contains('/')).collect();
        if dirs.is_empty() {
            return;
        }
        let dir = (*self.rng.pick(&dirs)).clone();
        let children = tree.children(&dir);
        if children.iter().any(|child| tree.entries.get(child) == Some(&Entry::Dir)) {
            return;
        }
        steps.extend(children.into_iter().map(Op::Unlink));
        steps.push(Op::Rmdir(dir.clone()));
        self.perhaps_synced_dir(steps, "");
        if self.rng.chance(70) {
            let inside = format!("{dir}/again");
            steps.extend([Op::Mkdir(dir), Op::Create(inside.clone()), Op::Write(inside.clone(), 0, self.data())]);
            self.perhaps_synced(steps, &inside, tree);
        }
    }
}
