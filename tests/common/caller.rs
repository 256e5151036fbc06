//! Acting as another user in this thread only: the system calls that follow carry that user's identity.
//!
//! Only the effective ids change, so that root can be taken back; nothing may start a process meanwhile.

use rustix::fs::{Gid, Uid};
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

/// Runs `call` as `caller`. Anyone but the owner needs root.
pub fn as_caller<T>(caller: Caller, call: impl FnOnce() -> T) -> T {
    let (id, groups): (u32, &[u32]) = match caller {
        Caller::Owner => return call(),
        Caller::Alice => (1000, &[2000]),
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

/// Makes this thread, and whatever it starts, `id` for good.
pub fn become_user(id: u32) {
    set_thread_groups(&[]).expect("root may set groups");
    set_thread_res_gid(Gid::from_raw(id), Gid::from_raw(id), Gid::from_raw(id)).expect("root may change gid");
    set_thread_res_uid(Uid::from_raw(id), Uid::from_raw(id), Uid::from_raw(id)).expect("root may change uid");
}
