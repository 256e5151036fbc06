//! What a union must hold after each step, and what may be found of it after a power cut.
//!
//! Names, types, modes and sizes are of one moment. What was written into a file of the upper and not synced may be there
//! in part; of a file that was only copied up, all of it is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::script::Op;

/// An object of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Dir,
    Link(String),
    /// The number of a file in [`Tree::files`].
    File(u32),
}

/// A file. Its contents are the last of `mixes`; after a power cut, bytes of all of them may be found.
#[derive(Clone, Debug)]
pub struct File {
    pub mode: u32,
    pub mixes: Vec<Arc<Vec<u8>>>,
    /// Whether it was copied up, or made in the union.
    pub upper: bool,
    /// The step that changed it last.
    pub changed: usize,
}

impl File {
    /// What is in it.
    pub fn now(&self) -> &Arc<Vec<u8>> {
        self.mixes.last().unwrap()
    }
}

/// All that shows in the union after a step.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub entries: BTreeMap<String, Entry>,
    pub files: BTreeMap<u32, Arc<File>>,
    /// When a name was last given or taken.
    pub named: BTreeMap<String, usize>,
    step: usize,
}

/// The directory of a path, empty for the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Tree {
    /// A file of a lower layer.
    pub fn add_lower(&mut self, path: &str, content: Vec<u8>) {
        let id = self.new_file(content, false);
        self.entries.insert(path.to_owned(), Entry::File(id));
    }

    fn new_file(&mut self, content: Vec<u8>, upper: bool) -> u32 {
        let id = u32::try_from(self.files.len()).unwrap();
        let file = File { mode: 0o644, mixes: vec![Arc::new(content)], upper, changed: self.step };
        self.files.insert(id, Arc::new(file));
        id
    }

    /// The file at a path.
    pub fn file(&self, path: &str) -> Option<(u32, &File)> {
        match self.entries.get(path) {
            Some(Entry::File(id)) => Some((*id, self.files.get(id)?)),
            _ => None,
        }
    }

    /// The names in a directory, as paths.
    pub fn children(&self, dir: &str) -> Vec<String> {
        self.entries.keys().filter(|path| parent(path) == dir).cloned().collect()
    }

    fn change(&mut self, path: &str, change: impl FnOnce(&mut File)) {
        let Some(Entry::File(id)) = self.entries.get(path) else { panic!("{path} is no file") };
        let file = Arc::make_mut(self.files.get_mut(id).unwrap());
        change(file);
        file.upper = true;
        file.changed = self.step;
    }

    fn place(&mut self, path: &str, entry: Option<Entry>) {
        self.named.insert(path.to_owned(), self.step);
        match entry {
            Some(entry) => self.entries.insert(path.to_owned(), entry),
            None => self.entries.remove(path),
        };
    }

    /// The step number `step` is done. Returns up to which step everything is on disk now, where that is more than before.
    pub fn apply(&mut self, op: &Op, step: usize) -> Option<usize> {
        self.step = step;
        match op {
            Op::Chmod(path, mode) => self.change(path, |file| file.mode = *mode),
            Op::Write(path, at, data) => self.change(path, |file| {
                let mut content = file.now().to_vec();
                content.resize(content.len().max(at + data.len()), 0);
                content[*at..at + data.len()].copy_from_slice(data);
                file.mixes.push(Arc::new(content));
            }),
            Op::Truncate(path, size) => self.change(path, |file| {
                for mix in &mut file.mixes {
                    Arc::make_mut(mix).truncate(*size);
                }
            }),
            Op::Create(path) => {
                let id = self.new_file(Vec::new(), true);
                self.place(path, Some(Entry::File(id)));
            }
            Op::Unlink(path) | Op::Rmdir(path) => self.place(path, None),
            Op::Rename(from, to) => {
                let entry = self.entries.get(from).cloned();
                self.place(from, None);
                self.place(to, entry);
                self.change(to, |_| {});
            }
            Op::Link(from, to) => {
                let entry = self.entries.get(from).cloned();
                self.place(to, entry);
                self.change(to, |_| {});
            }
            Op::Mkdir(path) => self.place(path, Some(Entry::Dir)),
            Op::Symlink(target, path) => self.place(path, Some(Entry::Link(target.clone()))),
            Op::Fsync(path) => return self.synced_file(path),
            Op::FsyncDir(dir) => return self.children_named(dir).map(|(_, step)| step).max(),
            Op::SyncDisk => {
                for file in self.files.values_mut().filter(|file| file.upper) {
                    let file = Arc::make_mut(file);
                    file.mixes.drain(..file.mixes.len() - 1);
                }
                return Some(step);
            }
        }
        None
    }

    fn synced_file(&mut self, path: &str) -> Option<usize> {
        let Some(Entry::File(id)) = self.entries.get(path) else { return None };
        let file = Arc::make_mut(self.files.get_mut(id)?);
        if !file.upper {
            return None;
        }
        file.mixes.drain(..file.mixes.len() - 1);
        Some(file.changed)
    }

    /// The names that were ever given or taken in a directory, and when last.
    pub fn children_named(&self, dir: &str) -> impl Iterator<Item = (&String, usize)> {
        self.named.iter().filter(move |(path, _)| parent(path) == dir).map(|(path, step)| (path, *step))
    }
}
