//! The program as its callers meet it: what it prints and answers, when it lets go of them, and every way a mount ends.
//!
//! What the union shows is for other tests; here a mount only has to be there or not. Each test has a directory of its own
//! and leaves nothing behind, mounted or running.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// How long anything may take that should happen at once.
const SOON: Duration = Duration::from_secs(10);

/// Says, past the runner's capture, why a test cannot run here.
fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    io::stderr().write_all(format!("skipped: {name}: {why}\n").as_bytes()).unwrap();
}

macro_rules! need {
    ($condition:expr, $why:expr) => {
        if !$condition {
            skipped($why);
            return;
        }
    };
}

macro_rules! need_mounts {
    () => {
        need!(can_mount(), "not root or no /dev/fuse")
    };
}

/// Whether a mount made by this process can be expected to succeed.
fn can_mount() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists()
}

fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    holds()
}

fn kill(pid: u32, signal: &str) {
    Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// `lower`, `upper`, `work` and `merged` in a directory of the test's own.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("plyfs-cli-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("lower/file"), "data").unwrap();
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn merged(&self) -> PathBuf {
        self.path("merged")
    }

    fn options(&self) -> String {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.path(name));
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display())
    }

    fn command(&self, more: &str) -> Command {
        let mut command = Command::new(PLYFS);
        command.arg("-o").arg(format!("{},{more}", self.options())).arg(self.merged());
        command
    }

    /// The command for a shell.
    fn words(&self) -> String {
        format!("'{PLYFS}' -o '{}' '{}'", self.options(), self.merged().display())
    }

    /// Mounts in the background and returns the daemon.
    fn mount(&self, more: &str) -> u32 {
        let output = self.command(more).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(self.line().is_some(), "it has returned, and nothing is mounted");
        self.daemon().expect("it has returned, and nobody serves")
    }

    /// Mounts in front.
    fn serve(&self, more: &str) -> Child {
        let child = self.command(more).arg("-f").stderr(Stdio::piped()).spawn().unwrap();
        // The mount is in the table before it answers.
        assert!(eventually(|| self.line().is_some()), "nothing is mounted");
        fs::read_dir(self.merged()).unwrap();
        child
    }

    fn unmount(&self) {
        sh(&format!("umount '{}'", self.merged().display()));
    }

    /// Our line of the mount table.
    fn line(&self) -> Option<String> {
        let merged = self.merged();
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table.lines().find(|line| line.split(' ').nth(1) == merged.to_str()).map(str::to_owned)
    }

    /// The process that was started with our mount point among its arguments.
    fn daemon(&self) -> Option<u32> {
        let merged = self.merged();
        fs::read_dir("/proc").unwrap().find_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let mut words = line.split('\0');
            (words.next()?.ends_with("plyfs") && words.any(|word| Some(word) == merged.to_str())).then_some(pid)
        })
    }

    fn is_gone(&self) -> bool {
        self.line().is_none() && self.daemon().is_none()
    }

    /// Every name in the layers, with what changes when anything does.
    fn listing(&self) -> String {
        let find = "find lower upper work merged -printf '%p %m %s %C@\\n'";
        sh(&format!("cd '{}' && {find} | sort", self.0.path().display()))
    }

    /// Gives everything to nobody, and puts the program where nobody can reach it.
    fn give_away(&self) {
        fs::copy(PLYFS, self.path("plyfs")).unwrap();
        sh(&format!(
            "chown -R 65534:65534 '{0}'/*; mknod '{0}/fuse' c 10 229; chmod 666 '{0}/fuse'",
            self.path("").display()
        ));
    }

    /// Runs a script in a mount namespace of its own, in this directory, where `/dev/fuse` is open to everybody as
    /// distributions have it. `$AS_NOBODY` begins a command that is to run as that user.
    fn in_namespace(&self, script: &str) -> Output {
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
            Command::new("umount").arg("-l").arg(self.merged()).status().ok();
        }
        if let Some(daemon) = self.daemon() {
            kill(daemon, "KILL");
        }
    }
}

/// What is missing for tests as another user, if anything.
fn users_missing() -> Option<&'static str> {
    if !can_mount() {
        return Some("not root or no /dev/fuse");
    }
    if !have("unshare") || !have("setpriv") {
        return Some("no unshare or setpriv (util-linux)");
    }
    (!have("fusermount3")).then_some("no fusermount3 (package fuse3)")
}

#[test]
fn version_and_help() {
    for flag in ["-V", "--version"] {
        let output = Command::new(PLYFS).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("plyfs {}\n", env!("CARGO_PKG_VERSION")));
    }
    let output = Command::new(PLYFS).arg0("/usr/bin/fuse-overlayfs").arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("fuse-overlayfs: version 1."));
    for flag in ["-h", "--help"] {
        let output = Command::new(PLYFS).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert!(output.stdout.split(|byte| *byte == b'\n').count() <= 25, "the help fits a screen");
    }
}

#[test]
fn a_refusal_is_one_line_that_names_the_option_and_status_1() {
    let place = Place::new();
    let (merged, file) = (place.merged(), place.path("lower/file"));
    let (merged, file) = (merged.to_str().unwrap(), file.to_str().unwrap());
    let many = format!("lowerdir={}", vec!["l"; 501].join(":"));
    let not_a_directory = format!("mountpoint={file}: Not a directory");
    let data_only = "lowerdir=a::b: two colons in a row begin data-only layers, which plyfs does not support yet";
    let table: &[(&[&str], &str)] = &[
        (&[], "mountpoint: none given (see plyfs --help)"),
        (&["--colour"], "unexpected argument '--colour' found (see plyfs --help)"),
        (&[merged], "lowerdir: missing; at least one directory is needed"),
        (&["-o", "lowerdir=", merged], "lowerdir=: empty; at least one directory is needed"),
        (&["-o", "lowerdir=:a", merged], "lowerdir=:a: begins with a colon"),
        (&["-o", "lowerdir=a:", merged], "lowerdir=a:: ends with a colon"),
        (&["-o", "lowerdir=a:::b", merged], "lowerdir=a:::b: three colons in a row"),
        (&["-o", "lowerdir=a::b", merged], data_only),
        (&["-o", &many, merged], "lowerdir: 501 directories; at most 500 are possible"),
        (&["-o", "lowerdir=l,upperdir=u", merged], "upperdir=u: needs a workdir= as well"),
        (&["-o", "lowerdir=l,redirect_dir=on", merged], "redirect_dir=on: not supported yet"),
        (&["-o", "lowerdir=l,metacopy=on", merged], "metacopy=on: not supported yet"),
        (&["-o", "lowerdir=l,uidmapping=0:1:1", merged], "uidmapping=0:1:1: not supported yet"),
        (&["-o", "lowerdir=l,threads=many", merged], "threads=many: must be a number from 1 to 1024"),
        (&["-o", "lowerdir=l", "/nonexistent"], "mountpoint=/nonexistent: No such file or directory"),
        (&["-o", "lowerdir=l", file], &not_a_directory),
        (&["-o", "lowerdir=l", "/dev/fd/77"], "mountpoint=/dev/fd/77: Bad file descriptor"),
        (&["-o", "lowerdir=l", "/non\nexistent"], r"mountpoint=/non\nexistent: No such file or directory"),
    ];
    for (arguments, expected) in table {
        for front in [&[][..], &["-f"]] {
            let output = Command::new(PLYFS).args(front).args(*arguments).output().unwrap();
            assert_eq!(said(&output), format!("plyfs: {expected}\n"));
            assert_eq!(output.status.code(), Some(1), "{expected}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn a_descriptor_of_something_else_is_refused() {
    let script = format!("exec '{PLYFS}' -o lowerdir=/ /dev/fd/7 7</dev/null");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(said(&output), "plyfs: mountpoint=/dev/fd/7: not a descriptor of /dev/fuse\n");
}

#[test]
fn a_missing_layer_is_refused_before_mounting() {
    need_mounts!();
    let place = Place::new();
    let missing = place.path("missing").display().to_string();
    for option in ["lowerdir", "upperdir", "workdir"] {
        let options: Vec<String> = place
            .options()
            .split(',')
            .map(|layer| if layer.starts_with(option) { format!("{option}={missing}") } else { layer.to_owned() })
            .collect();
        let output = Command::new(PLYFS).args(["-o", &options.join(",")]).arg(place.merged()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{option}");
        assert!(said(&output).starts_with(&format!("plyfs: {option}={missing}: ")), "{}", said(&output));
        assert_eq!(said(&output).lines().count(), 1);
        assert!(place.is_gone());
    }
}

#[test]
fn unknown_options_are_named_and_ignored() {
    need_mounts!();
    let place = Place::new();
    let output = place.command("private,frobnicate,,colour=red,context=\"u:r:t:s0:c1,c2\"").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "unknown argument ignored: frobnicate\nunknown argument ignored: colour=red\n");
    assert!(place.line().is_some());
}

#[test]
fn the_mount_table_shows_what_was_asked_for() {
    need_mounts!();
    let place = Place::new();
    place.mount("");
    let line = place.line().unwrap();
    assert!(line.starts_with("plyfs ") && line.contains(" fuse.plyfs rw,nodev,noatime,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    let place = Place::new();
    place.mount(r"ro,nosuid,noexec,dev,sync,dirsync,atime,fsname=a\,b,subtype=c,max_read=65536");
    let line = place.line().unwrap();
    assert!(line.starts_with("a,b ") && line.contains(" fuse.c ro,sync,dirsync,nosuid,noexec,"), "{line}");
    assert!(line.contains("max_read=65536") && !line.contains("nodev") && !line.contains("noatime"), "{line}");
}

#[test]
fn source_and_target_may_stand_before_the_options_and_layers_be_relative() {
    need_mounts!();
    let place = Place::new();
    let output = Command::new(PLYFS)
        .current_dir(place.0.path())
        .args(["overlay", place.merged().to_str().unwrap()])
        .args(["-o", "workdir=work,upperdir=upper", "-o", "lowerdir=lower,dev,suid"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.line().is_some());
}

#[test]
fn without_an_upper_the_mount_is_read_only() {
    need_mounts!();
    let place = Place::new();
    let options = format!("lowerdir={}", place.path("lower").display());
    let output = Command::new(PLYFS).args(["-o", &options]).arg(place.merged()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.line().unwrap().contains(" ro,"));
    let error = fs::write(place.merged().join("new"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn five_hundred_lowers_are_mounted() {
    need_mounts!();
    let place = Place::new();
    let lowers: Vec<PathBuf> = (0..500).map(|number| place.path(&format!("lower/{number}"))).collect();
    for lower in &lowers {
        fs::create_dir(lower).unwrap();
    }
    let lowers: Vec<String> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    let options = format!("lowerdir={}", lowers.join(":"));
    let output = Command::new(PLYFS).args(["-o", &options]).arg(place.merged()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(place.line().is_some());
}

#[test]
fn the_caller_is_let_go_and_its_pipes_end() {
    need_mounts!();
    let place = Place::new();
    // Descriptor 7 is one more end of our pipe that nobody told the daemon about; a lock would be kept in the same way.
    let script = format!("exec 7>&1; {}; echo $?", place.words());
    let mut caller = Command::new("sh");
    let mut caller = caller.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut stderr) = (caller.stdout.take().unwrap(), caller.stderr.take().unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        stderr.read_to_string(&mut text).unwrap();
        sender.send(text).unwrap();
    });
    assert_eq!(receiver.recv_timeout(SOON).expect("the pipes do not end"), "0\n");
    caller.wait().unwrap();
    let daemon = place.daemon().expect("nobody serves");
    let link = |name: &str| fs::read_link(format!("/proc/{daemon}/{name}")).unwrap();
    for stream in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(stream), Path::new("/dev/null"));
    }
    assert_eq!(link("cwd"), Path::new("/"));
    let status = fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap();
    let session = status.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, daemon.to_string(), "it leads a session of its own");
}

#[test]
fn the_mount_answers_when_the_caller_is_let_go() {
    need_mounts!();
    for _ in 0..20 {
        let place = Place::new();
        let before = place.merged().metadata().unwrap().dev();
        place.mount("threads=2");
        assert_ne!(place.merged().metadata().unwrap().dev(), before);
        place.unmount();
        assert!(eventually(|| place.is_gone()));
    }
}

#[test]
fn the_process_has_no_umask_and_all_the_descriptors_it_may_have() {
    need_mounts!();
    let place = Place::new();
    sh(&format!("umask 077; ulimit -S -n 64; {}", place.words()));
    let daemon = place.daemon().unwrap();
    assert!(fs::read_to_string(format!("/proc/{daemon}/status")).unwrap().contains("Umask:\t0000"));
    let limits = fs::read_to_string(format!("/proc/{daemon}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(files[3], files[4]);
}

#[test]
fn an_unmount_from_outside_ends_it() {
    need_mounts!();
    for how in ["umount", "umount -l", "fusermount3 -u"] {
        if !have(how.split(' ').next().unwrap()) {
            skipped(how);
            continue;
        }
        let place = Place::new();
        place.mount("");
        sh(&format!("{how} '{}'", place.merged().display()));
        assert!(eventually(|| place.is_gone()), "{how}");
    }
}

#[test]
fn in_front_it_ends_well_with_its_mount() {
    need_mounts!();
    let place = Place::new();
    let mut child = place.serve("");
    place.unmount();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_signal_unmounts_and_ends_it() {
    need_mounts!();
    for signal in ["TERM", "INT", "HUP"] {
        let place = Place::new();
        kill(place.mount(""), signal);
        assert!(eventually(|| place.is_gone()), "{signal} in the background");
        let place = Place::new();
        let mut child = place.serve("");
        kill(child.id(), signal);
        child.wait().unwrap();
        assert!(place.line().is_none(), "{signal} in front");
    }
}

#[test]
fn a_signal_during_the_start_leaves_nothing_mounted() {
    need_mounts!();
    for delay in 0..30 {
        let place = Place::new();
        let mut child = place.command("").arg("-f").stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(delay * 200));
        kill(child.id(), "TERM");
        child.wait().unwrap();
        assert!(place.line().is_none());
    }
}

#[test]
fn a_caller_that_is_killed_while_it_waits_leaves_nothing_mounted() {
    need_mounts!();
    for delay in 0..30 {
        let place = Place::new();
        let mut caller = place.command("").stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(delay * 100));
        kill(caller.id(), "KILL");
        if caller.wait().unwrap().success() {
            continue; // It was told in time, and its mount stays.
        }
        // Either the server noticed, or it had told already: then the mount answers.
        assert!(eventually(|| place.is_gone() || place.line().is_some() && fs::read_dir(place.merged()).is_ok()));
    }
}

#[test]
fn nohup_is_respected() {
    need_mounts!();
    let place = Place::new();
    sh(&format!("trap '' HUP; {}", place.words()));
    let daemon = place.daemon().unwrap();
    kill(daemon, "HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert!(place.line().is_some());
    kill(daemon, "TERM");
    assert!(eventually(|| place.is_gone()));
}

#[test]
fn a_broken_pipe_does_not_end_it() {
    need_mounts!();
    let place = Place::new();
    let daemon = place.mount("");
    kill(daemon, "PIPE");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(place.daemon(), Some(daemon));
}

#[test]
fn a_signal_takes_a_busy_mount_away_from_its_users() {
    need_mounts!();
    let place = Place::new();
    let daemon = place.mount("");
    let mut user = Command::new("sleep").arg("60").current_dir(place.merged()).spawn().unwrap();
    let inside = format!("/proc/{}/cwd/nothing", user.id());
    kill(daemon, "TERM");
    let gone = eventually(|| place.is_gone());
    let answer = fs::metadata(&inside);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(gone);
    assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::ENOTCONN), "an error, and no hanging");
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount() {
    need_mounts!();
    let place = Place::new();
    place.mount("");
    let number = rustix::fs::minor(place.merged().metadata().unwrap().dev());
    let control = Path::new("/sys/fs/fuse/connections");
    // The control file system need not be mounted on every machine; a namespace of our own has no such trouble.
    let script = format!("mount -t fusectl none '{}'; echo 1 > '{0}/{number}/abort'", control.display());
    let output = Command::new("unshare").args(["-m", "sh", "-euc", &script]).output().unwrap();
    need!(output.status.success(), "no fusectl file system");
    assert!(eventually(|| place.is_gone()));
}

#[test]
fn a_dead_mount_in_the_way_is_explained() {
    need_mounts!();
    let place = Place::new();
    kill(place.mount(""), "KILL");
    assert!(eventually(|| place.daemon().is_none()));
    let output = place.command("").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let hint = "Transport endpoint is not connected; a mount whose server has died";
    assert!(said(&output).contains(hint), "{}", said(&output));
}

#[test]
fn a_descriptor_that_is_mounted_already_is_served() {
    need_mounts!();
    let place = Place::new();
    let merged = place.merged().display().to_string();
    sh(&format!(
        "exec 7<>/dev/fuse
        mount -i -t fuse -o fd=7,rootmode=40000,user_id=0,group_id=0,default_permissions handed '{merged}'
        '{PLYFS}' -o '{}' /dev/fd/7
        exec 7>&-
        ls '{merged}' >/dev/null",
        place.options()
    ));
    assert!(place.line().unwrap().starts_with("handed "));
    let serves = || sh("ps -eo args").contains(&format!("{} /dev/fd/7", place.options()));
    assert!(serves());
    place.unmount();
    assert!(eventually(|| !serves()), "it leaves with its mount");
}

#[test]
fn without_the_device_nothing_is_changed() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    let before = place.listing();
    let script = format!("mount -t tmpfs none /dev; {}", place.words());
    let output = Command::new("unshare").args(["-m", "sh", "-euc", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = "plyfs: /dev/fuse: No such file or directory; load the kernel module";
    assert!(said(&output).starts_with(expected), "{}", said(&output));
    assert_eq!(place.listing(), before);
}

const NOBODY_MOUNTS: &str = "$AS_NOBODY ./plyfs -o lowerdir=lower,upperdir=upper,workdir=work merged";

#[test]
fn without_fusermount3_nothing_is_changed() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    let before = place.listing();
    let output = place.in_namespace(&format!(
        "for program in /usr/bin /bin /usr/local/bin; do
            for name in fusermount3 fusermount; do
                if [ -f $program/$name ]; then mount --bind /dev/null $program/$name; fi
            done
        done
        {NOBODY_MOUNTS}"
    ));
    let expected = "plyfs: fusermount3: not found, and mounting is not permitted without it; install `fuse3`\n";
    assert_eq!(said(&output), expected);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(place.listing(), before);
}

#[test]
fn what_fusermount3_would_refuse_changes_nothing() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    sh(&format!("chown 0:0 '{}'", place.merged().display()));
    let before = place.listing();
    let output = place.in_namespace(NOBODY_MOUNTS);
    let expected = "merged: mounting without privilege needs a directory you may write to\n";
    assert!(said(&output).ends_with(expected), "{}", said(&output));
    let output = place.in_namespace("chmod 600 fuse; $AS_NOBODY ./plyfs -o lowerdir=lower upper");
    let expected = "plyfs: /dev/fuse: Permission denied; reading and writing it must be permitted\n";
    assert_eq!(said(&output), expected);
    assert_eq!(place.listing(), before);
}

#[test]
fn a_plain_user_mounts_with_fusermount3() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    let output = place.in_namespace(&format!(
        "{NOBODY_MOUNTS}
        grep -w merged /proc/mounts | cut -d' ' -f1,3,4
        $AS_NOBODY ls -a merged >/dev/null
        $AS_NOBODY fusermount3 -u merged
        for i in $(seq 100); do pgrep -f '^./plyfs.*merged$' >/dev/null || break; sleep 0.05; done
        ! pgrep -f '^./plyfs.*merged$'"
    ));
    assert!(output.status.success(), "{}", said(&output));
    let line = String::from_utf8(output.stdout).unwrap();
    let expected = "plyfs fuse.plyfs rw,nosuid,nodev,noatime,user_id=65534,group_id=65534,default_permissions";
    assert!(line.starts_with(expected), "{line}");
}

#[test]
fn a_plain_users_mount_ends_with_a_signal_too() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    for busy in ["", "(cd merged; exec sleep 3) & sleep 0.1;"] {
        let output = place.in_namespace(&format!(
            "{NOBODY_MOUNTS} -f & {busy}
            for i in $(seq 100); do grep -qw merged /proc/mounts && break; sleep 0.05; done
            ls merged >/dev/null 2>&1 || true
            {busy} kill -TERM $(pgrep -f '^./plyfs.*merged -f$')
            for i in $(seq 100); do grep -qw merged /proc/mounts || break; sleep 0.05; done
            ! grep -w merged /proc/mounts
            wait"
        ));
        assert!(output.status.success(), "{busy}{}", said(&output));
    }
}

#[test]
fn in_a_user_namespace_nothing_else_is_needed() {
    if let Some(why) = users_missing() {
        return skipped(why);
    }
    let place = Place::new();
    place.give_away();
    let output = place.in_namespace(
        "$AS_NOBODY unshare -Urm true || exit 77
        $AS_NOBODY unshare -Urm sh -euc '
            PATH=/usr/sbin:/sbin:/bin ./plyfs -o lowerdir=lower,upperdir=upper,workdir=work merged
            grep -w merged /proc/mounts | cut -d\" \" -f1,3,4
            ls -a merged >/dev/null
            umount merged'",
    );
    need!(output.status.code() != Some(77), "this machine gives no user namespaces to plain users");
    assert!(output.status.success(), "{}", said(&output));
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.starts_with("plyfs fuse.plyfs rw,nodev,noatime,user_id=0,group_id=0,default_permissions"), "{line}");
}
