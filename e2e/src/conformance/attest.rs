//! Reports of what sandboxes were launched from, held against what there is to see of it.

use std::path::Path;

use bouvet_host::attest::{
    AttestError, Digest, Expected, MAX_REPORT_DATA_BYTES, Measured, Part, Technology, VerifyError,
};
use bouvet_host::{BoxConfig, CreateError, Refusal, Sandbox, SevSnpGeneration, TeeConfig};

use crate::drive::{patient, sh};
use crate::site::{Site, Vmm, images, small};

fn snp(simulate: bool) -> BoxConfig {
    let (workload_id, generation) = ("web".to_owned(), SevSnpGeneration::Genoa);
    BoxConfig { tee: TeeConfig::SevSnp { workload_id, generation, simulate }, ..small() }
}

async fn sha384sum(path: &Path) -> Digest {
    #[expect(clippy::disallowed_methods, reason = "what it is held against is another's work")]
    let output = tokio::process::Command::new("sha384sum").arg(path).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn launch(sandbox: &Sandbox) -> Measured {
    sandbox.attest(b"").unwrap().verify(&Expected::default()).unwrap().launch
}

pub async fn a_report_says_what_a_sandbox_was_launched_from(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let Some((kernel, rootfs)) = images() else { return };
    let sandbox = site.host.create(snp(true)).await.unwrap();
    let report = sandbox.attest(b"once").unwrap();
    let expected = Expected {
        report_data: Some(b"once".to_vec()),
        workload_id: Some("web".into()),
        parts: vec![(Part::Kernel, sha384sum(&kernel).await), (Part::Rootfs, sha384sum(&rootfs).await)],
    };
    let claims = report.verify(&expected).unwrap();
    assert!(claims.simulated, "there is no such hardware in reach");
    assert_eq!((claims.technology, claims.sandbox_id), (Technology::SevSnp, sandbox.id().to_string()));
    let told = sh(&sandbox, "cat /proc/cmdline").await;
    // Firecracker adds where its devices are.
    assert!(told.trim().starts_with(&claims.launch.command_line), "{told}");
    assert!(!claims.launch.command_line.is_empty());

    let stale = Expected { report_data: Some(b"twice".to_vec()), ..Expected::default() };
    assert!(matches!(report.verify(&stale), Err(VerifyError::ReportData { .. })));
    let room = vec![0; MAX_REPORT_DATA_BYTES];
    assert!(sandbox.attest(&room).is_ok());
    let too_much = [&room[..], &[0]].concat();
    assert_eq!(sandbox.attest(&too_much), Err(AttestError::TooMuchData(65)));
    sandbox.stop(patient(10)).await.unwrap();
    assert!(matches!(sandbox.attest(b""), Err(AttestError::Refused(Refusal::Stopped(_)))));
    sandbox.start().await.unwrap();
    assert_eq!(launch(&sandbox), claims.launch, "it is launched from the same again");

    let kept = BoxConfig { persistent: true, ..snp(true) };
    let kept = site.host.create(kept).await.unwrap();
    assert_ne!(launch(&kept).measurement(), claims.measurement, "its kernel is told to keep its disk");
    kept.destroy().await;
    let plain = site.host.create(small()).await.unwrap();
    assert_eq!(plain.attest(b""), Err(AttestError::NotMeasured));
    let real = site.host.create(snp(false)).await.unwrap_err();
    assert!(matches!(real, CreateError::NoTee { technology: "AMD SEV-SNP", .. }), "{real}");
    site.end().await;
}
