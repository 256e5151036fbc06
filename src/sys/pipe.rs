//! A pipe through which the data of a file goes elsewhere without being copied on the way: `pipe(2)`, `splice(2)`.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::faults::gate;
use crate::errno::{Errno, Result};

/// The most that [`Pipe::fill`] takes at once, in bytes, after a few bytes of [`Pipe::put`].
pub const ROOM: usize = 128 * 1024;

/// What a pipe has room for: each page of a file takes a place of its own, wherever in the page the data begins and ends,
/// and what is put takes one. The next power of two.
const SIZE: usize = 2 * ROOM;

/// A pipe of our own. What is left in it goes with it.
#[derive(Debug)]
pub struct Pipe {
    outlet: OwnedFd,
    inlet: OwnedFd,
}

impl Pipe {
    /// An empty pipe. `EPERM` when the user's pipes take more memory than they may already.
    pub fn new() -> Result<Pipe> {
        gate("pipe2")?;
        let (outlet, inlet) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&inlet, SIZE)?;
        Ok(Pipe { outlet, inlet })
    }

    /// Puts bytes in. `EAGAIN` if there is no room for all of them.
    pub fn put(&self, bytes: &[u8]) -> Result<()> {
        let put = retry_on_intr(|| rustix::io::write(&self.inlet, bytes))?;
        if put == bytes.len() { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    /// Puts so much of a file in, from an offset on, as the pages of its cache: they are read from disk if they are not
    /// there. Returns how many bytes there were; fewer than asked for at the end of the file, or where it is full.
    /// `EINVAL` for a file system that cannot.
    pub fn fill(&self, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<usize> {
        let mut done = 0;
        while done < length {
            gate("splice")?;
            let mut from = offset + done as u64;
            // Without waiting for room: nobody empties it meanwhile.
            let flags = SpliceFlags::NONBLOCK;
            match retry_on_intr(|| splice(file, Some(&mut from), &self.inlet, None, length - done, flags)) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(more) => done += more,
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(done)
    }

    /// Hands on so many bytes in one piece, as a device wants a message. The device copies them.
    pub fn send(&self, device: BorrowedFd<'_>, length: usize) -> Result<()> {
        let sent = retry_on_intr(|| splice(&self.outlet, None, device, None, length, SpliceFlags::empty()))?;
        if sent == length { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Takes so many bytes out as the buffer holds. `EAGAIN` if there are fewer.
    pub fn take(&self, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let taken = retry_on_intr(|| rustix::io::read(&self.outlet, &mut *rest))?;
            rest = rest.get_mut(taken..).filter(|_| taken > 0).ok_or(Errno::EAGAIN)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn file(bytes: &[u8]) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn there_is_room_for_what_begins_anywhere_in_a_page() {
        let bytes: Vec<u8> = (0..2 * ROOM).map(|n| (n % 251) as u8).collect();
        let (file, pipe) = (file(&bytes), Pipe::new().unwrap());
        for offset in [0, 1, 4095, 5000] {
            pipe.put(b"first").unwrap();
            assert_eq!(pipe.fill(file.as_fd(), offset, ROOM), Ok(ROOM));
            let mut all = vec![0; 5 + ROOM];
            pipe.take(&mut all).unwrap();
            let offset = usize::try_from(offset).unwrap();
            assert!(all.starts_with(b"first") && all[5..] == bytes[offset..offset + ROOM]);
        }
    }

    #[test]
    fn the_end_of_a_file_cuts_short_and_a_full_pipe_keeps_nobody_waiting() {
        let (file, pipe) = (file(&vec![7; 5000]), Pipe::new().unwrap());
        assert_eq!(pipe.fill(file.as_fd(), 4096, ROOM), Ok(904));
        assert_eq!(pipe.fill(file.as_fd(), 9000, ROOM), Ok(0));
        assert_eq!(pipe.take(&mut [0; 905]), Err(Errno::EAGAIN));
        let mut filled = 0;
        while pipe.fill(file.as_fd(), 0, 5000) == Ok(5000) {
            filled += 1;
            assert!(filled < 1000);
        }
    }
}
