//! The mount namespace that the server was started in, and how to be out of it.
//!
//! A process keeps its mount namespace alive, and with it every mount in there: a server that stays would keep its own
//! mount, and others', after everybody else has gone (a container store that was killed). So it moves to a namespace of its
//! own that holds nothing but `/proc` and two devices. The mount then goes with the last of its users, and the kernel ends
//! the connection. Not in the namespace of the machine's first process, which stays.
//!
//! Descriptors that are open keep what they lead to. Whoever needs the old paths later, to unmount, enters the namespace by
//! way of some process that is still there ([`home`]); if there is none, there is no mount in it, either.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The name of the namespace that was left, as links in `/proc` show it.
static LEFT: OnceLock<PathBuf> = OnceLock::new();

/// Devices that are opened later by their paths.
const DEVICES: [&str; 2] = ["fuse", "null"];

/// Whether the process has left the namespace that it was started in.
#[must_use]
pub fn is_left() -> bool {
    LEFT.get().is_some()
}

/// Leaves the mount namespace, unless it is the first process's: this thread, and those that it starts from then on. On an
/// error it is where it was.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, and whatever a kernel or its policy objects to.
pub fn leave() -> io::Result<()> {
    let name = std::fs::read_link("/proc/thread-self/ns/mnt")?;
    // Not readable: another user's, so there are namespaces between us and it.
    if std::fs::read_link("/proc/1/ns/mnt").is_ok_and(|first| first == name) {
        return Ok(());
    }
    let back = rustix::fs::open("/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: neither memory nor descriptors become others' by it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    match clear_out() {
        Ok(()) => {
            chdir("/")?;
            LEFT.get_or_init(|| name);
            Ok(())
        }
        Err(error) => {
            move_into_link_name_space(back.as_fd(), Some(LinkNameSpaceType::Mount))?;
            Err(error.into())
        }
    }
}

/// The namespace that this thread has left the first one for, for threads that were there before; `None` if it has not.
#[must_use]
pub fn now() -> Option<OwnedFd> {
    LEFT.get()?;
    let opened = rustix::fs::open("/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    opened.inspect_err(|error| log::debug!("a namespace without a name: {error}")).ok()
}

/// Brings this thread alone into a namespace.
///
/// # Errors
/// What unshare(2) and setns(2) object to.
pub fn enter(namespace: &OwnedFd) -> io::Result<()> {
    // Who shares its root and its directory with other threads may not.
    // SAFETY: neither memory nor descriptors become others' by it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// Replaces all that the new namespace has inherited.
fn clear_out() -> rustix::io::Result<()> {
    // What happens in the old one is not to come in here.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let proc = open_tree(CWD, "/proc", clone | OpenTreeFlags::AT_RECURSIVE)?;
    let devices = DEVICES.map(|name| (name, open_tree(CWD, format!("/dev/{name}"), clone)));
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("plyfs", "/proc", "tmpfs", flags, c"mode=0755,size=64k")?;
    chdir("/proc")?;
    for directory in ["proc", "dev"] {
        rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755))?;
    }
    move_mount(&proc, "", CWD, "proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    for (name, device) in devices {
        // Who has no such device does not open it later, either.
        let Ok(device) = device else { continue };
        let path = format!("dev/{name}");
        drop(rustix::fs::open(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?);
        move_mount(&device, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    // The old root is then on top of the new one.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)
}

/// The namespace that was left, to be entered for a moment; `None` if none was left.
///
/// # Errors
/// `EINVAL` if nobody is in it any more.
pub(super) fn home() -> io::Result<Option<OwnedFd>> {
    let Some(name) = LEFT.get() else { return Ok(None) };
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let link = entry.path().join(OsStr::new("ns/mnt"));
        if std::fs::read_link(&link).is_ok_and(|found| found == *name)
            && let Ok(namespace) = rustix::fs::open(&link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        {
            return Ok(Some(namespace));
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}
