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
use crate::sys::errand::{self, Detach, Question};
use crate::sys::process::{self, Signals};

/// How long the users of a mount that was pulled off under them may go on before the process ends.
const GRACE: Duration = Duration::from_secs(1);

/// How long the session may take to end after an unmount that succeeded. A copy of the mount in another namespace (a
/// container that was started meanwhile) would keep it alive.
const TIDYING: Duration = Duration::from_secs(3);

/// What the main thread waits for.
enum Event {
    /// The kernel has an answer of ours.
    Answered,
    /// The session is over.
    Ended(io::Result<()>),
    /// Somebody wants the process to leave.
    Signal(i32),
}

/// Serves a mount until it is gone.
///
/// `signals` were held back before the mount was attached, so none is lost. `on_session` gets what notices are given through
/// before the first request is answered; `on_ready` runs once the mount answers, and its error ends the mount again.
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
    // By a process that stays in the namespace of the mount.
    let question = point.as_ref().map(|point| Question::about(point.path())).transpose()?;
    mount::leave_namespace(point.as_mut());
    let _guard = point.as_mut().filter(|_| guarded).map(mount::guard).transpose()?;
    on_session(session.notifier(), for_notices);

    let (sender, events) = mpsc::channel();
    spawn_signal_thread(signals, point.as_ref(), sender.clone(), session.reporter())?;
    let ended = sender.clone();
    thread::Builder::new().name("plyfs-session".into()).spawn(move || {
        // A thread that panics ends here as an error of the session, never as a mount without a server.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.run()))
            .unwrap_or_else(|_| Err(io::Error::other("the session panicked")));
        tell(&ended, Event::Ended(result));
    })?;
    match question {
        None => tell(&sender, Event::Answered),
        // In a thread of its own: if the server never answers, signals and the session's end must still be heard.
        Some(question) => {
            thread::Builder::new().name("plyfs-ready".into()).spawn(move || match question.answer() {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => {}
                _ => tell(&sender, Event::Answered),
            })?;
        }
    }
    until_gone(&mut point, &events, on_ready)
}

/// The main thread's loop.
fn until_gone(
    point: &mut Option<MountPoint>,
    events: &Receiver<Event>,
    on_ready: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let mut on_ready = Some(on_ready);
    loop {
        match events.recv() {
            Ok(Event::Answered) => {
                if let Some(point) = point {
                    point.identify();
                }
                if let Some(Err(error)) = on_ready.take().map(|on_ready| on_ready()) {
                    leave(point, events);
                    return Err(error);
                }
            }
            Ok(Event::Signal(number)) => {
                log::info!("signal {number}: unmounting");
                leave(point, events);
                let answered = on_ready.is_none();
                return if answered { Ok(()) } else { Err(io::Error::other(format!("signal {number}"))) };
            }
            Ok(Event::Ended(result)) => {
                if let Some(point) = point {
                    point.settle();
                }
                let answered = on_ready.is_none();
                let early = io::Error::other("the mount was gone before it answered");
                return result.and(if answered { Ok(()) } else { Err(early) });
            }
            // Every sender is gone: there is no session any more.
            Err(_) => return Err(io::Error::other("the session's threads are gone")),
        }
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
