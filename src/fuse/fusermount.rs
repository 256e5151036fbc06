//! `fusermount3`: the program that mounts and unmounts for users who may not, and hands over the device.
//!
//! Speaks its protocol: options on its command line, the descriptor back over the socket that `_FUSE_COMMFD` names.
//! Foresees what it would refuse, so that a refusal comes before anything has been touched.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fuse::mount::{MountOptions, connection_options};
use crate::overlay::SetupError;
use crate::sys::errand::Detach;
use crate::sys::process::{self, MountFlags};

/// Where the administrator says what users may do with the helper program.
const FUSE_CONF: &str = "/etc/fuse.conf";

/// Looks for the program, in the caller's search path and where it usually is.
///
/// # Errors
/// It is not there; says what to install.
pub(super) fn find() -> Result<PathBuf, SetupError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"].map(PathBuf::from);
    let directories: Vec<PathBuf> = std::env::split_paths(&path).chain(usual).collect();
    for name in ["fusermount3", "fusermount"] {
        for directory in directories.iter().filter(|directory| directory.is_absolute()) {
            let program = directory.join(name);
            if process::is_executable(&program) {
                return Ok(program);
            }
        }
    }
    Err(SetupError::option("fusermount3", "not found, and mounting is not permitted without it; install `fuse3`"))
}

/// What the program would refuse. It would do so after the layers have been prepared, which is too late to have changed
/// nothing.
///
/// # Errors
/// A mount point that the caller may not write to, or `allow_other` where it is not permitted.
pub(super) fn foresee(path: &Path, options: &MountOptions) -> Result<(), SetupError> {
    if !process::may_write(path) {
        return Err(SetupError::path(
            "mountpoint",
            path,
            "mounting without privilege needs a directory you may write to",
        ));
    }
    let root = process::effective_ids().0 == 0;
    if options.allow_other && !root && std::fs::read_to_string(FUSE_CONF).is_ok_and(|conf| !allows_other(&conf)) {
        return Err(SetupError::option(
            "allow_other",
            format!("not permitted unless {FUSE_CONF} has `user_allow_other`"),
        ));
    }
    Ok(())
}

/// Whether the administrator lets users share their mounts.
fn allows_other(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// The option string for `fusermount3`. It sets nosuid and nodev by itself for everybody but root, and calls the kernel
/// with what it does not know, so only what it has always known is named.
fn helper_options(options: &MountOptions) -> OsString {
    const NAMES: [(MountFlags, &str); 7] = [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
        (MountFlags::NOATIME, "noatime"),
    ];
    let mut text = Vec::new();
    for (flag, name) in NAMES {
        if options.flags.contains(flag) {
            text.extend_from_slice(name.as_bytes());
            text.push(b',');
        }
    }
    for option in connection_options(options) {
        text.extend_from_slice(option.as_bytes());
        text.push(b',');
    }
    for (name, value) in [("fsname", &options.fsname), ("subtype", &options.subtype)] {
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        for byte in value.as_bytes() {
            if matches!(byte, b',' | b'\\') {
                text.push(b'\\');
            }
            text.push(*byte);
        }
        text.push(b',');
    }
    text.pop();
    OsString::from_vec(text)
}

/// Has the program mount, and receives the device from it. The error is a reason in words.
pub(super) fn attach(path: &Path, options: &MountOptions, helper: &Path) -> Result<OwnedFd, String> {
    let name = helper.file_name().unwrap_or(helper.as_os_str()).to_string_lossy().into_owned();
    let failed = |what: &str, error: io::Error| format!("{name}: {what}: {}", process::reason(&error));
    let (ours, theirs) = process::socket_pair().map_err(|error| failed("socketpair", error))?;
    process::keep_over_exec(theirs.as_fd()).map_err(|error| failed("fcntl", error))?;
    let mut child = Command::new(helper)
        .arg("-o")
        .arg(helper_options(options))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", process::number(&theirs).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("cannot be run", error))?;
    // Ours is closed, so that the end of the program is the end of the conversation.
    drop(theirs);
    let device = process::receive_descriptor(ours.as_fd());
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.as_mut() {
        stderr.read_to_end(&mut words).map_err(|error| failed("stderr", error))?;
    }
    let words = String::from_utf8_lossy(&words);
    let status = child.wait().map_err(|error| failed("wait", error))?;
    match device.map_err(|error| failed("recvmsg", error))? {
        Some(device) if status.success() => {
            for line in words.lines() {
                log::warn!("{line}");
            }
            Ok(device)
        }
        // It names itself in its message.
        _ => Err(words.lines().next().map_or_else(|| format!("{name}: {status}"), str::to_owned)),
    }
}

/// Has the program unmount. It does not follow the path's last component.
///
/// # Errors
/// `EBUSY` for whatever the program objects to.
pub(super) fn detach(helper: &Path, path: &Path, how: Detach) -> io::Result<()> {
    let mut command = Command::new(helper);
    command.arg("-u").arg("-q");
    if how != Detach::WhenIdle {
        command.arg("-z");
    }
    command.args([OsStr::new("--"), path.as_os_str()]).env_remove("_FUSE_COMMFD");
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    // It does not tell why; that somebody uses the mount is the usual reason.
    if status.success() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EBUSY)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::mount::Target;

    #[test]
    fn the_helper_gets_escaped_names_and_known_flags() {
        let options = MountOptions {
            target: Target::Directory("/nonexistent".into()),
            flags: MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NODIRATIME,
            allow_other: true,
            auto_unmount: false,
            max_read: Some(65536),
            fsname: "a,b\\c".into(),
            subtype: "plyfs".into(),
        };
        let expected = "ro,nodev,default_permissions,allow_other,max_read=65536,fsname=a\\,b\\\\c,subtype=plyfs";
        assert_eq!(helper_options(&options), OsStr::new(expected));
    }

    #[test]
    fn sharing_needs_a_line_of_its_own() {
        assert!(allows_other("# text\nuser_allow_other\n"));
        assert!(!allows_other("#user_allow_other\nmount_max = 1000\n"));
        assert!(!allows_other(""));
    }
}
