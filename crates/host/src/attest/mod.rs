//! Attestation: what a sandbox was launched from, measured ([`launch`]), and a report of it that others can verify
//! ([`report`]).
//!
//! A processor with AMD SEV-SNP or Intel TDX measures what a VM begins with, and signs a report of it by a key that
//! nobody else has. No engine launches such VMs yet: a report of ours is simulated, and says so. It takes the place of a
//! real one in whatever handles reports, and proves nothing.
//!
//! ```no_run
//! use bouvet_host::attest::{Expected, Part};
//! use bouvet_host::{BoxConfig, TeeConfig};
//! # async fn example(host: bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
//!
//! let tee = TeeConfig::Tdx { workload_id: "agent".into(), simulate: true };
//! let sandbox = host.create(BoxConfig { tee, ..BoxConfig::default() }).await?;
//! let known = std::fs::read_to_string("rootfs.sha384")?.trim().parse()?;
//! let expected = Expected {
//!     report_data: Some(b"a number used once".to_vec()),
//!     parts: vec![(Part::Rootfs, known)],
//!     ..Expected::default()
//! };
//! let claims = sandbox.attest(b"a number used once")?.verify(&expected)?;
//! assert!(claims.simulated);
//! # Ok(())
//! # }
//! ```

mod digest;
mod hardware;
mod launch;
mod report;

pub(crate) use self::hardware::check;
pub(crate) use self::launch::{Launch, Measurer};
pub(crate) use self::report::issue;

pub use self::digest::{Digest, ParseDigestError};
pub use self::launch::{MeasureError, Measured, Part};
pub use self::report::{
    Claims, Expected, MAX_REPORT_BYTES, MAX_REPORT_DATA_BYTES, Report, Technology, VerifyError,
};

use crate::sandbox::state::Refusal;

/// Why there is no report of a sandbox.
///
/// ```no_run
/// # fn example(sandbox: &bouvet_host::Sandbox) {
/// use bouvet_host::attest::AttestError;
///
/// match sandbox.attest(b"a number used once") {
///     Ok(report) => println!("{report:?}"),
///     Err(AttestError::NotMeasured) => println!("make it with `tee`"),
///     Err(error) => println!("{error}"),
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The sandbox cannot do it now.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its launch was not measured.
    #[error("the sandbox was made without `tee`: its launch was not measured")]
    NotMeasured,
    /// A report has no room for what it is to carry.
    #[error("{0} bytes are to be in the report, which has room for {MAX_REPORT_DATA_BYTES}")]
    TooMuchData(usize),
}
