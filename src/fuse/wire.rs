//! The messages of the FUSE protocol, as far as they are read and written here.
//!
//! Answers to `linux/fuse.h`, version 7.45. Reading takes bounds-checked values off the front of a message; writing appends
//! them to a buffer. Numbers are in the byte order of the machine.
//!
//! fuser 0.18 could do most of this, but its replies give every node the inode number as its number in the protocol (the
//! names of a lower file with several links share one inode number and are different nodes), hide the size of a listing's
//! buffer, and drop the flag with which the kernel asks for suid to be cleared.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::errno::{Errno, Result};
use crate::sys::{Kind, Stat, Time, split_dev};

/// What a request asks for.
#[allow(missing_docs)]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// What the kernel is told without being asked, in the place of an error.
#[allow(missing_docs)]
pub mod notify {
    pub const INVAL_ENTRY: u32 = 3;
    pub const RETRIEVE: u32 = 5;
    /// A flag of `INVAL_ENTRY`: the name is asked for again, not dropped.
    pub const EXPIRE_ONLY: u32 = 1;
}

/// The name of an operation, for messages.
#[must_use]
pub fn operation(code: u32) -> &'static str {
    const NAMES: [&str; 53] = [
        "?",
        "LOOKUP",
        "FORGET",
        "GETATTR",
        "SETATTR",
        "READLINK",
        "SYMLINK",
        "?",
        "MKNOD",
        "MKDIR",
        "UNLINK",
        "RMDIR",
        "RENAME",
        "LINK",
        "OPEN",
        "READ",
        "WRITE",
        "STATFS",
        "RELEASE",
        "?",
        "FSYNC",
        "SETXATTR",
        "GETXATTR",
        "LISTXATTR",
        "REMOVEXATTR",
        "FLUSH",
        "INIT",
        "OPENDIR",
        "READDIR",
        "RELEASEDIR",
        "FSYNCDIR",
        "GETLK",
        "SETLK",
        "SETLKW",
        "ACCESS",
        "CREATE",
        "INTERRUPT",
        "BMAP",
        "DESTROY",
        "IOCTL",
        "POLL",
        "NOTIFY_REPLY",
        "BATCH_FORGET",
        "FALLOCATE",
        "READDIRPLUS",
        "RENAME2",
        "LSEEK",
        "COPY_FILE_RANGE",
        "SETUPMAPPING",
        "REMOVEMAPPING",
        "SYNCFS",
        "TMPFILE",
        "STATX",
    ];
    NAMES.get(code as usize).copied().unwrap_or("?")
}

/// What every request begins with (`fuse_in_header`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// What is asked for.
    pub opcode: u32,
    /// The request's own number.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// Who asks.
    pub uid: u32,
    /// In which group.
    pub gid: u32,
    /// From which thread; 0 if it is the kernel itself, or one that this process cannot see.
    pub pid: u32,
}

/// What is left of a message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Errno::EIO)?;
        self.0 = tail;
        Ok(*head)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_ne_bytes(self.take()?))
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_ne_bytes(self.take()?))
    }

    /// The next name of an object in a directory. The kernel sends no other; it would lead out of the directory.
    pub fn name(&mut self) -> Result<&'a OsStr> {
        match self.text()? {
            name if matches!(name.as_bytes(), b"" | b"." | b"..") || name.as_bytes().contains(&b'/') => {
                Err(Errno::EINVAL)
            }
            name => Ok(name),
        }
    }

    /// The next bytes up to a NUL, which is taken, too.
    pub fn text(&mut self) -> Result<&'a OsStr> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::EIO)?;
        let (name, rest) = self.0.split_at_checked(end).ok_or(Errno::EIO)?;
        self.0 = rest.get(1..).unwrap_or_default();
        Ok(OsStr::from_bytes(name))
    }

    /// The next so many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Errno::EIO)?;
        self.0 = tail;
        Ok(head)
    }

    /// The header.
    pub fn header(&mut self) -> Result<Header> {
        let _length = self.u32()?;
        let header = Header {
            opcode: self.u32()?,
            unique: self.u64()?,
            node: self.u64()?,
            uid: self.u32()?,
            gid: self.u32()?,
            pid: self.u32()?,
        };
        let _extensions = self.u32()?;
        Ok(header)
    }
}

/// The size of `fuse_in_header`, in bytes.
pub const REQUEST_HEADER: usize = 40;

/// The size of `fuse_out_header`, in bytes.
pub const HEADER: u16 = 16;

/// A reply in the making.
pub trait Writer {
    /// Appends 16 bits.
    fn put_u16(&mut self, value: u16);
    /// Appends 32 bits.
    fn put_u32(&mut self, value: u32);
    /// Appends 64 bits.
    fn put_u64(&mut self, value: u64);

    /// Appends `fuse_out_header` for so many bytes that follow.
    fn put_out_header(&mut self, length: u32, error: u32, unique: u64) {
        self.put_u32(length.saturating_add(HEADER.into()));
        self.put_u32(error);
        self.put_u64(unique);
    }

    /// Appends `fuse_attr`.
    fn put_attr(&mut self, attr: &Stat) {
        for value in [attr.ino, attr.size, attr.blocks] {
            self.put_u64(value);
        }
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.put_u64(time.sec.cast_unsigned());
        }
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.put_u32(time.nsec);
        }
        for value in [attr.mode, attr.nlink, attr.uid, attr.gid, encode_dev(attr.rdev), attr.blksize, 0] {
            self.put_u32(value);
        }
    }

    /// Appends `fuse_attr_out`.
    fn put_attr_out(&mut self, attr: &Stat, lifetime: Duration) {
        self.put_u64(lifetime.as_secs());
        self.put_u32(lifetime.subsec_nanos());
        self.put_u32(0);
        self.put_attr(attr);
    }

    /// Appends `fuse_statx_out`: the attributes with the time of creation.
    fn put_statx(&mut self, attr: &Stat, lifetime: Duration) {
        self.put_u64(lifetime.as_secs());
        self.put_u32(lifetime.subsec_nanos());
        self.put_u32(0);
        self.put_u64(0);
        self.put_u64(0);
        let known = libc::STATX_BASIC_STATS | if attr.btime.is_some() { libc::STATX_BTIME } else { 0 };
        self.put_u32(known);
        self.put_u32(attr.blksize);
        self.put_u64(0);
        for value in [attr.nlink, attr.uid, attr.gid] {
            self.put_u32(value);
        }
        self.put_u16(u16::try_from(attr.mode).unwrap_or(0));
        self.put_u16(0);
        for value in [attr.ino, attr.size, attr.blocks, 0] {
            self.put_u64(value);
        }
        for time in [attr.atime, attr.btime.unwrap_or_default(), attr.ctime, attr.mtime] {
            self.put_u64(time.sec.cast_unsigned());
            self.put_u32(time.nsec);
            self.put_u32(0);
        }
        let (major, minor) = split_dev(attr.rdev);
        for value in [major, minor, 0, 0] {
            self.put_u32(value);
        }
        for _ in 0..14 {
            self.put_u64(0);
        }
    }

    /// Appends `fuse_open_out`, without a handle.
    fn put_open(&mut self, flags: u32, backing: u32) {
        self.put_u64(0);
        self.put_u32(flags);
        self.put_u32(backing);
    }

    /// Appends `fuse_entry_out`. A node number of 0 says that there is nothing, which is remembered as long.
    fn put_entry(&mut self, node: u64, attr: &Stat, entry_lifetime: Duration, attr_lifetime: Duration) {
        self.put_u64(node);
        self.put_u64(0);
        self.put_u64(entry_lifetime.as_secs());
        self.put_u64(attr_lifetime.as_secs());
        self.put_u32(entry_lifetime.subsec_nanos());
        self.put_u32(attr_lifetime.subsec_nanos());
        self.put_attr(attr);
    }
}

/// Whether the bytes go to memory of their own or onto the stack.
impl<B: Extend<u8>> Writer for B {
    fn put_u16(&mut self, value: u16) {
        self.extend(value.to_ne_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend(value.to_ne_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend(value.to_ne_bytes());
    }
}

/// How many bytes an entry of a listing takes (`fuse_dirent`), or of one with attributes (`fuse_direntplus`).
#[must_use]
pub fn dirent_size(name: &OsStr, plus: bool) -> usize {
    (24 + name.len()).next_multiple_of(8) + if plus { 128 } else { 0 }
}

/// Appends `fuse_dirent`.
pub fn put_dirent(out: &mut Vec<u8>, name: &OsStr, ino: u64, kind: Kind, cookie: u64) {
    out.put_u64(ino);
    out.put_u64(cookie);
    out.put_u32(u32::try_from(name.len()).unwrap_or(0));
    out.put_u32(kind.mode_bits() >> 12);
    out.extend_from_slice(name.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
}

/// A device number in the kernel's 32-bit encoding.
#[must_use]
pub fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = split_dev(dev);
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// A device number from the kernel's 32-bit encoding.
#[must_use]
pub fn decode_dev(dev: u32) -> u64 {
    crate::sys::make_dev((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

/// Attributes of nothing, for an entry that says that there is nothing.
#[must_use]
pub fn no_attr() -> Stat {
    let zero = Time::default();
    Stat {
        dev: 0,
        mount: 0,
        ino: 0,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        blksize: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        btime: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_protocol() {
        let mut out = Vec::new();
        out.put_attr(&no_attr());
        assert_eq!(out.len(), 88);
        out.clear();
        out.put_entry(1, &no_attr(), Duration::ZERO, Duration::ZERO);
        assert_eq!(out.len(), 128);
        out.clear();
        out.put_attr_out(&no_attr(), Duration::ZERO);
        assert_eq!(out.len(), 104);
        out.clear();
        out.put_statx(&no_attr(), Duration::ZERO);
        assert_eq!(out.len(), 288);
        out.clear();
        put_dirent(&mut out, OsStr::new("abc"), 1, Kind::File, 2);
        assert_eq!(out.len(), dirent_size(OsStr::new("abc"), false));
    }

    #[test]
    fn device_numbers_come_back() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 70000), (0xfff, 0xf_ffff)] {
            let dev = crate::sys::make_dev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev);
        }
    }

    #[test]
    fn a_short_message_is_an_error() {
        let mut reader = Reader(&[1, 2, 3]);
        assert_eq!(reader.u32(), Err(Errno::EIO));
        assert_eq!(Reader(b"no end").name(), Err(Errno::EIO));
    }
}
