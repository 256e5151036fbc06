//! Carries out one operation on one side and says what came of it, in a form that can be compared.
//!
//! Operations name paths relative to the mount's root. Devices and pipes are never opened.

use super::layers::pattern;
use super::op::{Call, Op, Special, Time};
use super::path::{P, join};
use super::side::{DirSlot, Side};
use crate::common::caller::as_caller;
use crate::common::mapping::{Mapping, Share};
use rustix::fs::{
    Access, AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// What an operation gave back.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing but success.
    Done,
    /// A count or an offset.
    Number(u64),
    /// Data.
    Bytes(Vec<u8>),
    /// Several findings.
    Lines(Vec<String>),
}

/// Success or the errno.
pub type Outcome = Result<Value, Errno>;

impl Value {
    /// Without what it says of the number of names of an object.
    pub fn without_names(self) -> Value {
        let cut = |line: String| match line.split_once(" nlink ") {
            Some((before, after)) => format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit())),
            None => line,
        };
        match self {
            Value::Lines(lines) => Value::Lines(lines.into_iter().map(cut).collect()),
            value => value,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Done => f.write_str("done"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Bytes(bytes) => f.write_str(&brief(bytes)),
            Value::Lines(lines) => write!(f, "{lines:?}"),
        }
    }
}

/// Bytes short enough to print: all of them, or the length and a checksum with the runs they are made of.
pub fn brief(bytes: &[u8]) -> String {
    if bytes.len() <= 64 {
        return format!("b\"{}\"", bytes.escape_ascii());
    }
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    format!(
        "{} bytes, {zeros} zeros first, then {}.., sum {sum:016x}",
        bytes.len(),
        bytes[zeros..].iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()
    )
}

/// An errno as manuals write it.
pub fn name_of(errno: Errno) -> String {
    const NAMES: [(Errno, &str); 32] = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::IO, "EIO"),
        (Errno::NXIO, "ENXIO"),
        (Errno::BADF, "EBADF"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::FAULT, "EFAULT"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::XDEV, "EXDEV"),
        (Errno::NOTDIR, "ENOTDIR"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::INVAL, "EINVAL"),
        (Errno::FBIG, "EFBIG"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::ROFS, "EROFS"),
        (Errno::MLINK, "EMLINK"),
        (Errno::RANGE, "ERANGE"),
        (Errno::NAMETOOLONG, "ENAMETOOLONG"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::NOTEMPTY, "ENOTEMPTY"),
        (Errno::LOOP, "ELOOP"),
        (Errno::NODATA, "ENODATA"),
        (Errno::OVERFLOW, "EOVERFLOW"),
        (Errno::NOTSUP, "EOPNOTSUPP"),
        (Errno::STALE, "ESTALE"),
        (Errno::TOOBIG, "E2BIG"),
        (Errno::NOTCONN, "ENOTCONN"),
        (Errno::CONNABORTED, "ECONNABORTED"),
        (Errno::TXTBSY, "ETXTBSY"),
        (Errno::NODEV, "ENODEV"),
    ];
    let known = NAMES.iter().find(|(other, _)| *other == errno);
    known.map_or_else(|| format!("errno {}", errno.raw_os_error()), |(_, name)| (*name).to_owned())
}

/// Carries out `call` on `side`, with its caller's umask; then has what was opened for writing copied up if the run asks for that.
pub fn exec(side: &mut Side, call: &Call) -> Outcome {
    let umask = Mode::from_raw_mode(side.umasks[call.caller as usize]);
    let before = rustix::process::umask(umask);
    let outcome = carry_out(side, call);
    rustix::process::umask(before);
    if let (Some(slot), true) = (side.unsettled.take(), side.settle)
        && let Some(file) = &side.files[slot]
    {
        let stat = rustix::fs::fstat(file)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode))?;
        if side.settle_data {
            rustix::fs::ftruncate(file, u64::try_from(stat.st_size).unwrap_or(0))?;
        }
    }
    outcome
}

fn carry_out(side: &mut Side, call: &Call) -> Outcome {
    for dir in side.dirs.iter_mut().flatten() {
        dir.note(&call.op);
    }
    as_caller(call.caller, || match &call.op {
        Op::Open { slot, path, flags, mode } => open(side, path, OFlags::from_bits_retain(*flags), *mode).map(|file| {
            let writes = flags & (OFlags::WRONLY | OFlags::RDWR).bits() != 0;
            side.files[*slot] = Some(file);
            side.unsettled = writes.then_some(*slot);
            Value::Done
        }),
        Op::Close { slot } => side.files[*slot].take().map(|_| Value::Done).ok_or(Errno::BADF),
        Op::OpenDir { slot, path } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&side.root, path.as_path(), flags, Mode::empty())?;
            side.dirs[*slot] = Some(DirSlot::new(dir, path.clone())?);
            Ok(Value::Done)
        }
        Op::ReadRest { slot } => side.dirs[*slot].take().ok_or(Errno::BADF)?.finish().map(Value::Lines),
        Op::Read { .. }
        | Op::Write { .. }
        | Op::Put { .. }
        | Op::Ftruncate { .. }
        | Op::Fallocate { .. }
        | Op::SeekData { .. }
        | Op::SeekHole { .. }
        | Op::CopyRange { .. }
        | Op::Fsync { .. }
        | Op::Fstat { .. }
        | Op::Fchmod { .. }
        | Op::Fchown { .. }
        | Op::Futimens { .. }
        | Op::Fsetxattr { .. }
        | Op::Flistxattr { .. }
        | Op::MapWrite { .. } => on_descriptor(side, &call.op),
        Op::Setxattr { .. } | Op::Getxattr { .. } | Op::Listxattr { .. } | Op::Removexattr { .. } => {
            on_xattr(side, &call.op)
        }
        _ => on_path(side, &call.op),
    })
}

/// Opens anything but what could block or reach a device.
fn open(side: &Side, path: &P, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    if let Ok(stat) = rustix::fs::statat(&side.root, path.as_path(), AtFlags::empty())
        && !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
    {
        return Err(Errno::NOTSUP);
    }
    rustix::fs::openat(&side.root, path.as_path(), flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode))
}

fn on_descriptor(side: &Side, op: &Op) -> Outcome {
    let file = |slot: &usize| side.files[*slot].as_ref().ok_or(Errno::BADF);
    match op {
        Op::Read { slot, offset, length } => read_at(file(slot)?, *offset, *length).map(Value::Bytes),
        Op::Write { slot, offset, length, tint } => {
            rustix::io::pwrite(file(slot)?, &pattern(*offset, *length, *tint), *offset).map(number)
        }
        Op::Put { slot, length, tint } => rustix::io::write(file(slot)?, &pattern(0, *length, *tint)).map(number),
        Op::Ftruncate { slot, size } => done(rustix::fs::ftruncate(file(slot)?, *size)),
        Op::Fallocate { slot, mode, offset, length } => {
            done(rustix::fs::fallocate(file(slot)?, FallocateFlags::from_bits_retain(*mode), *offset, *length))
        }
        Op::SeekData { slot, offset } => check_seek(file(slot)?, *offset, SeekFrom::Data(*offset)),
        Op::SeekHole { slot, offset } => check_seek(file(slot)?, *offset, SeekFrom::Hole(*offset)),
        Op::CopyRange { from, to, from_offset, to_offset, length } => {
            let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
            let (from, to) = (file(from)?, file(to)?);
            rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), *length).map(number)
        }
        Op::Fsync { slot, data_only: true } => done(rustix::fs::fdatasync(file(slot)?)),
        Op::Fsync { slot, data_only: false } => done(rustix::fs::fsync(file(slot)?)),
        Op::Fstat { slot } => rustix::fs::fstat(file(slot)?).map(|stat| Value::Lines(vec![attributes(&stat)])),
        Op::Fchmod { slot, mode } => done(rustix::fs::fchmod(file(slot)?, Mode::from_raw_mode(*mode))),
        Op::Fchown { slot, uid, gid } => {
            done(rustix::fs::fchown(file(slot)?, uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
        }
        Op::Futimens { slot, atime, mtime } => done(rustix::fs::futimens(file(slot)?, &times(*atime, *mtime))),
        Op::Fsetxattr { slot, name, value } => {
            done(rustix::fs::fsetxattr(file(slot)?, name.as_path(), value.as_bytes(), XattrFlags::empty()))
        }
        Op::Flistxattr { slot } => {
            let mut list = vec![0; 65536];
            let length = rustix::fs::flistxattr(file(slot)?, &mut list)?;
            Ok(Value::Lines(name_list(&list[..length])))
        }
        Op::MapWrite { slot, offset, length, tint } => {
            let file = file(slot)?;
            let size = size_of(file)?;
            if *offset >= size {
                return Ok(Value::Done);
            }
            let bytes = pattern(*offset as u64, (*length).min(size - *offset), *tint);
            Mapping::new(file, size, Share::Write)?.write(*offset, &bytes).map(number)
        }
        _ => Err(Errno::NOSYS),
    }
}

fn on_xattr(side: &Side, op: &Op) -> Outcome {
    match op {
        Op::Setxattr { path, name, value, flags } => {
            let flags = XattrFlags::from_bits_retain(*flags);
            done(rustix::fs::lsetxattr(side.real(path), name.as_path(), value.as_bytes(), flags))
        }
        Op::Getxattr { path, name } => {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(side.real(path), name.as_path(), &mut value)?;
            Ok(Value::Bytes(value[..length].to_vec()))
        }
        Op::Listxattr { path } => {
            let mut list = vec![0; 65536];
            let length = rustix::fs::llistxattr(side.real(path), &mut list)?;
            Ok(Value::Lines(name_list(&list[..length])))
        }
        Op::Removexattr { path, name } => done(rustix::fs::lremovexattr(side.real(path), name.as_path())),
        _ => Err(Errno::NOSYS),
    }
}

fn on_path(side: &Side, op: &Op) -> Outcome {
    let root = side.root.as_fd();
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    match op {
        Op::Stat { path } => {
            rustix::fs::statat(root, path.as_path(), nofollow).map(|stat| Value::Lines(vec![attributes(&stat)]))
        }
        Op::Access { path, mode } => {
            let access = Access::from_bits_truncate(*mode);
            done(rustix::fs::accessat(root, path.as_path(), access, AtFlags::EACCESS))
        }
        Op::Cat { path } => {
            let file = open(side, path, OFlags::RDONLY, 0)?;
            read_at(&file, 0, size_of(&file)? + 1).map(Value::Bytes)
        }
        Op::MapRead { path, share } => {
            let file = open(side, path, OFlags::RDONLY, 0)?;
            // What the size of a directory is, is for its file system to say.
            let is_file = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
            match size_of(&file)? {
                _ if !is_file => Err(Errno::NODEV),
                0 => Ok(Value::Done),
                size => Mapping::new(&file, size, *share)?.read(0, size).map(Value::Bytes),
            }
        }
        Op::Save { path, flags, mode, length, tint } => {
            let flags = OFlags::from_bits_retain(*flags) | OFlags::CREATE | OFlags::WRONLY;
            let file = open(side, path, flags, *mode)?;
            rustix::io::write(&file, &pattern(0, *length, *tint)).map(number)
        }
        Op::Truncate { path, size } => {
            let found = rustix::fs::statat(root, path.as_path(), AtFlags::empty());
            let is_file = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
            if found.is_ok_and(|stat| is_file(stat.st_mode) && stat.st_size as u64 == *size) {
                return Ok(Value::Done);
            }
            done(crate::common::mapping::truncate(&side.real(path), *size))
        }
        Op::Unlink { path } => done(rustix::fs::unlinkat(root, path.as_path(), AtFlags::empty())),
        Op::Rmdir { path } => done(rustix::fs::unlinkat(root, path.as_path(), AtFlags::REMOVEDIR)),
        Op::Mkdir { path, mode } => done(rustix::fs::mkdirat(root, path.as_path(), Mode::from_raw_mode(*mode))),
        Op::Symlink { path, target } => done(rustix::fs::symlinkat(target.as_path(), root, path.as_path())),
        Op::Readlink { path } => {
            rustix::fs::readlinkat(root, path.as_path(), Vec::new()).map(|target| Value::Bytes(target.into_bytes()))
        }
        Op::Link { from, to } => done(rustix::fs::linkat(root, from.as_path(), root, to.as_path(), AtFlags::empty())),
        Op::Rename { from, to, flags } => {
            let flags = RenameFlags::from_bits_retain(*flags);
            done(rustix::fs::renameat_with(root, from.as_path(), root, to.as_path(), flags))
        }
        Op::Mknod { path, kind, mode } => {
            let (kind, device) = match kind {
                Special::File => (FileType::RegularFile, 0),
                Special::Fifo => (FileType::Fifo, 0),
                Special::Socket => (FileType::Socket, 0),
                Special::Char(device) => (FileType::CharacterDevice, *device),
                Special::Block(device) => (FileType::BlockDevice, *device),
            };
            done(rustix::fs::mknodat(root, path.as_path(), kind, Mode::from_raw_mode(*mode), device))
        }
        Op::Chmod { path, mode } => {
            done(rustix::fs::chmodat(root, path.as_path(), Mode::from_raw_mode(*mode), AtFlags::empty()))
        }
        Op::Chown { path, uid, gid } => {
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            done(rustix::fs::chownat(root, path.as_path(), uid, gid, nofollow))
        }
        Op::Utimens { path, atime, mtime } => {
            done(rustix::fs::utimensat(root, path.as_path(), &times(*atime, *mtime), nofollow))
        }
        Op::List { path } => list(side, path).map(Value::Lines),
        Op::RemoveTree { path } => {
            let mut errors = Vec::new();
            remove_tree(side, path, &mut errors);
            errors.sort();
            Ok(Value::Lines(errors))
        }
        Op::Statfs { path } => {
            let dir = open(side, path, OFlags::RDONLY, 0)?;
            rustix::fs::fstatvfs(dir).map(|found| Value::Number(found.f_namemax))
        }
        Op::SyncDir { path } => {
            let dir = open(side, path, OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
            done(rustix::fs::fsync(dir))
        }
        _ => Err(Errno::NOSYS),
    }
}

fn done(result: Result<(), Errno>) -> Outcome {
    result.map(|()| Value::Done)
}

fn number(count: usize) -> Value {
    Value::Number(count as u64)
}

fn size_of(file: impl AsFd) -> Result<usize, Errno> {
    rustix::fs::fstat(file).map(|stat| usize::try_from(stat.st_size).unwrap_or(0))
}

/// Reads until `length` or the end.
pub fn read_at(file: impl AsFd, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match rustix::io::pread(&file, &mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Where data and holes are may differ after a copy-up; that nothing but zeros is called a hole may not.
fn check_seek(file: &OwnedFd, offset: u64, seek: SeekFrom) -> Outcome {
    let bytes = read_at(file, 0, size_of(file)?)?;
    let rest = bytes.get(offset as usize..).unwrap_or_default();
    let found = rustix::fs::seek(file, seek);
    rustix::fs::seek(file, SeekFrom::Start(offset))?;
    let sound = match (found, seek) {
        (Err(Errno::NXIO), SeekFrom::Data(_)) => rest.iter().all(|byte| *byte == 0),
        (Err(Errno::NXIO), _) => rest.is_empty(),
        (Err(errno), _) => return Err(errno),
        (Ok(found), SeekFrom::Data(_)) => {
            (offset..bytes.len() as u64).contains(&found)
                && bytes[offset as usize..found as usize].iter().all(|byte| *byte == 0)
        }
        (Ok(found), _) => {
            (offset..=bytes.len() as u64).contains(&found) && bytes.get(found as usize).is_none_or(|byte| *byte == 0)
        }
    };
    if sound { Ok(Value::Done) } else { Ok(Value::Lines(vec![format!("{seek:?} gave {found:?} of {}", bytes.len())])) }
}

fn times(atime: Time, mtime: Time) -> Timestamps {
    let spec = |time| match time {
        Time::Omit => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Time::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Time::At(tv_sec, tv_nsec) => Timespec { tv_sec, tv_nsec },
    };
    Timestamps { last_access: spec(atime), last_modification: spec(mtime) }
}

/// What stat says and both sides must agree on.
pub fn attributes(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = if kind == FileType::Directory { 0 } else { stat.st_size };
    let mtime = stamp(stat.st_mtime, stat.st_mtime_nsec);
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    // Those of directories are left to the comparison of whole trees, which knows when a copy-up may still be due.
    let nlink = if kind == FileType::Directory { 0 } else { stat.st_nlink };
    format!("{kind:?} {mode:04o} {uid}:{gid} size {size} nlink {nlink} rdev {:#x} mtime {mtime}", stat.st_rdev)
}

/// A time that was set as it is; one that the clock gave as `now`.
pub fn stamp(seconds: i64, nanoseconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    if (now - seconds).abs() < 86_400 { "now".to_owned() } else { format!("{seconds}.{nanoseconds:09}") }
}

fn name_list(list: &[u8]) -> Vec<String> {
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| name.escape_ascii().to_string()).collect();
    names.sort();
    names
}

fn list(side: &Side, path: &P) -> Result<Vec<String>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&side.root, path.as_path(), flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut lines = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        lines.push(format!("{} {:?}", entry.file_name().to_bytes().escape_ascii(), entry.file_type()));
    }
    lines.sort();
    Ok(lines)
}

/// Removes what can be removed, reading on in the same listing while it shrinks.
fn remove_tree(side: &Side, path: &P, errors: &mut Vec<String>) {
    let mut failed = |errno: Errno| errors.push(format!("{path:?}: {}", name_of(errno)));
    match rustix::fs::unlinkat(&side.root, path.as_path(), AtFlags::empty()) {
        Ok(()) => return,
        Err(Errno::ISDIR) => {}
        Err(errno) => return failed(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&side.root, path.as_path(), flags, Mode::empty()) {
        Err(errno) => failed(errno),
        Ok(dir) => {
            let mut buffer = [MaybeUninit::uninit(); 512];
            let mut entries = RawDir::new(dir, &mut buffer);
            for _ in 0..10_000 {
                let name = match entries.next() {
                    None => break,
                    Some(Err(errno)) => return errors.push(format!("{path:?}: listing: {}", name_of(errno))),
                    Some(Ok(entry)) => entry.file_name().to_bytes().to_vec(),
                };
                if name != b"." && name != b".." {
                    remove_tree(side, &join(path, &name), errors);
                }
            }
        }
    }
    if let Err(errno) = rustix::fs::unlinkat(&side.root, path.as_path(), AtFlags::REMOVEDIR) {
        errors.push(format!("{path:?}: rmdir: {}", name_of(errno)));
    }
}
