//! Watching directories: `inotify(7)`.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::thread::within;
use crate::errno::{Errno, Result};

/// The number of a watch within its instance.
pub type WatchId = i32;

/// What happened in a watched directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Happening {
    /// A name came or went.
    Name,
    /// The object of a name, or the directory itself, changed.
    Change,
    /// The watch is gone, with its directory or by request.
    Ended,
    /// Events were lost.
    Overflow,
}

/// An instance: a queue of events.
#[derive(Debug)]
pub struct Inotify(OwnedFd);

impl Inotify {
    /// A new instance. `EMFILE` when the user has as many as may be.
    pub fn new() -> Result<Inotify> {
        Ok(Inotify(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?))
    }

    /// Watches a directory, and leaves the calling thread in the root directory. `ENOSPC` when the user has as many watches as
    /// may be.
    pub fn add(&self, dir: BorrowedFd<'_>) -> Result<WatchId> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        match within(dir, || inotify::add_watch(&self.0, c".", flags)) {
            Ok(added) => Ok(added?),
            // Who may read it and not search it goes the long way.
            Err(_) => Ok(inotify::add_watch(&self.0, format!("/proc/self/fd/{}", dir.as_raw_fd()), flags)?),
        }
    }

    /// Ends a watch. One that has ended by itself is none to end.
    pub fn remove(&self, watch: WatchId) -> Result<()> {
        match inotify::remove_watch(&self.0, watch) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Calls `each` for every event that has come, without waiting.
    pub fn drain(&self, mut each: impl FnMut(WatchId, Happening, Option<&OsStr>)) -> Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.0, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let names = ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
            let what = match event.events() {
                e if e.contains(ReadFlags::QUEUE_OVERFLOW) => Happening::Overflow,
                e if e.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) => Happening::Ended,
                e if e.intersects(names) => Happening::Name,
                _ => Happening::Change,
            };
            each(event.wd(), what, event.file_name().map(|name| OsStr::from_bytes(name.to_bytes())));
        }
    }
}

/// Waits until one of the instances has events, at most so long.
pub fn wait_for_events(instances: &[&Inotify], longest: Duration) -> Result<()> {
    let mut fds: Vec<PollFd<'_>> =
        instances.iter().map(|one| PollFd::from_borrowed_fd(one.0.as_fd(), PollFlags::IN)).collect();
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(longest.as_secs()).unwrap_or(1),
        tv_nsec: i64::from(longest.subsec_nanos()),
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(Errno::from(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_may_be_read_and_not_searched_is_watched() {
        let base = tempfile::tempdir().unwrap();
        let (open, shut) = (base.path().join("open"), base.path().join("shut"));
        let inotify = Inotify::new().unwrap();
        for (dir, mode) in [(&open, 0o755), (&shut, 0o444)] {
            std::fs::create_dir(dir).unwrap();
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
            let watch = inotify.add(std::fs::File::open(dir).unwrap().as_fd()).unwrap();
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::write(dir.join("name"), "").unwrap();
            let mut seen = Vec::new();
            inotify.drain(|of, what, name| seen.push((of, what, name.map(OsStr::to_owned)))).unwrap();
            assert!(seen.contains(&(watch, Happening::Name, Some("name".into()))), "{mode:o}: {seen:?}");
        }
    }
}
