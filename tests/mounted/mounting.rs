//! Mounting: what is refused and how it is said, and mount points in odd places.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use plyfs::sys;

use crate::support::*;
use crate::{need_root, plyfs_only};

/// Mounts with these options, which must fail with one line that holds all the words; nothing may have changed.
fn refused(layers: &Layers, options: &str, words: &[&str]) {
    let before = sh(layers.root(), "find . -printf '%p %m %s\\n' | sort");
    let output = mount_command(layers.root(), options, &layers.merged("")).output().unwrap();
    assert!(!output.status.success(), "{options} was mounted");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{options}: no {word:?} in {said}");
    }
    assert_eq!(sh(layers.root(), "find . -printf '%p %m %s\\n' | sort"), before, "a refused mount changed the layers");
}

#[test]
fn a_wrong_layer_is_refused_with_its_option_and_path() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.root().join("file"), "");
    refused(&layers, "lowerdir=l1:missing,upperdir=upper,workdir=work", &["lowerdir", "missing"]);
    refused(&layers, "lowerdir=file,upperdir=upper,workdir=work", &["lowerdir", "file"]);
    refused(&layers, "lowerdir=l1,upperdir=missing,workdir=work", &["upperdir", "missing"]);
    refused(&layers, "lowerdir=l1,upperdir=upper,workdir=missing", &["workdir", "missing"]);
    refused(&layers, "lowerdir=l1,upperdir=upper", &["workdir"]);
    refused(&layers, "upperdir=upper,workdir=work", &["lowerdir"]);
}

#[test]
fn an_upper_and_workdir_that_overlap_are_refused() {
    plyfs_only!();
    let layers = Layers::new(1);
    fs::create_dir(layers.upper("inner")).unwrap();
    fs::create_dir(layers.root().join("work/inner")).unwrap();
    refused(&layers, "lowerdir=l1,upperdir=upper,workdir=upper/inner", &["workdir", "upper"]);
    refused(&layers, "lowerdir=l1,upperdir=work/inner,workdir=work", &["workdir"]);
    refused(&layers, "lowerdir=l1,upperdir=upper,workdir=upper", &["workdir"]);
}

#[test]
fn a_workdir_on_another_file_system_is_refused() {
    plyfs_only!();
    crate::need!(Path::new("/dev/shm").is_dir(), "no /dev/shm");
    let layers = Layers::new(1);
    let other = Layers::within(Path::new("/dev/shm"), 1);
    let work = other.root().join("work");
    refused(&layers, &format!("lowerdir=l1,upperdir=upper,workdir={}", work.display()), &["workdir", "file system"]);
}

#[test]
fn an_upper_in_use_by_another_mount_is_refused() {
    plyfs_only!();
    let layers = Layers::new(1);
    fs::create_dir(layers.root().join("other")).unwrap();
    let union = layers.mount();
    let target = union.root().join("other");
    let output = mount_command(union.root(), "lowerdir=l1,upperdir=upper,workdir=work", &target).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("upper"), "{}", text(&output));
}

#[test]
fn colons_and_commas_in_layer_names_are_escaped() {
    let layers = Layers::new(0);
    write(layers.root().join("a:b/one"), "");
    write(layers.root().join("c,d/two"), "");
    plyfs_only!();
    let target = layers.merged("");
    let union = layers.mount_with(r"lowerdir=a\:b:c\,d,upperdir=upper,workdir=work", &target);
    assert_eq!(names(union.merged("")), ["one", "two"]);
}

#[test]
fn a_union_without_upper_is_read_only() {
    let layers = Layers::new(2).read_only();
    write(layers.layer(1, "file"), "data");
    write(layers.layer(2, "dir/file"), "");
    let union = layers.mount();
    assert_eq!(read(union.merged("file")), "data");
    let open = |path: &str| errno(fs::OpenOptions::new().write(true).open(union.merged(path)));
    assert_eq!(open("file"), libc::EROFS);
    assert_eq!(errno(fs::write(union.merged("new"), "")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(union.merged("file"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(union.merged("dir/new"))), libc::EROFS);
    let mode = fs::Permissions::from_mode(0o600);
    assert_eq!(errno(fs::set_permissions(union.merged("file"), mode)), libc::EROFS);
}

#[test]
fn the_mount_point_may_be_a_layer() {
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    let target = layers.lower("");
    let union = layers.mount_with("lowerdir=l1,upperdir=upper,workdir=work", &target);
    assert_eq!(read(union.lower("file")), "data");
    append(union.lower("file"), "+");
    write(union.lower("dir/new"), "");
    assert_eq!(read(union.upper("file")), "data+");
    let layers = union.unmount();
    assert_eq!(read(layers.lower("file")), "data");
}

#[test]
fn the_mount_point_may_be_above_its_layers() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.merged("r/lower/file"), "data");
    write(layers.merged("r/upper/up"), "");
    fs::create_dir_all(layers.merged("r/work")).unwrap();
    let target = layers.merged("r");
    let union = layers.mount_with("lowerdir=merged/r/lower,upperdir=merged/r/upper,workdir=merged/r/work", &target);
    assert_eq!(names(union.merged("r")), ["file", "up"]);
    append(union.merged("r/file"), "+");
    fs::remove_file(union.merged("r/up")).unwrap();
    let layers = union.unmount();
    assert_eq!(read(layers.merged("r/upper/file")), "data+");
    assert_eq!(names(layers.merged("r/upper")), ["file"]);
}

#[test]
fn symlinks_to_layers_may_go_after_mounting() {
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    sh(layers.root(), "ln -s l1 short");
    let target = layers.merged("");
    let union = layers.mount_with("lowerdir=short,upperdir=upper,workdir=work", &target);
    fs::remove_file(union.root().join("short")).unwrap();
    append(union.merged("file"), "+");
    assert_eq!(read(union.merged("file")), "data+");
}

#[test]
fn an_upper_of_plyfs_mounts_under_the_kernel_and_back() {
    plyfs_only!();
    need_root!();
    let layers = Layers::new(1);
    for name in ["dir/changed", "dir/removed", "gone/file", "kept"] {
        write(layers.lower(name), name);
    }
    let union = layers.mount();
    append(union.merged("dir/changed"), "+");
    fs::remove_file(union.merged("dir/removed")).unwrap();
    fs::remove_dir_all(union.merged("gone")).unwrap();
    write(union.merged("gone/new"), "new");
    let show = "cd merged; find . -printf '%p %y %m %s %n\\n' | sort; cat dir/changed gone/new";
    let ours = sh(union.root(), show);
    let layers = union.unmount();
    let kernel = "mount -t overlay overlay -o lowerdir=l1,upperdir=upper,workdir=work merged";
    let theirs = sh(layers.root(), &format!("{kernel}; ({show}); umount merged"));
    assert_eq!(theirs, ours);
    assert_eq!(sh(layers.mount().root(), show), ours);
}

#[test]
fn a_volatile_upper_is_refused_until_its_mark_is_removed() {
    let layers = Layers::new(1);
    let options = format!("{},volatile", layers.options());
    let target = layers.merged("");
    let union = layers.mount_with(&options, &target);
    write(union.merged("new"), "data");
    let layers = union.unmount();
    let mark = layers.root().join("work/work/incompat/volatile");
    assert!(mark.is_dir(), "{}", mark.display());
    let refused = mount_command(layers.root(), &layers.options(), &target).output().unwrap();
    assert!(!refused.status.success());
    fs::remove_dir(&mark).unwrap();
    let union = layers.mount();
    assert_eq!(fs::read(union.merged("new")).unwrap(), b"data");
}

#[test]
fn the_options_in_effect_can_be_asked() {
    plyfs_only!();
    let layers = Layers::new(2);
    fs::create_dir(layers.root().join("c,d")).unwrap();
    let target = layers.merged("");
    let options = r"lowerdir=l1:l2:c\,d,upperdir=upper,workdir=work,metacopy=on,index=on,volatile,uuid=null";
    let union = layers.mount_with(options, &target);
    let shown = Command::new(PLYFS).arg("--show").arg(union.merged("")).output().unwrap();
    let userxattr = if is_root() { "" } else { ",userxattr" };
    let wanted = format!(
        r"lowerdir=l1:l2:c\134\054d,upperdir=upper,workdir=work,redirect_dir=on,index=on,uuid=null,metacopy=on,fsync=volatile{userxattr}",
    );
    assert_eq!(text(&shown), wanted.clone() + "\n");
    // An attribute of the root, and of nothing else.
    assert_eq!(xattr(union.merged(""), "user.plyfs.options").unwrap(), wanted.as_bytes());
    fs::create_dir(union.merged("dir")).unwrap();
    assert_eq!(xattr(union.merged("dir"), "user.plyfs.options"), None);
    let set = || rustix::fs::setxattr(union.merged(""), "user.plyfs.options", b"x", rustix::fs::XattrFlags::empty());
    assert_eq!(set(), Err(rustix::io::Errno::PERM));
    assert_eq!(rustix::fs::removexattr(union.merged(""), "user.plyfs.options"), Err(rustix::io::Errno::PERM));
    // Not even one that the upper has is listed, or shown for it.
    set_xattr(union.upper(""), "user.plyfs.options", b"x");
    assert!(!xattr_names(union.merged("")).contains(&"user.plyfs.options".to_owned()));
    assert_eq!(xattr(union.merged(""), "user.plyfs.options").unwrap(), wanted.as_bytes());
    for other in ["/", "/nonexistent"] {
        let shown = Command::new(PLYFS).args(["--show", other]).output().unwrap();
        assert_eq!((shown.status.code(), text(&shown).lines().count()), (Some(1), 1), "{}", text(&shown));
    }
}

#[test]
fn with_nfs_export_handles_find_what_the_kernel_has_forgotten() {
    plyfs_only!();
    need_root!();
    let layers = Layers::new(1);
    write(layers.lower("d/f"), "lower");
    let target = layers.merged("");
    let union = layers.mount_with("lowerdir=l1,upperdir=upper,workdir=work,nfs_export=on", &target);
    let root = fs::File::open(union.merged("")).unwrap();
    let handle = |name: &str| {
        let path = union.merged(name);
        sys::file_handle(sys::At::Name(rustix::fs::CWD, path.as_os_str())).unwrap()
    };
    let open = |handle: &sys::FileHandle| sys::open_handle(root.as_fd(), handle).unwrap();
    let way = |object: &OwnedFd| format!("/proc/self/fd/{}", object.as_raw_fd());
    let (file, dir) = (handle("d/f"), handle("d"));
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(read(way(&open(&file))), "lower");
    // Over copy-up and rename, too.
    append(union.merged("d/f"), "+");
    fs::rename(union.merged("d/f"), union.merged("moved")).unwrap();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(read(way(&open(&file))), "lower+");
    assert_eq!(fs::read_link(way(&open(&dir))).unwrap(), union.merged("d"));
    fs::remove_file(union.merged("moved")).unwrap();
}

#[test]
fn with_nfs_export_handles_find_what_is_there_after_a_remount() {
    need_root!();
    let layers = Layers::new(2);
    for name in ["d/changed", "d/moved", "d/same", "d/gone", "d/later", "only/f"] {
        write(layers.lower(name), name);
    }
    let target = layers.merged("");
    let mut union = layers.mount_with("lowerdir=l1:l2,upperdir=upper,workdir=work,nfs_export=on", &target);
    let handle = |name: &str| sys::file_handle(sys::At::Name(rustix::fs::CWD, target.join(name).as_os_str())).unwrap();
    write(union.merged("d/new"), "d/new");
    fs::create_dir(union.merged("made")).unwrap();
    write(union.merged("made/f"), "made/f");
    let files =
        ["d/changed", "d/moved", "d/same", "d/later", "only/f", "d/new", "made/f"].map(|name| (name, handle(name)));
    let (gone, dirs) = (handle("d/gone"), ["d", "only", "made"].map(|name| (name, handle(name))));
    append(union.merged("d/changed"), "+");
    fs::rename(union.merged("d/moved"), union.merged("only/there")).unwrap();
    fs::remove_file(union.merged("d/gone")).unwrap();
    for again in ["", "+", "++"] {
        union = union.remount();
        let root = fs::File::open(union.merged("")).unwrap();
        let open = |handle: &sys::FileHandle| sys::open_handle(root.as_fd(), handle);
        let way = |object: &OwnedFd| format!("/proc/self/fd/{}", object.as_raw_fd());
        for (name, handle) in &files {
            let expected = match *name {
                "d/changed" => "d/changed+".to_owned(),
                // Copied up after the first remount.
                "d/later" => format!("{name}{again}"),
                name => name.to_owned(),
            };
            assert_eq!(read(way(&open(handle).unwrap())), expected, "{name}");
        }
        for (name, handle) in &dirs {
            assert_eq!(fs::read_link(way(&open(handle).unwrap())).unwrap(), union.merged(name));
        }
        assert_eq!(open(&gone).unwrap_err(), plyfs::errno::Errno::ESTALE);
        append(union.merged("d/later"), "+");
    }
}

/// The kernel's overlay writes the origin into such a directory when it is looked up, and plyfs does not; both merge it.
#[test]
fn with_nfs_export_a_directory_made_by_hand_in_the_upper_is_merged_unless_it_is_the_copy_of_another() {
    need_root!();
    for (exports, of_another) in [("off", &["low", "up"][..]), ("on", &["up"])] {
        let layers = Layers::new(1);
        for path in ["made/sub/low", "marked/low", "another/low"] {
            write(layers.lower(path), "");
        }
        let target = layers.merged("");
        let options = format!("lowerdir=l1,upperdir=upper,workdir=work,index=on,nfs_export={exports}");
        let union = layers.mount_with(&options, &target);
        chmod(union.merged("another"), 0o700);
        let layers = union.unmount();
        write(layers.upper("made/sub/up"), "");
        write(layers.upper("marked/up"), "");
        let origin = mark(layers.upper("another"), "origin").unwrap();
        set_xattr(layers.upper("marked"), "trusted.overlay.origin", &origin);
        let union = layers.mount_with(&options, &target);
        assert_eq!(names(union.merged("made/sub")), ["low", "up"], "nfs_export={exports}");
        assert_eq!(names(union.merged("marked")), of_another, "nfs_export={exports}");
        fs::remove_file(union.merged("made/sub/low")).unwrap();
        write(union.merged("made/sub/new"), "");
        let union = union.remount();
        assert_eq!(names(union.merged("made/sub")), ["new", "up"], "nfs_export={exports}");
    }
}
