//! The processes of one program, as a cgroup: what is limited together and killed together.
//!
//! A process can leave its process group and its session, and outlive its parent; it cannot leave its cgroup
//! by any of that. Without a VM (in tests) the process group has to do.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::process::Ends;

/// One program may have this part of all processes and threads of its sandbox, which are four for each MiB of its
/// memory: a fork bomb ends here, before it has filled that memory, and other programs can still start theirs.
const PROCESSES_DIVISOR: u64 = 4;
/// Memory that programs left in the background leave to those that are called: enough for an interpreter.
const FOREGROUND_BYTES: u64 = 32 * 1024 * 1024;

/// One program's processes. Dropped, it kills them; see [`Group::leave_running`].
#[derive(Debug)]
pub(super) struct Group {
    dir: Option<PathBuf>,
    leader: Option<Pid>,
    kill_on_drop: bool,
}

impl Group {
    /// Makes the cgroup `program-{id}` under `parent`, and removes those of earlier programs that are
    /// empty by now.
    pub(super) fn new(parent: Option<&Path>, id: u64) -> io::Result<Self> {
        let dir = parent.map(|parent| parent.join(format!("program-{id}")));
        if let (Some(parent), Some(dir)) = (parent, &dir) {
            sweep(parent);
            fs::create_dir(dir)?;
            if let Some(all) = limit(&parent.join("pids.max"))? {
                fs::write(dir.join("pids.max"), (all / PROCESSES_DIVISOR).to_string())?;
            }
            // Killed one by one, the processes of a fork bomb come back faster than memory does.
            fs::write(dir.join("memory.oom.group"), "1")?;
        }
        Ok(Self { dir, leader: None, kill_on_drop: true })
    }

    /// The file by which a process enters: it writes `0`. `None` where there are no cgroups.
    pub(super) fn entrance(&self) -> io::Result<Option<File>> {
        let entrance = |dir: &PathBuf| File::options().write(true).open(dir.join("cgroup.procs"));
        self.dir.as_ref().map(entrance).transpose()
    }

    /// Says which process leads the program's process group.
    pub(super) fn led_by(&mut self, pid: u32) {
        self.leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
    }

    /// Starts the program's first process.
    pub(super) fn spawn(
        &mut self,
        argv: &[OsString],
        env: &HashMap<String, String>,
        cwd: &Path,
        ends: Ends,
    ) -> io::Result<Child> {
        let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("no program"))?;
        let procs = self.entrance()?;
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts processes")]
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env).current_dir(cwd).process_group(0);
        command.stdin(ends.stdin).stdout(ends.stdout).stderr(ends.stderr);
        if let Some(procs) = procs {
            let enter = move || {
                rustix::io::write(&procs, b"0")?;
                // The service is exempt from the kernel's out-of-memory killer; what it starts is not.
                let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
                let own = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty())?;
                rustix::io::write(own, b"0")?;
                Ok(())
            };
            #[expect(unsafe_code, reason = "only the child itself can enter the cgroup before it runs")]
            // SAFETY: between fork and exec, `enter` only makes system calls: it allocates nothing and
            // takes no lock.
            unsafe {
                command.pre_exec(enter);
            }
        }
        let child = command.spawn()?;
        self.led_by(child.id().unwrap_or_default());
        Ok(child)
    }

    /// Kills every process of the program.
    pub(super) fn kill(&self) {
        // Failing means that there is no process left, which is what was wanted.
        match (&self.dir, self.leader) {
            (Some(dir), _) => {
                fs::write(dir.join("cgroup.kill"), "1").ok();
            }
            (None, Some(leader)) => {
                rustix::process::kill_process_group(leader, Signal::KILL).ok();
            }
            (None, None) => {}
        }
    }

    /// Whether the kernel killed a process of the program for lack of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let events = self.dir.as_ref().and_then(|dir| fs::read_to_string(dir.join("memory.events")).ok());
        let killed =
            events.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill ")));
        killed.is_some_and(|count| count != "0")
    }

    /// Lets processes that the program put into the background live on, with a little less memory: what
    /// runs into its limit is killed, so that limit must not be the one of all programs together.
    pub(super) fn leave_running(mut self) {
        self.kill_on_drop = false;
        let Some(dir) = self.dir.take() else { return };
        if fs::remove_dir(&dir).is_ok() {
            return;
        }
        // Writing waits until the processes are within the limit.
        tokio::task::spawn_blocking(move || {
            // Failing means that they have ended, and a sweep removed the cgroup.
            limit_background(&dir).ok();
        });
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
        if let Some(dir) = &self.dir {
            // Fails while processes live on in it, or die; a later `sweep` removes it then.
            fs::remove_dir(dir).ok();
        }
    }
}

/// Removes empty cgroups. `rmdir` refuses those with processes, and no group is between its creation and
/// its first process here: there is no await between the two, and one thread.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"program-") {
            fs::remove_dir(entry.path()).ok();
        }
    }
}
