//! Setting a union up: what is refused, in which words, and that a refusal leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};

use plyfs::overlay::Overlay;
use plyfs::overlay::config::{Config, Upper, XattrNamespace};

use crate::fixture::{Layers, description, set_disk_xattr, union};
use crate::need;
use crate::support::is_root;
use crate::vfs::open;

/// Everything below a directory with the time of its last change.
fn state(dir: &Path) -> Vec<(PathBuf, i64, i64)> {
    let mut all = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        use std::os::unix::fs::MetadataExt;
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.push((path, meta.mtime(), meta.mtime_nsec()));
    }
    all.sort();
    all
}

/// The union is refused with these words in the message, and nothing has changed.
#[track_caller]
fn refused(layers: &Layers, words: &[&str]) {
    let before = state(layers.root());
    let message = open(layers).expect_err("the union was not refused");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(!message.contains('\n'), "{message:?} has more than one line");
    assert_eq!(state(layers.root()), before, "something was changed");
}

#[test]
fn layers_that_are_missing_or_no_directories() {
    let mut layers = Layers::of(&["f = 1"]);
    let missing = layers.root().join("missing");
    layers.config.lowers.push(missing);
    refused(&layers, &["lowerdir", "missing", "does not exist"]);
    layers.config.lowers[1] = layers.lower(1, "f");
    refused(&layers, &["lowerdir", "l1/f", "not a directory"]);
    layers.config.lowers.clear();
    refused(&layers, &["lowerdir", "at least one"]);
    layers.config.lowers = vec![layers.lower(1, ""); Config::MAX_LOWERS + 1];
    refused(&layers, &["lowerdir", "501", "500"]);
}

#[test]
fn upper_and_work_directories_that_do_not_fit() {
    let mut layers = Layers::of(&["f = 1"]).upper("inside/");
    let set = |layers: &mut Layers, dir: &str, work: &str| {
        let at = |name: &str| layers.root().join(name);
        layers.config.upper = Some(Upper { dir: at(dir), work: at(work) });
    };
    set(&mut layers, "none", "work");
    refused(&layers, &["upperdir", "none", "does not exist"]);
    set(&mut layers, "upper", "none");
    refused(&layers, &["workdir", "none", "does not exist"]);
    set(&mut layers, "upper", "upper");
    refused(&layers, &["workdir", "upperdir"]);
    set(&mut layers, "upper", "upper/inside");
    refused(&layers, &["workdir", "upper/inside", "inside"]);
    set(&mut layers, "upper/inside", "upper");
    refused(&layers, &["upperdir", "upper/inside", "inside workdir"]);
    set(&mut layers, "l1/f", "work");
    refused(&layers, &["upperdir", "l1/f", "not a directory"]);
}

#[test]
fn a_work_directory_on_another_file_system() {
    let shm = Path::new("/dev/shm");
    need!(shm.is_dir(), "no /dev/shm");
    let other = tempfile::tempdir_in(shm).unwrap();
    let mut layers = Layers::of(&["f = 1"]);
    let dir = layers.upper_path("");
    layers.config.upper = Some(Upper { dir, work: other.path().to_owned() });
    refused(&layers, &["workdir", "is not on the file system of upperdir"]);
    assert_eq!(description(other.path()), [""; 0]);
}

#[test]
fn an_upper_that_is_in_use() {
    let u = union(&["f = 1"]);
    let second = Overlay::new(&u.layers.config).err().unwrap().to_string();
    assert!(second.contains("upperdir") && second.contains("in use"), "{second}");
    let third = Layers::of(&["f = 1"]);
    let mut config = third.config.clone();
    config.upper = Some(Upper { dir: third.upper_path(""), work: u.layers.root().join("work") });
    let message = Overlay::new(&config).err().unwrap().to_string();
    assert!(message.contains("workdir") && message.contains("in use"), "{message}");
    // Released, it is free at once, even while the first is not closed.
    u.overlay.release();
    let again = Overlay::new(&u.layers.config);
    assert!(again.is_ok(), "{:?}", again.err());
}

#[test]
fn what_a_crash_left_in_the_work_directory_is_cleared() {
    let layers = Layers::of(&["f = 1"]);
    fs::create_dir(layers.work_path()).unwrap();
    crate::fixture::describe(&layers.work_path(), "#1 = half a copy\n #2/d/e/f = x\n !#3\n #4 -> nowhere");
    let u = layers.open();
    u.upper_holds("");
    u.append("f", "2").unwrap();
    u.upper_holds("f = 12");
}

#[test]
fn a_volatile_mount_that_crashed_is_refused() {
    let layers = Layers::of(&["f = 1"]);
    fs::create_dir_all(layers.work_path().join("incompat/volatile")).unwrap();
    refused(&layers, &["workdir", "incompat", "volatile"]);
    assert!(layers.work_path().join("incompat/volatile").is_dir());
}

#[test]
fn an_upper_that_cannot_be_written_to() {
    need!(!is_root(), "root can write to everything");
    use std::os::unix::fs::PermissionsExt;
    let layers = Layers::of(&["f = 1"]);
    let work = layers.root().join("work");
    fs::set_permissions(&work, fs::Permissions::from_mode(0o500)).unwrap();
    refused(&layers, &["workdir", "cannot be written to"]);
}

#[test]
fn marks_are_written_in_the_namespace_that_was_asked_for() {
    let choices = if is_root() {
        vec![(XattrNamespace::Trusted, "trusted"), (XattrNamespace::User, "user"), (XattrNamespace::Auto, "trusted")]
    } else {
        vec![(XattrNamespace::User, "user")]
    };
    for (choice, name) in choices {
        let mut layers = Layers::of(&["d/f = 1"]);
        layers.config.xattrs = choice;
        let u = layers.open();
        u.append("d/f", "2").unwrap();
        u.mkdir("d/new").unwrap();
        let has = |path: &str, mark: &str| {
            crate::fixture::disk_xattr(&u.upper_path(path), &format!("{name}.overlay.{mark}")).is_some()
        };
        assert!(has("d", "origin") && has("d", "impure") && has("d/f", "origin") && has("d/new", "opaque"), "{name}");
        u.shows("d/f = 12\n d/new/");
    }
}

#[test]
fn layers_may_be_reached_through_symlinks_and_may_be_the_same() {
    let mut layers = Layers::of(&["f = 1", "g = 2"]);
    let link = layers.root().join("link");
    std::os::unix::fs::symlink("l2", &link).unwrap();
    layers.config.lowers[1] = link;
    layers.config.lowers.push(layers.lower(1, ""));
    layers.open().shows("f = 1\n g = 2");
}

#[test]
fn an_upper_that_another_implementation_wrote() {
    // Whiteouts, opaque and impure marks, an origin that means nothing here, and a whiteout in an opaque directory.
    let layers = Layers::of(&["d/low = 1\n gone = 1\n m/low = 1"])
        .upper("d/ opaque\n d/up = 0\n !d/low\n !gone\n m/up = 0\n copied = 0");
    let mut origin = vec![0, 0xfb, 29, 0, 1];
    origin.extend_from_slice(&[7; 24]);
    crate::fixture::set_mark(&layers.upper_path("copied"), "origin", &origin);
    crate::fixture::set_mark(&layers.upper_path("m/up"), "origin", b"");
    crate::fixture::set_mark(&layers.upper_path("m"), "impure", b"y");
    crate::fixture::set_mark(&layers.upper_path(""), "impure", b"y");
    set_disk_xattr(&layers.upper_path("m/up"), "user.mine", b"1");
    let u = layers.open();
    u.shows("copied = 0\n d/up = 0\n m/low = 1\n m/up = 0");
}

#[cfg(debug_assertions)]
#[test]
fn a_layer_whose_names_are_found_whatever_their_case_is_refused() {
    let layers = Layers::of(&["f = 1"]);
    plyfs::sys::faults::fold(true);
    let message = open(&layers).expect_err("the union was not refused");
    plyfs::sys::faults::fold(false);
    assert!(message.contains("upperdir") && message.contains("whatever their case"), "{message}");
    open(&layers).unwrap();
}
