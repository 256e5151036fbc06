//! What a thread has for itself where others share it with their process: umask and working directory (`CLONE_FS`,
//! `unshare(2)`).
//!
//! Nothing here depends on these being shared, and no path is relative to the directory of a process that serves.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use rustix::fs::Mode;
use rustix::process::{chdir, fchdir};

use crate::errno::{Errno, Result};

thread_local! {
    /// Whether the thread has its own.
    static OWN: Cell<bool> = const { Cell::new(false) };
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Gives the calling thread its own, once.
fn have_own() -> Result<()> {
    if OWN.get() {
        return Ok(());
    }
    // SAFETY: neither memory nor descriptors become others' by it.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(Errno::from(std::io::Error::last_os_error()));
    }
    OWN.set(true);
    Ok(())
}

/// Sets the umask of the calling thread alone, which keeps it for the next request.
pub fn set_umask(mask: u32) -> Result<()> {
    if UMASK.get() == Some(mask) {
        return Ok(());
    }
    have_own()?;
    rustix::process::umask(Mode::from_raw_mode(mask & 0o7777));
    UMASK.set(Some(mask));
    Ok(())
}

/// Calls `f` with a directory as the working directory of the calling thread alone, for calls that take nothing but a path:
/// `.` is found in a third of the time of `/proc/self/fd/N`, for which inodes are made. Afterwards that is the root, so
/// that no layer is held by it.
///
/// # Errors
/// `EACCES` for who may not search the directory, `EPERM` where threads may not have their own; `f` is not called then.
pub(super) fn within<T>(dir: BorrowedFd<'_>, f: impl FnOnce() -> T) -> Result<T> {
    have_own()?;
    fchdir(dir)?;
    let result = f();
    if let Err(errno) = chdir("/") {
        log::warn!("a thread stays in a directory of a layer: {errno}");
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_directory_is_the_threads_own_and_not_kept() {
        let before = std::env::current_dir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("here"), "").unwrap();
        let opened = std::fs::File::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let there = within(opened.as_fd(), || std::fs::exists("here").unwrap());
                assert_eq!(there, Ok(true));
                assert_eq!(std::env::current_dir().unwrap(), std::path::Path::new("/"));
            });
        });
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
