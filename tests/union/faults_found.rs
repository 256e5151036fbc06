//! What the faults of `faults` have found, each by name.

use plyfs::errno::Errno;

use crate::faults::{at_each, frozen_after};

#[test]
fn a_copy_up_that_cannot_list_xattrs_loses_none() {
    at_each("first write", "listxattr", Errno::EACCES);
}

#[test]
fn a_truncation_that_fails_leaves_the_lower_file_whole() {
    at_each("truncate to less", "openat", Errno::EMFILE);
    at_each("truncate to less", "removexattr", Errno::EIO);
    at_each("truncate to more", "ftruncate", Errno::EIO);
    at_each("truncate of a suid file", "fchmodat2", Errno::EIO);
}

#[test]
fn what_was_made_and_cannot_be_looked_at_is_taken_back() {
    for case in ["create", "mkdir", "symlink", "mknod", "create over a whiteout", "mkdir over a whiteout"] {
        at_each(case, "statx", Errno::EIO);
    }
}

#[test]
fn a_link_that_failed_is_not_there() {
    at_each("link of an upper file over a whiteout", "getxattr", Errno::EIO);
    at_each("link of a lower file", "statx", Errno::ENOMEM);
}

#[test]
fn an_opaque_mark_that_cannot_be_set_leaves_no_file_in_the_directory() {
    at_each("mkdir over a whiteout", "setxattr", Errno::EACCES);
    at_each("mkdir over a .wh. name", "setxattr", Errno::EACCES);
}

#[test]
fn a_rename_that_is_done_does_not_fail_for_its_whiteout() {
    at_each("rename of a directory over a whiteout", "unlinkat", Errno::EIO);
    at_each("rename of a copy onto a .wh. name", "unlinkat", Errno::EIO);
}

#[test]
fn a_change_of_attributes_that_is_made_is_not_called_failed() {
    at_each("chmod of a lower directory", "statx", Errno::EIO);
}

#[test]
fn a_write_that_fails_has_no_new_contents_under_an_old_suid() {
    at_each("first write to a suid file", "fchmodat2", Errno::EIO);
}

#[test]
fn a_file_of_several_names_is_not_parted_from_them_by_an_error() {
    // Nor is it looked for in vain in the index.
    for case in ["index: unlink", "index: unlink of another name", "index: rename over a name of another"] {
        at_each(case, "name_to_handle_at", Errno::ENOMEM);
    }
    at_each("index: rename over a name of another", "setxattr", Errno::EACCES);
}

#[test]
fn names_are_counted_whatever_fails_once_one_is_gone() {
    for case in ["index: unlink of the copied name", "index: unlink of another name", "index: unlink of the last name"]
    {
        at_each(case, "statx", Errno::EIO);
    }
    at_each("index: unlink of the last name", "unlinkat", Errno::EIO);
    at_each("index: unlink of another name", "getxattr", Errno::EACCES);
}

#[test]
fn a_link_that_could_not_be_counted_in_the_end_is_counted_by_the_next_change() {
    // The name is linked into the upper before it is moved, and from there on everything fails for a while.
    let u = frozen_after("index: rename of a copy", "linkat");
    // Without privilege no lower is found by its handle: there one name too many is counted, which does no harm.
    let more = if crate::support::is_root() { 0 } else { 1 };
    assert_eq!((u.stat("d/b").unwrap().nlink, u.stat("a").unwrap().nlink), (3 + more, 3 + more));
    u.unlink("d/b").unwrap();
    assert_eq!((u.stat("d/c").unwrap().nlink, u.stat("a").unwrap().nlink), (2 + more, 2 + more));
    u.link("a", "own/new").unwrap();
    let u = u.reopen();
    assert_eq!((u.stat("d/c").unwrap().nlink, u.stat("own/new").unwrap().nlink), (3 + more, 3 + more));
}

#[test]
fn an_owner_that_cannot_be_read_is_not_taken_for_absent() {
    at_each("override_stat: chown of a lower file", "getxattr", Errno::EACCES);
}
