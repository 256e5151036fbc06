//! Container engines with plyfs as their mount program: podman, buildah, umoci, bubblewrap, and the calls of those that are
//! not run here.
//!
//! The engines are real, the images are made here from busybox, and nothing is fetched. What an engine lists as changed and
//! what a layer that it commits holds is compared with what it makes of the kernel's own overlay. A test whose engine is
//! not installed says so and does nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod arena;
mod build;
mod calls;
mod images;
mod inside;
mod manners;
mod masked;
mod run;
mod tools;
mod users;
