//! The union. Knows no FUSE and no command line; usable and tested as a library, without a mount.

pub mod config;

pub use config::{Config, SetupError};
