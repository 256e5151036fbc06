//! The thin FUSE adapter: the only importer of fuser.

pub mod mount;
pub mod session;
pub mod standin;
