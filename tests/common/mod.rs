//! What the mounted tests share: backing file systems, mounts that undo themselves, callers, memory mappings.
//!
//! Nothing here may use the library under test: a mount is driven through the built binary only. A test binary takes
//! what it needs, so unused items are no fault.
#![allow(dead_code, clippy::expect_used)]

pub mod backing;
pub mod caller;
pub mod mapping;
pub mod mounts;
pub mod scratch;

/// Says visibly why a test does nothing here, and gives the test a value to return.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}

/// Whether the caller is root in the initial user namespace, so that file systems can be mounted and devices made.
pub fn is_real_root() -> bool {
    let whole = std::fs::read_to_string("/proc/self/uid_map")
        .map(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
        .unwrap_or(false);
    rustix::process::geteuid().is_root() && whole
}

/// Whether FUSE file systems can be mounted at all.
pub fn has_fuse() -> bool {
    std::path::Path::new("/dev/fuse").exists()
}
