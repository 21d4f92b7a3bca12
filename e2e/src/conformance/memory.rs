//! Sandboxes at the limits of their memory, on any engine of VMs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use bouvet_host::{BoxConfig, Program, Sandbox};
use bytes::Bytes;

use crate::drive::{assert_usable, run_at_most};
use crate::site::{Site, Vmm, small};

/// Makes a test of every case, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_memory {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            programs_use_memory_up_to_its_limit
        }
    };
}

/// Sizes in MiB; `BOUVET_TEST_MEMORY_MIB` names others.
const SIZES: &str = "128,768";
/// Time limit for one program to write to all memory of a large sandbox, emulated on a busy machine.
const FILL_SECONDS: u64 = 300;

/// Takes nine tenths of what programs may still have, and writes to each page.
const MOST: &str = "
def bytes_of(name):
    return int(open('/sys/fs/cgroup/user/' + name).read())

size = (bytes_of('memory.max') - bytes_of('memory.current')) * 9 // 10
taken = bytearray(size)
taken[::4096] = b'x' * len(range(0, size, 4096))
print(taken.count(b'x') == len(range(0, size, 4096)), size)
";

const ALL: &str = "
taken = []
while True:
    part = bytearray(8 << 20)
    part[::4096] = b'x' * 2048
    taken.append(part)
";

/// In the first sandboxes of their sizes on a host, whose templates' memory nobody has touched.
pub async fn programs_use_memory_up_to_its_limit(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sizes = std::env::var_os("BOUVET_TEST_MEMORY_MIB").and_then(|sizes| sizes.into_string().ok());
    for size in sizes.as_deref().unwrap_or(SIZES).split(',') {
        let mut config: BoxConfig = small();
        config.resources.memory_mb = size.parse().unwrap();
        let sandbox = site.host.create(config).await.unwrap();
        let before = frozen_bytes();
        assert_limits_hold(&sandbox, size).await;
        sandbox.destroy().await;
        assert_eq!(frozen_bytes(), before, "{size} MiB: clones have changed their template's memory");
        eprintln!("{size} MiB: the templates take {} MiB", before >> 20);
    }
    site.end().await;
}

async fn assert_limits_hold(sandbox: &Sandbox, size: &str) {
    sandbox.write("kept", Bytes::from("before"), false).await.unwrap();
    let most = run_at_most(sandbox, FILL_SECONDS, Program::Python, MOST).await;
    let printed = most.stdout.text();
    assert!(printed.starts_with("True "), "{size} MiB: {most:?}");
    let all = run_at_most(sandbox, FILL_SECONDS, Program::Python, ALL).await;
    assert!(all.exit.out_of_memory, "{size} MiB: {all:?}");
    assert_eq!(sandbox.read("kept", 0, 100).await.unwrap().bytes, b"before", "{size} MiB");
    assert_usable(sandbox).await;
    eprintln!("{size} MiB: a program had {} bytes", printed.trim_start_matches("True ").trim());
}

/// Bytes of memory of frozen VMs in this process, which is their host.
fn frozen_bytes() -> u64 {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let is_memory = |path: &std::path::PathBuf| {
        // Others come and go while we look.
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:bouvet-memory"))
    };
    descriptors.filter(is_memory).map(|path| fs::metadata(path).unwrap().blocks() * 512).sum()
}
