//! Metacopy: an object that has a file's attributes, while its data still lies in a layer below.
//!
//! Owns: the mark and the search for the data; how that is copied up at last, `complete`. Answers to the metacopy half of the
//! kernel's `namei.c`.
//!
//! A mark is believed in the namespace of this mount only: who can set the other kind must not choose what the server reads.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::config::Verity;
use super::index::has_no_handles;
use super::layer::Layer;
use super::node::{LayerIndex, LayerPath, Node, UPPER};
use super::origin::Origin;
use super::redirect::{There, Trail, Way};
use super::resolve::Found;
use super::superblock::Overlay;
use super::xattr::Mark;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Kind, Mode, OFlags, Stat, VerityDigest};

/// Where the data of a file lies whose own object has none.
#[derive(Debug)]
pub(super) struct LowerData {
    /// The layer that has it; none for one of those that hold data only, which is looked for when the data is wanted.
    pub layer: Option<LayerIndex>,
    pub path: LayerPath,
    /// The space that the data takes, in blocks of 512 bytes.
    pub blocks: u64,
    /// Whether the file there has several names.
    pub linked: bool,
    /// What the fs-verity digest of the data must be.
    pub digest: Option<VerityDigest>,
}

impl LowerData {
    /// The mark of a file whose data this is.
    pub fn mark(&self) -> Vec<u8> {
        let Some(VerityDigest { algorithm, digest }) = &self.digest else { return Vec::new() };
        let length = u8::try_from(SHORTEST_MARK + digest.len()).unwrap_or(u8::MAX);
        [&[0, length, 0, *algorithm], digest.as_slice()].concat()
    }
}

/// The digest in a mark. `EIO` for a mark that is broken or of a later form.
fn digest_of(mark: &[u8]) -> Result<Option<VerityDigest>> {
    match mark {
        [] => Ok(None),
        [0, length, 0, algorithm, digest @ ..] if usize::from(*length) == mark.len() => {
            let digest = VerityDigest { algorithm: *algorithm, digest: digest.to_vec() };
            Ok(Some(digest).filter(|digest| digest.algorithm != 0))
        }
        _ => Err(Errno::EIO),
    }
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
        let last = layer == self.layers.last_merged();
        let expected = !self.layers.data.is_empty() || (self.features.metacopy && !last);
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
        let above = found.layer;
        let dir = self.dir_fd(parent, above)?;
        let at = At::Name(dir.as_fd(), name);
        let digest = match self.features.verity {
            Verity::Off => None,
            _ => digest_of(&self.own_mark(at, Mark::Metacopy)?.unwrap_or_default())?,
        };
        let way = match self.own_mark(at, Mark::Redirect)? {
            Some(redirect) => Way::parse(&redirect)?,
            None => Way::Name(name.to_owned()),
        };
        let absolute = matches!(way, Way::Path(_));
        let mut trail = Trail::new(way);
        let mut lead = absolute;
        // To data that no name of the union leads to the way is short, and open to everybody.
        let data_only = !self.layers.data.is_empty();
        // With an index the file that the copy was made of has to be the one that is found there.
        let mut origin = match &self.index {
            Some(_) if above == UPPER => self.own_mark(at, Mark::Origin)?.and_then(|mark| Origin::decode(&mark)),
            _ => None,
        };
        if self.features.metacopy && (self.follows_redirects() || !absolute) {
            for layer in above + 1..=self.layers.last_merged() {
                let Some((base, mut place)) = self.base(parent, &trail.way, layer)? else { continue };
                place.extend(trail.way.names().iter().cloned());
                let there = self.walk(&base, &mut trail)?;
                if !matches!(there, There::Nothing)
                    && let Some(origin) = origin.take()
                    && self.lies_elsewhere(&origin, layer, &LayerPath::from(&*place))?
                {
                    log::warn!("{} is not the file any more that was copied up", name.display());
                    return Err(Errno::ESTALE);
                }
                match there {
                    There::Object { stat, metacopy: false, .. } if stat.kind() == Kind::File => {
                        let (layer, path, linked) = (Some(layer), LayerPath::from(place), stat.nlink > 1);
                        found.data = Some(Arc::new(LowerData { layer, path, blocks: stat.blocks, linked, digest }));
                        return Ok(());
                    }
                    There::Object { metacopy: false, .. } => {
                        lead = false;
                        break;
                    }
                    There::Object { .. } => lead = trail.led,
                    There::Nothing => {}
                }
                if trail.stop {
                    break;
                }
            }
        } else if above < self.layers.last_merged() || !(data_only && absolute) {
            // From the last of the merged layers nothing but a layer of data can be meant: the kernel follows there, too.
            log::warn!("a file without data of its own is not followed: mount with metacopy=on");
            return Err(Errno::EPERM);
        }
        let Way::Path(path) = trail.way else { return Err(Errno::EIO) };
        if !data_only || !lead {
            log::warn!("the data of {} is in no layer", name.to_string_lossy());
            return Err(Errno::EIO);
        }
        let Stat { size, blksize, .. } = found.stat;
        let blocks = size.next_multiple_of(u64::from(blksize.max(512))) / 512;
        found.data = Some(Arc::new(LowerData { layer: None, path: path.into(), blocks, linked: true, digest }));
        Ok(())
    }

    /// Whether the object that a copy was made of is in a layer, but not there. Only root can tell.
    fn lies_elsewhere(&self, origin: &Origin, layer: LayerIndex, path: &LayerPath) -> Result<bool> {
        let Some(fs) = self.layers.filesystem_of(layer) else { return Ok(false) };
        let there = self.open_data_in(layer, path)?;
        let same = match sys::file_handle(At::Fd(there.as_fd())) {
            Ok(handle) => fs.uuid == origin.uuid && handle == origin.handle,
            Err(errno) if has_no_handles(errno) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        let is_there = |layer: &Layer| sys::open_handle(layer.root.as_fd(), &origin.handle).is_ok();
        Ok(!same && self.layers.lowers.iter().any(is_there))
    }

    /// Where the data of an index entry lies that has attributes only: with the lower file by which it was found.
    pub(super) fn data_of_indexed(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        indexed: &Found,
        lower: Stat,
        layer: LayerIndex,
    ) -> Result<Option<Arc<LowerData>>> {
        let (Some(index), Some(entry)) = (&self.index, &indexed.index) else { return Ok(None) };
        if !self.lacks_data(index.at(entry), &indexed.stat, UPPER)? {
            return Ok(None);
        }
        if !self.features.metacopy {
            return Err(Errno::EPERM);
        }
        let dir = self.dir_fd(parent, layer)?;
        if self.lacks_data(At::Name(dir.as_fd(), name), &lower, layer)? {
            let mut found = Found::new(lower, layer);
            self.find_data(parent, name, &mut found)?;
            return Ok(found.data);
        }
        let mut place = self.place_in(parent, layer).ok_or(Errno::ESTALE)?;
        place.push(name.to_owned());
        let data =
            LowerData { layer: Some(layer), path: place.into(), blocks: lower.blocks, linked: true, digest: None };
        Ok(Some(Arc::new(data)))
    }

    /// Opens the data of a file, for reading. `EIO` if it is not what its digest says.
    pub(super) fn open_data(&self, data: &LowerData) -> Result<OwnedFd> {
        let file = match data.layer {
            Some(layer) => self.open_data_in(layer, &data.path)?,
            None => {
                let mut found = Err(Errno::ENOENT);
                for layer in self.layers.of_data() {
                    found = self.open_data_in(layer, &data.path);
                    if !matches!(found, Err(Errno::ENOENT | Errno::ENOTDIR)) {
                        break;
                    }
                }
                found?
            }
        };
        if sys::stat(At::Fd(file.as_fd()))?.kind() != Kind::File {
            return Err(Errno::EIO);
        }
        match (self.features.verity, &data.digest) {
            (Verity::Off, _) | (Verity::On, None) => Ok(file),
            (_, Some(expected)) if sys::verity_digest(file.as_fd())?.as_ref() == Some(expected) => Ok(file),
            (_, expected) => {
                let what = if expected.is_some() { "has another digest, or none" } else { "came without a digest" };
                log::error!("verity: the data at {:?} {what}", data.path);
                Err(Errno::EIO)
            }
        }
    }

    fn open_data_in(&self, layer: LayerIndex, path: &LayerPath) -> Result<OwnedFd> {
        let root = &self.layers.get(layer).ok_or(Errno::ESTALE)?.root;
        let (name, dirs) = path.split_last().ok_or(Errno::ESTALE)?;
        let mut inside: Option<OwnedFd> = None;
        for dir in dirs {
            inside = Some(sys::open_dir(inside.as_ref().map_or(root.as_fd(), |fd| fd.as_fd()), dir)?);
        }
        let dir = inside.as_ref().map_or(root.as_fd(), |fd| fd.as_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        match sys::open(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::EPERM) => sys::open(dir, name, flags, Mode::empty()),
            result => result,
        }
    }

    /// Whether a copy-up of a node can leave its data where it is; then the data's place. A node without a name has no
    /// place from which the data could be found again.
    pub(super) fn data_to_leave(&self, node: &Arc<Node>, stat: &Stat, layer: LayerIndex) -> Option<Arc<LowerData>> {
        if !self.features.metacopy || node.kind != Kind::File || !self.may_read_marks(stat.mode) {
            return None;
        }
        let (parent, name) = node.named()?;
        let known = node.data();
        let digest = match self.features.verity {
            Verity::Off => None,
            // The digest of the data itself, which is compared on the way if it came with one.
            _ => self.open_reader(node).and_then(|file| sys::verity_digest(file.as_fd())).ok()?,
        };
        if digest.is_none() && self.features.verity == Verity::Require {
            return None;
        }
        let linked = stat.nlink > 1;
        Some(Arc::new(match known {
            Some(known) => LowerData { path: known.path.clone(), digest, ..*known },
            None => {
                let mut place = self.place_in(&parent, layer)?;
                place.push(OsString::from(&*name));
                LowerData { layer: Some(layer), path: place.into(), blocks: stat.blocks, linked, digest }
            }
        }))
    }

    /// Whether the server could read the marks of a file of that mode and its own: those of users are kept from whom the file
    /// is kept from. One without data whose mark cannot be read would be taken for a file full of zeroes.
    pub(super) fn may_read_marks(&self, mode: u32) -> bool {
        self.server.0 == 0 || mode & 0o400 != 0 || self.source(UPPER).is_some()
    }

    /// Whether an upper file has its data still in a lower.
    pub(super) fn is_without_data(&self, node: &Node) -> bool {
        node.state.read().rare.data.is_some()
    }
}
