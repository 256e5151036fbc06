//! Directory entries, as a kernel would never return them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use plyfs::errno::Errno;
use plyfs::sys::{Kind, parse_entries};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{holds, properties};

/// A record as it should be: padded to 8 bytes, a NUL behind the name.
fn record(ino: u64, kind: u8, name: &[u8]) -> Vec<u8> {
    let length = (19 + name.len() + 1).next_multiple_of(8);
    let header = [&ino.to_ne_bytes()[..], &7i64.to_ne_bytes(), &u16::try_from(length).unwrap().to_ne_bytes(), &[kind]];
    let mut record = [&header.concat()[..], name].concat();
    record.resize(length, 0);
    record
}

type Entry = (OsString, u64, Option<Kind>);

/// What was told of a buffer, and how it ended.
fn told(buffer: &[u8]) -> (Vec<Entry>, Result<(), Errno>) {
    let mut entries = Vec::new();
    let result = parse_entries(buffer, &mut |entry| {
        entries.push((entry.name.to_owned(), entry.ino, entry.kind));
        Ok(())
    });
    (entries, result)
}

fn records() -> impl Strategy<Value = Vec<(u64, u8, Vec<u8>)>> {
    let byte = any::<u8>().prop_filter("no part of a name", |byte| ![0, b'/'].contains(byte));
    vec((any::<u64>(), 0..16u8, vec(byte, 1..40)), 0..12)
}

fn joined(records: &[(u64, u8, Vec<u8>)]) -> Vec<u8> {
    records.iter().flat_map(|(ino, kind, name)| record(*ino, *kind, name)).collect()
}

#[test]
fn entries_are_read_as_they_were_written() {
    holds(500, records(), |records| {
        let (entries, result) = told(&joined(&records));
        assert_eq!(result, Ok(()));
        let shown = records.iter().filter(|(_, _, name)| ![&b"."[..], b".."].contains(&&name[..]));
        let names: Vec<_> = shown.clone().map(|(ino, _, name)| (OsStr::from_bytes(name), *ino)).collect();
        assert_eq!(entries.iter().map(|(name, ino, _)| (name.as_os_str(), *ino)).collect::<Vec<_>>(), names);
        for ((_, kind, _), (_, _, told)) in shown.zip(&entries) {
            assert_eq!(told.is_some(), [1, 2, 4, 6, 8, 10, 12].contains(kind));
        }
    });
}

#[test]
fn entries_of_any_kind_end() {
    // Good records with a few bytes changed, cut off somewhere.
    let changes = vec((any::<prop::sample::Index>(), prop_oneof![Just(0), Just(255), any::<u8>()]), 0..4);
    holds(3000, (records(), changes, any::<prop::sample::Index>()), |(records, changes, end)| {
        let mut buffer = joined(&records);
        if !buffer.is_empty() {
            for (at, byte) in changes {
                let at = at.index(buffer.len());
                buffer[at] = byte;
            }
            buffer.truncate(end.index(buffer.len()) + 1);
        }
        properties::entries(&buffer);
    });
    holds(1000, vec(any::<u8>(), 0..200), |buffer| properties::entries(&buffer));
}

#[test]
fn a_record_that_is_none_is_an_error() {
    let good = record(1, 8, b"name");
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    for (what, bad) in [
        ("of no length", with(16, &[0, 0])),
        ("shorter than its header", with(16, &18u16.to_ne_bytes())),
        ("without a name", with(16, &19u16.to_ne_bytes())),
        ("longer than the buffer", with(16, &64u16.to_ne_bytes())),
        ("without a NUL", with(16, &23u16.to_ne_bytes())),
        ("with an empty name", with(19, &[0])),
        ("with a path", with(19, b"a/b")),
        ("cut off", good[..10].to_vec()),
    ] {
        let (entries, result) = told(&[record(2, 4, b"before"), bad].concat());
        assert_eq!((entries.len(), result), (1, Err(Errno::EIO)), "a record {what}");
    }
}
