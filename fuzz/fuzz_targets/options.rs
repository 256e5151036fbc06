//! Lines of options.
#![no_main]
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../../tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;
use properties::WORDS;

// Words where a byte names one, else the bytes themselves.
fuzz_target!(|parts: Vec<(u8, Vec<u8>)>| {
    let line: Vec<u8> = parts
        .iter()
        .flat_map(|(word, bytes)| WORDS.get(usize::from(*word)).map_or(bytes.as_slice(), |word| word.as_bytes()))
        .copied()
        .collect();
    properties::option_line(&line);
});
