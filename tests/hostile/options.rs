//! The command line and its options.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use plyfs::cli::high::{Caller, interpret};
use plyfs::cli::low::LowArgs;
use plyfs::cli::options;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::holds;

const WORDS: &[&str] = &[
    "lowerdir",
    "upperdir",
    "workdir",
    "=",
    ",",
    ":",
    "::",
    "\\",
    "\\,",
    "\\:",
    "+",
    "\"",
    "xino",
    "auto",
    "on",
    "off",
    "fsync",
    "volatile",
    "timeout",
    "threads",
    "uidmapping",
    "gidmapping",
    "squash_to_uid",
    "0",
    "1",
    "65536",
    "4294967295",
    "4294967296",
    "-1",
    "1.5",
    "1e400",
    "NaN",
    "redirect_dir",
    "metacopy",
    "index",
    "nfs_export",
    "follow",
    "nofollow",
    "verity",
    "xattr_permissions",
    "2",
    "context",
    "u:r:t:s0:c1,c2",
    "/tmp",
    "..",
    "a",
    "fsname",
    "max_write",
    "log",
    "ro",
    "rw",
    "allow_other",
    "userxattr",
    "noxattrs",
    "\0",
    "\u{ff}",
    "%s",
    "max_read",
    "private",
    "default_permissions",
];

/// Options as somebody types who knows the words but not the grammar, and bytes of any kind.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => proptest::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..6),
    ];
    vec(word, 0..24).prop_map(|words| words.concat())
}

#[test]
fn options_of_any_kind_are_understood_or_refused() {
    holds(4000, line(), |line| {
        for option in options::split(&line) {
            drop(option);
        }
        assert!(options::unescape(&line).len() <= line.len());
        drop(options::lowers(&line));
        let text = OsString::from_vec(line);
        let args = ["plyfs".into(), "-o".into(), text, "/nonexistent".into()];
        let Ok(low) = LowArgs::parse_line(args) else { return };
        for (uid, whiteout_names) in [(0, false), (1000, true)] {
            let caller = Caller { uid, name: "plyfs".into(), whiteout_names };
            match interpret(&low, &caller) {
                Ok(args) => assert!(!format!("{args:?}").is_empty()),
                Err(error) => assert!(!error.to_string().contains('\n') || error.to_string().len() > 1),
            }
        }
    });
}

#[test]
fn arguments_of_any_kind_are_understood_or_refused() {
    let argument = prop_oneof![
        proptest::sample::select(&["-o", "-f", "-d", "-V", "-h", "-t", "--", "-", "overlay", "-oro"][..])
            .prop_map(|word| word.as_bytes().to_vec()),
        line(),
    ];
    holds(2000, vec(argument, 0..6), |arguments| {
        let line = std::iter::once("plyfs".into()).chain(arguments.into_iter().map(OsString::from_vec));
        drop(LowArgs::parse_line(line));
    });
}
