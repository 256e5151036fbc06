//! The mount system calls the benchmark needs: the kernel's overlay with any number of layers, and unmounting.

use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use crate::Result;
use crate::args::Who;

/// The directories of one mount.
#[derive(Debug)]
pub struct Stack {
    /// Read-only layers, the topmost first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// Its work directory.
    pub work: PathBuf,
    /// The mount point.
    pub merged: PathBuf,
}

/// Options besides the layers.
pub type Options = &'static [(&'static str, &'static str)];

/// Mounts the kernel's overlay with its defaults (and `userxattr`, without which a user namespace cannot mount it).
pub fn kernel(stack: &Stack, who: Who, options: Options) -> Result<()> {
    match one_by_one(stack, who, options) {
        // Before Linux 6.7 layers cannot be given one by one, and all options have to fit into one page.
        Err(Errno::INVAL) if options.is_empty() => Ok(in_one_page(stack, who)?),
        result => Ok(result?),
    }
}

fn one_by_one(stack: &Stack, who: Who, options: Options) -> rustix::io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in &stack.lowers {
        fsconfig_set_string(&fs, "lowerdir+", lower)?;
    }
    fsconfig_set_string(&fs, "upperdir", &stack.upper)?;
    fsconfig_set_string(&fs, "workdir", &stack.work)?;
    if who == Who::User {
        fsconfig_set_flag(&fs, "userxattr")?;
    }
    for (key, value) in options {
        fsconfig_set_string(&fs, *key, *value)?;
    }
    fsconfig_create(&fs)?;
    let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mounted, "", CWD, &stack.merged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn in_one_page(stack: &Stack, who: Who) -> rustix::io::Result<()> {
    let mut options = overlay_options(stack);
    if who == Who::User {
        options.push_str(",userxattr");
    }
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    mount("overlay", &stack.merged, "overlay", MountFlags::empty(), options.as_c_str())
}

/// `lowerdir=..,upperdir=..,workdir=..`. Stage paths hold none of the characters that would need an escape.
pub fn overlay_options(stack: &Stack) -> String {
    let upper = stack.upper.display();
    let work = stack.work.display();
    format!("lowerdir={},upperdir={upper},workdir={work}", joined(&stack.lowers))
}

/// Paths with `:` between them.
pub fn joined(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

/// Whether something is mounted on this directory. Waits for the server's answer if one is starting.
pub fn is_mounted(merged: &Path) -> bool {
    let parent = merged.parent().unwrap_or(merged);
    match (rustix::fs::stat(merged), rustix::fs::stat(parent)) {
        (Ok(here), Ok(above)) => here.st_dev != above.st_dev,
        // A server that died leaves a mount that answers ENOTCONN.
        (Err(error), _) => error == Errno::NOTCONN,
        _ => false,
    }
}

/// Unmounts, as often as it takes until the last user of the mount is gone, and in the end by force.
pub fn detach(merged: &Path) -> Result<()> {
    for _ in 0..100 {
        match unmount(merged, UnmountFlags::empty()) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(20)),
            Err(Errno::PERM) => return fusermount(merged),
            Err(error) => return Err(format!("cannot unmount {}: {error}", merged.display()).into()),
        }
    }
    Ok(unmount(merged, UnmountFlags::DETACH)?)
}

fn fusermount(merged: &Path) -> Result<()> {
    let status = std::process::Command::new("fusermount3").arg("-u").arg(merged).status()?;
    if status.success() { Ok(()) } else { Err(format!("fusermount3 -u {}: {status}", merged.display()).into()) }
}
