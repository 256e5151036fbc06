//! `redirect_dir`: directories that a lower has are renamed without a copy, and found again by their marks.

use plyfs::errno::Errno;
use plyfs::overlay::Rename::Exchange;
use plyfs::overlay::config::RedirectDir;

use crate::fixture::{Layers, Union, mark, set_mark};

fn redirecting(lowers: &[&str]) -> Layers {
    let mut layers = Layers::of(lowers);
    layers.config.features.redirect_dir = RedirectDir::On;
    layers
}

fn redirect(u: &Union, name: &str) -> Option<String> {
    mark(&u.layers.upper_path(name), "redirect").map(|value| String::from_utf8(value).unwrap())
}

#[test]
fn a_directory_of_a_lower_moves_and_its_files_stay() {
    let u = redirecting(&["d/x = 1\n d/sub/y = 2\n other/"]).open();
    let (dir, file) = (u.at("d").unwrap(), u.at("d/sub/y").unwrap());
    u.rename("d", "e").unwrap();
    u.upper_holds("!d\n e/");
    assert_eq!(redirect(&u, "e").as_deref(), Some("d"));
    u.shows("e/sub/y = 2\n e/x = 1\n other/");
    assert_eq!((u.at("e").unwrap(), u.at("e/sub/y").unwrap()), (dir, file));
    // Into another directory: the name alone would not do any more.
    u.rename("e", "other/f").unwrap();
    assert_eq!(redirect(&u, "other/f").as_deref(), Some("/d"));
    u.shows("other/f/sub/y = 2\n other/f/x = 1");
    u.append("other/f/sub/y", "3").unwrap();
    u.unlink("other/f/x").unwrap();
    u.shows("other/f/sub/y = 23");
    let u = u.reopen();
    u.shows("other/f/sub/y = 23");
    u.upper_holds("!d\n !other/f/x\n other/f/sub/y = 23");
}

#[test]
fn a_directory_that_was_moved_is_removed_only_once_it_is_empty() {
    let u = redirecting(&["d/x = 1\n d/sub/y = 2\n other/"]).open();
    for (from, to) in [("d", "e"), ("e", "other/f")] {
        u.rename(from, to).unwrap();
        assert_eq!(u.rmdir(to), Err(Errno::ENOTEMPTY));
        u.mkdir("new").unwrap();
        assert_eq!(u.rename("new", to), Err(Errno::ENOTEMPTY));
        u.rmdir("new").unwrap();
    }
    u.shows("other/f/sub/y = 2\n other/f/x = 1");
    let u = u.reopen();
    assert_eq!(u.rmdir("other/f"), Err(Errno::ENOTEMPTY));
    u.unlink("other/f/x").unwrap();
    u.unlink("other/f/sub/y").unwrap();
    u.rmdir("other/f/sub").unwrap();
    u.rmdir("other/f").unwrap();
    u.shows("other/");
    u.reopen().shows("other/");
}

#[test]
fn redirects_within_redirected_directories_add_up() {
    let u = redirecting(&["a/b/c/x = 1", "a/b/c/y = 2"]).open();
    u.rename("a", "A").unwrap();
    u.rename("A/b", "A/B").unwrap();
    u.rename("A/B/c", "C").unwrap();
    assert_eq!(redirect(&u, "C").as_deref(), Some("/a/b/c"));
    u.shows("A/B/\n C/x = 1\n C/y = 2");
    let u = u.reopen();
    u.shows("A/B/\n C/x = 1\n C/y = 2");
    u.rename("C", "A/B/c").unwrap();
    u.mkdir("a").unwrap();
    let u = u.reopen();
    u.shows("A/B/c/x = 1\n A/B/c/y = 2\n a/");
}

#[test]
fn a_new_directory_of_the_old_name_is_empty() {
    let u = redirecting(&["d/x = 1"]).open();
    u.rename("d", "e").unwrap();
    u.mkdir("d").unwrap();
    u.create("d/new", "2").unwrap();
    u.shows("d/new = 2\n e/x = 1");
    // Both move on: neither gets what belongs to the other.
    u.rename_how("d", "e", Exchange).unwrap();
    u.shows("d/x = 1\n e/new = 2");
    u.reopen().shows("d/x = 1\n e/new = 2");
}

#[test]
fn two_directories_of_lowers_change_places() {
    let u = redirecting(&["d/x = 1\n p/e/y = 2"]).open();
    u.rename_how("d", "p/e", Exchange).unwrap();
    u.shows("d/y = 2\n p/e/x = 1");
    u.reopen().shows("d/y = 2\n p/e/x = 1");
}

#[test]
fn redirects_of_lower_layers_chain() {
    let layers = redirecting(&["up/", "top/\n mid/k = 0", "mid/x = 1\n low/k = 1", "low/y = 2\n q/r/z = 3"]);
    set_mark(&layers.lower(1, "up"), "redirect", b"top");
    set_mark(&layers.lower(2, "top"), "redirect", b"/mid");
    set_mark(&layers.lower(3, "mid"), "redirect", b"/low");
    let u = layers.open();
    u.shows("low/k = 1\n low/y = 2\n mid/k = 0\n mid/x = 1\n mid/y = 2\n q/r/z = 3\n top/x = 1\n top/y = 2\n up/x = 1\n up/y = 2");
}

#[test]
fn a_redirect_on_the_way_of_an_absolute_one_is_followed() {
    let layers = redirecting(&["mid/", "old/sub/x = 1\n deep/er/sub/y = 2"]).upper("new/");
    set_mark(&layers.lower(1, "mid"), "redirect", b"/deep/er");
    set_mark(&layers.upper_path("new"), "redirect", b"/mid/sub");
    layers.open().shows("deep/er/sub/y = 2\n mid/sub/y = 2\n new/y = 2\n old/sub/x = 1");
}

#[test]
fn an_absolute_redirect_leads_out_of_a_directory_that_no_lower_has() {
    let u = redirecting(&["d/x = 1"]).open();
    u.mkdir("pure").unwrap();
    u.rename("d", "pure/e").unwrap();
    assert_eq!(redirect(&u, "pure/e").as_deref(), Some("/d"));
    let u = u.reopen();
    u.shows("pure/e/x = 1");
    u.rename("pure/e", "pure/f").unwrap();
    u.reopen().shows("pure/f/x = 1");
}

#[test]
fn hostile_redirects_lead_nowhere() {
    let lower = "d/x = 1\n link -> d\n file = 1";
    let table: &[(&[u8], Result<&str, Errno>)] = &[
        (b"", Err(Errno::EINVAL)),
        (b"/", Err(Errno::EINVAL)),
        (b"a/b", Err(Errno::EINVAL)),
        (b"/d/", Err(Errno::EINVAL)),
        (b"//d", Err(Errno::EINVAL)),
        (b"..", Err(Errno::EACCES)),
        (b".", Err(Errno::EACCES)),
        (b"/../d", Err(Errno::EACCES)),
        (b"/d/../d", Err(Errno::EACCES)),
        (b"/link", Ok("q/")),
        (b"link", Ok("q/")),
        (b"/link/x", Ok("q/")),
        (b"file", Ok("q/")),
        (b"/file/x", Ok("q/")),
        (b"/nowhere/at/all", Ok("q/")),
        (b"q", Ok("q/")),
        (b"/d", Ok("q/x = 1")),
        (b"d", Ok("q/x = 1")),
    ];
    for (value, expected) in table {
        let layers = redirecting(&[lower]).upper("q/");
        set_mark(&layers.upper_path("q"), "redirect", value);
        let u = layers.open();
        let text = String::from_utf8_lossy(value).into_owned();
        match expected {
            Err(errno) => assert_eq!(u.at("q"), Err(*errno), "{text}"),
            Ok(shown) => u.shows(&format!("{lower}\n {shown}")),
        }
    }
}

#[test]
fn a_redirect_is_not_followed_where_that_is_forbidden() {
    let mut layers = redirecting(&["d/x = 1"]).upper("q/");
    set_mark(&layers.upper_path("q"), "redirect", b"d");
    layers.config.features.redirect_dir = RedirectDir::NoFollow;
    let u = layers.open();
    assert_eq!(u.at("q"), Err(Errno::EPERM));
    assert_eq!(u.rename("d", "e"), Err(Errno::EXDEV));
    u.at("d/x").unwrap();
}

#[test]
fn follow_reads_redirects_and_writes_none() {
    let mut layers = redirecting(&["d/x = 1"]).upper("q/");
    set_mark(&layers.upper_path("q"), "redirect", b"d");
    layers.config.features.redirect_dir = RedirectDir::Follow;
    let u = layers.open();
    u.shows("d/x = 1\n q/x = 1");
    assert_eq!(u.rename("q", "e"), Err(Errno::EXDEV));
}

#[test]
fn where_the_path_is_too_long_for_a_mark_nothing_moves() {
    let long = "n".repeat(100);
    let u = redirecting(&[&format!("{long}/{long}/{long}/d/x = 1")]).open();
    let deep = format!("{long}/{long}/{long}");
    assert_eq!(u.rename(format!("{deep}/d"), "moved"), Err(Errno::EXDEV));
    u.rename(format!("{deep}/d"), format!("{deep}/e")).unwrap();
    u.shows(&format!("{deep}/e/x = 1"));
}

#[test]
fn a_moved_directory_is_removed_with_what_it_hides() {
    let u = redirecting(&["d/x = 1\n e/x = 2"]).open();
    u.rename("d", "f").unwrap();
    u.unlink("f/x").unwrap();
    u.rmdir("f").unwrap();
    u.upper_holds("!d");
    u.rename("e", "d").unwrap();
    u.shows("d/x = 2");
    let u = u.reopen();
    u.unlink("d/x").unwrap();
    u.rmdir("d").unwrap();
    u.upper_holds("!d\n !e");
}

#[test]
fn a_directory_of_a_lower_replaces_an_empty_one() {
    let u = redirecting(&["d/x = 1\n e/y = 2\n e/z/"]).open();
    u.unlink("e/y").unwrap();
    assert_eq!(u.rename("d", "e"), Err(Errno::ENOTEMPTY));
    u.rmdir("e/z").unwrap();
    u.rename("d", "e").unwrap();
    u.shows("e/x = 1");
    u.reopen().shows("e/x = 1");
}

#[test]
fn what_cannot_replace_a_directory_with_names_in_it_is_not_copied_up() {
    let u = redirecting(&["d/from/sub/x = 1\n d/to/in = 2\n d/bare/\n file = 3"]).open();
    assert_eq!(u.rename("d/from", "d/to"), Err(Errno::ENOTEMPTY));
    u.upper_holds("");
    // Nor where the upper has the parents already.
    u.mkdir("d/new").unwrap();
    assert_eq!(u.rename("d/from", "d/to"), Err(Errno::ENOTEMPTY));
    u.upper_holds("d/new/ opaque");
    u.shows("d/bare/\n d/from/sub/x = 1\n d/new/\n d/to/in = 2\n file = 3");
    u.rename("d/from", "d/bare").unwrap();
    u.shows("d/bare/sub/x = 1\n d/new/\n d/to/in = 2\n file = 3");
}
