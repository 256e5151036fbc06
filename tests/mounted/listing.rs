//! Listings: merged, exact, and steady while names come and go.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};

use crate::support::*;

#[test]
fn each_name_is_listed_once_with_its_inode_number() {
    let layers = Layers::new(3);
    for layer in 1..=3 {
        for i in 0..50 {
            write(layers.layer(layer, format!("dir/{}", layer * 25 + i)), "");
        }
    }
    write(layers.upper("dir/30"), "upper");
    let union = layers.mount();
    append(union.merged("dir/60"), "x");
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(union.merged("dir")).unwrap() {
        let entry = entry.unwrap();
        let found = entry.path().symlink_metadata().unwrap();
        assert_eq!(entry.ino(), found.ino(), "{:?}", entry.file_name());
        assert_eq!(entry.file_type().unwrap(), found.file_type());
        assert!(seen.insert(entry.file_name()), "{:?} twice", entry.file_name());
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn dot_and_dot_dot_are_listed() {
    let layers = Layers::new(1);
    write(layers.lower("dir/file"), "");
    let union = layers.mount();
    assert_eq!(sh(union.root(), "ls -a merged/dir | sort"), ".\n..\nfile\n");
    let dots = sh(union.root(), "cd merged/dir; ls -1aid . ..; stat -c %i . ..").lines().count();
    assert_eq!(dots, 4);
}

#[test]
fn a_tree_of_both_layers_is_removed_while_it_is_listed() {
    let layers = Layers::new(1);
    for i in 0..3000 {
        write(layers.lower(format!("tree/{}/{i}", i % 7)), "");
        write(layers.upper(format!("tree/{}/u{i}", i % 7)), "");
    }
    let union = layers.mount();
    fs::remove_dir_all(union.merged("tree")).unwrap();
    assert!(names(union.merged("")).is_empty());
}

#[test]
fn two_readers_see_every_name_that_stays() {
    let layers = Layers::new(1);
    let stays: Vec<String> = (0..2000).map(|i| format!("stays{i:04}")).collect();
    for name in &stays {
        write(layers.lower(name), "");
    }
    let union = layers.mount();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let listed: Vec<_> =
                        names(union.merged("")).into_iter().filter(|name| name.starts_with("stays")).collect();
                    assert_eq!(listed, stays);
                }
            });
        }
        for i in 0..1000 {
            write(union.merged(format!("comes{i}")), "");
            if i > 0 {
                fs::remove_file(union.merged(format!("comes{}", i - 1))).unwrap();
            }
        }
    });
}

#[test]
fn a_listing_begun_before_a_removal_goes_on_after_it() {
    let layers = Layers::new(1);
    for i in 0..3000 {
        write(layers.lower(format!("{i:04}")), "");
    }
    let union = layers.mount();
    let mut listing = fs::read_dir(union.merged("")).unwrap();
    let first: Vec<_> = listing.by_ref().take(10).map(|entry| entry.unwrap().file_name()).collect();
    for name in &first {
        fs::remove_file(union.merged(name)).unwrap();
    }
    let rest: BTreeSet<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rest.len(), 3000 - first.len());
    assert!(first.iter().all(|name| !rest.contains(name)), "a removed name came again");
}

#[test]
fn link_counts_of_directories_and_files() {
    let layers = Layers::new(2);
    write(layers.layer(1, "dir/a/x"), "");
    write(layers.layer(2, "dir/b/x"), "");
    fs::create_dir(layers.layer(2, "pure")).unwrap();
    let union = layers.mount();
    // The kernel says 1 for merged directories: their subdirectories are not counted.
    assert_eq!(fs::metadata(union.merged("dir")).unwrap().nlink(), 1);
    assert_eq!(fs::metadata(union.merged("dir/a/x")).unwrap().nlink(), 1);
}

#[test]
fn whoever_reads_a_directory_first_and_looks_then_sees_what_is_there() {
    use std::os::unix::fs::{DirEntryExt, MetadataExt};
    let layers = Layers::new(1);
    for dir in 0..6 {
        for file in 0..700 {
            let path = layers.lower(format!("d{dir}/f{file}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; file]).unwrap();
        }
        fs::create_dir(layers.lower(format!("d{dir}/sub"))).unwrap();
    }
    let union = layers.mount();
    for dir in 0..6 {
        let dir = union.merged(format!("d{dir}"));
        let entries: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(entries.len(), 701);
        for entry in entries {
            let (stat, name) = (fs::symlink_metadata(entry.path()).unwrap(), entry.file_name());
            assert_eq!((entry.ino(), entry.file_type().unwrap()), (stat.ino(), stat.file_type()), "{name:?}");
            if let Some(number) = name.to_str().unwrap().strip_prefix('f') {
                assert_eq!(stat.len().to_string(), number);
            }
        }
        // What was listed a page at a time is changed and listed again.
        fs::remove_file(dir.join("f3")).unwrap();
        fs::write(dir.join("new"), "").unwrap();
        let again = names(&dir);
        assert_eq!(again.len(), 701);
        assert!(again.contains(&"new".into()) && !again.contains(&"f3".into()));
    }
}
