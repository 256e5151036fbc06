//! Marks on the objects of layers.
#![no_main]
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../../tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;
use properties::{MARKS, Mark, OBJECTS, SETS, VALUES};

/// Which mark, which object, which layer, whether trusted, which known value, and what follows it.
type Raw = (u8, u8, u8, bool, u8, Vec<u8>);

fuzz_target!(|input: (u8, Vec<Raw>)| {
    let (set, raw) = input;
    let at = |byte: u8, count: usize| usize::from(byte) % count;
    let marks: Vec<Mark> = raw
        .into_iter()
        .take(16)
        .map(|(mark, object, layer, trusted, known, bytes)| {
            let known = VALUES.get(usize::from(known)).copied().unwrap_or_default();
            Mark {
                mark: at(mark, MARKS.len()),
                object: at(object, OBJECTS.len()),
                layer: at(layer, 3),
                trusted,
                value: [known, &bytes].concat(),
            }
        })
        .collect();
    properties::marks(&marks, SETS[at(set, SETS.len())]);
});
