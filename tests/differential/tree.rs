//! A directory tree as plain data: what a layer holds, written to disk as often as needed and read back from there.
//!
//! Marks of the overlay are kept as they are on disk (0/0 devices, xattrs), except those that name other inodes by
//! handle (`origin`, `uuid`, ...): these mean nothing in a copy.

use super::path::{P, join, parent};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, SeekFrom, Timespec, Timestamps, Uid, XattrFlags, chownat,
    linkat, lsetxattr, mkdirat, mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// What a name in a layer is.
#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file of `size` bytes, all of them holes but for `data`.
    File {
        /// The whole length.
        size: u64,
        /// Pieces of data and where they start.
        data: Vec<(u64, Vec<u8>)>,
    },
    /// A symbolic link.
    Symlink(P),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device; 0 makes it a whiteout.
    Char(u64),
    /// A block device.
    Block(u64),
    /// Another name of an earlier file of the same layer.
    Link(P),
}

/// A name with everything that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds of the last modification.
    pub mtime: (i64, i64),
    /// Extended attributes, ACLs among them.
    pub xattrs: BTreeMap<P, P>,
}

/// The overlay's mark on a directory that hides what lies below.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";

impl Node {
    /// A node owned by root without anything special.
    pub fn new(kind: Kind, mode: u32) -> Node {
        Node { kind, mode, uid: 0, gid: 0, mtime: (1_000_000_000, 0), xattrs: BTreeMap::new() }
    }

    /// A whiteout.
    pub fn whiteout() -> Node {
        Node::new(Kind::Char(0), 0)
    }

    /// Whether it hides its name.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::Char(0)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// Whether it is a directory that hides what lies below.
    pub fn is_opaque(&self) -> bool {
        self.xattrs.contains_key(&P::from(OPAQUE))
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Dir => f.write_str("Dir"),
            Kind::File { size, data } => {
                write!(f, "File({size} bytes, data at")?;
                data.iter().try_for_each(|(start, bytes)| write!(f, " {start}+{}", bytes.len()))?;
                f.write_str(")")
            }
            Kind::Symlink(target) => write!(f, "Symlink({target:?})"),
            Kind::Fifo => f.write_str("Fifo"),
            Kind::Socket => f.write_str("Socket"),
            Kind::Char(0) => f.write_str("Whiteout"),
            Kind::Char(device) => write!(f, "Char({device:#x})"),
            Kind::Block(device) => write!(f, "Block({device:#x})"),
            Kind::Link(target) => write!(f, "Link({target:?})"),
        }
    }
}

/// A tree: nodes by path, the root's path being empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree {
    /// All nodes; a directory comes before what it holds.
    pub nodes: BTreeMap<P, Node>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, node) in &self.nodes {
            write!(
                f,
                "    {path:?}: {:?} {:04o} {}:{} mtime {}.{:09}",
                node.kind, node.mode, node.uid, node.gid, node.mtime.0, node.mtime.1
            )?;
            writeln!(f, "{}{:?}", if node.xattrs.is_empty() { "" } else { " " }, node.xattrs)?;
        }
        Ok(())
    }
}

/// How whiteouts and opaque marks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// As the kernel does.
    Kernel,
    /// As the kernel does with `userxattr`.
    User,
    /// As `.wh.NAME` and `.wh..wh..opq` files, which the kernel's overlay does not know.
    Names,
}

impl Marks {
    /// As the kernel does with these options.
    pub fn of_kernel(options: &str) -> Marks {
        if options.contains("userxattr") { Marks::User } else { Marks::Kernel }
    }
}

/// How marks of the kernel begin, which trees have even if those on disk begin in the other way.
const TRUSTED: &[u8] = b"trusted.overlay.";
const USER: &[u8] = b"user.overlay.";

fn renamed(name: &P, from: &[u8], to: &[u8]) -> P {
    name.as_bytes().strip_prefix(from).map_or_else(|| name.clone(), |mark| P::from([to, mark].concat()))
}

impl Tree {
    /// A root directory that everybody may write to, and nothing in it.
    pub fn empty() -> Tree {
        Tree { nodes: BTreeMap::from([(P::from(b""), Node::new(Kind::Dir, 0o777))]) }
    }

    /// Adds or replaces a node.
    pub fn put(&mut self, path: P, node: Node) {
        self.nodes.insert(path, node);
    }

    /// Takes a node away with all that it holds.
    pub fn cut(&mut self, path: &P) {
        self.nodes.retain(|other, _| !other.is_within(path));
        let names: Vec<P> = self.nodes.keys().cloned().collect();
        self.nodes.retain(|_, node| !matches!(&node.kind, Kind::Link(target) if !names.contains(target)));
    }

    /// Makes every further name of a file a file of its own.
    pub fn separate_links(&mut self) {
        let originals = self.nodes.clone();
        for node in self.nodes.values_mut() {
            if let Kind::Link(target) = &node.kind {
                *node = originals[target].clone();
            }
        }
    }

    /// Writes the tree to the directory `root`, which exists and is empty.
    pub fn write(&self, root: &Path, marks: Marks) -> Result<(), Errno> {
        let dir = openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let mut late = Vec::new();
        for (path, node) in &self.nodes {
            if marks == Marks::Names && node.is_whiteout() && path.name().len() <= 255 - 4 {
                late.push(join(&parent(path), &[b".wh.", path.name()].concat()));
            } else if !path.is_empty() {
                create(&dir, path, &node.kind)?;
            }
            if marks == Marks::Names && node.is_opaque() {
                late.push(join(path, b".wh..wh..opq"));
            }
        }
        for path in late {
            create(&dir, &path, &Kind::File { size: 0, data: Vec::new() })?;
        }
        for (path, node) in self.nodes.iter().rev() {
            if matches!(node.kind, Kind::Link(_))
                || (marks == Marks::Names && node.is_whiteout() && path.name().len() <= 255 - 4)
            {
                continue;
            }
            dress(root, path, node, marks)?;
        }
        Ok(())
    }

    /// Reads a layer back from disk.
    pub fn read(root: &Path) -> Result<Tree, Errno> {
        let mut tree = Tree { nodes: BTreeMap::new() };
        let mut links = BTreeMap::new();
        let mut queue = vec![P::from(b"")];
        while let Some(path) = queue.pop() {
            let real = on_disk(root, &path);
            let stat = statat(CWD, &real, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    queue.extend(names(&real)?.into_iter().map(|name| join(&path, &name)));
                    Kind::Dir
                }
                FileType::RegularFile => read_file(&real, u64::try_from(stat.st_size).unwrap_or(0))?,
                FileType::Symlink => Kind::Symlink(P::from(rustix::fs::readlink(&real, Vec::new())?.as_bytes())),
                FileType::Fifo => Kind::Fifo,
                FileType::Socket => Kind::Socket,
                FileType::CharacterDevice => Kind::Char(stat.st_rdev),
                _ => Kind::Block(stat.st_rdev),
            };
            let node = Node {
                kind,
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
                xattrs: xattrs(&real)?
                    .into_iter()
                    .map(|(name, value)| (renamed(&name, USER, TRUSTED), value))
                    .filter(|(name, _)| !names_an_inode(name))
                    .collect(),
            };
            if !node.is_dir() && !node.is_whiteout() && stat.st_nlink > 1 {
                links.entry(stat.st_ino).or_insert_with(Vec::new).push(path.clone());
            }
            tree.nodes.insert(path, node);
        }
        for mut paths in links.into_values() {
            paths.sort();
            for other in &paths[1..] {
                if let Some(node) = tree.nodes.get_mut(other) {
                    node.kind = Kind::Link(paths[0].clone());
                }
            }
        }
        Ok(tree)
    }
}

/// Where a path of a tree is on disk.
pub fn on_disk(root: &Path, path: &P) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(path.as_path()) }
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Result<Vec<Vec<u8>>, Errno> {
    let dir = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// All extended attributes, those without a readable value left out.
pub fn xattrs(path: &Path) -> Result<BTreeMap<P, P>, Errno> {
    let mut list = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut found = BTreeMap::new();
    // xfs lists its ACLs a second time, under names that it does not take elsewhere.
    let is_own = |name: &&[u8]| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_");
    for name in list[..length].split(|byte| *byte == 0).filter(is_own) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        found.insert(P::from(name), P::from(&value[..length]));
    }
    Ok(found)
}

fn names_an_inode(name: &P) -> bool {
    [b"origin".as_slice(), b"uuid", b"upper", b"nlink", b"impure"]
        .iter()
        .any(|mark| name.as_bytes() == [TRUSTED, *mark].concat())
}

fn create(dir: impl AsFd, path: &P, kind: &Kind) -> Result<(), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match kind {
        Kind::Dir => mkdirat(dir, path.as_path(), Mode::RWXU),
        Kind::File { size, data } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(dir, path.as_path(), flags, mode)?;
            for (start, bytes) in data {
                rustix::io::pwrite(&file, bytes, *start)?;
            }
            rustix::fs::ftruncate(&file, *size)
        }
        Kind::Symlink(target) => symlinkat(target.as_path(), dir, path.as_path()),
        Kind::Fifo => mknodat(dir, path.as_path(), FileType::Fifo, mode, 0),
        Kind::Socket => mknodat(dir, path.as_path(), FileType::Socket, mode, 0),
        Kind::Char(device) => mknodat(dir, path.as_path(), FileType::CharacterDevice, mode, *device),
        Kind::Block(device) => mknodat(dir, path.as_path(), FileType::BlockDevice, mode, *device),
        Kind::Link(target) => linkat(&dir, target.as_path(), &dir, path.as_path(), AtFlags::empty()),
    }
}

/// Gives a node its owner, mode, xattrs and times, in the order in which none undoes another.
fn dress(root: &Path, path: &P, node: &Node, marks: Marks) -> Result<(), Errno> {
    let real = on_disk(root, path);
    let as_root = rustix::process::geteuid().is_root();
    if as_root {
        chownat(CWD, &real, Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    // ACLs last: they may take the owner's permission to set the others.
    let is_acl = |name: &P| name.as_bytes().starts_with(b"system.");
    let (acls, others): (Vec<_>, Vec<_>) = node.xattrs.iter().partition(|(name, _)| is_acl(name));
    for (name, value) in others.into_iter().chain(acls) {
        if marks != Marks::Names || name.as_bytes() != OPAQUE {
            let name = if marks == Marks::User { renamed(name, TRUSTED, USER) } else { name.clone() };
            lsetxattr(&real, name.as_path(), value.as_bytes(), XattrFlags::empty())?;
        }
    }
    if !matches!(node.kind, Kind::Symlink(_)) {
        // After an ACL: the group bits of the mode are then the ACL's mask.
        rustix::fs::chmodat(CWD, &real, Mode::from_raw_mode(node.mode), AtFlags::empty())?;
    }
    let time = Timespec { tv_sec: node.mtime.0, tv_nsec: node.mtime.1 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, &real, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn read_file(path: &Path, size: u64) -> Result<Kind, Errno> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut data = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
        let mut bytes = vec![0; usize::try_from(end - start).expect("test files are small")];
        let read = rustix::io::pread(&file, &mut bytes, start)?;
        bytes.truncate(read);
        data.push((start, bytes));
        position = end.max(position + 1);
    }
    Ok(Kind::File { size, data })
}
