//! `tmpfs`: file systems in the guest's memory.

use bouvet_wire::owner;

use super::{InvalidConfig, check_guest_path, size};

const FIELD: &str = "tmpfs";
const ALLOWED: &str = "`/path`, or `/path:` and some of size=, mode=, uid=, gid=, ro, rw, exec, noexec, suid, nosuid, dev and nodev \
                       with commas between them are allowed, with a size of 1 byte to 1 TiB";

/// The largest size: what no machine has. What is written there counts as memory all the same.
const MAX_BYTES: u64 = 1 << 40;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    pub(crate) path: String,
    /// `None`: half of the guest's memory, which is the kernel's own default.
    pub(crate) size_bytes: Option<u64>,
    /// Permission bits of its root.
    pub(crate) mode: u32,
    /// Owner and group of its root.
    pub(crate) uid: u32,
    /// See [`Tmpfs::uid`].
    pub(crate) gid: u32,
    pub(crate) read_only: bool,
    pub(crate) exec: bool,
    pub(crate) suid: bool,
    pub(crate) dev: bool,
}

impl Tmpfs {
    /// Parses `/path[:option,…]`. What is not said is as Docker has it: nothing in there is run, nor counts as setuid or
    /// as a device.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        check_guest_path(FIELD, path)?;
        let mut tmpfs = Self {
            path: path.to_owned(),
            size_bytes: None,
            mode: 0o1777,
            uid: 0,
            gid: 0,
            read_only: false,
            exec: false,
            suid: false,
            dev: false,
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            tmpfs.set(option).ok_or_else(|| InvalidConfig::text(FIELD, text, ALLOWED))?;
        }
        if path.trim_matches('/').is_empty() {
            return Err(InvalidConfig::text(FIELD, text, "anything but the root is allowed"));
        }
        Ok(tmpfs)
    }

    fn set(&mut self, option: &str) -> Option<()> {
        match option.split_once('=').unwrap_or((option, "")) {
            // Zero would mean no limit to the kernel (tmpfs(5)).
            ("size", size) => {
                self.size_bytes = Some(size::parse(size).filter(|bytes| (1..=MAX_BYTES).contains(bytes))?)
            }
            ("mode", mode) => self.mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?,
            ("uid", id) => self.uid = owner::parse_id(id).ok()??,
            ("gid", id) => self.gid = owner::parse_id(id).ok()??,
            ("ro", "") => self.read_only = true,
            ("rw", "") => self.read_only = false,
            ("exec", "") => self.exec = true,
            ("noexec", "") => self.exec = false,
            ("suid", "") => self.suid = true,
            ("nosuid", "") => self.suid = false,
            ("dev", "") => self.dev = true,
            ("nodev", "") => self.dev = false,
            _ => return None,
        }
        Some(())
    }
}

/// See [`BoxConfig::within_bounds`](super::BoxConfig::within_bounds).
pub(super) fn within_bounds(text: &str) -> String {
    let option = |option: &str| match option.strip_prefix("size=").and_then(size::parse) {
        Some(bytes) if bytes > MAX_BYTES => format!("size={MAX_BYTES}"),
        _ => option.to_owned(),
    };
    match text.split_once(':') {
        Some((path, options)) => {
            let options: Vec<_> = options.split(',').map(option).collect();
            format!("{path}:{}", options.join(","))
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_and_the_rest_is_docker_s() {
        let plain = Tmpfs::parse("/run").unwrap();
        assert_eq!((plain.size_bytes, plain.mode, plain.exec, plain.dev), (None, 0o1777, false, false));
        let said = Tmpfs::parse("/a/b:size=100m,mode=700,exec,ro").unwrap();
        assert_eq!((said.size_bytes, said.mode), (Some(100 << 20), 0o700));
        assert!(said.exec && said.read_only && !said.suid);
        let owned = Tmpfs::parse("/a:uid=2147483647,gid=50").unwrap();
        assert_eq!((owned.uid, owned.gid), (2_147_483_647, 50));
        for wrong in ["/x:uid=2147483648", "/x:gid=4294967295", "/x:uid=-1", "/x:gid=", "/x:uid=root"] {
            assert_eq!(Tmpfs::parse(wrong).unwrap_err().field, "tmpfs", "{wrong}");
        }
        for wrong in
            ["", "run", "/", "/../x", "/x:size=", "/x:size=0", "/x:mode=9", "/x:huge", "/x:size=1,,what"]
        {
            assert_eq!(Tmpfs::parse(wrong).unwrap_err().field, "tmpfs", "{wrong}");
        }
    }
}
