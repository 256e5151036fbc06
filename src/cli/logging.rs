//! Where the log goes: standard error, a file, or the system's log. The only importer of env_logger.
//!
//! A server in the background has no standard error; what it has to say then is lost, unless a file or the system's log
//! was asked for (`-o log=`). Both are opened before the server leaves its caller's directory and namespace.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use env_logger::{Builder, Env, Target};
use log::Level;

/// Where the log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTo {
    /// Standard error, as long as there is one.
    #[default]
    Stderr,
    /// The end of this file, which is made if need be.
    File(PathBuf),
    /// The system's log, as a daemon.
    Syslog,
}

/// The socket at which the system's log listens.
const SYSLOG: &str = "/dev/log";

/// The facility of daemons, as syslog(3) counts.
const DAEMON: u8 = 3 << 3;

impl LogTo {
    /// What the value of `log=` means.
    #[must_use]
    pub fn named(value: &Path) -> LogTo {
        if value == Path::new("syslog") { LogTo::Syslog } else { LogTo::File(value.to_owned()) }
    }

    /// Starts logging: warnings, everything with `debug`, or what `RUST_LOG` says.
    ///
    /// # Errors
    /// The place cannot be written to.
    pub fn start(&self, debug: bool) -> io::Result<()> {
        let filter = if debug { "debug" } else { "warn" };
        let mut builder = Builder::from_env(Env::default().default_filter_or(filter));
        match self {
            LogTo::Stderr => {}
            LogTo::File(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path)?;
                builder.target(Target::Pipe(Box::new(file)));
            }
            LogTo::Syslog => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(SYSLOG)?;
                // A log that is not read must not hold up the file system.
                socket.set_nonblocking(true)?;
                builder.target(Target::Pipe(Box::new(Datagrams(socket))));
                builder.format(|out, record| {
                    let (priority, process) = (DAEMON | severity(record.level()), std::process::id());
                    writeln!(out, "<{priority}>plyfs[{process}]: {}", record.args())
                });
            }
        }
        builder.try_init().map_err(io::Error::other)
    }
}

/// The severity of syslog(3) for a level.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Each write is a message. One that cannot be sent is lost: there is no other place to say so.
struct Datagrams(UnixDatagram);

impl Write for Datagrams {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let text = message.strip_suffix(b"\n").unwrap_or(message);
        self.0.send(text).map(|_| message.len()).or(Ok(message.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
