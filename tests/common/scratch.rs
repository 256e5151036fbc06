//! A scratch directory that every user can reach and that is removed even if somebody left modes without permission.
//!
//! It must never follow what it finds: whatever is still mounted below it is unmounted first.

use rustix::fs::{CWD, Mode};
use rustix::mount::{UnmountFlags, unmount};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A directory of its own under the temporary directory, removed on drop.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A fresh directory whose name starts with `plyfs-` and `topic`, searchable by all.
    pub fn new(topic: &str) -> Scratch {
        let path = tempfile::Builder::new()
            .prefix(&format!("plyfs-{topic}-"))
            .tempdir()
            .expect("a temporary directory can be made")
            .keep();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("own directory");
        Scratch { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount_below(&self.path);
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}

/// Unmounts everything at or below `path`, the latest mount first.
pub fn unmount_below(path: &Path) {
    let Ok(mounts) = std::fs::read("/proc/self/mounts") else { return };
    let prefix = path.as_os_str().as_bytes();
    let points = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(1));
    let mut below: Vec<&[u8]> = points
        .filter(|point| point.starts_with(prefix) && matches!(point.get(prefix.len()), None | Some(b'/')))
        .collect();
    below.reverse();
    for point in below {
        if let Err(error) = unmount(point, UnmountFlags::DETACH) {
            eprintln!("{}: not unmounted: {error}", point.escape_ascii());
        }
    }
}

/// Removes a tree whatever the modes of its directories are. What is not there is no error.
pub fn remove_tree(path: &Path) -> std::io::Result<()> {
    if std::fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    open_up(path)?;
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives the owner every permission on each directory of a tree.
fn open_up(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.is_dir() => return Ok(()),
        Ok(_) => {}
    }
    rustix::fs::chmodat(CWD, path, Mode::RWXU, rustix::fs::AtFlags::empty())?;
    for entry in std::fs::read_dir(path)? {
        open_up(&entry?.path())?;
    }
    Ok(())
}
