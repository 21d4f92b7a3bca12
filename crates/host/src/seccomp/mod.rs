//! Which system calls a sandbox's programs may make: filters for the guest to install.
//!
//! Several filters stand for one profile, since each knows two actions: the kernel runs all, and the most severe answer
//! counts (seccomp(2)).

mod default;
mod profile;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use bytes::{BufMut as _, Bytes, BytesMut};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use crate::boxconfig::InvalidConfig;
use crate::boxconfig::plan::{Seccomp, Security};

const MAX_PROFILE_BYTES: u64 = 1024 * 1024;

/// What is asked about each system call: none of its rules, for any arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Whether programs may use vsock, by which a VM speaks to its host. A profile of the caller's own goes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vsock {
    Open,
    Closed,
}

/// The filters that `security` comes to, each an array of the guest's `struct sock_filter`.
pub(crate) fn filters(security: &Security, vsock: Vsock) -> Result<Vec<Bytes>, InvalidConfig> {
    let compiled = match &security.seccomp {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::Default => default::filters(security.capabilities, vsock).map_err(|error| error.to_string()),
        Seccomp::Profile(path) => read(path).and_then(|text| profile::filters(&text, security.capabilities)),
    };
    let compiled = compiled.map_err(|why| InvalidConfig {
        field: "security_opt",
        value: match &security.seccomp {
            Seccomp::Profile(path) => format!("`seccomp={}`", path.display()),
            Seccomp::Default | Seccomp::Unconfined => "Docker's profile".into(),
        },
        allowed: format!("it cannot be used: {why}"),
    })?;
    Ok(compiled.iter().map(encode).collect())
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PROFILE_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| error.to_string())?;
    match text.len() as u64 > MAX_PROFILE_BYTES {
        true => Err(format!("it has more than {MAX_PROFILE_BYTES} bytes")),
        false => Ok(text),
    }
}

/// A filter that answers `matched` to what `rules` say, and `otherwise` to all else. `None` if it says nothing.
fn compile(
    rules: Rules,
    matched: SeccompAction,
    otherwise: SeccompAction,
) -> Result<Option<BpfProgram>, seccompiler::BackendError> {
    if rules.is_empty() {
        return Ok(None);
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch)?;
    BpfProgram::try_from(filter).map(Some)
}

/// As the kernel of the same machine reads it (`include/uapi/linux/filter.h`, `struct sock_filter`).
fn encode(program: &BpfProgram) -> Bytes {
    let mut bytes = BytesMut::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.put_u16_ne(instruction.code);
        bytes.put_u8(instruction.jt);
        bytes.put_u8(instruction.jf);
        bytes.put_u32_ne(instruction.k);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests;
