//! Options whose meaning is only a row of a table: the flags of mount(2), and what is accepted without effect.

use crate::sys::process::MountFlags;

/// Flags of mount(2) by the names of mount(8): set or cleared.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("nolazytime", MountFlags::LAZYTIME, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, true),
    ("symfollow", MountFlags::NOSYMFOLLOW, false),
];

/// Accepted without effect, with or without a value: what they ask for is so anyway, concerns only how fast an answer
/// comes, or is addressed to a program before us. plyfs(1) lists them.
const WITHOUT_EFFECT: &[&str] = &[
    // The kernel's overlay.
    "override_creds",
    // SELinux labels: fuse-overlayfs drops them as well.
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    // fuse-overlayfs.
    "static_nlink",
    "threaded",
    "fast_ino",
    "fast_ino_check",
    "plugins",
    "nfs_filehandles",
    // libfuse.
    "default_permissions",
    "splice_write",
    "splice_read",
    "splice_move",
    "kernel_cache",
    "auto_cache",
    "big_writes",
    // mount(8) and fstab, and what container engines pass along.
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// The flag that a word sets (`true`) or clears.
#[must_use]
pub fn flag(word: &str) -> Option<(MountFlags, bool)> {
    FLAGS.iter().find(|(name, ..)| *name == word).map(|(_, flag, set)| (*flag, *set))
}

/// Whether an option is accepted and changes nothing.
#[must_use]
pub fn is_without_effect(key: &str) -> bool {
    // x- and X- are comments of fstab for other programs; comment= is their elder.
    WITHOUT_EFFECT.contains(&key) || key.starts_with("x-") || key.starts_with("X-") || key == "comment"
}
