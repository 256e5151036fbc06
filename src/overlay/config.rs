//! What a union is made of: the layers, and the choices that change its answers or its on-disk format.
//!
//! Plain data. Whoever builds one (the command line, a test, another program) has already split and unescaped option
//! strings; whether the layers exist and fit together is for `setup` to find out.

use std::fmt;
use std::path::{Path, PathBuf};

/// The layers of a union and how it behaves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Read-only layers, the topmost first. At least one, at most [`Config::MAX_LOWERS`].
    pub lowers: Vec<PathBuf>,
    /// Layers below these whose names do not show, only the data of files that tell where it is (the kernel's data-only
    /// layers).
    pub data_lowers: Vec<PathBuf>,
    /// The writable layer and its work directory. Without it the union is read-only (`EROFS`).
    pub upper: Option<Upper>,
    /// In which xattr namespace whiteout, opaque and origin marks are written.
    pub xattrs: XattrNamespace,
    /// Whether inode numbers are folded into 32 bits, for programs that know no larger ones (`ino32_t`).
    pub narrow_inodes: bool,
    /// What is synced to disk, and when.
    pub fsync: Fsync,
    /// How deletions are written.
    pub whiteouts: Whiteouts,
    /// Which users and groups callers see for those on disk.
    pub ids: IdMapping,
    /// The parts of the on-disk format that are there for who asks for them.
    pub features: Features,
    /// Where owners and modes are kept.
    pub permissions: Permissions,
    /// Which identity the union has, and whether marks name the file systems of layers.
    pub uuid: Uuid,
}

/// Which identity a union has (the kernel's `uuid`). FUSE tells none to callers; it is kept in the upper for the kernel's
/// overlay, whose `statfs` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uuid {
    /// Its own, if the upper has or can be given one before anything is copied up.
    #[default]
    Auto,
    /// Its own, which is given to an upper that has none.
    On,
    /// That of the upper's file system.
    Null,
    /// The same, and marks do not say on which file system an origin lies, so that layers that all lie on one can be
    /// copied to another block by block. As `Null` where they lie on several.
    Off,
}

/// Where owners and modes are kept (fuse-overlayfs's `xattr_permissions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permissions {
    /// Where they belong.
    #[default]
    OnDisk,
    /// In `security.fuseoverlayfs.override_stat`.
    Privileged,
    /// In `user.containers.override_stat`.
    User,
}

/// Which users and groups callers see for those on disk (fuse-overlayfs's `uidmapping`, `gidmapping`, `squash_to_*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMapping {
    /// Users; as they are, if empty.
    pub uids: Vec<IdRange>,
    /// Groups; as they are, if empty.
    pub gids: Vec<IdRange>,
    /// Everything shows as this user's.
    pub squash_uid: Option<u32>,
    /// Everything shows as this group's.
    pub squash_gid: Option<u32>,
}

/// So many ids on disk that callers see as others, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first on disk.
    pub disk: u32,
    /// The first that is shown.
    pub shown: u32,
    /// How many; never 0, and never past the largest id.
    pub count: u32,
}

/// The parts of the on-disk format that are off unless asked for, as the kernel's overlay has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether directories that a lower has can be renamed.
    pub redirect_dir: RedirectDir,
    /// Whether a change of attributes alone copies no data up (the kernel's `metacopy`).
    pub metacopy: bool,
    /// Whether hard links of a lower stay one file over copy-up (the kernel's `index`).
    pub index: bool,
    /// Whether handles find objects that the kernel has forgotten, and the index has all copies (the kernel's `nfs_export`).
    pub nfs_export: bool,
    /// Whether data that lies elsewhere is compared with its digest.
    pub verity: Verity,
}

/// Whether the fs-verity digest of data is compared with the one that the file's attributes came with (the kernel's
/// `verity`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verity {
    /// Never.
    #[default]
    Off,
    /// Where there is one.
    On,
    /// Always: data without one is an error.
    Require,
}

/// What is done about redirects: marks on renamed directories that tell where the lower part lies (the kernel's
/// `redirect_dir`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectDir {
    /// They are followed, and written when a directory that a lower has is renamed.
    On,
    /// They are followed.
    Follow,
    /// They are not followed (`EPERM`).
    NoFollow,
    /// They are followed if only the privileged can write them, as by the kernel's default.
    #[default]
    Off,
}

/// The writable layer.
#[derive(Clone, Debug)]
pub struct Upper {
    /// The directory that receives every change.
    pub dir: PathBuf,
    /// An otherwise unused directory on the same file system, where changes are prepared.
    pub work: PathBuf,
}

/// In which xattr namespace the overlay's own marks are written. Both are understood on reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrNamespace {
    /// `trusted.overlay.` where it can be written, `user.overlay.` elsewhere.
    #[default]
    Auto,
    /// `trusted.overlay.`, as the kernel's privileged mounts do.
    Trusted,
    /// `user.overlay.`, as the kernel does with `userxattr`.
    User,
}

/// What is synced to disk, and when (the kernel's `fsync=` and `volatile`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// What callers ask for; and before a copy becomes visible as much as it takes for no power cut to leave the name
    /// without the data, which with most file systems is less than a sync.
    #[default]
    Auto,
    /// As `Auto`, and each copy of a file or directory before it becomes visible, with its metadata.
    Strict,
    /// Nothing, ever; a mark refuses the layer after a crash.
    Volatile,
}

/// How deletions are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whiteouts {
    /// 0/0 character devices, `.wh.NAME` where these cannot be made.
    #[default]
    Auto,
    /// Always `.wh.NAME`.
    Names,
}

impl Config {
    /// As many read-only layers as the kernel's overlay takes (`OVL_MAX_STACK`).
    pub const MAX_LOWERS: usize = 500;
}

/// Why a union could not be set up: which option, which path, and what is wrong with it, in one line.
#[derive(Debug)]
pub struct SetupError {
    option: String,
    path: Option<PathBuf>,
    reason: String,
}

impl SetupError {
    /// An error about the path that an option names.
    pub fn path(option: impl Into<String>, path: &Path, reason: impl fmt::Display) -> SetupError {
        SetupError { option: option.into(), path: Some(path.to_owned()), reason: reason.to_string() }
    }

    /// An error about an option as such.
    pub fn option(option: impl Into<String>, reason: impl fmt::Display) -> SetupError {
        SetupError { option: option.into(), path: None, reason: reason.to_string() }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}={}: {}", self.option, path.display(), self.reason),
            None => write!(f, "{}: {}", self.option, self.reason),
        }
    }
}

impl std::error::Error for SetupError {}
