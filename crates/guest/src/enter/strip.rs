//! Takes from a process what its program is not to have.

use bouvet_wire::v1;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::{Error, step};
use crate::identity::Identity;

/// Bytes of a `struct sock_filter`, and how many of them a filter may have (`include/uapi/linux/filter.h`,
/// `BPF_MAXINSNS`).
const INSTRUCTION_BYTES: usize = 8;
const MAX_INSTRUCTIONS: usize = 4096;

/// Every resource, by its number (`include/uapi/asm-generic/resource.h`).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// Becomes `identity` with what `confinement` leaves. What is not confined becomes another user, and no more.
///
/// The order is forced: limits may be raised, and filters set without `no_new_privileges`, only by who still has
/// capabilities (seccomp(2)); and a change of user drops them.
pub(super) fn take(confinement: Option<&v1::Confinement>, identity: &Identity) -> Result<(), Error> {
    let assume =
        || identity.assume().map_err(|error| Error::Step("become the user that it is to run as", error));
    let Some(confinement) = confinement else { return assume() };
    for limit in &confinement.ulimits {
        set_limit(limit)?;
    }
    let kept = CapabilitySet::from_bits_truncate(confinement.capabilities);
    drop_from_bounding_set(kept)?;
    if !confinement.no_new_privileges {
        install(&confinement.seccomp)?;
    }
    assume()?;
    // Whoever is not root has none by now: a program that carries some may still get those of the bounding set.
    if identity.uid == 0 {
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).map_err(step("give up capabilities"))?;
    }
    if confinement.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(step("forgo new privileges"))?;
        install(&confinement.seccomp)?;
    }
    Ok(())
}

/// Gives up all capabilities: for the process that only holds namespaces, which programs see and may trace.
pub(super) fn hold() -> Result<(), Error> {
    drop_from_bounding_set(CapabilitySet::empty())?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(step("give up capabilities"))
}

fn set_limit(limit: &v1::Ulimit) -> Result<(), Error> {
    let failed = step("set a resource limit");
    let resource = RESOURCES.get(limit.resource as usize).ok_or(rustix::io::Errno::INVAL).map_err(&failed)?;
    let value = |limit: u64| (limit != u64::MAX).then_some(limit);
    let limit = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
    rustix::process::setrlimit(*resource, limit).map_err(&failed)
}

fn drop_from_bounding_set(kept: CapabilitySet) -> Result<(), Error> {
    for number in 0..64 {
        // A kernel that does not know a capability has none to drop.
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) || !rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            continue;
        }
        rustix::thread::remove_capability_from_bounding_set(one).map_err(step("give up capabilities"))?;
    }
    Ok(())
}

/// Installs seccomp filters, which hold for this process and all that it starts.
fn install(filters: &[bytes::Bytes]) -> Result<(), Error> {
    let failed = step("install a seccomp filter");
    for filter in filters {
        let count = filter.len() / INSTRUCTION_BYTES;
        if count == 0 || count > MAX_INSTRUCTIONS || !filter.len().is_multiple_of(INSTRUCTION_BYTES) {
            return Err(failed(rustix::io::Errno::INVAL));
        }
        // Aligned as the kernel's own structure is.
        let instructions: Vec<u64> = filter
            .chunks_exact(8)
            .filter_map(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)))
            .collect();
        #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
        let program = libc::sock_fprog { len: count as u16, filter: instructions.as_ptr().cast_mut().cast() };
        #[expect(unsafe_code, reason = "no safe wrapper exists that leaves privileges as they are")]
        // SAFETY: the kernel reads `len` instructions of eight bytes each, which `instructions` has, and keeps a copy.
        let result = unsafe {
            let pointer: *const libc::sock_fprog = &raw const program;
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, pointer)
        };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            return Err(Error::Step("install a seccomp filter", error));
        }
    }
    Ok(())
}
