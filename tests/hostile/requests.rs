//! Messages of the FUSE protocol, as a kernel would never send them.

use std::fs;
use std::sync::Arc;

use plyfs::fuse::adapter::{Adapter, Buffers, Policy};
use plyfs::fuse::wire::{Header, Reader, opcode};
use plyfs::overlay::Overlay;
use plyfs::overlay::config::{Config, Upper};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::holds;

/// A request: what for, about which node, and what follows.
fn request() -> impl Strategy<Value = (u32, u64, Vec<u8>)> {
    // Not FALLOCATE, which is asked for space that it would get, nor IOCTL, which would make files that cannot be removed.
    let code = (0..60u32).prop_filter("see above", |code| ![opcode::FALLOCATE, opcode::IOCTL].contains(code));
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
    holds(100, vec(request(), 1..60), |requests| {
        let dir = tempfile::Builder::new().prefix("plyfs-hostile-").tempdir().unwrap();
        for name in ["inner/l/d", "inner/u", "inner/w", "outside"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let inner = dir.path().join("inner");
        fs::write(inner.join("l/f"), "lower").unwrap();
        fs::write(inner.join("l/d/f"), "lower").unwrap();
        let upper = Upper { dir: inner.join("u"), work: inner.join("w") };
        let config = Config { lowers: vec![inner.join("l")], upper: Some(upper), ..Config::default() };
        let adapter = Adapter::new(Arc::new(Overlay::new(&config).unwrap()), Policy::default());
        let (uid, gid) = plyfs::sys::process::effective_ids();
        let mut buffers = Buffers::default();
        for (opcode, node, body) in requests {
            let header = Header { opcode, unique: 1, node, uid, gid, pid: 1 };
            adapter.answer(&header, &body, &mut buffers).ok();
        }
        drop(adapter);
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["inner", "outside"], "something got out");
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 3, "something got out of a layer");
        assert_eq!(fs::read_to_string(inner.join("l/f")).unwrap(), "lower", "a lower was changed");
    });
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
