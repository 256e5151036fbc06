//! A union on temporary directories, mounted for one test and gone after it.
//!
//! `SUBJECT=kernel` mounts the kernel's overlay instead of plyfs, which is how the tests themselves are checked: what they
//! ask for is what the kernel does, or they say that they are about plyfs only. `PLYFS_TEST_OPTIONS=passthrough=on` adds
//! options to what is mounted for a test.

#![allow(dead_code)]

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub mod front;
pub mod map;
pub mod nobody;

/// The program under test.
pub const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// Whose union is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Plyfs,
    Kernel,
}

pub fn subject() -> Subject {
    match std::env::var("SUBJECT").as_deref() {
        Ok("kernel") => Subject::Kernel,
        _ => Subject::Plyfs,
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is there to be run.
pub fn have(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
        || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

/// Says that a test cannot run here: on standard error, past the runner's capture, and in the file `PLYFS_TEST_SKIPPED`.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("skipped: {name}: {why}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(file) = std::env::var_os("PLYFS_TEST_SKIPPED") {
        OpenOptions::new().append(true).create(true).open(file).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// Ends the test, visibly, unless the condition holds.
#[macro_export]
macro_rules! need {
    ($condition:expr, $why:expr) => {
        if !$condition {
            $crate::support::skipped($why);
            return;
        }
    };
}

/// Ends the test, visibly, unless it runs as root.
#[macro_export]
macro_rules! need_root {
    () => {
        $crate::need!($crate::support::is_root(), "not root")
    };
}

/// Ends the test, visibly, when the kernel's overlay is the subject.
#[macro_export]
macro_rules! plyfs_only {
    () => {
        $crate::need!(
            $crate::support::subject() == $crate::support::Subject::Plyfs,
            "a promise of plyfs that the kernel does not make"
        )
    };
}

/// Directories for a union: `l1`, `l2`, ... (the first is the topmost), `upper`, `work` and `merged` side by side.
pub struct Layers {
    dir: TempDir,
    lowers: usize,
    writable: bool,
}

impl Layers {
    /// Layers where temporary files live.
    pub fn new(lowers: usize) -> Layers {
        Layers::within(&std::env::temp_dir(), lowers)
    }

    /// Layers in a directory of the caller's choice, which decides the file system.
    pub fn within(root: &Path, lowers: usize) -> Layers {
        let dir = tempfile::Builder::new().prefix("plyfs-test-").tempdir_in(root).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for lower in 1..=lowers {
            fs::create_dir(dir.path().join(format!("l{lower}"))).unwrap();
        }
        Layers { dir, lowers, writable: true }
    }

    /// The same layers without upper and work directory.
    pub fn read_only(mut self) -> Layers {
        self.writable = false;
        self
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the only lower, or in the topmost of several.
    pub fn lower(&self, path: impl AsRef<Path>) -> PathBuf {
        self.layer(1, path)
    }

    pub fn layer(&self, number: usize, path: impl AsRef<Path>) -> PathBuf {
        self.root().join(format!("l{number}")).join(path)
    }

    pub fn upper(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join("upper").join(path)
    }

    pub fn merged(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join("merged").join(path)
    }

    /// The value of `-o`, relative to [`Layers::root`].
    pub fn options(&self) -> String {
        let lowers = (1..=self.lowers).map(|lower| format!("l{lower}")).collect::<Vec<_>>().join(":");
        let more = match (subject(), std::env::var("PLYFS_TEST_OPTIONS")) {
            (Subject::Plyfs, Ok(more)) => format!(",{more}"),
            _ => String::new(),
        };
        match self.writable {
            true => format!("lowerdir={lowers},upperdir=upper,workdir=work{more}"),
            false => format!("lowerdir={lowers}{more}"),
        }
    }

    pub fn mount(self) -> Union {
        let options = self.options();
        let target = self.merged("");
        self.mount_with(&options, &target)
    }

    /// Mounts with options of the caller's own on a target of the caller's own.
    pub fn mount_with(self, options: &str, target: &Path) -> Union {
        let output = mount_command(self.root(), options, target).output().unwrap();
        assert!(output.status.success(), "mounting failed: {}", text(&output));
        let daemon = match subject() {
            Subject::Plyfs => Some(daemon_of(target)),
            Subject::Kernel => None,
        };
        Union { target: target.to_owned(), options: options.to_owned(), daemon, layers: Some(self) }
    }
}

/// The command that mounts the subject, run from the directory that holds the layers.
pub fn mount_command(root: &Path, options: &str, target: &Path) -> Command {
    let mut command = match subject() {
        Subject::Plyfs => Command::new(PLYFS),
        Subject::Kernel => {
            let mut mount = Command::new("mount");
            mount.args(["-t", "overlay", "overlay"]);
            mount
        }
    };
    command.current_dir(root).arg("-o").arg(options).arg(target);
    command
}

/// A mounted union. Dropping it unmounts, and for plyfs waits until the daemon has left.
pub struct Union {
    layers: Option<Layers>,
    target: PathBuf,
    options: String,
    daemon: Option<u32>,
}

impl Deref for Union {
    type Target = Layers;

    fn deref(&self) -> &Layers {
        self.layers.as_ref().unwrap()
    }
}

impl Union {
    /// The process that serves the mount; there is none for the kernel's overlay.
    pub fn daemon(&self) -> u32 {
        self.daemon.unwrap()
    }

    /// Unmounts and hands the layers back.
    pub fn unmount(mut self) -> Layers {
        let layers = self.layers.take().unwrap();
        if let Err(wrong) = self.leave() {
            panic!("{wrong}");
        }
        layers
    }

    /// Unmounts and mounts the same layers again.
    pub fn remount(self) -> Union {
        let (options, target) = (self.options.clone(), self.target.clone());
        self.unmount().mount_with(&options, &target)
    }

    fn leave(&self) -> Result<(), String> {
        let mut output = unmount_command(&self.target).output().unwrap();
        for _ in 0..20 {
            if output.status.success() {
                break;
            }
            // A program that was just run from the mount may hold it for a moment longer.
            std::thread::sleep(Duration::from_millis(50));
            output = unmount_command(&self.target).output().unwrap();
        }
        if !output.status.success() {
            let lazily = Command::new("umount").arg("-l").arg(&self.target).output().unwrap();
            return Err(format!("unmounting failed: {}{}", text(&output), text(&lazily)));
        }
        let Some(daemon) = self.daemon else { return Ok(()) };
        match eventually(Duration::from_secs(10), || !runs(daemon)) {
            true => Ok(()),
            false => Err(format!("the daemon stayed after its mount had gone:\n{}", threads_of(daemon))),
        }
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        if self.layers.is_some() {
            let left = self.leave();
            assert!(left.is_ok() || std::thread::panicking(), "{left:?}");
        }
    }
}

/// What each thread of a process is doing, and where, as far as this machine can tell.
fn threads_of(pid: u32) -> String {
    let mut report = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let file =
            |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default().trim().replace('\n', " < ");
        let line = [file("comm"), file("wchan"), file("syscall"), file("stack")].join(" | ");
        report.push_str(&format!("{line}\n"));
    }
    let debugger = ["-p", &pid.to_string(), "-batch", "-ex", "thread apply all bt"];
    if let Ok(output) = Command::new("gdb").args(debugger).output() {
        report.push_str(&text(&output));
    }
    report
}

pub fn unmount_command(target: &Path) -> Command {
    let mut command = match (subject(), is_root()) {
        (Subject::Plyfs, false) => {
            let mut fusermount = Command::new("fusermount3");
            fusermount.arg("-u");
            fusermount
        }
        _ => Command::new("umount"),
    };
    command.arg(target);
    command
}

/// The plyfs process whose command line ends in the mount point.
fn daemon_of(target: &Path) -> u32 {
    let wanted = target.to_str().unwrap().trim_end_matches('/');
    let found = fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut words = line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let first = words.next()?;
        (first == PLYFS && words.any(|word| word.trim_end_matches('/') == wanted)).then_some(pid)
    });
    found.unwrap_or_else(|| panic!("no daemon serves {wanted}"))
}

/// Whether a process is there and has not ended; one that nobody has waited for yet has ended.
pub fn runs(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// A process that is stopped for as long as this lives.
pub struct Stopped(rustix::process::Pid);

impl Stopped {
    pub fn new(pid: u32) -> Stopped {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let stopped = Stopped(pid);
        // The signal is only sent then: a thread on another processor goes on until it sees it.
        assert!(eventually(Duration::from_secs(10), || stopped.holds()), "{pid:?} does not stop");
        stopped
    }

    fn holds(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.as_raw_nonzero())).unwrap();
        tasks.flatten().all(|task| {
            // A thread that has ended in between is as good as stopped.
            let status = fs::read_to_string(task.path().join("stat"));
            status.is_err() || status.is_ok_and(|text| text.rsplit(") ").next().unwrap().starts_with(['T', 'Z', 'X']))
        })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::CONT).unwrap();
    }
}

/// Tries until it holds or the time is over.
pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell script in a directory, as the user that runs the tests; it must succeed.
pub fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("bash").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes a file, with the directories above it.
pub fn write(path: impl AsRef<Path>, data: impl AsRef<[u8]>) {
    let path = path.as_ref();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
}

pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

pub fn append(path: impl AsRef<Path>, data: &str) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(data.as_bytes()).unwrap();
}

/// The names in a directory, sorted.
pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The errno of a result that must be an error.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    }
}

pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}

pub fn ino(path: impl AsRef<Path>) -> u64 {
    path.as_ref().symlink_metadata().unwrap().ino()
}

pub fn mode(path: impl AsRef<Path>) -> u32 {
    path.as_ref().symlink_metadata().unwrap().mode() & 0o7777
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Whether a layer holds a whiteout at this path.
pub fn is_whiteout(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok_and(|found| found.mode() == libc::S_IFCHR && found.rdev() == 0)
}

/// The overlay's own mark on a file of a layer, whichever namespace it is in.
pub fn mark(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    ["trusted", "user"].iter().find_map(|space| xattr(path.as_ref(), &format!("{space}.overlay.{name}")))
}

pub fn xattr(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65536];
    let length = rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

pub fn set_xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path.as_ref(), name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

pub fn xattr_names(path: impl AsRef<Path>) -> Vec<String> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path.as_ref(), &mut list[..]).unwrap();
    list.truncate(length);
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()).into_string().unwrap())
        .collect()
}

/// A file opened for reading and writing.
pub fn open(path: impl AsRef<Path>) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}
