//! The command line of the benchmark. Nothing is looked up or checked against the machine here.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// Compares overlay file systems on the same layers: the kernel's, fuse-overlayfs, unionfs-fuse and plyfs.
#[derive(Debug, Parser)]
#[command(name = "compare", bin_name = "cargo bench --bench compare --")]
pub struct Args {
    /// Your own read-only layers, the topmost first, instead of the generated ones of 60,000 files
    #[arg(long, num_args = 1.., value_name = "DIR")]
    pub lower: Vec<PathBuf>,

    /// Directory on the file system to measure on [default: as root a new xfs on a loop device, else $TMPDIR]
    #[arg(long, value_name = "DIR")]
    pub upper_on: Option<PathBuf>,

    /// One more contender; COMMAND takes fuse-overlayfs's arguments, or has {lower}, {upper}, {work} and {merged} in it
    #[arg(long, value_name = "NAME=COMMAND")]
    pub peer: Vec<String>,

    /// Only the contenders whose name begins with one of these (the kernel is always in)
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    pub contenders: Vec<String>,

    /// How often every contender does every work
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub rounds: u32,

    /// Only the works or rows whose name begins with one of these (see --list)
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    pub only: Vec<String>,

    /// Without the works or rows whose name begins with one of these
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    pub skip: Vec<String>,

    /// Shrink or grow all sizes and counts (0.1: a quick look)
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub scale: f64,

    /// Entries for the row of memory (the mark was set with 1000000, which takes minutes and 1 GB of disk)
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub entries: u64,

    /// Who mounts and works
    #[arg(long = "as", value_enum, default_value_t = Who::User, value_name = "WHO")]
    pub who: Who,

    /// The ordinary user that root becomes for `--as user`
    #[arg(long, default_value_t = 65534)]
    pub uid: u32,

    /// Give up on a contender's work after this long
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,

    /// Write every sample to this file
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,

    /// Write the table as Markdown to this file
    #[arg(long, value_name = "PATH")]
    pub markdown: Option<PathBuf>,

    /// Write the plot to this file
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,

    /// List the works and their rows
    #[arg(long)]
    pub list: bool,

    /// Given by cargo bench
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Who mounts and works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Who {
    /// An ordinary user in a user namespace of its own (as rootless containers run)
    User,
    /// Root, without a user namespace
    Root,
    /// Whoever runs it, without any namespace: mounts with fusermount3, no kernel to compare with
    Plain,
}
