//! What a VM begins with, and its measurement.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha384};
use tokio::sync::Mutex;

use super::Digest;
use crate::engine::{Rootfs, file_identity};

/// Digests of files that are remembered: a kernel, an initramfs, and the root file systems of as many images as a cache
/// keeps, and more.
const MAX_REMEMBERED: usize = 64;
/// What is digested before the parts, so that no digest of something else is a measurement.
const DOMAIN: &[u8] = b"bouvet launch 1\0";

/// What an engine starts a VM with, beside its root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// What the kernel is told.
    pub(crate) command_line: String,
}

/// What a sandbox was launched from.
///
/// ```
/// use bouvet_host::attest::{Measured, Part};
///
/// let digest = "0".repeat(96);
/// let text = format!(
///     r#"{{"kernel": "{digest}", "initramfs": "{digest}", "command_line": "quiet", "rootfs": "{digest}"}}"#
/// );
/// let measured: Measured = serde_json::from_str(&text)?;
/// assert_eq!(measured.digest(Part::Sidecar), None);
/// let louder = Measured { command_line: "loglevel=7".into(), ..measured.clone() };
/// assert_ne!(louder.measurement(), measured.measurement());
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// That is the digests of the files that its VM began with, and what its kernel was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Of the kernel.
    pub kernel: Digest,
    /// Of the initramfs, with the guest's own program and the kernel's modules.
    pub initramfs: Digest,
    /// What the kernel was told.
    pub command_line: String,
    /// Of the root file system below what the sandbox writes.
    pub rootfs: Digest,
    /// Of its sidecar's, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Digest>,
}

/// What of a launch can be known beforehand.
///
/// ```
/// use bouvet_host::attest::Part;
///
/// assert_eq!("rootfs".parse(), Ok(Part::Rootfs));
/// assert_eq!(Part::Rootfs.name(), "rootfs");
/// assert!("disk".parse::<Part>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it: [`Measured::measurement`].
    Measurement,
    /// [`Measured::kernel`].
    Kernel,
    /// [`Measured::initramfs`].
    Initramfs,
    /// [`Measured::rootfs`].
    Rootfs,
    /// [`Measured::sidecar`].
    Sidecar,
}

impl Part {
    const ALL: [Self; 5] = [Self::Measurement, Self::Kernel, Self::Initramfs, Self::Rootfs, Self::Sidecar];

    /// Its name: `rootfs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measurement => "measurement",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Rootfs => "rootfs",
            Self::Sidecar => "sidecar",
        }
    }
}

impl FromStr for Part {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|part| part.name() == name);
        found.ok_or("measurement, kernel, initramfs, rootfs and sidecar are allowed")
    }
}

impl Measured {
    /// One digest of all: SHA-384 over `bouvet launch 1` and NUL, then for each part its name, NUL, and its digest, in the
    /// order `kernel`, `initramfs`, `command_line`, `rootfs`, and `sidecar` if there is one.
    pub fn measurement(&self) -> Digest {
        let command_line = Digest(Sha384::digest(&self.command_line).into());
        let parts = [
            ("kernel", Some(self.kernel)),
            ("initramfs", Some(self.initramfs)),
            ("command_line", Some(command_line)),
            ("rootfs", Some(self.rootfs)),
            ("sidecar", self.sidecar),
        ];
        let mut all = Sha384::new_with_prefix(DOMAIN);
        for (name, digest) in parts {
            let Some(Digest(digest)) = digest else { continue };
            all.update(name);
            all.update([0]);
            all.update(digest);
        }
        Digest(all.finalize().into())
    }

    /// The digest of `part`; `None` for a sidecar that it has not.
    pub fn digest(&self, part: Part) -> Option<Digest> {
        match part {
            Part::Measurement => Some(self.measurement()),
            Part::Kernel => Some(self.kernel),
            Part::Initramfs => Some(self.initramfs),
            Part::Rootfs => Some(self.rootfs),
            Part::Sidecar => self.sidecar,
        }
    }
}

/// A file could not be measured.
///
/// ```no_run
/// # async fn example(host: &bouvet_host::Host, config: bouvet_host::BoxConfig) {
/// use bouvet_host::CreateError;
///
/// if let Err(CreateError::Measure(error)) = host.create(config).await {
///     println!("what is at {}? {}", error.path.display(), error.source);
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("could not measure `{path}`")]
pub struct MeasureError {
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// Digests by the path of a file, and what tells whether it was written to since.
type Known = HashMap<(PathBuf, String), Digest>;

/// Measures launches, one at a time: who waits finds most of its digests known. Files that it has seen, and that nobody
/// has written to since, it does not read again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measurer(Arc<Mutex<Known>>);

impl Measurer {
    /// What a sandbox is that begins with `launch` and `rootfs`. Reads gigabytes the first time.
    pub(crate) async fn measure(&self, launch: Launch, rootfs: Rootfs) -> Result<Measured, MeasureError> {
        let mut known = self.0.clone().lock_owned().await;
        let measure = move || {
            Ok(Measured {
                kernel: digest_of(&launch.kernel, &mut known)?,
                initramfs: digest_of(&launch.initramfs, &mut known)?,
                command_line: launch.command_line,
                rootfs: digest_of(&rootfs.path, &mut known)?,
                sidecar: rootfs.sidecar.map(|path| digest_of(&path, &mut known)).transpose()?,
            })
        };
        match tokio::task::spawn_blocking(measure).await {
            Ok(measured) => measured,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn digest_of(path: &Path, known: &mut Known) -> Result<Digest, MeasureError> {
    let failed = |source| MeasureError { path: path.to_owned(), source };
    let key = (path.to_owned(), file_identity(path).map_err(failed)?);
    if let Some(digest) = known.get(&key) {
        return Ok(*digest);
    }
    let mut digest = Sha384::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut digest)).map_err(failed)?;
    if file_identity(path).map_err(failed)? != key.1 {
        return Err(failed(io::Error::other("it was written to meanwhile")));
    }
    let digest = Digest(digest.finalize().into());
    if known.len() == MAX_REMEMBERED {
        known.clear();
    }
    known.insert(key, digest);
    Ok(digest)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn digest(of: &str) -> Digest {
        Digest(Sha384::digest(of).into())
    }

    pub(in crate::attest) fn measured() -> Measured {
        Measured {
            kernel: digest("kernel"),
            initramfs: digest("initramfs"),
            command_line: "quiet".into(),
            rootfs: digest("rootfs"),
            sidecar: None,
        }
    }

    #[test]
    fn each_part_changes_the_measurement() {
        let measured = measured();
        let other = digest("other");
        let all = [
            measured.clone(),
            Measured { kernel: other, ..measured.clone() },
            Measured { initramfs: other, ..measured.clone() },
            Measured { command_line: "quiet ".into(), ..measured.clone() },
            Measured { rootfs: other, ..measured.clone() },
            Measured { sidecar: Some(other), ..measured.clone() },
            Measured { kernel: measured.initramfs, initramfs: measured.kernel, ..measured.clone() },
        ];
        let measurements: std::collections::HashSet<_> = all.iter().map(Measured::measurement).collect();
        assert_eq!(measurements.len(), all.len());
    }

    #[test]
    fn the_measurement_is_the_one_that_is_described() {
        let measured = Measured { sidecar: Some(digest("sidecar")), ..measured() };
        let mut text = b"bouvet launch 1\0".to_vec();
        for part in ["kernel", "initramfs", "command_line", "rootfs", "sidecar"] {
            let content = if part == "command_line" { "quiet" } else { part };
            text.extend([part.as_bytes(), b"\0", &digest(content).0].concat());
        }
        assert_eq!(measured.measurement(), Digest(Sha384::digest(text).into()));
        for part in Part::ALL {
            assert_eq!(part.name().parse(), Ok(part));
            assert!(measured.digest(part).is_some());
        }
    }

    #[tokio::test]
    async fn files_are_read_again_when_they_were_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        };
        let launch =
            Launch { kernel: file("kernel"), initramfs: file("initramfs"), command_line: "quiet".into() };
        let rootfs = Rootfs { path: file("rootfs"), identity: String::new(), is_base: true, sidecar: None };
        let measurer = Measurer::default();
        assert_eq!(measurer.measure(launch.clone(), rootfs.clone()).await.unwrap(), measured());
        let remembered = async || measurer.0.lock().await.len();
        assert_eq!(remembered().await, 3);
        measurer.measure(launch.clone(), rootfs.clone()).await.unwrap();
        assert_eq!(remembered().await, 3);
        std::fs::write(&rootfs.path, "another").unwrap();
        let changed = measurer.measure(launch.clone(), rootfs.clone()).await.unwrap();
        assert_eq!(changed, Measured { rootfs: digest("another"), ..measured() });
        std::fs::remove_file(&rootfs.path).unwrap();
        let error = measurer.measure(launch, rootfs).await.unwrap_err();
        assert!(error.to_string().starts_with("could not measure `"), "{error}");
    }
}
