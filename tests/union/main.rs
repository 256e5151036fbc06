//! The union core as a library: on temporary directories, without FUSE and without a mount.
//!
//! One module per topic of `src/overlay`. A test describes its layers as text, does what it is about, and compares what the
//! union shows and what then lies on disk. Whatever a test does, the union has to be back at nothing but its root once all
//! lookups are forgotten, and the work directory has to be empty: the fixture checks that at the end of each test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attr;
#[cfg(debug_assertions)]
mod calls;
#[cfg(debug_assertions)]
mod cases;
#[cfg(debug_assertions)]
mod cases_export;
mod cases_options;
mod concurrency;
mod copy_up;
mod create;
mod data_only;
mod escape;
mod export;
#[cfg(debug_assertions)]
mod faults;
#[cfg(debug_assertions)]
mod faults_found;
mod file;
mod fixture;
mod idmap;
mod index;
mod links;
mod memory;
mod metacopy;
mod model;
mod notices;
mod order;
mod override_stat;
mod random;
mod readdir;
mod redirect;
mod remove;
mod rename;
mod resolve;
mod setup;
mod storms;
#[path = "../support/mod.rs"]
mod support;
#[cfg(debug_assertions)]
mod sync;
mod uuid;
mod vfs;
mod xattr;
