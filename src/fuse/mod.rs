//! FUSE: the only importer of fuser.

pub mod adapter;
mod attributes;
pub mod boundary;
mod crew;
mod data;
mod follow;
mod fusermount;
mod listing;
pub mod mount;
mod names;
pub mod notices;
pub mod passthrough;
mod rings;
pub mod server;
pub mod session;
mod sync;
mod vigil;
pub mod wire;
mod worker;
