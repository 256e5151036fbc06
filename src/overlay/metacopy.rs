//! Metacopy: an object that has a file's attributes, while its data still lies in a layer below.
//!
//! Owns: the mark, the search for the data, and its copy-up when it is wanted at last. Answers to the metacopy half of
//! the kernel's `namei.c` and `copy_up.c`.
//!
//! The mark goes only when the data is complete and, where that is asked for, on the disk; until then whoever reads gets
//! the data of the layer below, so a crash at any moment leaves the old file or the new one. A mark is believed in the
//! namespace of this mount only: who can set the other kind must not choose what the server reads.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::config::Fsync;
use super::copy_up::Data;
use super::node::{LayerIndex, LayerPath, Node, Place, UPPER};
use super::redirect::{There, Trail, Way};
use super::resolve::Found;
use super::superblock::Overlay;
use super::xattr::Mark;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, CopyEffort, Kind, Mode, OFlags, Stat};

/// Where the data of a file lies whose own object has none.
#[derive(Debug)]
pub(super) struct LowerData {
    pub layer: LayerIndex,
    pub path: LayerPath,
    /// The space that the data takes, in blocks of 512 bytes.
    pub blocks: u64,
    /// Whether the file there has several names.
    pub linked: bool,
}

/// A mark of another size than this one has, and not empty, is broken.
const SHORTEST_MARK: usize = 4;

/// What a file occupies at most that has no data: a block for its xattrs.
const NO_MORE_THAN_XATTRS: u64 = 8;

/// Whether a file takes less space than its data would.
fn is_hollow(stat: &Stat) -> bool {
    stat.blocks <= NO_MORE_THAN_XATTRS && stat.blocks * 512 < stat.size
}

impl Overlay {
    /// Whether an object is a file whose data lies elsewhere. `EIO` for a broken mark. Where nobody asked for metacopy
    /// only files that look so are asked.
    pub(super) fn lacks_data(&self, at: At<'_>, stat: &Stat, layer: LayerIndex) -> Result<bool> {
        if stat.kind() != Kind::File {
            return Ok(false);
        }
        let expected = self.features.metacopy && layer < self.layers.last_merged();
        if !expected && !is_hollow(stat) {
            return Ok(false);
        }
        self.has_metacopy(at)
    }

    /// Asks a small file that was copied up whether it has its data, where nobody asked for metacopy: it does not look
    /// hollow, because its xattrs take as much space, or because there are no data. `EPERM` if it has none: zeroes would
    /// be read, and what is written would not be found again under `metacopy=on`.
    pub(super) fn check_has_data(&self, at: At<'_>, found: &Found) -> Result<()> {
        let Stat { size, blocks, .. } = found.stat;
        let is_small = blocks <= NO_MORE_THAN_XATTRS && size <= NO_MORE_THAN_XATTRS * 512;
        if !self.features.metacopy && is_small && found.stat.kind() == Kind::File && self.has_metacopy(at)? {
            return Err(Errno::EPERM);
        }
        Ok(())
    }

    /// Whether a file carries the mark.
    pub(super) fn has_metacopy(&self, at: At<'_>) -> Result<bool> {
        match self.own_mark(at, Mark::Metacopy)? {
            None => Ok(false),
            Some(mark) if mark.is_empty() || mark.len() >= SHORTEST_MARK => Ok(true),
            Some(_) => Err(Errno::EIO),
        }
    }

    /// Finds the data of a file that was found in a layer without it. `EIO` if there is none, `EPERM` if it is not to be
    /// looked for.
    pub(super) fn find_data(&self, parent: &Arc<Node>, name: &OsStr, found: &mut Found) -> Result<()> {
        if !self.features.metacopy {
            log::warn!("a file without data of its own is not followed: mount with metacopy=on");
            return Err(Errno::EPERM);
        }
        let above = found.layer;
        let dir = self.dir_fd(parent, above)?;
        let redirect = self.own_mark(At::Name(dir.as_fd(), name), Mark::Redirect)?;
        let way = redirect.map_or_else(|| Ok(Way::Name(name.to_owned())), |redirect| self.way(&redirect))?;
        let mut trail = Trail::new(way);
        for layer in above + 1..=self.layers.last_merged() {
            let Some((base, mut place)) = self.base(parent, &trail.way, layer)? else { continue };
            place.extend(trail.way.names().iter().cloned());
            match self.walk(&base, &mut trail)? {
                There::Object { stat, metacopy: false, .. } if stat.kind() == Kind::File => {
                    let linked = stat.nlink > 1;
                    let path = LayerPath::from(place);
                    found.data = Some(Arc::new(LowerData { layer, path, blocks: stat.blocks, linked }));
                    return Ok(());
                }
                There::Object { metacopy: false, .. } => break,
                There::Object { .. } | There::Nothing => {}
            }
            if trail.stop {
                break;
            }
        }
        log::warn!("the data of {} is in no layer", name.to_string_lossy());
        Err(Errno::EIO)
    }

    /// Opens the data of a file, for reading.
    pub(super) fn open_data(&self, data: &LowerData) -> Result<OwnedFd> {
        let root = &self.layers.get(data.layer).ok_or(Errno::ESTALE)?.root;
        let (name, dirs) = data.path.split_last().ok_or(Errno::ESTALE)?;
        let mut inside: Option<OwnedFd> = None;
        for dir in dirs {
            inside = Some(sys::open_dir(inside.as_ref().map_or(root.as_fd(), |fd| fd.as_fd()), dir)?);
        }
        let dir = inside.as_ref().map_or(root.as_fd(), |fd| fd.as_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match sys::open(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::EPERM) => sys::open(dir, name, flags, Mode::empty())?,
            result => result?,
        };
        if sys::stat(At::Fd(file.as_fd()))?.kind() == Kind::File { Ok(file) } else { Err(Errno::EIO) }
    }

    /// Whether a copy-up of a node can leave its data where it is; then the data's place. A node without a name has no
    /// place from which the data could be found again.
    pub(super) fn data_to_leave(&self, node: &Arc<Node>, stat: &Stat, layer: LayerIndex) -> Option<Arc<LowerData>> {
        if !self.features.metacopy || node.kind != Kind::File {
            return None;
        }
        let (parent, name) = node.named()?;
        let known = node.state.read().data.clone();
        known.or_else(|| {
            let mut place = self.place_in(&parent, layer)?;
            place.push(OsString::from(&*name));
            let path = LayerPath::from(place);
            Some(Arc::new(LowerData { layer, path, blocks: stat.blocks, linked: stat.nlink > 1 }))
        })
    }

    /// Marks a new copy as one without data.
    pub(super) fn set_metacopy(&self, copy: &OwnedFd, stat: &Stat) -> Result<()> {
        sys::truncate(copy.as_fd(), stat.size)?;
        self.set_mark(At::Fd(copy.as_fd()), Mark::Metacopy, b"")
    }

    /// Whether an upper file has its data still in a lower.
    pub(super) fn is_without_data(&self, node: &Node) -> bool {
        node.state.read().data.is_some()
    }

    /// Copies the data up that a copy-up has left where it was. Call with the node's `copying` locked.
    pub(super) fn complete_data(&self, node: &Arc<Node>, wanted: Data) -> Result<()> {
        let Some(data) = node.state.read().data.clone() else { return Ok(()) };
        let to = self.open_upper_writable(node)?;
        let at = At::Fd(to.as_fd());
        let stat = sys::stat(at)?;
        let bytes = match wanted {
            Data::Cut { size, .. } => stat.size.min(size),
            Data::Later | Data::All => stat.size,
        };
        if bytes < stat.size {
            // While the mark is there: cut, and still whole.
            sys::truncate(to.as_fd(), bytes)?;
        }
        let capability = super::xattr::value(at, "security.capability")?;
        if bytes > 0 {
            let from = self.open_data(&data)?;
            let whole = sys::stat(At::Fd(from.as_fd()))?.size;
            let effort = sys::copy_data(from.as_fd(), to.as_fd(), bytes, whole)?;
            // What was cloned can be longer than what the attributes say.
            sys::truncate(to.as_fd(), bytes)?;
            if self.fsync == Fsync::Strict || (self.fsync == Fsync::Auto && effort == CopyEffort::Copied) {
                sys::sync_data(to.as_fd())?;
            }
        }
        if let Some(capability) = capability {
            sys::set_xattr(at, OsStr::new("security.capability"), &capability, 0)?;
        }
        if sys::stat(at)?.mode != stat.mode {
            sys::chmod(at, stat.mode)?;
        }
        match self.remove_mark(at, Mark::Metacopy) {
            Ok(()) | Err(Errno::ENODATA) => {}
            Err(errno) => return Err(errno),
        }
        let mut state = node.state.write();
        state.data = None;
        if !self.may_reopen(stat.mode) {
            // Somebody may have it open for writing from before its mode changed.
            state.pins.open = Some(Arc::new(to));
        }
        self.readers.remove(&node.id);
        drop(state);
        self.note_attributes(node);
        Ok(())
    }

    /// The upper file, open for reading and writing, whatever its mode says to a server that is not root.
    fn open_upper_writable(&self, node: &Arc<Node>) -> Result<OwnedFd> {
        match self.open_upper(node, OFlags::RDWR) {
            Err(Errno::EACCES) if self.server.0 != 0 => {}
            result => return result,
        }
        let mode = self.with_real(node, |at, _| Ok(sys::stat(at)?.mode))?;
        self.with_real(node, |at, _| sys::chmod(at, mode | 0o600))?;
        let opened = self.open_upper(node, OFlags::RDWR);
        self.with_real(node, |at, _| sys::chmod(at, mode))?;
        opened
    }

    /// The upper file itself, also of one that has no data.
    pub(super) fn open_upper(&self, node: &Arc<Node>, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::NONBLOCK;
        let state = node.state.read();
        match &state.place {
            Place::In { parent, name } => {
                let dir = self.dir_fd(parent, UPPER)?;
                sys::open(dir.as_fd(), name, flags, Mode::empty())
            }
            Place::Gone => sys::reopen(state.pins.object.as_ref().ok_or(Errno::ESTALE)?.as_fd(), flags),
            Place::Root => Err(Errno::EISDIR),
        }
    }
}
