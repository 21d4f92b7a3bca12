//! Sandboxes of the base image, with every part of a [`BoxConfig`].

mod programs;

use std::time::Duration;

use bouvet_host::{
    BoxConfig, ExecError, ExecRequest, Host, LogOptions, LogReader, LogStream, Program, ResourceLimits,
    Sandbox,
};

pub use self::programs::*;
use crate::drive::{patient, run, sh};
use crate::site::{Site, Vmm, small};

/// Makes a test of every case about boxes, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_boxes {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            a_main_program_is_logged_and_ends_its_sandbox
            a_main_program_is_asked_to_end_and_then_killed
            programs_are_confined_as_docker_s_are
            what_is_taken_from_programs_can_be_chosen
            a_terminal_is_a_real_one
            an_attached_program_is_spoken_to
            a_paused_sandbox_stands_still
            memory_and_the_root_file_system_are_as_described
            small_sandbox_has_what_docker_gives
            environment_is_as_described
            programs_keep_to_their_limits
            a_vm_has_its_share_of_the_host
            the_workspace_and_volumes_are_mounted
            a_persistent_sandbox_keeps_its_files_and_another_does_not
            a_persistent_sandbox_outlives_its_host
            a_report_says_what_a_sandbox_was_launched_from
        }
    };
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Confined as by default, without a main program.
fn confined() -> BoxConfig {
    BoxConfig { privileged: false, ..small() }
}

/// With `script` for a main program.
fn running(script: &str) -> BoxConfig {
    BoxConfig { cmd: words(&["sh", "-c", script]), ..confined() }
}

async fn create(host: &Host, config: BoxConfig) -> Sandbox {
    host.create(config).await.unwrap()
}

async fn text(mut log: LogReader, stream: LogStream) -> String {
    let mut text = Vec::new();
    while let Some(record) = log.next().await {
        if record.stream == stream {
            text.extend_from_slice(&record.data);
        }
    }
    String::from_utf8(text).unwrap()
}

async fn log(sandbox: &Sandbox) -> String {
    text(sandbox.logs(LogOptions::default()), LogStream::Stdout).await
}

/// Waits until the main program has printed `what`.
async fn printed(sandbox: &Sandbox, what: &str) {
    let mut log = sandbox.logs(LogOptions { follow: true, ..LogOptions::default() });
    let mut seen = String::new();
    let found = async {
        while let Some(record) = log.next().await {
            seen.push_str(&String::from_utf8_lossy(&record.data));
            if seen.contains(what) {
                return;
            }
        }
    };
    let waited = tokio::time::timeout(patient(60), found).await;
    assert!(waited.is_ok() && seen.contains(what), "it never printed {what:?}, but {seen:?}");
}

const STATUS: &str =
    "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";

pub async fn programs_are_confined_as_docker_s_are(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = create(&site.host, confined()).await;
    let status = sh(&sandbox, STATUS).await;
    assert_eq!(status, "CapEff:00000000a80425fb CapBnd:00000000a80425fb NoNewPrivs:0 Seccomp:2");
    for forbidden in [
        "mount -t tmpfs none /mnt",
        "unshare -r true",
        "hostname other",
        "echo 1 >/proc/sys/vm/drop_caches",
        "echo b >/proc/sysrq-trigger",
        "echo 9 >/sys/fs/cgroup/user/pids.max",
        "mkdir /sys/fs/cgroup/own",
        "cat /dev/vda",
        "mknod /tmp/disk b 254 0 && cat /tmp/disk",
        "mknod /dev/disk b 254 0 && cat /dev/disk",
        "head -c 1 /proc/kcore | grep -q .",
        "dmesg --clear",
        "python3 -c 'import socket; socket.socket(40, socket.SOCK_STREAM)'",
    ] {
        let result = run(&sandbox, Program::Command, forbidden).await;
        assert_ne!(result.exit.exit_code, 0, "`{forbidden}` worked: {}", result.stdout.text());
    }
    // Its own processes alone, the first of which only reaps, and may do nothing else.
    assert_eq!(sh(&sandbox, "ls -d /proc/[0-9]* | wc -l").await.parse::<u32>().unwrap(), 4);
    let first = sh(&sandbox, "grep -E '^Cap(Eff|Prm|Bnd):' /proc/1/status | cut -f 2 | sort -u").await;
    assert_eq!(first, "0000000000000000");
    assert_eq!(
        sh(&sandbox, "(sleep 0.1 &) ; sleep 0.5; grep -l '^State:.Z' /proc/[0-9]*/status | wc -l").await,
        "0"
    );
    for works in [
        "chown 1:1 /tmp",
        "su -s /bin/sh nobody -c id",
        "echo x >/dev/shm/x",
        "ls /dev/pts",
        "python3 -c 'print(1)'",
    ] {
        let result = run(&sandbox, Program::Command, works).await;
        assert_eq!(result.exit.exit_code, 0, "`{works}` failed: {}", result.stderr.text());
    }
    assert_eq!(run(&sandbox, Program::Python, "import os; print(os.getppid())").await.stdout.text(), "0\n");

    let free = create(&site.host, small()).await;
    assert_eq!(sh(&free, "mount -t tmpfs none /mnt && echo mounted").await, "mounted");
    site.end().await;
}

pub async fn what_is_taken_from_programs_can_be_chosen(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let config = BoxConfig {
        cap_add: words(&["SYS_ADMIN"]),
        cap_drop: words(&["CHOWN"]),
        security_opt: words(&["no-new-privileges"]),
        ..confined()
    };
    let sandbox = create(&site.host, config).await;
    assert!(sh(&sandbox, STATUS).await.contains("NoNewPrivs:1 Seccomp:2"));
    assert_eq!(sh(&sandbox, "mount -t tmpfs none /mnt && echo mounted").await, "mounted");
    assert_ne!(run(&sandbox, Program::Command, "chown 1:1 /tmp").await.exit.exit_code, 0);

    let profile = tempfile::NamedTempFile::new().unwrap();
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    std::fs::write(profile.path(), text).unwrap();
    let option = format!("seccomp={}", profile.path().display());
    let config = BoxConfig { security_opt: vec![option], user: "nobody:www-data".into(), ..confined() };
    let sandbox = create(&site.host, config).await;
    let result = run(&sandbox, Program::Command, "mkdir /tmp/x").await;
    assert!(result.stderr.text().contains("No space left"), "{}", result.stderr.text());
    assert_eq!(sh(&sandbox, "id -un; id -gn; id -G; echo $HOME").await, "nobody\nwww-data\n33\n/nonexistent");
    assert_eq!(
        sh(&sandbox, STATUS).await,
        "CapEff:0000000000000000 CapBnd:00000000a80425fb NoNewPrivs:0 Seccomp:2"
    );
    let as_root = ExecRequest { user: "0".into(), ..ExecRequest::new(Program::Command, "id -u") };
    let result = sandbox.exec(as_root).await.unwrap().finish().await.unwrap();
    assert_eq!(result.stdout.text(), "0\n");
    let nobody = ExecRequest { user: "no-such-user".into(), ..ExecRequest::new(Program::Command, "id") };
    let error = sandbox.exec(nobody).await.unwrap_err();
    assert!(matches!(&error, ExecError::NotStarted(why) if why.contains("no-such-user")), "{error}");

    let config = BoxConfig { security_opt: words(&["seccomp=unconfined"]), ..confined() };
    let sandbox = create(&site.host, config).await;
    assert!(sh(&sandbox, STATUS).await.contains("Seccomp:0"));
    site.end().await;
}

pub async fn memory_and_the_root_file_system_are_as_described(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let tmpfs = words(&["/data:size=1m,mode=700", "/data/inner", "/run:exec"]);
    let config = BoxConfig { tmpfs, read_only: true, name: "reader".into(), ..confined() };
    let sandbox = create(&site.host, config.clone()).await;
    let result = run(&sandbox, Program::Command, "echo x >/file").await;
    assert!(result.stderr.text().contains("Read-only"), "{}", result.stderr.text());
    assert!(sandbox.write("/etc/file", "x".into(), false).await.is_err(), "nor may the host");
    assert_eq!(sh(&sandbox, "stat -c %a /data; stat -f -c %T /data; hostname").await, "700\ntmpfs\nreader");
    sh(&sandbox, "echo x >/data/inner/file && echo x >/dev/shm/x").await;
    let result = run(&sandbox, Program::Command, "head -c 2M /dev/zero >/data/large").await;
    assert!(result.stderr.text().contains("No space left"), "{}", result.stderr.text());
    assert_eq!(sh(&sandbox, "cp /bin/true /run/t && /run/t && echo ran").await, "ran");
    let python = run(&sandbox, Program::Python, "print(6 * 7)").await;
    assert_eq!(python.stdout.text(), "42\n", "what programs start from is there: {}", python.stderr.text());
    assert_ne!(run(&sandbox, Program::Command, "cp /bin/true /data/t && /data/t").await.exit.exit_code, 0);

    let taken = site.host.create(config).await.unwrap_err();
    assert!(taken.to_string().contains("called `reader`"), "{taken}");
    assert_eq!(site.host.find("reader").unwrap().id(), sandbox.id());
    assert_eq!(site.host.find(&sandbox.id().to_string()[..8]).unwrap().id(), sandbox.id());
    assert!(site.host.find("writer").is_err());
    site.end().await;
}

/// Prints what a program that is not root may do, and what the kernel lets it have.
const GIVEN: &str = r#"
import os, resource, socket
with socket.socket() as server:
    server.bind(("0.0.0.0", 80))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
    ping.settimeout(60)
    ping.sendto(b"\x08" + bytes(7) + b"payload", ("127.0.0.1", 0))
    assert ping.recv(99).endswith(b"payload")
for name in ("NOFILE", "NPROC", "CORE", "MEMLOCK", "STACK"):
    print(name, *resource.getrlimit(getattr(resource, "RLIMIT_" + name)))
for name, least in {"fs/inotify/max_user_watches": 65536, "fs/inotify/max_user_instances": 1024,
        "fs/file-max": 1 << 20, "fs/aio-max-nr": 65536, "fs/epoll/max_user_watches": 65536, "kernel/threads-max": 30000,
        "kernel/pid_max": 32768, "vm/max_map_count": 262144, "net/core/somaxconn": 4096,
        "net/ipv4/tcp_max_syn_backlog": 1024}.items():
    value = int(open("/proc/sys/" + name).read())
    assert value >= least, (name, value)
"#;

pub async fn small_sandbox_has_what_docker_gives(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let mut config = BoxConfig { user: "1000:1000".into(), name: "small".into(), ..confined() };
    config.resources.memory_mb = 128;
    let sandbox = create(&site.host, config).await;
    let given = run(&sandbox, Program::Python, GIVEN).await;
    let limits = "NOFILE 65536 1048576\nNPROC -1 -1\nCORE 0 -1\nMEMLOCK 8388608 8388608\nSTACK 8388608 -1\n";
    assert_eq!(given.stdout.text(), limits, "{}", given.stderr.text());
    // Directories of the image are renamed as a whole, and found again with their files.
    let rename = ExecRequest { user: "0".into(), ..ExecRequest::new(Program::Command, RENAME) };
    let renamed = sandbox.exec(rename).await.unwrap().finish().await.unwrap();
    assert_eq!(renamed.stdout.text(), "renamed\n", "{}", renamed.stderr.text());
    // `/var/lock` leads to `/run/lock`. Without a network the own name is on the loopback interface.
    sh(&sandbox, "touch /var/lock/x /run/lock/y /tmp/z").await;
    let own =
        run(&sandbox, Program::Python, "import socket; print(socket.gethostbyname(socket.gethostname()))");
    assert_eq!(own.await.stdout.text(), "127.0.1.1\n");
    site.end().await;
}

const RENAME: &str = "python3 -c 'import os; os.rename(\"/etc/apt\", \"/etc/apt.old\")' && \
    test -e /etc/apt.old/apt.conf.d && test ! -e /etc/apt && mv /etc/apt.old /etc/apt && ls /etc/apt/* >/dev/null && echo renamed";

pub async fn environment_is_as_described(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let workspace = tempfile::tempdir().unwrap();
    let main = "stat -c %a,%F /proc/1/exe >/dev/null; cat /proc/1/comm; pwd; hostname; \
                getent hosts db; python3 -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'; \
                cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max; \
                df -k --output=size /dev/shm | tail -1; (sleep 0 & exec true); echo up; \
                trap 'echo asked; exit 3' TERM; while :; do sleep 0.1; done";
    let config = BoxConfig {
        name: "other".into(),
        hostname: "web.example".into(),
        extra_hosts: words(&["db:192.0.2.7"]),
        sysctls: words(&["net.core.somaxconn=99", "kernel.shmmax=65536", "fs.mqueue.msg_max=20"]),
        shm_size: Some(2 << 20),
        init: true,
        workspace: workspace.path().into(),
        ..running(main)
    };
    let sandbox = create(&site.host, config.clone()).await;
    printed(&sandbox, "up").await;
    let said = log(&sandbox).await;
    let said: Vec<_> = said.split_whitespace().collect();
    let expected = "init /workspace web.example 192.0.2.7 db 127.0.1.1 99 65536 20 2048 up";
    assert_eq!(said.join(" "), expected);
    // Process 1 forwards the signal, and ends as its program does.
    sandbox.stop(patient(30)).await.unwrap();
    assert_eq!(sandbox.wait().await.unwrap().exit_code, 3);
    assert!(log(&sandbox).await.ends_with("asked\n"));

    let wrong = BoxConfig { name: String::new(), sysctls: words(&["net.core.none=1"]), ..config };
    let error = site.host.create(wrong).await.unwrap_err();
    let text = bouvet_host::chain(&error);
    assert!(text.contains("could not set the kernel setting `net.core.none` to `1`"), "{text}");
    site.end().await;
}

pub async fn programs_keep_to_their_limits(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let resource_limits = ResourceLimits {
        pids_limit: Some(20),
        ulimits: words(&["nofile=100:200", "core=0"]),
        ..ResourceLimits::default()
    };
    let sandbox = create(&site.host, BoxConfig { resource_limits, ..confined() }).await;
    assert_eq!(sh(&sandbox, "ulimit -Sn; ulimit -Hn; ulimit -c").await, "100\n200\n0");
    let bomb = "for i in $(seq 50); do sleep 5 & done 2>&1; jobs -p | wc -l";
    let result = run(&sandbox, Program::Command, bomb).await;
    assert!(result.stdout.text().contains("Resource temporarily unavailable"), "{}", result.stdout.text());
    assert_eq!(sandbox.stats().await.unwrap().pids_limit, 20);

    // Half of one CPU: a second of work takes two.
    let resource_limits = ResourceLimits { cpu_quota: Some(20_000), ..ResourceLimits::default() };
    let sandbox = create(&site.host, BoxConfig { resource_limits, ..small() }).await;
    let work = "timeout 3 sh -c 'while :; do :; done'; cat /sys/fs/cgroup/user/cpu.max; \
                grep ^nr_throttled /sys/fs/cgroup/user/cpu.stat";
    let result = run(&sandbox, Program::Command, work).await.stdout.text();
    assert!(result.starts_with("20000 100000\nnr_throttled "), "{result}");
    assert!(!result.contains("nr_throttled 0\n"), "{result}");
    site.end().await;
}

/// What `/proc` says of the process of a sandbox's VM: its status, and the paths of its cgroups.
fn vm_process(sandbox: &Sandbox) -> (String, String) {
    let id = sandbox.id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = processes.filter_map(|process| {
        let cgroups = std::fs::read_to_string(process.path().join("cgroup")).ok()?;
        let status = std::fs::read_to_string(process.path().join("status")).ok()?;
        cgroups.contains(&id).then_some((status, cgroups))
    });
    found.next().expect("the VM is in no cgroup of its own")
}

pub async fn a_vm_has_its_share_of_the_host(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let resource_limits = ResourceLimits {
        cpuset_cpus: Some("0".into()),
        cpu_shares: Some(512),
        memory_reservation: Some(64 << 20),
        ..ResourceLimits::default()
    };
    let config = BoxConfig { resource_limits, ..small() };
    if !rustix::process::geteuid().is_root() {
        let error = site.host.create(config).await.unwrap_err().to_string();
        assert!(error.starts_with("`resource_limits.cpuset_cpus` needs cgroups"), "{error}");
        return site.end().await;
    }
    let sandbox = create(&site.host, config).await;
    let (status, cgroups) = vm_process(&sandbox);
    assert!(status.contains("\nCpus_allowed_list:\t0\n"), "{status}");
    // A line of version 1 has its controller's name: `1:cpu:/path`; of version 2, none.
    let file = |controller: &str, one: &str, two: &str| {
        let path = |marker: &str| {
            let line = cgroups.lines().find(|line| line.contains(marker))?;
            line.splitn(3, ':').nth(2).filter(|path| path.contains(&sandbox.id().to_string()))
        };
        let file = match path(&format!(":{controller}:")) {
            Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{one}"),
            None => format!("/sys/fs/cgroup{}/{two}", path("0::").unwrap()),
        };
        std::fs::read_to_string(file).unwrap().trim_end().to_owned()
    };
    assert!(["512", "20"].contains(&file("cpu", "cpu.shares", "cpu.weight").as_str()));
    assert_eq!(file("memory", "memory.soft_limit_in_bytes", "memory.low"), (64u64 << 20).to_string());
    sandbox.destroy().await;
    site.end().await;
}

pub async fn the_workspace_and_volumes_are_mounted(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (work, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(work.path().join("in"), "from the host").unwrap();
    std::fs::write(shared.path().join("file"), "one file").unwrap();
    let at = |path: &std::path::Path| path.display().to_string();
    let config = BoxConfig {
        workspace: work.path().to_owned(),
        volumes: vec![
            format!("{}:/srv/shared:ro", at(shared.path())),
            format!("{}:/etc/one", at(&shared.path().join("file"))),
        ],
        working_dir: "/workspace/deep/down".into(),
        read_only: true,
        ..running(
            "cat /workspace/in /etc/one; pwd; echo out >/workspace/out; echo x >/srv/shared/x; sleep 1000",
        )
    };
    let sandbox = create(&site.host, config).await;
    printed(&sandbox, "from the hostone file/workspace/deep/down\n").await;
    crate::drive::eventually(&sandbox, "test -e /workspace/out").await;
    assert_eq!(std::fs::read_to_string(work.path().join("out")).unwrap(), "out\n");
    assert!(work.path().join("deep/down").is_dir());
    assert!(!shared.path().join("x").exists(), "it is read-only");

    let missing = BoxConfig { volumes: vec!["/nowhere/to/be/found:/srv".into()], ..confined() };
    let error = site.host.create(missing).await.unwrap_err();
    assert!(error.to_string().starts_with("`volumes` is `/nowhere/to/be/found`"), "{error}");
    let config = BoxConfig {
        workspace: work.path().to_owned(),
        volumes: vec![format!("{}:/workspace", at(work.path()))],
        ..confined()
    };
    assert!(site.host.create(config).await.is_err(), "both are one place");
    let sandbox = create(&site.host, confined()).await;
    let later = bouvet_host::VolumeSpec::parse(&format!("{}:/srv/later", at(shared.path()))).unwrap();
    let _volumes = sandbox.mount(&[later]).await.unwrap();
    assert_eq!(sh(&sandbox, "cat /srv/later/file").await, "one file", "mounted later, it is seen too");
    site.end().await;
}

pub async fn a_persistent_sandbox_keeps_its_files_and_another_does_not(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    for persistent in [true, false] {
        let sandbox = create(&site.host, BoxConfig { persistent, ..confined() }).await;
        sh(&sandbox, "echo kept >/srv/file; rm /etc/motd || true; head -c 5M /dev/urandom >/srv/large").await;
        let sum = sh(&sandbox, "sha256sum /srv/large").await;
        sandbox.stop(Duration::ZERO).await.unwrap();
        sandbox.start().await.unwrap();
        let expected = if persistent { "kept" } else { "gone" };
        assert_eq!(sh(&sandbox, "cat /srv/file 2>/dev/null || echo gone").await, expected);
        if persistent {
            assert_eq!(
                sh(&sandbox, "sha256sum /srv/large; ls /etc/motd 2>&1 | grep -c 'No such'").await,
                format!("{sum}\n1")
            );
        }
        sandbox.destroy().await;
    }
    site.end().await;
}

pub async fn a_persistent_sandbox_outlives_its_host(vmm: Vmm) {
    let data = tempfile::tempdir().unwrap();
    let Some(site) = Site::with_boxes(vmm, data.path()).await else { return };
    let config = BoxConfig {
        persistent: true,
        name: "db".into(),
        ..running("cat /srv/n; echo x >>/srv/n; sleep 1000")
    };
    let sandbox = create(&site.host, config.clone()).await;
    let id = sandbox.id();
    crate::drive::eventually(&sandbox, "test -e /srv/n").await;
    site.end().await;

    let Some(site) = Site::with_boxes(vmm, data.path()).await else { return };
    let sandbox = site.host.find("db").unwrap();
    assert_eq!((sandbox.id(), sandbox.config(), sandbox.state().name()), (id, &config, "stopped"));
    sandbox.start().await.unwrap();
    printed(&sandbox, "x\n").await;
    sandbox.destroy().await;
    site.end().await;
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "what was destroyed is gone");
}
