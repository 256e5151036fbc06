//! A server in the foreground, which ends with what started it, and tells what it has done.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::{Layers, PLYFS, eventually, read, unmount_command};

/// How long a server may take for anything.
const SOON: Duration = Duration::from_secs(10);

/// The server, for as long as this lives; its mount goes with it.
pub struct InFront {
    child: Child,
    target: PathBuf,
}

impl InFront {
    /// What `command` runs serves a mount here, or will.
    pub fn new(mut command: Command, target: &Path) -> InFront {
        InFront { child: command.spawn().unwrap(), target: target.to_owned() }
    }

    pub fn is_mounted(&self) -> bool {
        read("/proc/self/mounts").lines().any(|line| line.split(' ').nth(1) == self.target.to_str())
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for InFront {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut unmounted = Ok(());
        if self.is_mounted() {
            let output = unmount_command(&self.target).output().unwrap();
            unmounted = if output.status.success() { Ok(()) } else { Err(super::text(&output)) };
        }
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// A server in the foreground that is asked how many requests it has had.
pub struct Counted {
    server: InFront,
    log: PathBuf,
    merged: PathBuf,
    layers: Layers,
}

impl Counted {
    pub fn new(layers: Layers) -> Counted {
        let (merged, log) = (layers.root().canonicalize().unwrap().join("merged"), layers.root().join("log"));
        let mut command = Command::new(PLYFS);
        command.args(["-f", "-o", &layers.options()]).arg(&merged);
        command.current_dir(layers.root()).stderr(File::create(&log).unwrap());
        let mut server = InFront::new(command, &merged);
        assert!(
            eventually(SOON, || server.is_mounted() || server.has_ended()) && server.is_mounted(),
            "{}",
            read(&log)
        );
        Counted { server, log, merged, layers }
    }

    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    pub fn merged(&self, path: impl AsRef<Path>) -> PathBuf {
        self.merged.join(path)
    }

    /// How many requests of each kind there were so far.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        let reports = || read(&self.log).lines().filter(|line| line.contains(" requests ")).count();
        let before = reports();
        let pid = rustix::process::Pid::from_raw(self.server.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        assert!(eventually(SOON, || reports() > before && read(&self.log).ends_with('\n')), "it says nothing");
        let log = read(&self.log);
        let line = log.lines().rev().find(|line| line.contains(" requests ")).unwrap();
        let (counts, _) = line.split_once(';').unwrap();
        let words: Vec<&str> = counts.split(' ').collect();
        let kinds =
            words.windows(2).filter(|pair| pair[0].chars().all(|letter| letter.is_ascii_uppercase() || letter == '_'));
        kinds.filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?))).collect()
    }
}
