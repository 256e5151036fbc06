//! The union. Knows no FUSE and no command line; usable and tested as a library, without a mount.
//!
//! A file owns what the kernel's file of a like name owns: `resolve` is `namei.c`, `setup` the opening half of `super.c`,
//! `create` and `remove` are `dir.c`, and so on. [`Overlay`] is the union; its operations take plain arguments and return
//! plain results.

pub mod config;

mod attr;
mod cache;
mod complete;
mod copy_up;
mod counts;
mod create;
mod enter;
mod events;
mod export;
mod file;
mod idmap;
mod in_use;
mod index;
mod ino;
mod lasting_id;
mod layer;
mod metacopy;
mod nlink;
mod node;
mod order;
mod origin;
mod override_stat;
mod own_change;
mod readdir;
mod recent;
mod redirect;
mod remove;
mod rename;
mod rename_ends;
mod resolve;
mod revalidate;
mod setup;
mod show_options;
mod superblock;
mod sync;
mod table;
mod uuid;
mod watch;
mod whiteout;
mod workdir;
mod xattr;
mod xattr_known;

pub use attr::SetAttr;
pub use config::{Config, SetupError};
pub use counts::Held;
pub use file::{Access, Privileges};
pub use node::{NodeId, ROOT_ID};
pub use readdir::{Dirent, Named, Room};
pub use rename::Rename;
pub use setup::MOST_KEPT_OPEN;
pub use show_options::OPTIONS;
pub use superblock::{Caller, Entry, Lasting, Overlay};
pub use watch::Listener;
