//! The origin mark: which lower inode an upper file was copied from, in the kernel's form (`struct ovl_fb`).
//!
//! Must never trust the bytes: a layer may have come from anywhere.

use std::sync::atomic::Ordering;

use super::superblock::Overlay;
use crate::errno::Errno;
use crate::sys::{self, AsFd, At, FileHandle, Stat, magic};

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const HEADER: usize = 21;
const FLAG_BIG_ENDIAN: u8 = 1;
const FLAG_ANY_ENDIAN: u8 = 2;
const FLAG_PATH_UPPER: u8 = 4;

/// A file handle with the file system that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub uuid: [u8; 16],
    pub handle: FileHandle,
}

impl Origin {
    /// The bytes of the mark; `None` when the handle does not fit the form.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let len = u8::try_from(HEADER + self.handle.bytes.len()).ok()?;
        let kind = u8::try_from(self.handle.kind).ok()?;
        let endian = if cfg!(target_endian = "big") { FLAG_BIG_ENDIAN } else { 0 };
        let mut mark = vec![VERSION, MAGIC, len, endian, kind];
        mark.extend_from_slice(&self.uuid);
        mark.extend_from_slice(&self.handle.bytes);
        Some(mark)
    }

    /// The same for an object of the upper, to which an entry of the index leads.
    pub fn encode_upper(&self) -> Option<Vec<u8>> {
        let mut mark = self.encode()?;
        if let Some(flags) = mark.get_mut(3) {
            *flags |= FLAG_PATH_UPPER;
        }
        Some(mark)
    }

    /// The origin that a mark names; `None` when it is empty, foreign, or of another byte order.
    pub fn decode(mark: &[u8]) -> Option<Origin> {
        let (header, bytes) = mark.split_first_chunk::<HEADER>()?;
        let [version, magic, len, flags, kind, uuid @ ..] = header;
        let endian = flags & FLAG_BIG_ENDIAN != 0;
        if *version != VERSION
            || *magic != MAGIC
            || usize::from(*len) != mark.len()
            || flags & !(FLAG_BIG_ENDIAN | FLAG_ANY_ENDIAN | FLAG_PATH_UPPER) != 0
            || (flags & FLAG_ANY_ENDIAN == 0 && endian != cfg!(target_endian = "big"))
        {
            return None;
        }
        Some(Origin { uuid: *uuid, handle: FileHandle { kind: i32::from(*kind), bytes: bytes.to_vec() } })
    }
}

impl Overlay {
    /// The union's inode number of the file that an origin mark names, if a layer's file system can tell.
    pub(super) fn origin_number(&self, mark: &[u8]) -> Option<u64> {
        self.number_of_origin(&Origin::decode(mark)?, None)
    }

    /// The same. Where one handle could be opened others can, so that of an object that is at hand needs no opening, and
    /// where one was refused all are.
    pub(super) fn number_of_origin(&self, origin: &Origin, of: Option<&Stat>) -> Option<u64> {
        const REFUSED: u8 = 1;
        const OPENED: u8 = 2;
        let layer = self
            .layers
            .lowers
            .iter()
            .find(|layer| self.layers.filesystems.get(layer.fs).is_some_and(|fs| fs.uuid == origin.uuid))?;
        let fs = self.layers.filesystems.get(layer.fs)?;
        let ino = match (fs.handles.load(Ordering::Relaxed), of.filter(|stat| stat.dev == fs.dev)) {
            (OPENED, Some(stat)) => stat.ino,
            (REFUSED, _) => inode_of(&origin.handle, fs.magic)?,
            _ => match sys::open_handle(layer.root.as_fd(), &origin.handle) {
                Ok(fd) => {
                    fs.handles.store(OPENED, Ordering::Relaxed);
                    sys::stat(At::Fd(fd.as_fd())).ok()?.ino
                }
                // Not for the unprivileged: read the number from the handle.
                Err(Errno::EPERM) => {
                    fs.handles.store(REFUSED, Ordering::Relaxed);
                    inode_of(&origin.handle, fs.magic)?
                }
                Err(_) => return None,
            },
        };
        self.numbers.persistent(&self.layers, fs.dev, ino)
    }
}

/// The inode number in a handle, for the file systems whose handles are known to carry it. Needs no privilege, where
/// opening by handle does.
pub(super) fn inode_of(handle: &FileHandle, fs: u64) -> Option<u64> {
    let word = |i: usize| {
        let bytes = handle.bytes.get(i * 4..i * 4 + 4)?;
        Some(u64::from(u32::from_ne_bytes(bytes.try_into().ok()?)))
    };
    let long = |i: usize| Some(u64::from_ne_bytes(handle.bytes.get(i..i + 8)?.try_into().ok()?));
    match (fs, handle.kind, handle.bytes.len()) {
        (magic::EXT4 | magic::XFS, 1, 8) => word(0),
        (magic::XFS, 0x81, 12..) => long(0),
        (magic::TMPFS, 1, 12) => Some(word(1)? | (word(2)? << 32)),
        (magic::BTRFS, 0x4d, 20) => long(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back() {
        let origin = Origin { uuid: [7; 16], handle: FileHandle { kind: 1, bytes: vec![1, 2, 3, 4, 5, 6, 7, 8] } };
        let mark = origin.encode().unwrap();
        assert_eq!(mark.len(), 29);
        assert_eq!(mark[..5], [0, 0xfb, 29, 0, 1]);
        assert_eq!(Origin::decode(&mark).as_ref(), Some(&origin));
        let upper = origin.encode_upper().unwrap();
        assert_eq!((upper[3], Origin::decode(&upper)), (4, Some(origin)));
    }

    #[test]
    fn hostile_marks_are_unknown() {
        let good = Origin { uuid: [0; 16], handle: FileHandle { kind: 1, bytes: vec![0; 8] } }.encode().unwrap();
        assert_eq!(Origin::decode(b""), None);
        assert_eq!(Origin::decode(&good[..20]), None);
        for (at, value) in [(0, 1), (1, 0xfa), (2, 30), (3, 0x80), (3, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Origin::decode(&bad), None, "byte {at} = {value}");
        }
    }

    #[test]
    fn inode_numbers_are_read_from_known_handles_only() {
        let handle = |kind, bytes: &[u8]| FileHandle { kind, bytes: bytes.to_vec() };
        assert_eq!(inode_of(&handle(1, &[5, 0, 0, 0, 9, 9, 9, 9]), magic::EXT4), Some(5));
        assert_eq!(inode_of(&handle(1, &[9, 9, 9, 9, 5, 0, 0, 0, 1, 0, 0, 0]), magic::TMPFS), Some(5 | 1 << 32));
        assert_eq!(inode_of(&handle(1, &[5, 0, 0, 0]), magic::EXT4), None);
        assert_eq!(inode_of(&handle(1, &[5, 0, 0, 0, 9, 9, 9, 9]), 0x6969), None);
    }
}
