//! FUSE: the only importer of fuser.

pub mod adapter;
pub mod server;
pub mod wire;
