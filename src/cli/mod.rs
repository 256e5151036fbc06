//! The command line: the only importer of clap and env_logger.
//!
//! [`run`] is the whole program. In this order: flags as typed (`low`), as meant (`high`), into the background (`daemon`),
//! what mounting needs, the layers, the mount, and service until it is gone. Nothing on disk is touched before
//! everything before the layers has been found to be in order.

pub mod daemon;
mod features;
pub mod high;
mod ids;
mod known;
pub mod logging;
pub mod low;
pub mod options;
mod values;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::cli::daemon::{Ready, Side};
use crate::cli::high::{Caller, HighArgs};
use crate::cli::low::LowArgs;
use crate::errno::Errno;
use crate::fuse::adapter::{Adapter, Policy, Xattrs};
use crate::fuse::mount::{self, Target};
use crate::fuse::notices::Notices;
use crate::fuse::{server, session};
use crate::overlay::{MOST_KEPT_OPEN, OPTIONS, Overlay};
use crate::sys::cpu::Processors;
use crate::sys::process::{self, Inherited, Signals};
use crate::sys::{self, At};

/// Runs the program with a command line, its own name first.
#[must_use]
pub fn run(line: Vec<OsString>) -> ExitCode {
    // First of all: what is open now is not ours.
    let mut inherited = Inherited::at_start();
    process::notice_children();
    let name = line.first().map(Path::new).and_then(Path::file_name).unwrap_or(OsStr::new("plyfs")).to_owned();
    let low = match LowArgs::parse_line(line) {
        Ok(low) => low,
        Err(reason) => return refuse(&reason),
    };
    if low.help {
        return print(low::HELP);
    }
    if low.version {
        return print(&low::version(&name.to_string_lossy()));
    }
    if low.show {
        return match low
            .positionals
            .last()
            .ok_or_else(|| "mountpoint: none given".to_owned())
            .and_then(|at| options_of(at))
        {
            Ok(line) => print(&line),
            Err(reason) => refuse(&reason),
        };
    }
    let caller = Caller {
        uid: process::effective_ids().0,
        name,
        whiteout_names: std::env::var_os("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT").is_some(),
    };
    let args = match high::interpret(&low, &caller) {
        Ok(args) => args,
        Err(error) => return refuse(&error),
    };
    for notice in &args.notices {
        eprintln!("plyfs: {notice}");
    }
    for option in &args.unknown {
        eprintln!("unknown argument ignored: {option}");
    }
    let ready = if args.foreground {
        Ready::Foreground
    } else {
        if let Target::Descriptor(target) = args.mount.target {
            inherited.leave_out(target);
        }
        match daemon::detach(inherited) {
            Ok(Side::Server(ready)) => ready,
            Ok(Side::Caller(status)) => return ExitCode::from(status),
            Err(error) => return refuse(&format!("fork: {}", process::reason(&error))),
        }
    };
    if let Err(error) = args.log.start(args.debug) {
        return refuse(&format!("log: {}", process::reason(&error)));
    }
    match mount_and_serve(&args, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

/// Everything between the command line and the exit status.
fn mount_and_serve(args: &HighArgs, ready: Ready) -> Result<(), Box<dyn std::error::Error>> {
    let reserved = process::raise_descriptor_limit().and_then(|limit| {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        process::reserve_descriptors(limit.min(MOST_KEPT_OPEN))
    });
    if let Err(error) = reserved {
        log::warn!("limit of open files: {error}");
    }
    process::clear_umask();
    sys::map_large_memory();
    let prepared = mount::prepare(&args.mount)?;
    let overlay = Arc::new(Overlay::new(&args.config)?);
    // A signal from here on waits until somebody can unmount.
    let signals = Signals::hold_leave_requests()?;
    let mounted = prepared.attach()?;
    let serving = &args.serving;
    let least = if overlay.overrides_owners() { Xattrs::NoAcls } else { Xattrs::All };
    let xattrs = serving.xattrs.max(least);
    let policy = serving.timeout.map_or_else(Policy::default, Policy::lasting);
    let options = server::Options {
        threads: serving.threads.unwrap_or_else(default_threads),
        own_queues: serving.clone_fd,
        writeback: serving.writeback.unwrap_or(false),
        acl: xattrs == Xattrs::All,
        max_write: serving.max_write,
        passthrough: serving.passthrough,
        rings: serving.rings,
        export: overlay.exports(),
    };
    if let Err(errno) = overlay.begin() {
        log::warn!("the work directory cannot be marked as volatile: {errno}");
    }
    let adapter = Adapter::new(overlay.clone(), policy).with_xattrs(xattrs);
    let watch = |notifier, device| {
        if let Err(errno) = overlay.watch(Notices::new(notifier, device)) {
            log::warn!("layers cannot be watched ({errno}): what is told lasts a second");
        }
    };
    let served = session::serve(adapter, mounted, options, signals, watch, || ready.tell());
    served.map_err(|error| process::reason(&error).into())
}

/// As many readers as keep a slow request from holding up quick ones; more only wake each other.
fn default_threads() -> usize {
    // Not what a control group grants, which takes reading several files.
    Processors::allowed().map_or(2, |processors| processors.count().clamp(2, 4) as usize)
}

/// The options of the union that is mounted at a path, a line of text; what is not text in a path is replaced.
fn options_of(point: &OsStr) -> Result<String, String> {
    let fail = |reason: &dyn std::fmt::Display| format!("mountpoint={}: {reason}", Path::new(point).display());
    let path = std::fs::canonicalize(point).map_err(|error| fail(&process::reason(&error)))?;
    match sys::get_xattr(At::Name(rustix::fs::CWD, path.as_os_str()), OsStr::new(OPTIONS)) {
        Ok(line) => Ok(String::from_utf8_lossy(&line).into_owned() + "\n"),
        Err(Errno::ENODATA | Errno::ENOTSUP) => Err(fail(&"no union of plyfs is mounted there, or one with noxattrs")),
        Err(errno) => Err(fail(&errno)),
    }
}

/// Prints what was asked for.
fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One line on stderr, whatever the names in it hold, and status 1.
fn refuse(reason: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("plyfs: {}", reason.to_string().replace('\n', "\\n"));
    ExitCode::FAILURE
}
