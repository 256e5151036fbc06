//! Ends a server that does not answer any more, so that a deadlock is a difference and not a test that hangs.

use crate::common::mounts::Mounted;
use rustix::process::{Pid, Signal, kill_process};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long one operation, or one look at the whole tree, may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Watches the servers of mounts for as long as it lives.
pub struct Watch {
    rest: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    killed: Arc<AtomicBool>,
}

impl Watch {
    /// Begins to watch.
    pub fn new(mounts: &[Mounted]) -> Watch {
        let servers: Vec<u32> = mounts.iter().filter_map(Mounted::server).collect();
        let killed = Arc::new(AtomicBool::new(false));
        let (rest, rests) = channel();
        let said = Arc::clone(&killed);
        let thread = std::thread::spawn(move || {
            loop {
                match rests.recv_timeout(PATIENCE) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        said.store(true, Ordering::SeqCst);
                        let pids = servers.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
                        for pid in pids {
                            if let Err(errno) = kill_process(pid, Signal::KILL) {
                                eprintln!("server {pid:?}: {errno}");
                            }
                        }
                        return;
                    }
                }
            }
        });
        Watch { rest: Some(rest), thread: Some(thread), killed }
    }

    /// Says that things move on.
    pub fn rest(&self) {
        if self.rest.as_ref().is_some_and(|rest| rest.send(()).is_err()) {
            self.killed.store(true, Ordering::SeqCst);
        }
    }

    /// What to add to a report if it had to step in.
    pub fn verdict(&self) -> &'static str {
        if self.killed.load(Ordering::SeqCst) { " (the server did not answer and was killed)" } else { "" }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.rest = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the watching thread panicked");
        }
    }
}
