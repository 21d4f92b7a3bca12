//! Ids of users and groups, as people, images and files write them; pure.

/// The largest id of a user or group, as in Docker. Larger ones are negative to much software, and the last of 32 bits
/// means "no change" to chown(2) and setresuid(2).
pub const MAX_ID: u32 = i32::MAX as u32;

/// A number that is not the id of a user or group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ids of users and groups are 0 to {MAX_ID}")]
pub struct IdOutOfRange;

/// The id that `text` is; `None` if it is not a number, and thus may be a name.
pub fn parse_id(text: &str) -> Result<Option<u32>, IdOutOfRange> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    // More digits than any integer has are out of range too.
    text.parse().ok().and_then(checked_id).map(Some).ok_or(IdOutOfRange)
}

/// `id`, if it is one.
pub fn checked_id(id: u64) -> Option<u32> {
    u32::try_from(id).ok().filter(|id| *id <= MAX_ID)
}

/// The parts of `user`, `user:group` and `:group`. A part that is empty is not given: `1000:` is `1000`.
pub fn split_user(text: &str) -> (Option<&str>, Option<&str>) {
    let given = |part: &'_ str| !part.is_empty();
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    (Some(user).filter(|part| given(part)), Some(group).filter(|part| given(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_hold_at_the_limit_and_not_past_it() {
        assert_eq!(parse_id("0"), Ok(Some(0)));
        assert_eq!(parse_id("2147483647"), Ok(Some(MAX_ID)));
        for wrong in ["2147483648", "4294967295", "4294967296", "-1", "-0", "99999999999999999999999"] {
            assert_eq!(parse_id(wrong), Err(IdOutOfRange), "{wrong}");
        }
        for name in ["", "-", "root", "1a", "+5", " 5", "0x10", "1_000"] {
            assert_eq!(parse_id(name), Ok(None), "{name}");
        }
        assert_eq!(checked_id(u64::from(MAX_ID)), Some(MAX_ID));
        assert_eq!(checked_id(u64::from(MAX_ID) + 1), None);
    }

    #[test]
    fn empty_parts_of_a_user_are_not_given() {
        assert_eq!(split_user(""), (None, None));
        assert_eq!(split_user("1000:"), (Some("1000"), None));
        assert_eq!(split_user(":50"), (None, Some("50")));
        assert_eq!(split_user("a:b"), (Some("a"), Some("b")));
    }
}
