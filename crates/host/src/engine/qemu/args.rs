//! The command line of a VM. Pure: what each part is for is said here, and tested as text.

use std::ffi::OsString;

use crate::engine::TRANSLATION_MB;

/// The numbers by which QEMU knows the descriptors that it inherits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fds {
    pub(super) link: i32,
    pub(super) console: i32,
    pub(super) control: i32,
    pub(super) base: i32,
    pub(super) scratch: i32,
    /// What the VM begins with; see [`Begin`].
    pub(super) first: i32,
    /// See [`Begin`].
    pub(super) second: i32,
    /// The disk of the sidecar, if there is one.
    pub(super) sidecar: Option<i32>,
}

/// How a VM begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// With a kernel (first) and its initramfs (second).
    Boot,
    /// The same, in memory that is a file (`memory`), to be frozen later.
    BootToFreeze {
        /// Its descriptor.
        memory: i32,
    },
    /// In the middle: with the memory (first) and the devices' state (second) of a frozen VM.
    Restore,
}

/// What a command line depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    pub(super) hardware: bool,
    pub(super) tsc_khz: u64,
    pub(super) vcpus: u32,
    pub(super) memory_mb: u32,
    /// Whether the scratch disk outlives the VM.
    pub(super) durable: bool,
}

/// Everything after the program's name.
pub(super) fn command_line(machine: Machine, begin: Begin, fds: Fds, kernel_args: &str) -> Vec<OsString> {
    let Machine { hardware, vcpus, memory_mb, durable, .. } = machine;
    let accelerator = match hardware {
        true => "kvm".to_owned(),
        // A thread for each processor, even for one: with `single` it also takes turns with nobody.
        false => format!("tcg,thread=multi,tb-size={TRANSLATION_MB}"),
    };
    // Without "fast" string instructions, which are emulated byte by byte: the guest's kernel and libraries clear
    // and copy memory with them. With them off, writing a file is four times as fast.
    let cpu = if hardware { "host" } else { "max,-erms,-fsrm" };
    let lines = [
        // Nothing that is not named here.
        "-nodefaults -no-user-config -display none -no-reboot".to_owned(),
        // QEMU's own seccomp filter. `spawn=deny` means that not even a taken-over QEMU can run a program.
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
        // ACPI: Debian's kernel finds virtio-mmio devices no other way. PIC off: under reduced ACPI nobody
        // programs it, and its interrupts would arrive as a division error. RTC on: the kernel waits
        // seconds for a missing one.
        match begin {
            Begin::Boot => MACHINE.to_owned(),
            Begin::BootToFreeze { .. } | Begin::Restore => format!("{MACHINE},memory-backend=ram"),
        },
        // Starts an uncompressed kernel at once (PVH).
        "-bios qboot.rom".to_owned(),
        format!("-accel {accelerator} -cpu {cpu} -smp {vcpus} -m {memory_mb}"),
        format!("-add-fd fd={},set=1 -add-fd fd={},set=2", fds.base, fds.scratch),
        "-blockdev driver=file,node-name=base,filename=/dev/fdset/1,read-only=on,locking=off".to_owned(),
        format!("-device virtio-blk-device,drive=base,serial={}", bouvet_wire::disk::BASE),
        // No flushes where the disk does not outlive the VM. Discards give space back to the host.
        format!(
            "-blockdev driver=file,node-name=scratch,filename=/dev/fdset/2,locking=off,discard=unmap,\
             cache.no-flush={}",
            if durable { "off" } else { "on" }
        ),
        format!("-device virtio-blk-device,drive=scratch,serial={}", bouvet_wire::disk::SCRATCH),
        sidecar_disk(fds.sidecar),
        "-device virtio-serial-device".to_owned(),
        format!("-chardev socket,id=link,fd={}", fds.link),
        format!("-device virtserialport,chardev=link,name={}", bouvet_wire::LINK_PORT),
        format!("-chardev socket,id=console,fd={}", fds.console),
        "-device virtconsole,chardev=console".to_owned(),
        format!("-chardev socket,id=control,fd={} -mon chardev=control,mode=control", fds.control),
    ];
    let mut args: Vec<OsString> =
        lines.iter().flat_map(|line| line.split_whitespace()).map(OsString::from).collect();
    args.extend(beginning(machine, begin, fds, kernel_args));
    args
}

fn sidecar_disk(fd: Option<i32>) -> String {
    let Some(fd) = fd else { return String::new() };
    format!(
        "-add-fd fd={fd},set=3 \
         -blockdev driver=file,node-name=sidecar,filename=/dev/fdset/3,read-only=on,locking=off \
         -device virtio-blk-device,drive=sidecar,serial={}",
        bouvet_wire::disk::SIDECAR
    )
}

const MACHINE: &str = "-machine microvm,acpi=on,pic=off,rtc=on,isa-serial=off,x-option-roms=off";

fn beginning(machine: Machine, begin: Begin, fds: Fds, kernel_args: &str) -> Vec<OsString> {
    let memory = |fd: i32, share: &str| {
        let size = machine.memory_mb;
        format!("memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{fd},share={share}").into()
    };
    let file = |fd: i32| OsString::from(format!("/proc/self/fd/{fd}"));
    let kernel = ["-kernel".into(), file(fds.first), "-initrd".into(), file(fds.second)];
    let append = ["-append".into(), kernel_command_line(machine, kernel_args).into()];
    match begin {
        Begin::Boot => kernel.into_iter().chain(append).collect(),
        // Shared: what the guest writes is in the file.
        Begin::BootToFreeze { memory: fd } => {
            let object = ["-object".into(), memory(fd, "on")];
            object.into_iter().chain(kernel).chain(append).collect()
        }
        // Private: what the guest writes is its own. The file is sealed, so not even QEMU can change it.
        Begin::Restore => {
            let object = ["-object".into(), memory(fds.first, "off")];
            object.into_iter().chain(["-incoming".into(), "defer".into()]).collect()
        }
    }
}

/// What the kernel is told, with the operator's own words last, so that they win. Every saving here was measured; none
/// weakens the boundary of the VM.
pub(super) fn kernel_command_line(machine: Machine, own: &str) -> String {
    let mut words = vec![
        "quiet console=hvc0".to_owned(),
        // The end of PID 1 or of the kernel is the end of the VM, at once: QEMU exits on a reset.
        "panic=-1 reboot=t".to_owned(),
        "random.trust_cpu=on no_timer_check audit=0 nowatchdog psi=0".to_owned(),
        // Self-tests and subsystems that no program in a sandbox can tell from their absence.
        "cryptomgr.notests=1 rcupdate.rcu_expedited=1 initcall_blacklist=jent_mod_init,\
         load_system_certificate_list,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,trace_eval_init,\
         init_kprobe_trace,init_encrypted,crypto_kdf108_init"
            .to_owned(),
    ];
    if !machine.hardware {
        // Speculation does not exist in emulated code, so there is nothing to mitigate.
        words.push(format!("mitigations=off tsc=reliable tsc_early_khz={}", machine.tsc_khz));
        // Translated code is found again only at the address that it was translated for: a program that lies
        // elsewhere each time it starts is translated each time, and takes four to five times as long.
        words.push("norandmaps".to_owned());
        // QEMU 7.2 (not 10.0) computes the flags that `cmpxchg16b` leaves by the rule of another instruction, from
        // this one's operands: they are a part of an address. An interrupt that comes before they are overwritten
        // returns with NT or TF set, and the kernel panics; one guest of a thousand did. Its allocator can do
        // without the instruction. Programs may use it all the same: they look at ZF, which is right.
        words.push("clearcpuid=cx16".to_owned());
    }
    if machine.durable {
        words.push(bouvet_wire::disk::DURABLE_WORD.to_owned());
    }
    words.push(own.to_owned());
    words.join(" ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(machine: Machine) -> String {
        with(machine, Begin::Boot)
    }

    fn with(machine: Machine, begin: Begin) -> String {
        let (base, scratch, first, second) = (14, 15, 16, 17);
        let fds = Fds { link: 11, console: 12, control: 13, base, scratch, first, second, sidecar: None };
        let args = command_line(machine, begin, fds, "loglevel=7");
        args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn emulation_and_hardware_differ_where_they_must() {
        let machine =
            Machine { hardware: false, tsc_khz: 2_000_000, vcpus: 2, memory_mb: 256, durable: false };
        let emulated = text(machine);
        assert!(emulated.contains("-accel tcg,thread=multi,tb-size=128 -cpu max,-erms,-fsrm -smp 2 -m 256"));
        assert!(emulated.contains("tsc_early_khz=2000000"));
        assert!(emulated.contains("clearcpuid=cx16"), "its kernel would lose flags");
        let hardware = text(Machine { hardware: true, ..machine });
        assert!(hardware.contains("-accel kvm -cpu host"));
        assert!(!hardware.contains("mitigations=off"), "a real processor speculates");
        assert!(!hardware.contains("clearcpuid"), "a real processor keeps its flags");
    }

    #[test]
    fn a_clone_shares_its_template_s_memory_and_changes_none_of_it() {
        let machine = Machine { hardware: false, tsc_khz: 0, vcpus: 1, memory_mb: 128, durable: false };
        let template = with(machine, Begin::BootToFreeze { memory: 18 });
        assert!(template.contains("size=128M,mem-path=/proc/self/fd/18,share=on"));
        assert!(template.contains("-kernel /proc/self/fd/16 -initrd /proc/self/fd/17"));
        let clone = with(machine, Begin::Restore);
        assert!(clone.contains("size=128M,mem-path=/proc/self/fd/16,share=off"));
        assert!(clone.contains("-incoming defer") && !clone.contains("-kernel"));
    }

    #[test]
    fn the_operator_s_kernel_arguments_come_last() {
        let machine = Machine { hardware: true, tsc_khz: 0, vcpus: 1, memory_mb: 128, durable: false };
        assert!(text(machine).ends_with(" loglevel=7"));
    }

    #[test]
    fn every_vm_is_sandboxed_and_bare() {
        let machine = Machine { hardware: true, tsc_khz: 0, vcpus: 1, memory_mb: 128, durable: false };
        for begin in [Begin::Boot, Begin::BootToFreeze { memory: 18 }, Begin::Restore] {
            assert_bare(&with(machine, begin));
        }
    }

    fn assert_bare(line: &str) {
        for must in ["-nodefaults", "-sandbox on,", "spawn=deny", "-no-reboot", "read-only=on"] {
            assert!(line.contains(must), "{must} is missing in {line}");
        }
        for never in ["-netdev", "-nic", "-virtfs", "-monitor", "-usb", "-vga"] {
            assert!(!line.contains(never), "{never} in {line}");
        }
    }
}
