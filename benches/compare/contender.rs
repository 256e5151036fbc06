//! One contender at work: mounts it on a fresh upper, knows its server process, unmounts it and removes the upper.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Result;
use crate::args::Who;
use crate::mount::{self, Stack};
use crate::plan::{Contender, Kind};

/// How long a server may take until its mount is there, and after the unmount until it is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted contender.
#[derive(Debug)]
pub struct Mounted {
    stack: Stack,
    // The process that was started; it is the server unless it went to the background.
    child: Option<Child>,
    server: Option<Pid>,
    log: PathBuf,
}

impl Contender {
    /// Mounts on `stage/mnt/merged` with a fresh upper.
    pub fn mount(&self, who: Who, stage: &Path, lowers: &[PathBuf], options: mount::Options) -> Result<Mounted> {
        let place = stage.join("mnt");
        remove(&place)?;
        let stack = Stack {
            lowers: lowers.to_vec(),
            upper: place.join("upper"),
            work: place.join("work"),
            merged: place.join("merged"),
        };
        for directory in [&stack.upper, &stack.work, &stack.merged] {
            fs::create_dir_all(directory)?;
        }
        let log = place.join("log");
        let child = match self.argv(&stack, options)? {
            None => {
                mount::kernel(&stack, who, options)?;
                None
            }
            Some(argv) => Some(start(&argv, &log)?),
        };
        let mut mounted = Mounted { stack, child, server: None, log };
        if mounted.child.is_some() {
            mounted.wait_until_mounted()?;
        }
        Ok(mounted)
    }

    fn argv(&self, stack: &Stack, options: mount::Options) -> Result<Option<Vec<String>>> {
        let merged = stack.merged.display().to_string();
        let upper = stack.upper.display().to_string();
        if !options.is_empty() && matches!(self.kind, Kind::UnionfsFuse(_) | Kind::Template(_)) {
            return Err("it has no such option".into());
        }
        Ok(Some(match &self.kind {
            Kind::Kernel => return Ok(None),
            Kind::OverlayProgram(command) => {
                let mut argv = command.clone();
                let more: String = options.iter().map(|(key, value)| format!(",{key}={value}")).collect();
                argv.extend(["-f".into(), "-o".into(), mount::overlay_options(stack) + &more, merged]);
                argv
            }
            Kind::UnionfsFuse(program) => {
                let mut branches = format!("{upper}=RW");
                for lower in &stack.lowers {
                    branches.push_str(&format!(":{}=RO", lower.display()));
                }
                let program = program.display().to_string();
                // As its manual page's example: copy on write, and inode numbers that stay.
                vec![program, "-f".into(), "-o".into(), "cow,use_ino".into(), branches, merged]
            }
            Kind::Template(command) => {
                let lower = mount::joined(&stack.lowers);
                let work = stack.work.display().to_string();
                let fill = |word: &String| {
                    let word = word.replace("{lower}", &lower).replace("{upper}", &upper);
                    word.replace("{work}", &work).replace("{merged}", &merged)
                };
                command.iter().map(fill).collect()
            }
        }))
    }
}

fn start(argv: &[String], log: &Path) -> Result<Child> {
    let (program, rest) = argv.split_first().ok_or("an empty command")?;
    let out = fs::File::create(log)?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    command.spawn().map_err(|error| format!("{program}: {error}").into())
}

impl Mounted {
    /// The mount point.
    pub fn merged(&self) -> &Path {
        &self.stack.merged
    }

    /// The server process; none for the kernel's overlay.
    pub fn server(&self) -> Option<Pid> {
        self.server
    }

    fn wait_until_mounted(&mut self) -> Result<()> {
        let begin = Instant::now();
        while !mount::is_mounted(&self.stack.merged) {
            let exit = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if exit.is_some_and(|status| !status.success()) || begin.elapsed() > PATIENCE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let why = log.lines().last().unwrap_or("it said nothing").to_owned();
                self.kill();
                return Err(format!("not mounted: {why}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let foreground = match &mut self.child {
            Some(child) => child.try_wait()?.is_none().then(|| Pid::from_child(child)),
            None => None,
        };
        self.server = foreground.or_else(|| background_server(&self.stack.merged));
        Ok(())
    }

    /// Unmounts, waits for the server's end and for the backing file system's disk, and removes the upper.
    pub fn unmount(mut self) -> Result<()> {
        let detached = mount::detach(&self.stack.merged);
        if detached.is_err() {
            self.kill();
        }
        let begin = Instant::now();
        while let Some(child) = &mut self.child {
            if child.try_wait()?.is_some() {
                break;
            }
            if begin.elapsed() > PATIENCE {
                self.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        detached?;
        let place = self.stack.upper.parent().unwrap_or(&self.stack.upper).to_owned();
        remove(&place)?;
        // What this contender left to be written must not slow the next one down.
        rustix::fs::syncfs(fs::File::open(place.parent().unwrap_or(Path::new("/")))?)?;
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(Err(error)) = self.server.map(|server| kill_process(server, Signal::KILL)) {
            eprintln!("compare: cannot end the server: {error}");
        }
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The process that serves this mount point, by its command line: programs that went to the background.
fn background_server(merged: &Path) -> Option<Pid> {
    let wanted = merged.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid != std::process::id() as i32 && line.split(|byte| *byte == 0).any(|word| word == wanted) {
            return Pid::from_raw(pid);
        }
    }
    None
}

/// Removes a directory and what is in it, also where a work directory was left without permissions.
fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let status = Command::new("rm").arg("-rf").arg("--").arg(directory).stderr(Stdio::null()).status()?;
    if status.success() {
        return Ok(());
    }
    Command::new("chmod").args(["-R", "u+rwx", "--"]).arg(directory).stderr(Stdio::null()).status()?;
    Ok(fs::remove_dir_all(directory)?)
}

/// The resident memory of a process, in bytes.
pub fn resident(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
