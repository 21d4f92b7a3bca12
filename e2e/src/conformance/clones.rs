//! Templates, their clones, and the pool of clones that wait: what every engine must do that can freeze VMs.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bouvet_host::{Host, PoolOptions, Program, Sandbox};

use crate::drive::{assert_usable, patient, printed, sh};
use crate::site::{Site, Vmm, small};

/// Makes a test of every case, on VMs of `$vmm`.
#[macro_export]
macro_rules! conform_clones {
    ($vmm:expr) => {
        $crate::conform_on! { $vmm;
            no_two_clones_are_alike
            a_clone_that_waited_wakes_as_a_sandbox_of_its_own
            what_was_claimed_is_replaced
            a_template_outlives_its_host_and_is_built_again_when_it_is_damaged
            a_clone_begins_clean
        }
    };
}

fn pool(size: u32) -> Option<PoolOptions> {
    Some(PoolOptions { size, boots: 2, resources: small().resources })
}

async fn until_pooled(host: &Host, count: usize) {
    let deadline = Instant::now() + patient(180);
    while host.pool().0 != count {
        assert!(Instant::now() < deadline, "{} wait, and not {count}", host.pool().0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a program could take for its own alone.
async fn own_things(sandbox: &Sandbox) -> Vec<String> {
    let python = "
import os, random, secrets, uuid
print(os.getrandom(16).hex(), random.random(), uuid.uuid4(), secrets.token_hex(), sep='\\n')
print(open('/proc/sys/kernel/random/boot_id').read(), open('/etc/machine-id').read(), sep='', end='')
print(os.uname().nodename)
";
    let node = "console.log(Math.random()); console.log(crypto.randomUUID());";
    let bash = "echo $RANDOM$RANDOM$RANDOM; echo $SRANDOM; \
        ssh-keygen -q -t ed25519 -N '' -f key && cat key.pub";
    let mut things = Vec::new();
    for (program, source) in [(Program::Python, python), (Program::Node, node), (Program::Bash, bash)] {
        things.extend(printed(sandbox, program, source).await.lines().map(str::to_owned));
    }
    assert_eq!(things.len(), 12, "{things:?}");
    things
}

async fn assert_clock_is_right(sandbox: &Sandbox) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let seen: f64 =
        printed(sandbox, Program::Python, "import time; print(time.time())").await.parse().unwrap();
    let after = now();
    assert!(before - 0.1 < seen && seen < after + 0.1, "{seen} is not between {before} and {after}");
}

/// Clones of one template, waiting ones and others, have the same memory to begin with.
pub async fn no_two_clones_are_alike(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, pool(3)).await else { return };
    until_pooled(&site.host, 3).await;
    let mut seen = BTreeSet::new();
    for number in 1..=6 {
        let sandbox = site.host.create(small()).await.unwrap();
        assert_clock_is_right(&sandbox).await;
        for thing in own_things(&sandbox).await {
            assert!(seen.insert(thing.clone()), "clone {number} has what another had: {thing}");
        }
        sandbox.destroy().await;
    }
    site.end().await;
}

/// Stopped while it waits, it is woken by the claim: with the caller's environment, the time of now and a link that
/// carries calls both ways.
pub async fn a_clone_that_waited_wakes_as_a_sandbox_of_its_own(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, pool(1)).await else { return };
    until_pooled(&site.host, 1).await;
    // Long enough for a clock that stood still to be seen.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut config = small();
    config.extra_env = [("WHOSE".into(), "mine".into())].into();
    let sandbox = site.host.create(config).await.unwrap();
    assert_clock_is_right(&sandbox).await;
    let id = sandbox.id().to_string();
    assert_eq!(sh(&sandbox, "echo $WHOSE; hostname").await, format!("mine\nsandbox-{}", &id[..8]));
    assert_usable(&sandbox).await;
    site.end().await;
}

pub async fn what_was_claimed_is_replaced(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, pool(2)).await else { return };
    until_pooled(&site.host, 2).await;
    assert!(site.host.list().is_empty(), "what waits is nobody's sandbox");

    let sandbox = site.host.create(small()).await.unwrap();
    assert_usable(&sandbox).await;
    let mut other = small();
    other.resources.memory_mb = 320;
    let other = site.host.create(other).await.unwrap();
    assert_usable(&other).await;
    until_pooled(&site.host, 2).await;
    site.end().await;
}

pub async fn a_template_outlives_its_host_and_is_built_again_when_it_is_damaged(vmm: Vmm) {
    let dir = tempfile::tempdir().unwrap();
    let templates = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let dirs: BTreeSet<_> = entries.filter(|path| path.is_dir()).collect();
        dirs
    };
    let use_one = async || {
        let site = Site::with_templates(vmm, dir.path()).await?;
        let sandbox = site.host.create(small()).await.unwrap();
        assert_usable(&sandbox).await;
        site.end().await;
        Some(())
    };
    let Some(()) = use_one().await else { return };
    let first = templates();
    assert_eq!(first.len(), 1);
    let memory = first.first().unwrap().join("memory");
    let built = fs::metadata(&memory).unwrap().modified().unwrap();
    use_one().await;
    assert_eq!((templates(), fs::metadata(&memory).unwrap().modified().unwrap()), (first.clone(), built));

    // Damaged, it is built again.
    fs::write(first.first().unwrap().join("devices"), "").unwrap();
    use_one().await;
    assert_eq!(templates(), first);
    assert_ne!(fs::metadata(&memory).unwrap().modified().unwrap(), built);
}

/// A program that ran in one sandbox before it was frozen would run in all; none of ours may.
pub async fn a_clone_begins_clean(vmm: Vmm) {
    let Some(site) = Site::pooled(vmm, None).await else { return };
    let sandbox = site.host.create(small()).await.unwrap();
    let left = sh(&sandbox, "ls -A /tmp /run/bouvet").await;
    assert_eq!(left, "/run/bouvet:\ncell.js\ncontext\ncontext.js\ncontext.py\nnode.js\npython.py\n\n/tmp:");
    assert_eq!(sh(&sandbox, "ls -d /sys/fs/cgroup/user/program-* | wc -l").await, "1");
    site.end().await;
}
