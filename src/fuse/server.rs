//! The connection to the kernel: the handshake, and the threads that bring requests to the adapter and replies back.
//!
//! fuser does the handshake and sends notifications; the requests themselves are read here (see [`wire`](super::wire) for
//! why). A request that panics is answered with `EIO` and logged; the thread goes on.

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Config, InitFlags, KernelConfig, Notifier, Request, Session, SessionACL};

use super::adapter::{Adapter, Answer, Buffers};
use super::boundary::{Tallies, Tally};
use super::follow::Follower;
use super::passthrough::{self, Passthrough, Wish};
use super::wire::{Reader, Writer, operation};
use crate::errno::{Errno, Result};
use crate::sys;

/// The most data that one request or reply carries, in bytes.
pub const MAX_DATA: u32 = 1 << 20;

/// How many requests the kernel may have waiting that no caller waits for: read-ahead, write-back.
const MAX_BACKGROUND: u16 = 64;

/// What is asked of the kernel beyond the defaults, where it can.
const WANTED: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_SETXATTR_EXT);

/// What the connection is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many threads answer requests; at least one.
    pub threads: usize,
    /// Whether each thread has its own queue of the connection.
    pub own_queues: bool,
    /// Whether the kernel gathers writes before it sends them.
    pub writeback: bool,
    /// Whether POSIX ACLs are honoured.
    pub acl: bool,
    /// The largest write, in bytes; at most [`MAX_DATA`].
    pub max_write: u32,
    /// Whether the kernel is to read and write real files itself.
    pub passthrough: Wish,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            threads: 4,
            own_queues: true,
            writeback: false,
            acl: true,
            max_write: MAX_DATA,
            passthrough: Wish::Auto,
        }
    }
}

/// A mounted union, ready to serve.
#[derive(Debug)]
pub struct Server {
    adapter: Arc<Adapter>,
    device: Arc<OwnedFd>,
    session: Session<Handshake>,
    options: Options,
    tallies: Tallies,
}

/// What fuser asks at the handshake. It never gets to see a request.
#[derive(Debug)]
struct Handshake {
    options: Options,
    /// Whether SETXATTR has the longer form.
    long_setxattr: Arc<AtomicBool>,
    /// Whether passthrough was granted.
    passthrough: Arc<AtomicBool>,
}

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = WANTED;
        wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, self.options.writeback);
        wanted.set(InitFlags::FUSE_POSIX_ACL, self.options.acl);
        if let Err(missing) = config.add_capabilities(wanted) {
            log::debug!("this kernel's FUSE lacks {missing:?}");
            config
                .add_capabilities(wanted.difference(missing))
                .map_err(|flags| io::Error::other(format!("flags {flags:?} were offered and then refused")))?;
        }
        if passthrough::ask(config, self.options.passthrough, self.options.writeback) {
            self.passthrough.store(true, Ordering::Relaxed);
        }
        self.long_setxattr.store(config.capabilities().contains(InitFlags::FUSE_SETXATTR_EXT), Ordering::Relaxed);
        let settled = (config.set_max_write(self.options.max_write), config.set_max_background(MAX_BACKGROUND));
        log::debug!("handshake: {settled:?}");
        Ok(())
    }
}

impl Server {
    /// Answers the kernel's first message. The mount works from then on, as soon as [`Server::run`] is called.
    ///
    /// # Errors
    /// When the device is no FUSE connection or the kernel's protocol is too old.
    pub fn new(adapter: Adapter, device: OwnedFd, options: Options) -> io::Result<Server> {
        let own = device.try_clone()?;
        // The kernel enforces who may use the mount (`allow_other`).
        let long_setxattr = Arc::new(AtomicBool::new(false));
        let granted = Arc::new(AtomicBool::new(false));
        let handshake = Handshake { options, long_setxattr: long_setxattr.clone(), passthrough: granted.clone() };
        let session = Session::from_fd(handshake, device, SessionACL::All, Config::default())?;
        let device = Arc::new(own);
        let passthrough = granted.load(Ordering::Relaxed).then(|| Passthrough::new(device.clone()));
        let adapter = adapter.with_long_setxattr(long_setxattr.load(Ordering::Relaxed)).with_passthrough(passthrough);
        Ok(Server { adapter: Arc::new(adapter), device, session, options, tallies: Tallies::default() })
    }

    /// With this the kernel is told of changes that it does not know of.
    #[must_use]
    pub fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// What the server has done and what it holds, in a line, whenever it is asked.
    pub fn reporter(&self) -> impl Fn() -> String + Send + use<> {
        let (tallies, adapter) = (self.tallies.clone(), self.adapter.clone());
        move || tallies.report(&adapter)
    }

    /// Answers requests until the file system is unmounted.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn run(&self) -> io::Result<()> {
        std::thread::scope(|scope| {
            for n in 1..self.options.threads {
                let worker = Worker::new(self, self.queue());
                std::thread::Builder::new().name(format!("plyfs-{n}")).spawn_scoped(scope, move || worker.serve())?;
            }
            Worker::new(self, self.device.clone()).serve();
            self.adapter.overlay().release();
            Ok(())
        })
    }

    /// A queue of its own for a thread, or the common one where the kernel refuses.
    fn queue(&self) -> Arc<OwnedFd> {
        if !self.options.own_queues {
            return self.device.clone();
        }
        let own = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(Errno::from).and_then(|new| {
            sys::clone_fuse_device(new.as_fd(), self.device.as_fd())?;
            Ok(new)
        });
        match own {
            Ok(own) => Arc::new(own.into()),
            Err(errno) => {
                log::debug!("one queue for all threads: {errno}");
                self.device.clone()
            }
        }
    }
}

/// One thread's part: a request, its answer, the next.
struct Worker<'a> {
    adapter: &'a Adapter,
    device: Arc<OwnedFd>,
    tally: Arc<Tally>,
}

impl<'a> Worker<'a> {
    fn new(server: &'a Server, device: Arc<OwnedFd>) -> Worker<'a> {
        Worker { adapter: &server.adapter, device, tally: server.tallies.begin() }
    }

    fn serve(&self) {
        let mut request = vec![0u8; MAX_DATA as usize + 4096];
        let mut buffers = Buffers::default();
        let mut follower = Follower::new();
        loop {
            match rustix::io::read(&*self.device, &mut request[..]) {
                Ok(length) => self.handle(request.get(..length).unwrap_or_default(), &mut buffers, follower.as_mut()),
                // The request was taken back, or a signal came.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                // Unmounted.
                Err(rustix::io::Errno::NODEV) => return,
                Err(errno) => {
                    log::error!("requests cannot be read: {errno}");
                    return;
                }
            }
        }
    }

    fn handle(&self, message: &[u8], buffers: &mut Buffers, follower: Option<&mut Follower>) {
        let mut reader = Reader(message);
        let Ok(header) = reader.header() else {
            log::error!("a message of {} bytes is no request", message.len());
            return;
        };
        if let Some(follower) = follower {
            follower.note(&header, reader.0);
        }
        let started = log::log_enabled!(log::Level::Debug).then(std::time::Instant::now);
        let answer = self.tally.answer(self.adapter, &header, reader.0, buffers);
        if let Some(started) = started {
            let (name, cost) = (operation(header.opcode), started.elapsed());
            log::debug!("{name} node {} uid {} pid {}: {answer:?} in {cost:?}", header.node, header.uid, header.pid);
        }
        let sent = match answer {
            Ok(Answer::None) => Ok(()),
            Ok(Answer::Out) => reply(self.device.as_fd(), header.unique, 0, &buffers.out),
            Ok(Answer::Data(length)) => {
                reply(self.device.as_fd(), header.unique, 0, buffers.data.get(..length).unwrap_or_default())
            }
            Err(errno) => reply(self.device.as_fd(), header.unique, -errno.raw(), &[]),
        };
        if let Err(errno) = sent {
            // ENOENT: nobody waits for the reply any more. What it would have told the kernel, the kernel does not know.
            log::debug!("the reply to {} did not arrive: {errno}", operation(header.opcode));
            for node in buffers.entered.drain(..) {
                self.adapter.overlay().forget(node, 1);
            }
        }
    }
}

/// Sends a reply in one write, as the protocol wants it.
fn reply(device: BorrowedFd<'_>, unique: u64, error: i32, payload: &[u8]) -> Result<()> {
    let mut header = Vec::with_capacity(16);
    header.put_u32(u32::try_from(16 + payload.len()).map_err(|_| Errno::EIO)?);
    header.put_u32(error.cast_unsigned());
    header.put_u64(unique);
    let parts = [IoSlice::new(&header), IoSlice::new(payload)];
    let parts = if payload.is_empty() { parts.get(..1).unwrap_or_default() } else { &parts };
    rustix::io::retry_on_intr(|| rustix::io::writev(device, parts))?;
    Ok(())
}
