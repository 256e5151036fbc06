//! Layers that somebody has made to do harm: marks with any bytes, names with any byte, whiteouts of odd kinds.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use plyfs::sys::{self, Kind};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::CWD;

use crate::holds;
use crate::properties::{self, MARKS, Mark, OBJECTS, SETS, VALUES, make_layers, open, walk};

/// What a mark may hold: what is right, nearly right, or anything.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let origin = (any::<[u8; 21]>(), vec(any::<u8>(), 0..40)).prop_map(|(mut head, tail)| {
        (head[0], head[1], head[2], head[3]) = (0, 0xfb, u8::try_from(21 + tail.len()).unwrap(), head[3] & 7);
        [head.as_slice(), &tail].concat()
    });
    prop_oneof![
        4 => proptest::sample::select(VALUES).prop_map(<[u8]>::to_vec),
        2 => origin,
        2 => vec(any::<u8>(), 0..300),
        1 => vec(any::<u8>(), 4).prop_map(|bytes| [&[0, 4, 0, 0][..], &bytes].concat()),
        1 => (1..400usize).prop_map(|n| b"/d".repeat(n)),
    ]
}

#[test]
fn marks_of_any_kind_are_read_or_passed_over() {
    let mark = (0..MARKS.len(), 0..OBJECTS.len(), 0..3usize, any::<bool>(), value());
    let mark = mark.prop_map(|(mark, object, layer, trusted, value)| Mark { mark, object, layer, trusted, value });
    let options = proptest::sample::select(SETS);
    holds(60, (vec(mark, 1..12), options), |(marks, options)| {
        properties::marks(&marks, options);
    });
}

#[test]
fn names_of_any_bytes_are_names() {
    let byte = any::<u8>().prop_filter("no name has it", |byte| !b"/\0".contains(byte));
    let name = prop_oneof![
        vec(byte, 1..60),
        proptest::sample::select(
            &[".wh.", ".wh..wh..opq", ".wh..wh.a", "...", "#1", ".wh.d", ".wh..wh..wh.", "\\", "\n", "incompat"][..]
        )
        .prop_map(|name| name.as_bytes().to_vec()),
    ];
    let object = (name, 0..3usize, 0..6usize);
    holds(60, vec(object, 1..10), |objects| {
        let dir = tempfile::Builder::new().prefix("plyfs-hostile-").tempdir().unwrap();
        make_layers(dir.path());
        for (name, layer, kind) in objects {
            let name = OsString::from_vec(name);
            if name == "." || name == ".." {
                continue;
            }
            let path = dir.path().join(["l1", "l2", "upper"][layer]).join("d").join(&name);
            let place = (CWD, path.as_os_str());
            match kind {
                // Over nothing only: a fifo that has the name already would wait for a reader.
                0 => drop(fs::File::create_new(&path)),
                1 => drop(fs::create_dir(&path)),
                2 => drop(std::os::unix::fs::symlink("../../..", &path)),
                3 => drop(sys::mknod(place.0, place.1, Kind::Char, 0o600, 0)),
                4 => drop(sys::mknod(place.0, place.1, Kind::Fifo, 0o600, 0)),
                _ => drop(sys::mknod(place.0, place.1, Kind::Block, 0o600, 0)),
            }
        }
        let Some(overlay) = open(dir.path(), "") else { return };
        walk(&overlay, overlay.root(), 0);
    });
}
