//! Passthrough: the kernel reads and writes the real file of an open file itself, and no data comes by here.
//!
//! Owns: which nodes are open, and which of the two ways their data goes. Answers to the kernel's `fs/fuse/iomode.c` and
//! `fs/fuse/backing.c`, whose rules are these: all opens of a node that live at one time go the same way, through the
//! kernel's cache and READ and WRITE, or past it to one and the same backing file. Which way is decided by the first and
//! holds until the last is closed.
//!
//! A file goes past us if no copy-up can put another in its place while it is open: one in the upper, one that is opened
//! for writing (it is copied up then, as the kernel's overlay does it), and every one in a union without an upper. A lower
//! file that is opened for reading goes through us, and so does who opens it for writing meanwhile: a reader sees what
//! is written, as in the kernel's overlay, where a backing file would go on showing the lower layer.
//!
//! Must never: hold the lock while a system call is made.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{InitFlags, KernelConfig};
use parking_lot::Mutex;

use super::adapter::{Adapter, Answer, Buffers, caller, privileges};
use super::wire::{Header, Reader, Writer};
use crate::errno::{Errno, Result};
use crate::overlay::{Access, Entry, Lasting, NodeId, Overlay, SetAttr};
use crate::sys::{self, SetTime, process};

const KEEP_CACHE: u32 = 1 << 1;
const PASSTHROUGH: u32 = 1 << 7;
const OPEN_KILL_SUIDGID: u32 = 1;

/// What is asked for at the handshake. Whoever hears of opens can cut files then.
const WANTED: InitFlags = InitFlags::FUSE_PASSTHROUGH.union(InitFlags::FUSE_ATOMIC_O_TRUNC);

/// The layers lie on file systems that are not stacked on others, so that the union counts as one level: an overlay of the
/// kernel's can still have it as a layer.
const STACK_DEPTH: u32 = 1;

/// Whether the kernel is to read and write real files itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Where it can; as `Off` where it cannot.
    On,
    /// No.
    Off,
    /// No, as measured: opens that cost a message make warm reading of small files four times slower, and `O_APPEND` could
    /// not be taken from an open descriptor. README.md has the figures.
    #[default]
    Auto,
}

/// Asks for passthrough at the handshake, if it is wished for; says whether the connection has it. Silent where it cannot
/// be had: it is a matter of speed only.
pub(super) fn ask(config: &mut KernelConfig, wish: Wish, writeback: bool) -> bool {
    if wish != Wish::On {
        return false;
    }
    // The kernel has no use for it together with gathered writes.
    let missing = if writeback {
        "the kernel gathers writes"
    } else if !process::has_sys_admin() || !process::is_in_first_user_namespace() {
        "it takes CAP_SYS_ADMIN in the first user namespace"
    } else if config.add_capabilities(WANTED).is_err() || config.set_max_stack_depth(STACK_DEPTH).is_err() {
        "this kernel does not know it"
    } else {
        return true;
    };
    log::debug!("no passthrough: {missing}");
    false
}

/// What an open is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub flags: u32,
    /// The backing file's number, 0 for none.
    pub backing: u32,
}

impl Opened {
    const CACHED: Opened = Opened { flags: KEEP_CACHE, backing: 0 };
}

/// How the data of an open node goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Through us.
    Messages,
    /// Past us, to the backing file of this number.
    Direct(u32),
}

/// The opens of a node that the kernel has not yet released.
#[derive(Debug)]
struct Opens {
    way: Way,
    all: u64,
    writers: u64,
}

/// Every node that is open, on a connection that has been granted passthrough.
#[derive(Debug)]
pub(super) struct Passthrough {
    device: Arc<OwnedFd>,
    /// A leaf of the lock order.
    opens: Mutex<HashMap<NodeId, Opens>>,
    /// Whether any data went past the kernel's cache so far: what that holds of a file in the upper may be of the past.
    ever: AtomicBool,
}

impl Passthrough {
    pub fn new(device: Arc<OwnedFd>) -> Passthrough {
        Passthrough { device, opens: Mutex::default(), ever: AtomicBool::new(false) }
    }

    /// A file is opened.
    ///
    /// # Errors
    /// Those of a copy-up.
    pub fn open(&self, overlay: &Overlay, id: NodeId, access: Access) -> Result<Opened> {
        let known = self.opens.lock().get_mut(&id).map(|opens| opens.join(access));
        let opened = match known {
            Some(opened) => opened,
            None => self.open_first(overlay, id, access)?,
        };
        if opened.backing != 0 && access != Access::Read {
            overlay.begin_direct_writes(id, access);
        }
        Ok(opened)
    }

    fn open_first(&self, overlay: &Overlay, id: NodeId, access: Access) -> Result<Opened> {
        let file = overlay.file_to_pass(id, access)?;
        let way = file.as_ref().map_or(Way::Messages, |file| self.direct(id, file.as_fd()));
        let (opened, decided) = {
            let mut opens = self.opens.lock();
            // Nobody had it open a moment ago. If somebody has by now, that one has decided.
            let opens = opens.entry(id).or_insert(Opens { way, all: 0, writers: 0 });
            (opens.join(access), opens.way)
        };
        if decided != way {
            self.close(way);
        }
        // Before it came to this way, what the kernel has in its cache may have been written past it.
        let stale = opened.backing == 0 && file.is_some() && self.ever.load(Ordering::Relaxed);
        Ok(if stale { Opened { flags: 0, ..opened } } else { opened })
    }

    /// A file is closed for good.
    pub fn release(&self, overlay: &Overlay, id: NodeId, access: Access) {
        let (way, wrote) = {
            let mut all = self.opens.lock();
            let Slot::Occupied(mut slot) = all.entry(id) else { return };
            let opens = slot.get_mut();
            opens.all = opens.all.saturating_sub(1);
            opens.writers = opens.writers.saturating_sub(u64::from(access != Access::Read));
            let wrote = access != Access::Read && opens.writers == 0 && opens.way != Way::Messages;
            (if opens.all == 0 { slot.remove().way } else { Way::Messages }, wrote)
        };
        if wrote {
            overlay.end_direct_writes(id);
        }
        self.close(way);
    }

    /// Makes a file a backing file, if the kernel takes it as one.
    fn direct(&self, id: NodeId, file: BorrowedFd<'_>) -> Way {
        match sys::open_backing(self.device.as_fd(), file) {
            Ok(backing) => {
                self.ever.store(true, Ordering::Relaxed);
                Way::Direct(backing)
            }
            // Its file system may be stacked too high already.
            Err(errno) => {
                log::debug!("node {id} is not passed through: {errno}");
                Way::Messages
            }
        }
    }

    fn close(&self, way: Way) {
        if let Way::Direct(backing) = way
            && let Err(errno) = sys::close_backing(self.device.as_fd(), backing)
        {
            log::debug!("backing file {backing} cannot be closed: {errno}");
        }
    }
}

impl Opens {
    /// One more.
    fn join(&mut self, access: Access) -> Opened {
        self.all += 1;
        self.writers += u64::from(access != Access::Read);
        match self.way {
            Way::Messages => Opened::CACHED,
            Way::Direct(backing) => Opened { flags: PASSTHROUGH, backing },
        }
    }
}

/// The messages that are about opening.
impl Adapter {
    /// OPEN. Without passthrough it is answered once, and the kernel never asks again.
    pub(super) fn open(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let Some(files) = &self.passthrough else { return Err(Errno::ENOSYS) };
        let (flags, more) = (body.u32()?, body.u32()?);
        if flags.cast_signed() & libc::O_TRUNC != 0 {
            // Here and not with a SETATTR to follow, so that nothing is copied up only to be cut off.
            let set = SetAttr {
                mode: None,
                uid: None,
                gid: None,
                size: Some(0),
                atime: SetTime::Omit,
                mtime: SetTime::Omit,
                privileges: privileges(header, more & OPEN_KILL_SUIDGID != 0),
                from_cache: false,
            };
            self.overlay.setattr(&caller(header, 0), header.node, &set)?;
        }
        let opened = files.open(&self.overlay, header.node, access(flags))?;
        buffers.out.put_open(opened.flags, opened.backing);
        Ok(Answer::Out)
    }

    /// CREATE, as OPEN.
    pub(super) fn create(&self, header: &Header, body: &mut Reader<'_>, buffers: &mut Buffers) -> Result<Answer> {
        if self.passthrough.is_none() {
            return Err(Errno::ENOSYS);
        }
        let (flags, mode, umask, _more) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let mode = libc::S_IFREG | (mode & 0o7777);
        let entry = match self.overlay.mknod(&caller(header, umask), header.node, body.name()?, mode, 0) {
            // Somebody else was quicker, and this caller may have no right to what is there now: the kernel looks again.
            Err(Errno::EEXIST) if flags.cast_signed() & libc::O_EXCL == 0 => return Err(Errno::ESTALE),
            made => made?,
        };
        self.entry_open(entry, flags, buffers)
    }

    /// A new file, open.
    pub(super) fn entry_open(&self, mut entry: Entry, flags: u32, buffers: &mut Buffers) -> Result<Answer> {
        let opened = match &self.passthrough {
            Some(files) => {
                files.open(&self.overlay, entry.id, access(flags)).inspect_err(|_| self.overlay.forget(entry.id, 1))?
            }
            None => Opened::CACHED,
        };
        if opened.backing != 0 && access(flags) == Access::Both {
            entry.lasting = Lasting::NameOnly;
        }
        let answer = self.entry(&entry, buffers);
        buffers.out.put_open(opened.flags, opened.backing);
        Ok(answer)
    }

    /// RELEASE, which comes only for what was opened by a message.
    pub(super) fn release(&self, header: &Header, body: &mut Reader<'_>) -> Result<Answer> {
        let (_handle, flags) = (body.u64()?, body.u32()?);
        if let Some(files) = &self.passthrough {
            files.release(&self.overlay, header.node, access(flags));
        }
        Ok(Answer::Out)
    }
}

fn access(flags: u32) -> Access {
    match flags.cast_signed() & libc::O_ACCMODE {
        libc::O_RDONLY => Access::Read,
        libc::O_WRONLY => Access::Write,
        _ => Access::Both,
    }
}
