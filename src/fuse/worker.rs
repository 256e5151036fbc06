//! A thread that brings requests to the adapter and replies back.
//!
//! A request that panics is answered with `EIO` and logged; the thread goes on.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use smallvec::SmallVec;

use super::adapter::{Adapter, Answer, Buffers, Channel};
use super::boundary::Tally;
use super::crew::{Crew, Desk, Fit, Handed, Post, Read};
use super::follow::{Company, Follower, LastCaller};
use super::rings::Queue;
use super::server::MAX_DATA;
use super::vigil::Vigil;
use super::wire::{HEADER, Header, REQUEST_HEADER, Reader, Writer, notify, opcode, operation};
use crate::errno::{Errno, Result};
use crate::sys::uring::Ring;
use crate::sys::{self, process};

/// How much data, in bytes, makes a copy-up one that takes long.
const LONG_COPY: u64 = 1 << 20;

/// One thread's part: a request, its answer, the next.
pub(super) struct Worker<'a> {
    adapter: &'a Adapter,
    crew: &'a Crew,
    last: &'a LastCaller,
    device: Arc<OwnedFd>,
    tally: Arc<Tally>,
}

/// A request as it was read.
struct Message<'a> {
    header: Header,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(whole: &'a [u8]) -> Option<Message<'a>> {
        let mut reader = Reader(whole);
        match reader.header() {
            Ok(header) => Some(Message { header, body: reader.0 }),
            Err(_) => {
                log::error!("a message of {} bytes is no request", whole.len());
                None
            }
        }
    }
}

/// Room for the largest request. Pages of it that no request has filled cost nothing.
fn space() -> Vec<u8> {
    vec![0; MAX_DATA as usize + 4096]
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        adapter: &'a Adapter,
        crew: &'a Crew,
        last: &'a LastCaller,
        device: Arc<OwnedFd>,
        tally: Arc<Tally>,
    ) -> Worker<'a> {
        Worker { adapter, crew, last, device, tally }
    }

    /// The life of a regular thread, with a processor to be on while there are several callers.
    pub(super) fn serve(&self, post: Post, home: Option<usize>) {
        let follower = Follower::new().map(|follower| follower.at_home(home));
        self.crew.serve(post, &mut Seat::new(self, follower).with_vigils());
    }

    /// The life of the thread that stays with one caller.
    pub(super) fn ride(&self) {
        let Some(follower) = Follower::new() else { return };
        if let Err(errno) = sys::cpu::give_way() {
            log::debug!("nobody rides: {errno}");
            return;
        }
        self.crew.serve_one(&mut Seat::new(self, Some(follower)));
    }

    /// Whether a request copies so much that it is not to be done where others have precedence.
    fn takes_long(&self, header: &Header) -> bool {
        match header.opcode {
            opcode::WRITE | opcode::SETATTR | opcode::SETXATTR | opcode::REMOVEXATTR | opcode::FALLOCATE => {
                self.adapter.overlay().bytes_to_copy(header.node) >= LONG_COPY
            }
            opcode::COPY_FILE_RANGE => true,
            _ => false,
        }
    }

    /// Answers a request through the queue that it was read from. Says whether that was a large piece of data.
    fn answer(&self, device: &OwnedFd, message: &Message<'_>, buffers: &mut Buffers) -> bool {
        let answer = self.make(message, buffers);
        let sent = match (answer, reply_of(answer, buffers)) {
            (Ok(Answer::Piped(length)), _) => send(device.as_fd(), &mut buffers.channel, length),
            (_, None) => Ok(()),
            (_, Some((error, payload))) => reply(device.as_fd(), message.header.unique, error, payload),
        };
        if let Err(errno) = sent {
            self.undelivered(&message.header, errno, buffers);
        }
        matches!(answer, Ok(Answer::Piped(_)))
    }

    /// Makes the answer to a request.
    fn make(&self, message: &Message<'_>, buffers: &mut Buffers) -> Result<Answer> {
        let Message { header, body, .. } = message;
        let started = log::log_enabled!(log::Level::Debug).then(std::time::Instant::now);
        let answer = self.tally.answer(self.adapter, header, body, buffers);
        if let Some(started) = started {
            let (name, cost) = (operation(header.opcode), started.elapsed());
            log::debug!("{name} node {} uid {} pid {}: {answer:?} in {cost:?}", header.node, header.uid, header.pid);
        }
        answer
    }

    /// Nobody waits for a reply any more (`ENOENT`), or cannot get it. What it would have told the kernel, the kernel does
    /// not know.
    fn undelivered(&self, header: &Header, errno: Errno, buffers: &mut Buffers) {
        log::debug!("the reply to {} did not arrive: {errno}", operation(header.opcode));
        for node in buffers.entered.drain(..) {
            self.adapter.overlay().forget(node, 1);
        }
    }

    /// The connection.
    pub(super) fn device(&self) -> &Arc<OwnedFd> {
        &self.device
    }

    /// The life of a thread that gets its requests through a ring. Ends with the connection, or at once where the kernel
    /// takes no ring.
    pub(super) fn circle(&self, ring: &mut Ring, queue: &Queue) -> Result<()> {
        ring.register(self.device.clone())?;
        queue.offer();
        if let Some(number) = queue.stirs() {
            self.stir(number);
        }
        let mut buffers = Buffers::default();
        loop {
            let place = ring.wait()?;
            queue.take();
            let sent = self.answer_in(ring, place, &mut buffers);
            queue.give_back();
            sent?;
        }
    }

    /// Answers the request that is in a place of a ring.
    fn answer_in(&self, ring: &mut Ring, place: usize, buffers: &mut Buffers) -> Result<()> {
        let (unique, answer) = {
            let message = Message::parse(ring.message(place)?).ok_or(Errno::EIO)?;
            (message.header.unique, self.make(&message, buffers))
        };
        let (error, payload) = reply_of(answer, buffers).unwrap_or((0, &[]));
        ring.reply(place, unique, error, payload)
    }

    /// Has the kernel send something from this processor that needs no answer: the cached data of no bytes of a file. A
    /// place that is new gets only what is new; requests that wait in its queue already are handed out when a reply comes
    /// (Linux 6.14 to 6.18, at least).
    fn stir(&self, number: u64) {
        let Some(file) = self.adapter.overlay().any_file() else { return };
        let mut message = Vec::with_capacity(48);
        message.put_out_header(32, notify::RETRIEVE, 0);
        for value in [number, file, 0, 0] {
            message.put_u64(value);
        }
        // If it does not work, what waits goes on waiting for what is slow.
        if let Err(errno) = rustix::io::retry_on_intr(|| rustix::io::write(&*self.device, &message)) {
            log::debug!("a queue is not stirred: {errno}");
        }
    }
}

/// A worker and the request that it is at.
struct Seat<'a> {
    worker: &'a Worker<'a>,
    space: Vec<u8>,
    header: Header,
    length: usize,
    buffers: Buffers,
    follower: Option<Follower>,
    /// None where the thread's processor is somebody else's, or the only one.
    vigil: Option<Vigil>,
}

impl<'a> Seat<'a> {
    fn new(worker: &'a Worker<'a>, follower: Option<Follower>) -> Seat<'a> {
        let (space, buffers) = (space(), Buffers::for_device());
        Seat { worker, space, header: Header::default(), length: 0, buffers, follower, vigil: None }
    }

    /// The same, which may stay awake between large pieces of data, if that takes no processor from the reader.
    fn with_vigils(self) -> Seat<'a> {
        let vigil = self.follower.is_some().then(Vigil::default);
        Seat { vigil, ..self }
    }

    fn company(&mut self) -> Company {
        let body = self.space.get(REQUEST_HEADER..self.length).unwrap_or_default();
        self.follower.as_mut().map_or(Company::AsBefore, |follower| follower.note(&self.header, body, self.worker.last))
    }
}

impl Desk for Seat<'_> {
    fn read(&mut self) -> Read {
        if let Some(vigil) = &mut self.vigil {
            vigil.keep(|| process::is_readable(&*self.worker.device));
        }
        match rustix::io::read(&*self.worker.device, &mut *self.space) {
            Ok(length) => match Message::parse(self.space.get(..length).unwrap_or_default()) {
                Some(message) => {
                    (self.header, self.length) = (message.header, length);
                    Read::Request(self.header.pid)
                }
                None => Read::Nothing,
            },
            // The request was taken back, or a signal came.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Read::Nothing,
            // Unmounted.
            Err(rustix::io::Errno::NODEV) => Read::Over,
            Err(errno) => {
                log::error!("requests cannot be read: {errno}");
                Read::Over
            }
        }
    }

    fn is_alone(&mut self) -> bool {
        self.company() == Company::One
    }

    fn fit(&mut self) -> Fit {
        match self.company() {
            Company::Large => Fit::Long,
            Company::Several => Fit::Crowd,
            Company::One | Company::AsBefore if self.worker.takes_long(&self.header) => Fit::Long,
            Company::One | Company::AsBefore => Fit::Own,
        }
    }

    fn answer(&mut self) {
        let whole = self.space.get(..self.length).unwrap_or_default();
        let message = Message { header: self.header, body: whole.get(REQUEST_HEADER..).unwrap_or_default() };
        let large = self.worker.answer(&self.worker.device, &message, &mut self.buffers);
        if let Some(vigil) = self.vigil.as_mut().filter(|_| large) {
            vigil.expect_more();
        }
    }

    fn hand(&self) -> Handed {
        let message = self.space.get(..self.length).unwrap_or_default().to_vec();
        Handed { message, device: self.worker.device.clone() }
    }

    fn answer_handed(&mut self, handed: &Handed) {
        if let Some(message) = Message::parse(&handed.message) {
            self.worker.answer(&handed.device, &message, &mut self.buffers);
        }
    }

    fn join(&mut self, caller: u32) {
        if let Some(follower) = &mut self.follower {
            follower.join(caller);
        }
    }
}

/// The error and what follows it in a reply, if there is one, for an answer that is in memory.
fn reply_of(answer: Result<Answer>, buffers: &Buffers) -> Option<(i32, &[u8])> {
    match answer {
        Ok(Answer::None) => None,
        Ok(Answer::Out) => Some((0, &buffers.out)),
        Ok(Answer::Data(length)) => Some((0, buffers.data.get(..length).unwrap_or_default())),
        Ok(Answer::Piped(_)) => Some((-Errno::EIO.raw(), &[])),
        Err(errno) => Some((-errno.raw(), &[])),
    }
}

/// Sends the reply that a pipe is filled with. What is not taken of it goes with the pipe.
fn send(device: BorrowedFd<'_>, channel: &mut Channel, length: usize) -> Result<()> {
    let Channel::Open(pipe) = std::mem::take(channel) else { return Err(Errno::EIO) };
    // Whatever becomes of what is left in it: the next one is empty.
    *channel = Channel::Unopened;
    pipe.send(device, usize::from(HEADER) + length)?;
    *channel = Channel::Open(pipe);
    Ok(())
}

/// The longest reply, in bytes, that is sent in one piece: with its header an entry, the longest of the small ones, has 144.
const SHORT: usize = 256;

/// A short reply, which no boundary of pages divides: of each piece and each page that it is written from the kernel has to get hold.
#[repr(align(512))]
struct Short(SmallVec<[u8; SHORT]>);

/// Sends a reply in one write, as the protocol wants it.
fn reply(device: BorrowedFd<'_>, unique: u64, error: i32, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| Errno::EIO)?;
    let mut short = Short(SmallVec::new());
    short.0.put_out_header(length, error.cast_unsigned(), unique);
    if short.0.len() + payload.len() <= SHORT {
        short.0.extend_from_slice(payload);
        rustix::io::retry_on_intr(|| rustix::io::write(device, &short.0))?;
    } else {
        let parts = [IoSlice::new(&short.0), IoSlice::new(payload)];
        rustix::io::retry_on_intr(|| rustix::io::writev(device, &parts))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;

    use super::*;
    use crate::fuse::adapter::Policy;
    use crate::fuse::boundary::Tallies;
    use crate::overlay::config::Config;
    use crate::overlay::{Caller, Overlay};

    /// What goes to the device when a queue is stirred, of a union with a file of which the kernel knows or not.
    fn stirred(known: bool) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        let overlay =
            Arc::new(Overlay::new(&Config { lowers: vec![dir.path().to_owned()], ..Config::default() }).unwrap());
        if known {
            overlay.lookup(&Caller { uid: 0, gid: 0, pid: 1, umask: 0 }, overlay.root(), OsStr::new("f")).unwrap();
        }
        let adapter = Adapter::new(overlay, Policy::default());
        let to = tempfile::NamedTempFile::new().unwrap();
        let device = Arc::new(OwnedFd::from(to.reopen().unwrap()));
        let (crew, tallies) = (Crew::new(1, false), Tallies::default());
        Worker::new(&adapter, &crew, &LastCaller::default(), device, tallies.begin()).stir(1 << 63);
        fs::read(to.path()).unwrap()
    }

    #[test]
    fn a_queue_is_stirred_with_a_file_that_the_kernel_knows_and_left_alone_without_one() {
        let message = stirred(true);
        assert_eq!(message.len(), 48);
        assert_eq!(message.get(..4), Some(48u32.to_ne_bytes().as_slice()));
        assert_eq!(message.get(16..24), Some((1u64 << 63).to_ne_bytes().as_slice()));
        assert!(stirred(false).is_empty());
    }

    #[test]
    fn a_reply_is_one_message_however_long_it_is() {
        assert!(size_of::<Short>() <= 512, "it fits where no page ends");
        for length in [0, 1, 104, 128, SHORT - 16, SHORT - 15, 4096, 1 << 20] {
            let (from, to) = rustix::net::socketpair(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::SEQPACKET,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            rustix::net::sockopt::set_socket_send_buffer_size(&from, 4 << 20).unwrap();
            let payload: Vec<u8> = (0..length).map(|n| n.to_ne_bytes()[0]).collect();
            reply(from.as_fd(), 7, -2, &payload).unwrap();
            let mut message = vec![0; length + 100];
            let arrived = rustix::io::read(&to, &mut *message).unwrap();
            assert_eq!(arrived, length + 16);
            let mut header = Vec::new();
            header.put_out_header(length.try_into().unwrap(), (-2i32).cast_unsigned(), 7);
            assert_eq!((&message[..16], &message[16..arrived]), (&*header, &*payload), "{length}");
        }
    }
}
