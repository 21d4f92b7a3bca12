//! Which QEMU this is.

use super::BINARY;
use crate::confine;
use crate::engine::EngineError;

const OLDEST: (u32, u32) = (7, 2);

/// The version as QEMU prints it: that of the distribution's package is part of it.
pub(super) async fn check() -> Result<String, EngineError> {
    let printed = confine::run_tool(BINARY, ["--version"].iter())
        .await
        .map_err(|error| EngineError::NoVmm(BINARY, error))?;
    let first_line = printed.lines().next().unwrap_or_default().to_owned();
    match parse_version(&printed) {
        Some(version) if version >= OLDEST => Ok(first_line),
        _ => {
            let found = first_line;
            Err(EngineError::OldVmm { vmm: BINARY, found, needed: "7.2" })
        }
    }
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(printed: &str) -> Option<(u32, u32)> {
    let mut numbers = printed.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_qemu_prints() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)"), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("bash"), None);
    }
}
