//! A place for a mount, and what tests of a program need.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

pub const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// How long anything may take that should happen at once.
pub const SOON: Duration = Duration::from_secs(20);

/// Says, past the runner's capture, why a test cannot run here.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    io::stderr().write_all(format!("skipped: {name}: {why}\n").as_bytes()).unwrap();
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

/// Ends the test, visibly, where nothing can be mounted.
#[macro_export]
macro_rules! need_mounts {
    () => {
        $crate::need!($crate::support::can_mount(), "not root or no /dev/fuse")
    };
}

/// Whether a mount made by this process can be expected to succeed.
pub fn can_mount() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists()
}

pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    holds()
}

pub fn kill(pid: u32, signal: &str) {
    Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).output().unwrap();
}

/// A hold on a process: however its number is used later, this one is meant.
pub fn process(pid: u32) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}

/// Whether a process has ended within [`SOON`], with all its threads and everything that it had open. Its command line, by
/// which [`Place::daemon`] knows it, is gone before that.
pub fn has_ended(process: &OwnedFd) -> bool {
    let timeout = Timespec { tv_sec: SOON.as_secs().try_into().unwrap(), tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// `lower`, `upper`, `work` and `merged` in a directory of the test's own.
pub struct Place(pub TempDir);

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("plyfs-cli-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("lower/file"), "data").unwrap();
        Place(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    pub fn merged(&self) -> PathBuf {
        self.path("merged")
    }

    pub fn options(&self) -> String {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.path(name));
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display())
    }

    pub fn command(&self, more: &str) -> Command {
        let mut command = Command::new(PLYFS);
        command.arg("-o").arg(format!("{},{more}", self.options())).arg(self.merged());
        command
    }

    /// The command for a shell.
    pub fn words(&self) -> String {
        format!("'{PLYFS}' -o '{}' '{}'", self.options(), self.merged().display())
    }

    /// Mounts in the background and returns the daemon.
    pub fn mount(&self, more: &str) -> u32 {
        let output = self.command(more).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(self.line().is_some(), "it has returned, and nothing is mounted");
        self.daemon().expect("it has returned, and nobody serves")
    }

    /// Mounts in front.
    pub fn serve(&self, more: &str) -> Child {
        let child = self.command(more).arg("-f").stderr(Stdio::piped()).spawn().unwrap();
        // The mount is in the table before it answers.
        assert!(eventually(|| self.line().is_some()), "nothing is mounted");
        fs::read_dir(self.merged()).unwrap();
        child
    }

    pub fn unmount(&self) {
        sh(&format!("umount '{}'", self.merged().display()));
    }

    /// Our line of the mount table.
    pub fn line(&self) -> Option<String> {
        let merged = self.merged();
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table.lines().find(|line| line.split(' ').nth(1) == merged.to_str()).map(str::to_owned)
    }

    /// The process that was started with our mount point among its arguments.
    pub fn daemon(&self) -> Option<u32> {
        let merged = self.merged();
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let mut words = line.split('\0');
            (words.next()?.ends_with("plyfs") && words.any(|word| Some(word) == merged.to_str())).then_some(pid)
        })
    }

    pub fn is_gone(&self) -> bool {
        self.line().is_none() && self.daemon().is_none()
    }

    /// Every name in the layers, with what changes when anything does.
    pub fn listing(&self) -> String {
        let find = "find lower upper work merged -printf '%p %m %s %C@\\n'";
        sh(&format!("cd '{}' && {find} | sort", self.0.path().display()))
    }

    /// Gives everything to nobody, and puts the program where nobody can reach it.
    pub fn give_away(&self) {
        fs::copy(PLYFS, self.path("plyfs")).unwrap();
        sh(&format!(
            "chown -R 65534:65534 '{0}'/*; mknod '{0}/fuse' c 10 229; chmod 666 '{0}/fuse'",
            self.path("").display()
        ));
    }

    /// Runs a script in a mount namespace of its own, in this directory, where `/dev/fuse` is open to everybody as
    /// distributions have it. `$AS_NOBODY` begins a command that is to run as that user.
    pub fn in_namespace(&self, script: &str) -> Output {
        Command::new("unshare")
            .args(["-m", "sh", "-euc", &format!("mount --bind fuse /dev/fuse\n{script}")])
            .current_dir(self.path(""))
            .env("AS_NOBODY", "setpriv --reuid=65534 --regid=65534 --clear-groups")
            .output()
            .unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.line().is_some() {
            Command::new("umount").arg("-l").arg(self.merged()).output().ok();
        }
        if let Some(daemon) = self.daemon() {
            kill(daemon, "KILL");
        }
    }
}
