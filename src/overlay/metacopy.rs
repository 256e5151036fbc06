//! Metacopy: an object that has a file's attributes, while its data still lies in a layer below.
//!
//! Owns: the mark, the search for the data, and its copy-up when it is wanted at last. Answers to the metacopy half of
//! the kernel's `namei.c` and `copy_up.c`.
//!
//! A file with one name is replaced by a whole one. Of others the mark goes only when the data is complete and, where that is
//! asked for, on the disk; until then whoever reads gets the data of the layer below. So a crash at any moment leaves the old
//! file or the new one. A mark is believed in the
//! namespace of this mount only: who can set the other kind must not choose what the server reads.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::config::Verity;
use super::copy_up::{Cut, Data, keeping_times};
use super::node::{LayerIndex, LayerPath, Node, RealId, UPPER};
use super::redirect::{There, Trail, Way};
use super::resolve::Found;
use super::superblock::Overlay;
use super::table::Key;
use super::xattr::{Mark, is_absent};
use super::xattr_known::CAPABILITY;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, CopyEffort, Kind, Mode, OFlags, SetTime, Stat, VerityDigest};

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

/// Whether a file without data was replaced by a whole one.
enum Replaced {
    Yes,
    /// It was renamed, removed or got another name meanwhile: try again.
    Moved,
    CannotBe,
}

/// Gives a file back the capability that a change of its data has taken.
fn give_capability(at: At<'_>, capability: Option<&[u8]>) -> Result<()> {
    capability.map_or(Ok(()), |value| sys::set_xattr(at, OsStr::new(CAPABILITY), value, 0))
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
        if self.features.metacopy && (self.follows_redirects() || !absolute) {
            for layer in above + 1..=self.layers.last_merged() {
                let Some((base, mut place)) = self.base(parent, &trail.way, layer)? else { continue };
                place.extend(trail.way.names().iter().cloned());
                match self.walk(&base, &mut trail)? {
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

    /// Copies the data up that a copy-up has left where it was. Call with the node's `copying` locked. Says whether a
    /// truncation that is wanted is done.
    ///
    /// Of an object that has one name only, and keeps its number by its origin, a whole one is made and takes its place:
    /// so a death in between leaves the old one, times and all. Others are completed in place, as the kernel does it with
    /// all: then a death can leave the old data under a new time.
    pub(super) fn complete_data(&self, node: &Arc<Node>, wanted: Data) -> Result<Cut> {
        let cut = if matches!(wanted, Data::Cut { .. }) { Cut::Done } else { Cut::ToDo };
        while let Some(data) = node.data() {
            match self.replace_by_whole(node, &data, wanted)? {
                Replaced::Yes => {}
                Replaced::Moved => continue,
                Replaced::CannotBe => self.complete_in_place(node, &data, wanted)?,
            }
            self.readers.remove(&node.id);
            self.note_attributes(node);
            return Ok(cut);
        }
        Ok(Cut::ToDo)
    }

    /// Makes a whole file of one without data, and moves it to its place.
    fn replace_by_whole(&self, node: &Arc<Node>, data: &LowerData, wanted: Data) -> Result<Replaced> {
        let Some((parent, name)) = node.named() else { return Ok(Replaced::CannotBe) };
        let Some(parent_dir) = &parent.dir else { return Err(Errno::ENOTDIR) };
        let stat = self.with_real(node, |at, _| sys::stat(at))?;
        let origin = self.with_real(node, |at, _| self.own_mark(at, Mark::Origin))?.unwrap_or_default();
        let indexed = node.state.read().rare.index.is_some();
        if stat.nlink != 1 || indexed || self.origin_number(&origin) != Some(node.ino()) {
            return Ok(Replaced::CannotBe);
        }
        let work = self.work()?;
        let temporary = work.temporary();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let copy = sys::open(work.fd(), temporary.name(), flags, Mode::from_raw_mode(0o600))?;
        let effort = self.fill(data, &copy, stat.size, wanted)?;
        self.settle_data(copy.as_fd(), effort)?;
        let dir = self.dir_fd(&parent, UPPER)?;
        let place = (dir.as_fd(), &*name);
        let at = At::Name(dir.as_fd(), &name);
        let _names = parent_dir.names.write();
        {
            // From here on nobody changes its attributes.
            let mut state = node.state.write();
            let stat = sys::stat(at)?;
            if !state.place.is(&parent, &name) || stat.nlink != 1 {
                return Ok(Replaced::Moved);
            }
            if RealId::of(&stat) != state.real {
                return Err(Errno::ESTALE);
            }
            match self.take_attributes(node, (at, &stat), At::Fd(copy.as_fd()), wanted) {
                // Of somebody else's, or what nobody may set any more: it has them where it is.
                Err(Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::ENOTSUP) => return Ok(Replaced::CannotBe),
                result => result?,
            }
            let real = RealId::of(&sys::stat(At::Fd(copy.as_fd()))?);
            let publish = || self.in_writable(dir.as_fd(), || sys::renamed(temporary.pair(), place));
            keeping_times(dir.as_fd(), publish)?;
            temporary.publish();
            self.table.rekey(node, Key::Real(real));
            state.real = real;
            state.rare.set_data(None);
            node.xattrs.forget();
            let copy = Arc::new(copy);
            if !self.may_reopen(stat.mode) {
                // Somebody may have it open for writing from before its mode changed.
                state.rare.open = Some(copy.clone());
            }
            self.writers.insert(node.id, copy);
        }
        self.listings.forget(parent.id);
        self.note_change(&parent, At::Fd(dir.as_fd()));
        self.note_change(node, at);
        Ok(Replaced::Yes)
    }

    /// Copies the first bytes of the data, as many as are wanted of them, and gives the file the size that is wanted.
    fn fill(&self, data: &LowerData, to: &OwnedFd, size: u64, wanted: Data) -> Result<CopyEffort> {
        let size_wanted = if let Data::Cut { size, .. } = wanted { size } else { size };
        let bytes = size.min(size_wanted);
        let mut effort = CopyEffort::Nothing;
        if bytes > 0 {
            let from = self.open_data(data)?;
            let whole = sys::stat(At::Fd(from.as_fd()))?.size;
            effort = sys::copy_data(from.as_fd(), to.as_fd(), bytes, whole)?;
            // What was cloned can be longer than what the attributes say.
            sys::truncate(to.as_fd(), bytes)?;
        }
        if size_wanted > bytes {
            sys::truncate(to.as_fd(), size_wanted)?;
        }
        Ok(effort)
    }

    /// Gives a file all that another has but the mark that says that its data lies elsewhere.
    fn take_attributes(&self, node: &Arc<Node>, (from, stat): (At<'_>, &Stat), to: At<'_>, wanted: Data) -> Result<()> {
        let current = sys::stat(to)?;
        if (current.uid, current.gid) != (stat.uid, stat.gid) {
            sys::chown(to, Some(stat.uid), Some(stat.gid))?;
        }
        let cut = matches!(wanted, Data::Cut { .. });
        let hollow = Mark::Metacopy.name(self.namespace);
        let capability = self.name_on_disk(OsStr::new(CAPABILITY), UPPER)?;
        let list = sys::list_xattr(from)?;
        let mut names: Vec<&OsStr> = list.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
        names.retain(|name| !name.is_empty() && **name != *hollow && !(cut && **name == *capability));
        // ACLs last: a mode without write permission refuses the rest to who is not root.
        names.sort_by_key(|name| name.as_bytes().starts_with(b"system.posix_acl_"));
        for name in names {
            sys::set_xattr(to, name, &sys::get_xattr(from, name)?, 0)?;
        }
        sys::chmod(to, stat.mode)?;
        if let Data::Cut { kill: Some(caller), .. } = wanted {
            self.kill_privileges(&caller, node, to)?;
        }
        sys::set_times(to, SetTime::At(stat.atime), if cut { SetTime::Now } else { SetTime::At(stat.mtime) })
    }

    fn complete_in_place(&self, node: &Arc<Node>, data: &LowerData, wanted: Data) -> Result<()> {
        let to = self.open_upper_writable(node)?;
        let at = At::Fd(to.as_fd());
        let stat = sys::stat(at)?;
        let mode = self.stat_in(at, UPPER)?.mode;
        let capability = super::xattr::value(at, CAPABILITY)?;
        if let Err(errno) = self.bring_data(node, data, &to, (&stat, capability.as_deref()), wanted) {
            // The mark is there still, so the data is the lower's: with the rest as it was, nothing is changed.
            let back = sys::truncate(to.as_fd(), stat.size)
                .and_then(|()| if self.stat_in(at, UPPER)?.mode == mode { Ok(()) } else { self.chmod(at, mode) })
                .and_then(|()| give_capability(at, capability.as_deref()))
                .and_then(|()| sys::set_times(at, SetTime::At(stat.atime), SetTime::At(stat.mtime)));
            if let Err(errno) = back {
                log::warn!("node {}: its data did not come, and its size did not come back: {errno}", node.id);
            }
            return Err(errno);
        }
        let mut state = node.state.write();
        state.rare.set_data(None);
        if !self.may_reopen(stat.mode) {
            // Somebody may have it open for writing from before its mode changed.
            state.rare.open = Some(Arc::new(to));
        }
        Ok(())
    }

    /// Brings the data into an upper file as it is, or as it is to be, and takes its mark, last of all.
    fn bring_data(
        &self,
        node: &Arc<Node>,
        data: &LowerData,
        to: &OwnedFd,
        (stat, capability): (&Stat, Option<&[u8]>),
        wanted: Data,
    ) -> Result<()> {
        let at = At::Fd(to.as_fd());
        let cut = matches!(wanted, Data::Cut { .. });
        if let Data::Cut { size, .. } = wanted
            && size < stat.size
        {
            // While the mark is there: cut, and still whole.
            sys::truncate(to.as_fd(), size)?;
        }
        let effort = self.fill(data, to, stat.size, wanted)?;
        self.settle_data(to.as_fd(), effort)?;
        if sys::stat(at)?.mode != stat.mode {
            sys::chmod(at, stat.mode)?;
        }
        if !cut {
            give_capability(at, capability)?;
        } else if let Err(errno) = sys::remove_xattr(at, &self.name_on_disk(OsStr::new(CAPABILITY), UPPER)?)
            && !is_absent(errno)
        {
            return Err(errno);
        }
        if let Data::Cut { kill: Some(caller), .. } = wanted {
            self.kill_privileges(&caller, node, at)?;
        }
        sys::set_times(at, SetTime::At(stat.atime), if cut { SetTime::Now } else { SetTime::At(stat.mtime) })?;
        match self.remove_mark(at, Mark::Metacopy) {
            Ok(()) | Err(Errno::ENODATA) => Ok(()),
            Err(errno) => Err(errno),
        }
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
    pub(super) fn open_upper(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        self.open_real(&node.state.read(), flags)
    }
}
