//! Filters are tried as the kernel would: run on the system calls that they are about.

use seccompiler::BpfProgram;
use syscalls::Sysno;

use super::{Vsock, default, profile};
use crate::boxconfig::capabilities::Capabilities;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const LOG: u32 = 0x7ffc_0000;

fn errno(number: i32) -> u32 {
    0x0005_0000 | number.unsigned_abs()
}

/// What the kernel would answer: each filter is run on `struct seccomp_data`, and the most severe answer counts. An
/// interpreter of the instructions that the compiler uses (bpf(4)).
fn answer(filters: &[BpfProgram], call: &str, arguments: [u64; 6]) -> u32 {
    let number = call.parse::<Sysno>().map_or(9999, |call| u32::try_from(call.id()).unwrap());
    let architecture: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    let mut data = [0; 64];
    data[..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&architecture.to_ne_bytes());
    for (index, argument) in arguments.iter().enumerate() {
        data[16 + index * 8..24 + index * 8].copy_from_slice(&argument.to_ne_bytes());
    }
    let answers = filters.iter().map(|filter| run(filter, &data));
    // By their order as signed numbers, killing the process first (seccomp(2)).
    answers.min_by_key(|answer| (answer & 0xffff_0000).cast_signed()).unwrap_or(ALLOW)
}

fn run(program: &BpfProgram, data: &[u8; 64]) -> u32 {
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let instruction = &program[at];
        let k = instruction.k;
        at += 1;
        let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
        match instruction.code {
            0x20 => {
                let at = k as usize;
                accumulator = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            code => panic!("an instruction that is not known here: {code:#x}"),
        }
    }
}

fn capabilities(add: &[&str]) -> Capabilities {
    let add: Vec<_> = add.iter().map(|name| (*name).to_owned()).collect();
    Capabilities::resolve(&add, &[]).unwrap()
}

#[test]
fn the_default_lets_programs_work_and_no_more() {
    let filters = default::filters(capabilities(&[]), Vsock::Closed).unwrap();
    let of = |call: &str| answer(&filters, call, [0; 6]);
    for call in ["read", "execve", "socket", "clone", "chroot", "ptrace", "setuid", "capset", "mknodat"] {
        assert_eq!(of(call), ALLOW, "{call}");
    }
    for call in ["mount", "bpf", "keyctl", "kexec_load", "reboot", "init_module", "io_uring_setup", "setns"] {
        assert_eq!(of(call), errno(libc::EPERM), "{call}");
    }
    assert_eq!(of("clone3"), errno(libc::ENOSYS), "so that C libraries use clone");
    assert_eq!(of("a call of tomorrow"), errno(libc::ENOSYS));
    let with = |call: &str, argument: u64| answer(&filters, call, [argument, 0, 0, 0, 0, 0]);
    assert_eq!(with("clone", 0x1000_0000 | 17), errno(libc::EPERM), "a user namespace");
    assert_eq!(with("clone", 0x3d0f00), ALLOW, "a thread");
    assert_eq!(with("socket", 40), errno(libc::EPERM), "vsock");
    let of_a_sidecar = default::filters(capabilities(&[]), Vsock::Open).unwrap();
    assert_eq!(answer(&of_a_sidecar, "socket", [40, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(with("personality", 0xffff_ffff), ALLOW);
    assert_eq!(with("personality", 0x0040_0000), errno(libc::EPERM), "no address randomisation");
}

#[test]
fn capabilities_lift_what_is_about_them() {
    let filters = default::filters(capabilities(&["SYS_ADMIN"]), Vsock::Closed).unwrap();
    let of = |call: &str| answer(&filters, call, [0x1000_0000, 0, 0, 0, 0, 0]);
    assert_eq!([of("mount"), of("clone"), of("clone3"), of("unshare")], [ALLOW; 4]);
    assert_eq!(of("reboot"), errno(libc::EPERM));
    let filters = default::filters(Capabilities::ALL, Vsock::Closed).unwrap();
    assert_eq!(answer(&filters, "reboot", [0; 6]), ALLOW);
    assert_eq!(answer(&filters, "keyctl", [0; 6]), errno(libc::EPERM), "nothing lifts it");
}

#[test]
fn a_profile_of_docker_s_format_does_what_it_says() {
    let text = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "archMap": [],
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"name": "write", "action": "SCMP_ACT_ALLOW", "args": null},
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["getpid"], "action": "SCMP_ACT_LOG"},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 1, "value": 15, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 1, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ioperm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
        ]
    }"#;
    let filters = profile::filters(text, capabilities(&[])).unwrap();
    let of = |call: &str| answer(&filters, call, [0; 6]);
    assert_eq!((of("read"), of("write"), of("close")), (ALLOW, ALLOW, errno(38)));
    assert_eq!((of("mkdir"), of("reboot"), of("getpid")), (errno(13), KILL, LOG));
    assert_eq!((of("mount"), of("chroot"), of("ioperm")), (errno(38), ALLOW, errno(38)));
    let kill = |signal: u64| answer(&filters, "kill", [1, signal, 0, 0, 0, 0]);
    assert_eq!((kill(15), kill(17), kill(9)), (ALLOW, ALLOW, errno(38)));
    let filters = profile::filters(text, capabilities(&["SYS_ADMIN"])).unwrap();
    assert_eq!(answer(&filters, "mount", [0; 6]), ALLOW);
    assert_eq!(answer(&filters, "chroot", [0; 6]), errno(38));
}

#[test]
fn profiles_that_cannot_be_used_say_why() {
    for (text, why) in [
        ("", "EOF"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
        (r#"{"defaultAction": "SCMP_ACT_KILL"}"#, "no system call"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
            "argument index",
        ),
    ] {
        let error = profile::filters(text, capabilities(&[])).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
