//! A mount's life: the conversation with the kernel, the moment it answers, and every way it can end.
//!
//! Owns the threads of the process. Whatever happens (an unmount from outside, a signal, an aborted connection, an error)
//! [`serve`] returns with nothing left mounted that nobody serves; the caller then ends the process, which closes the
//! last descriptor of the device.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use fuser::Notifier;

use crate::fuse::adapter::Adapter;
use crate::fuse::mount::{self, MountPoint, Mounted};
use crate::fuse::server::{Options, Server};
use crate::sys::errand::{self, Detach};
use crate::sys::namespace;
use crate::sys::process::{self, Signals};

/// How long the users of a mount that was pulled off under them may go on before the process ends.
const GRACE: Duration = Duration::from_secs(1);

/// How long the session may take to end after an unmount that succeeded. A copy of the mount in another namespace (a
/// container that was started meanwhile) would keep it alive.
const TIDYING: Duration = Duration::from_secs(3);

/// What the main thread waits for.
enum Event {
    /// The session is over.
    Ended(io::Result<()>),
    /// Somebody wants the process to leave.
    Signal(i32),
}

/// Serves a mount until it is gone.
///
/// `signals` were held back before the mount was attached, so none is lost. `on_ready` runs once the mount is sure to answer, and
/// its error ends the mount again; `on_session` gets what notices are given through, after that and before the first request is
/// answered.
///
/// # Errors
/// The handshake fails, the mount goes away before it has answered, the connection breaks, or `on_ready`'s own.
pub fn serve(
    adapter: Adapter,
    mounted: Mounted,
    mut options: Options,
    signals: Signals,
    on_session: impl FnOnce(Notifier, OwnedFd),
    on_ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    // Each clone opens the device by its path.
    options.own_queues &= mounted.reopenable();
    let guarded = mounted.guarded();
    let (device, mut point) = mounted.into_parts();
    let for_notices = device.try_clone()?;
    let session = Server::new(adapter, device, options)?;
    // A process that is forked stays where it is, so this one leaves before; it can be forked only while there is one thread.
    let _guard = match point.as_mut().filter(|_| guarded) {
        Some(point) => {
            mount::leave_namespace(Some(point));
            Some(mount::guard(point)?)
        }
        None => None,
    };
    let (notifier, report) = (session.notifier(), session.reporter());
    let (sender, events) = mpsc::channel();
    let begin = spawn_session_thread(session, sender.clone())?;
    let let_begin = |elsewhere| {
        if begin.send(elsewhere).is_err() {
            log::debug!("the session is over before it has begun");
        }
    };
    // The kernel has its answer, and there is a thread for what else it asks: nothing from here on can keep that from
    // being answered. The rest is not waited for by the caller, who would be held up by the start of all these threads.
    if let Err(error) = on_ready() {
        // Who has come upon the mount already gets answers as long as it is there.
        let_begin(None);
        leave(&mut point, &events);
        return Err(error);
    }
    if !guarded {
        mount::leave_namespace(point.as_mut());
    }
    on_session(notifier, for_notices);
    let_begin(namespace::now());
    spawn_signal_thread(signals, point.as_ref(), sender, report)?;
    until_gone(&mut point, &events)
}

/// Starts the thread that answers requests, and starts others for that. It begins when it is told in which namespace.
fn spawn_session_thread(session: Server, events: Sender<Event>) -> io::Result<Sender<Option<OwnedFd>>> {
    let (begin, told) = mpsc::channel::<Option<OwnedFd>>();
    thread::Builder::new().name("plyfs-session".into()).spawn(move || {
        match told.recv() {
            Ok(Some(elsewhere)) => {
                if let Err(error) = namespace::enter(&elsewhere) {
                    log::debug!("the mount namespace lasts as long as this process: {error}");
                }
            }
            Ok(None) => {}
            // Nothing is to be served after all.
            Err(_) => return,
        }
        // A thread that panics ends here as an error of the session, never as a mount without a server.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.run()))
            .unwrap_or_else(|_| Err(io::Error::other("the session panicked")));
        tell(&events, Event::Ended(result));
    })?;
    Ok(begin)
}

/// The main thread's wait.
fn until_gone(point: &mut Option<MountPoint>, events: &Receiver<Event>) -> io::Result<()> {
    match events.recv() {
        Ok(Event::Signal(number)) => {
            log::info!("signal {number}: unmounting");
            leave(point, events);
            Ok(())
        }
        Ok(Event::Ended(result)) => {
            if let Some(point) = point {
                point.settle();
            }
            result
        }
        // Every sender is gone: there is no session any more.
        Err(_) => Err(io::Error::other("the session's threads are gone")),
    }
}

/// Takes the mount away at our own wish: idle if possible, else from under its users.
fn leave(point: &mut Option<MountPoint>, events: &Receiver<Event>) {
    let Some(point) = point else { return };
    let patience = match point.detach(Detach::WhenIdle) {
        Ok(()) => TIDYING,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            log::warn!("{}: not our mount any more, left alone", point.path().display());
            return;
        }
        Err(error) => {
            log::info!("{}: {}; detaching it from its users", point.path().display(), process::reason(&error));
            // What they have written and the kernel still holds would be lost with the connection.
            if let Err(error) = errand::sync_mount(point.path()) {
                log::warn!("{}: sync: {error}", point.path().display());
            }
            if let Err(error) = point.detach(Detach::Lazily) {
                log::error!("{}: {error}", point.path().display());
            }
            GRACE
        }
    };
    // The session ends by itself when its last user leaves, and tidies up. If that takes long, the end of the process
    // aborts the connection, so that nobody hangs on it.
    loop {
        match events.recv_timeout(patience) {
            Ok(Event::Ended(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            Ok(_) => {}
        }
    }
}

/// Hands the first signal to the main thread. At the second, the first one's orderly way is stuck: pulls the mount off
/// and ends the process at once.
fn spawn_signal_thread(
    signals: Signals,
    point: Option<&MountPoint>,
    events: Sender<Event>,
    report: impl Fn() -> String + Send + 'static,
) -> io::Result<()> {
    let emergency = point.map(MountPoint::emergency);
    thread::Builder::new().name("plyfs-signals".into()).spawn(move || {
        // One that asks to leave; those that ask how it goes are answered.
        let wait = || loop {
            match signals.wait() {
                Ok(libc::SIGUSR1) => log::warn!("{}", report()),
                other => break other,
            }
        };
        if let Ok(number) = wait() {
            tell(&events, Event::Signal(number));
        }
        if wait().is_ok() {
            if let Some(emergency) = emergency {
                emergency.pull();
            }
            std::process::exit(1);
        }
    })?;
    Ok(())
}

/// Sends to the main thread. When that has stopped listening the process is about to end and nothing is left to tell.
fn tell(events: &Sender<Event>, event: Event) {
    if events.send(event).is_err() {
        log::debug!("nobody listens any more");
    }
}
