//! What a sandbox keeps from others and from its host, on any engine of VMs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bouvet_host::{BoxConfig, ControlError, ExecError, ExecRequest, Program, Refusal, Sandbox, State};
use bytes::Bytes;

use crate::drive::{assert_usable, patient, printed, run, sh};
use crate::site::{Site, Vmm, small};
use crate::skip::skipped;

/// Makes a test of every case about isolation, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_isolation {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            sandboxes_share_nothing_that_they_can_change
            there_is_no_network_but_its_own_loopback
            ten_sandboxes_at_once_get_their_own_answers
            a_vm_s_process_may_do_next_to_nothing
            nothing_of_a_destroyed_sandbox_is_left
            a_killed_vm_fails_its_sandbox_at_once_and_no_other
            vm_over_its_memory_limit_fails_in_words
            a_guest_that_does_not_wake_fails_its_sandbox
            a_killed_vm_leaves_a_persistent_disk_as_it_was_synced
        }
    };
}

pub async fn sandboxes_share_nothing_that_they_can_change(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (one, other) = tokio::join!(site.host.create(small()), site.host.create(small()));
    let (one, other) = (one.unwrap(), other.unwrap());
    sh(&one, "echo secret >/root/secret; echo secret >/tmp/secret; rm /usr/bin/git; echo : >/usr/bin/curl")
        .await;
    let untouched = "ls /root/secret /tmp/secret; git --version && curl --version";
    let later = site.host.create(small()).await.unwrap();
    for sandbox in [&other, &later] {
        let result = run(sandbox, Program::Command, untouched).await;
        assert!(result.stdout.text().starts_with("git version 2"), "{result:?}");
        assert!(result.stdout.text().contains("\ncurl 7."), "{result:?}");
        assert_eq!(result.stderr.text().matches("No such file or directory").count(), 2, "{result:?}");
    }
    let own = [
        "hostname",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/boot_id",
        "python3 -c 'import os; print(os.getrandom(32).hex())'",
    ];
    for command in own {
        let (of_one, of_other) = (sh(&one, command).await, sh(&other, command).await);
        assert_ne!(of_one, of_other, "`{command}` prints the same in two sandboxes");
    }
    site.end().await;
}

pub async fn there_is_no_network_but_its_own_loopback(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    assert_eq!(sh(&sandbox, "ls /sys/class/net").await, "lo");
    let flags = sh(&sandbox, "cat /sys/class/net/lo/flags").await;
    assert_eq!(flags, "0x9", "up, and a loopback");

    sandbox.write("www/page", Bytes::from("served"), false).await.unwrap();
    sh(&sandbox, "python3 -m http.server --bind 127.0.0.1 --directory www 8000 >www.log 2>&1 &").await;
    let fetched =
        "curl --silent --fail --retry-connrefused --retry 60 --retry-delay 1 http://localhost:8000/page";
    assert_eq!(sh(&sandbox, fetched).await, "served");

    let outside = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=20)";
    let result = run(&sandbox, Program::Python, outside).await;
    assert!(result.stderr.text().contains("Network is unreachable"), "{}", result.stderr.text());
    let result = run(&sandbox, Program::Command, "curl --silent --show-error http://example.com").await;
    assert_eq!(result.exit.exit_code, 6, "no name is found: {}", result.stderr.text());
    site.end().await;
}

pub async fn ten_sandboxes_at_once_get_their_own_answers(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let work = (0..10).map(|number| {
        let host = &site.host;
        async move {
            let sandbox = host.create(small()).await.unwrap();
            sandbox.write("number", Bytes::from(number.to_string()), false).await.unwrap();
            let (program, source) = match number % 2 {
                0 => (Program::Python, "n = int(open('number').read())\nprint(n * n)"),
                _ => (Program::Bash, "read n <number || true\necho $((n * n))"),
            };
            printed(&sandbox, program, source).await
        }
    });
    let answers = tokio::time::timeout(patient(120), futures_util::future::join_all(work));
    let answers = answers.await.unwrap();
    assert_eq!(answers, (0..10).map(|n: u32| (n * n).to_string()).collect::<Vec<_>>());
    site.end().await;
}

pub async fn a_vm_s_process_may_do_next_to_nothing(vmm: Vmm) {
    let Some(()) = as_root() else { return };
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (one, other) = tokio::join!(site.host.create(small()), site.host.create(small()));
    let (one, other) = (one.unwrap(), other.unwrap());
    let (vm, neighbour) = (VmProcess::of(&site, &one), VmProcess::of(&site, &other));
    let of = |field| status(vm.pid, field);

    let ids: Vec<u32> = of("Uid").split('\t').map(|id| id.parse().unwrap()).collect();
    assert!(ids.iter().all(|id| *id == ids[0] && *id >= 1_900_000_000), "{ids:?}");
    assert_ne!(of("Uid"), status(neighbour.pid, "Uid"), "each VM has a user of its own");
    assert_eq!((of("Gid"), of("Groups")), (of("Uid"), String::new()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(of(set), "0".repeat(16), "{set}");
    }
    assert_eq!((of("NoNewPrivs"), of("Seccomp")), ("1".into(), "2".into()));
    let environment = fs::read_to_string(format!("/proc/{}/environ", vm.pid)).unwrap();
    let variables: Vec<_> = environment.split_terminator('\0').collect();
    assert!(
        matches!(variables[..], [])
            || matches!(variables[..], [one] if one.starts_with("LD_PRELOAD=/proc/self/fd/")),
        "nothing but the library that maps a clone's memory: {variables:?}"
    );

    let namespace = |pid: &str, kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["net", "ipc"] {
        let own = namespace(&vm.pid.to_string(), kind);
        assert_ne!(own, namespace("self", kind), "{kind}");
        assert_ne!(own, namespace(&neighbour.pid.to_string(), kind), "{kind}");
    }

    let limits = ["memory.max", "memory.limit_in_bytes"].map(|file| fs::read_to_string(vm.cgroup.join(file)));
    let limit: u64 = limits.into_iter().find_map(Result::ok).unwrap().trim_end().parse().unwrap();
    assert!(limit <= (256 + 300) * 1024 * 1024, "{limit}");
    site.end().await;
}

pub async fn nothing_of_a_destroyed_sandbox_is_left(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    sh(&sandbox, "setsid nohup sleep 3226 >/dev/null 2>&1 & sleep 3227 &").await;
    assert_eq!(sh(&sandbox, "pgrep -xc sleep").await, "2", "they outlive their command");
    let vm = VmProcess::of(&site, &sandbox);
    assert!(vm.is_there() && vm.cgroup.exists() && vm.sandbox_dir.exists());
    sandbox.destroy().await;
    assert!(!vm.is_there(), "its process runs on");
    assert!(!vm.cgroup.exists(), "{} is left", vm.cgroup.display());
    assert!(!vm.sandbox_dir.exists(), "{} is left", vm.sandbox_dir.display());
    site.end().await;
}

pub async fn a_killed_vm_fails_its_sandbox_at_once_and_no_other(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, other) = tokio::join!(site.host.create(small()), site.host.create(small()));
    let (sandbox, other) = (sandbox.unwrap(), other.unwrap());
    let running = sandbox.exec(ExecRequest::new(Program::Command, "sleep 3228")).await.unwrap();
    let vm = VmProcess::of(&site, &sandbox);
    signal("-KILL", vm.pid);
    let killed = Instant::now();
    let error = running.finish().await.unwrap_err();
    assert!(killed.elapsed() < patient(5), "it took {:?}", killed.elapsed());
    assert!(
        matches!(&error, ExecError::Refused(Refusal::Failed(why)) if why.contains("the VM ended (signal: 9 (SIGKILL))")),
        "{error:?}"
    );
    assert!(matches!(sandbox.state(), State::Failed(_)), "{:?}", sandbox.state());
    assert!(!vm.cgroup.exists() && !vm.sandbox_dir.exists(), "a failed sandbox holds nothing");
    assert_usable(&other).await;
    site.end().await;
}

/// A VMM that takes more than it is known to take. No guest makes it do that, so the limit is lowered instead.
pub async fn vm_over_its_memory_limit_fails_in_words(vmm: Vmm) {
    const SPARE_BYTES: u64 = 16 << 20;
    let Some(()) = as_root() else { return };
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let cgroup = VmProcess::of(&site, &sandbox).cgroup;
    let version_1 = ["memory.usage_in_bytes", "memory.limit_in_bytes"];
    let is_version_1 = cgroup.join(version_1[1]).exists();
    let [used, limit] = if is_version_1 { version_1 } else { ["memory.current", "memory.max"] };
    let configured: u64 = fs::read_to_string(cgroup.join(limit)).unwrap().trim().parse().unwrap();
    let used: u64 = fs::read_to_string(cgroup.join(used)).unwrap().trim().parse().unwrap();
    fs::write(cgroup.join(limit), (used + SPARE_BYTES).to_string()).unwrap();
    let taken = "taken = bytearray(100 << 20); taken[::4096] = b'x' * 25600";
    let request = ExecRequest::new(Program::Python, taken.to_owned());
    let ran = async { sandbox.exec(request).await?.finish().await };
    let error = ran.await.unwrap_err();
    let expected = format!(
        "the sandbox's VM was killed: it used more memory than its limit of {} MiB on this machine",
        configured >> 20
    );
    assert!(
        matches!(&error, ExecError::Refused(Refusal::Failed(why)) if *why == expected),
        "{error:?} instead of {expected}"
    );
    assert_eq!(sandbox.state(), State::Failed(expected));
    site.end().await;
}

pub async fn a_guest_that_does_not_wake_fails_its_sandbox(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let vm = VmProcess::of(&site, &sandbox);
    // Without it a guest cannot make its random numbers its own again.
    sh(&sandbox, "rm /dev/urandom").await;
    sandbox.pause().await.unwrap();
    let error = sandbox.resume().await.unwrap_err();
    assert!(matches!(error, ControlError::Failed(_)), "{error:?}");
    sandbox.wait().await.unwrap_err();
    assert!(
        matches!(sandbox.state(), State::Failed(why) if why.starts_with("it did not wake: ")),
        "nobody may take it for one that stands still"
    );
    assert!(!vm.is_there() && !vm.sandbox_dir.exists(), "a failed sandbox holds nothing");
    site.end().await;
}

pub async fn a_killed_vm_leaves_a_persistent_disk_as_it_was_synced(vmm: Vmm) {
    let data = tempfile::tempdir().unwrap();
    let Some(site) = Site::with_boxes(vmm, data.path()).await else { return };
    let sandbox = site.host.create(BoxConfig { persistent: true, ..small() }).await.unwrap();
    sh(&sandbox, "echo kept >/srv/file && sync && cat /bin/bash >/srv/on-its-way").await;
    signal("-KILL", VmProcess::of(&site, &sandbox).pid);
    sandbox.wait().await.unwrap_err();
    sandbox.start().await.unwrap();
    assert_eq!(sh(&sandbox, "cat /srv/file").await, "kept");
    site.end().await;
}

/// In Firecracker's jailer a VM's process sees nothing but its own, and what all share cannot be written.
pub async fn a_jailed_process_sees_its_own_root_directory_alone(vmm: Vmm) {
    let Some(()) = as_root() else { return };
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let vm = VmProcess::of(&site, &sandbox);
    let names = |path: &str| {
        let entries = fs::read_dir(format!("/proc/{}/root{path}", vm.pid)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    let ours = ["api.sock", "base", "memory", "scratch", "state", "v.sock"];
    let the_jailer_s = ["dev", "firecracker", "firecracker.pid", "run"];
    let known: BTreeSet<String> = ours.into_iter().chain(the_jailer_s).map(str::to_owned).collect();
    let seen = names("/");
    assert!(seen.is_subset(&known), "{:?}", seen.difference(&known));
    assert!(
        names("/dev").iter().all(|name| ["kvm", "net", "urandom", "userfaultfd"].contains(&name.as_str()))
    );

    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", vm.pid)).unwrap();
    for shared in ["base", "memory"] {
        // Its fifth field is where it is mounted, the sixth how (proc_pid_mountinfo(5)).
        let fields: Vec<_> = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).collect();
        let mount = fields.iter().find(|fields| fields[4] == format!("/{shared}")).unwrap();
        assert!(mount[5].split(',').any(|option| option == "ro"), "{mount:?}");
    }
    site.end().await;
}

/// What the host knows of one sandbox's VM.
struct VmProcess {
    pid: u32,
    cgroup: PathBuf,
    sandbox_dir: PathBuf,
}

impl VmProcess {
    fn of(site: &Site, sandbox: &Sandbox) -> Self {
        let id = sandbox.id().to_string();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            entry.unwrap().file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        });
        // Others come and go while we look.
        let read =
            |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let is_it = |pid: &u32| {
            let ours = status(*pid, "PPid") == std::process::id().to_string();
            ours && read(*pid, "cgroup").contains(&id)
        };
        let pid = { pids }.find(is_it).unwrap();

        let in_cgroup = read(pid, "cgroup");
        let (controllers, path) = in_cgroup
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
            .find(|(_, path)| path.ends_with(&id))
            .unwrap();
        let mounts = [controllers, "", "unified"].map(|mount| Path::new("/sys/fs/cgroup").join(mount));
        let cgroup = mounts.iter().map(|mount| mount.join(&path[1..])).find(|dir| dir.is_dir()).unwrap();

        let hosts = fs::read_dir(site.dir()).unwrap();
        let dirs = hosts.map(|host| host.unwrap().path().join("sandboxes").join(&id));
        let sandbox_dir = { dirs }.find(|dir| dir.is_dir()).unwrap();
        Self { pid, cgroup, sandbox_dir }
    }

    fn is_there(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// A field of `/proc/PID/status`; empty when there is no such process.
fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

/// The host's users that matter here; `None`, and the test is skipped, where the host is none of them.
fn as_root() -> Option<()> {
    if rustix::process::geteuid().is_root() {
        return Some(());
    }
    skipped("REQUIRE_VM", "only root can take everything from a VM's process");
    None
}

#[expect(clippy::disallowed_methods, reason = "from the outside, as an administrator would")]
fn signal(signal: &str, pid: u32) {
    let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}
