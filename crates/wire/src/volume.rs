//! Where in a guest a volume may be mounted. Both ends ask: the host to refuse early, the guest again when it knows
//! where the path really leads.

use crate::limits::MAX_PATH_BYTES;

/// Mount points below which the guest's own life takes place; nothing may be mounted there or below.
const RESERVED: &[&str] = &["/proc", "/sys", "/dev", "/run/bouvet"];

/// Why nothing can be mounted at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// It does not begin at the root.
    #[error("the path in the sandbox must be absolute")]
    Relative,
    /// It could be written shorter, or leads up.
    #[error("the path in the sandbox must have no `.`, `..`, empty part or slash at its end")]
    NotNormal,
    /// It has a NUL byte.
    #[error("the path in the sandbox must have no NUL byte")]
    Nul,
    /// It is too long.
    #[error("the path in the sandbox may have {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// It would hide the whole of the sandbox, or what its guest lives on.
    #[error(
        "nothing may be mounted at `/`, at `/run`, or at or below `/proc`, `/sys`, `/dev` and `/run/bouvet`"
    )]
    Reserved,
}

/// Whether a volume may be mounted at `target`.
pub fn check_target(target: &str) -> Result<(), BadTarget> {
    if target.contains('\0') {
        return Err(BadTarget::Nul);
    }
    if target.len() > MAX_PATH_BYTES {
        return Err(BadTarget::TooLong);
    }
    let Some(relative) = target.strip_prefix('/') else { return Err(BadTarget::Relative) };
    if relative.is_empty() {
        return Err(BadTarget::Reserved);
    }
    if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(BadTarget::NotNormal);
    }
    let is_at_or_below = |path: &str, top: &str| {
        path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    // What lies above would hide it.
    if RESERVED.iter().any(|dir| is_at_or_below(target, dir) || is_at_or_below(dir, target)) {
        return Err(BadTarget::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_mounted_where_they_hide_nothing_of_the_guest_s() {
        for target in ["/workspace", "/root/a b", "/devices", "/run/other", "/run/bouvet2", "/a/..b"] {
            assert_eq!(check_target(target), Ok(()), "{target}");
        }
        for target in ["/", "/run", "/run/bouvet", "/run/bouvet/x", "/proc", "/proc/1", "/sys/fs", "/dev/shm"]
        {
            assert_eq!(check_target(target), Err(BadTarget::Reserved), "{target}");
        }
        for target in ["/a/", "/a//b", "/a/./b", "/a/../proc", "/..", "//"] {
            assert_eq!(check_target(target), Err(BadTarget::NotNormal), "{target}");
        }
        assert_eq!(check_target(""), Err(BadTarget::Relative));
        assert_eq!(check_target("a"), Err(BadTarget::Relative));
        assert_eq!(check_target("/a\0"), Err(BadTarget::Nul));
        let longest = format!("/{}", "a".repeat(MAX_PATH_BYTES - 1));
        assert_eq!(check_target(&longest), Ok(()));
        assert_eq!(check_target(&(longest + "a")), Err(BadTarget::TooLong));
    }
}
