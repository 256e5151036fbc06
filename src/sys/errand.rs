//! Calls into the mount that this very process serves: recognising it, writing it back, detaching it.
//!
//! Each is made by a process of its own that holds no descriptor. Were it made by a thread of ours and we were killed
//! meanwhile, that thread would wait for ever, and past all signals, for an answer that nobody gives any more, and would
//! keep the connection from ending by waiting.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::mounts::{self, MountId};
use super::namespace;
use super::process::{Child, Ending};

/// How hard a mount is pulled off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Only if nobody uses it (`EBUSY` else).
    WhenIdle,
    /// Out of the tree now, gone when the last user leaves it.
    Lazily,
    /// As `Lazily`, and what is waiting for the server fails at once.
    Forcibly,
}

/// One call, made on a path.
enum Errand {
    /// umount2(2) with these flags.
    Unmount(libc::c_int),
    /// syncfs(2).
    Sync,
    /// Nothing, if this mount is there; `EINVAL` else.
    Recognise(MountId),
}

/// Waits for the end of an errand.
fn answer_of(errand: Child) -> io::Result<()> {
    match errand.wait()? {
        Ending::Exit(0) => Ok(()),
        Ending::Exit(errno) => Err(io::Error::from_raw_os_error(errno)),
        Ending::Killed(_) => Err(io::Error::from_raw_os_error(libc::EINTR)),
    }
}

impl Errand {
    /// Runs it on a path and waits for its answer.
    fn run(&self, path: &Path) -> io::Result<()> {
        answer_of(self.start(path)?)
    }

    /// Sends it out on a path, in the namespace where the mount is.
    fn start(&self, path: &Path) -> io::Result<Child> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let home = namespace::home()?;
        // SAFETY: other threads may hold locks at this moment, so the child may only make system calls and touch what was
        // prepared before; `in_child` does nothing else, and it ends in _exit.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: as above.
            0 => unsafe { self.in_child(&path, home.as_ref()) },
            pid => Child::of(pid),
        }
    }

    /// The child's whole life. The exit status is the errno: all of them are below 256.
    ///
    /// # Safety
    /// Only to be called in a process that was just forked: it closes every descriptor.
    unsafe fn in_child(&self, path: &CStr, home: Option<&OwnedFd>) -> ! {
        // SAFETY: system calls on valid arguments only; the process ends here.
        unsafe {
            if home.is_some_and(|home| libc::setns(home.as_raw_fd(), libc::CLONE_NEWNS) != 0) {
                libc::_exit(*libc::__errno_location());
            }
            if libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) != 0 {
                (0..65536).for_each(|descriptor| {
                    libc::close(descriptor);
                });
            }
            let answer = match self {
                Errand::Unmount(flags) => libc::umount2(path.as_ptr(), *flags),
                Errand::Sync => {
                    match libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW) {
                        -1 => -1,
                        root => libc::syncfs(root),
                    }
                }
                Errand::Recognise(known) => {
                    libc::_exit(if mounts::mount_id(path).is_ok_and(|found| found.is_same(known)) {
                        0
                    } else {
                        libc::EINVAL
                    });
                }
            };
            libc::_exit(if answer == 0 { 0 } else { *libc::__errno_location() })
        }
    }
}

/// Detaches the mount at a path, umount2(2). The path's last component is not followed and not asked anything.
///
/// # Errors
/// `EBUSY`, `EPERM`, and `EINVAL` if nothing is mounted there.
pub fn unmount(target: &Path, how: Detach) -> io::Result<()> {
    Errand::Unmount(match how {
        Detach::WhenIdle => libc::UMOUNT_NOFOLLOW,
        Detach::Lazily => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH,
        Detach::Forcibly => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH | libc::MNT_FORCE,
    })
    .run(target)
}

/// Whether this mount is the one at the end of a path, in the namespace where it was mounted.
#[must_use]
pub fn is_there(mount_point: &Path, id: MountId) -> bool {
    // Mostly it is not, and then nobody has to go and look.
    id.is_gone() != Some(true) && Errand::Recognise(id).run(mount_point).is_ok()
}

/// Writes back everything that the kernel still holds for the file system mounted at a path.
///
/// # Errors
/// What the file system answers to opening its root or to the writes.
pub fn sync_mount(mount_point: &Path) -> io::Result<()> {
    Errand::Sync.run(mount_point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_brings_back_the_errno() {
        let nowhere = Path::new("/nonexistent");
        assert_eq!(sync_mount(nowhere).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(unmount(nowhere, Detach::Lazily).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        sync_mount(Path::new("/")).unwrap();
    }
}
