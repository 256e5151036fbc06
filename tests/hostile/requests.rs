//! Messages of the FUSE protocol, as a kernel would never send them.

use plyfs::fuse::wire::Reader;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{holds, properties};

/// A request: what for, about which node, and what follows.
fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>)> {
    let code = 0..60u32;
    let node = prop_oneof![6 => 0..8u64, 1 => any::<u64>()];
    let number = prop_oneof![
        proptest::sample::select(
            &[0u32, 1, 2, 4, 8, 0o644, 0o40755, 0o100_644, 0o120_777, 0o20_000, u32::MAX, 1 << 31][..]
        ),
        any::<u32>(),
    ];
    let text = proptest::sample::select(
        &[
            "f",
            "d",
            "new",
            "",
            ".",
            "..",
            "../outside",
            "/etc/passwd",
            "d/f",
            "user.k",
            "trusted.overlay.opaque",
            "user.overlay.",
            "system.posix_acl_access",
            "security.capability",
        ][..],
    );
    let part = prop_oneof![
        4 => number.prop_map(|number| number.to_ne_bytes().to_vec()),
        3 => text.prop_map(|text| [text.as_bytes(), b"\0"].concat()),
        1 => vec(any::<u8>(), 0..40),
    ];
    (code, node, vec(part, 0..20).prop_map(|parts| parts.concat()))
}

#[test]
fn requests_of_any_kind_are_answered() {
    holds(100, vec(request(), 1..60), |requests| properties::requests(&requests));
}

#[test]
fn headers_of_any_kind_are_read() {
    holds(2000, vec(any::<u8>(), 0..60), |bytes| {
        let mut reader = Reader(&bytes);
        assert_eq!(reader.header().is_ok(), bytes.len() >= 40);
        assert!(reader.u32().is_err() || reader.u64().is_err() || reader.bytes(7).is_err() || bytes.len() >= 19);
        if let Ok(name) = reader.name() {
            assert!(!name.is_empty() && !name.as_encoded_bytes().contains(&b'/') && name != "..");
        }
    });
}
