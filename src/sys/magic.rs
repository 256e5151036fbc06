//! The types of file systems, as `statfs(2)` numbers them ([`fs_magic`](super::fs_magic)).

/// ext2, ext3 and ext4.
pub(crate) const EXT4: u64 = 0xef53;
pub(crate) const XFS: u64 = 0x5846_5342;
pub(crate) const BTRFS: u64 = 0x9123_683e;
pub(crate) const TMPFS: u64 = 0x0102_1994;
pub(crate) const FUSE: u64 = 0x6573_5546;
pub(crate) const CEPH: u64 = 0x00c3_6400;
pub(crate) const NFS: u64 = 0x6969;
pub(crate) const SMB2: u64 = 0xfe53_4d42;
pub(crate) const CIFS: u64 = 0xff53_4d42;
pub(crate) const V9FS: u64 = 0x0102_1997;
