//! What the faults of `faults` have found, each by name.

use plyfs::errno::Errno;

use crate::faults::at_each;

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
