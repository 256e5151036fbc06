//! `uuid=`: the identity that the kernel's overlay shows of a union is kept in the upper.

use std::fs;

use plyfs::overlay::config::Uuid;

use crate::fixture::{Layers, disk_xattr, mark, set_mark};
use crate::need;
use crate::support::is_root;
use crate::vfs::caller;

/// The mark after a mount, and after another with the next word, and so on.
fn after(words: &[Uuid], prepare: impl Fn(&Layers)) -> Vec<Option<Vec<u8>>> {
    let mut layers = Layers::of(&["f = 1"]);
    prepare(&layers);
    words
        .iter()
        .map(|word| {
            layers.config.uuid = *word;
            let u = std::mem::replace(&mut layers, Layers::of(&[""])).open();
            u.overlay.begin().unwrap();
            layers = u.close();
            mark(&layers.upper_path(""), "uuid")
        })
        .collect()
}

#[test]
fn a_new_upper_gets_an_identity_and_keeps_it() {
    for word in [Uuid::On, Uuid::Auto] {
        let found = after(&[word, Uuid::Null, Uuid::Off, Uuid::Auto, Uuid::On], |_| ());
        let first = found[0].clone().expect("an identity");
        // Random, and says so.
        assert_eq!((first.len(), first[6] >> 4, first[8] >> 6), (16, 4, 2), "{word:?}");
        assert!(found.iter().all(|later| later.as_ref() == Some(&first)), "{word:?}");
        assert_ne!(after(&[word], |_| ())[0].as_ref(), Some(&first), "not everybody's");
    }
    for word in [Uuid::Null, Uuid::Off] {
        assert_eq!(after(&[word], |_| ()), [None], "{word:?}");
    }
}

#[test]
fn an_upper_that_was_used_without_gets_one_only_if_asked_for() {
    let used = |layers: &Layers| set_mark(&layers.upper_path(""), "impure", b"y");
    let found = after(&[Uuid::Auto, Uuid::On, Uuid::Auto], used);
    assert_eq!(found[0], None);
    assert!(found[1].is_some() && found[1] == found[2]);
}

#[test]
fn with_uuid_off_marks_name_no_file_system() {
    need!(is_root(), "marks of a handle need privilege here");
    for word in [Uuid::Off, Uuid::Null] {
        let mut layers = Layers::of(&["f = 1"]);
        layers.config.uuid = word;
        let u = layers.open();
        u.append("f", "2").unwrap();
        let origin = mark(&u.layers.upper_path("f"), "origin").unwrap();
        if origin.len() > 21 {
            let named = origin[5..21] != [0; 16];
            assert!(word == Uuid::Null || !named, "{origin:x?}");
        }
        // Still known by it.
        let before = u.stat("f").unwrap().ino;
        assert_eq!(u.reopen().stat("f").unwrap().ino, before, "{word:?}");
    }
}

#[test]
fn callers_do_not_see_it() {
    let u = Layers::of(&["f = 1"]).open();
    u.overlay.begin().unwrap();
    assert_eq!(u.overlay.listxattr(&caller(), u.overlay.root()).unwrap(), b"");
    let upper = u.layers.upper_path("");
    assert!(disk_xattr(&upper, "trusted.overlay.uuid").or(disk_xattr(&upper, "user.overlay.uuid")).is_some());
    drop(u);
    assert!(!fs::exists(&upper).unwrap());
}
