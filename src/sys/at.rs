//! Objects by directory descriptor and name: open, stat, make, remove, rename.
//!
//! Answers to `openat(2)`, `statx(2)`, `renameat2(2)`, `fchmodat2(2)`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags};
use rustix::io::retry_on_intr;
use rustix::path::Arg;

use super::faults::gate;
use crate::errno::{Errno, Result};

/// Where an object is: a name in a directory, or a descriptor of the object itself (which may be `O_PATH`).
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// A name in a directory. The last component is never followed if it is a symlink.
    Name(BorrowedFd<'a>, &'a OsStr),
    /// The object that a descriptor refers to.
    Fd(BorrowedFd<'a>),
}

impl<'a> At<'a> {
    /// Descriptor, name and flags as the `*at` calls take them.
    fn parts(self) -> (BorrowedFd<'a>, &'a OsStr, AtFlags) {
        match self {
            At::Name(dir, name) => (dir, name, AtFlags::SYMLINK_NOFOLLOW),
            At::Fd(fd) => (fd, OsStr::new(""), AtFlags::EMPTY_PATH),
        }
    }

    /// The same with `SYMLINK_NOFOLLOW` for descriptors too, for calls that take raw flags.
    pub(super) fn raw_parts(self) -> (BorrowedFd<'a>, &'a OsStr, libc::c_int) {
        match self {
            At::Name(dir, name) => (dir, name, libc::AT_SYMLINK_NOFOLLOW),
            At::Fd(fd) => (fd, OsStr::new(""), libc::AT_EMPTY_PATH),
        }
    }

    /// The magic link that names the object, for kernels that lack the call that takes a descriptor.
    pub(super) fn with_proc_path<T>(self, f: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        match self {
            At::Fd(fd) => f(&format!("/proc/self/fd/{}", fd.as_raw_fd())),
            At::Name(dir, name) => {
                let fd = open(dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
                f(&format!("/proc/self/fd/{}", fd.as_raw_fd()))
            }
        }
    }
}

/// The device number of a file system, as `st_dev` gives it.
pub type Dev = u64;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl Kind {
    /// The kind that the file type bits of a mode say; bits that say nothing count as a regular file.
    #[must_use]
    pub fn of_mode(mode: u32) -> Kind {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Dir,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::Char,
            libc::S_IFBLK => Kind::Block,
            _ => Kind::File,
        }
    }

    /// The file type bits of a mode.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::File => libc::S_IFREG,
            Kind::Dir => libc::S_IFDIR,
            Kind::Symlink => libc::S_IFLNK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
            Kind::Char => libc::S_IFCHR,
            Kind::Block => libc::S_IFBLK,
        }
    }

    /// The kind that a `d_type` says, if it says one.
    #[must_use]
    pub fn of_dirent(d_type: u8) -> Option<Kind> {
        match d_type {
            0 => None,
            t => Some(Kind::of_mode(u32::from(t) << 12)),
        }
    }
}

/// A point in time: seconds since the epoch (negative before it) and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since the epoch.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

/// How one timestamp is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it (`UTIME_OMIT`).
    Omit,
    /// The current time (`UTIME_NOW`).
    Now,
    /// This time.
    At(Time),
}

impl SetTime {
    fn timespec(self) -> fs::Timespec {
        match self {
            SetTime::Omit => fs::Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT as _ },
            SetTime::Now => fs::Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW as _ },
            SetTime::At(t) => fs::Timespec { tv_sec: t.sec, tv_nsec: i64::from(t.nsec) as _ },
        }
    }
}

/// The attributes of an object, as `statx(2)` gives them.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Device of the file system that holds the object.
    pub dev: Dev,
    /// Number of the mount through which it was found; 0 where the kernel does not tell (before Linux 5.8).
    pub mount: u64,
    /// Inode number.
    pub ino: u64,
    /// File type and permission bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as `makedev(3)` packs it.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space used, in blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of an I/O, in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation, where the file system keeps it.
    pub btime: Option<Time>,
}

impl Stat {
    /// What the object is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::of_mode(self.mode)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == Kind::Dir
    }

    /// Whether it is a character device numbered 0/0.
    #[must_use]
    pub fn is_null_device(&self) -> bool {
        self.kind() == Kind::Char && self.rdev == 0
    }
}

/// A device number from its parts.
#[must_use]
pub fn make_dev(major: u32, minor: u32) -> u64 {
    fs::makedev(major, minor)
}

/// The parts of a device number: major, minor.
#[must_use]
pub fn split_dev(dev: u64) -> (u32, u32) {
    (fs::major(dev), fs::minor(dev))
}

/// The attributes of an object. `ENOENT` when it is not there.
pub fn stat(at: At<'_>) -> Result<Stat> {
    gate("statx")?;
    let (fd, name, flags) = at.parts();
    let x = retry_on_intr(|| {
        fs::statx(
            fd,
            name,
            flags | AtFlags::NO_AUTOMOUNT,
            StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID,
        )
    })?;
    let time = |t: fs::StatxTimestamp| Time { sec: t.tv_sec, nsec: t.tv_nsec };
    Ok(Stat {
        dev: fs::makedev(x.stx_dev_major, x.stx_dev_minor),
        mount: x.stx_mnt_id,
        ino: x.stx_ino,
        mode: u32::from(x.stx_mode),
        nlink: x.stx_nlink,
        uid: x.stx_uid,
        gid: x.stx_gid,
        rdev: fs::makedev(x.stx_rdev_major, x.stx_rdev_minor),
        size: x.stx_size,
        blocks: x.stx_blocks,
        blksize: x.stx_blksize,
        atime: time(x.stx_atime),
        mtime: time(x.stx_mtime),
        ctime: time(x.stx_ctime),
        btime: StatxFlags::from_bits_retain(x.stx_mask).contains(StatxFlags::BTIME).then(|| time(x.stx_btime)),
    })
}

/// Set once the kernel has said that it has no `openat2(2)`.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens a name in a directory; adds `O_CLOEXEC` and `O_NOFOLLOW`. `ELOOP` when the name is a symlink (unless `O_PATH`),
/// `EXDEV` when something is mounted on it.
pub fn open(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    gate("openat")?;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if !NO_OPENAT2.load(Ordering::Relaxed) {
        match retry_on_intr(|| fs::openat2(dir, name, flags, mode, ResolveFlags::NO_XDEV)) {
            Err(rustix::io::Errno::NOSYS) => NO_OPENAT2.store(true, Ordering::Relaxed),
            // Perhaps a sandbox that does not know the call. For O_NOATIME it is an answer.
            Err(rustix::io::Errno::PERM) if !flags.contains(OFlags::NOATIME) => {}
            result => return Ok(result?),
        }
    }
    Ok(retry_on_intr(|| fs::openat(dir, name, flags, mode))?)
}

/// Opens the directory above another, `O_PATH`.
pub fn open_parent(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    gate("openat")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(retry_on_intr(|| fs::openat(dir, "..", flags, Mode::empty()))?)
}

/// Opens a directory by name, for reading where that is allowed and with `O_PATH` where it is not.
pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    match open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
        Err(Errno::EACCES) => open(dir, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()),
        result => result,
    }
}

/// Opens the object of a descriptor anew, with other flags. Works for `O_PATH` descriptors and unlinked files.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    gate("open")?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(retry_on_intr(|| fs::open(path.as_str(), flags | OFlags::CLOEXEC, Mode::empty()))?)
}

/// Makes a directory. The umask of the process applies.
pub fn mkdir(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    gate("mkdirat")?;
    Ok(fs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))?)
}

/// Makes a node of any kind but directory and symlink. The umask of the process applies.
pub fn mknod(dir: BorrowedFd<'_>, name: &OsStr, kind: Kind, mode: u32, rdev: u64) -> Result<()> {
    gate("mknodat")?;
    let kind = FileType::from_raw_mode(kind.mode_bits());
    Ok(fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), rdev)?)
}

/// Makes a symbolic link.
pub fn symlink(target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    gate("symlinkat")?;
    Ok(fs::symlinkat(target, dir, name)?)
}

/// The target of a symbolic link.
pub fn readlink(at: At<'_>) -> Result<std::ffi::OsString> {
    gate("readlinkat")?;
    let (fd, name, _) = at.parts();
    let target = fs::readlinkat(fd, name, Vec::new())?;
    Ok(std::ffi::OsString::from_vec(target.into_bytes()))
}

/// Set once the kernel has said that it links no descriptor of those who may not search all directories (before Linux 6.10).
static NO_LINK_OF_FD: AtomicBool = AtomicBool::new(false);

/// Gives an object another name. A descriptor needs to be linked somewhere still, or `ENOENT`.
pub fn link(from: At<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    gate("linkat")?;
    let fd = match from {
        At::Name(old_dir, old) => return Ok(fs::linkat(old_dir, old, dir, name, AtFlags::empty())?),
        At::Fd(fd) => fd,
    };
    if !NO_LINK_OF_FD.load(Ordering::Relaxed) {
        match fs::linkat(fd, "", dir, name, AtFlags::EMPTY_PATH) {
            // Or not linked anywhere any more: the other way tells.
            Err(rustix::io::Errno::NOENT) => {}
            result => return Ok(result?),
        }
    }
    // A walk through another file system, which takes half as long as the linking itself.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fs::linkat(rustix::fs::CWD, path.as_str(), dir, name, AtFlags::SYMLINK_FOLLOW)?;
    NO_LINK_OF_FD.store(true, Ordering::Relaxed);
    Ok(())
}

/// Removes a name that is not a directory.
pub fn unlink(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    gate("unlinkat")?;
    Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes an empty directory.
pub fn rmdir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    gate("rmdir")?;
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Renames, replacing what is there.
pub fn renamed(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> Result<()> {
    rename(from, to, RenameFlags::empty())
}

/// Renames with flags, in one step. `EINVAL` when the file system does not know a flag.
pub fn rename(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr), flags: RenameFlags) -> Result<()> {
    gate(if flags.contains(RenameFlags::WHITEOUT) { "rename whiteout" } else { "renameat2" })?;
    Ok(fs::renameat_with(from.0, from.1, to.0, to.1, flags)?)
}

/// Changes owner and group; `None` leaves one as it is.
pub fn chown(at: At<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    gate("fchownat")?;
    let (fd, name, flags) = at.parts();
    Ok(fs::chownat(fd, name, uid.map(fs::Uid::from_raw), gid.map(fs::Gid::from_raw), flags)?)
}

/// Changes the permission bits. Never through a symlink: `ENOTSUP` for one.
pub fn chmod(at: At<'_>, mode: u32) -> Result<()> {
    gate("fchmodat2")?;
    let (fd, name, flags) = at.raw_parts();
    let mode = mode & 0o7777;
    let result = name
        .into_with_c_str(|name| {
            // SAFETY: fchmodat2(2) reads the NUL-terminated name, which lives through the call, and nothing else.
            let r = unsafe { libc::syscall(libc::SYS_fchmodat2, fd.as_raw_fd(), name.as_ptr(), mode, flags) };
            Ok(if r == 0 { Ok(()) } else { Err(Errno::from(std::io::Error::last_os_error())) })
        })
        .map_err(Errno::from)?;
    match result {
        // Before Linux 6.6, or in a seccomp sandbox that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => at.with_proc_path(|path| {
            Ok(fs::chmodat(rustix::fs::CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?)
        }),
        result => result,
    }
}

/// Sets access and modification time.
pub fn set_times(at: At<'_>, atime: SetTime, mtime: SetTime) -> Result<()> {
    gate("utimensat")?;
    let (fd, name, flags) = at.parts();
    let times = fs::Timestamps { last_access: atime.timespec(), last_modification: mtime.timespec() };
    Ok(fs::utimensat(fd, name, &times, flags)?)
}

/// The size and use of a file system, in units of `frsize` bytes.
#[derive(Clone, Copy, Debug)]
pub struct FsStat {
    /// Size of the file system.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for the unprivileged.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of an I/O, in bytes.
    pub bsize: u32,
    /// Unit of the block counts, in bytes.
    pub frsize: u32,
    /// Longest name, in bytes.
    pub namelen: u32,
}

/// What `fstatfs(2)` says.
pub fn statfs(fd: impl AsFd) -> Result<FsStat> {
    gate("fstatfs")?;
    let s = retry_on_intr(|| fs::fstatvfs(fd.as_fd()))?;
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(FsStat {
        blocks: s.f_blocks,
        bfree: s.f_bfree,
        bavail: s.f_bavail,
        files: s.f_files,
        ffree: s.f_ffree,
        bsize: narrow(s.f_bsize),
        frsize: narrow(s.f_frsize),
        namelen: narrow(s.f_namemax),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_descriptor_refers_to_gets_names_as_long_as_it_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let above = std::fs::File::open(dir.path()).unwrap();
        let (first, second, third) = (OsStr::new("first"), OsStr::new("second"), OsStr::new("third"));
        mknod(above.as_fd(), first, Kind::Fifo, 0o600, 0).unwrap();
        let object = open(above.as_fd(), first, OFlags::PATH, Mode::empty()).unwrap();
        let link_to = |name| link(At::Fd(object.as_fd()), above.as_fd(), name);
        for known_not_to_work in [false, true] {
            NO_LINK_OF_FD.store(known_not_to_work, Ordering::Relaxed);
            link_to(second).unwrap();
            assert_eq!(link_to(second), Err(Errno::EEXIST));
            assert_eq!(stat(At::Name(above.as_fd(), second)).unwrap().ino, stat(At::Fd(object.as_fd())).unwrap().ino);
            unlink(above.as_fd(), second).unwrap();
        }
        unlink(above.as_fd(), first).unwrap();
        for known_not_to_work in [false, true] {
            NO_LINK_OF_FD.store(known_not_to_work, Ordering::Relaxed);
            assert_eq!(link_to(third), Err(Errno::ENOENT));
        }
        NO_LINK_OF_FD.store(false, Ordering::Relaxed);
    }
}
