//! The connection to the kernel: the handshake, and the start of the threads that answer requests.
//!
//! fuser does the handshake and sends notifications; the requests themselves are read by the [`worker`](super::worker)s (see
//! [`wire`](super::wire) for why), as the [`crew`](super::crew) lets them.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;

use fuser::{Config, InitFlags, KernelConfig, Notifier, Request, Session, SessionACL};

use super::adapter::Adapter;
use super::boundary::Tallies;
use super::crew::{Crew, Post};
use super::follow::{Follower, LastCaller};
use super::passthrough::{self, Passthrough, Wish};
use super::rings::{Queue, Rings};
use super::worker::Worker;
use crate::errno::Errno;
use crate::sys::cpu::Processors;
use crate::sys::{self, process};

/// The most data that one request or reply carries, in bytes.
pub const MAX_DATA: u32 = 1 << 20;

/// How many requests the kernel may have waiting that no caller waits for: read-ahead, write-back.
const MAX_BACKGROUND: u16 = 64;

/// How many more threads may answer requests while slow ones keep the others.
const MOST_SPARES: usize = 32;

/// What is asked of the kernel beyond the defaults, where it can.
const WANTED: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_AUTO_INVAL_DATA)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_DONT_MASK)
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
    /// Whether requests are to come through rings (`io_uring`), where the kernel's owner allows it.
    pub rings: bool,
    /// Whether there are file handles, and the kernel may ask for what it has forgotten by its number.
    pub export: bool,
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
            rings: false,
            export: false,
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
    rings: Option<Rings>,
}

/// What fuser asks at the handshake. It never gets to see a request.
#[derive(Debug)]
struct Handshake {
    options: Options,
    /// Whether SETXATTR has the longer form.
    long_setxattr: Arc<AtomicBool>,
    /// Whether passthrough was granted.
    passthrough: Arc<AtomicBool>,
    /// Whether rings can be made; then, whether the kernel takes them.
    rings: Arc<AtomicBool>,
}

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = WANTED;
        wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, self.options.writeback);
        wanted.set(InitFlags::FUSE_POSIX_ACL, self.options.acl);
        wanted.set(InitFlags::FUSE_EXPORT_SUPPORT, self.options.export);
        wanted.set(InitFlags::FUSE_NO_EXPORT_SUPPORT, !self.options.export);
        if let Err(missing) = config.add_capabilities(wanted) {
            log::debug!("this kernel's FUSE lacks {missing:?}");
            config
                .add_capabilities(wanted.difference(missing))
                .map_err(|flags| io::Error::other(format!("flags {flags:?} were offered and then refused")))?;
        }
        if passthrough::ask(config, self.options.passthrough, self.options.writeback) {
            self.passthrough.store(true, Ordering::Relaxed);
        }
        if self.rings.load(Ordering::Relaxed) {
            let refused = config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_err();
            if refused {
                log::warn!("io_uring: this kernel's FUSE does not offer it (module parameter enable_uring)");
            }
            self.rings.store(!refused, Ordering::Relaxed);
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
        let rings = options.rings.then(Rings::new).transpose().unwrap_or_else(|errno| {
            log::warn!("io_uring: {errno}; requests are read as ever");
            None
        });
        let ringing = Arc::new(AtomicBool::new(rings.is_some()));
        let handshake = Handshake {
            options,
            long_setxattr: long_setxattr.clone(),
            passthrough: granted.clone(),
            rings: ringing.clone(),
        };
        let session = Session::from_fd(handshake, device, SessionACL::All, Config::default())?;
        let device = Arc::new(own);
        let passthrough = granted.load(Ordering::Relaxed).then(|| Passthrough::new(device.clone()));
        let adapter = adapter.with_long_setxattr(long_setxattr.load(Ordering::Relaxed)).with_passthrough(passthrough);
        let rings = rings.filter(|_| ringing.load(Ordering::Relaxed));
        Ok(Server { adapter: Arc::new(adapter), device, session, options, tallies: Tallies::default(), rings })
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
        // Without a choice of processors there is nothing to ride for. With rings, callers are met where they are.
        let rides = self.rings.is_none() && Follower::new().is_some();
        let (crew, last) = (&Crew::new(self.options.threads, rides), &LastCaller::default());
        let worker = |device| Worker::new(&self.adapter, crew, last, device, self.tallies.begin());
        let homes = homes(self.options.threads);
        std::thread::scope(|scope| {
            for n in 1..self.options.threads {
                let (worker, home) = (worker(self.queue()), homes.get(n).copied());
                start(scope, &format!("plyfs-{n}"), move || worker.serve(Post::Regular, home))?;
            }
            if crew.rides() {
                let worker = worker(self.queue());
                start(scope, "plyfs-rider", move || worker.ride())?;
            }
            let spares = Arc::new(());
            let relieve = move || {
                if Arc::strong_count(&spares) > MOST_SPARES {
                    return;
                }
                let (worker, mark) = (worker(self.queue()), spares.clone());
                let life = move || {
                    worker.serve(Post::Spare, None);
                    drop(mark);
                };
                let started = start(scope, "plyfs-spare", life);
                log::debug!("a spare thread, for all others are kept by what they do: {started:?}");
            };
            let look_out = move || crew.look_out(|| process::is_readable(&*self.device), relieve);
            start(scope, "plyfs-lookout", look_out)?;
            if let Some(rings) = &self.rings {
                self.start_rings(scope, rings, &worker)?;
            }
            worker(self.device.clone()).serve(Post::Regular, homes.first().copied());
            self.rings.iter().for_each(Rings::dismiss);
            self.adapter.overlay().release();
            Ok(())
        })
    }

    /// Starts the threads that get their requests through rings.
    fn start_rings<'scope, 'a: 'scope>(
        &'a self,
        scope: &'scope Scope<'scope, '_>,
        rings: &'a Rings,
        worker: &(impl Fn(Arc<OwnedFd>) -> Worker<'a> + Copy + Send + 'scope),
    ) -> io::Result<()> {
        let worker = *worker;
        let begin = move |queue: Arc<Queue>| {
            let worker = worker(self.device.clone());
            start(scope, "plyfs-ring", move || rings.serve(&queue, &worker))
        };
        for queue in rings.posts() {
            begin(queue)?;
        }
        let others = worker(self.device.clone());
        start(scope, "plyfs-ring", move || rings.serve_others(&others))?;
        let relieve = move |queue| {
            let started = begin(queue);
            log::debug!("one more thread for a queue whose others are kept by what they do: {started:?}");
        };
        start(scope, "plyfs-ringer", move || rings.look_out(relieve))
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

/// A processor for each of so many threads, if there are as many.
fn homes(threads: usize) -> Vec<usize> {
    let numbers: Vec<usize> = Processors::allowed().map(|allowed| allowed.numbers().collect()).unwrap_or_default();
    if numbers.len() == threads { numbers } else { Vec::new() }
}

/// Starts a thread of this name.
fn start<'scope>(scope: &'scope Scope<'scope, '_>, name: &str, life: impl FnOnce() + Send + 'scope) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, life).map(|_| ())
}
