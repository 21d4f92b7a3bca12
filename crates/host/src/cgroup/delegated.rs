//! The cgroup that a process without root may put others below: one that a service manager delegated to its user.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::CgroupChoice;

/// Controllers that limit VMs.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

impl CgroupChoice {
    /// Below the cgroup that was delegated to this process's user, if there is one: version 2 alone, with this process
    /// in it, as systemd has it for user sessions and for units with `Delegate=yes`.
    ///
    /// ```
    /// use bouvet_host::{CgroupChoice, HostOptions};
    ///
    /// let options = HostOptions::new("/home/ann/agents", "vmlinux", "debian-devbox.ext4");
    /// let cgroup = CgroupChoice::delegated().unwrap_or(CgroupChoice::Off);
    /// let options = HostOptions { cgroup, ..options };
    /// ```
    pub fn delegated() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mount = Path::new("/sys/fs/cgroup");
        let mounts = [mount.to_owned(), mount.join("unified")];
        let mount = mounts.into_iter().find(|mount| mount.join("cgroup.controllers").exists())?;
        find(&mount, &own, std::process::id()).map(Self::Below)
    }
}

/// The nearest cgroup from that of the process `pid` upwards that can have limited children. `own` is its
/// `/proc/PID/cgroup`.
fn find(mount: &Path, own: &str, pid: u32) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = mount.join(own.trim_end());
    // The kernel moves a process only where its mover may write the common ancestor's `cgroup.procs`.
    let reachable = own.ancestors().take_while(|dir| dir.starts_with(mount) && *dir != mount);
    let mut writable = reachable.take_while(|dir| is_writable(dir));
    writable.find(|dir| can_limit(dir, *dir == own, pid)).map(Path::to_owned)
}

fn is_writable(dir: &Path) -> bool {
    let files = ["cgroup.procs", "cgroup.subtree_control"].map(|file| dir.join(file));
    files.iter().map(PathBuf::as_path).chain([dir]).all(|path| access(path, Access::WRITE_OK).is_ok())
}

/// Whether children of `dir` have the controllers, or can get them: only a cgroup without processes can have limited
/// children, and we can move away nobody but ourselves.
fn can_limit(dir: &Path, is_own: bool, pid: u32) -> bool {
    let has = |file: &str| {
        let listed = fs::read_to_string(dir.join(file)).unwrap_or_default();
        CONTROLLERS.iter().all(|wanted| listed.split_whitespace().any(|name| name == *wanted))
    };
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let is_alone = || processes.lines().all(|line| is_own && line.trim() == pid.to_string());
    has("cgroup.subtree_control") || (has("cgroup.controllers") && is_alone())
}

#[cfg(test)]
#[path = "../../../../e2e/src/skip.rs"]
#[expect(unreachable_pub, clippy::print_stderr, reason = "the tests of other crates use the same file")]
mod skip;

#[cfg(test)]
mod tests {
    use super::super::{Limits, OutOfMemory, Parent};
    use super::*;

    /// Enters the cgroup whose directory it is given, and uses 64 MiB of memory.
    const HOG: &str = r#"echo 0 >"$0/cgroup.procs" && hog=$(head -c 67108864 /dev/zero | tr '\0' x)"#;

    struct Hierarchy(tempfile::TempDir);

    impl Hierarchy {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn add(self, path: &str, controllers: &str, enabled: &str, processes: &str) -> Self {
            let dir = self.0.path().join(path);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in [
                ("cgroup.controllers", controllers),
                ("cgroup.subtree_control", enabled),
                ("cgroup.procs", processes),
            ] {
                fs::write(dir.join(file), text).unwrap();
            }
            self
        }

        fn found(&self, own: &str) -> Option<String> {
            let found = find(self.0.path(), own, 42)?;
            Some(found.strip_prefix(self.0.path()).unwrap().display().to_string())
        }
    }

    #[test]
    fn delegated_unit_of_its_own_is_found() {
        let service =
            |processes| Hierarchy::new().add("system.slice/b.service", "cpu memory pids", "", processes);
        assert_eq!(
            service("42\n").found("0::/system.slice/b.service\n").as_deref(),
            Some("system.slice/b.service")
        );
        assert_eq!(service("41\n42\n").found("0::/system.slice/b.service\n"), None, "others cannot be moved");
    }

    #[test]
    fn slice_above_a_shared_scope_is_found() {
        let session = |enabled| {
            Hierarchy::new().add("user@1000.service/app.slice", "memory pids", enabled, "").add(
                "user@1000.service/app.slice/terminal.scope",
                "memory pids",
                "",
                "7\n42\n",
            )
        };
        let own = "1:name=systemd:/x\n0::/user@1000.service/app.slice/terminal.scope\n";
        let slice = Some("user@1000.service/app.slice");
        assert_eq!(session("memory pids").found(own).as_deref(), slice);
        assert_eq!(session("").found(own).as_deref(), slice, "its controllers can be enabled");
    }

    #[test]
    fn cgroups_without_both_controllers_are_not_used() {
        let only = |controllers| Hierarchy::new().add("a", controllers, controllers, "42\n").found("0::/a\n");
        assert_eq!(only("memory"), None);
        assert_eq!(only("pids cpu"), None);
        assert_eq!(only("memory pids").as_deref(), Some("a"));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a shell stands in for a VM's process")]
    fn children_of_delegated_cgroup_are_limited() {
        let mount = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        if !CONTROLLERS.iter().all(|name| controllers.split_whitespace().any(|found| found == *name)) {
            return skip::skipped(
                "REQUIRE_CGROUP2",
                "cgroups of version 2 do not have the memory controller",
            );
        }
        let name = format!("bouvet-test-{}", std::process::id());
        let unit = mount.join(&name);
        let made = fs::write(mount.join("cgroup.subtree_control"), "+memory +pids");
        if let Err(error) = made.and_then(|()| fs::create_dir(&unit)) {
            return skip::skipped("REQUIRE_CGROUP2", &format!("no cgroup can be made: {error}"));
        }
        assert_eq!(find(mount, &format!("0::/{name}\n"), std::process::id()), Some(unit.clone()));
        let parent = Parent::prepare(&CgroupChoice::Below(unit.clone()), "vms").unwrap().unwrap();
        let vm = parent.create("vm", 32 << 20, &Limits::default()).unwrap();
        let ended = std::process::Command::new("sh").args(["-c", HOG]).arg(&vm.dir).status().unwrap();
        assert!(!ended.success());
        assert_eq!(vm.out_of_memory().unwrap(), Some(OutOfMemory::Limit(32)));
        vm.remove().unwrap();
        parent.remove().unwrap();
        fs::remove_dir(unit).unwrap();
    }

    #[test]
    fn root_of_the_hierarchy_is_not_delegated() {
        assert_eq!(Hierarchy::new().add("", "memory pids", "memory pids", "").found("0::/\n"), None);
        assert_eq!(Hierarchy::new().found("4:memory:/a\n"), None, "version 1 alone");
    }
}
