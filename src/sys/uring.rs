//! FUSE over `io_uring(7)`: requests come through shared memory, and one system call sends a reply and waits for what is next.
//!
//! A [`Ring`] belongs to one thread. It has *places*, each of which holds one request at a time and is bound to one of the
//! connection's *queues*. There is a queue for each processor that the machine may have, and a request goes to that of the
//! processor on which its caller runs. As soon as every queue has a place the kernel sends all requests this way, but those
//! that need no answer.
//!
//! Layouts: `fuse_uring_req_header` and `fuse_uring_cmd_req` of `linux/fuse.h` (Linux 6.14), `io_uring_setup(2)`,
//! `io_uring_enter(2)`.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringFeatureFlags, IoringOp, IoringSetupFlags,
    io_cqring_offsets, io_sqring_offsets, io_uring_cqe, io_uring_enter, io_uring_params, io_uring_setup, io_uring_sqe,
    iovec,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::errno::{Errno, Result};

/// What is asked of the connection: to offer a place, or to take a reply from one and give it the next request.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// A submission with room for a command behind it (`IORING_SETUP_SQE128`), and where in it the command begins.
const SUBMISSION: usize = 128;
const COMMAND: usize = 48;

/// A place's memory: the header of the request or reply, what its operation has of fixed size, the sizes of both, the two
/// vectors that say where all this is; and from the second page on what is of varying size.
const OPERATION: usize = 128;
const OPERATION_SIZE: usize = 128;
const SIZES: usize = 256;
const SIZES_UNIQUE: usize = SIZES + 8;
const SIZES_PAYLOAD: usize = SIZES + 16;
const HEADERS: usize = SIZES + 32;
const VECTORS: usize = 512;
const PAYLOAD: usize = 4096;

/// The header of a request, and of a reply.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// Memory of this process, or shared with the kernel.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    length: usize,
}

impl Memory {
    fn new(length: usize) -> Result<Memory> {
        // SAFETY: new memory, wherever there is some.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
        Ok(Memory { start: NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?, length })
    }

    fn shared(ring: &OwnedFd, length: usize, offset: u64) -> Result<Memory> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: new memory, wherever there is some.
        let start = unsafe { mmap(ptr::null_mut(), length, access, flags, ring, offset)? };
        Ok(Memory { start: NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?, length })
    }

    /// Where so many bytes from an offset on are.
    fn at<T>(&self, offset: usize) -> Result<*mut T> {
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.length);
        // SAFETY: within the mapping, as was just seen.
        if fits { Ok(unsafe { self.start.as_ptr().add(offset) }.cast()) } else { Err(Errno::EINVAL) }
    }

    /// A number that the kernel reads or writes, too.
    fn number(&self, offset: u32) -> Result<&AtomicU32> {
        // SAFETY: within the mapping; the kernel aligns its numbers, and both sides use them as atomic ones.
        Ok(unsafe { AtomicU32::from_ptr(self.at::<u32>(offset as usize)?) })
    }

    /// All of it.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this long, initialised (with zeroes) and nobody else's. For a place's memory: the kernel
        // writes to it only while the place is offered, and only from within this thread's system calls.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing of it is borrowed any more.
        if let Err(errno) = unsafe { munmap(self.start.as_ptr().cast(), self.length) } {
            log::error!("memory of a ring is kept: {errno}");
        }
    }
}

/// Holds one request at a time, and then its reply.
#[derive(Debug)]
struct Place {
    memory: Memory,
    queue: u16,
}

/// One thread's way to the kernel. Must stay on the thread that made it.
#[derive(Debug)]
pub struct Ring {
    // Closed before the memory goes.
    ring: OwnedFd,
    numbers: Memory,
    submissions: Memory,
    submitting: io_sqring_offsets,
    completing: io_cqring_offsets,
    places: Vec<Place>,
    device: Option<Arc<OwnedFd>>,
    unsubmitted: u32,
}

impl Ring {
    /// A ring with a place for each of these queues, for requests and replies of at most so many bytes beside their headers.
    ///
    /// # Errors
    /// `EPERM` or `ENOSYS` where `io_uring` is switched off, `EINVAL` where it is too old (before Linux 6.1), `ENOMEM`.
    pub fn new(queues: &[u16], most: usize) -> Result<Ring> {
        Ring::with(IoringSetupFlags::SINGLE_ISSUER | IoringSetupFlags::DEFER_TASKRUN, queues, most)
    }

    fn with(flags: IoringSetupFlags, queues: &[u16], most: usize) -> Result<Ring> {
        let flags = flags | IoringSetupFlags::SQE128;
        let mut params = io_uring_params::default();
        params.flags = flags;
        let count = u32::try_from(queues.len()).map_err(|_| Errno::EINVAL)?.next_power_of_two();
        // SAFETY: no queue of workers is shared.
        let ring = unsafe { io_uring_setup(count, &mut params)? };
        if !params.features.contains(IoringFeatureFlags::SINGLE_MMAP) {
            return Err(Errno::ENOSYS);
        }
        let (submitting, completing) = (params.sq_off, params.cq_off);
        let end = |offset: u32, count: u32, size: usize| offset as usize + count as usize * size;
        let length = end(submitting.array, params.sq_entries, size_of::<u32>()).max(end(
            completing.cqes,
            params.cq_entries,
            size_of::<io_uring_cqe>(),
        ));
        let numbers = Memory::shared(&ring, length, IORING_OFF_SQ_RING)?;
        let submissions = Memory::shared(&ring, params.sq_entries as usize * SUBMISSION, IORING_OFF_SQES)?;
        let place = |queue: &u16| Ok(Place { memory: Memory::new(PAYLOAD + most)?, queue: *queue });
        let places = queues.iter().map(place).collect::<Result<Vec<Place>>>()?;
        Ok(Ring { ring, numbers, submissions, submitting, completing, places, device: None, unsubmitted: 0 })
    }

    /// Whether the kernel may be entered with it, too: a filter of system calls may know one of the calls and not the other.
    ///
    /// # Errors
    /// `EPERM` or `ENOSYS` where it may not.
    pub fn can_be_entered(&mut self) -> Result<()> {
        self.enter(0)
    }

    /// Offers all places to a connection (a descriptor of `/dev/fuse`).
    ///
    /// # Errors
    /// Of `io_uring_enter(2)`. What the connection itself has against it, [`Ring::wait`] tells.
    pub fn register(&mut self, device: Arc<OwnedFd>) -> Result<()> {
        self.device = Some(device);
        for index in 0..self.places.len() {
            let place = self.places.get_mut(index).ok_or(Errno::EINVAL)?;
            let start = place.memory.start.as_ptr();
            let payload = place.memory.length - PAYLOAD;
            let parts = [
                iovec { iov_base: start.cast(), iov_len: HEADERS },
                // SAFETY: within the memory.
                iovec { iov_base: unsafe { start.add(PAYLOAD) }.cast(), iov_len: payload },
            ];
            let vectors = place.memory.at::<[iovec; 2]>(VECTORS)?;
            // SAFETY: there is room, and it is aligned.
            unsafe { vectors.write(parts) };
            let queue = place.queue;
            self.submit(REGISTER, index, queue, 0, Some(vectors))?;
        }
        self.enter(0)
    }

    /// Sends what is to be sent and waits for a request. Tells in which place it is.
    ///
    /// # Errors
    /// `ENOTCONN`, `ECONNABORTED` or `ECANCELED` when the connection is gone; `EINVAL`, `EOPNOTSUPP` or `ENOMEM` when a place
    /// was refused: the kernel then goes on with reading and writing.
    pub fn wait(&mut self) -> Result<usize> {
        loop {
            if let Some((place, result)) = self.completed()? {
                return if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(place) };
            }
            self.enter(1)?;
        }
    }

    /// The request in a place, as one message.
    ///
    /// # Errors
    /// `EIO` when it is none.
    pub fn message(&mut self, place: usize) -> Result<&[u8]> {
        let memory = self.places.get_mut(place).ok_or(Errno::EIO)?.memory.bytes();
        let length = u32_at(memory, 0)? as usize;
        let payload = u32_at(memory, SIZES_PAYLOAD)? as usize;
        let operation =
            length.checked_sub(IN_HEADER + payload).filter(|size| *size <= OPERATION_SIZE).ok_or(Errno::EIO)?;
        // All of it in a row: the header and what is of fixed size are moved up to what is not.
        let begin = PAYLOAD - operation - IN_HEADER;
        memory.copy_within(OPERATION..OPERATION + operation, PAYLOAD - operation);
        memory.copy_within(..IN_HEADER, begin);
        memory.get(begin..PAYLOAD + payload).ok_or(Errno::EIO)
    }

    /// Puts a reply into a place; [`Ring::wait`] sends it.
    ///
    /// # Errors
    /// `EINVAL` when there is no such place.
    pub fn reply(&mut self, place: usize, unique: u64, error: i32, payload: &[u8]) -> Result<()> {
        let Place { memory, queue } = self.places.get_mut(place).ok_or(Errno::EINVAL)?;
        let (queue, memory) = (*queue, memory.bytes());
        let room = memory.get_mut(PAYLOAD..PAYLOAD + payload.len());
        let (error, size) = match room {
            Some(room) => {
                room.copy_from_slice(payload);
                (error, payload.len())
            }
            None => (-libc::EIO, 0),
        };
        let length = u32::try_from(OUT_HEADER + size).map_err(|_| Errno::EINVAL)?;
        put(memory, 0, &length.to_ne_bytes())?;
        put(memory, 4, &error.to_ne_bytes())?;
        put(memory, 8, &unique.to_ne_bytes())?;
        put(memory, SIZES, &0u64.to_ne_bytes())?;
        put(memory, SIZES_UNIQUE, &unique.to_ne_bytes())?;
        put(memory, SIZES_PAYLOAD, &u32::try_from(size).map_err(|_| Errno::EINVAL)?.to_ne_bytes())?;
        self.submit(COMMIT_AND_FETCH, place, queue, unique, None)
    }

    /// Puts a command into the ring, to be sent when the kernel is entered next.
    fn submit(
        &mut self,
        operation: u32,
        place: usize,
        queue: u16,
        unique: u64,
        vectors: Option<*mut [iovec; 2]>,
    ) -> Result<()> {
        let tail = self.numbers.number(self.submitting.tail)?;
        let mask = self.numbers.number(self.submitting.ring_mask)?.load(Ordering::Relaxed);
        let next = tail.load(Ordering::Relaxed);
        let slot = next & mask;
        let fd = self.device.as_ref().ok_or(Errno::EBADF)?.as_raw_fd();
        let mut submission = io_uring_sqe { opcode: IoringOp::UringCmd, fd, ..io_uring_sqe::default() };
        submission.off_or_addr2.cmd_op.cmd_op = operation;
        submission.user_data.u64_ = place as u64;
        if let Some(vectors) = vectors {
            submission.addr_or_splice_off_in.addr = vectors.cast::<libc::c_void>().into();
            submission.len.len = 2;
        }
        let mut command = [0; SUBMISSION - COMMAND];
        put(&mut command, 8, &unique.to_ne_bytes())?;
        put(&mut command, 16, &queue.to_ne_bytes())?;
        let offset = slot as usize * SUBMISSION;
        // SAFETY: within the mapping, aligned; the kernel reads it only when it is entered.
        unsafe {
            self.submissions.at::<io_uring_sqe>(offset)?.write(submission);
            self.submissions.at::<[u8; SUBMISSION - COMMAND]>(offset + COMMAND)?.write(command);
            self.numbers.at::<u32>(self.submitting.array as usize + slot as usize * size_of::<u32>())?.write(slot);
        }
        tail.store(next.wrapping_add(1), Ordering::Release);
        self.unsubmitted += 1;
        Ok(())
    }

    /// One system call: sends what was submitted, and waits for so many completions.
    fn enter(&mut self, completions: u32) -> Result<()> {
        // SAFETY: all that was submitted points into memory that lives as long as the ring.
        match unsafe { io_uring_enter(&self.ring, self.unsubmitted, completions, IoringEnterFlags::GETEVENTS) } {
            Ok(taken) => {
                self.unsubmitted = self.unsubmitted.saturating_sub(taken);
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What the kernel has completed: in which place, and how it went.
    fn completed(&mut self) -> Result<Option<(usize, i32)>> {
        let head = self.numbers.number(self.completing.head)?;
        let tail = self.numbers.number(self.completing.tail)?.load(Ordering::Acquire);
        let mask = self.numbers.number(self.completing.ring_mask)?.load(Ordering::Relaxed);
        let next = head.load(Ordering::Relaxed);
        if next == tail {
            return Ok(None);
        }
        let offset = self.completing.cqes as usize + (next & mask) as usize * size_of::<io_uring_cqe>();
        // SAFETY: within the mapping, aligned, and written before the tail was.
        let (place, result) = unsafe {
            let completion = self.numbers.at::<io_uring_cqe>(offset)?;
            ((*completion).user_data.u64_, (*completion).res)
        };
        head.store(next.wrapping_add(1), Ordering::Release);
        Ok(Some((usize::try_from(place).map_err(|_| Errno::EIO)?, result)))
    }
}

/// What is left where a connection waits for a ring and none can be made: a place that it refuses. It then goes on with
/// reading and writing.
#[derive(Debug)]
pub struct Refusal(Ring);

// SAFETY: what it points to is its own memory, and the ring is not bound to the thread that made it.
unsafe impl Send for Refusal {}

impl Refusal {
    /// A ring of which all threads may be the one, with a place in a queue that no machine has.
    ///
    /// # Errors
    /// Those of [`Ring::new`].
    pub fn new() -> Result<Refusal> {
        Ring::with(IoringSetupFlags::empty(), &[u16::MAX], 0).map(Refusal)
    }

    /// Has a connection refuse the place.
    ///
    /// # Errors
    /// Where that does not come about.
    pub fn provoke(&mut self, device: Arc<OwnedFd>) -> Result<()> {
        self.0.register(device)?;
        match self.0.wait() {
            Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno),
            Ok(_) => Err(Errno::EIO),
        }
    }
}

fn u32_at(memory: &[u8], offset: usize) -> Result<u32> {
    let bytes = memory.get(offset..).and_then(|rest| rest.first_chunk()).ok_or(Errno::EIO)?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn put(memory: &mut [u8], offset: usize, bytes: &[u8]) -> Result<()> {
    memory.get_mut(offset..offset + bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
    Ok(())
}

/// How many queues a connection has: one for each processor that the machine may have, now or later.
///
/// # Errors
/// `ENOENT` where `/sys` is not to be seen, `EINVAL` when it says something else.
pub fn queues() -> Result<u16> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible.trim().rsplit(['-', ',']).next().unwrap_or_default();
    last.parse::<u16>().ok().and_then(|last| last.checked_add(1)).ok_or(Errno::EINVAL)
}
