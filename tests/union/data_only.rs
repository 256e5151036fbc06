//! Data-only layers: names that do not show, and the data of files that say where it is, as composefs has it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use plyfs::errno::Errno;
use plyfs::overlay::config::{RedirectDir, Verity};
use plyfs::sys::{self, At};
use rustix::fs::CWD;

use crate::fixture::{Layers, describe, mark, set_mark};

/// A tree that names its data, and two layers of data.
fn image(names: &[(&str, u64, Option<&str>)]) -> Layers {
    let mut layers = Layers::of(&[""]);
    for (name, text) in [("d1", "ab/cdef = one\n both = first"), ("d2", "ef/0123 = two\n both = second\n dir/in = x")] {
        fs::create_dir(layers.root().join(name)).unwrap();
        describe(&layers.root().join(name), text);
        layers.config.data_lowers.push(layers.root().join(name));
    }
    for (name, size, redirect) in names {
        let path = layers.lower(1, name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(&path).unwrap().set_len(*size).unwrap();
        set_mark(&path, "metacopy", b"");
        if let Some(redirect) = redirect {
            set_mark(&path, "redirect", redirect.as_bytes());
        }
    }
    layers
}

#[test]
fn an_image_in_the_form_of_composefs_reads_its_objects() {
    let layers = image(&[("etc/one", 3, Some("/ab/cdef")), ("etc/two", 3, Some("/ef/0123")), ("b", 5, Some("/both"))]);
    let u = layers.open();
    // The first layer of data that has the path, and no name of any.
    u.shows("b = first\n etc/one = one\n etc/two = two");
    assert_eq!(u.stat("etc/one").unwrap().blocks, 8);
    u.append("etc/one", "!").unwrap();
    u.chmod("etc/two", 0o600).unwrap();
    u.rename("b", "etc/c").unwrap();
    u.upper_holds("!b\n etc/c = first\n etc/one = one!\n etc/two = two");
    u.reopen().shows("etc/c = first\n etc/one = one!\n etc/two = two");
}

#[test]
fn with_metacopy_the_data_stays_there() {
    let mut layers = image(&[("one", 3, Some("/ab/cdef"))]);
    layers.config.features.metacopy = true;
    layers.config.features.redirect_dir = RedirectDir::On;
    let u = layers.open();
    u.chmod("one", 0o600).unwrap();
    assert_eq!(mark(&u.layers.upper_path("one"), "metacopy"), Some(Vec::new()));
    u.rename("one", "uno").unwrap();
    let u = u.reopen();
    u.shows("uno = one");
    u.append("uno", "!").unwrap();
    u.reopen().shows("uno = one!");
}

#[test]
fn data_that_is_not_there_is_missed_when_it_is_wanted() {
    let u = image(&[
        ("gone", 3, Some("/no/where")),
        ("dir", 3, Some("/dir")),
        ("relative", 3, Some("both")),
        ("none", 3, None),
        ("up", 3, Some("/../l1/x")),
    ])
    .open();
    assert_eq!(u.stat("gone").unwrap().size, 3);
    assert_eq!(u.read("gone"), Err(Errno::ENOENT));
    assert_eq!(u.read("dir"), Err(Errno::EIO));
    // What only a layer of data could have must be said to the full.
    assert_eq!((u.at("relative"), u.at("none")), (Err(Errno::EPERM), Err(Errno::EPERM)));
    assert_eq!(u.at("up"), Err(Errno::EACCES));
}

#[test]
fn verity_wants_a_digest_and_the_right_one() {
    for (verity, read) in [(Verity::Off, Ok("one".to_owned())), (Verity::On, Err(Errno::EIO))] {
        let mut layers = image(&[("one", 3, Some("/ab/cdef")), ("two", 3, Some("/ef/0123"))]);
        // SHA-256, of something else; the layer's file system may not even have fs-verity.
        set_mark(&layers.lower(1, "one"), "metacopy", &[&[0, 36, 0, 1], [7; 32].as_slice()].concat());
        layers.config.features.verity = verity;
        let u = layers.open();
        assert_eq!(u.read("one"), read, "{verity:?}");
        assert_eq!(u.read("two").as_deref(), Ok("two"), "{verity:?}");
    }
    let mut layers = image(&[("two", 3, Some("/ef/0123")), ("broken", 3, Some("/both"))]);
    set_mark(&layers.lower(1, "broken"), "metacopy", &[0, 99, 0, 1, 7]);
    layers.config.features.verity = Verity::Require;
    let u = layers.open();
    assert_eq!(u.read("two"), Err(Errno::EIO));
    assert_eq!(u.at("broken"), Err(Errno::EIO));
}

/// The digest of a file on which fs-verity has been turned on; none where the file system or the kernel has it not.
fn seal(path: &Path) -> Option<Vec<u8>> {
    let done = Command::new("fsverity").arg("enable").arg(path).output().ok()?.status.success();
    let file = fs::File::open(path).unwrap();
    let digest = sys::verity_digest(std::os::fd::AsFd::as_fd(&file)).unwrap();
    digest.filter(|_| done).map(|sealed| [&[0, 36, 0, sealed.algorithm], sealed.digest.as_slice()].concat())
}

#[test]
fn verity_passes_what_has_the_digest_that_it_came_with() {
    let mut layers = image(&[("one", 3, Some("/ab/cdef"))]);
    let Some(metacopy) = seal(&layers.root().join("d1/ab/cdef")) else {
        eprintln!("skipped: no fsverity program, or a file system without fs-verity");
        return;
    };
    set_mark(&layers.lower(1, "one"), "metacopy", &metacopy);
    layers.config.features.verity = Verity::Require;
    layers.config.features.metacopy = true;
    layers.config.features.redirect_dir = RedirectDir::On;
    let u = layers.open();
    assert_eq!(u.read("one").as_deref(), Ok("one"));
    u.chmod("one", 0o600).unwrap();
    assert_eq!(mark(&u.layers.upper_path("one"), "metacopy"), Some(metacopy));
    let u = u.reopen();
    assert_eq!(u.read("one").as_deref(), Ok("one"));
    let upper = u.layers.upper_path("one");
    sys::set_xattr(At::Name(CWD, upper.as_os_str()), OsStr::new("user.note"), b"1", 0).unwrap();
    drop(u);
}

#[test]
fn without_metacopy_data_is_found_from_the_last_merged_layer_only() {
    let mut layers = image(&[("low", 3, Some("/ab/cdef"))]);
    let top = layers.root().join("top");
    for name in ["high", "dir/high"] {
        let path = top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(&path).unwrap().set_len(3).unwrap();
        set_mark(&path, "metacopy", b"");
        set_mark(&path, "redirect", b"/ab/cdef");
    }
    layers.config.lowers.insert(0, top);
    let u = layers.open();
    assert_eq!(u.read("low").unwrap(), "one");
    for name in ["high", "dir/high"] {
        assert_eq!(u.stat(name).unwrap_err(), Errno::EPERM, "{name}");
    }
    let mut layers = u.close();
    layers.config.features.metacopy = true;
    layers.config.features.redirect_dir = RedirectDir::On;
    layers.open().shows("dir/high = one\n high = one\n low = one");
}

/// fs-verity as it answers where it is: this kernel may have none.
#[cfg(debug_assertions)]
#[test]
fn verity_compares_algorithm_and_digest() {
    let right = [7; 32].to_vec();
    let short = right[..31].to_vec();
    let answers = [(1, right.clone(), true), (2, right, false), (1, [8; 32].to_vec(), false), (1, short, false)];
    for verity in [Verity::On, Verity::Require] {
        for (algorithm, digest, passes) in answers.clone() {
            let mut layers = image(&[("one", 3, Some("/ab/cdef"))]);
            let metacopy = [&[0, 36, 0, 1], [7; 32].as_slice()].concat();
            set_mark(&layers.lower(1, "one"), "metacopy", &metacopy);
            layers.config.features.verity = verity;
            layers.config.features.metacopy = true;
            layers.config.features.redirect_dir = RedirectDir::On;
            let u = layers.open();
            sys::faults::seal(Some((algorithm, digest.clone())));
            let read = u.read("one");
            let changed = u.chmod("one", 0o600);
            let written = u.append("one", "!");
            sys::faults::seal(None);
            let expected = if passes { Ok("one".to_owned()) } else { Err(Errno::EIO) };
            assert_eq!(read, expected, "{verity:?} {algorithm} {digest:x?}");
            // The kernel looks at the data before any copy-up, too.
            assert_eq!((changed.is_ok(), written.is_ok()), (passes, passes));
        }
    }
}
