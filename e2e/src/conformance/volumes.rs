//! Volumes: directories and files of the host in sandboxes, on any engine of VMs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use bouvet_host::{ExecRequest, Program, Sandbox, VolumeError, VolumeSpec, Volumes};
use tempfile::TempDir;

use crate::drive::{assert_usable, eventually, patient, printed, run, sh};
use crate::site::{Site, Vmm, small};

/// Makes a test of every case about volumes, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_volumes {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            volumes_show_a_directory_and_a_file_both_ways
        }
    };
}

fn spec(host: &Path, guest: &str, read_only: bool) -> VolumeSpec {
    VolumeSpec { host: host.into(), guest: guest.into(), read_only }
}

/// A sandbox with a directory of the host at `/data`.
async fn with_volume(site: &Site, read_only: bool) -> (Sandbox, TempDir, Volumes) {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = site.host.create(small()).await.unwrap();
    let volumes = sandbox.attach(&[spec(dir.path(), "/data", read_only)]).await.unwrap();
    (sandbox, dir, volumes)
}

/// What `command` says when it fails, as it must.
async fn refused(sandbox: &Sandbox, command: &str) -> String {
    let result = run(sandbox, Program::Command, command).await;
    assert_ne!(result.exit.exit_code, 0, "`{command}` succeeded: {}", result.stdout.text());
    result.stderr.text()
}

pub async fn volumes_show_a_directory_and_a_file_both_ways(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let (sandbox, dir, _volumes) = with_volume(&site, false).await;
    fs::write(dir.path().join("from-host"), "hello").unwrap();
    assert_eq!(sh(&sandbox, "cat /data/from-host; echo there > /data/from-guest").await, "hello");
    assert_eq!(fs::read_to_string(dir.path().join("from-guest")).unwrap(), "there\n");

    let file = dir.path().join("one");
    fs::write(&file, "1\n").unwrap();
    let _one = sandbox.attach(&[spec(&file, "/etc/new/one.conf", false)]).await.unwrap();
    assert_eq!(sh(&sandbox, "cat /etc/new/one.conf; echo 2 >> /etc/new/one.conf").await, "1");
    assert_eq!(fs::read_to_string(&file).unwrap(), "1\n2\n");
    site.end().await;
}
