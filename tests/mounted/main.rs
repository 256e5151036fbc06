//! What the README promises of a mounted union, one small test per promise.
//!
//! `SUBJECT=kernel cargo test --test mounted` asks the kernel's overlay the same questions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod backings;
mod copy_up;
mod daemon;
mod data;
mod layers;
mod listing;
mod messages;
mod mounting;
mod mounts_inside;
mod names;
mod numbers;
mod open_files;
mod owners;
mod passthrough;
mod refused;
mod removal;
mod rights;
mod rings;
mod staying_up;
mod users;
mod xattrs;
