//! The index: hard links of a lower file stay one file over copy-up (`index=on`).
//!
//! Owns: `WORKDIR/index`, where the copy of a lower file with several names stands under the name of its origin. Answers to
//! the index half of the kernel's `namei.c`, `copy_up.c` and `util.c`; how its names are counted, `nlink`.
//!
//! A name that only lowers have shows the copy by way of the index. It is linked into the upper when it is moved or removed.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::copy_up::{Published, keeping_times};
use super::metacopy::LowerData;
use super::node::{LayerIndex, Node, RealId, UPPER};
use super::origin::Origin;
use super::resolve::{Found, From};
use super::superblock::Overlay;
use super::table::Key;
use super::workdir::{Temporary, remove_tree};
use super::xattr::{Mark, Namespace};
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, RenameFlags, Stat};

/// The opened index directory.
#[derive(Debug)]
pub(super) struct Index {
    pub dir: OwnedFd,
}

impl Index {
    pub fn at<'a>(&'a self, name: &'a OsStr) -> At<'a> {
        At::Name(self.dir.as_fd(), name)
    }
}

/// Whether an errno says that a file system has no handles, or none that fits; or that nobody here may ask for them.
pub(super) fn has_no_handles(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTSUP | Errno::EOVERFLOW | Errno::ENOSYS | Errno::EPERM)
}

/// The name of an entry: the bytes of the origin mark in hexadecimal digits.
pub(super) fn entry_name(origin: &[u8]) -> OsString {
    let mut name = String::with_capacity(origin.len() * 2);
    for byte in origin {
        // Writing to a string cannot fail.
        _ = write!(name, "{byte:02x}");
    }
    name.into()
}

fn origin_of_entry(name: &OsStr) -> Option<Vec<u8>> {
    let name = name.to_str().filter(|name| name.len() % 2 == 0 && name.is_ascii())?;
    (0..name.len()).step_by(2).map(|at| u8::from_str_radix(name.get(at..at + 2)?, 16).ok()).collect()
}

/// What the index has of a lower object.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub(super) enum Indexed {
    Nothing,
    /// A whiteout: its name went.
    Removed,
    Copy(Found),
}

impl Overlay {
    /// Whether a lower object is copied up by way of the index.
    pub(super) fn is_indexed(&self, stat: &Stat) -> bool {
        // Without privilege only files hold marks.
        let can = stat.kind() == Kind::File || (self.namespace == Namespace::Trusted && !stat.is_dir());
        self.index.is_some() && can && (stat.nlink > 1 || self.features.nfs_export)
    }

    /// The origin mark that a copy of a lower object gets; none if its file system has no handles. Any other error is one:
    /// what cannot be looked up in the index now may be there.
    pub(super) fn origin_mark(&self, at: At<'_>, layer: LayerIndex) -> Result<Option<Vec<u8>>> {
        let fs = self.layers.filesystem_of(layer);
        let Some(fs) = fs else { return Ok(None) };
        match sys::file_handle(at) {
            Ok(handle) => Ok(Origin { uuid: fs.uuid, handle }.encode()),
            Err(errno) if has_no_handles(errno) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// What the index has of a lower object. `EIO` for an entry that is of something else.
    pub(super) fn find_in_index(&self, at: At<'_>, lower: &Stat, layer: LayerIndex) -> Result<Indexed> {
        let Some(index) = self.index.as_ref().filter(|_| self.is_indexed(lower)) else { return Ok(Indexed::Nothing) };
        let Some(origin) = self.origin_mark(at, layer)? else { return Ok(Indexed::Nothing) };
        let name = entry_name(&origin);
        let mut stat = match self.stat_in(index.at(&name), UPPER) {
            Ok(stat) if stat.is_null_device() => return Ok(Indexed::Removed),
            Ok(stat) => stat,
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => return Ok(Indexed::Nothing),
            Err(errno) => return Err(errno),
        };
        let known = self.own_mark(index.at(&name), Mark::Origin)?;
        if known.is_none() && self.is_closed_to_server(&sys::stat(index.at(&name))?) {
            // The name alone has to do: nobody else makes any in there.
            stat.nlink = lower.nlink;
        } else if stat.kind() != lower.kind() || known.as_ref() != Some(&origin) {
            log::warn!("index: {} is of something else", name.display());
            return Err(Errno::EIO);
        } else {
            self.count_names(index.at(&name), &mut stat, Some(lower.nlink))?;
        }
        let mut found = Found::new(stat, UPPER);
        found.origin = self.numbers.persistent(&self.layers, lower.dev, lower.ino);
        found.index = Some(name.into());
        Ok(Indexed::Copy(found))
    }

    /// Publishes the copy of a lower file with several names in the index, for all of them.
    pub(super) fn publish_in_index(
        &self,
        node: &Arc<Node>,
        temporary: Temporary<'_>,
        (lower, origin): (&Stat, &[u8]),
        data: Option<Arc<LowerData>>,
    ) -> Result<Published> {
        let Some(index) = &self.index else { return Err(Errno::EIO) };
        let name = entry_name(origin);
        self.begin_count(temporary.at(), lower)?;
        let real = RealId::of(&sys::stat(temporary.at())?);
        let mut state = node.state.write();
        match sys::rename(temporary.pair(), (index.dir.as_fd(), &name), RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EINVAL) => sys::renamed(temporary.pair(), (index.dir.as_fd(), &name))?,
            // Somebody else's: it is found by the next lookup.
            Err(Errno::EEXIST) => return Err(Errno::ESTALE),
            Err(errno) => return Err(errno),
        }
        temporary.publish();
        self.settle_mode(index.at(&name), node.kind, lower.mode)?;
        self.table.rekey(node, Key::Real(real));
        state.layer = UPPER;
        state.real = real;
        state.rare.set_data(data);
        state.rare.set_index(Some(name.into()));
        node.xattrs.forget();
        self.readers.remove(&node.id);
        drop(state);
        self.note_attributes(node);
        Ok(Published::Yes)
    }

    /// Gives a copy in the index the name by which it was copied up, as the kernel does.
    pub(super) fn link_copied(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        let Some(parent_dir) = &parent.dir else { return Err(Errno::ENOTDIR) };
        let _names = parent_dir.names.write();
        let entry = node.state.read().rare.index.clone();
        let (Some(index), Some(entry)) = (&self.index, entry.filter(|_| node.place().is(parent, name))) else {
            // Moved or removed meanwhile, which has given it a name or taken the last one.
            return Ok(());
        };
        let dir = self.dir_fd(parent, UPPER)?;
        self.set_impure(parent, parent_dir)?;
        let link = || self.in_writable(dir.as_fd(), || sys::link(index.at(&entry), dir.as_fd(), name));
        match keeping_times(dir.as_fd(), || self.link_counted(index.at(&entry), link)) {
            // By whoever moved it here.
            Err(Errno::EEXIST) => return Ok(()),
            result => result?,
        }
        self.listings.forget(parent.id);
        self.note_change(parent, At::Fd(dir.as_fd()));
        self.note_change(node, index.at(&entry));
        Ok(())
    }

    /// Gives what shows by way of the index a name in the upper. Call with the parent's names locked.
    pub(super) fn link_up(&self, parent: &Arc<Node>, name: &OsStr, found: &mut Found) -> Result<()> {
        let (Some(index), Some(entry)) = (&self.index, found.index.take()) else { return Ok(()) };
        let dir = self.dir_fd(parent, UPPER)?;
        if let Some(dir) = &parent.dir {
            self.set_impure(parent, dir)?;
        }
        let link = || sys::link(index.at(&entry), dir.as_fd(), name);
        keeping_times(dir.as_fd(), || self.link_counted(index.at(&entry), link))
    }

    /// A lower file with several names is copied up before one of them goes: its copy has the count. Of a directory, the entry
    /// in the index has to say that it is gone.
    pub(super) fn count_before_removal(&self, parent: &Arc<Node>, name: &OsStr) -> Result<()> {
        if self.index.is_none() {
            return Ok(());
        }
        let entry = {
            let _names = self.names(parent)?.read();
            match self.resolve(parent, name, From::Top)? {
                Some(found) if found.layer != UPPER && self.is_counted(&found.stat) => {
                    self.enter(parent, name, found)?
                }
                _ => return Ok(()),
            }
        };
        let copied = self.node(entry.id).and_then(|node| {
            // What will be refused must not copy anything up.
            if node.kind == Kind::Dir && !self.is_empty(&node)? { Ok(()) } else { self.copy_up(&node) }
        });
        self.forget(entry.id, 1);
        copied
    }

    /// Takes out of the index what a crash or an offline change of a layer has left there: temporary names, entries without
    /// a name in the union, entries whose lower file is gone. Whiteouts stay, as in the kernel: they are of what was removed.
    pub(super) fn clean_index(&self) -> Result<()> {
        let Some(index) = &self.index else { return Ok(()) };
        let mut names: Vec<OsString> = Vec::new();
        sys::read_dir(index.dir.as_fd(), |entry| {
            names.push(entry.name.to_owned());
            Ok(())
        })?;
        for name in names {
            let at = index.at(&name);
            let stat = sys::stat(at)?;
            if name.as_encoded_bytes().starts_with(b"#") {
                remove_tree(index.dir.as_fd(), &name)?;
                continue;
            }
            let mark = origin_of_entry(&name).unwrap_or_default();
            let Some(origin) = Origin::decode(&mark) else {
                log::warn!("index: {} is no entry", name.display());
                continue;
            };
            if stat.is_null_device() {
                continue;
            }
            if stat.is_dir() {
                // Of use for handles only.
                if self.features.nfs_export {
                    self.verify_directory_entry(index, &name, &mark)?;
                }
                continue;
            }
            // From the middle of a link: from here on names come and go, and the lower's number does not tell.
            let no_name = self.count_by_upper(at)?.is_some_and(|(union, _)| union <= 0);
            let gone = self
                .layers
                .lowers
                .iter()
                .all(|layer| matches!(sys::open_handle(layer.root.as_fd(), &origin.handle), Err(Errno::ESTALE)));
            if gone {
                log::info!("index: {} is of a file that is gone", name.display());
                sys::unlink(index.dir.as_fd(), &name)?;
            } else if no_name {
                log::info!("index: {} is of no name any more", name.display());
                self.retire(index, &name, stat.kind())?;
            }
        }
        Ok(())
    }

    /// Binds the upper to its lower, or finds that it is bound to another: the entries mean something only there. `ESTALE`.
    pub(super) fn verify_origin(&self) -> Result<()> {
        let (Some(_), Some(upper)) = (&self.index, &self.layers.upper) else { return Ok(()) };
        let lower = self.layers.lowers.first().ok_or(Errno::EINVAL)?;
        let Some(origin) = self.origin_mark(At::Fd(lower.root.as_fd()), UPPER + 1)? else { return Ok(()) };
        let at = At::Fd(upper.root.as_fd());
        match self.own_mark(at, Mark::Origin)? {
            Some(known) if known == origin => Ok(()),
            Some(known) if !known.is_empty() => Err(Errno::ESTALE),
            _ => self.set_mark(at, Mark::Origin, &origin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_named_by_its_origin() {
        assert_eq!(entry_name(&[0, 0xfb, 0x1d]), "00fb1d");
        assert_eq!(origin_of_entry(OsStr::new("00fb1d")), Some(vec![0, 0xfb, 0x1d]));
        for bad in ["00f", "0x", "#12", "é0"] {
            assert_eq!(origin_of_entry(OsStr::new(bad)), None, "{bad}");
        }
    }
}
