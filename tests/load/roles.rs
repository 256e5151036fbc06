//! What the workers do, and what each of them knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::map::Map;

/// Lower files that all storms write to.
pub const STORM_FILES: usize = 300;
/// Names that are always there while others come and go.
pub const STEADY: usize = 60;

const SLOT: usize = 64;
const SLOTS: usize = 16;

/// What a file of the storm holds at first: slots of its number.
pub fn original(n: usize) -> Vec<u8> {
    format!("{n:0SLOT$}").repeat(SLOTS).into_bytes()
}

fn slot_of(n: usize, writer: usize) -> Vec<u8> {
    format!("{:0SLOT$}", 1_000_000 * (writer + 1) + n).into_bytes()
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }
}

/// Plays one role until its time is over. Returns how many operations that were.
pub fn play(role: &str, number: usize, mount: &Path, end: Instant) -> u64 {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    println!("{role} {number} seed {seed}");
    let random = Random(u64::from(seed));
    match role {
        "churn" => Churn::new(mount.join(format!("churn-{number}")), random).go(end),
        "storm" => storm(mount, number, random, end),
        "reader" => reader(mount, random, end),
        "flicker" => flicker(mount, random, end),
        "lister" => lister(mount, end),
        "mapper" => mapper(mount, random, end),
        other => panic!("nobody plays {other}"),
    }
}

fn storm_path(mount: &Path, n: usize) -> PathBuf {
    mount.join(format!("storm/{}/{n}", n % 7))
}

/// Writes its own slot of files that others write to at the same time, and finds it there ever after.
fn storm(mount: &Path, number: usize, mut random: Random, end: Instant) -> u64 {
    let mut operations = 0;
    let mut written = BTreeSet::new();
    while Instant::now() < end {
        let n = random.below(STORM_FILES);
        let file = OpenOptions::new().read(true).write(true).open(storm_path(mount, n)).unwrap();
        file.write_all_at(&slot_of(n, number), (number * SLOT) as u64).unwrap();
        written.insert(n);
        if random.below(4) == 0 {
            file.sync_all().unwrap();
        }
        let again = *written.iter().nth(random.below(written.len())).unwrap();
        let found = fs::read(storm_path(mount, again)).unwrap();
        assert_eq!(found.len(), SLOT * SLOTS, "size of storm file {again}");
        assert_eq!(found[number * SLOT..][..SLOT], slot_of(again, number), "own slot of storm file {again}");
        operations += 3;
    }
    operations
}

/// Reads the files of the storm: each slot is the first text or its writer's, never anything else.
fn reader(mount: &Path, mut random: Random, end: Instant) -> u64 {
    let mut operations = 0;
    while Instant::now() < end {
        let n = random.below(STORM_FILES);
        let found = fs::read(storm_path(mount, n)).unwrap();
        assert_eq!(found.len(), SLOT * SLOTS, "size of storm file {n}");
        let first = original(n);
        for (writer, slot) in found.chunks(SLOT).enumerate() {
            let known = *slot == first[..SLOT] || *slot == slot_of(n, writer);
            assert!(known, "slot {writer} of storm file {n}: {}", String::from_utf8_lossy(slot));
        }
        operations += 1;
    }
    operations
}

/// Makes and removes names beside the steady ones.
fn flicker(mount: &Path, mut random: Random, end: Instant) -> u64 {
    let mut operations = 0;
    let dir = mount.join("listed");
    while Instant::now() < end {
        let (one, other) = (dir.join(format!("flicker-{}", random.below(40))), dir.join("flicker-moved"));
        match fs::remove_file(&one) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::write(&one, "x").unwrap();
                if random.below(3) == 0 {
                    fs::rename(&one, &other).unwrap();
                }
            }
            Err(error) => panic!("{}: {error}", one.display()),
        }
        // A copy-up in the listed directory, now and then.
        if random.below(20) == 0 {
            let n = random.below(STEADY);
            fs::write(dir.join(format!("steady-{n}")), n.to_string()).unwrap();
        }
        operations += 1;
    }
    operations
}

/// Lists while names come and go: the steady ones are always there, once each, with the numbers that they have.
fn lister(mount: &Path, end: Instant) -> u64 {
    let mut operations = 0;
    let dir = mount.join("listed");
    while Instant::now() < end {
        let mut seen = BTreeMap::new();
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("steady-") {
                assert_eq!(seen.insert(name.clone(), entry.ino()), None, "{name} is listed twice");
            }
        }
        assert_eq!(seen.len(), STEADY, "steady names");
        for (name, listed) in seen {
            let found = dir.join(&name).symlink_metadata().unwrap().ino();
            let kernel = crate::support::subject() == crate::support::Subject::Kernel;
            assert!(kernel || listed == found, "d_ino {listed} and st_ino {found} of {name}");
            operations += 1;
        }
    }
    operations
}

/// Writes through a mapping and reads with read(2), and the other way round.
fn mapper(mount: &Path, mut random: Random, end: Instant) -> u64 {
    let mut operations = 0;
    let path = mount.join("mapped");
    while Instant::now() < end {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        let map = Map::new(&file);
        for _ in 0..50 {
            let (at, value) = (random.below(4096), u8::try_from(random.below(256)).unwrap());
            map.set(at, value);
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).unwrap();
            assert_eq!(byte[0], value, "written through the mapping at {at}");
            let other = (at + 2048) % 4096;
            file.write_all_at(&[value ^ 1], other as u64).unwrap();
            assert_eq!(map.get(other), value ^ 1, "written at {other}, seen in the mapping");
            operations += 2;
        }
    }
    operations
}

/// A tree of its own, with a model of it.
struct Churn {
    dir: PathBuf,
    random: Random,
    /// Files by path, each with the number of its object.
    files: BTreeMap<String, usize>,
    contents: BTreeMap<usize, Vec<u8>>,
    dirs: BTreeSet<String>,
    next: usize,
}

impl Churn {
    /// Takes up what an earlier round left.
    fn new(dir: PathBuf, random: Random) -> Churn {
        let mut churn =
            Churn { dir, random, files: BTreeMap::new(), contents: BTreeMap::new(), dirs: BTreeSet::new(), next: 0 };
        churn.take_up("");
        churn
    }

    fn take_up(&mut self, below: &str) {
        let mut objects = BTreeMap::new();
        for entry in fs::read_dir(self.dir.join(below)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if entry.file_type().unwrap().is_dir() {
                self.dirs.insert(path.clone());
                self.take_up(&path);
            } else {
                // Links of one object in several directories are parted by removing all but one.
                let meta = entry.metadata().unwrap();
                if meta.nlink() > 1 {
                    fs::remove_file(self.dir.join(&path)).unwrap();
                    continue;
                }
                self.next += 1;
                objects.insert(path, (self.next, fs::read(entry.path()).unwrap()));
            }
        }
        for (path, (object, content)) in objects {
            self.files.insert(path, object);
            self.contents.insert(object, content);
        }
    }

    fn any_dir(&mut self) -> String {
        let n = self.random.below(self.dirs.len() + 1);
        self.dirs.iter().nth(n).cloned().unwrap_or_default()
    }

    fn new_name(&mut self) -> String {
        let dir = self.any_dir();
        let name = format!("n{}", self.random.below(60));
        if dir.is_empty() { name } else { format!("{dir}/{name}") }
    }

    fn any_file(&mut self) -> Option<(String, usize)> {
        let n = self.random.below(self.files.len().max(1));
        self.files.iter().nth(n).map(|(path, object)| (path.clone(), *object))
    }

    fn is_free(&self, path: &str) -> bool {
        !self.files.contains_key(path) && !self.dirs.contains(path)
    }

    fn go(mut self, end: Instant) -> u64 {
        let mut operations = 0;
        while Instant::now() < end {
            self.step();
            operations += 1;
            if operations % 200 == 0 {
                self.check();
            }
        }
        self.check();
        operations
    }

    fn step(&mut self) {
        let new = self.new_name();
        let at = |churn: &Churn, path: &str| churn.dir.join(path);
        match self.random.below(12) {
            0..3 if self.is_free(&new) && self.files.len() < 300 => {
                let content = vec![b'c'; self.random.below(9000)];
                fs::write(at(self, &new), &content).unwrap();
                self.next += 1;
                self.contents.insert(self.next, content);
                self.files.insert(new, self.next);
            }
            3 if self.is_free(&new) && self.dirs.len() < 30 && new.matches('/').count() < 4 => {
                fs::create_dir(at(self, &new)).unwrap();
                self.dirs.insert(new);
            }
            4 | 5 => {
                let Some((path, object)) = self.any_file() else { return };
                let (from, length) = (self.random.below(9000), self.random.below(3000));
                let content = self.contents.get_mut(&object).unwrap();
                content.resize(content.len().max(from + length), 0);
                content[from..from + length].fill(b'w');
                let content_length = content.len();
                let file = OpenOptions::new().write(true).open(at(self, &path)).unwrap();
                file.write_all_at(&vec![b'w'; length], from as u64).unwrap();
                if length == 0 {
                    file.set_len(content_length as u64).unwrap();
                }
            }
            6 => {
                let Some((path, object)) = self.any_file() else { return };
                let size = self.random.below(9000);
                self.contents.get_mut(&object).unwrap().resize(size, 0);
                File::options().write(true).open(at(self, &path)).unwrap().set_len(size as u64).unwrap();
            }
            7 | 8 => {
                let Some((path, object)) = self.any_file() else { return };
                if self.dirs.contains(&new) || path == new || self.files.get(&new) == Some(&object) {
                    return;
                }
                fs::rename(at(self, &path), at(self, &new)).unwrap();
                self.files.remove(&path);
                self.files.insert(new, object);
            }
            9 => {
                let Some((path, object)) = self.any_file() else { return };
                if self.is_free(&new) {
                    fs::hard_link(at(self, &path), at(self, &new)).unwrap();
                    self.files.insert(new, object);
                }
            }
            10 => {
                let Some((path, _)) = self.any_file() else { return };
                fs::remove_file(at(self, &path)).unwrap();
                self.files.remove(&path);
            }
            _ => {
                let dir = self.any_dir();
                if dir.is_empty() {
                    return;
                }
                let inside = format!("{dir}/");
                let is_inside = |path: &String| path.starts_with(&inside);
                if self.files.keys().any(is_inside) || self.dirs.iter().any(is_inside) {
                    let error = fs::remove_dir(at(self, &dir)).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::DirectoryNotEmpty, "{dir}: {error}");
                } else {
                    fs::remove_dir(at(self, &dir)).unwrap();
                    self.dirs.remove(&dir);
                }
            }
        }
    }

    fn check(&self) {
        let (mut files, mut dirs) = (BTreeSet::new(), BTreeSet::new());
        self.look("", &mut files, &mut dirs);
        assert_eq!(dirs, self.dirs, "directories in {}", self.dir.display());
        assert_eq!(files, self.files.keys().cloned().collect::<BTreeSet<_>>(), "files in {}", self.dir.display());
    }

    fn look(&self, below: &str, files: &mut BTreeSet<String>, dirs: &mut BTreeSet<String>) {
        for entry in fs::read_dir(self.dir.join(below)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let meta = entry.path().symlink_metadata().unwrap();
            if crate::support::subject() == crate::support::Subject::Plyfs {
                assert_eq!(entry.ino(), meta.ino(), "d_ino and st_ino of {path}");
            }
            if meta.is_dir() {
                self.look(&path, files, dirs);
                dirs.insert(path);
                continue;
            }
            let object = self.files.get(&path).unwrap_or_else(|| panic!("{path} should not be there"));
            let links = self.files.values().filter(|other| *other == object).count();
            assert_eq!(meta.nlink(), links as u64, "links of {path}");
            let found = fs::read(entry.path()).unwrap();
            assert!(found == self.contents[object], "contents of {path}");
            files.insert(path);
        }
    }
}
