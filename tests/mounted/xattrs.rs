//! That an attribute was not there is remembered, and must not be remembered too long.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{XattrFlags, lgetxattr, listxattr, lremovexattr, lsetxattr};

use crate::support::{Layers, Union, eventually, names, write};
use crate::{need_root, plyfs_only};

const SECOND: Duration = Duration::from_secs(1);

fn set(path: &Path, value: &[u8]) {
    lsetxattr(path, "user.colour", value, XattrFlags::empty()).unwrap();
}

fn has(path: &Path) -> bool {
    let listed = listed(path);
    let got = lgetxattr(path, "user.colour", &mut [0u8; 64][..]).is_ok();
    assert_eq!(listed, got, "list and value of {}", path.display());
    got
}

fn listed(path: &Path) -> bool {
    let mut list = [0u8; 1024];
    let length = listxattr(path, &mut list[..]).unwrap();
    list[..length].split(|byte| *byte == 0).any(|name| name == b"user.colour")
}

/// A union of which everything was asked for its attributes already, as a store that compares layers does.
fn asked() -> Union {
    let layers = Layers::new(2);
    for name in ["dir/a", "dir/b", "dir/sub/c", "linked"] {
        write(layers.lower(name), name);
    }
    write(layers.layer(2, "dir/below"), "below");
    let union = layers.mount();
    names(union.merged("dir"));
    names(union.merged("dir/sub"));
    for name in ["", "dir", "dir/a", "dir/b", "dir/sub", "dir/sub/c", "linked", "dir/below"] {
        for _ in 0..2 {
            assert!(!has(&union.merged(name)), "{name}");
        }
    }
    union
}

#[test]
fn an_attribute_that_is_set_in_the_mount_is_there_at_once() {
    let union = asked();
    for name in ["dir/a", "dir", "dir/sub/c", "dir/below"] {
        let path = union.merged(name);
        set(&path, b"red");
        assert!(has(&path), "{name}");
        lremovexattr(&path, "user.colour").unwrap();
        assert!(!has(&path) && !has(&path), "{name}");
        set(&path, b"blue");
        assert!(has(&path), "{name}");
    }
}

#[test]
fn an_attribute_that_is_set_in_a_layer_shows_within_a_second() {
    plyfs_only!();
    let union = asked();
    for (layer, name) in [(1, "dir/a"), (1, "dir/sub"), (1, "dir/sub/c"), (2, "dir/below"), (1, "dir")] {
        set(&union.layer(layer, name), b"red");
        assert!(eventually(SECOND, || has(&union.merged(name))), "{name}");
    }
}

#[test]
fn an_attribute_that_is_set_in_the_upper_shows_within_a_second() {
    plyfs_only!();
    let union = asked();
    fs::write(union.merged("dir/a"), "changed").unwrap();
    fs::write(union.merged("dir/new"), "new").unwrap();
    for name in ["dir/a", "dir/new"] {
        assert!(!has(&union.merged(name)) && !has(&union.merged(name)));
        // Right after a change that the union knows of: the events of both come together.
        fs::set_permissions(union.merged(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        set(&union.upper(name), b"red");
        assert!(eventually(SECOND, || has(&union.merged(name))), "{name}");
    }
}

#[test]
fn an_attribute_that_comes_with_another_object_of_the_name_shows() {
    plyfs_only!();
    let union = asked();
    write(union.lower("fresh"), "fresh");
    set(&union.lower("fresh"), b"red");
    fs::rename(union.lower("fresh"), union.lower("dir/b")).unwrap();
    assert!(eventually(SECOND, || has(&union.merged("dir/b"))));
}

#[test]
fn an_attribute_that_is_set_under_another_name_shows_at_once() {
    let union = asked();
    fs::write(union.merged("dir/a"), "changed").unwrap();
    assert!(!has(&union.merged("dir/a")));
    fs::hard_link(union.merged("dir/a"), union.merged("dir/sub/a")).unwrap();
    assert!(!has(&union.merged("dir/sub/a")) && !has(&union.merged("dir/a")));
    set(&union.merged("dir/sub/a"), b"red");
    assert!(has(&union.merged("dir/a")));
}

#[test]
fn an_attribute_outlives_a_rename() {
    let union = asked();
    fs::write(union.merged("dir/a"), "changed").unwrap();
    assert!(!has(&union.merged("dir/a")));
    fs::rename(union.merged("dir/a"), union.merged("moved")).unwrap();
    set(&union.merged("moved"), b"red");
    fs::rename(union.merged("moved"), union.merged("dir/sub/back")).unwrap();
    assert!(has(&union.merged("dir/sub/back")));
}

#[test]
fn a_capability_is_seen_as_soon_as_it_is_given() {
    need_root!();
    let union = asked();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let path = union.merged("dir/a");
    let get = || lgetxattr(&path, "security.capability", &mut [0u8; 64][..]).is_ok();
    assert!(!get() && !get());
    // Another attribute, so that the list is not empty.
    set(&path, b"red");
    assert!(!get() && !get());
    lsetxattr(&path, "security.capability", &capability, XattrFlags::empty()).unwrap();
    assert!(get());
    fs::write(&path, "a write takes it away").unwrap();
    assert!(!get());
}
