//! What is particular to IPv6: that a kernel may be without it, and that it has an address later than it says so.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take until packets to an address are its own: some milliseconds, where nothing else is busy.
const DEADLINE: Duration = Duration::from_secs(2);
/// How often it is looked at.
const INTERVAL: Duration = Duration::from_millis(1);
/// All routes, those of the table `local` among them (`net/ipv6/route.c`).
const ROUTES: &str = "/proc/net/ipv6_route";
/// Among the flags of a route: what goes there is for this machine (`RTF_LOCAL`, `include/uapi/linux/ipv6_route.h`).
const LOCAL: u32 = 0x8000_0000;

/// Whether the kernel has IPv6 for an interface with these settings. It was built without, or started with
/// `ipv6.disable=1`: then there are none. Or it was told not to use it there.
pub(super) fn is_there(settings: &Path) -> bool {
    fs::read_to_string(settings.join("disable_ipv6")).is_ok_and(|disabled| disabled.trim() == "0")
}

/// Waits until the kernel takes packets to `address`, which was added. Until then it drops them. One that takes longer than
/// it may is left to itself: it is late, and IPv4 is not.
pub(super) async fn await_local(address: Ipv6Addr) {
    let until = Instant::now() + DEADLINE;
    while !fs::read_to_string(ROUTES).is_ok_and(|routes| is_local(&routes, address)) && Instant::now() < until
    {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Whether packets to `address` are the kernel's own by its `routes`: each a line of the destination, its prefix, the
/// source, its prefix, the next hop, a metric, two counts, flags and the interface, with numbers in hexadecimal.
fn is_local(routes: &str, address: Ipv6Addr) -> bool {
    let wanted = format!("{:032x}", address.to_bits());
    routes.lines().any(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let flags = fields.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        fields[..].starts_with(&[&wanted, "80"]) && flags.is_some_and(|flags| flags & LOCAL != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_ipv6_is_told_by_what_it_has_no_settings_for() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_there(&dir.path().join("eth0")), "it has none at all");
        assert!(!is_there(dir.path()));
        for (disabled, there) in [("0\n", true), ("1\n", false), ("", false)] {
            fs::write(dir.path().join("disable_ipv6"), disabled).unwrap();
            assert_eq!(is_there(dir.path()), there, "{disabled:?}");
        }
    }

    /// As Linux 6.1 has it, before and after.
    #[test]
    fn an_address_is_local_once_there_is_a_route_to_it_that_says_so() {
        let address = "fd00:b0e7::15".parse().unwrap();
        let before = "\
fd00b0e7000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
fd00b0e7000000000000000000000015 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001     eth0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000003 00000000 80200001       lo
";
        assert!(!is_local(before, address));
        let local = "fd00b0e7000000000000000000000015 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001     eth0";
        assert!(is_local(&format!("{before}{local}\n"), address));
        assert!(!is_local(&format!("{before}{local}\n"), "fd00:b0e7::16".parse().unwrap()));
        for broken in ["", "\n", "fd00b0e7000000000000000000000015 80", &local[..120]] {
            assert!(!is_local(broken, address), "{broken}");
        }
    }
}
