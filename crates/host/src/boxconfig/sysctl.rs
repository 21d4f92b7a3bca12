//! `sysctls`: kernel settings of a sandbox. Its VM has a kernel of its own, so there are more than Docker's.

use super::InvalidConfig;

const FIELD: &str = "sysctls";
/// The kernel reads one page at most.
const MAX_VALUE_BYTES: usize = 1024;
const MAX_NAME_BYTES: usize = 256;

/// Settings of System V IPC and of POSIX message queues, which each IPC namespace has of its own.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
const IPC_PREFIX: &str = "fs.mqueue.";

/// Beginnings of names of which all are allowed.
const PREFIXES: [&str; 6] = ["net.", IPC_PREFIX, "fs.inotify.", "fs.epoll.", "fs.fanotify.", "vm.dirty_"];
/// Others that are allowed. What is left out could end the guest's service (`kernel.panic`, `kernel.pid_max`), take its
/// memory (`vm.min_free_kbytes`, `vm.nr_hugepages`) or start programs outside of the confinement
/// (`kernel.core_pattern`, `kernel.modprobe`).
const NAMES: [&str; 17] = [
    "fs.aio-max-nr",
    "fs.file-max",
    "fs.lease-break-time",
    "fs.nr_open",
    "fs.pipe-max-size",
    "fs.pipe-user-pages-hard",
    "fs.pipe-user-pages-soft",
    "kernel.dmesg_restrict",
    "kernel.keys.maxbytes",
    "kernel.keys.maxkeys",
    "kernel.kptr_restrict",
    "kernel.perf_event_paranoid",
    "kernel.randomize_va_space",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.swappiness",
    "vm.vfs_cache_pressure",
];

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sysctl {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Sysctl {
    /// Parses `NAME=VALUE`.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let wrong = |allowed: &str| InvalidConfig::text(FIELD, text, allowed);
        let (name, value) = text.split_once('=').ok_or_else(|| wrong("`NAME=VALUE` is allowed"))?;
        let (name, value) = (name.trim(), value.trim());
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if name.len() > MAX_NAME_BYTES || !name.split('.').all(part) {
            return Err(wrong("a name like `net.core.somaxconn` is allowed"));
        }
        if value.is_empty()
            || value.len() > MAX_VALUE_BYTES
            || value.contains(|c: char| c.is_control() && c != '\t')
        {
            return Err(wrong("a value of 1 to 1024 bytes in one line is allowed"));
        }
        let known = |names: &[&str]| names.contains(&name);
        if !known(&IPC) && !known(&NAMES) && !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(wrong(
                "of the kernel's settings `net.*`, `fs.mqueue.*`, `fs.inotify.*`, `fs.epoll.*`, `fs.fanotify.*`, \
                 `vm.dirty_*`, those of System V IPC and some others (docs/BOXES.md) are allowed",
            ));
        }
        if name == "vm.overcommit_memory" && !matches!(value, "0" | "1") {
            return Err(wrong("0 and 1 are allowed: with 2 the guest's own service may get no memory"));
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }

    /// Whether it is a setting of an IPC namespace.
    pub(crate) fn is_ipc(&self) -> bool {
        IPC.contains(&&*self.name) || self.name.starts_with(IPC_PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_settings_are_read() {
        let parse =
            |text: &str| Sysctl::parse(text).map(|sysctl| (sysctl.is_ipc(), sysctl.name, sysctl.value));
        let read = |ipc, name: &str, value: &str| Ok((ipc, name.to_owned(), value.to_owned()));
        assert_eq!(parse("net.core.somaxconn=1024"), read(false, "net.core.somaxconn", "1024"));
        assert_eq!(
            parse("net.ipv4.ip_local_port_range=1024\t65000"),
            read(false, "net.ipv4.ip_local_port_range", "1024\t65000")
        );
        assert_eq!(parse("kernel.sem = 250 32000 32 128"), read(true, "kernel.sem", "250 32000 32 128"));
        assert_eq!(parse("fs.mqueue.msg_max=20"), read(true, "fs.mqueue.msg_max", "20"));
        assert_eq!(parse("vm.overcommit_memory=1"), read(false, "vm.overcommit_memory", "1"));
    }

    #[test]
    fn settings_that_break_the_guest_are_refused() {
        for wrong in [
            "kernel.panic=0",
            "kernel.core_pattern=|/bin/sh",
            "kernel.modprobe=/x",
            "kernel.pid_max=10",
            "kernel.hostname=x",
            "vm.overcommit_memory=2",
            "vm.nr_hugepages=100000",
            "fs.binfmt_misc.register=x",
            "network.x=1",
        ] {
            assert_eq!(Sysctl::parse(wrong).unwrap_err().field, FIELD, "{wrong}");
        }
    }

    #[test]
    fn malformed_settings_are_refused() {
        for wrong in [
            "",
            "net.core.somaxconn",
            "=1",
            "net..x=1",
            "net.=1",
            "net./x=1",
            "net.a b=1",
            "net.core.x=",
            "net.x=1\n2",
        ] {
            assert_eq!(Sysctl::parse(wrong).unwrap_err().field, FIELD, "{wrong:?}");
        }
        assert!(Sysctl::parse(&format!("net.x={}", "1".repeat(MAX_VALUE_BYTES))).is_ok());
        assert!(Sysctl::parse(&format!("net.x={}", "1".repeat(MAX_VALUE_BYTES + 1))).is_err());
        assert!(Sysctl::parse(&format!("net.{}=1", "x".repeat(MAX_NAME_BYTES - 4))).is_ok());
        assert!(Sysctl::parse(&format!("net.{}=1", "x".repeat(MAX_NAME_BYTES - 3))).is_err());
    }
}
