//! Mixed load: several processes at one union, each of which knows what it must find.
//!
//! In rounds of a few seconds: mount, load, look, unmount (the server has to end), mount again, look whether all is as it was.
//! `PLYFS_LOAD=300` is for how many seconds (20 if not given); `SUBJECT=kernel` loads the kernel's overlay.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod roles;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{Layers, Union, write};

/// The variable that makes a run of this program a worker: role, number, seconds and the mount.
const WORKER: &str = "PLYFS_LOAD_WORKER";

/// Who takes part, and how many of them.
const CAST: [(&str, usize); 6] =
    [("churn", 2), ("storm", 2), ("reader", 1), ("flicker", 1), ("lister", 1), ("mapper", 1)];

const ROUND: u64 = 4;

fn layers() -> Layers {
    let layers = Layers::within(Path::new(if Path::new("/var/tmp").is_dir() { "/var/tmp" } else { "/tmp" }), 2);
    for n in 0..roles::STORM_FILES {
        write(layers.layer(1 + n % 2, format!("storm/{}/{n}", n % 7)), roles::original(n));
    }
    for n in 0..roles::STEADY {
        write(layers.layer(1 + n % 2, format!("listed/steady-{n}")), n.to_string());
    }
    for who in 0..4 {
        for n in 0..10 {
            write(layers.lower(format!("churn-{who}/low/{n}")), "low");
        }
    }
    layers
}

fn worker(role: &str, number: usize, mount: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "mixed_load_finds_what_must_be_there", "--nocapture"]);
    command.env(WORKER, format!("{role} {number} {ROUND} {}", mount.display())).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Everything that shows, to be compared with what shows after another mount. Numbers in listings are those of the objects.
fn snapshot(dir: &Path, found: &mut BTreeMap<String, (u32, u64, u64, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let meta = path.symlink_metadata().unwrap();
        let kernel = support::subject() == support::Subject::Kernel;
        assert!(kernel || entry.ino() == meta.ino(), "d_ino and st_ino of {}", path.display());
        let content = match () {
            () if meta.is_file() => fs::read(&path).unwrap(),
            () if meta.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
            () => Vec::new(),
        };
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let size = if meta.is_dir() { 0 } else { meta.size() };
        found.insert(path.display().to_string(), (meta.mode(), links, size, content));
        if meta.is_dir() {
            snapshot(&path, found);
        }
    }
}

/// One round. Returns the union, mounted again, and how many operations there were.
fn round(union: Union) -> (Union, u64) {
    let mount = union.merged("");
    let mut workers = Vec::new();
    for (role, count) in CAST {
        workers.extend((0..count).map(|number| (role, worker(role, number, &mount))));
    }
    let mut operations = 0;
    for (role, worker) in workers {
        let output = worker.wait_with_output().unwrap();
        assert!(output.status.success(), "{role}: {}", support::text(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let done = text.split_whitespace().skip_while(|word| *word != "operations").nth(1);
        operations += done.unwrap().parse::<u64>().unwrap();
    }
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    snapshot(&mount, &mut before);
    let union = union.remount();
    snapshot(&mount, &mut after);
    for (path, object) in &before {
        let now = after.get(path).unwrap_or_else(|| panic!("{path} is gone after another mount"));
        assert!(
            object == now,
            "{path} is another after another mount: {:?} {:?}",
            (object.0, object.1, object.2),
            (now.0, now.1, now.2)
        );
    }
    assert_eq!(before.len(), after.len(), "there is more after another mount");
    (union, operations)
}

/// Runs this test once more in a mount namespace of its own, where whoever makes a namespace meanwhile (another test, a
/// container) gets no copy of its mounts: a copy keeps the server alive when the mount itself is gone. Says whether it did.
fn apart() -> bool {
    if !support::is_root() || !support::have("unshare") || std::env::var_os(APART).is_some() {
        return false;
    }
    let script = format!("{}; exec \"$@\"", support::nobody::FORGET_MOUNTS);
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-c", &script, "bash"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "mixed_load_finds_what_must_be_there", "--nocapture"]).env(APART, "1");
    assert!(command.status().unwrap().success(), "see above");
    true
}

/// Set in the run that has a mount namespace of its own.
const APART: &str = "PLYFS_LOAD_APART";

#[test]
fn mixed_load_finds_what_must_be_there() {
    if let Ok(worker) = std::env::var(WORKER) {
        let words: Vec<&str> = worker.splitn(4, ' ').collect();
        let end = Instant::now() + Duration::from_secs(words[2].parse().unwrap());
        let operations = roles::play(words[0], words[1].parse().unwrap(), Path::new(words[3]), end);
        println!("\noperations {operations} ");
        return;
    }
    if apart() {
        return;
    }
    let seconds = std::env::var("PLYFS_LOAD").map_or(20, |seconds| seconds.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut rounds, mut operations) = (0, 0);
    while Instant::now() < end {
        // Fresh layers every few rounds: copy-ups happen once a file.
        let mut union = layers().mount();
        for _ in 0..2 {
            let (again, more) = round(union);
            union = again;
            operations += more;
            rounds += 1;
        }
        assert!(
            support::names(union.root().join("work/work")).is_empty() || support::subject() == support::Subject::Kernel
        );
    }
    println!(
        "{rounds} rounds, {operations} operations of {} processes each",
        CAST.iter().map(|(_, n)| n).sum::<usize>()
    );
}
