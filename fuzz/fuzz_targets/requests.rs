//! Requests of the protocol.
#![no_main]
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../../tests/hostile/properties.rs"]
mod properties;

use libfuzzer_sys::fuzz_target;

/// The code, the node, numbers at the beginning, and text behind them.
type Raw = (u8, u8, Vec<u32>, Vec<u8>);

fuzz_target!(|raw: Vec<Raw>| {
    let requests: Vec<(u32, u64, Vec<u8>)> = raw
        .into_iter()
        .take(64)
        .map(|(code, node, numbers, text)| {
            let numbers: Vec<u8> = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
            (u32::from(code % 60), u64::from(node), [numbers, text].concat())
        })
        .collect();
    properties::requests(&requests);
});
