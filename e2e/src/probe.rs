//! Whether Firecracker can boot the tests' kernel here at all.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::sync::OnceCell;

/// Where KVM is software, a boot takes most of a minute.
const DEADLINE: Duration = Duration::from_secs(180);
/// A kernel that finds no disk says this after all else that it does.
const AT_ITS_END: &str = "Unable to mount root fs";

/// Boots `kernel` once for all tests of this process, without a disk, by `firecracker`. Fails with what it said last.
pub async fn boots(firecracker: &Path, kernel: &Path, kernel_args: &str) -> Result<(), String> {
    static BOOTED: OnceCell<Result<(), String>> = OnceCell::const_new();
    BOOTED.get_or_init(|| try_boot(firecracker, kernel, kernel_args)).await.clone()
}

async fn try_boot(firecracker: &Path, kernel: &Path, kernel_args: &str) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = dir.path().join("vm.json");
    let config = json!({
        "boot-source": {
            "kernel_image_path": kernel,
            "boot_args": format!("console=ttyS0 reboot=k panic=1 loglevel=4 {kernel_args}"),
        },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
    });
    std::fs::write(&path, config.to_string()).map_err(|error| error.to_string())?;
    #[expect(clippy::disallowed_methods, reason = "nothing of ours is involved yet")]
    let mut vmm = tokio::process::Command::new(firecracker);
    vmm.args(["--no-api", "--config-file"]).arg(&path).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(DEADLINE, vmm.output()).await;
    let ended = ended.map_err(|_| format!("it did not end within {DEADLINE:?}"))?;
    let said = ended.map_err(|error| error.to_string())?.stdout;
    let said = String::from_utf8_lossy(&said);
    match said.contains(AT_ITS_END) {
        true => Ok(()),
        false => Err(said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing").to_owned()),
    }
}
