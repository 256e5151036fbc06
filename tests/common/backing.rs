//! Backing file systems for layers: a tmpfs, or ext4, xfs and btrfs in a sparse image on a loop device.
//!
//! Each is mounted `noatime`, so that reading leaves no trace, and is unmounted with its image removed on drop.

use super::scratch::Scratch;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kinds of file system that layers are tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory.
    Tmpfs,
    /// ext4 with its default features.
    Ext4,
    /// xfs with reflinks.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// The kind that has this name.
    pub fn parse(name: &str) -> Option<Kind> {
        [Kind::Tmpfs, Kind::Ext4, Kind::Xfs, Kind::Btrfs].into_iter().find(|kind| kind.name() == name)
    }

    /// Its name for mount(8).
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tmpfs => "tmpfs",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    fn mkfs(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Kind::Tmpfs => None,
            Kind::Ext4 => Some(("mkfs.ext4", &["-q", "-F"])),
            Kind::Xfs => Some(("mkfs.xfs", &["-q", "-f"])),
            Kind::Btrfs => Some(("mkfs.btrfs", &["-q", "-f"])),
        }
    }
}

/// A mounted file system for layers.
pub struct Backing {
    kind: Kind,
    root: PathBuf,
    _scratch: Scratch,
}

impl Backing {
    /// Makes and mounts one, or says why this machine cannot.
    pub fn new(kind: Kind) -> Result<Backing, String> {
        if !super::is_real_root() {
            return Err(format!("mounting {} needs root", kind.name()));
        }
        let scratch = Scratch::new(kind.name());
        let root = scratch.path().join("root");
        std::fs::create_dir(&root).map_err(|error| error.to_string())?;
        match kind.mkfs() {
            None => mount("tmpfs", &root, "tmpfs", MountFlags::NOATIME, Some(c"mode=0755"))
                .map_err(|error| format!("tmpfs: {error}"))?,
            Some((program, arguments)) => {
                let image = scratch.path().join("image");
                std::fs::File::create(&image)
                    .and_then(|file| file.set_len(1 << 30))
                    .map_err(|error| format!("image: {error}"))?;
                run(Command::new(program).args(arguments).arg(&image))?;
                run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(&root))?;
            }
        }
        Ok(Backing { kind, root, _scratch: scratch })
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.root, UnmountFlags::empty()) {
            eprintln!("{}: {error}, detached instead", self.root.display());
            super::scratch::unmount_below(&self.root);
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim()))
}
