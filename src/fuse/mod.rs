//! The thin FUSE adapter: the only importer of fuser.

mod fusermount;
pub mod mount;
pub mod session;
pub mod standin;
