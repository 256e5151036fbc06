//! The inode numbers that callers see.
//!
//! Answers to the kernel's `ovl_map_dev_ino`: with all layers on one file system the real numbers; with several, the file
//! system's position in the high bits (`xino`), because one mount has one `st_dev`. Where the bits do not suffice, a
//! number that is made up and does not persist. The kernel's overlay can leave the bits alone (`xino=off`) because it has a
//! device for each file system; here numbers would be the same for different files or change at copy-up, so it is all one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layer::Layers;

/// How real inode numbers become the union's.
#[derive(Debug)]
pub(super) struct InodeNumbers {
    /// How many high bits tell the file system; none when all layers lie on one.
    bits: u32,
    /// Whether numbers are to fit into 32 bits, at the price that some are not unique.
    narrow: bool,
    /// Made-up numbers are counted from here.
    next: AtomicU64,
}

impl InodeNumbers {
    /// The scheme for these layers, with the kernel's choice of bits.
    pub fn new(layers: &Layers, narrow: bool) -> InodeNumbers {
        // Position 0 is the upper's file system, or nothing in a union without an upper.
        let count = layers.filesystems.len() + usize::from(layers.upper.is_none());
        let single = layers.filesystems.len() <= 1;
        let bits = if single { 0 } else { (count.max(2) - 1).ilog2() + 2 };
        InodeNumbers { bits, narrow, next: AtomicU64::new(1) }
    }

    /// The union's number of a real object; `None` if one must be made up.
    pub fn persistent(&self, layers: &Layers, dev: u64, ino: u64) -> Option<u64> {
        self.wide(layers, dev, ino).map(|number| self.folded(number))
    }

    fn folded(&self, number: u64) -> u64 {
        if !self.narrow {
            return number;
        }
        // The file system's position is in the high bits. 0 is no number.
        let folded = (number ^ (number >> 32)) & u64::from(u32::MAX);
        folded.max(1)
    }

    fn wide(&self, layers: &Layers, dev: u64, ino: u64) -> Option<u64> {
        let position = layers.filesystem(dev).map(|(position, _)| position as u64 + u64::from(layers.upper.is_none()));
        if self.bits == 0 {
            return position.map(|_| ino);
        }
        let shift = 64 - self.bits;
        let position = position?;
        (ino >> shift == 0).then_some(ino | (position << (shift + 1)))
    }

    /// A number that no real object gets and that was not given before.
    pub fn made_up(&self) -> u64 {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let shift = if self.bits == 0 { 63 } else { 64 - self.bits };
        if self.narrow { (n & 0x7fff_ffff) | 1 << 31 } else { n | (1 << shift) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer::FileSystem;
    use super::*;

    fn layers(devs: &[u64]) -> Layers {
        let filesystems =
            devs.iter().map(|dev| FileSystem { dev: *dev, magic: 0, uuid: [0; 16], handles: 0.into() }).collect();
        Layers { upper: None, lowers: Vec::new(), data: Vec::new(), filesystems, roots: Vec::new() }
    }

    #[test]
    fn one_file_system_keeps_its_numbers() {
        let layers = layers(&[5]);
        let numbers = InodeNumbers::new(&layers, false);
        assert_eq!(numbers.persistent(&layers, 5, u64::MAX), Some(u64::MAX));
        assert_eq!(numbers.persistent(&layers, 6, 1), None);
    }

    #[test]
    fn narrow_numbers_fit_into_32_bits() {
        for devs in [&[5][..], &[5, 6]] {
            let layers = layers(devs);
            let numbers = InodeNumbers::new(&layers, true);
            let ino = |dev, ino| numbers.persistent(&layers, dev, ino).unwrap();
            assert!(if devs.len() == 1 { ino(5, 77) == 77 } else { ino(5, 77) != ino(6, 77) });
            assert!([ino(5, 1 << 32), ino(5, 3 << 40), numbers.made_up()].iter().all(|ino| *ino > 0 && *ino < 1 << 32));
        }
    }

    #[test]
    fn several_file_systems_never_share_a_number() {
        let layers = layers(&[5, 6]);
        let numbers = InodeNumbers::new(&layers, false);
        let a = numbers.persistent(&layers, 5, 77);
        let b = numbers.persistent(&layers, 6, 77);
        assert!(a.is_some() && b.is_some() && a != b);
        assert_eq!(numbers.persistent(&layers, 6, 1 << 62), None);
        let made_up = numbers.made_up();
        assert!(Some(made_up) != a && Some(made_up) != b && made_up != numbers.made_up());
    }
}
