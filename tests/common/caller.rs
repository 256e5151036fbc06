//! Acting as another user in this thread only: the system calls that follow carry that user's identity.
//!
//! Only the effective ids change, so that root can be taken back; nothing may start a process meanwhile.
#![allow(unsafe_code)]

use rustix::fs::{Gid, Uid};
use std::path::Path;

use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root, or whoever runs the test.
    Owner,
    /// uid and gid 1000, also in group 2000.
    Alice,
    /// uid and gid 1001, also in groups 1000 and 2000.
    Bob,
}

impl Caller {
    /// Alice's uid and gid.
    pub const ALICE: u32 = 1000;
}

/// Runs `call` as `caller`. Anyone but the owner needs root.
pub fn as_caller<T>(caller: Caller, call: impl FnOnce() -> T) -> T {
    let (id, groups): (u32, &[u32]) = match caller {
        Caller::Owner => return call(),
        Caller::Alice => (Caller::ALICE, &[2000]),
        Caller::Bob => (1001, &[1000, 2000]),
    };
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups).expect("root may set groups");
    set_thread_res_gid(None, Gid::from_raw(id), None).expect("root may change gid");
    set_thread_res_uid(None, Uid::from_raw(id), None).expect("root may change uid");
    let result = call();
    set_thread_res_uid(None, Uid::ROOT, None).expect("the saved uid is root");
    set_thread_res_gid(None, Gid::ROOT, None).expect("the saved gid is root");
    set_thread_groups(&[Gid::ROOT]).expect("root may set groups");
    result
}

/// Gives this thread, and whatever it starts, a `/dev/fuse` that everybody may open, where the machine's is root's alone (as
/// it is without udev). `dir` holds the device meanwhile.
pub fn share_fuse(dir: &Path) {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, stat};
    use rustix::mount::mount_bind;
    const DEVICE: &str = "/dev/fuse";
    if stat(DEVICE).is_ok_and(|fuse| fuse.st_mode & 0o006 == 0o006) {
        return;
    }
    unshare_mounts();
    let own = dir.join("fuse");
    if !own.exists() {
        let device = makedev(10, 229);
        mknodat(CWD, &own, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
            .expect("root may make devices");
    }
    rustix::fs::chmod(&own, Mode::from_raw_mode(0o666)).expect("root may change modes");
    mount_bind(&own, DEVICE).expect("root may mount");
}

/// Gives this thread, and whatever it starts, an `/etc/fuse.conf` by which plain users may let others into their mounts. `dir`
/// holds it meanwhile.
pub fn let_others_in(dir: &Path) {
    const SETTINGS: &str = "/etc/fuse.conf";
    unshare_mounts();
    let own = dir.join("fuse.conf");
    std::fs::write(&own, "user_allow_other\n").expect("a scratch directory can be written to");
    rustix::mount::mount_bind(&own, SETTINGS).expect("root may mount");
}

/// Gives this thread, and whatever it starts, mounts of its own, without those of other tests: they keep nothing of it, and it
/// keeps nothing of theirs.
pub fn own_mounts() {
    use std::os::unix::ffi::OsStrExt;
    unshare_mounts();
    let mounts = std::fs::read("/proc/self/mounts").expect("there are mounts");
    let points = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(1));
    let temporary = std::env::temp_dir().join("plyfs-");
    let others: Vec<&[u8]> = points.filter(|point| point.starts_with(temporary.as_os_str().as_bytes())).collect();
    for point in others.into_iter().rev() {
        if let Err(error) = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("{}: {error}", point.escape_ascii());
        }
    }
}

/// Gives this thread, and the threads it starts, a table of descriptors of its own, with the first three only.
pub fn own_descriptors() {
    let (first, last, unshare): (u32, u32, u32) = (3, u32::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: the thread owns no descriptor; the others keep theirs, in their table.
    let r = unsafe { libc::syscall(libc::SYS_close_range, first, last, unshare) };
    assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
}

fn unshare_mounts() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: the thread gets mounts and a working directory of its own; it shares nothing else with others than before.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .expect("root may have its own mounts");
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).expect("root may keep its mounts to itself");
}

/// Makes this thread, and whatever it starts, `id` for good.
pub fn become_user(id: u32) {
    set_thread_groups(&[]).expect("root may set groups");
    set_thread_res_gid(Gid::from_raw(id), Gid::from_raw(id), Gid::from_raw(id)).expect("root may change gid");
    set_thread_res_uid(Uid::from_raw(id), Uid::from_raw(id), Uid::from_raw(id)).expect("root may change uid");
}
