//! `cargo bench --bench compare`: the same work on the kernel's overlay and on every union in userspace that is installed.
//!
//! ```text
//!   stage     (as you, or root)        prepares the backing file system and the namespaces, starts the course, drops caches
//!     |                                on request, collects samples, writes the reports
//!     v  a pipe of events
//!   course    (an ordinary user,       for each work, for each round, for each contender in turn:
//!              root of its own           fresh upper -> mount -> work -> unmount -> next
//!              user namespace)
//! ```
//!
//! What the words mean here:
//!
//! * **round**: every contender does the work once, each on a fresh mount with a fresh and empty upper. The order rotates from
//!   round to round, so that drift of the machine falls on all of them alike.
//! * **cold**: the first pass on a fresh mount. The union has cached nothing yet, neither names nor attributes nor data. The
//!   file system below it has: the layers were read once before the first round, and stay in the page cache. So what is
//!   measured is the union, not the disk.
//! * **warm**: the same pass again on the same mount.
//! * **ratio**: the contender's time over that of the kernel's overlay in the same round; the table shows the median of the
//!   rounds with the smallest and the largest.
//!
//! Nothing here may be tuned to one contender: all get the same layers, the same calls and their own default options.

mod args;
mod contender;
mod course;
mod event;
mod find;
mod fixture;
mod marks;
mod mount;
mod plan;
mod report;
mod stage;
mod tree;
mod work;

use std::process::ExitCode;

use clap::Parser;

/// What can go wrong while measuring: a message for the person who measures.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let run = match course::requested() {
        Some(stage) => course::run(&stage),
        None => measure(),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    if std::env::args_os().len() == 1 {
        // `cargo test --all-targets` runs benchmarks without arguments: no half an hour of mounts for that.
        println!("compare: run me with `cargo bench --bench compare` (options after a `--`, see `--help`)");
        return Ok(());
    }
    let args = args::Args::parse();
    if args.list {
        work::list();
        return Ok(());
    }
    stage::run(&args)
}
