//! plyfs: a union filesystem in userspace, with the semantics and the on-disk format of the Linux kernel's OverlayFS.
//!
//! # The layers
//!
//! ```text
//!   merged/   a  b  c  d           what callers see, through FUSE
//!             |  |  |  |
//!   upper/    a  |  |  (d: whiteout, hides the d below)
//!   lower 1/     b  |  d
//!   lower 2/  a  b  c              a and b are hidden: the topmost object of a name is the one that shows;
//!                                  directories of one name are merged
//! ```
//!
//! Changes go to the upper. What a lower holds is copied there before it changes ([`overlay`], `copy_up`), a name of a
//! lower that is removed gets a whiteout there, and all of it is written so that the kernel's overlay can mount it.
//!
//! # The house
//!
//! A module uses what stands above it here, never what stands below; `tests/layering.rs` holds it to that.
//!
//! - [`errno`]: the one error type of a request.
//! - [`sys`]: every system call, and the only unsafe code. A descriptor and a name, never a path; no symlink is followed.
//! - [`overlay`]: the union. A library that knows no FUSE; each file answers to the kernel's file of a like name.
//! - [`fuse`]: the protocol (`wire`), requests to operations and results to replies (`adapter`; of names `names` and `listing`,
//!   of attributes `attributes`, of what is read `data`, of opens `passthrough`), the threads (`server`, `worker`, `vigil`), what stands around each request (`boundary`),
//!   mounting and the mount's life (`mount`, `session`), notices (`notices`). fuser does the handshake and the notices.
//! - [`cli`]: the options as typed and as meant, and the daemon.
//!
//! # A request's walk
//!
//! `echo x >> merged/dir/file`, where only a lower has the file:
//!
//! ```text
//!   LOOKUP dir, file   adapter.lookup -> overlay.lookup -> resolve: one statx a layer, from a cached directory
//!                      descriptor, until something ends the search -> enter: the node table gives the object its number
//!   OPEN               none: the first one was answered with ENOSYS, and the kernel never asks again
//!   WRITE node         adapter.write -> file.write -> open_writer -> copy_up: dir, then file, each built in the work
//!                      directory and published with one rename -> pwrite on the copy
//! ```
//!
//! With `metacopy=on` a change of attributes publishes a file without its data (`overlay/metacopy`): a write puts a whole one
//! in its place, or, where it has several names, brings the data and takes the mark that says so; until then reads go to the
//! layer below. With `redirect_dir=on` a directory
//! that a lower has is moved by one rename of its upper part, and a mark on it says where the search goes on below
//! (`overlay/redirect`): a lookup in it walks from that layer's own root. With `index=on` the copy of a lower file with several
//! names is published under `work/index` and linked to the name that was written (`overlay/index`); the others find it there,
//! by the handle of the lower file. With `nfs_export=on` everything that is copied up has an entry there, and what is removed
//! leaves a whiteout (`overlay/export`); nodes then stay in the table for as long as they have a name, because a file handle of
//! FUSE is a node's number, and have numbers that a later mount gives them again (`overlay/lasting_id`).
//!
//! Because opens and closes cost no message, there are no file handles: each request names a node, and the node finds its
//! real file through a descriptor that is pinned, cached, or opened now. What would go out of reach is pinned: an object
//! whose last name goes, a file whose mode would refuse the server. Files are made by MKNOD, one message, where CREATE
//! takes a RELEASE besides.
//!
//! # Passthrough
//!
//! With `passthrough=on` the kernel is given the real file at each open (`fuse/passthrough`) and no data comes by here, at
//! the price of a message for each open and close. A file may go this way if no copy-up can put another in its place while
//! it is open. What the union then does not hear of, it does not vouch for: events of such a file are its clients' own,
//! and the attributes of one that can be mapped for writing are asked for each time (`overlay/own_change`).
//!
//! # Why the requests are read here and not by fuser
//!
//! fuser 0.18 takes a node's number in the protocol and its inode number for one: but the names of one lower file with
//! several links are nodes of their own (each is copied up alone) that share a number, a node outlives the number of a
//! removed object, and a copied-up object keeps the number of the lower one. It also keeps to itself how large a listing
//! may be, drops the flag that asks for suid to be cleared, and knows neither TMPFILE nor STATX. So `fuse/wire` reads and
//! writes the messages, behind an adapter that takes plain arguments: another transport can call the same operations.
//!
//! # What is believed, and for how long
//!
//! The kernel is told that names, absences and attributes hold for a day, because what they rest on is watched
//! (`overlay/watch`; what an event means, `overlay/events`): each directory of which something was told, in each layer that has it. A change behind the mount
//! raises an event, the event a notice, and the kernel asks again; that takes a tenth of a second. It keeps what it finds to
//! be the same node, with all that is mounted on it or below it (`overlay/revalidate`, `fuse/notices`). Where no watch is to be
//! had, what is told holds for less than a second; so do the attributes of a large directory, which takes long to watch, until
//! something in it is asked for. The union's own changes to the upper raise events, too; they are
//! recognised by what is known of the object, and raise no notice. That an object has no extended attributes is believed
//! here on the same grounds (`overlay/xattr_known`): the kernel asks each time, and the answer costs no system call.
//! So is that a write has neither suid nor sgid to take away, and which lower file has a name that goes (`overlay/recent`).
//!
//! # Who answers
//!
//! Some regular threads read requests and answer them, or, while one caller at a time has the union for itself, one thread alone that
//! runs on the caller's processor and gives way to it (`fuse/crew`, `fuse/follow`): between two processors most of a small
//! request's time is wake-ups. A lookout sees to it that this never costs more than some milliseconds where it does not pay.
//! With `io_uring` requests come through shared memory to threads that are kept on their callers' processors (`fuse/rings`,
//! `sys/uring`); the adapter does not notice. How these threads wait and wake each other rests on `fuse/sync` alone, for
//! which `tests/model` has another to put in its place.
//!
//! # Where the server lives
//!
//! In a mount namespace of its own, unless its mount is in that of the machine's first process (`sys/namespace`): a process
//! keeps its namespace alive, and a server in that of its mount would keep the mount for ever once all others have gone.
//! What has to be done on the mount's path is done by short-lived processes (`sys/errand`) that go back there.
//!
//! # Locks
//!
//! In this order; a lock may be taken only while none that stands below it is held. The order is written at each lock.
//!
//! | lock | of | held while |
//! |---|---|---|
//! | `Node::copying` | a node | its data is copied up; the only lock that is held then |
//! | `DirState::names` | a directory | a name in it is looked up (shared), made, removed, moved or published (alone); two in order of their ids, a parent's before its child's |
//! | `Watches` | a directory | watches are added |
//! | `CountLocks` | objects of the upper | with `index=on`, a name of one comes or goes (alone), or its count is read (shared) |
//! | `Node::state`, of what is no directory | a node | its name is used for a system call (shared), or changes |
//! | `Overlay::renaming` | the union | directories are opened from above (shared), or one is moved |
//! | `Node::state`, of a directory | a node | its place is read, or changes |
//! | `Table` (under it `Node::remembered`), the caches, the watch maps | the union | never while a system call is made |
//!
//! The other options add none: the data of a metacopy comes under the node's `copying`, as any copy; a redirect is written
//! before its directory moves, under the `names` of both parents; an index entry is published under the `state` of its node,
//! and linked to a name under the `names` of that directory.
//!
//! `overlay/order` holds the locks to it: in a debug build each thread knows what it holds, and what is out of order panics.
//!
//! A notice makes the kernel take a directory's lock that a request under way may hold; so notices about names are given by
//! a thread that serves no request, and holds none of these.
//!
//! # Glossary
//!
//! *layer*: one directory of the stack. *upper*, *lower*: the writable one, one of the others. *whiteout*: what hides a
//! name. *opaque*: of a directory that hides what lies below it. *copy-up*: see above. *origin*: the mark that tells which
//! lower inode a copy came from. *impure*: of a directory that holds such copies. *node*: an object of the union, with the
//! number by which the kernel knows it. *redirect*: of a renamed directory, where its lower part still lies. *metacopy*: of
//! an object that has a file's attributes but not its data. *index*: where copies of lower files with several names stand.
//! *place*: the parent and name of a node. *mark*: one of the overlay's own xattrs.

pub mod cli;
pub mod errno;
pub mod fuse;
pub mod overlay;
pub mod sys;
