//! What clones that wait cost: in a binary of its own, so that no other VM runs meanwhile.

#![expect(clippy::unwrap_used, reason = "test code: a panic is how it reports")]

use std::fs;
use std::time::{Duration, Instant};

use bouvet_e2e::site::{Site, Vmm, small};
use bouvet_host::PoolOptions;

/// Processor time that all children of this process have used, in clock ticks of 10 ms.
fn ticks() -> u64 {
    let of_child = |pid: &str| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // utime and stime are the 12th and 13th fields after the name (proc(5)).
        let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(12).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    };
    let lists = fs::read_dir("/proc/self/task").unwrap().map(|task| {
        // A thread may end meanwhile.
        fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()
    });
    lists.map(|list| list.split_whitespace().map(of_child).sum::<u64>()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_clones_use_no_processor() {
    let pool = PoolOptions { size: 3, boots: 2, resources: small().resources };
    let Some(site) = Site::pooled(Vmm::Qemu, Some(pool)).await else { return };
    let deadline = Instant::now() + Duration::from_secs(180);
    while site.host.pool().0 != 3 {
        assert!(Instant::now() < deadline, "the pool was never full");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = ticks();
    assert!(before > 0, "their start took some");
    tokio::time::sleep(Duration::from_secs(3)).await;
    // QEMU's own housekeeping may count as one.
    assert!(ticks() - before <= 1, "{} ticks in 3 s", ticks() - before);
    site.end().await;
}
