//! Which operation comes next: random, but aimed at what is there, so that most of them do something.

use super::layers::{Rights, acl, capability, mode, name, pattern, target, time};
use super::op::{Call, Op, Special, Time};
use super::path::{P, join, p};
use super::rng::Rng;
use super::side::SLOTS;
use super::tree::Marks;
use crate::common::caller::Caller;
use crate::common::mapping::Share;
use rustix::fs::{FileType, OFlags};

/// What is there: paths and types, sorted by path; the root is the first.
pub type Scene = Vec<(P, FileType)>;

/// Who asks for operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// Whoever runs the test, and with the rights of root two ordinary users now and then.
    Owner,
    /// Two ordinary users who share a group, and nobody else.
    TwoUsers,
    /// The same on the mount of one of them, whose server can give nothing to the other: only Alice makes things.
    Guest,
}

/// Chooses operations.
pub struct Generator {
    rng: Rng,
    rights: Rights,
    /// How often in a thousand the union is mounted anew.
    pub remounts: u64,
    /// Who asks.
    pub company: Company,
    /// How the overlay's marks are written.
    marks: Marks,
}

impl Generator {
    /// The generator that `seed` names.
    pub fn new(seed: u64, rights: Rights, marks: Marks) -> Generator {
        Generator { rng: Rng::new(seed), rights, remounts: 5, company: Company::Owner, marks }
    }

    /// The next operation, given what is there.
    pub fn next(&mut self, scene: &Scene) -> Call {
        let caller = match (self.company, self.rights) {
            (Company::TwoUsers | Company::Guest, _) => *self.rng.pick(&[Caller::Alice, Caller::Bob]),
            (Company::Owner, Rights::User) => Caller::Owner,
            (Company::Owner, Rights::Root) => {
                self.rng.weighted(&[(60, Caller::Owner), (25, Caller::Alice), (15, Caller::Bob)])
            }
        };
        if self.rng.below(1000) < self.remounts {
            return Call { caller: Caller::Owner, op: Op::Remount };
        }
        let op = match self.rng.below(100) {
            0..14 => self.open(scene),
            14..42 => self.descriptor(),
            42..62 => self.names(scene),
            62..78 => self.attributes(scene),
            78..87 => self.xattrs(scene),
            _ => self.reads(scene),
        };
        let caller = match op {
            Op::ReadRest { .. } => Caller::Owner,
            _ if self.company == Company::Guest && op.makes() => Caller::Alice,
            _ => caller,
        };
        Call { caller, op }
    }

    fn of_kind(&mut self, scene: &Scene, kind: FileType) -> P {
        let fitting: Vec<&P> = scene.iter().filter(|(_, other)| *other == kind).map(|(path, _)| path).collect();
        if fitting.is_empty() || self.rng.chance(7) { self.any(scene) } else { (*self.rng.pick(&fitting)).clone() }
    }

    fn file(&mut self, scene: &Scene) -> P {
        self.of_kind(scene, FileType::RegularFile)
    }

    fn dir(&mut self, scene: &Scene) -> P {
        self.of_kind(scene, FileType::Directory)
    }

    /// Something that exists, seldom the root.
    fn existing(&mut self, scene: &Scene) -> P {
        let path = self.rng.pick(scene).0.clone();
        if path.is_empty() { self.rng.pick(scene).0.clone() } else { path }
    }

    /// A name that may be free, in a directory that is there.
    fn fresh(&mut self, scene: &Scene) -> P {
        let dirs: Vec<&P> = scene
            .iter()
            .filter(|(path, kind)| *kind == FileType::Directory && path.depth() < 5)
            .map(|(path, _)| path)
            .collect();
        let dir = (*self.rng.pick(&dirs)).clone();
        join(&dir, &name(&mut self.rng))
    }

    fn any(&mut self, scene: &Scene) -> P {
        match self.rng.below(20) {
            0..14 => self.existing(scene),
            14..18 => self.fresh(scene),
            _ => join(&self.existing(scene), &name(&mut self.rng)),
        }
    }

    fn slot(&mut self) -> usize {
        self.rng.below(SLOTS as u64) as usize
    }

    fn tint(&mut self) -> u8 {
        self.rng.bits() as u8
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(10) {
            0..3 => 0,
            3..6 => self.rng.below(200),
            6..8 => self.rng.below(20_000),
            8 => 4096 * self.rng.below(8),
            _ => self.rng.below(400_000),
        }
    }

    fn length(&mut self) -> usize {
        let limit = *self.rng.pick(&[1, 20, 200, 5000, 20_000, 150_000]);
        self.rng.below(limit) as usize
    }

    fn mode(&mut self, dir: bool) -> u32 {
        mode(&mut self.rng, dir, self.rights)
    }

    fn open(&mut self, scene: &Scene) -> Op {
        let slot = self.slot();
        if self.rng.chance(12) {
            return Op::OpenDir { slot, path: self.dir(scene) };
        }
        let mut flags = self.rng.weighted(&[(5, OFlags::RDONLY), (3, OFlags::WRONLY), (8, OFlags::RDWR)]);
        let mut path = self.file(scene);
        if self.rng.chance(40) {
            flags |= OFlags::CREATE;
            if self.rng.chance(60) {
                path = self.fresh(scene);
            }
            flags |= if self.rng.chance(25) { OFlags::EXCL } else { OFlags::empty() };
        }
        for (percent, flag) in [
            (15, OFlags::TRUNC),
            (12, OFlags::APPEND),
            (8, OFlags::NOFOLLOW),
            (3, OFlags::NOATIME),
            (2, OFlags::DIRECTORY),
        ] {
            // Linux refuses to create with O_DIRECTORY before any file system is asked.
            if self.rng.chance(percent) && !(flag == OFlags::DIRECTORY && flags.contains(OFlags::CREATE)) {
                flags |= flag;
            }
        }
        Op::Open { slot, path, flags: flags.bits(), mode: self.mode(false) }
    }

    fn descriptor(&mut self) -> Op {
        let slot = self.slot();
        match self.rng.below(100) {
            0..7 => Op::Close { slot },
            7..25 => Op::Read { slot, offset: self.offset(), length: self.length() },
            25..45 => Op::Write { slot, offset: self.offset(), length: self.length(), tint: self.tint() },
            45..53 => Op::Put { slot, length: self.length(), tint: self.tint() },
            53..60 => Op::Ftruncate { slot, size: self.offset() },
            60..67 => {
                let mode = *self.rng.pick(&[0, 1, 3, 3, 0x10, 0x11]);
                Op::Fallocate { slot, mode, offset: self.offset(), length: self.length() as u64 }
            }
            67..70 => Op::SeekData { slot, offset: self.offset() },
            70..73 => Op::SeekHole { slot, offset: self.offset() },
            73..77 => Op::CopyRange {
                from: slot,
                to: self.slot(),
                from_offset: self.offset(),
                to_offset: self.offset(),
                length: self.length(),
            },
            77..80 => Op::Fsync { slot, data_only: self.rng.chance(50) },
            80..85 => Op::Fstat { slot },
            85..87 => Op::Fchmod { slot, mode: self.mode(false) },
            87..89 => Op::Fchown { slot, uid: self.id(), gid: self.id() },
            89..91 => Op::Futimens { slot, atime: self.time(), mtime: self.time() },
            91..92 => Op::Fsetxattr { slot, name: p(b"user.a"), value: p(b"through a descriptor") },
            92..93 => Op::Flistxattr { slot },
            93..96 => {
                Op::MapWrite { slot, offset: self.rng.below(10_000) as usize, length: self.length(), tint: self.tint() }
            }
            _ => Op::ReadRest { slot },
        }
    }

    fn names(&mut self, scene: &Scene) -> Op {
        let root = self.rights == Rights::Root;
        match self.rng.below(100) {
            0..18 => Op::Unlink { path: self.file(scene) },
            18..28 => Op::Rmdir { path: self.dir(scene) },
            28..45 => {
                let path = if self.rng.chance(85) { self.fresh(scene) } else { self.any(scene) };
                Op::Mkdir { path, mode: self.mode(true) }
            }
            45..51 => Op::Symlink { path: self.fresh(scene), target: target(&mut self.rng) },
            51..60 => {
                let from = if self.rng.chance(80) { self.file(scene) } else { self.any(scene) };
                Op::Link { from, to: self.fresh(scene) }
            }
            60..90 => {
                let flags = self.rng.weighted(&[(6, 0), (2, 1), (3, 2)]);
                let from = self.any(scene);
                let to = if flags == 2 || self.rng.chance(45) { self.any(scene) } else { self.fresh(scene) };
                Op::Rename { from, to, flags }
            }
            90..96 => {
                let kinds: &[Special] = if root {
                    &[
                        Special::File,
                        Special::Fifo,
                        Special::Socket,
                        Special::Char(0x103),
                        Special::Char(0),
                        Special::Block(0x700),
                    ]
                } else {
                    &[Special::File, Special::Fifo, Special::Socket]
                };
                Op::Mknod { path: self.fresh(scene), kind: *self.rng.pick(kinds), mode: self.mode(false) }
            }
            96..99 => Op::RemoveTree { path: self.dir(scene) },
            _ => Op::Mknod { path: self.any(scene), kind: Special::File, mode: self.mode(false) },
        }
    }

    fn attributes(&mut self, scene: &Scene) -> Op {
        let path = self.any(scene);
        match self.rng.below(10) {
            0..4 => {
                // chmod follows symbolic links, and a plain user's server cannot enter what its user cannot.
                let dir = match scene.iter().find(|(other, _)| *other == path) {
                    Some((_, FileType::Symlink)) => self.rights == Rights::User,
                    found => found.is_some_and(|(_, kind)| *kind == FileType::Directory),
                };
                Op::Chmod { path, mode: self.mode(dir) }
            }
            4..6 => Op::Chown { path, uid: self.id(), gid: self.id() },
            // Whoever may write may set both to the present; all else is the owner's.
            6..7 => Op::Utimens { path, atime: Time::Now, mtime: Time::Now },
            7..9 => Op::Utimens { path, atime: self.time(), mtime: self.time() },
            _ => Op::Truncate { path: self.file(scene), size: self.offset() },
        }
    }

    fn id(&mut self) -> Option<u32> {
        match self.rights {
            Rights::User => None,
            Rights::Root => *self.rng.pick(&[None, Some(0), Some(1000), Some(1001), Some(2000)]),
        }
    }

    fn time(&mut self) -> Time {
        match self.rng.below(10) {
            0..2 => Time::Omit,
            2..3 => Time::Now,
            _ => {
                let (seconds, nanoseconds) = time(&mut self.rng);
                Time::At(seconds, nanoseconds)
            }
        }
    }

    fn xattr_name(&mut self) -> &'static [u8] {
        let common: &[&[u8]] = &[b"user.a", b"user.b", b"user.long.name"];
        let root: &[&[u8]] = &[
            b"trusted.a",
            b"security.capability",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
            b"trusted.overlay.opaque",
            b"trusted.overlay.other",
            b"trusted.overlay.overlay.opaque",
            b"security.other",
            b"nonsense",
        ];
        let name = match self.rights {
            Rights::Root if self.rng.chance(60) => *self.rng.pick::<&[u8]>(root),
            _ => *self.rng.pick::<&[u8]>(common),
        };
        // The other namespace is private to us, too, but not to the kernel.
        match (self.marks, name) {
            (Marks::User, b"trusted.overlay.opaque") => b"user.overlay.opaque",
            (Marks::User, b"trusted.overlay.other") => b"user.overlay.other",
            (Marks::User, b"trusted.overlay.overlay.opaque") => b"user.overlay.overlay.opaque",
            _ => name,
        }
    }

    fn xattrs(&mut self, scene: &Scene) -> Op {
        let path = self.any(scene);
        let name = self.xattr_name();
        match self.rng.below(10) {
            0..5 => {
                let value = match name {
                    b"security.capability" => capability(&mut self.rng),
                    _ if name.starts_with(b"system.") && self.rng.chance(90) => acl(&mut self.rng, self.rights),
                    b"trusted.overlay.opaque" | b"user.overlay.opaque" => b"y".to_vec(),
                    _ => pattern(0, *self.rng.pick(&[0, 1, 10, 200]), self.tint()),
                };
                Op::Setxattr {
                    path,
                    name: p(name),
                    value: p(value),
                    flags: self.rng.weighted(&[(6, 0), (1, 1), (1, 2)]),
                }
            }
            5..7 => Op::Getxattr { path, name: p(name) },
            7..8 => Op::Listxattr { path },
            _ => Op::Removexattr { path, name: p(name) },
        }
    }

    fn reads(&mut self, scene: &Scene) -> Op {
        match self.rng.below(100) {
            0..20 => Op::Stat { path: self.any(scene) },
            20..30 => Op::Access { path: self.any(scene), mode: self.rng.below(8) as u32 },
            30..42 => Op::Cat { path: self.file(scene) },
            42..46 => Op::MapRead { path: self.file(scene), share: *self.rng.pick(&[Share::Read, Share::Private]) },
            46..75 => {
                let path = if self.rng.chance(50) { self.fresh(scene) } else { self.file(scene) };
                let flags =
                    *self.rng.pick(&[OFlags::TRUNC, OFlags::TRUNC, OFlags::APPEND, OFlags::EXCL, OFlags::empty()]);
                // At least one byte: an open for writing without a write copies nothing up here, but does there.
                let length = self.length().max(1);
                Op::Save { path, flags: flags.bits(), mode: self.mode(false), length, tint: self.tint() }
            }
            75..80 => Op::Readlink { path: self.of_kind(scene, FileType::Symlink) },
            80..94 => Op::List { path: self.dir(scene) },
            94..97 => Op::Statfs { path: self.dir(scene) },
            _ => Op::SyncDir { path: self.dir(scene) },
        }
    }
}
