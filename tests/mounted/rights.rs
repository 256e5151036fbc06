//! What the union lets whom do, and the bits that a change takes away.

use std::fs;
use std::os::unix::fs::chown;

use crate::need_root;
use crate::support::nobody::{NOBODY, sh_as_nobody};
use crate::support::*;

/// A suid and sgid file of nobody's in the lower.
fn suid() -> Layers {
    let layers = Layers::new(1);
    write(layers.lower("file"), "data");
    chown(layers.lower("file"), Some(NOBODY), Some(NOBODY)).unwrap();
    chmod(layers.lower("file"), 0o6777);
    layers
}

#[test]
fn writing_clears_suid_and_sgid() {
    need_root!();
    let union = suid().mount();
    sh_as_nobody(union.root(), "echo x >> merged/file");
    assert_eq!(mode(union.merged("file")), 0o777);
    assert_eq!(mode(union.upper("file")), 0o777);
}

#[test]
fn truncating_clears_suid_and_sgid() {
    need_root!();
    for script in ["truncate -s 2 merged/file", ": > merged/file"] {
        let union = suid().mount();
        sh_as_nobody(union.root(), script);
        assert_eq!(mode(union.merged("file")), 0o777, "{script}");
    }
}

#[test]
fn chown_clears_suid_and_sgid() {
    need_root!();
    let union = suid().mount();
    sh_as_nobody(union.root(), "chown 65534:65534 merged/file");
    assert_eq!(mode(union.merged("file")), 0o777);
}

#[test]
fn root_keeps_suid_when_it_writes() {
    need_root!();
    let union = suid().mount();
    append(union.merged("file"), "x");
    assert_eq!(mode(union.merged("file")), 0o6777);
}

/// `protected_hardlinks` looks at the mode that the kernel knows, and does not ask the server for it.
#[test]
fn what_lost_suid_to_a_write_can_be_linked_and_what_only_might_have_cannot() {
    need_root!();
    crate::need!(have("python3"), "no python3");
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap();
    crate::need!(protected.trim() == "1", "fs.protected_hardlinks is off");
    let layers = Layers::new(1);
    for name in ["written", "left"] {
        write(layers.lower(name), "data");
        chmod(layers.lower(name), 0o4666);
    }
    fs::create_dir(layers.lower("dir")).unwrap();
    chmod(layers.lower("dir"), 0o777);
    let union = layers.mount();
    // Root's files, opened by root; nobody writes to the one through that. Of the other nobody only changes the owner to no
    // other: the message is the same that comes before a write.
    write(
        union.root().join("nobody"),
        "cd merged
        try() { ln $1 dir/ 2>/dev/null && echo $1 linked || echo $1 refused; }
        try written; try left
        printf x >&3; try written
        python3 -c 'import os; os.chown(\"left\", -1, -1)' 2>/dev/null; try left; try left
        stat -c '%n %a %h' left written",
    );
    let found =
        sh(union.root(), "exec 3<>merged/written; exec setpriv --reuid=65534 --regid=65534 --clear-groups bash nobody");
    assert_eq!(
        found,
        "written refused\nleft refused\nwritten linked\nleft refused\nleft refused\nleft 4666 1\nwritten 666 2\n"
    );
}

#[test]
fn writing_clears_capabilities() {
    need_root!();
    crate::need!(have("setcap"), "no setcap (package libcap2-bin)");
    let union = suid().mount();
    run("setcap", &["cap_net_raw+ep", union.merged("file").to_str().unwrap()]);
    assert!(xattr(union.merged("file"), "security.capability").is_some());
    sh_as_nobody(union.root(), "echo x >> merged/file");
    assert_eq!(xattr(union.merged("file"), "security.capability"), None);
}

#[test]
fn modes_and_owners_are_enforced() {
    need_root!();
    let layers = Layers::new(1);
    write(layers.lower("secret"), "data");
    chmod(layers.lower("secret"), 0o600);
    write(layers.lower("readable"), "data");
    let union = layers.mount();
    let script =
        "! cat merged/secret && cat merged/readable && ! (echo x >> merged/readable) && ! rm -f merged/readable
        ! touch merged/new && ! chmod 666 merged/readable && ! chown 65534 merged/readable";
    sh_as_nobody(union.root(), script);
    assert!(names(union.upper("")).is_empty(), "a refused change copied up");
}

#[test]
fn a_sticky_directory_protects_the_files_of_others() {
    need_root!();
    let layers = Layers::new(1);
    write(layers.lower("tmp/root"), "");
    chmod(layers.lower("tmp"), 0o1777);
    let union = layers.mount();
    sh_as_nobody(
        union.root(),
        "! rm -f merged/tmp/root && ! mv merged/tmp/root merged/tmp/x && touch merged/tmp/own && rm merged/tmp/own",
    );
    assert!(exists(union.merged("tmp/root")));
}

#[test]
fn a_setgid_directory_hands_on_its_group() {
    need_root!();
    let layers = Layers::new(1);
    fs::create_dir(layers.lower("dir")).unwrap();
    chown(layers.lower("dir"), None, Some(4321)).unwrap();
    chmod(layers.lower("dir"), 0o2777);
    let union = layers.mount();
    sh_as_nobody(union.root(), "umask 022; touch merged/dir/file; mkdir merged/dir/sub");
    let found = sh(union.root(), "cd merged/dir; stat -c '%n %u %g %a' file sub");
    assert_eq!(found, "file 65534 4321 644\nsub 65534 4321 2755\n");
}

#[test]
fn new_files_belong_to_their_maker_and_honour_the_umask() {
    need_root!();
    let layers = Layers::new(1);
    let union = layers.mount();
    chmod(union.merged(""), 0o777);
    sh_as_nobody(union.root(), "umask 027; touch merged/f; mkdir merged/d; mkfifo merged/p; ln -s x merged/l");
    let found = sh(union.root(), "cd upper; stat -c '%n %u %g %a' d f l p");
    assert_eq!(found, "d 65534 65534 750\nf 65534 65534 640\nl 65534 65534 777\np 65534 65534 640\n");
}

#[test]
fn devices_can_be_made_but_not_the_one_that_is_a_whiteout() {
    need_root!();
    let layers = Layers::new(1);
    let union = layers.mount();
    sh(union.root(), "mknod merged/null c 1 3; mknod merged/loop b 7 0; ! mknod merged/whiteout c 0 0");
    assert_eq!(
        sh(union.root(), "cd merged; stat -c '%F %t %T' *"),
        "block special file 7 0\ncharacter special file 1 3\n"
    );
}
