//! From the moment the caller is let go to the end of the mount, whoever brings it about.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::*;
use crate::{need, need_mounts};

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

/// Whether this process ignores SIGHUP, and so does all that it begins: as under nohup(1).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & 1 != 0
}

#[test]
fn a_signal_unmounts_and_ends_it() {
    need_mounts!();
    for signal in ["TERM", "INT", "HUP"].into_iter().take(if ignores_hangup() { 2 } else { 3 }) {
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
    let server = process(daemon);
    kill(daemon, "TERM");
    let gone = eventually(|| place.is_gone());
    // A thread that is about to end can still take a request, and lose it: ECONNABORTED, or EIO.
    let ended = has_ended(&server);
    let answer = fs::metadata(&inside);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(gone && ended);
    let errno = answer.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::ENOTCONN), "an error, and no hanging");
}

#[test]
fn what_was_written_survives_a_signal_to_a_busy_mount() {
    need_mounts!();
    let place = Place::new();
    let daemon = place.mount("writeback=1");
    let mut file = fs::File::create(place.merged().join("new")).unwrap();
    let data = vec![7; 1 << 20];
    file.write_all(&data).unwrap();
    kill(daemon, "TERM");
    assert!(eventually(|| place.is_gone()));
    assert!(fs::read(place.path("upper/new")).unwrap() == data);
}

#[test]
fn it_can_be_killed_at_any_moment() {
    need_mounts!();
    for delay in 0..40 {
        let place = Place::new();
        let mut starting = place.command("writeback=1").arg("-f").stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(delay * 150));
        kill(starting.id(), "KILL");
        starting.wait().unwrap();
        assert!(eventually(|| place.daemon().is_none()), "killed while it starts");
        sh(&format!("umount -l '{}' 2>/dev/null || true", place.merged().display()));

        let daemon = place.mount("writeback=1");
        let mut file = fs::File::create(place.merged().join("new")).unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        kill(daemon, "TERM");
        std::thread::sleep(Duration::from_micros(delay * 100));
        kill(daemon, "KILL");
        assert!(eventually(|| place.daemon().is_none()), "killed while it leaves");
    }
}

#[test]
fn a_caller_that_ignores_its_children_is_no_trouble() {
    need_mounts!();
    let place = Place::new();
    // An ignored SIGCHLD is inherited, and takes away the status of every child.
    let output =
        Command::new("perl").args(["-e", "$SIG{CHLD} = 'IGNORE'; exec @ARGV", "sh", "-c", &place.words()]).output();
    need!(output.is_ok(), "no perl");
    assert!(place.line().is_some());
    kill(place.daemon().unwrap(), "TERM");
    assert!(eventually(|| place.is_gone()));
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
    let hint = "; a mount whose server has died is in the way";
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
