//! A disk that remembers: a file served over FUSE, under a loop device, which notes each write and each flush in its order.
//!
//! The file is opened with `FOPEN_DIRECT_IO`, so that nothing is kept back between the loop driver and here. The driver
//! hands on one request after the other, makes an fsync of a flush, and has no FUA: such a write is one with a flush behind
//! it. Discarding is refused, as by a disk that cannot.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::common::backing::Kind;

const BLOCK: usize = 4096;

/// What is on a disk. A copy costs little.
#[derive(Clone, Default)]
pub struct Image {
    blocks: HashMap<u64, Arc<[u8; BLOCK]>>,
}

impl Image {
    /// The bytes at `offset`.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (number, within, at, count) in pieces(offset, length) {
            if let Some(block) = self.blocks.get(&number) {
                bytes[at..at + count].copy_from_slice(&block[within..within + count]);
            }
        }
        bytes
    }

    /// Changes the bytes at `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (number, within, at, count) in pieces(offset, bytes.len()) {
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + count].copy_from_slice(&bytes[at..at + count]);
        }
    }
}

/// The blocks that a range touches: number, offset in it, offset in the range, length.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let within = usize::try_from(position % BLOCK as u64).unwrap();
        let piece = (position / BLOCK as u64, within, at, (BLOCK - within).min(length - at));
        at += piece.3;
        (piece.3 > 0).then_some(piece)
    })
}

/// What the disk was asked.
pub enum Event {
    /// These bytes at this offset.
    Write(u64, Box<[u8]>),
    /// All that was answered so far shall stay.
    Flush,
}

/// What the disk holds, and since the recording began what it was asked.
#[derive(Default)]
pub struct State {
    /// What is read now.
    pub image: Image,
    /// In the order in which it was asked.
    pub log: Vec<Event>,
    /// Whether there shall be a log.
    pub recording: bool,
}

/// A disk, as a file.
pub struct Disk {
    file: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Disk {
    /// An empty one of `size` bytes at `file`, which it makes.
    pub fn new(file: &Path, size: u64) -> Result<Disk, String> {
        let state = Arc::<Mutex<State>>::default();
        let server = Server { size, state: state.clone() };
        let (name, (ready, wait)) = (file.to_owned(), std::sync::mpsc::channel());
        // When the process is killed, nobody who waits for the disk keeps the connection open, for the descriptors are this
        // thread's; and this thread does not wait for the disk, for what is mounted on it is not among this thread's mounts.
        std::thread::spawn(move || {
            crate::common::caller::own_descriptors();
            match serve(server, &name) {
                Ok(session) => {
                    crate::common::caller::own_mounts();
                    ready.send(Ok(())).unwrap();
                    // Ends with an error when the file is gone.
                    session.run().unwrap_or_default();
                }
                Err(error) => ready.send(Err(format!("{}: {error}", name.display()))).unwrap(),
            }
        });
        wait.recv().map_err(|error| error.to_string())??;
        Ok(Disk { file: file.to_owned(), state })
    }

    /// What it holds and was asked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How much it was asked so far.
    pub fn position(&self) -> usize {
        self.state().log.len()
    }

    /// Runs mkfs on it.
    pub fn format(&self, kind: Kind) -> Result<(), String> {
        let (program, arguments): (_, &[&str]) = match kind {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F", "-E", "nodiscard"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f", "-K"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"]),
            Kind::Tmpfs => return Err("a tmpfs is on no disk".to_owned()),
        };
        let device = self.attach()?;
        let more = crate::words("PLYFS_POWERCUT_MKFS");
        let made = run(Command::new(program).args(arguments).args(more.split_whitespace()).arg(&device));
        run(Command::new("losetup").arg("-d").arg(&device))?;
        made.map(drop)
    }

    /// Mounts it at `point`.
    pub fn mount(&self, kind: Kind, point: &Path) -> Result<Volume, String> {
        let device = self.attach()?;
        let options = CString::new(crate::words("PLYFS_POWERCUT_MOUNT")).unwrap();
        let mounted = mount(&device, point, kind.name(), MountFlags::NOATIME, options.as_c_str());
        // The device lives as long as the mount.
        run(Command::new("losetup").arg("-d").arg(&device))?;
        mounted.map_err(|error| format!("{} does not mount: {error}", kind.name()))?;
        Ok(Volume { kind, point: point.to_owned(), mounted: true })
    }

    /// Makes a loop device of it, to be let go with `losetup -d`.
    pub fn attach(&self) -> Result<String, String> {
        run(Command::new("losetup").args(["--find", "--show"]).arg(&self.file)).map(|device| device.trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The server ends when the loop device lets go of the file.
        if let Err(error) = unmount(&self.file, UnmountFlags::DETACH) {
            eprintln!("{}: {error}", self.file.display());
        }
    }
}

/// A mounted disk.
pub struct Volume {
    kind: Kind,
    point: PathBuf,
    mounted: bool,
}

impl Volume {
    /// Unmounts it.
    pub fn unmount(mut self) -> Result<(), String> {
        self.leave()
    }

    fn leave(&mut self) -> Result<(), String> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = unmount(&self.point, UnmountFlags::empty()) {
            if Instant::now() > deadline {
                crate::common::scratch::unmount_below(&self.point);
                return Err(format!("{}: {error}", self.point.display()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.kind == Kind::Btrfs {
            // Else it remembers how new it was, and refuses what is older.
            run(Command::new("btrfs").args(["device", "scan", "--forget"]))?;
        }
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            eprintln!("{error}");
        }
    }
}

/// The output of a command that must work.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Mounts the file.
fn serve(server: Server, file: &Path) -> std::io::Result<Session<Server>> {
    std::fs::File::create(file)?;
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse")?;
    // The root of the file system is the file itself.
    let options = CString::new(format!("fd={},rootmode=100000,user_id=0,group_id=0", fuse.as_raw_fd()))?;
    mount("disk", file, "fuse", MountFlags::empty(), options.as_c_str())?;
    Session::from_fd(server, fuse.into(), SessionACL::Owner, Config::default())
}

/// Serves the file. It must never wait for a file system that lies on it.
struct Server {
    size: u64,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn attr(&self) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.size,
            blocks: self.size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Server {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(3600), &self.attr());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = self.size.saturating_sub(offset).min(u64::from(size));
        let bytes = self.state.lock().unwrap().image.read(offset, usize::try_from(length).unwrap());
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        {
            let mut state = self.state.lock().unwrap();
            state.image.write(offset, data);
            if state.recording {
                state.log.push(Event::Write(offset, data.into()));
            }
        }
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        {
            let mut state = self.state.lock().unwrap();
            if state.recording {
                state.log.push(Event::Flush);
            }
        }
        reply.ok();
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
