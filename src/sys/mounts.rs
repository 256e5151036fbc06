//! What is mounted, as the kernel tells without a text of all of it: statmount(2), listmount(2) (Linux 6.8).
//!
//! A text like `/proc/self/mountinfo` takes some microseconds for each mount, and a machine with containers has hundreds.
//!
//! Must never: answer from a kernel that does not tell all that was asked for. Then there is no answer.

use std::io;
use std::mem::MaybeUninit;

use rustix::fs::{AtFlags, CWD, StatxFlags};

/// The same numbers on all machines.
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;

/// Instead of a mount: all of the namespace.
const LSMT_ROOT: u64 = u64::MAX;

/// What is asked for.
const SB_BASIC: u64 = 0x01;
const MNT_POINT: u64 = 0x10;
const MNT_NS_ID: u64 = 0x40;
const MNT_OPTS: u64 = 0x80;

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY: u64 = 0x794c_7630;

/// Where fields lie in `struct statmount`, in bytes; the texts follow the last.
const MASK: usize = 8;
const SB_MAGIC: usize = 24;
const OPTS: usize = 4;
const POINT: usize = 108;
const NAMESPACE: usize = 112;
const TEXTS: usize = 512;

/// `struct mnt_id_req`, of the version that can name a namespace (Linux 6.11).
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
    namespace: u64,
}

impl Request {
    fn new(mount: u64, param: u64, namespace: u64) -> Request {
        Request { size: 32, spare: 0, mount, param, namespace }
    }
}

/// What the kernel said of one mount.
struct Answer<const N: usize>([u8; N]);

impl<const N: usize> Answer<N> {
    /// Asks; the errno if there is no answer.
    fn of(mount: u64, namespace: u64, wanted: u64) -> Result<Answer<N>, i32> {
        let request = Request::new(mount, wanted, namespace);
        let mut space = [0u8; N];
        // SAFETY: the request has the size that it says, the space the length that is told; both outlive the call.
        let r = unsafe { libc::syscall(SYS_STATMOUNT, &raw const request, space.as_mut_ptr(), N, 0) };
        if r == 0 { Ok(Answer(space)) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    }

    fn number(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// A text whose place is told there.
    fn text(&self, at: usize) -> Option<Vec<u8>> {
        let place = self.0.get(at..).and_then(|rest| rest.first_chunk::<4>())?;
        let start = TEXTS + usize::try_from(u32::from_ne_bytes(*place)).ok()?;
        let rest = self.0.get(start..)?;
        rest.get(..rest.iter().position(|byte| *byte == 0)?).map(<[u8]>::to_vec)
    }

    fn has(&self, wanted: u64) -> bool {
        self.number(MASK) & wanted == wanted
    }
}

/// A mounted overlay of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct MountedOverlay {
    /// The options as mountinfo shows them, with its escapes.
    pub options: Vec<u8>,
    /// Where it is mounted.
    pub point: Vec<u8>,
}

/// The kernel's overlays that are mounted in this namespace; `None` if the kernel does not tell them all.
#[must_use]
pub fn overlays() -> Option<Vec<MountedOverlay>> {
    let mut found = Vec::new();
    let mut last = 0;
    loop {
        let request = Request::new(LSMT_ROOT, last, 0);
        let mut ids = [MaybeUninit::<u64>::uninit(); 256];
        // SAFETY: the request has the size that it says; there is room for as many numbers as are asked for.
        let r = unsafe { libc::syscall(SYS_LISTMOUNT, &raw const request, ids.as_mut_ptr(), ids.len(), 0) };
        let count = usize::try_from(r).ok()?;
        for id in ids.get(..count)? {
            // SAFETY: the kernel has written this many of them.
            last = unsafe { id.assume_init() };
            match Answer::<TEXTS>::of(last, 0, SB_BASIC) {
                Ok(answer) if !answer.has(SB_BASIC) => return None,
                Ok(answer) if answer.number(SB_MAGIC) == OVERLAY => found.extend(overlay(last)?),
                // Unmounted meanwhile.
                Ok(_) | Err(libc::ENOENT) => {}
                Err(_) => return None,
            }
        }
        if count < ids.len() {
            return Some(found);
        }
    }
}

/// What is to know of an overlay. The outer `None`: the kernel does not tell; the inner one: it is gone.
fn overlay(mount: u64) -> Option<Option<MountedOverlay>> {
    // Texts of two pages at most, as the options of mount(2) are one; larger ones are no answer.
    match Answer::<{ TEXTS + 8192 }>::of(mount, 0, MNT_POINT | MNT_OPTS) {
        Ok(answer) if answer.has(MNT_POINT | MNT_OPTS) => {
            let (options, point) = (answer.text(OPTS)?, answer.text(POINT)?);
            Some(Some(MountedOverlay { options, point }))
        }
        Err(libc::ENOENT) => Some(None),
        Ok(_) | Err(_) => None,
    }
}

/// The number of the namespace that a mount is in, by the mount's unique number. `None` if the kernel does not tell.
fn namespace_of(mount: u64) -> Option<u64> {
    let answer = Answer::<TEXTS>::of(mount, 0, MNT_NS_ID).ok()?;
    answer.has(MNT_NS_ID).then(|| answer.number(NAMESPACE))
}

/// Whether a mount is in a namespace. `None` if the kernel does not tell, or not us.
fn is_in(mount: u64, namespace: u64) -> Option<bool> {
    match Answer::<TEXTS>::of(mount, namespace, SB_BASIC) {
        Ok(_) => Some(true),
        Err(libc::ENOENT) => Some(false),
        Err(_) => None,
    }
}

/// Which mount a path leads to. Two mounts that follow each other at one path differ.
#[derive(Clone, Copy, Debug)]
pub struct MountId {
    number: u64,
    /// The namespace that it is in, if the kernel can be asked whether it still is.
    namespace: Option<u64>,
}

impl MountId {
    /// Whether the mount has gone from its namespace, wherever this process is now; `None` if the kernel does not tell.
    pub(super) fn is_gone(&self) -> Option<bool> {
        is_in(self.number, self.namespace?).map(|there| !there)
    }

    /// Whether both are the same mount.
    #[must_use]
    pub fn is_same(&self, other: &MountId) -> bool {
        self.number == other.number
    }

    /// The same, where the kernel tells this process of the mount, which is there. It tells nothing to those who may not know,
    /// as of what is gone.
    #[must_use]
    pub fn as_told(self) -> MountId {
        MountId { namespace: self.namespace.filter(|_| self.is_gone() == Some(false)), ..self }
    }
}

/// The mount at the end of a path, without asking the server behind it for anything.
///
/// # Errors
/// What walking the path gives; `ENOTSUP` before Linux 5.8.
pub fn mount_id(path: impl rustix::path::Arg) -> io::Result<MountId> {
    // STATX_MNT_ID_UNIQUE (Linux 6.8): never reused, where the plain number is at once. Either flag alone is no attribute
    // of the file, so AT_STATX_DONT_SYNC is answered from what the kernel knows.
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let answer = rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID | UNIQUE)?;
    if answer.stx_mask & (StatxFlags::MNT_ID | UNIQUE).bits() == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOTSUP));
    }
    let namespace = namespace_of(answer.stx_mnt_id);
    Ok(MountId { number: answer.stx_mnt_id, namespace })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn mounts_are_told_apart() {
        let id = |path| mount_id(Path::new(path)).unwrap();
        assert!(id("/proc").is_same(&id("/proc")));
        assert!(!id("/proc").is_same(&id("/sys")));
        assert_ne!(id("/proc").is_gone(), Some(true));
        assert_ne!(id("/proc").as_told().is_gone(), Some(true));
    }

    #[test]
    fn the_kernel_tells_what_mountinfo_tells() {
        let Some(overlays) = overlays() else {
            eprintln!("skipped: this kernel has no statmount(2)");
            return;
        };
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(" - overlay ")).collect();
        assert_eq!(overlays.len(), lines.len(), "{overlays:?}\n{lines:?}");
        for overlay in &overlays {
            let options = String::from_utf8(overlay.options.clone()).unwrap();
            assert!(lines.iter().any(|line| line.ends_with(&options)), "{options}\n{lines:?}");
        }
    }

    #[test]
    fn a_text_is_found_where_it_is_said_to_be() {
        let mut answer = Answer([0; TEXTS + 16]);
        answer.0[OPTS..OPTS + 4].copy_from_slice(&3u32.to_ne_bytes());
        answer.0[TEXTS..TEXTS + 9].copy_from_slice(b"ab\0lower\0");
        assert_eq!(answer.text(OPTS), Some(b"lower".to_vec()));
        answer.0[OPTS..OPTS + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(answer.text(OPTS), None);
    }
}
