//! Guests that do not keep to the rules while their sandbox stops, is killed, or is copied into.

use std::path::Path;
use std::sync::Mutex;

use tokio::sync::Notify;

use super::*;
use crate::resting::RestingDisks;
use crate::sandbox::archive::Files;
use crate::sandbox::life::Runs;
use crate::sandbox::order::{ControlError, Order, OrderError};
use crate::sandbox::owner::{End, Owner};
use crate::sandbox::state::{Event, State, Stop};
use crate::sandbox::{Sandbox, scripted};

/// Deadline for what must not wait for the guest: far below any deadline that the guest's answers have.
const PROMPT: Duration = Duration::from_secs(5);

/// Calls that a guest was sent, by their names, and the end of its main program.
#[derive(Debug, Default)]
struct Guest {
    calls: Mutex<Vec<String>>,
    called: Notify,
    main_ends: Notify,
    /// Whether it answers nothing any more.
    is_mute: AtomicBool,
}

impl Guest {
    /// Waits for a call.
    async fn got(&self, name: &str) {
        loop {
            let called = self.called.notified();
            if self.calls.lock().unwrap().iter().any(|call| call == name) {
                return;
            }
            called.await;
        }
    }

    /// An honest guest, but for the calls `unanswered`.
    fn script(self: &Arc<Self>, unanswered: &'static [&'static str]) -> Script {
        let guest = self.clone();
        Arc::new(move |path: &str| {
            let name = path.rsplit('/').next().unwrap_or_default();
            guest.calls.lock().unwrap().push(name.to_owned());
            guest.called.notify_waiters();
            match name {
                _ if unanswered.contains(&name) || guest.is_mute.load(Ordering::Acquire) => {
                    response(stream::pending())
                }
                "Personalise" => personalised(bouvet_wire::GENERATION),
                "Exec" => guest.clone().main(),
                // The others have no fields.
                _ => one_message(&v1::SyncReply {}),
            }
        })
    }

    /// A main program, whose exit code is 1.
    fn main(self: Arc<Self>) -> Answer {
        let output = |output| prefixed(&v1::ExecOutput { output: Some(output) });
        let started = output(Output::Started(v1::ExecStarted { pid: 2 }));
        let exit = output(Output::Exit(v1::ExecExit { exit_code: 1, ..v1::ExecExit::default() }));
        let ended = stream::once(async move {
            self.main_ends.notified().await;
            stream::iter([exit, success()])
        });
        response(stream::iter([started]).chain(ended.flatten()))
    }
}

/// A sandbox that runs on a VM of `script`, and the task of its owner.
async fn running(
    script: Script,
    dir: &Path,
    prepare: impl FnOnce(&mut Owner),
) -> (Sandbox, tokio::task::JoinHandle<(End, Owner)>) {
    let config = BoxConfig { cmd: vec!["serve".into()], restart: "always".into(), ..BoxConfig::default() };
    let (sandbox, mut owner) = scripted::sandbox(config.clone(), State::Starting, Runs::default());
    let engine = Scripted { script, stopped: Arc::default() };
    let live = super::bring_up(&engine, dir, sandbox.id(), config).await.unwrap();
    owner.happen(Event::Ready);
    prepare(&mut owner);
    let owned = tokio::spawn(async move {
        let end = owner.own(live, None, Duration::ZERO).await;
        (end, owner)
    });
    (sandbox, owned)
}

async fn promptly<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PROMPT, work).await.unwrap_or_else(|_| panic!("{what} waits for the guest"))
}

/// The exit reached the owner before the answer to the signal did, and the sandbox was started again.
#[tokio::test]
async fn killed_sandbox_stays_down_without_an_answer() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let (sandbox, owned) = running(guest.script(&["Signal"]), dir.path(), |_| ()).await;
    let killed = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.signal("KILL".parse().unwrap()).await }
    });
    guest.got("Signal").await;
    guest.main_ends.notify_one();
    promptly("an end", owned).await.unwrap();
    assert_eq!(sandbox.state(), State::Stopped(Stop { exit_code: 1, out_of_memory: false }));
    assert!(sandbox.life().runs().was_asked);
    assert!(killed.await.unwrap().is_ok(), "it is dead");
}

#[tokio::test]
async fn refused_signal_leaves_the_restart_policy() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let honest = guest.script(&[]);
    let refusing: Script = Arc::new(move |path: &str| match path.ends_with("/Signal") {
        true => response(stream::empty()),
        false => honest(path),
    });
    let (sandbox, owned) = running(refusing, dir.path(), |_| ()).await;
    sandbox.signal("KILL".parse().unwrap()).await.unwrap_err();
    assert!(!sandbox.life().runs().was_asked);
    guest.main_ends.notify_one();
    owned.await.unwrap();
    assert!(!sandbox.life().runs().was_asked, "it is started again");
}

/// Only signals that ask for the end count, and among them the one by which the sandbox is stopped.
#[tokio::test]
async fn only_ending_signals_turn_restarts_off() {
    for (signal, is_asked) in [("HUP", false), ("QUIT", false), ("TERM", true), ("KILL", true)] {
        let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
        let (sandbox, _owned) = running(guest.script(&[]), dir.path(), |_| ()).await;
        sandbox.signal(signal.parse().unwrap()).await.unwrap();
        assert_eq!(sandbox.life().runs().was_asked, is_asked, "{signal}");
    }
}

/// It was refused as paused, and turned the restart policy off all the same.
#[tokio::test]
async fn paused_sandbox_is_stopped_by_a_signal() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let (sandbox, owned) = running(guest.script(&[]), dir.path(), |_| ()).await;
    sandbox.pause().await.unwrap();
    let stopped = sandbox.stop_by("INT".parse().unwrap(), Duration::from_secs(600));
    let ended = async {
        guest.got("Signal").await;
        guest.main_ends.notify_one();
    };
    let (stopped, ()) = tokio::join!(stopped, ended);
    stopped.unwrap();
    owned.await.unwrap();
    assert_eq!(sandbox.state().name(), "stopped");
    assert!(sandbox.life().runs().was_asked);
}

/// Whose disk is kept was synced for up to 30 s, and nothing else was obeyed meanwhile.
#[tokio::test]
async fn destroying_waits_for_no_sync() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let disks = RestingDisks::new(dir.path().to_owned()).unwrap();
    let keep = |owner: &mut Owner| owner.resting = Some(disks.place(owner.id));
    let (sandbox, owned) = running(guest.script(&["Sync"]), dir.path(), keep).await;
    guest.main_ends.notify_one();
    guest.got("Sync").await;
    assert_eq!(sandbox.state(), State::Stopping);
    sandbox.request_destroy();
    let (end, owner) = promptly("a destruction", owned).await.unwrap();
    assert!(matches!(end, End::Down) && owner.doomed);
    assert!(disks.place(sandbox.id()).path().is_err(), "its disk goes with it");
}

#[tokio::test]
async fn destroying_waits_for_no_signal() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let (sandbox, owned) = running(guest.script(&["Signal", "Sync"]), dir.path(), |_| ()).await;
    let stopped = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.stop(Duration::from_secs(600)).await }
    });
    guest.got("Signal").await;
    sandbox.request_destroy();
    promptly("a destruction", owned).await.unwrap();
    stopped.await.unwrap().unwrap();
}

#[tokio::test]
async fn destroying_waits_for_no_resume() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let (sandbox, owned) = running(guest.script(&[]), dir.path(), |_| ()).await;
    sandbox.pause().await.unwrap();
    guest.is_mute.store(true, Ordering::Release);
    guest.calls.lock().unwrap().clear();
    let resumed = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.resume().await }
    });
    guest.got("Personalise").await;
    sandbox.request_destroy();
    let (end, _owner) = promptly("a destruction", owned).await.unwrap();
    assert!(matches!(end, End::Destroyed));
    resumed.await.unwrap().unwrap_err();
}

/// A host that ends throws the disk away in any case.
#[tokio::test]
async fn ending_host_waits_for_no_sync() {
    let (dir, guest) = (tempfile::tempdir().unwrap(), Arc::new(Guest::default()));
    let disks = RestingDisks::new(dir.path().to_owned()).unwrap();
    let keep = |owner: &mut Owner| {
        owner.resting = Some(disks.place(owner.id));
        owner.closing.cancel();
    };
    let (sandbox, owned) = running(guest.script(&["Sync"]), dir.path(), keep).await;
    guest.main_ends.notify_one();
    promptly("an end", owned).await.unwrap();
    assert_eq!(sandbox.state().name(), "stopped");
}

/// A stopped sandbox, whose files a guest serves that answers `Sync` with `synced`.
async fn stopped(persistent: bool, synced: fn() -> Answer) -> (Sandbox, Owner, Link) {
    let config = BoxConfig { persistent, ..BoxConfig::default() };
    let (sandbox, owner) = scripted::sandbox(config, State::Stopped(Stop::default()), Runs::default());
    let link = answering(move |path| match path.rsplit('/').next() {
        Some("Sync") => synced(),
        _ => one_message(&v1::UnpackReply { entries: 1, ..v1::UnpackReply::default() }),
    })
    .await;
    sandbox.set_files(Some(Files::new(link.client())));
    (sandbox, owner, link)
}

async fn copy(sandbox: &Sandbox) -> Result<u64, String> {
    let content = stream::iter([Ok(Bytes::from_static(b"archive"))]);
    let unpacked = sandbox.unpack("/srv", "", false, content).await;
    unpacked.map(|unpacked| unpacked.entries).map_err(|error| crate::chain(&error))
}

/// It was reported as done, and was lost when the VM ended before its next sync, or that failed.
#[tokio::test]
async fn copy_that_is_not_synced_fails() {
    let (sandbox, _owner, _link) = stopped(true, || one_message(&v1::SyncReply {})).await;
    assert_eq!(copy(&sandbox).await, Ok(1));
    let (sandbox, _owner, _link) = stopped(true, || response(stream::empty())).await;
    let error = copy(&sandbox).await.unwrap_err();
    assert!(error.contains("the copy may not be on the sandbox's disk"), "{error}");
}

/// The state was looked at before the sandbox stopped, and the files of the stopped one were already served.
#[tokio::test]
async fn copy_into_what_starts_clean_is_refused() {
    let (sandbox, _owner, _link) = stopped(false, || one_message(&v1::SyncReply {})).await;
    let error = copy(&sandbox).await.unwrap_err();
    assert!(error.contains("its next start would discard"), "{error}");
}

/// A caller that came just before the VM ended was served by it, and its copy was lost.
#[tokio::test]
async fn files_in_use_are_not_retired() {
    let (sandbox, _owner, _link) = stopped(true, || one_message(&v1::SyncReply {})).await;
    let (content, fed) = tokio::sync::mpsc::channel(1);
    let copying = tokio::spawn({
        let sandbox = sandbox.clone();
        let content = tokio_stream::wrappers::ReceiverStream::new(fed);
        async move { sandbox.unpack("/srv", "", false, content).await.map(|unpacked| unpacked.entries) }
    });
    for _ in 0..2 {
        // The second is taken once the first was.
        content.send(Ok(Bytes::from_static(b"archive"))).await.unwrap();
    }
    assert!(!sandbox.retire_files(), "a copy is under way");
    drop(content);
    assert_eq!(copying.await.unwrap().unwrap(), 1);
    assert!(sandbox.retire_files());
    // Nobody has it any more: a VM must be asked for.
    let asked = async {
        let (mut sandbox_orders, sandbox) = (_owner, sandbox.clone());
        let copying = tokio::spawn(async move { copy(&sandbox).await });
        let (order, answer) = sandbox_orders.orders.recv().await.unwrap();
        assert_eq!(order, Order::Read);
        answer.send(Err(OrderError::Control(ControlError::Failed("no VM".into())))).ok();
        copying.await.unwrap()
    };
    assert_eq!(asked.await, Err("no VM".into()));
}
