//! What of the processor's confidential computing there is on this machine.

use std::fs;
use std::path::Path;

use super::Technology;
use crate::boxconfig::TeeConfig;
use crate::host::CreateError;

/// Refuses a `tee` that no VM here can have.
pub(crate) fn check(tee: &TeeConfig) -> Result<(), CreateError> {
    check_in(Path::new("/sys/module"), tee)
}

fn check_in(modules: &Path, tee: &TeeConfig) -> Result<(), CreateError> {
    let technology = match tee {
        TeeConfig::SevSnp { simulate: false, .. } => Technology::SevSnp,
        TeeConfig::Tdx { simulate: false, .. } => Technology::Tdx,
        TeeConfig::None | TeeConfig::SevSnp { .. } | TeeConfig::Tdx { .. } => return Ok(()),
    };
    let parameter = modules.join(parameter(technology));
    // What cannot be read is not there: the module is not loaded, or its kernel knows nothing of it.
    let said = fs::read_to_string(&parameter).unwrap_or_default();
    let why = match matches!(said.trim(), "Y" | "1") {
        true => "its engines cannot launch such VMs".to_owned(),
        false => format!("KVM does not offer it: `{}` is not Y", parameter.display()),
    };
    Err(CreateError::NoTee { technology: technology.name(), why })
}

/// The parameter of the module of KVM that says whether VMs may have it (Linux, `arch/x86/kvm/svm/sev.c` and
/// `arch/x86/kvm/vmx/tdx.c`).
fn parameter(technology: Technology) -> &'static str {
    match technology {
        Technology::SevSnp => "kvm_amd/parameters/sev_snp",
        Technology::Tdx => "kvm_intel/parameters/tdx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxconfig::SevSnpGeneration;

    #[test]
    fn real_hardware_is_refused_with_what_is_missing() {
        let modules = tempfile::tempdir().unwrap();
        let tdx = |simulate| TeeConfig::Tdx { workload_id: "w".into(), simulate };
        let refused = |tee: &TeeConfig| check_in(modules.path(), tee).unwrap_err().to_string();
        assert!(check_in(modules.path(), &TeeConfig::None).is_ok());
        assert!(check_in(modules.path(), &tdx(true)).is_ok());
        let error = refused(&tdx(false));
        assert!(error.starts_with("`tee` asks for Intel TDX, which this host does not have"), "{error}");
        assert!(error.contains("kvm_intel/parameters/tdx` is not Y"), "{error}");

        let dir = modules.path().join("kvm_amd/parameters");
        fs::create_dir_all(&dir).unwrap();
        let generation = SevSnpGeneration::Milan;
        let snp = TeeConfig::SevSnp { workload_id: "w".into(), generation, simulate: false };
        for (said, why) in [("N\n", "is not Y"), ("Y\n", "cannot launch such VMs")] {
            fs::write(dir.join("sev_snp"), said).unwrap();
            let error = refused(&snp);
            assert!(error.contains("AMD SEV-SNP") && error.contains(why), "{error}");
        }
    }
}
