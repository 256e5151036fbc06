//! Layers written down as text, made as directories, and read back as text.
//!
//! One object a line; directories above it are made as needed:
//!
//! ```text
//! dir/            a directory         dir/ opaque     an opaque one
//! file = text     a regular file      name == other   a hard link of another name of the layer
//! link -> target  a symlink           !name           a whiteout
//! ```

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use plyfs::overlay::config::{Config, Fsync, Upper, Whiteouts};
use plyfs::overlay::{NodeId, Overlay};
use plyfs::sys::{self, At, Kind};
use rustix::fs::CWD;
use tempfile::TempDir;

/// A directory that goes with all that is in it, also directories that shut out their owner: entries of the index are such.
struct Scratch(TempDir);

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut dirs = vec![self.0.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                if entry.metadata().is_ok_and(|meta| meta.mode() & 0o700 != 0o700) {
                    fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700)).ok();
                }
                dirs.push(entry.path());
            }
        }
    }
}

/// Directories for a union, not opened yet.
pub struct Layers {
    dir: Scratch,
    pub config: Config,
}

/// An open union with the lookups that a test has made in it.
pub struct Union {
    pub overlay: Overlay,
    pub layers: Layers,
    pub(crate) lookups: Mutex<HashMap<NodeId, u64>>,
}

impl Layers {
    /// Lower layers, topmost first, under an empty upper.
    pub fn of(lowers: &[&str]) -> Layers {
        let dir = tempfile::Builder::new().prefix("plyfs-union-").tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let upper = Upper { dir: path("upper"), work: path("work") };
        let lowers = lowers
            .iter()
            .enumerate()
            .map(|(n, text)| {
                let layer = path(&format!("l{}", n + 1));
                describe(&layer, text);
                layer
            })
            .collect();
        Layers { dir: Scratch(dir), config: Config { lowers, upper: Some(upper), ..Config::default() } }
    }

    /// Layers that another process made; they are not removed.
    pub fn at(dir: &Path) -> Layers {
        // In there, so that it goes with them when this process is killed.
        let own = tempfile::Builder::new().prefix("victim-").tempdir_in(dir).unwrap();
        let upper = Upper { dir: dir.join("upper"), work: dir.join("work") };
        let lowers = (1..).map(|n| dir.join(format!("l{n}"))).take_while(|layer| layer.exists()).collect();
        Layers { dir: Scratch(own), config: Config { lowers, upper: Some(upper), ..Config::default() } }
    }

    /// With something in the upper.
    pub fn upper(self, text: &str) -> Layers {
        describe(&self.upper_path(""), text);
        self
    }

    /// Without an upper.
    pub fn read_only(mut self) -> Layers {
        self.config.upper = None;
        self
    }

    /// With deletions written as `.wh.` names.
    pub fn wh_names(mut self) -> Layers {
        self.config.whiteouts = Whiteouts::Names;
        self
    }

    /// Without syncing, for tests that copy up a lot.
    pub fn volatile(mut self) -> Layers {
        self.config.fsync = Fsync::Volatile;
        self
    }

    pub fn root(&self) -> &Path {
        self.dir.0.path()
    }

    pub fn lower(&self, number: usize, path: impl AsRef<Path>) -> PathBuf {
        self.root().join(format!("l{number}")).join(path)
    }

    pub fn upper_path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root().join("upper").join(path)
    }

    pub fn work_path(&self) -> PathBuf {
        self.root().join("work/work")
    }

    /// Opens the union.
    pub fn open(self) -> Union {
        let overlay = Overlay::new(&self.config).unwrap();
        Union { overlay, layers: self, lookups: Mutex::default() }
    }
}

/// A union with these lower layers and an empty upper.
pub fn union(lowers: &[&str]) -> Union {
    Layers::of(lowers).open()
}

/// Makes what a text describes.
pub fn describe(layer: &Path, text: &str) {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let place = |name: &str| {
            let path = layer.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        if let Some(name) = line.strip_prefix('!') {
            whiteout(&place(name));
        } else if let Some((name, other)) = line.split_once(" == ") {
            fs::hard_link(layer.join(other), place(name)).unwrap();
        } else if let Some((name, text)) = line.split_once(" = ") {
            fs::write(place(name), text).unwrap();
        } else if let Some((name, target)) = line.split_once(" -> ") {
            symlink(target, place(name)).unwrap();
        } else if let Some(name) = line.strip_suffix("/ opaque") {
            fs::create_dir_all(place(name)).unwrap();
            set_mark(&layer.join(name), "opaque", b"y");
        } else if let Some(name) = line.strip_suffix('/') {
            fs::create_dir_all(place(name)).unwrap();
        } else {
            panic!("a layer cannot have: {line}");
        }
    }
}

/// What a directory holds, in the words of [`describe`], one line an object, sorted. Directories that hold something are
/// left out unless they are opaque.
pub fn description(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    add_description(dir, dir, &mut lines);
    lines.sort();
    lines
}

fn add_description(top: &Path, dir: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(top).unwrap().to_string_lossy().into_owned();
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        if kind.is_dir() {
            let before = lines.len();
            add_description(top, &path, lines);
            let opaque = mark(&path, "opaque").as_deref() == Some(b"y");
            if opaque || lines.len() == before {
                lines.push(format!("{name}/{}", if opaque { " opaque" } else { "" }));
            }
        } else if kind.is_symlink() {
            lines.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
        } else if kind.is_char_device() && meta.rdev() == 0 {
            lines.push(format!("!{name}"));
        } else if kind.is_file() {
            lines.push(format!("{name} = {}", String::from_utf8_lossy(&fs::read(&path).unwrap())));
        } else {
            lines.push(format!("{name} special"));
        }
    }
}

/// The lines of a text, sorted, to compare a description with.
pub fn lines(text: &str) -> Vec<String> {
    let lines: BTreeSet<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.into_iter().map(str::to_owned).collect()
}

/// Makes a whiteout in the kernel's form.
pub fn whiteout(path: &Path) {
    sys::mknod(CWD, path.as_os_str(), Kind::Char, 0, 0).unwrap();
}

/// Sets one of the overlay's marks, in the namespace that this user's mounts write.
pub fn set_mark(path: &Path, mark: &str, value: &[u8]) {
    let namespace = if crate::support::is_root() { "trusted" } else { "user" };
    set_disk_xattr(path, &format!("{namespace}.overlay.{mark}"), value);
}

/// One of the overlay's marks on disk, in either namespace.
pub fn mark(path: &Path, mark: &str) -> Option<Vec<u8>> {
    ["trusted", "user"].iter().find_map(|namespace| disk_xattr(path, &format!("{namespace}.overlay.{mark}")))
}

pub fn set_disk_xattr(path: &Path, name: &str, value: &[u8]) {
    sys::set_xattr(At::Name(CWD, path.as_os_str()), OsStr::new(name), value, 0).unwrap();
}

pub fn disk_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    sys::get_xattr(At::Name(CWD, path.as_os_str()), OsStr::new(name)).ok()
}

/// How many descriptors of this process lead into the layers: tests in other threads do not count.
pub fn descriptors_into(layers: &Layers) -> usize {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).filter(|path| path.starts_with(layers.root())).count()
}
