//! What the kernel's VFS does between a path and the union: walks down by lookups, remembers what it was given, looks before
//! it makes, and forgets.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use plyfs::errno::{Errno, Result};
use plyfs::overlay::{Caller, Entry, Named, NodeId, Overlay, Privileges, Rename, Room, SetAttr};
use plyfs::sys::{Kind, SetTime, Stat};

use crate::fixture::{Layers, Union, description, lines};

/// Whoever runs the tests.
pub fn caller() -> Caller {
    Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), pid: 1, umask: 0o022 }
}

/// No change of attributes.
pub const NOTHING: SetAttr = SetAttr {
    mode: None,
    uid: None,
    gid: None,
    size: None,
    atime: SetTime::Omit,
    mtime: SetTime::Omit,
    privileges: Privileges::Keep,
    from_cache: false,
};

impl Deref for Union {
    type Target = Layers;

    fn deref(&self) -> &Layers {
        &self.layers
    }
}

impl Union {
    /// Remembers the lookup that an entry is.
    pub fn met(&self, entry: Entry) -> Entry {
        *self.lookups.lock().entry(entry.id).or_default() += 1;
        entry
    }

    pub fn lookup(&self, parent: NodeId, name: impl AsRef<OsStr>) -> Result<Entry> {
        self.overlay.lookup(&caller(), parent, name.as_ref()).map(|entry| self.met(entry))
    }

    /// The node at the end of a path. Symlinks are not followed.
    pub fn at(&self, path: impl AsRef<Path>) -> Result<NodeId> {
        let mut id = self.overlay.root();
        for name in path.as_ref() {
            id = self.lookup(id, name)?.id;
        }
        Ok(id)
    }

    fn parent<'a>(&self, path: &'a Path) -> Result<(NodeId, &'a OsStr)> {
        let parent = self.at(path.parent().unwrap())?;
        match self.overlay.getattr(parent)?.0.kind() {
            Kind::Dir => Ok((parent, path.file_name().unwrap())),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Parent and name of what is to be made: `EEXIST` if it is there, which the VFS finds out by itself.
    fn vacant<'a>(&self, path: &'a Path) -> Result<(NodeId, &'a OsStr)> {
        let (parent, name) = self.parent(path)?;
        match self.lookup(parent, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => Ok((parent, name)),
            Err(errno) => Err(errno),
        }
    }

    pub fn stat(&self, path: impl AsRef<Path>) -> Result<Stat> {
        Ok(self.overlay.getattr(self.at(path)?)?.0)
    }

    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        self.read_node(self.at(path)?)
    }

    pub fn read_node(&self, id: NodeId) -> Result<String> {
        let mut content = Vec::new();
        let mut buffer = [0; 16384];
        loop {
            let n = self.overlay.read(id, content.len() as u64, &mut buffer)?;
            if n == 0 {
                return Ok(String::from_utf8_lossy(&content).into_owned());
            }
            content.extend_from_slice(&buffer[..n]);
        }
    }

    pub fn write(&self, path: impl AsRef<Path>, offset: u64, data: &str) -> Result<()> {
        let written = self.put(self.at(path)?, offset, data.as_bytes())?;
        assert_eq!(written, data.len());
        Ok(())
    }

    /// Writes to a node by its number.
    pub fn put(&self, id: NodeId, offset: u64, data: &[u8]) -> Result<usize> {
        self.overlay.write(id, offset, data, Privileges::Keep)
    }

    pub fn append(&self, path: impl AsRef<Path>, data: &str) -> Result<()> {
        let size = self.stat(&path)?.size;
        self.write(path, size, data)
    }

    pub fn create(&self, path: impl AsRef<Path>, content: &str) -> Result<Entry> {
        let entry = self.mknod(path, libc::S_IFREG | 0o644, 0)?;
        if !content.is_empty() {
            self.put(entry.id, 0, content.as_bytes())?;
        }
        Ok(entry)
    }

    pub fn mknod(&self, path: impl AsRef<Path>, mode: u32, rdev: u64) -> Result<Entry> {
        let (parent, name) = self.vacant(path.as_ref())?;
        self.overlay.mknod(&caller(), parent, name, mode, rdev).map(|entry| self.met(entry))
    }

    pub fn mkdir(&self, path: impl AsRef<Path>) -> Result<Entry> {
        let (parent, name) = self.vacant(path.as_ref())?;
        self.overlay.mkdir(&caller(), parent, name, 0o755).map(|entry| self.met(entry))
    }

    pub fn symlink(&self, path: impl AsRef<Path>, target: &str) -> Result<Entry> {
        let (parent, name) = self.vacant(path.as_ref())?;
        self.overlay.symlink(&caller(), parent, name, target.as_ref()).map(|entry| self.met(entry))
    }

    pub fn link(&self, old: impl AsRef<Path>, new: impl AsRef<Path>) -> Result<Entry> {
        let id = self.at(old)?;
        let (parent, name) = self.vacant(new.as_ref())?;
        self.overlay.link(&caller(), id, parent, name).map(|entry| self.met(entry))
    }

    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        self.overlay.unlink(&caller(), parent, name)
    }

    pub fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        let (parent, name) = self.parent(path.as_ref())?;
        self.overlay.rmdir(&caller(), parent, name)
    }

    pub fn rename(&self, old: impl AsRef<Path>, new: impl AsRef<Path>) -> Result<()> {
        self.rename_how(old, new, Rename::Replace)
    }

    pub fn rename_how(&self, old: impl AsRef<Path>, new: impl AsRef<Path>, how: Rename) -> Result<()> {
        let (old, new) = (old.as_ref(), new.as_ref());
        let (from, to) = (self.parent(old)?, self.parent(new)?);
        self.lookup(from.0, from.1)?;
        match (self.lookup(to.0, to.1), how) {
            (Ok(_), Rename::NoReplace) => return Err(Errno::EEXIST),
            (Err(errno), Rename::Exchange) => return Err(errno),
            _ => {}
        }
        if old == new {
            return Ok(());
        }
        if new.starts_with(old) || (how == Rename::Exchange && old.starts_with(new)) {
            return Err(Errno::EINVAL);
        }
        if old.starts_with(new) {
            return Err(Errno::ENOTEMPTY);
        }
        self.overlay.rename(&caller(), from, to, how)
    }

    /// A rename of which the VFS has checked nothing.
    pub fn rename_unchecked(&self, old: &str, new: &str, how: Rename) -> Result<()> {
        self.overlay.rename(&caller(), self.parent(Path::new(old))?, self.parent(Path::new(new))?, how)
    }

    pub fn set(&self, path: impl AsRef<Path>, set: &SetAttr) -> Result<Stat> {
        Ok(self.overlay.setattr(&caller(), self.at(path)?, set)?.0)
    }

    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) -> Result<Stat> {
        self.set(path, &SetAttr { mode: Some(mode), ..NOTHING })
    }

    pub fn truncate(&self, path: impl AsRef<Path>, size: u64) -> Result<Stat> {
        self.set(path, &SetAttr { size: Some(size), ..NOTHING })
    }

    /// The names of a directory in order, without the dots. Each is there once, with the number and kind that a lookup
    /// gives, in a plain listing and in one with lookups.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let dir = self.at(path).unwrap();
        let mut plain = Vec::new();
        self.overlay
            .readdir(dir, 0, &mut |entry| {
                plain.push((entry.name.to_owned(), entry.ino, entry.kind));
                Room::Taken
            })
            .unwrap();
        let mut plus = Vec::new();
        let (mut room, mut each) = (
            |_: &Named<'_>| Room::Taken,
            |entry: &plyfs::overlay::Dirent<'_>, met: Option<&Entry>| {
                if let Some(met) = met {
                    assert_eq!(met.attr.ino, entry.ino);
                    self.met(met.clone());
                }
                plus.push((entry.name.to_owned(), entry.ino, entry.kind));
            },
        );
        self.overlay.readdirplus(&caller(), dir, 0, &mut room, &mut each).unwrap();
        assert_eq!(plain, plus, "READDIR and READDIRPLUS differ");
        assert_eq!(plain[0].0, ".");
        assert_eq!(plain[1].0, "..");
        let mut names = Vec::new();
        for (name, ino, kind) in plain.into_iter().skip(2) {
            let entry = self.lookup(dir, &name).unwrap();
            assert_eq!((entry.attr.ino, entry.attr.kind()), (ino, kind), "number and kind of {}", name.display());
            names.push(String::from_utf8_lossy(name.as_bytes()).into_owned());
        }
        names.sort();
        let unique = names.len();
        names.dedup();
        assert_eq!(names.len(), unique, "a name is listed twice");
        names
    }

    /// What the union shows, in the words of the fixture.
    pub fn tree(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.add_tree("", &mut found);
        found.sort();
        found
    }

    fn add_tree(&self, dir: &str, found: &mut Vec<String>) {
        for name in self.list(dir) {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let id = self.at(&path).unwrap();
            let mut line = path.clone();
            match self.overlay.getattr(id).unwrap().0.kind() {
                Kind::Dir => {
                    let before = found.len();
                    self.add_tree(&path, found);
                    if found.len() > before {
                        continue;
                    }
                    line.push('/');
                }
                Kind::File => write!(line, " = {}", self.read_node(id).unwrap()).unwrap(),
                Kind::Symlink => write!(line, " -> {}", self.overlay.readlink(id).unwrap().display()).unwrap(),
                _ => line.push_str(" special"),
            }
            found.push(line);
        }
    }

    /// The union shows this.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        assert_eq!(self.tree(), lines(text), "what the union shows");
    }

    /// This lies in the upper, and nothing in the work directory.
    #[track_caller]
    pub fn upper_holds(&self, text: &str) {
        assert_eq!(description(&self.upper_path("")), lines(text), "what lies in the upper");
        assert_eq!(description(&self.work_path()), [""; 0], "what lies in the work directory");
    }

    /// Gives all lookups back.
    pub fn forget_all(&self) {
        for (id, count) in self.lookups.lock().drain() {
            self.overlay.forget(id, count);
        }
    }

    /// Whether what has a name is kept, for whoever has a handle.
    fn keeps(&self) -> bool {
        self.layers.config.features.nfs_export
    }

    /// Closes the union and opens another one on the same layers.
    pub fn reopen(self) -> Union {
        self.close().open()
    }

    /// Closes the union as a kernel that forgets everything: nothing may be left of it but the layers.
    pub fn close(mut self) -> Layers {
        self.forget_all();
        assert!(self.keeps() || self.overlay.remembered() == 1, "nodes are left that nobody remembers");
        let left = if self.keeps() { Vec::new() } else { descriptors_left(&self) };
        let layers = std::mem::replace(&mut self.layers, Layers::of(&[]));
        self.layers.config.upper = None;
        self.layers.config.features = layers.config.features;
        drop(self);
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "descriptors are left that nobody needs");
        layers
    }
}

/// Descriptors of this process below the layers' roots: what a union that remembers nothing must not have.
fn descriptors_left(layers: &Layers) -> Vec<std::path::PathBuf> {
    let work = layers.root().join("work");
    let roots = [layers.upper_path(""), layers.work_path(), work.join("index"), work];
    let is_root = |path: &Path| path.parent() == Some(layers.root()) || roots.iter().any(|root| *root == path);
    // A lower has a mount of its own where that may be, and a path into it says nothing.
    let mut inside = std::collections::HashSet::new();
    let roots = std::fs::read_dir(layers.root()).unwrap().map(|entry| entry.unwrap().path());
    roots.filter(|root| root.file_name() != Some(OsStr::new("work"))).for_each(|root| add_objects(&root, &mut inside));
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    // One whiteout is kept, for others to be made names of it.
    let mut shared = None;
    fds.filter_map(|fd| {
        let fd = fd.ok()?.path();
        let path = std::fs::read_link(&fd).ok()?;
        let found = std::fs::metadata(&fd);
        let object = found.as_ref().is_ok_and(|found| inside.contains(&(found.dev(), found.ino())));
        if !object && (!path.starts_with(layers.root()) || is_root(&path)) {
            return None;
        }
        let whiteout = found.is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0);
        (!whiteout || shared.replace(()).is_some()).then_some(path)
    })
    .collect()
}

fn add_objects(dir: &Path, objects: &mut std::collections::HashSet<(u64, u64)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        objects.insert((found.dev(), found.ino()));
        if found.is_dir() {
            add_objects(&path, objects);
        }
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.forget_all();
        assert!(self.keeps() || self.overlay.remembered() == 1, "nodes are left that nobody remembers");
        if self.config.upper.is_some() {
            assert_eq!(description(&self.work_path()), [""; 0], "what lies in the work directory");
        }
    }
}

/// The overlay alone, for tests that need no fixture.
pub fn open(layers: &Layers) -> std::result::Result<Overlay, String> {
    Overlay::new(&layers.config).map_err(|error| error.to_string())
}
