//! The overlay's own marks, and which xattrs a caller sees of an object.
//!
//! Answers to the kernel's `fs/overlayfs/xattrs.c`: marks with the overlay's prefix are hidden, and a caller's attribute
//! of such a name (a nested overlay's mark) is kept under an escaped one: `P.overlay.X` on disk is `P.X` inside.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use super::Caller;
use super::node::{DirState, LayerIndex, Node, ROOT_ID, UPPER};
use super::show_options::is_options;
use super::superblock::Overlay;
use crate::errno::{Errno, Result};
use crate::sys::{self, AsFd, At, Stat};
use std::sync::atomic::Ordering;

/// A private mark of the overlay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Opaque,
    Impure,
    Origin,
    Whiteout,
    /// Ours alone: `.wh.` names in this directory are no whiteouts.
    Plain,
    Redirect,
    Metacopy,
    Nlink,
    /// Of a directory's entry in the index.
    Upper,
    Uuid,
}

/// The prefixes under which marks may stand, the kernel's two first.
const TRUSTED: &str = "trusted.overlay.";
const USER: &str = "user.overlay.";
const FUSE_OVERLAYFS: &str = "user.fuseoverlayfs.";

/// What stands before the name of a mark that is a caller's own.
const ESCAPE: &[u8] = b"overlay.";

/// Names of all marks, of which a caller sees none in the namespace that this mount does not write, either.
const MARKS: [&str; 11] =
    ["opaque", "redirect", "origin", "impure", "nlink", "upper", "uuid", "metacopy", "protattr", "whiteout", "plain"];

/// In which namespace this mount writes its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namespace {
    Trusted,
    User,
}

impl Mark {
    fn suffix(self) -> &'static str {
        match self {
            Mark::Opaque => "opaque",
            Mark::Impure => "impure",
            Mark::Origin => "origin",
            Mark::Whiteout => "whiteout",
            Mark::Plain => "plain",
            Mark::Redirect => "redirect",
            Mark::Metacopy => "metacopy",
            Mark::Nlink => "nlink",
            Mark::Upper => "upper",
            Mark::Uuid => "uuid",
        }
    }

    /// The name under which this mount writes the mark.
    pub fn name(self, namespace: Namespace) -> String {
        format!("{}{}", namespace.prefix(), self.suffix())
    }
}

impl Namespace {
    fn prefix(self) -> &'static str {
        match self {
            Namespace::Trusted => TRUSTED,
            Namespace::User => USER,
        }
    }

    fn other(self) -> &'static str {
        match self {
            Namespace::Trusted => USER,
            Namespace::User => TRUSTED,
        }
    }

    /// The prefix alone is no name: `EINVAL`.
    pub fn check(self, name: &OsStr) -> Result<()> {
        if name == self.prefix() { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The prefix of a name that is a mark, or would be without escapes, and what follows it. Of the namespace that this
    /// mount does not write only what is read as a mark is one.
    fn split(self, name: &[u8]) -> Option<(&'static [u8], &[u8])> {
        for prefix in [self.prefix(), FUSE_OVERLAYFS] {
            if let Some(rest) = name.strip_prefix(prefix.as_bytes()) {
                return Some((prefix.as_bytes(), rest));
            }
        }
        let rest = name.strip_prefix(self.other().as_bytes())?;
        let mut plain = rest;
        while let Some(inner) = plain.strip_prefix(ESCAPE) {
            plain = inner;
        }
        MARKS.iter().any(|mark| mark.as_bytes() == plain).then_some((self.other().as_bytes(), rest))
    }

    /// The name on disk of what a caller calls `name`. No caller can write what is read as a mark.
    pub fn escape(self, name: &OsStr) -> OsString {
        match self.split(name.as_bytes()) {
            Some((prefix, rest)) => OsString::from_vec([prefix, ESCAPE, rest].concat()),
            None => name.to_owned(),
        }
    }

    /// What a caller calls the attribute that is called `name` on disk; `None` for a mark, which is hidden.
    pub fn unescape(self, name: &[u8]) -> Option<Vec<u8>> {
        match self.split(name) {
            Some((prefix, rest)) => Some([prefix, rest.strip_prefix(ESCAPE)?].concat()),
            None => Some(name.to_vec()),
        }
    }
}

/// How a directory hides what lies below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Opacity {
    #[default]
    Transparent,
    /// Nothing below shows.
    Opaque,
    /// Not opaque; whiteouts in it can be regular files with a mark.
    Xwhiteouts,
}

/// What the marks of a directory say of what lies below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DirMarks {
    pub opacity: Opacity,
    /// Where the rest of it lies, not yet looked at closely.
    pub redirect: Option<Vec<u8>>,
}

/// Whether an errno says that there is no such attribute, or that there can be none.
pub(super) fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENODATA | Errno::ENOTSUP | Errno::EPERM | Errno::EACCES)
}

/// The value of an attribute, `None` when there is none or can be none.
pub(super) fn value(at: At<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    match sys::get_xattr(at, OsStr::new(name)) {
        Ok(value) => Ok(Some(value)),
        Err(errno) if is_absent(errno) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Overlay {
    /// Sets a mark on an object in the upper.
    pub(super) fn set_mark(&self, at: At<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        sys::set_xattr(at, OsStr::new(&mark.name(self.namespace)), value, 0)
    }

    /// The same on an object that is in its place already, whose mode may refuse a server that is not root.
    pub(super) fn set_mark_in_place(&self, at: At<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        self.despite_mode(at, || self.set_mark(at, mark, value))
    }

    /// Takes a mark from an object in the upper.
    pub(super) fn remove_mark(&self, at: At<'_>, mark: Mark) -> Result<()> {
        self.despite_mode(at, || sys::remove_xattr(at, OsStr::new(&mark.name(self.namespace))))
    }

    /// Does something that the mode of an object refuses its owner: a mark is no change that the mode is there to prevent.
    pub(super) fn despite_mode<T>(&self, at: At<'_>, f: impl Fn() -> Result<T>) -> Result<T> {
        match f() {
            Err(Errno::EACCES) if self.server.0 != 0 => {}
            result => return result,
        }
        let mode = sys::stat(at)?.mode;
        sys::chmod(at, mode | 0o600)?;
        let result = f();
        sys::chmod(at, mode)?;
        result
    }

    /// Reads a mark in this mount's namespace only: one that leads elsewhere must not be of a kind that others can set.
    ///
    /// What cannot be read is not taken for absent: a file without data would show zeroes, and names be counted wrong for
    /// good. Only of what a server that is not root has no right to read nothing can be known.
    pub(super) fn own_mark(&self, at: At<'_>, mark: Mark) -> Result<Option<Vec<u8>>> {
        match sys::get_xattr(at, OsStr::new(&mark.name(self.namespace))) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::EACCES) if !self.is_closed_to_server(&sys::stat(at)?) => Err(Errno::EACCES),
            Err(errno) if is_absent(errno) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether an object's mode may keep a server that is not root from reading marks.
    pub(super) fn is_closed_to_server(&self, stat: &Stat) -> bool {
        self.server.0 != 0 && (stat.uid != self.server.0 || stat.mode & 0o400 == 0)
    }

    /// Reads a mark, in this mount's namespace or the other.
    pub(super) fn mark(&self, at: At<'_>, mark: Mark) -> Result<Option<Vec<u8>>> {
        if let Some(found) = value(at, &mark.name(self.namespace))? {
            return Ok(Some(found));
        }
        match self.namespace {
            // Everybody can set a user attribute on a file of his own in a layer, and must not lead elsewhere with it.
            Namespace::Trusted if mark == Mark::Redirect => Ok(None),
            Namespace::Trusted => value(at, &mark.name(Namespace::User)),
            // Who cannot write the trusted namespace cannot read it.
            Namespace::User => Ok(None),
        }
    }

    /// What the marks of a directory of a layer say of what lies below it, by any of the names in use.
    pub(super) fn dir_marks(&self, dir: At<'_>) -> Result<DirMarks> {
        // Most directories have no attribute at all: one call tells.
        let list = match sys::list_xattr(dir) {
            Ok(list) => list,
            Err(errno) if is_absent(errno) => return Ok(DirMarks::default()),
            Err(errno) => return Err(errno),
        };
        let listed = |name: &str| list.split(|byte| *byte == 0).any(|one| one == name.as_bytes());
        let own = Mark::Opaque.name(self.namespace);
        let others = [format!("{}opaque", self.namespace.other()), "user.fuseoverlayfs.opaque".to_owned()];
        let mut found = None;
        for name in std::iter::once(own).chain(others).filter(|name| listed(name)) {
            found = found.or(value(dir, &name)?);
        }
        let opacity = match found.as_deref() {
            Some(b"y") => Opacity::Opaque,
            Some(b"x") => Opacity::Xwhiteouts,
            _ => Opacity::Transparent,
        };
        let redirected = listed(&Mark::Redirect.name(self.namespace));
        let redirect = if redirected { self.own_mark(dir, Mark::Redirect)? } else { None };
        Ok(DirMarks { opacity, redirect })
    }

    /// Whether an upper directory may hold objects that were copied up or moved there.
    pub(super) fn is_impure(&self, node: &Arc<Node>) -> Result<bool> {
        let Some(dir) = &node.dir else { return Ok(false) };
        super::node::known(&dir.impure, || {
            let fd = self.dir_fd(node, UPPER)?;
            Ok(self.mark(At::Fd(fd.as_fd()), Mark::Impure)?.is_some())
        })
    }

    /// Marks an upper directory as one that holds objects that were copied up or moved there.
    pub(super) fn set_impure(&self, node: &Arc<Node>, dir: &DirState) -> Result<()> {
        if self.is_impure(node)? {
            return Ok(());
        }
        let fd = self.dir_fd(node, UPPER)?;
        match self.set_mark(At::Fd(fd.as_fd()), Mark::Impure, b"y") {
            Err(errno) if !is_absent(errno) => return Err(errno),
            _ => dir.impure.store(2, Ordering::Relaxed),
        }
        self.note_change(node, At::Fd(fd.as_fd()));
        Ok(())
    }

    /// The value of a caller's attribute. `ENODATA` when there is none.
    pub fn getxattr(&self, id: super::NodeId, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.node(id)?;
        self.namespace.check(name)?;
        if is_options(id, name) {
            return self.show_options();
        }
        if self.lacks_xattr(&node, name)? {
            return Err(Errno::ENODATA);
        }
        match self.with_real(&node, |at, layer| sys::get_xattr(at, &self.name_on_disk(name, layer)?)) {
            // A layer without ACLs has none to show; to the kernel, any other error would mean that nobody may look.
            Err(Errno::ENOTSUP) if name == sys::ACL_ACCESS || name == sys::ACL_DEFAULT => Err(Errno::ENODATA),
            result => Ok(self.xattr_shown(name, result?)),
        }
    }

    /// The names of the attributes that the caller may see, each ended by a NUL.
    pub fn listxattr(&self, caller: &Caller, id: super::NodeId) -> Result<Vec<u8>> {
        let node = self.node(id)?;
        let list = self.list_xattrs(&node)?;
        if caller.uid == 0 && id != ROOT_ID {
            return Ok(list);
        }
        // As the kernel's ovl_can_list: trusted names are for the privileged.
        let may_see = |name: &[u8]| caller.uid == 0 || !name.starts_with(b"trusted.");
        let shown = |name: &&[u8]| {
            may_see(name) && !name.strip_suffix(&[0]).is_some_and(|name| is_options(id, OsStr::from_bytes(name)))
        };
        Ok(list.split_inclusive(|byte| *byte == 0).filter(shown).flatten().copied().collect())
    }

    /// Sets an attribute. `EEXIST` and `ENODATA` as `flags` (`XATTR_CREATE`, `XATTR_REPLACE`) ask for.
    pub fn setxattr(&self, id: super::NodeId, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
        let node = self.node(id)?;
        if is_options(id, name) {
            return Err(Errno::EPERM);
        }
        let changed = self.xattr_on_disk(name, value);
        let value = changed.as_deref().unwrap_or(value);
        let name = match self.name_on_disk(name, UPPER) {
            Err(Errno::ENODATA) if name == sys::ACL_ACCESS || name == sys::ACL_DEFAULT => return Err(Errno::ENOTSUP),
            Err(Errno::ENODATA) => return Err(Errno::EPERM),
            result => result?,
        };
        self.copy_up(&node)?;
        self.with_real(&node, |at, _| sys::set_xattr(at, &name, value, flags))?;
        self.xattr_changed(&node, &name);
        Ok(())
    }

    /// Removes an attribute. `ENODATA` when there is none, without a copy-up.
    pub fn removexattr(&self, caller: &Caller, id: super::NodeId, name: &OsStr) -> Result<()> {
        let node = self.node(id)?;
        if is_options(id, name) {
            return Err(Errno::EPERM);
        }
        if name == sys::ACL_ACCESS {
            self.clear_sgid_of_stranger(caller, &node)?;
        }
        let was_lower = !node.in_upper();
        let result = self.remove_real_xattr(&node, name);
        // An ACL that is not there is removed from an upper object without an error, as by the kernel.
        if result == Err(Errno::ENODATA) && !was_lower && (*name == *sys::ACL_ACCESS || *name == *sys::ACL_DEFAULT) {
            return Ok(());
        }
        result?;
        if name == super::xattr_known::CAPABILITY {
            self.capability_dropped.store(id, Ordering::Relaxed);
        }
        self.xattr_changed(&node, name);
        Ok(())
    }

    fn remove_real_xattr(&self, node: &Arc<Node>, name: &OsStr) -> Result<()> {
        if !node.in_upper() {
            self.with_real(node, |at, layer| sys::get_xattr(at, &self.name_on_disk(name, layer)?))?;
            self.copy_up(node)?;
        }
        self.with_real(node, |at, layer| sys::remove_xattr(at, &self.name_on_disk(name, layer)?))
    }

    fn xattr_changed(&self, node: &Arc<Node>, name: &OsStr) {
        node.xattrs.forget();
        let noted = self.with_real(node, |at, _| {
            self.note_change(node, at);
            Ok(())
        });
        if let Err(errno) = noted {
            log::debug!("node {}: {errno}", node.id);
        }
        if name == sys::ACL_DEFAULT
            && let Some(dir) = &node.dir
        {
            dir.default_acl.store(0, Ordering::Relaxed);
        }
    }

    /// Copies the attributes of a lower object to its copy, but for the overlay's own. What the upper's file system
    /// cannot hold is left behind, as the kernel does, unless it bears on security.
    pub(super) fn copy_xattrs(&self, from: At<'_>, to: At<'_>, layer: LayerIndex) -> Result<()> {
        let list = match sys::list_xattr(from) {
            Ok(list) => list,
            // Whatever else it says, there may be some, which must not be lost.
            Err(Errno::ENOTSUP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let mut names: Vec<&[u8]> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        // ACLs last: they change the mode, and a mode without write permission refuses the rest to who is not root.
        names.sort_by_key(|name| name.starts_with(b"system.posix_acl_"));
        for name in names {
            let Some(shown) = self.shown_name(name, layer) else { continue };
            let Ok(copy) = self.name_on_disk(OsStr::from_bytes(&shown), UPPER) else { continue };
            let name = OsStr::from_bytes(name);
            let value = match sys::get_xattr(from, name) {
                Ok(value) => value,
                Err(Errno::ENODATA) => continue,
                Err(errno) => return Err(errno),
            };
            match sys::set_xattr(to, &copy, &value, 0) {
                Ok(()) => {}
                Err(errno @ (Errno::ENOTSUP | Errno::EPERM))
                    if !name.as_bytes().starts_with(b"system.posix_acl_") || errno == Errno::ENOTSUP =>
                {
                    log::warn!("layer {layer}: xattr {} cannot be copied up: {errno}", name.to_string_lossy());
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nested_overlays_are_escaped_once_per_level() {
        let ns = Namespace::Trusted;
        assert_eq!(ns.escape(OsStr::new("trusted.overlay.opaque")), "trusted.overlay.overlay.opaque");
        assert_eq!(ns.unescape(b"trusted.overlay.overlay.opaque"), Some(b"trusted.overlay.opaque".to_vec()));
        assert_eq!(ns.unescape(b"trusted.overlay.opaque"), None);
        assert_eq!(ns.escape(OsStr::new("user.mime")), "user.mime");
    }

    #[test]
    fn marks_of_the_other_namespace_are_hidden_but_not_what_only_looks_alike() {
        assert_eq!(Namespace::Trusted.unescape(b"user.overlay.opaque"), None);
        assert!(Namespace::Trusted.unescape(b"user.overlay.mine").is_some());
        assert_eq!(Namespace::User.unescape(b"user.overlay.anything"), None);
        assert_eq!(Namespace::User.unescape(b"user.fuseoverlayfs.opaque"), None);
    }

    #[test]
    fn no_name_of_a_callers_is_read_as_a_mark() {
        for ns in [Namespace::Trusted, Namespace::User] {
            for prefix in [TRUSTED, USER, FUSE_OVERLAYFS] {
                for escapes in 0..3 {
                    for mark in MARKS.iter().chain(&["mine"]) {
                        let name = format!("{prefix}{}{mark}", "overlay.".repeat(escapes));
                        let disk = ns.escape(OsStr::new(&name));
                        let marks = |prefix: &str| MARKS.iter().any(|mark| *disk == *format!("{prefix}{mark}"));
                        assert!(![TRUSTED, USER, FUSE_OVERLAYFS].into_iter().any(marks), "{name} is {disk:?}");
                        assert_eq!(ns.unescape(disk.as_bytes()), Some(name.into_bytes()));
                    }
                }
            }
        }
    }
}
