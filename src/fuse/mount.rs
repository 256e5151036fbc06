//! Attaching a FUSE file system to a mount point, and detaching it: mount(2) where that is permitted, else the
//! `fusermount3` program, else a descriptor that somebody else has mounted already.
//!
//! Everything that can be known beforehand is found out by [`prepare`], which changes nothing anywhere. After the mount
//! is attached its path is used for detaching only, and never in a way that asks our own server for something.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::fuse::fusermount;
use crate::overlay::SetupError;
use crate::sys::errand::{self, Detach};
use crate::sys::mounts::{self, MountId};
use crate::sys::namespace;
use crate::sys::process::{self, Fork, MountFlags};

/// The device behind every FUSE mount.
const DEVICE: &str = "/dev/fuse";

/// Its number, (major, minor).
const DEVICE_NUMBER: (u32, u32) = (10, 229);

/// Where a mount goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A directory.
    Directory(PathBuf),
    /// Nowhere: this descriptor of `/dev/fuse` is mounted already (`/dev/fd/N`).
    Descriptor(RawFd),
}

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Where to.
    pub target: Target,
    /// Flags of mount(2): `RDONLY`, `NOSUID`, `NODEV` and so on.
    pub flags: MountFlags,
    /// Whether users other than the mounting one may enter.
    pub allow_other: bool,
    /// Whether the mount goes when its server is killed.
    pub auto_unmount: bool,
    /// Largest read request in bytes; the kernel's choice if absent.
    pub max_read: Option<u32>,
    /// The source, as `/proc/mounts` shows it.
    pub fsname: OsString,
    /// What follows `fuse.` in the type that `/proc/mounts` shows.
    pub subtype: OsString,
}

/// How the mount is attached.
#[derive(Debug)]
enum Means {
    /// With mount(2), on this descriptor of the device.
    Direct(OwnedFd),
    /// By this program.
    Helper(PathBuf),
}

/// Everything needed for the mount is there. Nothing is attached yet.
#[derive(Debug)]
pub struct Prepared<'a> {
    options: &'a MountOptions,
    to: Destination,
    reopenable: bool,
}

#[derive(Debug)]
enum Destination {
    /// This absolute path, by these means.
    Path(PathBuf, Means),
    /// It is mounted already.
    Mounted(OwnedFd),
}

/// A mount that waits for its server. Detached again when dropped.
#[derive(Debug)]
pub struct Mounted {
    /// The device, over which the kernel talks to the server.
    device: OwnedFd,
    /// Where it is attached; `None` if somebody else did that.
    point: Option<MountPoint>,
    /// Whether the device can be opened by its path once more.
    reopenable: bool,
    /// Whether a process is wanted that takes the mount away when the server is killed.
    guarded: bool,
}

/// The place where a mount of ours is attached.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    /// The program that detaches it; without it umount2(2).
    helper: Option<PathBuf>,
    /// Which mount is ours: known once the server answers.
    id: Option<MountId>,
    /// Whether it is still to be detached by us.
    attached: bool,
}

/// How to pull a mount off from a thread that must not wait for anything.
#[derive(Debug)]
pub struct Emergency {
    path: PathBuf,
    helper: Option<PathBuf>,
}

/// Finds everything that mounting needs, or says what is missing. Changes nothing.
///
/// # Errors
/// No mount point, no device, not permitted and no `fusermount3`.
pub fn prepare(options: &MountOptions) -> Result<Prepared<'_>, SetupError> {
    let path = match &options.target {
        Target::Directory(path) => path,
        Target::Descriptor(number) => {
            let to = Destination::Mounted(adopt_mounted(*number)?);
            return Ok(Prepared { options, to, reopenable: may_open_device() });
        }
    };
    let absolute = directory(path).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED) => {
                "; a mount whose server has died is in the way: `fusermount3 -u` removes it"
            }
            _ => "",
        };
        SetupError::path("mountpoint", path, process::reason(&error) + hint)
    })?;
    if let Err(error) = std::fs::symlink_metadata(DEVICE) {
        return Err(no_device(&error));
    }
    let means = match process::may_mount(c"fuse") {
        Ok(()) => Means::Direct(open_device()?),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Err(no_device(&error)),
        // Before Linux 5.2 there is no asking beforehand: the privilege is the best guess.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && process::has_sys_admin() => {
            Means::Direct(open_device()?)
        }
        Err(_) => {
            let helper = fusermount::find()?;
            // It opens the device with its caller's rights.
            drop(open_device()?);
            fusermount::foresee(&absolute, options)?;
            Means::Helper(helper)
        }
    };
    // Found out now: a mount over /dev would make us wait for ourselves later.
    let reopenable = !Path::new(DEVICE).starts_with(&absolute) && may_open_device();
    Ok(Prepared { options, to: Destination::Path(absolute, means), reopenable })
}

/// [`prepare`] and [`Prepared::attach`] in one step, for whoever has nothing to do in between.
///
/// # Errors
/// Those of the two.
pub fn mount(options: &MountOptions) -> Result<Mounted, SetupError> {
    prepare(options)?.attach()
}

impl Prepared<'_> {
    /// The descriptor that was handed in from outside, if that is the target.
    #[must_use]
    pub fn inherited(&self) -> Option<RawFd> {
        match self.options.target {
            Target::Descriptor(number) => Some(number),
            Target::Directory(_) => None,
        }
    }

    /// Attaches the mount. From here on every access to it waits for the server.
    ///
    /// # Errors
    /// What mount(2) or `fusermount3` objects to.
    pub fn attach(self) -> Result<Mounted, SetupError> {
        let Prepared { options, reopenable, .. } = self;
        let guarded = options.auto_unmount;
        match self.to {
            Destination::Mounted(device) => Ok(Mounted { device, point: None, reopenable, guarded }),
            Destination::Path(path, Means::Direct(device)) => {
                attach_directly(&path, options, &device)
                    .map_err(|error| SetupError::path("mountpoint", &path, process::reason(&error)))?;
                let point = MountPoint { path, helper: None, id: None, attached: true };
                Ok(Mounted { device, point: Some(point), reopenable, guarded })
            }
            Destination::Path(path, Means::Helper(helper)) => {
                let device = fusermount::attach(&path, options, &helper)
                    .map_err(|reason| SetupError::path("mountpoint", &path, reason))?;
                let point = MountPoint { path, helper: Some(helper), id: None, attached: true };
                Ok(Mounted { device, point: Some(point), reopenable, guarded })
            }
        }
    }
}

impl Mounted {
    /// The device. Requests are read from it and answered over it.
    #[must_use]
    pub fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Another handle of the device, for what asks it things besides the session.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn duplicate_device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// Whether the mount is to go when its server is killed.
    #[must_use]
    pub fn guarded(&self) -> bool {
        self.guarded
    }

    /// Whether the device can be opened by its path once more, as every descriptor of its own for a thread needs.
    #[must_use]
    pub fn reopenable(&self) -> bool {
        self.reopenable
    }

    /// Parts the device, which the session takes, from the place, which stays with whoever detaches it.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Option<MountPoint>) {
        (self.device, self.point)
    }
}

impl MountPoint {
    /// The absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Remembers which mount at this path is ours. To be called once the server answers.
    pub fn identify(&mut self) {
        if namespace::is_left() {
            return;
        }
        match mounts::mount_id(self.path.as_path()) {
            Ok(id) => self.id = Some(id),
            Err(error) => log::debug!("{}: no mount id: {error}", self.path.display()),
        }
    }

    /// Whether what the path shows now is our mount, as far as that can be known.
    fn is_ours(&self) -> bool {
        if let Some(id) = self.id
            && namespace::is_left()
        {
            return errand::is_there(&self.path, id);
        }
        match (self.id, mounts::mount_id(self.path.as_path())) {
            (Some(ours), Ok(now)) => ours.is_same(&now),
            // Never identified: nobody but us had a reason to attach or detach anything since.
            (None, _) => true,
            (Some(_), Err(_)) => false,
        }
    }

    /// Detaches the mount: idle or not at all, or out of sight at once.
    ///
    /// # Errors
    /// `EBUSY` while somebody uses it and `how` says to respect that; `EINVAL` if it is ours no longer.
    pub fn detach(&mut self, how: Detach) -> io::Result<()> {
        if !self.attached || !self.is_ours() {
            self.attached = false;
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match &self.helper {
            None => errand::unmount(&self.path, how)?,
            Some(helper) => fusermount::detach(helper, &self.path, how)?,
        }
        self.attached = false;
        Ok(())
    }

    /// The connection is gone. Takes away a mount that stayed behind dead (its connection was aborted), and leaves
    /// alone what somebody else has unmounted or mounted since.
    pub fn settle(&mut self) {
        if !self.attached {
            return;
        }
        if self.id.is_some()
            && self.is_ours()
            && let Err(error) = self.detach(Detach::Lazily)
        {
            log::debug!("{}: {error}", self.path.display());
        }
        self.attached = false;
    }
}

impl MountPoint {
    /// What pulls this mount off when the orderly way is stuck.
    #[must_use]
    pub fn emergency(&self) -> Emergency {
        Emergency { path: self.path.clone(), helper: self.helper.clone() }
    }
}

impl Emergency {
    /// Takes the mount out of the tree and fails whatever waits for its server.
    pub fn pull(&self) {
        let pulled = match &self.helper {
            None => errand::unmount(&self.path, Detach::Forcibly),
            Some(helper) => fusermount::detach(helper, &self.path, Detach::Forcibly),
        };
        if let Err(error) = pulled {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.attached
            && let Err(error) = self.detach(Detach::Forcibly)
        {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

/// Moves this thread, and those that it starts later, out of the mount namespace, so that a mount there can end with its users,
/// if it was made without help: the `fusermount3` program would not find its way back.
pub(super) fn leave_namespace(mut point: Option<&mut MountPoint>) {
    if let Some(point) = &mut point {
        point.identify();
        if point.helper.is_some() {
            return;
        }
    }
    if let Err(error) = namespace::leave() {
        log::debug!("the mount namespace lasts as long as this process: {error}");
    }
    if let Some(point) = point {
        point.id = point.id.map(MountId::as_told);
    }
}

/// Starts a process that takes the mount away when this one ends without having done so: at the latest when what is
/// returned is dropped. Call before there is a second thread.
pub(super) fn guard(point: &mut MountPoint) -> io::Result<OwnedFd> {
    point.identify();
    let (end, ours) = process::pipe()?;
    match process::fork()? {
        Fork::Parent(_) => Ok(ours),
        Fork::Child => {
            drop(ours);
            process::wait_alone(end);
            point.settle();
            std::process::exit(0)
        }
    }
}

/// The absolute path of a directory, without symlinks.
fn directory(path: &Path) -> io::Result<PathBuf> {
    let absolute = path.canonicalize()?;
    if absolute.metadata()?.is_dir() { Ok(absolute) } else { Err(io::Error::from_raw_os_error(libc::ENOTDIR)) }
}

/// The error for a missing or useless device.
fn no_device(error: &io::Error) -> SetupError {
    let hint = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "; load the kernel module (`modprobe fuse`) or hand the device into the container (`--device /dev/fuse`)"
        }
        Some(libc::EACCES | libc::EPERM) => "; reading and writing it must be permitted",
        _ => "",
    };
    SetupError::option(DEVICE, process::reason(error) + hint)
}

/// Whether the device can be opened by its path.
fn may_open_device() -> bool {
    process::open_device(Path::new(DEVICE)).is_ok()
}

fn open_device() -> Result<OwnedFd, SetupError> {
    process::open_device(Path::new(DEVICE)).map_err(|error| no_device(&error))
}

/// Takes over `/dev/fd/N`.
fn adopt_mounted(number: RawFd) -> Result<OwnedFd, SetupError> {
    let path = PathBuf::from(format!("/dev/fd/{number}"));
    let refuse = |reason: String| SetupError::path("mountpoint", &path, reason);
    let device = process::adopt(number).map_err(|error| refuse(process::reason(&error)))?;
    match process::character_device(&device) {
        Ok(Some(DEVICE_NUMBER)) => Ok(device),
        Ok(_) => Err(refuse(format!("not a descriptor of {DEVICE}"))),
        Err(error) => Err(refuse(process::reason(&error))),
    }
}

fn attach_directly(path: &Path, options: &MountOptions, device: &OwnedFd) -> io::Result<()> {
    let (user, group) = process::effective_ids();
    let mut data = format!("fd={},rootmode=40000,user_id={user},group_id={group}", process::number(device));
    for option in connection_options(options) {
        data.push(',');
        data.push_str(&option);
    }
    let mut kind = b"fuse.".to_vec();
    kind.extend_from_slice(options.subtype.as_bytes());
    let [source, kind, data] = [options.fsname.as_bytes().to_vec(), kind, data.into_bytes()].map(CString::new);
    process::mount(&source?, path, &kind?, options.flags, &data?)
}

/// The options that the kernel's FUSE takes.
pub(super) fn connection_options(options: &MountOptions) -> Vec<String> {
    let mut list = vec!["default_permissions".to_owned()];
    if options.allow_other {
        list.push("allow_other".into());
    }
    if let Some(bytes) = options.max_read {
        list.push(format!("max_read={bytes}"));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> MountOptions {
        MountOptions {
            target: Target::Directory("/nonexistent".into()),
            flags: MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NODIRATIME,
            allow_other: true,
            auto_unmount: false,
            max_read: Some(65536),
            fsname: "a,b\\c".into(),
            subtype: "plyfs".into(),
        }
    }

    #[test]
    fn a_missing_mount_point_is_refused() {
        let error = prepare(&options()).unwrap_err().to_string();
        assert_eq!(error, "mountpoint=/nonexistent: No such file or directory");
    }

    #[test]
    fn a_descriptor_that_is_not_the_device_is_refused() {
        let mut options = options();
        options.target = Target::Descriptor(1_000_000);
        assert_eq!(prepare(&options).unwrap_err().to_string(), "mountpoint=/dev/fd/1000000: Bad file descriptor");
    }
}
