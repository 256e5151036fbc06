//! FUSE: the only importer of fuser.

pub mod adapter;
pub mod boundary;
mod crew;
mod data;
mod follow;
mod fusermount;
mod listing;
pub mod mount;
pub mod notices;
pub mod passthrough;
mod rings;
pub mod server;
pub mod session;
mod sync;
pub mod wire;
mod worker;
