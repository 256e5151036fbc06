//! What the kernel, or a filter of system calls as containers have them, refuses to the server: it goes on without.

#![allow(unsafe_code)]

use std::fs;

use super::daemon::{has_choice, ran};
use super::rings::{can_allow, mount};
use super::support::{Layers, Union, eventually, is_root, names, read, runs, write};
use crate::{need, plyfs_only};

/// Does something in a thread for which, and for all that it starts, a system call is refused (`EPERM`, seccomp(2)).
fn refused<T: Send>(call: libc::c_long, within: impl FnOnce() -> T + Send) -> T {
    let jump = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut filter = [
        // The number of the call is what a filter is given first.
        jump(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, u32::try_from(call).unwrap()),
        jump(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        jump(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let program = std::ptr::from_ref(&program).addr();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: the program is there until this thread has ended, and the kernel copies it.
            let set = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, program) };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            within()
        });
        thread.join().unwrap()
    })
}

/// Layers with some files, and whether a union of them shows and takes what it should.
fn layers() -> Layers {
    let layers = Layers::new(1);
    (0..400).for_each(|n| write(layers.lower(format!("d/{n}")), n.to_string()));
    layers
}

fn works(union: &Union) {
    assert_eq!(names(union.merged("d")).len(), 400);
    (0..400).for_each(|n| assert_eq!(read(union.merged(format!("d/{n}"))), n.to_string()));
    for n in 0..200 {
        fs::rename(union.merged(format!("d/{n}")), union.merged(format!("d/moved-{n}"))).unwrap();
        write(union.merged(format!("d/moved-{n}")), "new");
        assert_eq!(read(union.upper(format!("d/moved-{n}"))), "new");
    }
}

#[test]
fn where_no_thread_may_give_way_nobody_rides_and_all_is_answered() {
    plyfs_only!();
    need!(is_root(), "only root sets a filter for the server and no other");
    need!(has_choice(), "with one processor nobody rides anyway");
    let threads = |union: &Union| ran(union.daemon(), "plyfs-rider");
    let rides = layers().mount();
    assert!(eventually(std::time::Duration::from_secs(10), || threads(&rides).is_some()));
    drop(rides);
    let union = refused(libc::SYS_sched_setscheduler, || layers().mount());
    assert!(eventually(std::time::Duration::from_secs(10), || threads(&union).is_none()));
    works(&union);
    let daemon = union.daemon();
    union.unmount();
    assert!(!runs(daemon));
}

#[test]
fn where_rings_can_be_made_but_not_be_used_requests_are_read_as_ever() {
    plyfs_only!();
    need!(can_allow(), "fuse.enable_uring cannot be set here");
    for call in [libc::SYS_io_uring_enter, libc::SYS_io_uring_setup] {
        let layers = layers();
        let (options, target) = (layers.options(), layers.merged(""));
        let union = refused(call, || mount(layers, &options, &target, "Y"));
        works(&union);
        assert_eq!(ran(union.daemon(), "plyfs-ring"), None);
        let daemon = union.daemon();
        union.unmount();
        assert!(!runs(daemon));
    }
}
