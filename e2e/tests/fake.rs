//! The conformance list on the engine without VMs: the real host and the real guest, in milliseconds.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bouvet_e2e::drive::patient;
use bouvet_e2e::site::{Site, small};
use bouvet_host::{
    BoxConfig, ContextError, ContextRequest, CreateError, ExecRequest, FileError, Happening, Program,
    Sandbox, Watched,
};

bouvet_e2e::conform!(bouvet_e2e::site::Site::fake);

/// Events went on for as long as anybody had a handle to the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_a_host_sees_its_end() {
    let site = Site::fake().await.unwrap();
    let (host, mut events) = (site.host.clone(), site.host.events());
    let id = host.create(small()).await.unwrap().id();
    site.end().await;
    let mut seen = Vec::new();
    let watching = async {
        while let Some(watched) = events.next().await {
            seen.push(watched);
        }
    };
    let watched = tokio::time::timeout(patient(60), watching).await;
    assert!(watched.is_ok(), "its events never ended");
    let seen: Vec<_> = seen
        .into_iter()
        .map(|watched| match watched {
            Watched::Event(event) => (event.sandbox, event.happening),
            Watched::Missed(count) => panic!("{count} events were missed"),
        })
        .collect();
    assert_eq!(seen, [Happening::Create, Happening::Start, Happening::Destroy].map(|event| (id, event)));
    assert_eq!(host.events().next().await, None, "who comes later is at the end at once");
}

/// A persistent sandbox that waits for its restart, for seconds.
async fn waiting_for_restart(site: &Site) -> Sandbox {
    let config = BoxConfig { persistent: true, restart: "unless-stopped".into(), ..small() };
    let mut events = site.host.events();
    let sandbox = site.host.create(config).await.expect("it is created");
    let mut happened = async |wanted: fn(&Happening) -> bool| {
        let happened = async {
            while !matches!(events.next().await, Some(Watched::Event(event)) if wanted(&event.happening)) {}
        };
        tokio::time::timeout(patient(60), happened).await.expect("it neither failed nor started");
    };
    // Each wait is twice as long as the one before.
    for _ in 0..6 {
        happened(|happening| *happening == Happening::Start).await;
        // Without a VM its guest is the parent of what runs in it. The call may end before it has begun.
        if let Ok(exec) = sandbox.exec(ExecRequest::new(Program::Command, "kill -9 $PPID")).await {
            exec.finish().await.expect_err("its guest is gone");
        }
        happened(|happening| matches!(happening, Happening::Fail { .. })).await;
    }
    until("it waits for its restart", || sandbox.info().is_restarting).await;
    sandbox
}

/// Whether its record has it that somebody stopped it.
fn is_kept_as_stopped(boxes: &Path, sandbox: &Sandbox) -> bool {
    let record =
        std::fs::read(boxes.join(sandbox.id().to_string()).join("box.json")).expect("it has a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("it is JSON");
    record["runs"]["was_asked"].as_bool().expect("it has the field")
}

/// It was forgotten, and the next host started what its user had stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_before_a_restart_outlives_the_host() {
    let boxes = tempfile::tempdir().unwrap();
    let site = Site::fake_with_boxes(boxes.path()).await;
    let sandbox = waiting_for_restart(&site).await;
    assert!(!is_kept_as_stopped(boxes.path(), &sandbox));
    sandbox.stop_by("INT".parse().unwrap(), Duration::from_secs(1)).await.unwrap();
    assert!(!sandbox.info().is_restarting);
    assert!(is_kept_as_stopped(boxes.path(), &sandbox));

    sandbox.start().await.unwrap();
    site.end().await;
    assert!(!is_kept_as_stopped(boxes.path(), &sandbox), "the end of its host is no stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_that_ends_keeps_restart_policies() {
    let boxes = tempfile::tempdir().unwrap();
    let site = Site::fake_with_boxes(boxes.path()).await;
    let sandbox = waiting_for_restart(&site).await;
    site.end().await;
    assert!(!is_kept_as_stopped(boxes.path(), &sandbox));
}

/// The guest's executable of the site's host.
fn guest_of(site: &Site) -> PathBuf {
    let hosts = std::fs::read_dir(site.dir()).expect("the site has a directory").flatten();
    hosts
        .map(|host| host.path().join("bouvet-guest"))
        .find(|guest| guest.is_file())
        .expect("its host has a guest")
}

/// Puts a program at the place of the guest's executable, as a whole: the old one may be running.
fn put_guest(guest: &Path, program: &[u8]) {
    let new = guest.with_extension("new");
    std::fs::write(&new, program).expect("it is written");
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("it may be run");
    std::fs::rename(new, guest).expect("it is put in place");
}

/// Waits for `condition`.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PROMPTLY, holds).await.is_ok(), "never: {what}");
}

/// A guest that never speaks.
const MUTE: &[u8] = b"#!/bin/sh\necho $$ >>\"$0.started\"\nexec sleep 1000\n";
/// Far less than a guest has until its host gives it up.
const PROMPTLY: Duration = Duration::from_secs(30);

/// Waits until the mute guest was started so often.
async fn started(guest: &Path, count: usize) {
    let starts =
        || std::fs::read_to_string(guest.with_extension("started")).unwrap_or_default().lines().count();
    until("a guest was started", || starts() >= count).await;
}

/// Waits until no mute guest runs.
async fn given_up(guest: &Path) {
    let pids = std::fs::read_to_string(guest.with_extension("started")).expect("a guest was started");
    let runs = |pid: &str| Path::new("/proc").join(pid).exists();
    until("it is no longer booted for nobody", || !pids.lines().any(runs)).await;
}

/// Begins to read the files of `sandbox`, which nothing will ever serve.
fn read_in_vain(sandbox: &Sandbox) -> tokio::task::JoinHandle<Result<(), FileError>> {
    let sandbox = sandbox.clone();
    tokio::spawn(async move { sandbox.stat("/").await.map(drop) })
}

/// The owner of a sandbox was deaf for as long as the VM booted that was to serve its files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn booting_reader_holds_up_no_order() {
    let site = Site::fake().await.unwrap();
    let guest = guest_of(&site);
    let honest = std::fs::read(&guest).unwrap();
    let boots = async |count: usize| started(&guest, count).await;
    let sandbox = site.host.create(small()).await.unwrap();
    sandbox.stop(Duration::ZERO).await.unwrap();

    put_guest(&guest, MUTE);
    let reading = read_in_vain(&sandbox);
    boots(1).await;
    put_guest(&guest, &honest);
    tokio::time::timeout(PROMPTLY, sandbox.start()).await.expect("its start waits").unwrap();
    reading.await.unwrap().unwrap_err();
    sandbox.stop(Duration::ZERO).await.unwrap();

    // More than there may be at once: one whose callers have gone is given up.
    for count in 2..7 {
        put_guest(&guest, MUTE);
        let reading = read_in_vain(&sandbox);
        boots(count).await;
        reading.abort();
        given_up(&guest).await;
        put_guest(&guest, &honest);
        let read = tokio::time::timeout(PROMPTLY, sandbox.stat("/")).await.expect("its files wait");
        read.unwrap();
        sandbox.start().await.unwrap();
        sandbox.stop(Duration::ZERO).await.unwrap();
    }
    put_guest(&guest, MUTE);
    let reading = read_in_vain(&sandbox);
    boots(7).await;
    tokio::time::timeout(PROMPTLY, sandbox.destroy()).await.expect("its end waits");
    reading.await.unwrap().unwrap_err();
    site.end().await;
}

/// It lived until its time was over, and nobody knew of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_creation_leaves_no_sandbox() {
    let site = Site::fake().await.unwrap();
    let guest = guest_of(&site);
    let honest = std::fs::read(&guest).unwrap();
    put_guest(&guest, MUTE);
    let mut events = site.host.events();
    let creating = tokio::spawn({
        let host = site.host.clone();
        async move { host.create(small()).await }
    });
    started(&guest, 1).await;
    creating.abort();
    let destroyed = async {
        while !matches!(events.next().await, Some(Watched::Event(event)) if event.happening == Happening::Destroy)
        {
        }
    };
    tokio::time::timeout(PROMPTLY, destroyed).await.expect("it is still made, for nobody");

    // One that is made all the same, by whom nobody hears of it.
    put_guest(&guest, &honest);
    {
        let creating = std::pin::pin!(site.host.create(small()));
        assert!(futures_util::poll!(creating).is_pending());
    }
    until("no sandbox is left", || site.host.list().is_empty()).await;
    site.host.create(small()).await.unwrap();

    // Destroyed by others, its creation ends too.
    put_guest(&guest, MUTE);
    let creating = tokio::spawn({
        let host = site.host.clone();
        async move { host.create(BoxConfig { name: "slow".into(), ..small() }).await }
    });
    started(&guest, 2).await;
    tokio::time::timeout(PROMPTLY, site.host.find("slow").unwrap().destroy())
        .await
        .expect("its boot is waited for");
    assert!(matches!(creating.await.unwrap(), Err(CreateError::Destroyed)));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_contexts_leave_their_places() {
    const MAX_CONTEXTS: usize = 8;
    let site = Site::fake().await.unwrap();
    let sandbox = site.host.create(small()).await.unwrap();
    let python = || ContextRequest::new(Program::Python);
    for _ in 0..MAX_CONTEXTS {
        let creating = std::pin::pin!(sandbox.create_context(python()));
        assert!(futures_util::poll!(creating).is_pending());
    }
    let mut made = 0;
    let all = async {
        while made < MAX_CONTEXTS {
            match sandbox.create_context(python()).await {
                Ok(_) => made += 1,
                Err(ContextError::TooMany(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(patient(60), all).await.expect("contexts that nobody knows are left");
    site.end().await;
}
