//! Reports: what is claimed of a sandbox, in an envelope that is signed.
//!
//! The envelope is DSSE 1.0.2 (the `secure-systems-lab/dsse` specification), so that its parts are bytes, and nobody has
//! to agree on how JSON is written.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Digest, Measured, Part};
use crate::boxconfig::{SevSnpGeneration, TeeConfig};

/// A whole report as JSON: some kilobytes, most of them the kernel's command line.
pub const MAX_REPORT_BYTES: usize = 64 * 1024;
/// What a caller may have in a report, as `REPORT_DATA` of SEV-SNP and `REPORTDATA` of TDX have it.
pub const MAX_REPORT_DATA_BYTES: usize = 64;

const PAYLOAD_TYPE: &str = "application/vnd.bouvet.attestation.v1+json";
/// The key of simulated reports is made from this. It is no secret: whoever reads this can sign.
const SIMULATED_KEY: &str =
    "Bouvet's simulated attestation: everybody has this key, so that it proves nothing";
/// Names that key.
const SIMULATED_KEY_ID: &str = "bouvet-simulated";

/// Whose confidential computing a report is about.
///
/// ```
/// use bouvet_host::attest::Technology;
///
/// assert_eq!(serde_json::to_string(&Technology::SevSnp)?, r#""sev-snp""#);
/// assert_eq!(Technology::SevSnp.name(), "AMD SEV-SNP");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Technology {
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
}

impl Technology {
    /// Its name, as its maker has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SevSnp => "AMD SEV-SNP",
            Self::Tdx => "Intel TDX",
        }
    }
}

/// What a report says.
///
/// ```no_run
/// # fn example(report: bouvet_host::attest::Report) -> Result<(), bouvet_host::attest::VerifyError> {
/// use bouvet_host::attest::Expected;
///
/// let claims = report.verify(&Expected::default())?;
/// println!("{} was launched from {}", claims.workload_id, claims.launch.rootfs);
/// assert!(claims.simulated, "it proves nothing");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// That it was made without the hardware, and proves nothing. There are no others yet.
    pub simulated: bool,
    /// What it stands for.
    pub technology: Technology,
    /// Of the processor that it stands for, where that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<SevSnpGeneration>,
    /// What its owner calls what runs.
    pub workload_id: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// What whoever asked for it had put in, as hexadecimal digits: that it is fresh shows by a number used once.
    pub report_data: String,
    /// When it was made, in seconds since 1970.
    pub issued_at: u64,
    /// [`Measured::measurement`].
    pub measurement: Digest,
    /// What the sandbox was launched from.
    pub launch: Measured,
}

/// A signed report: see [`Report::verify`], and [the module](crate::attest).
///
/// ```
/// use bouvet_host::attest::{Report, VerifyError};
///
/// assert!(matches!(Report::from_json(b"{}"), Err(VerifyError::Malformed(_))));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

/// What whoever verifies a report knows beforehand. The default expects nothing.
///
/// ```
/// use bouvet_host::attest::{Expected, Part};
///
/// let digest = "0".repeat(96).parse()?; // of sha384sum
/// let expected = Expected { parts: vec![(Part::Kernel, digest)], ..Expected::default() };
/// assert!(expected.report_data.is_none() && expected.workload_id.is_none());
/// # Ok::<(), bouvet_host::attest::ParseDigestError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// What must be in it, if that is known.
    pub report_data: Option<Vec<u8>>,
    /// The workload that it must be about, if that is known.
    pub workload_id: Option<String>,
    /// Digests that it must have.
    pub parts: Vec<(Part, Digest)>,
}

/// Why a report is not believed.
///
/// ```
/// use bouvet_host::attest::{MAX_REPORT_BYTES, Report, VerifyError};
///
/// let error = Report::from_json(&vec![b' '; MAX_REPORT_BYTES + 1]).unwrap_err();
/// assert_eq!(error, VerifyError::TooLong(MAX_REPORT_BYTES + 1));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is not read.
    #[error("the report is {0} bytes long; {MAX_REPORT_BYTES} are allowed")]
    TooLong(usize),
    /// It is not in the form of one.
    #[error("it is no report: {}", .0.escape_debug())]
    Malformed(String),
    /// Nobody that is known has signed it.
    #[error("the report is not signed by a key that is known")]
    UnknownKey,
    /// It was changed since it was signed.
    #[error("the signature is not the report's")]
    Signature,
    /// It contradicts itself.
    #[error("the measurement is not that of the parts that the report has")]
    Inconsistent,
    /// It was made for somebody else, or at another time.
    #[error("the report carries `{}`, and not `{expected}`", found.escape_debug())]
    ReportData {
        /// What it should carry, as hexadecimal digits.
        expected: String,
        /// What it carries.
        found: String,
    },
    /// It is about something else.
    #[error("the report is about the workload `{}`, and not `{expected}`", found.escape_debug())]
    Workload {
        /// What it should be about.
        expected: String,
        /// What it is about.
        found: String,
    },
    /// Something else was launched.
    #[error("the {} is {found}, and not {expected}", part.name())]
    Part {
        /// What differs.
        part: Part,
        /// What it should be.
        expected: Digest,
        /// What it is, or `none`.
        found: String,
    },
}

/// A report of the sandbox `sandbox_id`, which `tee` asks reports of; `None` if it asks for none.
pub(crate) fn issue(
    tee: &TeeConfig,
    sandbox_id: String,
    measured: &Measured,
    report_data: &[u8],
) -> Option<Report> {
    let (technology, generation, workload_id) = match tee {
        TeeConfig::None => return None,
        TeeConfig::SevSnp { workload_id, generation, .. } => {
            (Technology::SevSnp, Some(*generation), workload_id.clone())
        }
        TeeConfig::Tdx { workload_id, .. } => (Technology::Tdx, None, workload_id.clone()),
    };
    let claims = Claims {
        simulated: true,
        technology,
        generation,
        workload_id,
        sandbox_id,
        report_data: hex::encode(report_data),
        issued_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        measurement: measured.measurement(),
        launch: measured.clone(),
    };
    // Strings and numbers: to write them cannot fail.
    let payload = serde_json::to_vec(&claims).ok()?;
    Some(seal(&payload))
}

fn seal(payload: &[u8]) -> Report {
    let signature = simulated_key().sign(&signed_bytes(PAYLOAD_TYPE, payload));
    Report {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: STANDARD.encode(payload),
        signatures: vec![Signature { keyid: SIMULATED_KEY_ID.to_owned(), sig: STANDARD.encode(signature) }],
    }
}

#[expect(clippy::expect_used, reason = "any 32 bytes are a seed")]
fn simulated_key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&Sha256::digest(SIMULATED_KEY)).expect("a seed of 32 bytes")
}

/// What DSSE signs (`PAE`): the type and the payload, each after its length.
fn signed_bytes(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

impl Report {
    /// Reads one that was written as JSON.
    pub fn from_json(json: &[u8]) -> Result<Self, VerifyError> {
        if json.len() > MAX_REPORT_BYTES {
            return Err(VerifyError::TooLong(json.len()));
        }
        serde_json::from_slice(json).map_err(|error| VerifyError::Malformed(error.to_string()))
    }

    /// What it says, if it was signed by a key that is known, was not changed since, and is what is expected. A simulated
    /// one is verified like any other: look at [`Claims::simulated`].
    pub fn verify(&self, expected: &Expected) -> Result<Claims, VerifyError> {
        let malformed = |error: &dyn std::fmt::Display| VerifyError::Malformed(error.to_string());
        if self.payload_type != PAYLOAD_TYPE {
            return Err(malformed(&format_args!("its type is not `{PAYLOAD_TYPE}`")));
        }
        if self.payload.len() > MAX_REPORT_BYTES {
            return Err(VerifyError::TooLong(self.payload.len()));
        }
        let payload = STANDARD.decode(&self.payload).map_err(|error| malformed(&error))?;
        let ours = self.signatures.iter().find(|signature| signature.keyid == SIMULATED_KEY_ID);
        let signature = STANDARD.decode(&ours.ok_or(VerifyError::UnknownKey)?.sig);
        let key = simulated_key();
        UnparsedPublicKey::new(&ED25519, key.public_key())
            .verify(
                &signed_bytes(&self.payload_type, &payload),
                &signature.map_err(|error| malformed(&error))?,
            )
            .map_err(|_| VerifyError::Signature)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|error| malformed(&error))?;
        // What is signed by the key of simulated reports is nothing else.
        if !claims.simulated {
            return Err(malformed(&"it says that it is not simulated, and is"));
        }
        claims.check(expected)?;
        Ok(claims)
    }
}

impl Claims {
    fn check(&self, expected: &Expected) -> Result<(), VerifyError> {
        if self.launch.measurement() != self.measurement {
            return Err(VerifyError::Inconsistent);
        }
        if let Some(expected) = expected.report_data.as_ref().map(hex::encode)
            && expected != self.report_data
        {
            return Err(VerifyError::ReportData { expected, found: self.report_data.clone() });
        }
        if let Some(expected) = expected.workload_id.clone().filter(|expected| *expected != self.workload_id)
        {
            return Err(VerifyError::Workload { expected, found: self.workload_id.clone() });
        }
        for &(part, expected) in &expected.parts {
            let found = self.launch.digest(part);
            if found != Some(expected) {
                let found = found.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
                return Err(VerifyError::Part { part, expected, found });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::launch::tests::measured;

    fn report() -> Report {
        let generation = SevSnpGeneration::Genoa;
        let tee = TeeConfig::SevSnp { workload_id: "w".into(), generation, simulate: true };
        issue(&tee, "id".into(), &measured(), b"once").unwrap()
    }

    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Report {
        let mut claims = serde_json::from_slice(&STANDARD.decode(report().payload).unwrap()).unwrap();
        change(&mut claims);
        seal(&serde_json::to_vec(&claims).unwrap())
    }

    #[test]
    fn a_report_says_what_it_was_made_of_and_that_it_is_simulated() {
        let json = serde_json::to_vec(&report()).unwrap();
        let expected = Expected {
            report_data: Some(b"once".to_vec()),
            workload_id: Some("w".into()),
            parts: vec![
                (Part::Measurement, measured().measurement()),
                (Part::Kernel, measured().kernel),
                (Part::Initramfs, measured().initramfs),
                (Part::Rootfs, measured().rootfs),
            ],
        };
        let claims = Report::from_json(&json).unwrap().verify(&expected).unwrap();
        assert!(claims.simulated);
        assert_eq!((claims.launch, claims.technology), (measured(), Technology::SevSnp));
        assert_eq!((claims.generation, &claims.sandbox_id[..]), (Some(SevSnpGeneration::Genoa), "id"));
        assert!(issue(&TeeConfig::None, "id".into(), &measured(), b"").is_none());
    }

    #[test]
    fn what_is_not_expected_is_named() {
        let other = "00".repeat(48).parse().unwrap();
        let refused = |expected: Expected| report().verify(&expected).unwrap_err().to_string();
        let with = |part| refused(Expected { parts: vec![(part, other)], ..Expected::default() });
        assert!(with(Part::Measurement).starts_with("the measurement is "));
        assert!(with(Part::Rootfs).starts_with("the rootfs is "));
        assert!(with(Part::Sidecar).starts_with("the sidecar is none, and not 0000"));
        let data = Expected { report_data: Some(b"twice".to_vec()), ..Expected::default() };
        assert_eq!(refused(data), "the report carries `6f6e6365`, and not `7477696365`");
        let workload = Expected { workload_id: Some("v".into()), ..Expected::default() };
        assert_eq!(refused(workload), "the report is about the workload `w`, and not `v`");
    }

    #[test]
    fn what_was_changed_is_not_believed() {
        let verified = |report: &Report| report.verify(&Expected::default()).map(drop);
        let good = report();
        assert_eq!(verified(&good), Ok(()));
        let other = changed(|claims| claims["workload_id"] = "v".into());
        let mixed = Report { payload: other.payload, ..good.clone() };
        assert_eq!(verified(&mixed), Err(VerifyError::Signature));
        let unsigned = Report { signatures: Vec::new(), ..good.clone() };
        assert_eq!(verified(&unsigned), Err(VerifyError::UnknownKey));
        let retyped = Report { payload_type: "text/plain".into(), ..good.clone() };
        assert!(matches!(verified(&retyped), Err(VerifyError::Malformed(_))));
        let long = Report { payload: "A".repeat(MAX_REPORT_BYTES + 1), ..good };
        assert_eq!(verified(&long), Err(VerifyError::TooLong(MAX_REPORT_BYTES + 1)));
        // By a key that everybody has, but not what it says.
        let measurement = "00".repeat(48);
        let inconsistent = changed(|claims| claims["measurement"] = measurement.into());
        assert_eq!(verified(&inconsistent), Err(VerifyError::Inconsistent));
        let real = changed(|claims| claims["simulated"] = false.into());
        assert!(matches!(verified(&real), Err(VerifyError::Malformed(_))));
        let more = changed(|claims| claims["trusted"] = true.into());
        assert!(matches!(verified(&more), Err(VerifyError::Malformed(_))));
    }

    /// Everybody can sign one that says anything, and a terminal obeys what it is told.
    #[test]
    fn errors_steer_no_terminal() {
        let hostile = "\u{1b}[2J";
        let said = |report: &Report, expected: &Expected| report.verify(expected).unwrap_err().to_string();
        let workload = changed(|claims| claims["workload_id"] = hostile.into());
        let data = changed(|claims| claims["report_data"] = hostile.into());
        let field = changed(|claims| claims[hostile] = true.into());
        let expected = Expected { workload_id: Some("w".into()), ..Expected::default() };
        let carrying = Expected { report_data: Some(b"once".to_vec()), ..Expected::default() };
        for error in [said(&workload, &expected), said(&data, &carrying), said(&field, &expected)] {
            assert!(error.contains("[2J") && !error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn what_is_no_report_is_said_to_be_none() {
        assert!(matches!(Report::from_json(b"{}"), Err(VerifyError::Malformed(_))));
        let long = vec![b' '; MAX_REPORT_BYTES + 1];
        assert_eq!(Report::from_json(&long), Err(VerifyError::TooLong(MAX_REPORT_BYTES + 1)));
    }

    /// From the specification of DSSE.
    #[test]
    fn what_is_signed_is_dsse_s() {
        let signed = signed_bytes("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
