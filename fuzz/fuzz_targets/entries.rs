//! Buffers of directory entries.
#![no_main]
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../../tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|buffer: &[u8]| properties::entries(buffer));
