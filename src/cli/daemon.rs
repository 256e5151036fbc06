//! Going into the background: the caller gets its prompt back when the mount answers, or an error and a status.
//!
//! The process is copied before anything is set up, while it has a single thread. The copy does everything; the original
//! only waits for one byte over a pipe, and its exit status is the answer to the caller.

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use crate::sys::process::{self, Ending, Fork, Inherited};

/// The server's side of the wait: what it does once the mount answers.
#[derive(Debug)]
pub enum Ready {
    /// It stays in front: there is nobody to tell.
    Foreground,
    /// It leaves its caller's session behind and tells the original through the pipe.
    Background {
        /// The pipe that the original waits at.
        pipe: File,
        /// What the caller left open. A pipe or a lock among it must not live as long as the mount.
        inherited: Inherited,
    },
}

/// Which process [`detach`] returned in.
#[derive(Debug)]
pub enum Side {
    /// The one that serves.
    Server(Ready),
    /// The one that the caller started; the server is ready, or has ended with this status and has said why.
    Caller(u8),
}

/// Copies the process.
///
/// # Errors
/// What pipe(2) and fork(2) give.
pub fn detach(inherited: Inherited) -> io::Result<Side> {
    let (read, write) = process::pipe()?;
    match process::fork()? {
        Fork::Child => {
            drop(read);
            Ok(Side::Server(Ready::Background { pipe: File::from(write), inherited }))
        }
        Fork::Parent(server) => {
            drop(write);
            let mut byte = [0];
            if File::from(read).read_exact(&mut byte).is_ok() {
                return Ok(Side::Caller(0));
            }
            // It ended before it was ready. Had it ended of itself it would have said why.
            Ok(Side::Caller(match server.wait()? {
                Ending::Exit(0) => 1,
                Ending::Exit(status) => u8::try_from(status).unwrap_or(1),
                Ending::Killed(signal) => {
                    eprintln!("plyfs: the server was killed by signal {signal} before the mount answered");
                    1
                }
            }))
        }
    }
}

impl Ready {
    /// The mount answers.
    ///
    /// # Errors
    /// The original has been killed meanwhile: its caller believes that there is no mount.
    pub fn tell(self) -> io::Result<()> {
        // The directory that we were started in could not be unmounted otherwise.
        std::env::set_current_dir("/")?;
        let Ready::Background { mut pipe, inherited } = self else { return Ok(()) };
        process::new_session()?;
        // Callers read our stderr up to its end before they look at the exit status: no end of it may stay here.
        process::null_standard_streams()?;
        inherited.close();
        pipe.write_all(b"1")
    }
}
