//! plyfs: a union filesystem in userspace.
//!
//! The essay grows with the code; see `overlay` for the union, `fuse` for the adapter, `cli` for the command line and
//! `sys` for the system calls.

pub mod cli;
pub mod errno;
pub mod fuse;
pub mod overlay;
pub mod sys;
