//! A whole tree as it is seen through a mount, and where two such views differ.

use super::exceptions::{Finding, excused};
use super::exec::{brief, read_at, stamp};
use super::path::{P, join, p};
use super::side::Side;
use super::tree::{on_disk, xattrs};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, openat, statat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One name and everything that can be asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its type.
    pub kind: FileType,
    /// Its inode number.
    pub ino: u64,
    /// What the listing said that the inode number is; none for the root.
    pub listed_ino: Option<u64>,
    /// How many names it has.
    pub nlink: u64,
    /// Of a directory: whether its part in the upper is nothing but names of files that have others there, and what leads
    /// to them.
    pub only_links: bool,
    /// What both sides must agree on, by name.
    pub fields: BTreeMap<&'static str, String>,
}

/// A tree.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By path.
    pub entries: BTreeMap<P, Entry>,
    /// What is wrong with this view alone: listings that contradict lstat.
    pub faults: Vec<String>,
}

/// Looks at everything.
pub fn look(side: &Side) -> Result<View, Errno> {
    let mut view = View::default();
    let mut queue = vec![(p(b""), None)];
    while let Some((path, listed)) = queue.pop() {
        let entry = match examine(side, &path, listed) {
            Ok(entry) => entry,
            Err(errno) => {
                view.faults.push(format!("{path:?} is listed, but lstat says {errno:?}"));
                continue;
            }
        };
        if let Some((ino, kind)) = listed {
            if ino != entry.ino {
                view.faults.push(format!("{path:?}: d_ino {ino}, st_ino {}", entry.ino));
            }
            if kind != entry.kind && kind != FileType::Unknown {
                view.faults.push(format!("{path:?}: d_type {kind:?}, lstat {:?}", entry.kind));
            }
        }
        if entry.kind == FileType::Directory {
            match list(side, &path) {
                Ok(found) => queue.extend(found.into_iter().map(|(name, listed)| (join(&path, &name), Some(listed)))),
                Err(errno) => view.faults.push(format!("{path:?}: listing: {errno:?}")),
            }
        }
        if view.entries.insert(path.clone(), entry).is_some() {
            view.faults.push(format!("{path:?} is listed twice"));
        }
    }
    name_links(&mut view);
    Ok(view)
}

/// Says of each file with several names which of them comes first.
fn name_links(view: &mut View) {
    let mut first: BTreeMap<u64, P> = BTreeMap::new();
    for (path, entry) in &mut view.entries {
        if entry.kind != FileType::Directory && entry.nlink > 1 {
            let first = first.entry(entry.ino).or_insert_with(|| path.clone());
            entry.fields.insert("first name", format!("{first:?}"));
        }
    }
}

/// What a listing says: inode number and type.
type Listed = (u64, FileType);

fn list(side: &Side, path: &P) -> Result<Vec<(Vec<u8>, Listed)>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(&side.root, path.as_path(), flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            found.push((name, (entry.ino(), entry.file_type())));
        }
    }
    Ok(found)
}

fn examine(side: &Side, path: &P, listed: Option<(u64, FileType)>) -> Result<Entry, Errno> {
    let stat = statat(&side.root, path.as_path(), AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut fields = BTreeMap::from([
        ("type", format!("{kind:?}")),
        ("mode", format!("{:04o}", stat.st_mode & 0o7777)),
        ("uid", stat.st_uid.to_string()),
        ("gid", stat.st_gid.to_string()),
        ("rdev", format!("{:#x}", stat.st_rdev)),
        ("nlink", stat.st_nlink.to_string()),
        ("mtime", stamp(stat.st_mtime, stat.st_mtime_nsec)),
        ("atime", stamp(stat.st_atime, stat.st_atime_nsec)),
    ]);
    match kind {
        FileType::RegularFile => {
            fields.insert("size", stat.st_size.to_string());
            fields.insert("content", content(side, path).unwrap_or_else(|errno| format!("{errno:?}")));
            fields.insert("holes", holes(side, path).unwrap_or_else(|errno| format!("{errno:?}")));
        }
        FileType::Symlink => {
            fields.insert("size", stat.st_size.to_string());
            let target = rustix::fs::readlinkat(&side.root, path.as_path(), Vec::new());
            fields.insert("target", format!("{:?}", target.map(|target| p(target.as_bytes()))));
        }
        _ => {}
    }
    match xattrs(&side.real(path)) {
        Ok(found) => fields.insert("xattrs", format!("{found:?}")),
        Err(errno) => fields.insert("xattrs", format!("{errno:?}")),
    };
    Ok(Entry {
        kind,
        ino: stat.st_ino,
        listed_ino: listed.map(|(ino, _)| ino),
        nlink: u64::from(stat.st_nlink as u32),
        only_links: side.upper.as_ref().is_some_and(|upper| holds_only_links(&on_disk(upper, path))),
        fields,
    })
}

fn holds_only_links(dir: &Path) -> bool {
    let Ok(mut names) = std::fs::read_dir(dir).map(Iterator::peekable) else { return false };
    names.peek().is_some()
        && names.flatten().all(|name| {
            let stat = name.metadata();
            stat.is_ok_and(|stat| if stat.is_dir() { holds_only_links(&name.path()) } else { stat.nlink() > 1 })
        })
}

fn content(side: &Side, path: &P) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&side.root, path.as_path(), flags, Mode::empty())?;
    read_at(&file, 0, 4 << 20).map(|bytes| brief(&bytes))
}

/// Where data is and where holes are.
fn holes(side: &Side, path: &P) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&side.root, path.as_path(), flags, Mode::empty())?;
    let mut map = Vec::new();
    let mut position = 0;
    while map.len() < 100 {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        position = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
        map.push(format!("{start}..{position}"));
    }
    Ok(map.join(" "))
}

/// A difference between two trees, or a fault of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The sort of difference, without the path.
    pub sort: String,
    /// The whole story.
    pub text: String,
}

/// Which side is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The first was written by the kernel or the model, the second by us.
    KernelFirst,
    /// Who wrote what is not to matter.
    Either,
}

/// What two views have in common, and so what may differ.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Which is which.
    pub order: Order,
    /// Whether what was opened for writing has been copied up on both sides.
    pub settled: bool,
    /// Whether the first is a plain directory.
    pub plain: bool,
    /// Whether data is copied up apart from attributes.
    pub metacopy: bool,
    /// Whether marks are such as plain users can write.
    pub userxattr: bool,
    /// Whether the index has an entry for every copy.
    pub nfs_export: bool,
    /// Whether there is an index.
    pub index: bool,
}

/// Where `b` differs from `a`, what is excused left out.
pub fn compare(a: &View, b: &View, terms: Terms) -> Vec<Mismatch> {
    let mut found = Vec::new();
    let mut say = |sort: String, text: String| found.push(Mismatch { sort, text });
    for (path, left) in &a.entries {
        let Some(right) = b.entries.get(path) else {
            say(format!("{:?} missing", left.kind), format!("{path:?} ({:?}) is only in A", left.kind));
            continue;
        };
        let names: std::collections::BTreeSet<_> = left.fields.keys().chain(right.fields.keys()).collect();
        for name in names {
            let (of_a, of_b) = (left.fields.get(name), right.fields.get(name));
            let finding = Finding { field: name, a: left, b: right, terms };
            if of_a != of_b && !excused(&finding) {
                say(
                    format!("{name} of {:?}", left.kind),
                    format!("{path:?}: {name}: A {}, B {}", of_a.map_or("-", |t| t), of_b.map_or("-", |t| t)),
                );
            }
        }
    }
    for (path, right) in &b.entries {
        if !a.entries.contains_key(path) {
            say(format!("{:?} too many", right.kind), format!("{path:?} ({:?}) is only in B", right.kind));
        }
    }
    found
}

/// Where numbers that stayed the same in `a` between two looks changed in `b`.
pub fn compare_numbers(a: (&View, &View), b: (&View, &View), kinds: &[FileType]) -> Vec<Mismatch> {
    let number = |view: &View, path: &P| view.entries.get(path).map(|entry| (entry.kind, entry.ino));
    a.0.entries
        .keys()
        .filter(|path| {
            let (a0, a1) = (number(a.0, path), number(a.1, path));
            let (b0, b1) = (number(b.0, path), number(b.1, path));
            let counts = a0.is_some_and(|(kind, _)| kinds.contains(&kind));
            counts && a0 == a1 && b0.is_some() && b1.is_some() && b0 != b1
        })
        .map(|path| Mismatch {
            sort: format!("st_ino of {:?} not constant", a.0.entries[path].kind),
            text: format!(
                "{path:?}: st_ino stayed in A, but went from {} to {} in B",
                b.0.entries[path].ino, b.1.entries[path].ino
            ),
        })
        .collect()
}
