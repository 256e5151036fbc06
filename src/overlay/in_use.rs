//! Whether upper and work directory are free for a union: not within each other, and nobody else's.
//!
//! Answers to the kernel's `ovl_workdir_ok` and to its marks for inodes in use, which show nowhere: the options of its mounts do.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::layer::Layer;
use crate::errno::Errno;
use crate::sys::mounts::MountedOverlay;
use crate::sys::{self, AsFd, At, Mode, OFlags, Stat};

/// How long a mount that was unmounted may need to let go of its layers.
const LEAVING: std::time::Duration = std::time::Duration::from_secs(1);

/// How upper and work directory lie to each other.
pub(super) enum Relation {
    /// Neither is in the other.
    Apart,
    /// The work directory is the upper or lies inside it.
    WorkInUpper,
    /// The upper lies inside the work directory.
    UpperInWork,
}

/// How they lie to each other, found by going up from both.
pub(super) fn relation(upper: &Layer, up: &Stat, work: &Layer, wd: &Stat) -> Relation {
    if up.ino == wd.ino {
        return Relation::WorkInUpper;
    }
    // Mostly they stand side by side; then neither is above the other.
    if parent(upper).is_some_and(|above| parent(work) == Some(above)) {
        return Relation::Apart;
    }
    if is_below(work, up) {
        return Relation::WorkInUpper;
    }
    if is_below(upper, wd) { Relation::UpperInWork } else { Relation::Apart }
}

/// Which directory a layer is in, unless something is mounted in between: then going up may come by it again.
fn parent(layer: &Layer) -> Option<(u64, u64)> {
    let above = sys::open_parent(layer.root.as_fd()).ok()?;
    let stat = sys::stat(At::Fd(above.as_fd())).ok()?;
    (stat.mount == layer.mount && stat.mount != 0).then_some((stat.dev, stat.ino))
}

/// Whether a directory lies below another, found by going up from it.
fn is_below(layer: &Layer, ancestor: &Stat) -> bool {
    let Ok(mut current) = sys::open_parent(layer.root.as_fd()) else { return false };
    let mut below = None;
    loop {
        let Ok(stat) = sys::stat(At::Fd(current.as_fd())) else { return false };
        if (stat.dev, stat.ino) == (ancestor.dev, ancestor.ino) {
            return true;
        }
        if below == Some((stat.dev, stat.ino)) {
            return false;
        }
        below = Some((stat.dev, stat.ino));
        match sys::open_parent(current.as_fd()) {
            Ok(parent) => current = parent,
            Err(_) => return false,
        }
    }
}

/// Locks a directory against other mounts. A mount that is just going away has a moment to do so.
pub(super) fn lock(dir: sys::BorrowedFd<'_>) -> crate::errno::Result<()> {
    let patience = std::time::Instant::now() + LEAVING;
    loop {
        match sys::lock_exclusive(dir) {
            Err(Errno::EAGAIN) if std::time::Instant::now() < patience => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// The mount point of a kernel overlay that has one of these directories as its upper or work directory.
pub(super) fn overlay_using(upper: &Stat, work: &Stat) -> Option<String> {
    let overlays = sys::mounts::overlays().or_else(overlays_in_mountinfo)?;
    let user = overlays.into_iter().find(|overlay| uses(&overlay.options, [upper, work]))?;
    Some(String::from_utf8_lossy(&user.point).into_owned())
}

/// What mountinfo says of them.
fn overlays_in_mountinfo() -> Option<Vec<MountedOverlay>> {
    let text = std::fs::read("/proc/self/mountinfo").ok()?;
    let overlay = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        if *fields.get(dash + 1)? != b"overlay" {
            return None;
        }
        Some(MountedOverlay { options: fields.get(dash + 3)?.to_vec(), point: unescape_octal(fields.get(4)?) })
    };
    Some(text.split(|byte| *byte == b'\n').filter_map(overlay).collect())
}

/// Whether an overlay with these options has one of the directories as its upper or work directory.
fn uses(options: &[u8], dirs: [&Stat; 2]) -> bool {
    let own = |option: &[u8]| {
        let path = option.strip_prefix(b"upperdir=").or(option.strip_prefix(b"workdir="))?;
        let path = OsString::from_vec(unescape_octal(path));
        // A relative one was meant from where somebody else stood.
        if path.as_encoded_bytes().first() != Some(&b'/') {
            return None;
        }
        let fd = rustix::fs::open(path.as_os_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let stat = sys::stat(At::Fd(fd.as_fd())).ok()?;
        dirs.iter().any(|dir| (dir.dev, dir.ino) == (stat.dev, stat.ino)).then_some(())
    };
    options.split(|byte| *byte == b',').any(|option| own(option).is_some())
}

/// Undoes the escapes of mountinfo: `\040` and the like.
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_are_undone() {
        assert_eq!(unescape_octal(br"/a\040b\134c\0"), br"/a b\c\0".to_vec());
    }
}
