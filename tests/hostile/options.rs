//! The command line and its options.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use plyfs::cli::low::LowArgs;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{holds, properties};

/// Options as somebody types who knows the words but not the grammar, and bytes of any kind.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        8 => proptest::sample::select(properties::WORDS).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..6),
    ];
    vec(word, 0..24).prop_map(|words| words.concat())
}

#[test]
fn options_of_any_kind_are_understood_or_refused() {
    holds(4000, line(), |line| properties::option_line(&line));
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
