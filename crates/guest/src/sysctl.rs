//! Kernel settings that a sandbox's description asks for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bouvet_wire::v1;

/// A setting that the kernel does not have, or does not take.
#[derive(Debug, thiserror::Error)]
#[error("could not set the kernel setting `{name}` to `{value}`")]
pub(crate) struct Error {
    name: String,
    value: String,
    source: io::Error,
}

/// Sets them, in this order. Those of a namespace are set for this process's.
pub(crate) fn set(sysctls: &[v1::Sysctl]) -> Result<(), Error> {
    for v1::Sysctl { name, value } in sysctls {
        let failed = |source| Error { name: name.clone(), value: value.clone(), source };
        fs::write(file(name), value).map_err(failed)?;
    }
    Ok(())
}

fn file(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}
