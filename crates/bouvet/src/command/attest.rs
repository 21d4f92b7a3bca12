//! `bouvet attest`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bouvet_host::attest::{Claims, Digest, Expected, MAX_REPORT_BYTES, Part, Report, VerifyError};
use clap::Args;
use hyper::Method;
use rustix::rand::{GetRandomFlags, getrandom};

use super::outcome::{Connection, Failed};
use super::{table, usage};
use crate::api::client::path;
use crate::api::shape::AttestationView;

/// Bytes of a number that is used once.
const NONCE_BYTES: usize = 32;

#[derive(Debug, Args)]
#[command(
    after_help = "The sandbox must have been created with `--tee`. The exit code is 0 if the report is valid, else 125."
)]
pub(crate) struct Line {
    /// Sandbox: its name, its id, or the first characters of its id
    #[arg(required_unless_present = "report")]
    sandbox: Option<String>,
    /// Verify a saved report
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sandbox", "save"])]
    report: Option<PathBuf>,
    /// Nonce that the report must contain [default for a sandbox: a random one]
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
    /// Workload that the report must name
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Expected digest of measurement, kernel, initramfs, rootfs or sidecar
    #[arg(long, value_name = "PART=SHA384")]
    expect: Vec<String>,
    /// Save the report to a file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print the contents as JSON
    #[arg(long)]
    json: bool,
}

impl Line {
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> Option<&str> {
        self.sandbox.as_deref()
    }

    /// What is known beforehand.
    pub(super) fn expected(&self) -> Result<Expected, Failed> {
        let nonce = self.nonce.as_deref().map(|text| {
            hex::decode(text)
                .map_err(|_| usage::wrong("--nonce", text, "pairs of hexadecimal digits are allowed"))
        });
        let parts = self.expect.iter().map(|text| expectation(text));
        Ok(Expected {
            report_data: nonce.transpose()?,
            workload_id: self.workload.clone(),
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    /// Verifies a report that was saved; `None` if a sandbox is meant.
    pub(super) fn saved(&self) -> Option<Result<u8, Failed>> {
        let path = self.report.as_ref()?;
        Some(self.expected().and_then(|expected| self.verify(&read(path)?, &expected)))
    }

    fn verify(&self, report: &Report, expected: &Expected) -> Result<u8, Failed> {
        let claims = report.verify(expected).map_err(|error| refused(&error))?;
        // Also where the rest is for a program.
        table::note(&format!(
            "SIMULATED: made without {}, and signed by a key that everybody has. It proves nothing.",
            claims.technology.name()
        ));
        match self.json {
            true => table::json(&claims)?,
            false => show(&claims, expected)?,
        }
        Ok(0)
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let mut expected = line.expected()?;
    if expected.report_data.is_none() {
        expected.report_data = Some(nonce()?);
    }
    let told =
        AttestationView { report_data: expected.report_data.as_ref().map(hex::encode).unwrap_or_default() };
    let sandbox = line.sandbox.as_deref().unwrap_or_default();
    let path = path(&["sandboxes", sandbox, "attestation"], &[]);
    let report: Report = connection.client.call(Method::POST, &path, Some(&told)).await?;
    let verified = line.verify(&report, &expected)?;
    if let Some(file) = &line.save {
        let text = serde_json::to_vec(&report).map_err(Failed::new)?;
        std::fs::write(file, text)
            .map_err(|error| Failed::new(format!("could not write `{}`: {error}", file.display())))?;
    }
    Ok(verified)
}

fn expectation(text: &str) -> Result<(Part, Digest), Failed> {
    let wrong = |allowed: &str| usage::wrong("--expect", text, allowed);
    let (part, digest) = text.split_once('=').ok_or_else(|| wrong("PART=SHA384 is allowed"))?;
    let part = part.parse().map_err(wrong)?;
    Ok((
        part,
        digest.parse().map_err(|_| wrong("a digest is 96 hexadecimal digits, as sha384sum prints them"))?,
    ))
}

fn read(path: &Path) -> Result<Report, Failed> {
    let failed = |error| Failed::new(format!("could not read `{}`: {error}", path.display()));
    let mut json = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_REPORT_BYTES as u64 + 1).read_to_end(&mut json).map_err(failed)?;
    Report::from_json(&json).map_err(|error| refused(&error))
}

fn refused(error: &VerifyError) -> Failed {
    Failed::new(format!("the report was not verified: {error}"))
}

fn nonce() -> Result<Vec<u8>, Failed> {
    let mut nonce = vec![0; NONCE_BYTES];
    // So few bytes come whole (getrandom(2)).
    getrandom(&mut nonce[..], GetRandomFlags::empty())
        .map_err(|error| Failed::new(format!("no random number: {error}")))?;
    Ok(nonce)
}

fn show(claims: &Claims, expected: &Expected) -> Result<(), Failed> {
    // The value last: a kernel's command line is long.
    let row = |name: &str, compared: &str, value: String| vec![name.to_owned(), compared.to_owned(), value];
    let mut rows = vec![
        row("workload", compared(expected.workload_id.is_some()), claims.workload_id.clone()),
        row("sandbox", "", claims.sandbox_id.clone()),
        row("nonce", compared(expected.report_data.is_some()), claims.report_data.clone()),
    ];
    for part in [Part::Measurement, Part::Kernel, Part::Initramfs, Part::Rootfs, Part::Sidecar] {
        let Some(digest) = claims.launch.digest(part) else { continue };
        let known = expected.parts.iter().any(|(known, _)| *known == part);
        rows.push(row(part.name(), compared(known), digest.to_string()));
    }
    rows.push(row("command line", "", claims.launch.command_line.clone()));
    table::print(&["CLAIM", "AS EXPECTED", "VALUE"], rows)
}

fn compared(known: bool) -> &'static str {
    if known { "yes" } else { "not compared" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_read() {
        let digest = "ab".repeat(48);
        let (part, read) = expectation(&format!("rootfs={digest}")).unwrap();
        assert_eq!((part, read.to_string()), (Part::Rootfs, digest));
        for (text, why) in [
            ("rootfs", "PART=SHA384 is allowed"),
            ("disk=ab", "measurement, kernel, initramfs, rootfs and sidecar are allowed"),
            ("rootfs=ab", "96 hexadecimal digits"),
        ] {
            let failed = expectation(text).unwrap_err().text;
            assert!(failed.starts_with("`--expect` is `") && failed.contains(why), "{failed}");
        }
        assert_ne!(nonce().unwrap(), nonce().unwrap());
    }
}
