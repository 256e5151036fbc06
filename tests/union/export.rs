//! `nfs_export=on`: every copy has an entry in the index, and objects are found again by their numbers.

use std::fs;
use std::os::unix::fs::MetadataExt;

use plyfs::errno::Errno;
use plyfs::overlay::config::RedirectDir;
use plyfs::overlay::{ROOT_ID, Rename};
use plyfs::sys::faults::{self, Fault};

use crate::fixture::{Layers, Union, mark, set_mark, whiteout};
use crate::need;
use crate::support::is_root;

fn exporting(lowers: &[&str]) -> Layers {
    let mut layers = Layers::of(lowers);
    layers.config.features.index = true;
    layers.config.features.nfs_export = true;
    layers
}

/// How many directories, whiteouts and other objects the index has.
fn entries(layers: &Layers) -> (usize, usize, usize) {
    let mut counts = (0, 0, 0);
    for entry in fs::read_dir(layers.root().join("work/index")).unwrap() {
        let kind = entry.unwrap().path().symlink_metadata().unwrap();
        match kind.mode() & libc::S_IFMT {
            libc::S_IFDIR => counts.0 += 1,
            libc::S_IFCHR => counts.1 += 1,
            _ => counts.2 += 1,
        }
    }
    counts
}

#[test]
fn every_copy_has_an_entry_and_what_is_removed_a_whiteout() {
    let u = exporting(&["d/f = 1\n d/g = 2\n e/x = 3\n gone = 4\n h/"]).open();
    u.append("d/f", "+").unwrap();
    assert_eq!(entries(&u.layers), (1, 0, 1));
    assert_eq!(fs::metadata(u.upper_path("d/f")).unwrap().nlink(), 2);
    assert_eq!(u.stat("d/f").unwrap().nlink, 1);
    u.unlink("gone").unwrap();
    assert_eq!(entries(&u.layers), (1, 1, 1));
    u.rmdir("h").unwrap();
    assert_eq!(entries(&u.layers), (1, 2, 1));
    u.create("own", "").unwrap();
    u.unlink("own").unwrap();
    u.rename("d/g", "moved").unwrap();
    assert_eq!(entries(&u.layers), (1, 2, 2));
    // What is refused copies nothing up.
    assert_eq!(u.rename_unchecked("d", "e", Rename::Replace), Err(Errno::EXDEV));
    assert_eq!(entries(&u.layers), (1, 2, 2));
    let u = u.reopen();
    assert_eq!(entries(&u.layers), (1, 2, 2));
    assert_eq!(u.stat("d/f").unwrap().nlink, 1);
    u.shows("d/f = 1+\n e/x = 3\n moved = 2");
    u.unlink("d/f").unwrap();
    u.rmdir("d").unwrap();
    assert_eq!(entries(&u.layers), (0, 4, 1));
}

#[test]
fn a_directory_that_is_replaced_leaves_a_whiteout() {
    let u = exporting(&["d/\n e/"]).open();
    u.mkdir("new").unwrap();
    u.rename("new", "d").unwrap();
    assert_eq!(entries(&u.layers), (0, 1, 0));
    u.mkdir("e/in").unwrap();
    u.rmdir("e/in").unwrap();
    assert_eq!(entries(&u.layers), (1, 1, 0));
    u.rename("d", "e").unwrap();
    assert_eq!(entries(&u.layers), (0, 2, 0));
    u.reopen().shows("e/");
}

#[test]
fn entries_that_lead_nowhere_are_found_at_a_mount() {
    need!(is_root(), "only root can open by handles");
    let u = exporting(&["d/f = 1\n e/f = 1\n g/f = 1\n h/f = 1"]).open();
    for dir in ["d", "e", "g", "h"] {
        u.chmod(dir, 0o700).unwrap();
    }
    let layers = u.close();
    assert_eq!(entries(&layers), (4, 0, 0));
    // One is removed offline, another is made the copy of something else, a third's entry loses its mark.
    fs::remove_dir(layers.upper_path("d")).unwrap();
    set_mark(&layers.upper_path("e"), "origin", &mark(&layers.upper_path("g"), "origin").unwrap());
    let of_h = mark(&layers.upper_path("h"), "origin").unwrap();
    let name: String = of_h.iter().map(|byte| format!("{byte:02x}")).collect();
    let entry = layers.root().join("work/index").join(name);
    rustix::fs::removexattr(&entry, "trusted.overlay.upper").unwrap();
    fs::write(layers.root().join("work/index/#7"), "").unwrap();
    let u = layers.open();
    assert_eq!(entries(&u.layers), (1, 1, 0));
    // The entry of what was removed says that there is none.
    assert_eq!(u.at("d"), Err(Errno::EIO));
    // The upper directory is another's copy: the lower one of its name is no part of it.
    assert_eq!(
        (u.list("e").len(), u.read("g/f").unwrap(), u.read("h/f").unwrap()),
        (0, "1".to_owned(), "1".to_owned())
    );
}

fn again(u: &Union, id: u64) -> Result<u64, Errno> {
    u.overlay.lookup_self(id).map(|entry| entry.attr.ino)
}

#[test]
fn what_is_forgotten_is_found_by_its_number_while_it_has_a_name() {
    let u = exporting(&["d/f = 1\n g = 2"]).open();
    let (id, ino) = (u.at("d/f").unwrap(), u.stat("d/f").unwrap().ino);
    u.forget_all();
    assert_eq!(again(&u, id), Ok(ino));
    let above = u.overlay.lookup_parent(id).unwrap();
    assert_eq!(above.attr.ino, u.stat("d").unwrap().ino);
    assert_eq!(u.overlay.lookup_parent(above.id).unwrap().id, ROOT_ID);
    u.append("d/f", "+").unwrap();
    u.rename("d/f", "moved").unwrap();
    u.forget_all();
    assert_eq!(again(&u, id), Ok(ino));
    u.unlink("moved").unwrap();
    assert_eq!((again(&u, id), again(&u, 77)), (Err(Errno::ESTALE), Err(Errno::ESTALE)));
    // Without a name, it is not kept for ever.
    let of_g = u.at("g").unwrap();
    u.forget_all();
    u.unlink("g").unwrap();
    assert_eq!(again(&u, of_g), Err(Errno::ESTALE));
    let u = u.reopen();
    assert_eq!(again(&u, id), Err(Errno::ESTALE));
}

#[test]
fn a_later_mount_searches_once_for_what_it_has_not_met() {
    let u = exporting(&["d/f = 1\n d/g = 2\n e/f = 3", "d/h = 4\n e/f = 5"]).open();
    u.create("e/new", "").unwrap();
    u.append("d/g", "+").unwrap();
    let ids = ["d/f", "d/g", "e/f", "d/h", "e/new", "d", "e"].map(|name| (name, u.at(name).unwrap()));
    u.rename("d/f", "e/moved").unwrap();
    u.unlink("d/h").unwrap();
    let u = u.reopen();
    for (name, id) in ids {
        match name {
            "d/h" => assert_eq!(again(&u, id), Err(Errno::ESTALE)),
            "d/f" => assert_eq!((again(&u, id), u.at("e/moved")), (Ok(u.stat("e/moved").unwrap().ino), Ok(id))),
            name => assert_eq!((again(&u, id), u.at(name)), (Ok(u.stat(name).unwrap().ino), Ok(id)), "{name}"),
        }
    }
    assert_eq!(again(&u, u.overlay.lookup_parent(ids[4].1).unwrap().id), Ok(u.stat("e").unwrap().ino));
    // Nothing is left to be found: nobody looks.
    faults::arm(0, Fault::Frozen);
    let searched = again(&u, ids[3].1);
    assert_eq!((searched, faults::disarm().len()), (Err(Errno::ESTALE), 0));
    u.forget_all();
}

#[test]
fn what_an_entry_of_the_index_does_not_fit_is_refused() {
    // As the kernel's overlay answers: a removed object that shows again, a copied directory that shows without its copy,
    // and one that shows twice.
    let copied = || {
        let mut layers = exporting(&["d/f = 1\n x = 2"]);
        layers.config.features.redirect_dir = RedirectDir::On;
        let u = layers.open();
        u.create("d/new", "").unwrap();
        u.close()
    };
    let only_entry = |layers: &Layers| {
        let entries = fs::read_dir(layers.root().join("work/index")).unwrap();
        let entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(entries.len(), 1);
        entries[0].clone()
    };
    for with_copy in [true, false] {
        let layers = copied();
        let entry = only_entry(&layers);
        fs::remove_dir(&entry).unwrap();
        whiteout(&entry);
        if !with_copy {
            fs::remove_dir_all(layers.upper_path("d")).unwrap();
        }
        let u = layers.open();
        assert_eq!(u.at("d"), Err(Errno::EIO));
        assert_eq!(u.read("x").unwrap(), "2");
    }
    let moved = || {
        let u = copied().open();
        u.rename("d", "moved").unwrap();
        u.close()
    };
    let layers = moved();
    fs::remove_file(layers.upper_path("d")).unwrap();
    let u = layers.open();
    assert_eq!((u.at("d"), u.read("moved/f").unwrap()), (Err(Errno::EIO), "1".to_owned()));
    let layers = moved();
    fs::create_dir(layers.upper_path("twice")).unwrap();
    for name in ["origin", "redirect"] {
        set_mark(&layers.upper_path("twice"), name, &mark(&layers.upper_path("moved"), name).unwrap());
    }
    let u = layers.open();
    assert_eq!((u.at("twice"), u.read("moved/f").unwrap()), (Err(Errno::EIO), "1".to_owned()));
}

#[test]
fn a_whiteout_in_the_index_refuses_a_lower_file_that_shows_again() {
    let u = exporting(&["x = 1"]).open();
    u.unlink("x").unwrap();
    let layers = u.close();
    fs::remove_file(layers.upper_path("x")).unwrap();
    assert_eq!(layers.open().at("x"), Err(Errno::EIO));
}

#[test]
fn a_redirect_leads_to_the_directory_that_was_copied_up_and_to_no_other() {
    for exports in [true, false] {
        let mut layers = exporting(&["d/f = 1"]);
        layers.config.features.nfs_export = exports;
        layers.config.features.redirect_dir = RedirectDir::On;
        let u = layers.open();
        u.rename("d", "moved").unwrap();
        let layers = u.close();
        fs::rename(layers.lower(1, "d"), layers.lower(1, "old")).unwrap();
        fs::create_dir(layers.lower(1, "d")).unwrap();
        fs::write(layers.lower(1, "d/other"), "").unwrap();
        let shown = if exports { vec![] } else { vec!["other".to_owned()] };
        assert_eq!(layers.open().list("moved"), shown);
    }
}

#[test]
fn a_copied_file_shows_whatever_became_of_its_entry() {
    let u = exporting(&["x = 1"]).open();
    u.append("x", "2").unwrap();
    let layers = u.close();
    let entry = fs::read_dir(layers.root().join("work/index")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&entry).unwrap();
    whiteout(&entry);
    assert_eq!(layers.open().read("x").unwrap(), "12");
}

#[test]
fn what_took_a_removed_files_name_can_be_removed() {
    let u = exporting(&["a = 1\n b = 2\n c/"]).open();
    u.rename("a", "b").unwrap();
    u.unlink("b").unwrap();
    u.rename("c", "d").unwrap_err();
    u.reopen().shows("c/");
}
