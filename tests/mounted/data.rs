//! Reading and writing: every way to do it reaches the file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::support::*;
use crate::{need, plyfs_only};

#[test]
fn appending_from_two_descriptors_loses_nothing() {
    let layers = Layers::new(1);
    write(layers.lower("log"), "start\n");
    let union = layers.mount();
    let mut one = OpenOptions::new().append(true).open(union.merged("log")).unwrap();
    let mut two = OpenOptions::new().append(true).open(union.merged("log")).unwrap();
    for _ in 0..100 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    assert_eq!(read(union.merged("log")), "start\n".to_owned() + &"one\ntwo\n".repeat(100));
}

#[test]
fn direct_io() {
    let layers = Layers::new(1);
    write(layers.lower("file"), vec![b'l'; 8192]);
    let union = layers.mount();
    let supported = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(union.lower("file")).is_ok();
    need!(supported, "the file system below has no O_DIRECT");
    let script = "dd if=/dev/zero of=merged/file bs=4096 count=1 oflag=direct conv=notrunc,fsync status=none
        dd if=merged/file bs=4096 iflag=direct status=none | cmp - upper/file && stat -c %s upper/file";
    assert_eq!(sh(union.root(), script), "8192\n");
    let upper = fs::read(union.upper("file")).unwrap();
    assert_eq!((upper[4095], upper[4096]), (0, b'l'));
}

#[test]
fn holes_are_punched_and_zeros_written() {
    let layers = Layers::new(1);
    write(layers.lower("file"), vec![b'x'; 1 << 20]);
    let union = layers.mount();
    let file = open(union.merged("file"));
    let punched = rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 512 << 10);
    need!(punched != Err(rustix::io::Errno::OPNOTSUPP), "the file system below punches no holes");
    punched.unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 1 << 20, 1 << 20).unwrap();
    let data = fs::read(union.merged("file")).unwrap();
    assert_eq!(data.len(), 2 << 20);
    assert!(data[..4096].iter().all(|&byte| byte == b'x') && data[4096..4096 + (512 << 10)].iter().all(|&b| b == 0));
    assert_eq!(fs::read(union.upper("file")).unwrap(), data);
}

#[test]
fn copying_between_files_of_the_mount() {
    let layers = Layers::new(1);
    write(layers.lower("from"), "0123456789");
    write(layers.lower("to"), "..........");
    let union = layers.mount();
    let (from, to) = (fs::File::open(union.merged("from")).unwrap(), open(union.merged("to")));
    let (mut start, mut end) = (2, 4);
    let copied = rustix::fs::copy_file_range(&from, Some(&mut start), &to, Some(&mut end), 5).unwrap();
    assert_eq!(copied, 5);
    assert_eq!(read(union.merged("to")), "....23456.");
    assert_eq!(read(union.lower("to")), "..........");
}

#[test]
fn programs_run_from_the_mount() {
    let layers = Layers::new(1);
    fs::copy("/bin/true", layers.lower("true")).unwrap();
    let union = layers.mount();
    assert!(Command::new(union.merged("true")).status().unwrap().success());
    chmod(union.merged("true"), 0o755);
    assert!(Command::new(union.merged("true")).status().unwrap().success());
    write(union.merged("script"), "#!/bin/sh\necho ran\n");
    chmod(union.merged("script"), 0o755);
    assert_eq!(run(union.merged("script").to_str().unwrap(), &[]), "ran\n");
    chmod(union.merged("script"), 0o644);
    assert!(Command::new(union.merged("script")).status().is_err());
}

#[test]
fn flock_keeps_others_out() {
    let layers = Layers::new(1);
    write(layers.lower("file"), "");
    let union = layers.mount();
    let (one, two) = (open(union.merged("file")), open(union.merged("file")));
    rustix::fs::flock(&one, FlockOperation::LockExclusive).unwrap();
    let refused = rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(rustix::io::Errno::WOULDBLOCK));
    drop(one);
    rustix::fs::flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn fcntl_locks_keep_others_out() {
    need!(have("python3"), "no python3");
    let layers = Layers::new(1);
    write(layers.lower("file"), "");
    let union = layers.mount();
    let file = open(union.merged("file"));
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    let try_it = "import fcntl\nf = open('merged/file', 'r+')\ntry: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('locked')
except OSError: print('refused')";
    let other = || {
        let output = Command::new("python3").args(["-c", try_it]).current_dir(union.root()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(other(), "refused\n");
    rustix::fs::fcntl_lock(&file, FlockOperation::Unlock).unwrap();
    assert_eq!(other(), "locked\n");
}

#[test]
fn statfs_is_the_upper_s() {
    let layers = Layers::new(1);
    let union = layers.mount();
    let (merged, upper) =
        (rustix::fs::statvfs(union.merged("")).unwrap(), rustix::fs::statvfs(union.upper("")).unwrap());
    assert_eq!((merged.f_bsize, merged.f_blocks, merged.f_files), (upper.f_bsize, upper.f_blocks, upper.f_files));
    assert_eq!(merged.f_namemax, upper.f_namemax);
}

#[test]
fn times_are_set_to_the_nanosecond() {
    let layers = Layers::new(1);
    write(layers.lower("file"), "");
    let union = layers.mount();
    sh(union.root(), "touch -m -d @1234567890.123456789 merged/file; touch -a -d @987654321.987654321 merged/file");
    for path in [union.merged("file"), union.upper("file")] {
        let found = fs::metadata(path).unwrap();
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_234_567_890, 123_456_789));
        assert_eq!((found.atime(), found.atime_nsec()), (987_654_321, 987_654_321));
    }
}

#[test]
fn writing_moves_mtime_and_ctime() {
    let layers = Layers::new(1);
    write(layers.lower("file"), "");
    sh(layers.root(), "touch -d @1000000000 l1/file l1");
    let union = layers.mount();
    append(union.merged("file"), "x");
    let found = fs::metadata(union.merged("file")).unwrap();
    assert!(found.mtime() > 1_000_000_000 && found.ctime() > 1_000_000_000);
    assert_eq!(fs::metadata(union.merged("")).unwrap().mtime(), fs::metadata(union.upper("")).unwrap().mtime());
}

#[test]
fn many_small_writes_after_a_copy_up_are_not_misplaced() {
    // fuse-overlayfs issue 475: databases came out corrupt.
    let layers = Layers::new(1);
    let mut model: Vec<u8> = (0..2 << 20).map(|i: u32| (i * 31 % 253) as u8).collect();
    write(layers.lower("db"), &model);
    let union = layers.mount();
    let file = open(union.merged("db"));
    let mut state = 12345u64;
    for i in 0..3000u32 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let page = (state >> 33) as usize % 512 * 4096;
        let data = [(i % 256) as u8; 4096];
        rustix::io::pwrite(&file, &data, page as u64).unwrap();
        model[page..page + 4096].copy_from_slice(&data);
        if i % 500 == 0 {
            file.sync_data().unwrap();
        }
    }
    drop(file);
    assert!(fs::read(union.merged("db")).unwrap() == model);
    let layers = union.unmount();
    assert!(fs::read(layers.upper("db")).unwrap() == model);
}

#[test]
fn sqlite_works_on_a_database_that_is_copied_up() {
    need!(have("sqlite3"), "no sqlite3");
    let layers = Layers::new(1);
    let fill = "create table t(n integer primary key, s text);
        insert into t select value, hex(randomblob(100)) from generate_series(1, 5000);";
    sh(layers.root(), &format!("sqlite3 l1/db \"{fill}\""));
    let union = layers.mount();
    let change = "pragma journal_mode=wal; update t set s = 'x' || n where n % 3 = 0; delete from t where n % 7 = 0;
        insert into t select value, 'new' from generate_series(6001, 7000);";
    sh(union.root(), &format!("sqlite3 merged/db \"{change}\" && sqlite3 merged/db \"vacuum\""));
    let check = "pragma integrity_check; select count(*) from t; select count(*) from t where s = 'new'";
    assert_eq!(sh(union.root(), &format!("sqlite3 merged/db \"{check}\"")), "ok\n5286\n1000\n");
    let layers = union.unmount();
    assert_eq!(sh(layers.root(), &format!("sqlite3 upper/db \"{check}\"")), "ok\n5286\n1000\n");
    assert_eq!(sh(layers.root(), "sqlite3 l1/db 'select count(*) from t'"), "5000\n");
}

/// The kernel keeps sizes and times then, and sends the times with each change of names.
#[test]
fn gathered_writes_arrive_with_their_times() {
    plyfs_only!();
    let layers = Layers::new(1);
    write(layers.lower("file"), "lower\n");
    write(layers.lower("gone"), "lower\n");
    let (options, target) = (layers.options(), layers.merged(""));
    let union = layers.mount_with(&format!("{options},writeback=1"), &target);
    sh(
        union.root(),
        "cd merged
        for i in $(seq 500); do echo line $i; done >> file
        [ \"$(wc -l < ../upper/file)\" = 501 ]
        touch -d @1000000000.5 file; mv file moved; ln moved linked; chmod 640 linked
        [ \"$(stat -c %.1Y:%a ../upper/moved)\" = 1000000000.5:640 ]
        exec 3< gone; rm gone; [ \"$(cat <&3)\" = lower ]; exec 3<&-
        [ \"$(stat -c %F ../upper/gone)\" = 'character special file' ]
        exec 4> new; echo one >&4; sleep 1.1; echo two >&4; exec 4>&-
        [ \"$(stat -c %Y new)\" = \"$(stat -c %Y ../upper/new)\" ]; [ \"$(cat ../upper/new | tr '\\n' ' ')\" = 'one two ' ]",
    );
    drop(union.unmount());
}

#[test]
fn a_file_that_shrinks_under_its_readers_takes_nothing_down() {
    const SIZE: usize = 2 << 20;
    let layers = Layers::new(1);
    write(layers.lower("file"), vec![b'x'; SIZE]);
    let union = layers.mount();
    let (lower, merged) = (union.lower("file"), union.merged("file"));
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Behind the mount, in the middle of replies.
            let file = OpenOptions::new().write(true).open(&lower).unwrap();
            for size in (0..200).map(|n| n * 7919 % SIZE as u64) {
                file.set_len(size).unwrap();
                file.set_len(SIZE as u64).unwrap();
            }
            fs::write(&lower, vec![b'y'; SIZE]).unwrap();
            over.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !over.load(std::sync::atomic::Ordering::SeqCst) {
            let file = fs::File::open(&merged).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let data = fs::read(&merged).unwrap();
            assert!(data.iter().all(|byte| matches!(byte, b'x' | b'y' | 0)));
        }
    });
    let shows = || fs::read(&merged).unwrap() == vec![b'y'; SIZE];
    assert!(eventually(Duration::from_secs(10), shows));
}
