//! The identity of a union over remounts, kept with the root of its upper (`P.uuid`). FUSE cannot show it: it is for the
//! kernel's overlay, when that mounts the same upper. Answers to the kernel's `ovl_init_uuid_xattr`.

use super::config::Uuid;
use super::layer::FileSystem;
use super::superblock::Overlay;
use super::xattr::Mark;
use crate::errno::Result;
use crate::sys::{self, AsFd, At};

/// What is done about the identity, once it is known on how many file systems the layers lie: without one of its own to
/// name (`Off`), the marks on copies name none, which only one file system allows.
pub(super) fn settle(wanted: Uuid, has_upper: bool, filesystems: &mut [FileSystem]) -> Uuid {
    match (wanted, filesystems) {
        (Uuid::Off, [only]) if has_upper => {
            only.uuid = [0; 16];
            Uuid::Off
        }
        (Uuid::Off, _) => {
            log::warn!("uuid=off needs upper and lowers on one file system, falling back to uuid=null");
            Uuid::Null
        }
        (Uuid::On, _) if !has_upper => Uuid::Null,
        (wanted, _) => wanted,
    }
}

impl Overlay {
    /// Gives the upper an identity if it is to have one and has none.
    pub(super) fn keep_uuid(&self) -> Result<()> {
        let Some(upper) = self.layers.upper.as_ref().filter(|_| self.keeps_marks) else { return Ok(()) };
        let root = At::Fd(upper.root.as_fd());
        let wanted = match self.uuid {
            Uuid::On => true,
            // Whoever came by the union before anything was copied up may have noted another one.
            Uuid::Auto => self.own_mark(root, Mark::Impure)?.is_none(),
            Uuid::Null | Uuid::Off => false,
        };
        if wanted && self.own_mark(root, Mark::Uuid)?.is_none_or(|known| known.len() != 16) {
            self.set_mark(root, Mark::Uuid, &sys::random_uuid()?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_name_no_file_system_only_where_there_is_one() {
        let fs = |dev| FileSystem { dev, magic: 0, uuid: [7; 16], handles: 0.into() };
        let table = [
            (Uuid::Off, true, 1, Uuid::Off),
            (Uuid::Off, true, 2, Uuid::Null),
            (Uuid::Off, false, 1, Uuid::Null),
            (Uuid::On, false, 1, Uuid::Null),
            (Uuid::On, true, 2, Uuid::On),
            (Uuid::Auto, true, 1, Uuid::Auto),
            (Uuid::Auto, false, 1, Uuid::Auto),
        ];
        for (wanted, upper, count, expected) in table {
            let mut filesystems: Vec<FileSystem> = (0..count).map(fs).collect();
            assert_eq!(settle(wanted, upper, &mut filesystems), expected, "{wanted:?} {upper} {count}");
            assert_eq!(filesystems[0].uuid == [0; 16], expected == Uuid::Off);
        }
    }
}
