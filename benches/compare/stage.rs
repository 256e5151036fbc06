//! The outer half: makes the place to measure on and the namespaces to measure in, runs the course, collects what it tells.
//!
//! As root all mounts happen in a mount namespace of their own, so nothing stays behind however this ends. The machine's own
//! directories are never written to, except for the temporary directory and the reports.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, chown, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::args::{Args, Who};
use crate::event::Event;
use crate::plan::{Kind, Plan};
use crate::report::{self, Results};
use crate::{Result, course, find};

/// Set in the process that has its own mount namespace already.
const PRIVATE: &str = "PLYFS_COMPARE_PRIVATE";
/// The image of the backing file system; sparse, so it takes what the works need: about 5 GB.
const IMAGE_SIZE: u64 = 24 << 30;
const PREFIX: &str = "plyfs-compare.";

/// Measures and reports.
pub fn run(args: &Args) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    if root && args.who != Who::Plain && std::env::var_os(PRIVATE).is_none() {
        return in_private_mounts();
    }
    let mut stage = Stage::new(args, root)?;
    let plan = stage.plan(args, root)?;
    let names: Vec<_> = plan.contenders.iter().map(|c| format!("{} ({})", c.name, c.version)).collect();
    eprintln!("contenders: {}\non: {}", names.join(", "), stage.backing);
    let mut results = Results::new(&plan, &stage.backing);
    plan.store(&stage.work)?;
    let mut course = stage.start(args, root)?;
    let collected = collect(&mut course, &mut results);
    if collected.is_err() {
        drop(course.kill());
    }
    let status = course.wait()?;
    drop(stage);
    collected?;
    report::write(&results, args)?;
    if status.success() { Ok(()) } else { Err(format!("not everything was measured: {status}").into()) }
}

/// Runs this program again where its mounts are nobody else's.
fn in_private_mounts() -> Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(std::env::current_exe()?);
    let status = command.args(std::env::args_os().skip(1)).env(PRIVATE, "1").status()?;
    if status.success() { Ok(()) } else { Err("see above".into()) }
}

/// The place to measure on; what it mounted and made goes away with it.
#[derive(Debug)]
struct Stage {
    /// The temporary directory that holds all else.
    base: PathBuf,
    /// The directory on the backing file system that the course works in.
    work: PathBuf,
    /// What the backing file system is.
    backing: String,
    mounts: Vec<PathBuf>,
}

impl Stage {
    fn new(args: &Args, root: bool) -> Result<Stage> {
        let above = args.upper_on.clone().unwrap_or_else(std::env::temp_dir);
        let above = fs::canonicalize(&above).map_err(|error| format!("{}: {error}", above.display()))?;
        remove_stale(&above);
        let base = above.join(format!("{PREFIX}{}", std::process::id()));
        let mut stage = Stage { work: base.join("stage"), backing: String::new(), mounts: Vec::new(), base };
        fs::create_dir(&stage.base)?;
        fs::set_permissions(&stage.base, fs::Permissions::from_mode(0o755))?;
        if root && args.upper_on.is_none() && args.who != Who::Plain {
            stage.make_xfs()?;
        }
        fs::create_dir(&stage.work)?;
        stage.backing.push_str(&file_system(&stage.work));
        if root && args.who == Who::User {
            chown(&stage.work, Some(Uid::from_raw(args.uid)), Some(Gid::from_raw(args.uid)))?;
            stage.open_dev_fuse()?;
        }
        Ok(stage)
    }

    /// A new xfs on a loop device. Its image is unlinked at once: it goes when the mount namespace goes.
    fn make_xfs(&mut self) -> Result<()> {
        let image = self.base.join("xfs.img");
        fs::File::create(&image)?.set_len(IMAGE_SIZE)?;
        let place = self.base.join("xfs");
        fs::create_dir(&place)?;
        output(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image))?;
        let device = output(Command::new("losetup").args(["--find", "--show"]).arg(&image))?;
        // Without direct I/O everything would be cached and written back twice, at the expense of the works.
        let direct = output(Command::new("losetup").args(["--direct-io=on", &device]));
        let mounted = output(Command::new("mount").args(["-t", "xfs", &device]).arg(&place));
        // The device is let go of when its last user is, which is the mount.
        output(Command::new("losetup").args(["--detach", &device]))?;
        fs::remove_file(&image)?;
        mounted?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        self.work = place.join("stage");
        self.mounts.push(place);
        self.backing.push_str(if direct.is_ok() { "loop device with direct I/O, " } else { "loop device, " });
        Ok(())
    }

    /// Many machines let everybody open /dev/fuse; where this one does not, the course sees one that does.
    fn open_dev_fuse(&mut self) -> Result<()> {
        let Ok(meta) = fs::metadata("/dev/fuse") else { return Ok(()) };
        if meta.permissions().mode() & 0o006 == 0o006 || !meta.file_type().is_char_device() {
            return Ok(());
        }
        let place = self.base.join("dev");
        fs::create_dir(&place)?;
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), c"mode=755")?;
        self.mounts.push(place.clone());
        let device = place.join("fuse");
        mknodat(CWD, &device, FileType::CharacterDevice, Mode::from(0o666), rustix::fs::makedev(10, 229))?;
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666))?;
        mount_bind(&device, "/dev/fuse")?;
        self.mounts.push("/dev/fuse".into());
        Ok(())
    }

    /// What the course has to do, with programs and layers where it can reach them.
    fn plan(&mut self, args: &Args, root: bool) -> Result<Plan> {
        let mut contenders = find::contenders(args)?;
        if root && args.who == Who::User {
            for (n, contender) in contenders.iter_mut().enumerate() {
                match &mut contender.kind {
                    Kind::Kernel => {}
                    Kind::UnionfsFuse(program) => *program = self.copied(program, n)?,
                    Kind::OverlayProgram(command) | Kind::Template(command) => {
                        if let Some(program) = command.first_mut() {
                            *program = self.copied(Path::new(program), n)?.to_string_lossy().into_owned();
                        }
                    }
                }
            }
        }
        Ok(Plan {
            who: args.who,
            contenders,
            lowers: self.lowers(args, root)?,
            rounds: args.rounds,
            only: args.only.clone(),
            skip: args.skip.clone(),
            scale: args.scale,
            entries: args.entries,
            timeout: args.timeout,
            can_drop_caches: root,
        })
    }

    /// An ordinary user may not reach a program below somebody's home: it gets a copy.
    fn copied(&self, program: &Path, n: usize) -> Result<PathBuf> {
        let directory = self.work.join(format!("bin{n}"));
        fs::create_dir_all(&directory)?;
        let copy = directory.join(program.file_name().ok_or("a program without a name")?);
        fs::copy(program, &copy).map_err(|error| format!("{}: {error}", program.display()))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        Ok(copy)
    }

    /// The user's layers under names without special characters: bind mounts that cannot be written, or symlinks.
    fn lowers(&mut self, args: &Args, root: bool) -> Result<Vec<PathBuf>> {
        let place = self.base.join("lower");
        let mut lowers = Vec::new();
        for (n, lower) in args.lower.iter().enumerate() {
            let lower = fs::canonicalize(lower).map_err(|error| format!("--lower {}: {error}", lower.display()))?;
            if !lower.is_dir() {
                return Err(format!("--lower {}: not a directory", lower.display()).into());
            }
            fs::create_dir_all(&place)?;
            let name = place.join(n.to_string());
            if root && args.who != Who::Plain {
                fs::create_dir(&name)?;
                mount_bind(&lower, &name)?;
                self.mounts.push(name.clone());
                mount_remount(&name, MountFlags::BIND | MountFlags::RDONLY, c"")?;
            } else {
                std::os::unix::fs::symlink(&lower, &name)?;
            }
            lowers.push(name);
        }
        Ok(lowers)
    }

    fn start(&self, args: &Args, root: bool) -> Result<Child> {
        let mut program = std::env::current_exe()?;
        let mut command = Vec::new();
        let unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"].map(String::from);
        match args.who {
            Who::User => {
                if root {
                    program = self.copied(&program, 99)?;
                    let uid = args.uid;
                    let setpriv = format!("setpriv --reuid {uid} --regid {uid} --clear-groups");
                    command.extend(setpriv.split(' ').map(str::to_owned));
                }
                command.extend(unshare);
                command.extend(["--user", "--map-root-user"].map(String::from));
            }
            Who::Root => command.extend(unshare),
            Who::Plain => {}
        }
        command.push(program.to_string_lossy().into_owned());
        command.push(course::FLAG.to_owned());
        let (first, rest) = command.split_first().ok_or("an empty command")?;
        let mut command = Command::new(first);
        command.args(rest).arg(&self.work).current_dir(&self.work).env("HOME", &self.work).env("TMPDIR", &self.work);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map_err(|error| format!("{first}: {error}").into())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mut released = true;
        while let Some(place) = self.mounts.pop() {
            if let Err(error) = unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                eprintln!("compare: cannot unmount {}: {error}", place.display());
                released = false;
            }
        }
        // Never remove anything below what may still be somebody's layer.
        let mut remove = Command::new("rm");
        remove.args(["-rf", "--one-file-system", "--"]).arg(&self.base);
        if !released || !remove.status().is_ok_and(|status| status.success()) {
            eprintln!("compare: {} is left behind", self.base.display());
        }
    }
}

/// Removes the empty directories of a run that was killed.
fn remove_stale(above: &Path) {
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(entry.path()).status());
        }
    }
}

/// What a program prints.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error} (or give --upper-on DIR)"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// The type of the file system that a directory lies on.
fn file_system(directory: &Path) -> String {
    output(Command::new("stat").args(["-f", "-c", "%T"]).arg(directory)).unwrap_or_default()
}

/// Takes in what the course tells until it ends.
fn collect(course: &mut Child, results: &mut Results) -> Result<()> {
    let mut answer = course.stdin.take();
    let told = course.stdout.take().ok_or("no pipe from the course")?;
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (eta {eta}) {msg}")?);
    for line in BufReader::new(told).lines() {
        match serde_json::from_str(&line?)? {
            Event::Runs(count) => bar.set_length(count),
            // A log gets a line for each work instead of a bar.
            Event::Preparing(what) if bar.is_hidden() => eprintln!("{what} ({:.0?} so far)", bar.elapsed()),
            Event::Preparing(what) => bar.set_message(format!("{what}: preparing the layers")),
            Event::Run { work, contender, round } => {
                bar.set_message(format!("{work}: {contender}, round {}", round + 1))
            }
            Event::Done => bar.inc(1),
            Event::Sample { row, contender, round, value } => results.add(&row, &contender, round, value),
            Event::Failed { work, contender, reason } => results.fail(&work, &contender, &reason),
            Event::Note(note) => results.note(note),
            Event::DropCaches => drop_caches(answer.as_mut())?,
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn drop_caches(answer: Option<&mut ChildStdin>) -> Result<()> {
    let dropped = fs::write("/proc/sys/vm/drop_caches", "2");
    let answer = answer.ok_or("no pipe to the course")?;
    match dropped {
        Ok(()) => answer.write_all(b"done\n")?,
        Err(error) => writeln!(answer, "{error}")?,
    }
    Ok(answer.flush()?)
}
