//! `cargo bench --bench core`: the union core without FUSE, as a library, on layers in a temporary directory.
//!
//! What a request costs before the kernel's part of it: looking names up by depth and by number of layers, merging
//! listings, copying files up by size. The layers are in the page cache. `cargo bench --bench compare` measures whole mounts.

use std::ffi::OsStr;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use plyfs::errno::Errno;
use plyfs::overlay::config::{Config, Upper};
use plyfs::overlay::{Caller, Dirent, Entry, NodeId, Overlay, Privileges, Room, SetAttr};
use plyfs::sys::SetTime;
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1, umask: 0o022 };

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    resolve_by_depth(&mut criterion, place.path())?;
    resolve_by_layers(&mut criterion, place.path())?;
    merged_listing(&mut criterion, place.path())?;
    copy_up(&mut criterion, place.path())?;
    criterion.final_summary();
    Ok(())
}

/// A union of read-only layers.
fn union(lowers: Vec<PathBuf>) -> Result<Overlay> {
    Ok(Overlay::new(&Config { lowers, ..Config::default() }).map_err(|error| error.to_string())?)
}

/// Walks a path down from the root and lets go of all it met, as the kernel does for a name that it does not know yet.
fn look_up(overlay: &Overlay, names: &[String]) -> std::result::Result<(), Errno> {
    let mut met: Vec<NodeId> = Vec::with_capacity(names.len());
    let mut result = Ok(());
    for name in names {
        let parent = met.last().copied().unwrap_or(overlay.root());
        match overlay.lookup(&CALLER, parent, OsStr::new(name)) {
            Ok(entry) => met.push(entry.id),
            Err(errno) => {
                result = Err(errno);
                break;
            }
        }
    }
    for id in met.into_iter().rev() {
        overlay.forget(id, 1);
    }
    result
}

/// A file below 1 to 64 directories that three layers share.
fn resolve_by_depth(criterion: &mut Criterion, place: &Path) -> Result<()> {
    let mut group = criterion.benchmark_group("resolve/depth");
    for depth in [1_usize, 4, 16, 64] {
        let base = place.join(format!("depth{depth}"));
        let mut names: Vec<String> = (0..depth).map(|n| format!("directory{n}")).collect();
        let lowers: Vec<PathBuf> = (0..3).map(|n| base.join(n.to_string())).collect();
        for lower in &lowers {
            fs::create_dir_all(lower.join(names.join("/")))?;
        }
        names.push("file".into());
        fs::write(base.join("2").join(names.join("/")), "x")?;
        let overlay = union(lowers)?;
        look_up(&overlay, &names).map_err(|errno| format!("{errno:?}"))?;
        group.throughput(Throughput::Elements(names.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(depth), |bench| {
            bench.iter(|| black_box(look_up(&overlay, &names)));
        });
    }
    group.finish();
    Ok(())
}

/// A name in the lowest of 1 to 500 layers that all have its directory, and a name that none has.
fn resolve_by_layers(criterion: &mut Criterion, place: &Path) -> Result<()> {
    let mut group = criterion.benchmark_group("resolve/layers");
    for count in [1_usize, 10, 50, 128, 500] {
        let base = place.join(format!("layers{count}"));
        let lowers: Vec<PathBuf> = (0..count).map(|n| base.join(n.to_string())).collect();
        for lower in &lowers {
            fs::create_dir_all(lower.join("shared"))?;
        }
        fs::write(base.join((count - 1).to_string()).join("shared/file"), "x")?;
        let overlay = union(lowers)?;
        let directory = overlay.lookup(&CALLER, overlay.root(), OsStr::new("shared")).map_err(|e| format!("{e:?}"))?;
        let look = |name: &str| {
            let found = overlay.lookup(&CALLER, directory.id, OsStr::new(name));
            if let Ok(Entry { id, .. }) = &found {
                overlay.forget(*id, 1);
            }
            found.is_ok()
        };
        if !look("file") || look("missing") {
            return Err("the layers are not as they were made".into());
        }
        group.bench_function(BenchmarkId::new("lowest", count), |bench| bench.iter(|| black_box(look("file"))));
        group.bench_function(BenchmarkId::new("missing", count), |bench| bench.iter(|| black_box(look("missing"))));
    }
    group.finish();
    Ok(())
}

/// Names only, of a directory that three layers have: a third of the names each, and a few in all.
fn merged_listing(criterion: &mut Criterion, place: &Path) -> Result<()> {
    let mut group = criterion.benchmark_group("listing");
    group.sample_size(10);
    for count in [10_usize, 100, 1_000, 10_000, 100_000] {
        let base = place.join(format!("listing{count}"));
        let lowers: Vec<PathBuf> = (0..3).map(|n| base.join(n.to_string())).collect();
        for lower in &lowers {
            fs::create_dir_all(lower)?;
        }
        for n in 0..count {
            let owners = if n % 10 == 0 { 0..3 } else { n % 3..n % 3 + 1 };
            for lower in &lowers[owners] {
                fs::write(lower.join(format!("a-name-of-usual-length-{n}")), "")?;
            }
        }
        let overlay = union(lowers)?;
        let list = || {
            let mut seen = 0;
            let mut each = |_: &Dirent<'_>| {
                seen += 1;
                Room::Taken
            };
            overlay.readdir(overlay.root(), 0, &mut each).map(|()| seen)
        };
        if list().map_err(|errno| format!("{errno:?}"))? != count + 2 {
            return Err("a listing is not complete".into());
        }
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bench| bench.iter(|| black_box(list())));
        fs::remove_dir_all(base)?;
    }
    group.finish();
    Ok(())
}

/// A union with one lower file, which is looked up already.
struct Fresh {
    // Dropped first, so that the union lets go of its directories before they are removed.
    overlay: Overlay,
    file: NodeId,
    _place: TempDir,
}

fn fresh(place: &Path, lower: &Path) -> Result<Fresh> {
    let own = tempfile::tempdir_in(place)?;
    let upper = Upper { dir: own.path().join("upper"), work: own.path().join("work") };
    fs::create_dir(&upper.dir)?;
    fs::create_dir(&upper.work)?;
    let config = Config { lowers: vec![lower.to_owned()], upper: Some(upper), ..Config::default() };
    let overlay = Overlay::new(&config).map_err(|error| error.to_string())?;
    let file = overlay.lookup(&CALLER, overlay.root(), OsStr::new("file")).map_err(|errno| format!("{errno:?}"))?.id;
    Ok(Fresh { overlay, file, _place: own })
}

/// A change of mode, which copies all data up and syncs it, as the kernel's overlay does.
fn copy_up(criterion: &mut Criterion, place: &Path) -> Result<()> {
    let mode = SetAttr {
        mode: Some(0o600),
        uid: None,
        gid: None,
        size: None,
        atime: SetTime::Omit,
        mtime: SetTime::Omit,
        privileges: Privileges::Keep,
        from_cache: false,
    };
    let mut group = criterion.benchmark_group("copy_up");
    group.sample_size(10);
    for size in [0_u64, 4 << 10, 1 << 20, 16 << 20, 128 << 20] {
        let lower = place.join(format!("copy{size}"));
        fs::create_dir(&lower)?;
        fs::write(lower.join("file"), vec![b'x'; size as usize])?;
        let one = fresh(place, &lower)?;
        one.overlay.setattr(&CALLER, one.file, &mode).map_err(|errno| format!("{errno:?}"))?;
        drop(one);
        if size > 0 {
            group.throughput(Throughput::Bytes(size));
        }
        group.bench_function(BenchmarkId::from_parameter(size), |bench| {
            bench.iter_batched(
                || fresh(place, &lower),
                |fresh| {
                    if let Ok(fresh) = &fresh {
                        black_box(fresh.overlay.setattr(&CALLER, fresh.file, &mode).is_ok());
                    }
                    fresh
                },
                BatchSize::PerIteration,
            );
        });
        fs::remove_dir_all(lower)?;
    }
    group.finish();
    Ok(())
}
