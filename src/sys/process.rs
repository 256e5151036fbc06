//! The process side of the system calls: fork and session, signals, limits, inherited descriptors, and the calls that
//! attach and detach a mount.
//!
//! Knows neither FUSE's protocol nor the union. Nothing here makes this process wait for the mount that it serves; the calls
//! that go into it are in [`errand`](super::errand).

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::FsOpenFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags, SocketType,
};
use rustix::process::{Resource, Rlimit};

pub use rustix::mount::MountFlags;

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that called, with the new one's handle.
    Parent(Child),
    /// The new process.
    Child,
}

/// A forked process, not yet waited for.
#[derive(Debug)]
pub struct Child(rustix::process::Pid);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It left with this status.
    Exit(i32),
    /// This signal killed it.
    Killed(i32),
}

/// Makes a second process. Only while this one has a single thread: the copy would have the others' locks, not the others.
///
/// # Errors
/// `EAGAIN` and `ENOMEM` of fork(2); `EDEADLK` if there is a second thread.
pub fn fork() -> io::Result<Fork> {
    // The threads of a process are directories in its task directory, each with a link to that, which has two besides.
    // Where /proc is missing, the caller's word stands.
    if std::fs::metadata("/proc/self/task").is_ok_and(|tasks| std::os::unix::fs::MetadataExt::nlink(&tasks) > 3) {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: fork() takes nothing; with a single thread (checked above) the child owns every lock its memory shows.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Child::of(pid)?)),
    }
}

impl Child {
    /// The process that a fork has returned.
    pub(super) fn of(pid: libc::pid_t) -> io::Result<Child> {
        rustix::process::Pid::from_raw(pid).map(Child).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// `ECHILD` if somebody else has taken its status.
    pub fn wait(self) -> io::Result<Ending> {
        loop {
            match rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(Some((_, status))) => {
                    if let Some(status) = status.exit_status() {
                        return Ok(Ending::Exit(status));
                    }
                    if let Some(signal) = status.terminating_signal() {
                        return Ok(Ending::Killed(signal));
                    }
                }
                Ok(None) => {}
            }
        }
    }
}

/// Makes the ends of child processes known to us, which a caller that ignores SIGCHLD would have kept from us.
pub fn notice_children() {
    // SAFETY: sets a disposition of the kernel's; no handler of ours is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// A pipe, both ends closed on exec: (read end, write end).
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Leaves the caller's session, process group and terminal.
///
/// # Errors
/// `EPERM` for the leader of a process group.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Puts descriptors 0, 1 and 2 on `/dev/null`, so that whoever reads the other end of a pipe there sees its end.
///
/// # Errors
/// What opening `/dev/null` gives.
pub fn null_standard_streams() -> io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for standard in 0..=2 {
        // SAFETY: dup2 replaces one of the three standard streams, which no value in this process owns.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes this process, which was just forked, one that holds nothing but one end of a pipe, has no terminal, and waits
/// until the other end is gone.
pub fn wait_alone(end: OwnedFd) {
    // A caller's session, streams and descriptors must not last as long as this; what fails leaves it no worse.
    let apart = new_session().and_then(|()| null_standard_streams());
    log::debug!("guard: {apart:?}");
    let only = end.as_raw_fd().cast_unsigned();
    // SAFETY: the process does nothing from here on but wait, take a path away and end: it uses no other descriptor that
    // was open before.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, only.saturating_sub(1), 0);
        libc::syscall(libc::SYS_close_range, only.saturating_add(1), libc::c_uint::MAX, 0);
    }
    let ended = io::copy(&mut std::fs::File::from(end), &mut io::sink());
    log::debug!("guard: {ended:?}");
}

/// What the caller of the program left open above 2, on purpose or not.
#[derive(Debug)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Finds the descriptors that are open. To be called once, before anything of ours is open.
    #[must_use]
    pub fn at_start() -> Inherited {
        // Since Linux 6.2 this is their number; before, it is 0.
        if std::fs::metadata("/proc/self/fd").is_ok_and(|list| list.len() == 3) && (0..=2).all(is_open) {
            return Inherited(Vec::new());
        }
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Inherited(Vec::new()) };
        let mut open: Vec<RawFd> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|descriptor| *descriptor > 2)
            .collect();
        // The listing's own descriptor was among them and is closed by now.
        open.retain(|descriptor| is_open(*descriptor));
        Inherited(open)
    }

    /// Leaves out one that somebody takes over ([`adopt`]).
    pub fn leave_out(&mut self, descriptor: RawFd) {
        self.0.retain(|inherited| *inherited != descriptor);
    }

    /// Closes them all.
    pub fn close(self) {
        for descriptor in self.0 {
            // SAFETY: these were open before anything of ours was, and the adopted one has been left out: nothing in this
            // process owns these numbers.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// Whether a number is an open descriptor.
fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: F_GETFD only reads a flag and answers EBADF for a number that is not open.
    unsafe { libc::fcntl(descriptor, libc::F_GETFD) >= 0 }
}

/// Takes over an inherited descriptor by its number, and closes it on exec from now on.
///
/// # Errors
/// `EBADF` if the number is not open or is one of 0, 1, 2.
pub fn adopt(descriptor: RawFd) -> io::Result<OwnedFd> {
    if descriptor <= 2 || !is_open(descriptor) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, and the command line names it as given to us: nothing else in the process owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
    Ok(owned)
}

/// A pair of connected stream sockets, both closed on exec.
///
/// # Errors
/// `EMFILE`, `ENFILE`.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Lets a descriptor survive the exec of a program that is started next.
///
/// # Errors
/// `EBADF` only.
pub fn keep_over_exec(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?)
}

/// Receives the one descriptor that the other end of a socket sends; `None` if it was closed without sending one.
///
/// # Errors
/// What recvmsg(2) gives.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

/// Raises the number of descriptors this process may have to what it may ask for. Returns that number.
///
/// # Errors
/// `EPERM`; the old limit then stays.
pub fn raise_descriptor_limit() -> io::Result<Option<u64>> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}

/// Makes room for so many descriptors at once. Otherwise the table of them grows by twice its size whenever it is full, and in a
/// process of several threads the kernel waits each time until no processor reads the old one, some milliseconds: call it
/// while there is one thread.
///
/// # Errors
/// `EINVAL` for more than the process may have, `ENOMEM`.
pub fn reserve_descriptors(count: usize) -> io::Result<()> {
    let any = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let last = RawFd::try_from(count.saturating_sub(1)).map_err(io::Error::other)?;
    drop(rustix::io::fcntl_dupfd_cloexec(&any, last)?);
    Ok(())
}

/// Sets the process's umask to nothing, so that modes arrive on disk as requests carry them.
pub fn clear_umask() {
    rustix::process::umask(Mode::empty());
}

/// The user and the group this process acts as.
#[must_use]
pub fn effective_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Whether this process holds `CAP_SYS_ADMIN` in its user namespace.
#[must_use]
pub fn has_sys_admin() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Whether this is the user namespace that the machine began with, in which privileges are those of the machine.
#[must_use]
pub fn is_in_first_user_namespace() -> bool {
    // PROC_USER_INIT_INO
    const FIRST: u64 = 0xefff_fffd;
    std::fs::metadata("/proc/self/ns/user")
        .is_ok_and(|namespace| std::os::unix::fs::MetadataExt::ino(&namespace) == FIRST)
}

/// Whether a file system may be attached in this mount namespace: asks for a context of that type and drops it.
///
/// # Errors
/// `EPERM` if not permitted, `ENODEV` if the kernel does not know the type, `ENOSYS` before Linux 5.2.
pub fn may_mount(kind: &CStr) -> io::Result<()> {
    rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(())
}

/// Attaches a file system, mount(2).
///
/// # Errors
/// What mount(2) gives: `EPERM` without the privilege, `EINVAL` for data the file system does not understand.
pub fn mount(source: &CStr, target: &Path, kind: &CStr, flags: MountFlags, data: &CStr) -> io::Result<()> {
    Ok(rustix::mount::mount(source, target, kind, flags, data)?)
}

/// Whether a program may be run by this process.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether this process may make entries in a directory, by its real user as setuid programs ask.
#[must_use]
pub fn may_write(directory: &Path) -> bool {
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Opens a device for reading and writing.
///
/// # Errors
/// What open(2) gives.
pub fn open_device(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether a read of the descriptor would not wait.
#[must_use]
pub fn is_readable(descriptor: impl AsFd) -> bool {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// The device number of a character device, (major, minor); `None` for everything else.
///
/// # Errors
/// What fstat(2) gives.
pub fn character_device(descriptor: impl AsFd) -> io::Result<Option<(u32, u32)>> {
    let stat = rustix::fs::fstat(descriptor)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::CharacterDevice {
        return Ok(None);
    }
    Ok(Some((rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))))
}

/// Signals that are kept from this process and its later threads, to be waited for by one of them.
#[derive(Clone, Copy)]
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Holds back the signals that ask a server to leave: SIGTERM, SIGINT, and SIGHUP unless the caller ignores it
    /// (nohup); and SIGUSR1, which asks how it goes. From here until [`Signals::wait`] they stay pending: none is lost and none kills half-way.
    ///
    /// # Errors
    /// None that sigprocmask(2) documents for valid input.
    pub fn hold_leave_requests() -> io::Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given; the set is read only afterwards, and the signal numbers
        // are valid. sigaction with a null new action only writes the old one into the space it is given.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGUSR1);
            let mut hangup = MaybeUninit::<libc::sigaction>::zeroed();
            libc::sigaction(libc::SIGHUP, std::ptr::null(), hangup.as_mut_ptr());
            if hangup.assume_init().sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&raw mut set, libc::SIGHUP);
            }
            set
        };
        // SAFETY: the set is initialised; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Signals(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one of them and returns its number.
    ///
    /// # Errors
    /// None that sigwait(3) documents for a valid set.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: the set is initialised and the number is written into a local.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signals")
    }
}

/// What an error says, without the number that `io::Error` adds for programmers.
#[must_use]
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text.chars().take(end).collect(),
        None => text,
    }
}

/// The number of a descriptor, for a program that is told it in words.
#[must_use]
pub fn number(descriptor: impl AsFd) -> RawFd {
    descriptor.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn there_is_room_for_as_many_descriptors_as_were_reserved() {
        reserve_descriptors(1000).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(size.trim().parse::<u32>().unwrap() >= 1000, "{size}");
        assert_eq!(reserve_descriptors(u32::MAX as usize).unwrap_err().kind(), io::ErrorKind::Other);
    }

    #[test]
    fn a_descriptor_crosses_a_socket_pair() {
        let (ours, theirs) = socket_pair().unwrap();
        let (read, write) = pipe().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        let descriptors = [read.as_fd()];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&theirs, &[io::IoSlice::new(b"x")], &mut control, flags).unwrap();
        let received = receive_descriptor(ours.as_fd()).unwrap().unwrap();
        std::fs::File::from(write).write_all(b"hello").unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(received)).unwrap(), "hello");
        drop(theirs);
        assert!(receive_descriptor(ours.as_fd()).unwrap().is_none(), "an end without a descriptor is None");
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_not_adopted() {
        assert_eq!(adopt(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_reason_has_no_number() {
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOENT)), "No such file or directory");
        assert_eq!(reason(&io::Error::other("plain")), "plain");
    }

    #[test]
    fn forking_with_threads_is_refused() {
        // The test harness runs this in a second thread.
        assert_eq!(fork().unwrap_err().raw_os_error(), Some(libc::EDEADLK));
    }
}
