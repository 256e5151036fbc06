//! Mounts of a union: plyfs from the built binary, or the kernel's overlay, both undone on drop.
//!
//! plyfs runs in the foreground (`-f`) so that its end can be waited for: nothing is left to write once it is gone.

use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The directories that a union is made of.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Read-only layers, the topmost first.
    pub lowers: Vec<PathBuf>,
    /// The writable layer; none if empty.
    pub upper: PathBuf,
    /// Its work directory.
    pub work: PathBuf,
}

impl Stack {
    fn options(&self) -> Vec<u8> {
        let lowers: Vec<&[u8]> = self.lowers.iter().map(|lower| lower.as_os_str().as_bytes()).collect();
        let lowers = [b"lowerdir=".as_slice(), &lowers.join(b":".as_slice())].concat();
        if self.upper.as_os_str().is_empty() {
            return lowers;
        }
        [
            lowers.as_slice(),
            b",upperdir=",
            self.upper.as_os_str().as_bytes(),
            b",workdir=",
            self.work.as_os_str().as_bytes(),
        ]
        .concat()
    }
}

/// An option that changes no answer, and that the kernel does not know.
pub const PASSTHROUGH: &str = ",passthrough=on";

/// A word for the harness: the stack has a layer of data.
pub const DATA: &str = ",data";

/// A word for the harness: it is Alice, a plain user, who mounts, and lets others in. The kernel's overlay is root's all the
/// same: a mount of hers would be in a user namespace that the others are not in.
pub const OF_ALICE: &str = ",of_alice";

/// Who makes the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The kernel's overlay, with the kernel's defaults.
    Kernel,
    /// The binary under test.
    Plyfs,
    /// Nobody: the upper directory itself, to compare with what a plain directory does.
    Plain,
}

/// A mounted union.
pub struct Mounted {
    point: PathBuf,
    server: Option<Child>,
    mounted: bool,
}

impl Mounted {
    /// Mounts `stack` at `point`, which exists; `extra` are further options, with a leading comma.
    pub fn new(maker: Maker, stack: &Stack, point: &Path, extra: &str) -> Result<Mounted, String> {
        match maker {
            Maker::Kernel => Mounted::kernel(stack, point, extra),
            Maker::Plyfs => Mounted::plyfs(stack, point, extra),
            Maker::Plain => Ok(Mounted { point: stack.upper.clone(), server: None, mounted: false }),
        }
    }

    fn kernel(stack: &Stack, point: &Path, extra: &str) -> Result<Mounted, String> {
        let known = extra.replace(PASSTHROUGH, "").replace(DATA, "").replace(OF_ALICE, "");
        let options = [stack.options(), known.into_bytes()].concat();
        let options = CString::new(options).map_err(|error| error.to_string())?;
        mount("overlay", point, "overlay", MountFlags::NOATIME, options.as_c_str())
            .map_err(|error| format!("overlay: {error}"))?;
        Ok(Mounted { point: point.to_owned(), server: None, mounted: true })
    }

    fn plyfs(stack: &Stack, point: &Path, extra: &str) -> Result<Mounted, String> {
        use std::os::unix::ffi::OsStringExt;
        let known = extra.replace(DATA, "").replace(OF_ALICE, ",allow_other");
        let options = [stack.options(), known.into_bytes()].concat();
        let log = point.with_extension("log");
        let stderr = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let mut command = Command::new(program());
        if extra.contains(OF_ALICE) {
            command = Command::new("setpriv");
            command.args(["--reuid=1000", "--regid=1000", "--groups=2000"]).arg(program());
        }
        let server = command
            .args(["-f", "-o"])
            .arg(std::ffi::OsString::from_vec(options))
            .arg(point)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| format!("plyfs: {error}"))?;
        let mut mounted = Mounted { point: point.to_owned(), server: Some(server), mounted: false };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_fuse(point) {
            let ended = mounted.server.as_mut().and_then(|server| server.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("plyfs did not mount ({ended:?}): {}", said.trim()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        mounted.mounted = true;
        Ok(mounted)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The process that serves it, if one does.
    pub fn server(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Unmounts it and waits until whoever serves it is gone.
    pub fn unmount(mut self) -> Result<(), String> {
        self.leave(UnmountFlags::empty())
    }

    /// The end of what plyfs wrote to stderr.
    pub fn said(&self) -> String {
        let log = std::fs::read_to_string(self.point.with_extension("log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    fn leave(&mut self, flags: UnmountFlags) -> Result<(), String> {
        if std::mem::take(&mut self.mounted) {
            // Whoever walks over all mounts may stand in this one for a moment.
            let deadline = Instant::now() + Duration::from_secs(2);
            while let Err(error) = unmount_as_allowed(&self.point, flags) {
                if Instant::now() > deadline {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            match server.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(Some(status)) if status.success() => return Ok(()),
                // Unmounted while it still looked whether it answers itself: no fault of this mount.
                Ok(Some(_)) if self.said().contains("gone before it answered") => return Ok(()),
                Ok(Some(status)) => return Err(format!("plyfs ended with {status}: {}", self.said())),
                Err(error) => return Err(format!("plyfs: {error}")),
            }
        }
        let stacks = stacks(server.id());
        server.kill().and_then(|()| server.wait()).map_err(|error| error.to_string())?;
        Err(format!("plyfs did not leave within 10 s of being unmounted: {}{stacks}", self.said()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.mounted {
            if let Some(mut server) = self.server.take()
                && server.kill().and_then(|()| server.wait()).is_err()
            {
                eprintln!("plyfs: already gone");
            }
            return;
        }
        if let Err(error) = self.leave(UnmountFlags::DETACH) {
            eprintln!("{}: {error}", self.point.display());
        }
    }
}

static COPY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The binary under test.
fn program() -> PathBuf {
    let copy = COPY.lock().expect("nobody panics with the lock");
    copy.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_plyfs")))
}

/// While it lives, a copy of the binary runs, because other users may not reach where it was built.
pub struct Copied;

impl Copied {
    /// Copies the binary to `dir`.
    pub fn to(dir: &Path) -> Copied {
        let copy = dir.join("plyfs");
        std::fs::copy(program(), &copy).expect("the binary was built");
        *COPY.lock().expect("nobody panics with the lock") = Some(copy);
        Copied
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        *COPY.lock().expect("nobody panics with the lock") = None;
    }
}

/// unmount(2) for root, fusermount3 for everybody else.
fn unmount_as_allowed(point: &Path, flags: UnmountFlags) -> Result<(), String> {
    match unmount(point, flags) {
        Err(rustix::io::Errno::PERM) => {
            let lazy = if flags.contains(UnmountFlags::DETACH) { "-uz" } else { "-u" };
            let output = Command::new("fusermount3").arg(lazy).arg(point).output();
            let output = output.map_err(|error| format!("fusermount3: {error}"))?;
            if output.status.success() {
                return Ok(());
            }
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
        other => other.map_err(|error| format!("unmount: {error}")),
    }
}

fn is_fuse(point: &Path) -> bool {
    const FUSE_SUPER_MAGIC: libc::c_long = 0x6573_5546;
    statfs(point).is_ok_and(|found| found.f_type == FUSE_SUPER_MAGIC)
}

/// Where each thread of a process waits in the kernel, as far as one may know.
fn stacks(pid: u32) -> String {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return String::new() };
    let mut text = String::new();
    for task in tasks.flatten() {
        let about = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        text += &format!("\n{} in {}:\n{}", about("comm").trim(), about("syscall").trim(), about("stack"));
    }
    text
}
