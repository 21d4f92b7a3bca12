//! The processes of one program, as a cgroup: what is limited together and killed together.
//!
//! A process can leave its process group and its session, and outlive its parent; it cannot leave its cgroup
//! by any of that. Without a VM (in tests) the process group has to do.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bouvet_wire::v1;
use rustix::process::{Gid, Pid, Signal};
use tokio::process::Command;

use super::process::Ends;
use super::program::Files;

/// One program may have this part of all processes and threads of its sandbox, which are four for each MiB of its
/// memory: a fork bomb ends here, before it has filled that memory, and other programs can still start theirs.
const PROCESSES_DIVISOR: u64 = 4;
/// But as many as a shell with a pipeline needs; the limit of all programs together holds beside it.
const MIN_PROCESSES: u64 = 64;
/// Memory that programs left in the background leave to those that are called: enough for an interpreter.
const FOREGROUND_BYTES: u64 = 32 * 1024 * 1024;

/// Groups that are made already and empty, kept for the next programs: to make and remove one takes longer than an
/// empty program.
const MAX_SPARES: usize = 4;

/// Where programs get their groups.
#[derive(Debug)]
pub(super) struct Groups {
    /// `None` where there are no cgroups.
    parent: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    made: u64,
    spares: Vec<Cgroup>,
    /// Those that were left to background processes, or to the death of what was killed in them.
    left: Vec<Left>,
}

/// Processes that outlive their program.
#[derive(Debug)]
struct Left {
    /// `None` where there are no cgroups: then their process group is all that is known.
    dir: Option<PathBuf>,
    leader: Option<Pid>,
    /// Their program, which they may start again.
    _files: Option<Files>,
}

impl Left {
    /// Whether all of them have ended. Removes their cgroup then.
    fn has_ended(&self) -> bool {
        match (&self.dir, self.leader) {
            // Fails while there are processes in it.
            (Some(dir), _) => fs::remove_dir(dir).is_ok() || !dir.exists(),
            (None, Some(leader)) => rustix::process::test_kill_process_group(leader).is_err(),
            (None, None) => true,
        }
    }
}

/// A cgroup, and how often the kernel had killed in it when it was last looked at.
#[derive(Debug)]
struct Cgroup {
    dir: PathBuf,
    kills: AtomicU64,
}

impl Groups {
    pub(super) fn new(parent: Option<PathBuf>) -> Self {
        Self { parent, state: Mutex::default() }
    }

    /// An empty group for one program.
    pub(super) fn take(self: &Arc<Self>) -> io::Result<Group> {
        self.state().left.retain(|left| !left.has_ended());
        let cgroup = self.parent.as_deref().map(|parent| self.cgroup(parent)).transpose()?;
        Ok(Group { groups: self.clone(), cgroup, leader: None, kill_on_drop: true })
    }

    /// A group for the sandbox's main program, which may use all that programs may, and whose processes the kernel kills
    /// one by one.
    pub(super) fn take_for_main(self: &Arc<Self>) -> io::Result<Group> {
        let make = |parent: &PathBuf| {
            let dir = parent.join("main");
            fs::create_dir(&dir).map(|()| Cgroup { dir, kills: AtomicU64::new(0) })
        };
        let cgroup = self.parent.as_ref().map(make).transpose()?;
        Ok(Group { groups: self.clone(), cgroup, leader: None, kill_on_drop: true })
    }

    /// Limits all programs together. Fails where there are no cgroups.
    pub(super) fn limit(&self, limits: &v1::ProgramLimits) -> io::Result<()> {
        let parent = self.parent.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        if limits.pids > 0 {
            let own = limit(&parent.join("pids.max"))?.unwrap_or(u64::MAX);
            fs::write(parent.join("pids.max"), limits.pids.min(own).to_string())?;
        }
        if limits.cpu_quota_us > 0 {
            fs::write(parent.join("cpu.max"), format!("{} {}", limits.cpu_quota_us, limits.cpu_period_us))?;
        }
        Ok(())
    }

    /// What all programs together use. Fails where there are no cgroups.
    pub(super) fn stats(&self) -> io::Result<v1::StatsReply> {
        let parent = self.parent.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        let number = |file: &str| limit(&parent.join(file)).map(|number| number.unwrap_or(u64::MAX));
        let cpu = fs::read_to_string(parent.join("cpu.stat"))?;
        let cpu_us = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Ok(v1::StatsReply {
            cpu_us: cpu_us.unwrap_or_default(),
            memory_bytes: number("memory.current")?,
            memory_limit_bytes: number("memory.max")?,
            pids: number("pids.current")?,
            pids_limit: number("pids.max")?,
        })
    }

    fn cgroup(&self, parent: &Path) -> io::Result<Cgroup> {
        let mut state = self.state();
        while let Some(spare) = state.spares.pop() {
            // Programs are root, and may have removed it.
            if spare.dir.exists() {
                return Ok(spare);
            }
        }
        state.made += 1;
        let dir = parent.join(format!("program-{}", state.made));
        fs::create_dir(&dir)?;
        if let Some(all) = limit(&parent.join("pids.max"))? {
            fs::write(dir.join("pids.max"), (all / PROCESSES_DIVISOR).max(MIN_PROCESSES).to_string())?;
        }
        // Killed one by one, the processes of a fork bomb come back faster than memory does.
        fs::write(dir.join("memory.oom.group"), "1")?;
        Ok(Cgroup { dir, kills: AtomicU64::new(0) })
    }

    /// Takes back a cgroup without processes.
    fn put(&self, cgroup: Cgroup) {
        let mut state = self.state();
        if state.spares.len() < MAX_SPARES {
            state.spares.push(cgroup);
        } else {
            state.left.push(Left { dir: Some(cgroup.dir), leader: None, _files: None });
        }
    }

    fn leave(&self, left: Left) {
        self.state().left.push(left);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cgroup {
    /// Counts the processes that the kernel has killed in it for lack of memory.
    fn count_kills(&self) -> io::Result<u64> {
        let events = fs::read_to_string(self.dir.join("memory.events"))?;
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        Ok(count.unwrap_or_default())
    }

    fn is_empty(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.dir.join("cgroup.events"))?.lines().any(|line| line == "populated 0"))
    }
}

/// One program's processes. Dropped, it kills them; see [`Group::leave_running`].
#[derive(Debug)]
pub(super) struct Group {
    groups: Arc<Groups>,
    cgroup: Option<Cgroup>,
    leader: Option<Pid>,
    kill_on_drop: bool,
}

impl Group {
    /// The file by which a process enters: it writes `0`. `None` where there are no cgroups.
    pub(super) fn entrance(&self) -> io::Result<Option<File>> {
        let entrance = |cgroup: &Cgroup| File::options().write(true).open(cgroup.dir.join("cgroup.procs"));
        self.cgroup.as_ref().map(entrance).transpose()
    }

    /// Says which process leads the program's process group.
    pub(super) fn led_by(&mut self, pid: u32) {
        self.leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
    }

    /// The command that starts the program's first process, in the supplementary groups `gids`.
    pub(super) fn command(
        &self,
        argv: &[OsString],
        env: &HashMap<String, String>,
        cwd: &Path,
        ends: Ends,
        gids: &[u32],
    ) -> io::Result<Command> {
        let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("no program"))?;
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env).current_dir(cwd).process_group(0);
        command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
        self.take_in(&mut command)?;
        join_groups(&mut command, gids);
        Ok(command)
    }

    /// Has `command` enter the cgroup, if there is one, before it is its program.
    pub(super) fn take_in(&self, command: &mut Command) -> io::Result<()> {
        let Some(procs) = self.entrance()? else { return Ok(()) };
        let enter = move || {
            rustix::io::write(&procs, b"0")?;
            // The service is exempt from the kernel's out-of-memory killer; what it starts is not.
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let own = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty())?;
            rustix::io::write(own, b"0")?;
            Ok(())
        };
        #[expect(unsafe_code, reason = "only the child itself can enter the cgroup before it runs")]
        // SAFETY: between fork and exec, `enter` only makes system calls: it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(enter);
        }
        Ok(())
    }

    /// Kills every process of the program.
    pub(super) fn kill(&self) {
        // Failing means that there is no process left, which is what was wanted.
        match (&self.cgroup, self.leader) {
            (Some(cgroup), _) => {
                fs::write(cgroup.dir.join("cgroup.kill"), "1").ok();
            }
            (None, Some(leader)) => {
                rustix::process::kill_process_group(leader, Signal::KILL).ok();
            }
            (None, None) => {}
        }
    }

    /// Interrupts the processes of the program that are still in its process group, as Ctrl-C would.
    pub(super) fn interrupt(&self) {
        if let Some(leader) = self.leader {
            // Failing means that there is nothing left to interrupt.
            rustix::process::kill_process_group(leader, Signal::INT).ok();
        }
    }

    /// Whether the kernel killed a process of the program for lack of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let Some(cgroup) = &self.cgroup else { return false };
        cgroup.count_kills().is_ok_and(|kills| cgroup.kills.swap(kills, Ordering::Relaxed) < kills)
    }

    /// Leaves to other programs what background processes do: for a program that stays.
    pub(super) fn leave_room(&self) -> io::Result<()> {
        self.cgroup.as_ref().map_or(Ok(()), |cgroup| limit_background(&cgroup.dir))
    }

    /// Lets processes that the program put into the background live on, with a little less memory: what
    /// runs into its limit is killed, so that limit must not be the one of all programs together. They keep `files`.
    pub(super) fn leave_running(mut self, files: Files) {
        self.kill_on_drop = false;
        let files = files.is_stored().then_some(files);
        let Some(cgroup) = self.cgroup.take() else {
            self.groups.leave(Left { dir: None, leader: self.leader, _files: files });
            return;
        };
        if cgroup.is_empty().unwrap_or(false) {
            self.groups.put(cgroup);
            return;
        }
        self.groups.leave(Left { dir: Some(cgroup.dir.clone()), leader: None, _files: files });
        // Writing waits until the processes are within the limit.
        tokio::task::spawn_blocking(move || {
            // Failing means that they have ended, and the cgroup was removed.
            limit_background(&cgroup.dir).ok();
        });
    }
}

/// Puts the process of `command` into the supplementary groups `gids`. None: those of the service, which is in none.
fn join_groups(command: &mut Command, gids: &[u32]) {
    if gids.is_empty() {
        return;
    }
    let gids: Vec<_> = gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let join = move || Ok(rustix::thread::set_thread_groups(&gids)?);
    #[expect(unsafe_code, reason = "only the child itself can change its groups")]
    // SAFETY: between fork and exec, `join` only makes a system call: it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(join);
    }
}

fn limit_background(dir: &Path) -> io::Result<()> {
    let Some(all) = limit(&dir.with_file_name("memory.max"))? else { return Ok(()) };
    fs::write(dir.join("memory.max"), all.saturating_sub(FOREGROUND_BYTES).to_string())
}

/// The limit in a file of a cgroup; `None` for `max`.
fn limit(file: &Path) -> io::Result<Option<u64>> {
    Ok(fs::read_to_string(file)?.trim_end().parse().ok())
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.kill_on_drop {
            self.kill();
        }
        if let Some(cgroup) = self.cgroup.take() {
            // Those that were killed take a moment to die.
            self.groups.leave(Left { dir: Some(cgroup.dir), leader: None, _files: None });
        }
    }
}
