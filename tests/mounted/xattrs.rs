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

/// The errno of asking for an attribute, 0 for none.
fn asking(path: &Path, name: &str) -> i32 {
    lgetxattr(path, name, &mut [0u8; 64][..]).map_or_else(rustix::io::Errno::raw_os_error, |_| 0)
}

fn with(option: &str) -> Union {
    let layers = Layers::new(1);
    write(layers.lower("file"), "text");
    set(&layers.lower("file"), b"red");
    let (options, target) = (layers.options(), layers.merged(""));
    layers.mount_with(&format!("{options},{option}"), &target)
}

#[test]
fn without_acls_none_is_shown_or_set() {
    plyfs_only!();
    let acl = [&[2u8, 0, 0, 0][..], &[1, 0, 7, 0], &[0xff; 4], &[2, 0, 7, 0, 42, 0, 0, 0], &[4, 0, 5, 0], &[0xff; 4]]
        .concat();
    let acl = [&acl[..], &[16, 0, 7, 0], &[0xff; 4], &[32, 0, 5, 0], &[0xff; 4]].concat();
    let name = "system.posix_acl_access";
    let union = with("noacl");
    let path = union.merged("file");
    assert_eq!(asking(&path, name), libc::EOPNOTSUPP);
    assert_eq!(lsetxattr(&path, name, &acl, XattrFlags::empty()), Err(rustix::io::Errno::OPNOTSUPP));
    assert!(has(&path));
    let mut layers = union.unmount();
    lsetxattr(layers.lower("file"), name, &acl, XattrFlags::empty()).unwrap();
    let (options, target) = (layers.options(), layers.merged(""));
    let union = layers.mount_with(&format!("{options},noacl"), &target);
    let mut list = [0u8; 256];
    let length = listxattr(union.merged("file"), &mut list[..]).unwrap();
    assert_eq!(&list[..length], b"user.colour\0");
    layers = union.unmount();
    let union = layers.mount();
    assert_eq!(asking(&union.merged("file"), name), 0);
}

#[test]
fn without_xattrs_there_are_none() {
    plyfs_only!();
    let union = with("noxattrs=1");
    let path = union.merged("file");
    for _ in 0..2 {
        assert_eq!(asking(&path, "user.colour"), libc::EOPNOTSUPP);
        assert!(!matches!(listxattr(&path, &mut [0u8; 64][..]), Ok(1..)));
        assert!(lsetxattr(&path, "user.colour", b"blue", XattrFlags::empty()).is_err());
    }
    fs::write(&path, "other").unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn narrow_inode_numbers_fit_into_32_bits_and_listings_agree() {
    plyfs_only!();
    use std::os::unix::fs::{DirEntryExt, MetadataExt};
    let union = with("ino32_t");
    fs::write(union.merged("new"), "").unwrap();
    for entry in fs::read_dir(union.merged("")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
        assert!(entry.ino() < 1 << 32);
    }
}
