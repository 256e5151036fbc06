//! Owners, modes and kinds that lie in an extended attribute, for layers on file systems that cannot hold them (a home on
//! NFS, a user without subordinate ids): `xattr_permissions=1|2`.
//!
//! The format is that of container stores and fuse-overlayfs: `UID:GID:MODE[:KIND]`, mode in octal, kind one of `dir`,
//! `file`, `pipe`, `socket`, `block-MAJOR-MINOR`, `char-MAJOR-MINOR`. It overrules what a regular file or a directory is
//! on disk; a device, a pipe or a socket is an empty regular file there. In the upper all objects but symlinks carry one;
//! a lower layer is read so if its root carries one, and so is each layer of a union without the option, but not for the
//! machine's root if anybody could have written it. With 2 the attributes `security.*` that callers set are kept as
//! `user.containers.override_security.*`.
//!
//! The bytes may be anybody's: what is not of the format, or would make a directory of a file, a symlink of anything or a
//! whiteout, overrules nothing. Callers can neither read nor write the attribute itself. Answers to no file of the
//! kernel's.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::config::{Config, Permissions, SetupError};
use super::layer::{Layer, Layers};
use super::node::{LayerIndex, Node, UPPER};
use super::setup::is_root_of_the_machine;
use super::superblock::Overlay;
use super::workdir::WorkDir;
use super::xattr::{is_absent, value};
use super::xattr_known::CAPABILITY;
use crate::errno::{Errno, Result};
use crate::sys::{self, At, Kind, Stat};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What stands before the names of attributes that are kept for callers.
const KEPT: &[u8] = b"user.containers.override_";

/// The attribute in which a layer has its owners and modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// With 1: for the privileged.
    Security,
    /// With 2: as container stores write it.
    Containers,
    /// With 2: as fuse-overlayfs once wrote it.
    FuseOverlayfs,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::Security => "security.fuseoverlayfs.override_stat",
            Source::Containers => "user.containers.override_stat",
            Source::FuseOverlayfs => "user.fuseoverlayfs.override_stat",
        }
    }

    /// The one that is written, unless an upper has another already.
    fn wanted(permissions: Permissions) -> Option<Source> {
        match permissions {
            Permissions::OnDisk => None,
            Permissions::Privileged => Some(Source::Security),
            Permissions::User => Some(Source::Containers),
        }
    }

    /// Which of those that may be believed a directory carries.
    fn of(permissions: Permissions, root: At<'_>) -> Result<Option<Source>> {
        let candidates: &[Source] = match permissions {
            // Anybody can write the latter two to what is his. A mount of root's honours suid: it has to be asked.
            Permissions::OnDisk if !is_root_of_the_machine() => {
                &[Source::Security, Source::Containers, Source::FuseOverlayfs]
            }
            Permissions::OnDisk | Permissions::Privileged => &[Source::Security],
            Permissions::User => &[Source::Containers, Source::FuseOverlayfs],
        };
        for source in candidates {
            if value(root, source.name())?.is_some() {
                return Ok(Some(*source));
            }
        }
        Ok(None)
    }
}

/// What overrules the attributes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Override {
    uid: u32,
    gid: u32,
    /// Permission bits.
    mode: u32,
    kind: Kind,
    rdev: u64,
}

impl Override {
    fn of(stat: &Stat) -> Override {
        Override { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777, kind: stat.kind(), rdev: stat.rdev }
    }

    /// What an attribute says of a regular file or a directory; `None` if it says nothing that makes sense.
    fn parse(bytes: &[u8], real: Kind) -> Option<Override> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= 64)?;
        // Some writers count the end of a C string in.
        let mut fields = text.strip_suffix('\0').unwrap_or(text).splitn(4, ':');
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let mode = number(fields.next()?, 8).filter(|mode| *mode <= 0o177_777)? & 0o7777;
        let (kind, rdev) = match fields.next() {
            None => (real, 0),
            Some(kind) => kind_of(kind)?,
        };
        let null_device = kind == Kind::Char && rdev == 0;
        ((kind == Kind::Dir) == (real == Kind::Dir) && !null_device).then_some(Override { uid, gid, mode, kind, rdev })
    }

    fn to_bytes(self) -> Vec<u8> {
        let Override { uid, gid, mode, kind, rdev } = self;
        let (major, minor) = sys::split_dev(rdev);
        let kind = match kind {
            Kind::Dir => "dir".to_owned(),
            Kind::File => "file".to_owned(),
            Kind::Symlink => "symlink".to_owned(),
            Kind::Fifo => "pipe".to_owned(),
            Kind::Socket => "socket".to_owned(),
            Kind::Block => format!("block-{major}-{minor}"),
            Kind::Char => format!("char-{major}-{minor}"),
        };
        format!("{uid}:{gid}:{mode:04o}:{kind}").into_bytes()
    }

    fn apply(self, stat: &mut Stat) {
        (stat.uid, stat.gid) = (self.uid, self.gid);
        (stat.mode, stat.rdev) = (self.kind.mode_bits() | self.mode, self.rdev);
    }
}

/// A number of digits alone: no sign, no blank.
fn number(text: &str, radix: u32) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { u32::from_str_radix(text, radix).ok() } else { None }
}

fn id(text: &str) -> Option<u32> {
    number(text, 10).filter(|id| *id != u32::MAX)
}

fn kind_of(text: &str) -> Option<(Kind, u64)> {
    let plain = match text {
        "dir" => Some(Kind::Dir),
        "file" => Some(Kind::File),
        "pipe" => Some(Kind::Fifo),
        "socket" => Some(Kind::Socket),
        _ => None,
    };
    if let Some(kind) = plain {
        return Some((kind, 0));
    }
    let (kind, numbers) = match (text.strip_prefix("block"), text.strip_prefix("char")) {
        (Some(numbers), _) => (Kind::Block, numbers),
        (_, Some(numbers)) => (Kind::Char, numbers),
        _ => return None,
    };
    // fuse-overlayfs 2 has a colon between the numbers, and none before them.
    let (major, minor) = numbers.strip_prefix('-').unwrap_or(numbers).split_once(['-', ':'])?;
    let (major, minor) = (number(major, 10)?, number(minor, 10)?);
    // As many bits as the kernel has for them.
    (major < 1 << 12 && minor < 1 << 20).then(|| (kind, sys::make_dev(major, minor)))
}

/// Whether the upper's file system holds the attribute that the option asks for.
///
/// # Errors
/// That it does not, in words.
pub(super) fn check(permissions: Permissions, work: &WorkDir) -> std::result::Result<(), String> {
    let Some(source) = Source::wanted(permissions) else { return Ok(()) };
    let probe = work.temporary();
    sys::mkdir(work.fd(), probe.name(), 0o700)
        .and_then(|()| sys::set_xattr(probe.at(), OsStr::new(source.name()), b"0:0:0755:dir", 0))
        .map_err(|errno| format!("xattr_permissions: {} cannot be set: {errno}", source.name()))
}

/// Finds out which layers have owners and modes in attributes. The upper has, if the option is given; without it each layer
/// is what its root says, as to fuse-overlayfs.
///
/// # Errors
/// When a layer's root cannot be asked.
pub(super) fn find_sources(config: &Config, layers: &mut Layers) -> std::result::Result<bool, SetupError> {
    let fail = |layer: &Layer, errno: Errno| SetupError::path("xattr_permissions", &layer.path, errno);
    let mut root = None;
    for layer in &mut layers.lowers {
        let at = At::Fd(layer.root.as_fd());
        layer.source = Source::of(config.permissions, at).map_err(|errno| fail(layer, errno))?;
        if let (None, Some(source)) = (&root, layer.source) {
            root = value(at, source.name()).map_err(|errno| fail(layer, errno))?;
        }
    }
    let wanted = Source::wanted(config.permissions);
    let any = wanted.is_some() || root.is_some();
    let Some(upper) = &mut layers.upper else { return Ok(any) };
    let at = At::Fd(upper.root.as_fd());
    upper.source = Source::of(config.permissions, at).map_err(|errno| fail(upper, errno))?;
    if let (None, Some(wanted)) = (upper.source, wanted) {
        upper.source = Some(wanted);
        if let Some(root) = root {
            // The root of the union is the upper's: it looks as the lower's did.
            sys::set_xattr(at, OsStr::new(wanted.name()), &root, 0).map_err(|errno| fail(upper, errno))?;
        }
    }
    Ok(any || upper.source.is_some())
}

impl Overlay {
    /// Whether any layer has its owners and modes in an attribute: ACLs would say otherwise than that.
    #[must_use]
    pub fn overrides_owners(&self) -> bool {
        self.overriding
    }

    /// In which attribute a layer has owners and modes; `None` where they are what they are.
    pub(super) fn source(&self, layer: LayerIndex) -> Option<Source> {
        if !self.overriding {
            return None;
        }
        self.layers.get(layer)?.source
    }

    /// The attributes of an object of a layer, overruled if it says so.
    pub(super) fn stat_in(&self, at: At<'_>, layer: LayerIndex) -> Result<Stat> {
        let mut stat = sys::stat(at)?;
        self.overrule(at, layer, &mut stat)?;
        Ok(stat)
    }

    /// Puts into the attributes on disk what the object itself says of them.
    pub(super) fn overrule(&self, at: At<'_>, layer: LayerIndex, stat: &mut Stat) -> Result<()> {
        let Some(source) = self.source(layer) else { return Ok(()) };
        let real = stat.kind();
        if real != Kind::File && real != Kind::Dir {
            return Ok(());
        }
        let bytes = match sys::get_xattr(at, OsStr::new(source.name())) {
            Ok(bytes) => bytes,
            // Taken for absent, what it says would be lost with the next change.
            Err(Errno::EACCES) if !self.is_closed_to_server(stat) => return Err(Errno::EACCES),
            Err(errno) if is_absent(errno) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match Override::parse(&bytes, real) {
            Some(found) => found.apply(stat),
            None => log::debug!("layer {layer}: {} is not of the format", source.name()),
        }
        Ok(())
    }

    /// What an object of that kind is on disk in the upper: kind and mode.
    pub(super) fn stored_as(&self, kind: Kind, mode: u32) -> (Kind, u32) {
        match (self.source(UPPER), kind) {
            (None, _) | (_, Kind::Symlink) => (kind, mode),
            (Some(_), Kind::Dir) => (Kind::Dir, 0o700),
            (Some(_), _) => (Kind::File, 0o600),
        }
    }

    /// Gives an object in the upper, by its attribute, the owner, mode and kind of `wanted`; false if the union keeps them
    /// where they belong, for the caller to do so.
    pub(super) fn describe(&self, at: At<'_>, wanted: &Stat) -> Result<bool> {
        let Some(source) = self.source(UPPER) else { return Ok(false) };
        if wanted.kind() != Kind::Symlink {
            sys::set_xattr(at, OsStr::new(source.name()), &Override::of(wanted).to_bytes(), 0)?;
        }
        Ok(true)
    }

    /// Changes the permission bits of an object in the upper.
    pub(super) fn chmod(&self, at: At<'_>, mode: u32) -> Result<()> {
        if self.source(UPPER).is_none() {
            return sys::chmod(at, mode);
        }
        let mut stat = self.stat_in(at, UPPER)?;
        stat.mode = stat.kind().mode_bits() | (mode & 0o7777);
        self.describe(at, &stat).map(drop)
    }

    /// Changes the owner of an object in the upper. Like the kernel, takes suid, sgid and a capability from a file.
    pub(super) fn chown(&self, at: At<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        if self.source(UPPER).is_none() {
            return self.chown_on_disk(at, uid, gid);
        }
        let mut stat = self.stat_in(at, UPPER)?;
        stat.uid = uid.unwrap_or(stat.uid);
        stat.gid = gid.unwrap_or(stat.gid);
        if !stat.is_dir() {
            stat.mode &= !libc::S_ISUID;
            if stat.mode & libc::S_IXGRP != 0 {
                stat.mode &= !libc::S_ISGID;
            }
            self.drop_kept_capability(at)?;
        }
        self.describe(at, &stat).map(drop)
    }

    /// A file was written to: a capability that is kept under another name goes as the file system lets a real one go.
    /// Call with nothing of the node locked.
    pub(super) fn written_to(&self, node: &Arc<Node>, at: At<'_>) -> Result<()> {
        if self.source(UPPER).is_none() || self.lacks_xattr(node, OsStr::new(CAPABILITY))? {
            return Ok(());
        }
        self.drop_kept_capability(at)
    }

    fn drop_kept_capability(&self, at: At<'_>) -> Result<()> {
        match sys::remove_xattr(at, &kept(CAPABILITY.as_bytes())) {
            Err(errno) if !is_absent(errno) => Err(errno),
            _ => Ok(()),
        }
    }

    /// The name on disk of what callers call `name`, in a layer; `ENODATA` for what there cannot be.
    pub(super) fn name_on_disk(&self, name: &OsStr, layer: LayerIndex) -> Result<OsString> {
        self.namespace.check(name)?;
        let Some(source) = self.source(layer) else { return Ok(self.namespace.escape(name)) };
        let bytes = name.as_bytes();
        if bytes == source.name().as_bytes() || bytes.starts_with(b"user.fuseoverlayfs.") || bytes.starts_with(KEPT) {
            return Err(Errno::ENODATA);
        }
        // Modes are the attribute's to say; an ACL would change those on disk.
        if name == sys::ACL_ACCESS || name == sys::ACL_DEFAULT {
            return Err(Errno::ENODATA);
        }
        if source != Source::Security && bytes.starts_with(b"security.") {
            return Ok(kept(bytes));
        }
        Ok(self.namespace.escape(name))
    }

    /// What callers call an attribute by its name on disk in a layer; `None` for what is hidden.
    pub(super) fn shown_name(&self, name: &[u8], layer: LayerIndex) -> Option<Vec<u8>> {
        let Some(source) = self.source(layer) else { return self.namespace.unescape(name) };
        if name == source.name().as_bytes() || name.starts_with(b"system.posix_acl_") {
            return None;
        }
        if let Some(rest) = name.strip_prefix(KEPT) {
            return (source != Source::Security && rest.starts_with(b"security.")).then(|| rest.to_vec());
        }
        if source != Source::Security && name.starts_with(b"security.") {
            return None;
        }
        self.namespace.unescape(name)
    }
}

/// The name on disk of an attribute that is kept for callers.
fn kept(name: &[u8]) -> OsString {
    OsString::from_vec([KEPT, name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Override> {
        Override::parse(text.as_bytes(), Kind::File)
    }

    #[test]
    fn what_others_write_is_read() {
        let table = [
            ("0:0:0755:file", (0, 0, 0o755, Kind::File, (0, 0))),
            ("1000:100:4755", (1000, 100, 0o4755, Kind::File, (0, 0))),
            ("1:2:100644", (1, 2, 0o644, Kind::File, (0, 0))),
            ("1:2:0644:file\0", (1, 2, 0o644, Kind::File, (0, 0))),
            ("0:0:0666:char-1-3", (0, 0, 0o666, Kind::Char, (1, 3))),
            ("0:6:0660:block-8-1048575", (0, 6, 0o660, Kind::Block, (8, 0xf_ffff))),
            ("0:6:0660:block8:1", (0, 6, 0o660, Kind::Block, (8, 1))),
            ("0:0:0600:pipe", (0, 0, 0o600, Kind::Fifo, (0, 0))),
            ("4294967294:0:0:socket", (u32::MAX - 1, 0, 0, Kind::Socket, (0, 0))),
        ];
        for (text, (uid, gid, mode, kind, (major, minor))) in table {
            let expected = Override { uid, gid, mode, kind, rdev: sys::make_dev(major, minor) };
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        let dir = Override::parse(b"0:0:01777:dir", Kind::Dir).unwrap();
        assert_eq!((dir.mode, dir.kind), (0o1777, Kind::Dir));
    }

    #[test]
    fn what_makes_no_sense_is_nothing() {
        let long = "0".repeat(64) + ":0:0";
        let table = [
            "",
            ":",
            "::",
            ":::",
            "0",
            "0:0",
            "0:0:",
            ":0:0",
            "a:0:0",
            "-1:0:0",
            "+1:0:0",
            " 1:0:0",
            "0:0:8",
            "0:0:0x1",
            "0:0:200000",
            "4294967295:0:0",
            "4294967296:0:0",
            "0:0:0:",
            "0:0:0:nothing",
            "0:0:0:dir",
            "0:0:0:symlink",
            "0:0:0:file:more",
            "0:0:0:char",
            "0:0:0:char-",
            "0:0:0:char-1",
            "0:0:0:char-1-",
            "0:0:0:char--1-3",
            "0:0:0:char-0-0",
            "0:0:0:char-4096-0",
            "0:0:0:block-0-1048576",
            "0:0:0:char-1-3-5",
            "0:0:0:char-1-3 ",
            "0:0:0\n",
            "0:0:0:file\0\0",
            &long,
        ];
        for text in table {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(Override::parse(b"0:0:0\xff", Kind::File), None);
        assert_eq!(Override::parse(b"0:0:0:file", Kind::Dir), None);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for kind in [Kind::File, Kind::Fifo, Kind::Socket, Kind::Block, Kind::Char] {
            let rdev = if matches!(kind, Kind::Block | Kind::Char) { sys::make_dev(259, 70_000) } else { 0 };
            let written = Override { uid: 100_000, gid: 5, mode: 0o2750, kind, rdev };
            assert_eq!(Override::parse(&written.to_bytes(), Kind::File), Some(written));
        }
        let written = Override { uid: 0, gid: 0, mode: 0o755, kind: Kind::Dir, rdev: 0 };
        assert_eq!(written.to_bytes(), b"0:0:0755:dir");
        assert_eq!(Override::parse(&written.to_bytes(), Kind::Dir), Some(written));
    }
}
