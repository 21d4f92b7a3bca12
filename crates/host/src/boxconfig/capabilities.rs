//! Capabilities by name, and those that a sandbox's programs get.

use super::InvalidConfig;

/// Every capability, by its number (`include/uapi/linux/capability.h`).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker gives a container that says nothing (its documentation, "Runtime privilege and Linux capabilities").
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of them: the bit `1 << number` of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    pub(crate) const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// Docker's default set without `drop`, and with `add`: of a name in both, the addition counts, and `ALL` is the
    /// weaker word.
    pub(crate) fn resolve(add: &[String], drop: &[String]) -> Result<Self, InvalidConfig> {
        let (add, drop) = (Named::parse("cap_add", add)?, Named::parse("cap_drop", drop)?);
        let default = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
        let basis = match (add.all, drop.all) {
            (true, _) => Self::ALL.0,
            (false, true) => 0,
            (false, false) => default,
        };
        Ok(Self(basis & !drop.bits | add.bits))
    }

    /// One bit per capability.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }
}

struct Named {
    all: bool,
    bits: u64,
}

impl Named {
    fn parse(field: &'static str, names: &[String]) -> Result<Self, InvalidConfig> {
        let mut named = Self { all: false, bits: 0 };
        for typed in names {
            let upper = typed.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            match bit(name) {
                Some(bit) => named.bits |= bit,
                None if name == "ALL" => named.all = true,
                None => {
                    let allowed = "`ALL` and the names in capabilities(7) are allowed";
                    return Err(InvalidConfig::text(field, typed, allowed));
                }
            }
        }
        Ok(named)
    }
}

fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(add: &[&str], drop: &[&str]) -> Capabilities {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Capabilities::resolve(&own(add), &own(drop)).unwrap()
    }

    #[test]
    fn the_default_is_docker_s() {
        // As a container of Docker's shows it in `CapBnd` of /proc/self/status.
        assert_eq!(resolve(&[], &[]).bits(), 0xa804_25fb);
    }

    #[test]
    fn names_are_added_and_dropped() {
        assert!(resolve(&["NET_ADMIN"], &[]).has("NET_ADMIN"));
        assert!(!resolve(&[], &["cap_net_raw"]).has("NET_RAW"));
        assert_eq!(resolve(&[], &["ALL"]).bits(), 0);
        assert_eq!(resolve(&["CHOWN"], &["ALL"]).bits(), 1);
        assert_eq!(resolve(&["ALL"], &[]), Capabilities::ALL);
        let all_but_one = resolve(&["ALL"], &["SYS_ADMIN"]);
        assert!(!all_but_one.has("SYS_ADMIN") && all_but_one.has("SYS_BOOT"));
        assert!(Capabilities::resolve(&["WHAT".into()], &[]).is_err());
    }
}
