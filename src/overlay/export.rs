//! What lets a file handle find an object for as long as it exists (`nfs_export=on`): every copy has an entry in the index,
//! and what was removed leaves a whiteout there, so that no handle finds the lower object again.
//!
//! Owns: the entries of directories, which are empty directories that lead to the copy (`upper`), and whiteouts in the
//! index. Answers to the kernel's `ovl_create_index`, `ovl_cleanup_index` and the directory half of `ovl_verify_index`.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::index::{Index, entry_name};
use super::node::{LayerIndex, Node, UPPER};
use super::origin::Origin;
use super::resolve::{Found, From};
use super::superblock::{Entry, Lasting, Overlay};
use super::xattr::Mark;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, RenameFlags, Stat};

impl Overlay {
    /// Whether handles find objects that the kernel has forgotten.
    #[must_use]
    pub fn exports(&self) -> bool {
        self.features.nfs_export
    }

    /// The index, if everything that is copied up has an entry there.
    pub(super) fn index_of_all(&self) -> Option<&Index> {
        self.index.as_ref().filter(|_| self.features.nfs_export)
    }

    /// Whether a lower object is copied up before its name goes: its entry has to say that it is gone.
    pub(super) fn is_counted(&self, stat: &Stat) -> bool {
        self.is_indexed(stat) || (stat.is_dir() && self.index_of_all().is_some())
    }

    /// The origin mark of an object of the upper; none where nobody knows what it was copied up from.
    pub(super) fn known_origin(&self, at: At<'_>) -> Result<Option<Vec<u8>>> {
        Ok(self.own_mark(at, Mark::Origin)?.filter(|origin| !origin.is_empty()))
    }

    /// The mark that leads to an object of the upper. `None` when its handle does not fit the form.
    pub(super) fn upper_mark(&self, at: At<'_>) -> Result<Option<Vec<u8>>> {
        let fs = self.layers.filesystem_of(UPPER);
        let uuid = fs.map(|fs| fs.uuid).unwrap_or_default();
        Ok(Origin { uuid, handle: sys::file_handle(at)? }.encode_upper())
    }

    /// Makes the entry of a directory that was copied up, once the copy shows: an entry that leads nowhere becomes a whiteout
    /// at the next mount, and what a lower still has must not have that. Call with the parent's names locked.
    pub(super) fn index_directory(&self, copy: At<'_>) -> Result<()> {
        let Some(index) = self.index_of_all() else { return Ok(()) };
        let Some(origin) = self.known_origin(copy)? else { return Ok(()) };
        let mark = self.upper_mark(copy)?.ok_or(Errno::EOVERFLOW)?;
        let temporary = self.work()?.unused_name();
        sys::mkdir(index.dir.as_fd(), &temporary, 0)?;
        let made = self
            .set_mark_in_place(index.at(&temporary), Mark::Upper, &mark)
            .and_then(|()| sys::renamed((index.dir.as_fd(), &temporary), (index.dir.as_fd(), &entry_name(&origin))));
        if made.is_err() {
            sys::rmdir(index.dir.as_fd(), &temporary)?;
        }
        made
    }

    /// The entry of a merged directory that is about to go, if it has one.
    pub(super) fn entry_of_directory(&self, node: &Arc<Node>) -> Result<Option<OsString>> {
        let Some(index) = self.index_of_all().filter(|_| node.in_upper() && node.is_merged()) else { return Ok(None) };
        let Some(origin) = self.with_real(node, |at, _| self.own_mark(at, Mark::Origin))? else { return Ok(None) };
        let name = entry_name(&origin);
        match sys::stat(index.at(&name)) {
            Ok(stat) if stat.is_dir() => Ok(Some(name)),
            Ok(_) | Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The directory of an entry is gone. An error is logged: the next mount finds the entry out.
    pub(super) fn retire_directory(&self, entry: Option<OsString>) {
        if let (Some(index), Some(entry)) = (&self.index, entry)
            && let Err(errno) = self.retire(index, &entry, Kind::Dir)
        {
            log::warn!("index: {} is of a directory that is gone, and stays: {errno}", entry.display());
        }
    }

    /// What an entry stood for is gone: the entry goes, or becomes a whiteout, by which the handle is known to be stale.
    pub(super) fn retire(&self, index: &Index, entry: &OsStr, kind: Kind) -> Result<()> {
        let dir = index.dir.as_fd();
        let remove = |name: &OsStr| if kind == Kind::Dir { sys::rmdir(dir, name) } else { sys::unlink(dir, name) };
        if !self.features.nfs_export || !self.device_whiteouts {
            return remove(entry);
        }
        let temporary = self.work()?.unused_name();
        sys::mknod(dir, &temporary, Kind::Char, 0, 0)?;
        match sys::rename((dir, &temporary), (dir, entry), RenameFlags::EXCHANGE) {
            Ok(()) => remove(&temporary),
            Err(errno) => {
                sys::unlink(dir, &temporary)?;
                Err(errno)
            }
        }
    }

    /// Looks at the entry of a directory at a mount: one that leads nowhere is made a whiteout, one that leads to another
    /// directory's copy goes.
    pub(super) fn verify_directory_entry(&self, index: &Index, entry: &OsStr, origin: &[u8]) -> Result<()> {
        let Some(upper) = &self.layers.upper else { return Ok(()) };
        let mark = self.own_mark(index.at(entry), Mark::Upper)?;
        let Some(copy) = mark.as_deref().and_then(Origin::decode) else {
            log::info!("index: {} leads nowhere", entry.display());
            return sys::rmdir(index.dir.as_fd(), entry);
        };
        let copy = match sys::open_handle(upper.root.as_fd(), &copy.handle) {
            Ok(copy) => copy,
            Err(Errno::ESTALE) => return self.retire(index, entry, Kind::Dir),
            // Not for the unprivileged.
            Err(Errno::EPERM) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if self.own_mark(At::Fd(copy.as_fd()), Mark::Origin)?.as_deref() == Some(origin) {
            return Ok(());
        }
        log::info!("index: {} leads to the copy of something else", entry.display());
        sys::rmdir(index.dir.as_fd(), entry)
    }

    /// Whether an upper directory and the lower one that has its name are parts of one: not if the upper one is known to be
    /// the copy of another. Without handles for all of them names alone decide.
    pub(super) fn is_origin(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
        (lower, layer): (At<'_>, LayerIndex),
    ) -> Result<bool> {
        if self.index_of_all().is_none() || found.layer != UPPER || !found.lowers.is_empty() {
            return Ok(true);
        }
        let dir = self.dir_fd(parent, UPPER)?;
        match self.known_origin(At::Name(dir.as_fd(), name))? {
            Some(known) => Ok(self.origin_mark(lower, layer)?.is_none_or(|origin| origin == known)),
            None => Ok(true),
        }
    }

    /// Whether the entry of a directory fits what was found: `EIO` for a whiteout, and for one that leads to another copy. A
    /// lower directory that has been copied up may show by its copy alone, and by one.
    pub(super) fn check_directory_entry(&self, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Result<()> {
        let Some(index) = self.index_of_all() else { return Ok(()) };
        let Some(layer) = found.lowers.first().map(|lower| lower.layer) else { return Ok(()) };
        let origin = match found.layer {
            UPPER => {
                let dir = self.dir_fd(parent, UPPER)?;
                self.known_origin(At::Name(dir.as_fd(), name))?
            }
            _ => {
                let dir = self.dir_fd(parent, layer)?;
                self.origin_mark(At::Name(dir.as_fd(), name), layer)?
            }
        };
        let Some(entry) = origin.map(|origin| entry_name(&origin)) else { return Ok(()) };
        let fits = match sys::stat(index.at(&entry)) {
            Ok(stat) if stat.is_dir() && found.layer == UPPER => {
                let copy = self.own_mark(index.at(&entry), Mark::Upper)?.as_deref().and_then(Origin::decode);
                let dir = self.dir_fd(parent, UPPER)?;
                match copy {
                    Some(copy) => copy.handle == sys::file_handle(At::Name(dir.as_fd(), name))?,
                    // A server that is not root may not be allowed to read it.
                    None => true,
                }
            }
            Ok(_) => false,
            Err(Errno::ENOENT | Errno::ENAMETOOLONG) => true,
            Err(errno) => return Err(errno),
        };
        if fits {
            return Ok(());
        }
        log::warn!("index: {} does not lead to {}", entry.display(), name.display());
        Err(Errno::EIO)
    }

    /// Finds a node again by its number, for a handle of this mount or an earlier one. `ESTALE` if it is forgotten or has no
    /// name any more.
    pub fn lookup_self(&self, id: super::NodeId) -> Result<Entry> {
        self.meet(id)?;
        let node = self.table.look_up(id).ok_or(Errno::ESTALE)?;
        self.found_again(&node)
    }

    /// Finds the directory above one, for a handle of that.
    pub fn lookup_parent(&self, id: super::NodeId) -> Result<Entry> {
        self.meet(id)?;
        let node = self.node(id)?;
        let parent = node.named().map_or_else(|| self.root.clone(), |(parent, _)| parent);
        self.lookup_self(parent.id)
    }

    fn found_again(&self, node: &Arc<Node>) -> Result<Entry> {
        let there = match node.named() {
            _ if node.id == super::ROOT_ID => Ok(true),
            None => Ok(false),
            // Somebody may have taken it from a layer, behind the mount.
            Some((parent, name)) => self.names(&parent).and_then(|names| {
                let _unchanged = names.read();
                let found = self.resolve(&parent, &name, From::Top)?;
                Ok(found.is_some_and(|found| found.stat.kind() == node.kind))
            }),
        };
        match there.and_then(|there| if there { self.attr(node) } else { Err(Errno::ESTALE) }) {
            Ok(attr) => Ok(Entry { id: node.id, attr, lasting: Lasting::Neither }),
            Err(errno) => {
                self.forget(node.id, 1);
                Err(errno)
            }
        }
    }
}
