//! The profile of a sandbox that says nothing: what Docker's lets through, and no more.
//!
//! After its documentation ("Seccomp security profiles for Docker", significant syscalls blocked by the default profile),
//! in a form of our own: what is refused, unless a capability that the sandbox has makes sense only with it.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule,
};
use syscalls::Sysno;

use super::{Rules, Vsock, compile};
use crate::boxconfig::capabilities::Capabilities;

/// Refused to those who have none of the capabilities.
const REFUSED: &[(&[&str], &[&str])] = &[
    // Old, dangerous, or about the whole machine: there is nothing in a sandbox that they are for.
    (
        &[],
        &[
            "_sysctl",
            "add_key",
            "create_module",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kexec_file_load",
            "kexec_load",
            "keyctl",
            "migrate_pages",
            "move_pages",
            "nfsservctl",
            "pivot_root",
            "query_module",
            "request_key",
            "swapoff",
            "swapon",
            "sysfs",
            "uselib",
            "userfaultfd",
            "ustat",
        ],
    ),
    (
        &["SYS_ADMIN"],
        &[
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount2",
            "unshare",
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &["bpf"]),
    (&["SYS_ADMIN", "PERFMON"], &["perf_event_open"]),
    (&["SYS_ADMIN", "SYSLOG"], &["syslog"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["SYS_BOOT"], &["reboot"]),
    (&["SYS_CHROOT"], &["chroot"]),
    (&["SYS_MODULE"], &["delete_module", "finit_module", "init_module"]),
    (&["SYS_NICE"], &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise"]),
    (&["SYS_RAWIO"], &["ioperm", "iopl"]),
    (&["SYS_TIME"], &["clock_settime", "settimeofday"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
];

/// The flags of clone(2) that make namespaces, one bit each: from `CLONE_NEWNS` to `CLONE_NEWNET`
/// (`include/uapi/linux/sched.h`).
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// The execution domains of personality(2) that are harmless: Linux and Linux32, with and without an old `uname`, and
/// the question which it is.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// `AF_VSOCK` (`include/linux/socket.h`): by it the VM speaks to its host.
const AF_VSOCK: u64 = 40;

pub(super) fn filters(capabilities: Capabilities, vsock: Vsock) -> Result<Vec<BpfProgram>, BackendError> {
    let (refused, absent) =
        (SeccompAction::Errno(errno(libc::EPERM)), SeccompAction::Errno(errno(libc::ENOSYS)));
    // What is not known here is new, and programs can do without: they look whether it is there.
    let known: Rules = Sysno::iter().map(|call| (i64::from(call.id()), Vec::new())).collect();
    let mut missing = Rules::new();
    if !capabilities.has("SYS_ADMIN") {
        // Its flags lie in memory, where no filter sees them; a C library that is told that there is none uses clone(2).
        add(&mut missing, "clone3", Vec::new());
    }
    let compiled = [
        compile(known, SeccompAction::Allow, absent.clone())?,
        compile(missing, absent, SeccompAction::Allow)?,
        compile(refusals(capabilities, vsock)?, refused, SeccompAction::Allow)?,
    ];
    Ok(compiled.into_iter().flatten().collect())
}

fn errno(number: i32) -> u32 {
    number.unsigned_abs()
}

fn refusals(capabilities: Capabilities, vsock: Vsock) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for (lifted_by, calls) in REFUSED {
        if !lifted_by.iter().any(|capability| capabilities.has(capability)) {
            calls.iter().for_each(|call| add(&mut rules, call, Vec::new()));
        }
    }
    if !capabilities.has("SYS_ADMIN") {
        let any = NAMESPACE_FLAGS.map(|flag| first_argument(SeccompCmpOp::MaskedEq(flag), flag));
        let any = any.into_iter().map(|condition| SeccompRule::new(vec![condition?]));
        add(&mut rules, "clone", any.collect::<Result<_, _>>()?);
    }
    let none = PERSONALITIES.map(|domain| first_argument(SeccompCmpOp::Ne, domain));
    let none = none.into_iter().collect::<Result<_, _>>()?;
    add(&mut rules, "personality", vec![SeccompRule::new(none)?]);
    if vsock == Vsock::Closed {
        let vsock = first_argument(SeccompCmpOp::Eq, AF_VSOCK)?;
        add(&mut rules, "socket", vec![SeccompRule::new(vec![vsock])?]);
    }
    Ok(rules)
}

fn first_argument(operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)
}

/// Adds rules for `call`, if this architecture has it.
fn add(rules: &mut Rules, call: &str, with: Vec<SeccompRule>) {
    if let Ok(call) = call.parse::<Sysno>() {
        rules.insert(i64::from(call.id()), with);
    }
}
