//! Whether KVM can be used here, and what stands behind it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

const DEVICE: &str = "/dev/kvm";
/// What every KVM since 2007 answers (the kernel's `Documentation/virt/kvm/api.rst`).
const API_VERSION: i32 = 12;

/// KVM, as this process finds it.
///
/// ```
/// use bouvet_host::Kvm;
///
/// let kvm = Kvm::find();
/// assert_eq!(matches!(kvm, Kvm::Missing { .. }), !std::fs::exists("/dev/kvm")?);
/// match kvm {
///     Kvm::Hardware => println!("sandboxes start in milliseconds"),
///     Kvm::Denied => println!("add yourself to the group `kvm`"),
///     other => println!("sandboxes will be emulated: {other:?}"),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// It can be used, and hardware stands behind it.
    Hardware,
    /// It can be used, but the processor offers no virtualization: software stands behind it, which runs only kernels
    /// made for it, slowly, and is the boundary itself.
    Software,
    /// There is no `/dev/kvm`.
    Missing {
        /// Whether the processor has what it takes.
        processor: bool,
    },
    /// This user may not open it for reading and writing.
    Denied,
    /// It is there and does not work.
    Broken(io::ErrorKind),
}

impl Kvm {
    /// Looks at this machine.
    pub fn find() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let opened = File::options().read(true).write(true).open(DEVICE);
        Self::judge(has_virtualization(&flags), opened.and_then(|device| check(&device)))
    }

    /// That `/dev/kvm` exists proves nothing: the processor's own flag is what counts.
    fn judge(processor: bool, device: io::Result<()>) -> Self {
        match device {
            Ok(()) if processor => Self::Hardware,
            Ok(()) => Self::Software,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Self::Missing { processor },
                io::ErrorKind::PermissionDenied => Self::Denied,
                kind => Self::Broken(kind),
            },
        }
    }

    /// The group that may use it, if there is one.
    pub(crate) fn group() -> Option<u32> {
        fs::metadata(DEVICE).ok().filter(|device| device.mode() & 0o060 == 0o060).map(|device| device.gid())
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    let mut flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// Whether `device` answers as KVM does.
fn check(device: &File) -> io::Result<()> {
    const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
    #[expect(unsafe_code, reason = "no safe wrapper exists")]
    // SAFETY: the call takes no argument and touches none of our memory (linux/kvm.h).
    let version = unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    match version {
        API_VERSION => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_s_flag_tells_hardware_from_software() {
        assert!(has_virtualization("model name\t: X\nflags\t\t: fpu vmx de\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("model name\t: svm\nflags\t\t: fpu svm_lock vmx_x\nvmx flags\t: vnmi\n"));
        assert_eq!(Kvm::judge(true, Ok(())), Kvm::Hardware);
        assert_eq!(Kvm::judge(false, Ok(())), Kvm::Software);
    }

    #[test]
    fn each_way_to_fail_is_told_apart() {
        let failing = |kind: io::ErrorKind| Kvm::judge(true, Err(kind.into()));
        assert_eq!(failing(io::ErrorKind::NotFound), Kvm::Missing { processor: true });
        assert_eq!(failing(io::ErrorKind::PermissionDenied), Kvm::Denied);
        assert_eq!(failing(io::ErrorKind::ResourceBusy), Kvm::Broken(io::ErrorKind::ResourceBusy));
        let file = tempfile::tempfile().unwrap();
        assert!(check(&file).is_err(), "an ordinary file is no KVM");
    }
}
