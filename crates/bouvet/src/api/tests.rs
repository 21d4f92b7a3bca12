//! The API over the engine without VMs: the real client, router, host and guest.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::path::Path;

use bouvet_host::{BoxConfig, NetworkMode};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::Method;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{CallError, Client, NOTHING, path};
use super::frame::Frame;
use super::shape::{
    EventView, ExecView, ExitView, FailureView, InfoView, ListingView, SandboxView, StatView, UnpackedView,
};
use super::{Alone, WINDOW_BYTES};
use crate::config::Config;

/// The configuration of a server below `dir` on the engine `fake`, with `more` variables.
pub(crate) fn fake_config<const N: usize>(dir: &Path, more: [(&'static str, String); N]) -> Config {
    let at = dir.to_str().unwrap();
    let mut set = BTreeMap::from([
        ("BOUVET_ENGINE", "fake".to_owned()),
        ("BOUVET_CHROOT", format!("{at}/state")),
        ("BOUVET_DATA", format!("{at}/data")),
        ("BOUVET_TEMPLATES", "off".to_owned()),
        ("BOUVET_CGROUP", "off".to_owned()),
    ]);
    set.extend(more);
    Config::load(|name| set.get(name).cloned()).unwrap()
}

pub(crate) struct Site {
    pub(crate) client: Client,
    pub(crate) alone: Alone,
    pub(super) dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = [
            ("BOUVET_ROOTFS", dir.path().join("base.ext4").to_str().unwrap().to_owned()),
            ("DOCKER_CONFIG", dir.path().join("docker").to_str().unwrap().to_owned()),
        ];
        let config = fake_config(dir.path(), more);
        let (alone, stream) = Alone::start(config.host).await.unwrap();
        let client = Client::over(stream).await.unwrap();
        Self { client, alone, dir }
    }

    async fn create(&self, name: &str) -> SandboxView {
        let config = BoxConfig {
            name: name.into(),
            privileged: true,
            network: NetworkMode::None,
            ..BoxConfig::default()
        };
        self.client.call(Method::POST, &path(&["sandboxes"], &[]), Some(&config)).await.unwrap()
    }

    pub(crate) async fn refused(&self, method: Method, path: &str) -> FailureView {
        match self.client.act(method, path).await {
            Err(CallError::Refused(failure)) => failure,
            other => panic!("{path}: {other:?}"),
        }
    }
}

fn wanted(script: &str) -> Frame {
    let command = ["sh", "-c", script].map(Into::into).to_vec();
    Frame::Start(serde_json::to_vec(&ExecView { command, ..ExecView::default() }).unwrap().into())
}

fn exec_of(sandbox: &str) -> String {
    path(&["sandboxes", sandbox, "exec"], &[])
}

#[tokio::test]
async fn sandboxes_are_made_found_listed_and_removed() {
    let site = Site::start().await;
    let mut events = site.client.lines::<EventView>(Method::GET, "/v1/events", NOTHING).await.unwrap();
    let made = site.create("one").await;
    assert_eq!((made.name.as_str(), made.state.as_str()), ("one", "running"));
    assert_eq!(events.next().await.unwrap().unwrap().what["event"], "create");
    // What has happened is kept, for those who ask for it.
    let now = crate::calendar::nanos(std::time::SystemTime::now());
    let past = path(&["events"], &[("since", "1970-01-01T00:00:00Z"), ("until", &now)]);
    let mut past = site.client.lines::<EventView>(Method::GET, &past, NOTHING).await.unwrap();
    let first = past.next().await.unwrap().unwrap();
    assert_eq!((first.sandbox.as_str(), &first.what["event"]), (made.id.as_str(), &"create".into()));
    while past.next().await.unwrap().is_some() {}
    assert_eq!(site.refused(Method::GET, "/v1/events?since=soon").await.kind, "invalid");
    for name in ["one", made.id.as_str(), made.short_id()] {
        let found: SandboxView = site.client.get(&path(&["sandboxes", name], &[])).await.unwrap();
        assert_eq!(found, made);
    }
    let size = [("vcpus", "2"), ("memory_mb", "1024"), ("disk_mb", "4096")];
    let template: serde_json::Value = site.client.get(&path(&["template"], &size)).await.unwrap();
    assert_eq!(template, serde_json::json!({ "making": false }));
    let all: Vec<SandboxView> = site.client.get("/v1/sandboxes?all=true").await.unwrap();
    assert_eq!(all, std::slice::from_ref(&made));
    let inspected: serde_json::Value = site.client.get("/v1/sandboxes/one").await.unwrap();
    assert_eq!(inspected["config"]["name"], "one");

    let at = |verb: &str| path(&["sandboxes", "one", verb], &[]);
    assert_eq!(site.refused(Method::DELETE, "/v1/sandboxes/one").await.kind, "running");
    assert_eq!(site.refused(Method::POST, &at("start")).await.kind, "running");
    assert_eq!(site.refused(Method::POST, &at("attach")).await.kind, "no_main");
    let attest = async |data: &str| {
        let told = serde_json::json!({ "report_data": data });
        let attested =
            site.client.call::<serde_json::Value>(Method::POST, &at("attestation"), Some(&told)).await;
        match attested {
            Err(CallError::Refused(failure)) => failure.kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(attest("").await, "not_measured");
    assert_eq!(attest("xy").await, "invalid");
    assert_eq!(attest(&"00".repeat(65)).await, "invalid");
    assert_eq!(site.refused(Method::POST, "/v1/sandboxes/one/kill?signal=SIGNATURE").await.kind, "invalid");
    assert_eq!(site.refused(Method::POST, "/v1/sandboxes/two/stop").await.kind, "not_found");
    assert_eq!(site.refused(Method::GET, "/v1/nothing").await.kind, "invalid");
    let waiting = {
        let client = site.client.clone();
        let at = at("wait");
        tokio::spawn(async move { client.call::<ExitView>(Method::POST, &at, NOTHING).await })
    };
    site.client.act(Method::POST, "/v1/sandboxes/one/stop?grace_secs=0").await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), ExitView::default());
    let live: Vec<SandboxView> = site.client.get("/v1/sandboxes").await.unwrap();
    assert!(live.is_empty());
    assert_eq!(site.refused(Method::POST, &exec_of("one")).await.kind, "invalid", "it says nothing");
    site.client.act(Method::DELETE, "/v1/sandboxes/one").await.unwrap();
    assert_eq!(site.refused(Method::GET, "/v1/sandboxes/one").await.kind, "not_found");
    site.alone.end().await;
}

#[tokio::test]
async fn a_description_is_refused_in_the_words_of_its_fields() {
    let site = Site::start().await;
    let error = async |body: serde_json::Value| {
        let made = site.client.call::<SandboxView>(Method::POST, "/v1/sandboxes", Some(&body)).await;
        match made {
            Err(CallError::Refused(failure)) => (failure.kind, failure.error),
            other => panic!("{other:?}"),
        }
    };
    let (kind, text) = error(serde_json::json!({ "resources": { "memory_mb": 1 } })).await;
    assert!(kind == "invalid" && text.starts_with("`resources.memory_mb` is 1 MiB"), "{text}");
    let (kind, text) = error(serde_json::json!({ "imgae": "" })).await;
    assert!(kind == "invalid" && text.contains("imgae"), "{text}");
    site.alone.end().await;
}

/// Each number of a request that is not in a description, at its bound and one past it.
#[tokio::test]
async fn numbers_of_requests_are_bounded_by_name() {
    let site = Site::start().await;
    for timeout in [1_000_000_000_000_u64, 1 << 63, u64::MAX] {
        let body = serde_json::json!({ "name": "ghost", "resources": { "timeout": timeout } });
        match site.client.call::<SandboxView>(Method::POST, "/v1/sandboxes", Some(&body)).await {
            Err(CallError::Refused(failure)) => {
                assert!(failure.error.contains("`resources.timeout`"), "{}", failure.error);
            }
            other => panic!("{other:?}"),
        }
    }
    let all: Vec<SandboxView> = site.client.get("/v1/sandboxes?all=true").await.unwrap();
    assert!(all.is_empty());
    site.create("one").await;
    let size =
        |memory_mb: &str| path(&["template"], &[("vcpus", "1"), ("memory_mb", memory_mb), ("disk_mb", "64")]);
    site.client.get::<serde_json::Value>(&size("1048576")).await.unwrap();
    let failure = site.refused(Method::GET, &size("1048577")).await;
    assert!(failure.error.contains("`resources.memory_mb`"), "{}", failure.error);
    for (timeout_secs, is_allowed) in [(86_400, true), (86_401, false), (1 << 63, false), (u64::MAX, false)] {
        let view = ExecView { command: vec!["true".into()], timeout_secs, ..ExecView::default() };
        let start = Frame::Start(serde_json::to_vec(&view).unwrap().into());
        let sent = stream::iter([start, Frame::CloseStdin]);
        let answered = site.client.frames(Method::POST, &exec_of("one"), sent).await;
        match answered {
            Ok(mut frames) => {
                assert!(is_allowed, "{timeout_secs}");
                while frames.next().await.unwrap().is_some() {}
            }
            Err(CallError::Refused(failure)) => {
                assert!(
                    !is_allowed && failure.error.contains("`timeout`"),
                    "{timeout_secs}: {}",
                    failure.error
                );
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let stop = |seconds: &str| path(&["sandboxes", "one", "stop"], &[("grace_secs", seconds)]);
    for past in ["86401", "18446744073709551615"] {
        let failure = site.refused(Method::POST, &stop(past)).await;
        assert!(
            failure.error.contains("`grace_secs`") && failure.error.contains("86400"),
            "{}",
            failure.error
        );
    }
    site.client.act(Method::POST, &stop("86400")).await.unwrap();
    site.alone.end().await;
}

#[tokio::test]
async fn programs_are_spoken_to_in_frames() {
    let site = Site::start().await;
    site.create("one").await;
    let (frames, sent) = mpsc::channel(64);
    frames.send(wanted("cat; echo err >&2; exit 7")).await.unwrap();
    let mut received =
        site.client.frames(Method::POST, &exec_of("one"), ReceiverStream::new(sent)).await.unwrap();
    frames.send(Frame::Stdin(Bytes::from("typed"))).await.unwrap();
    frames.send(Frame::CloseStdin).await.unwrap();
    let (mut out, mut err, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(frame) = received.next().await.unwrap() {
        match frame {
            Frame::Stdout(data) => out.extend(data),
            Frame::Stderr(data) => err.extend(data),
            Frame::Taken(cost) => assert_eq!(cost, 64),
            Frame::Exit(json) => exit = Some(serde_json::from_slice::<ExitView>(&json).unwrap()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((out.as_slice(), err.as_slice()), (&b"typed"[..], &b"err\n"[..]));
    assert_eq!(exit.map(|exit| exit.exit_code), Some(7));
    site.alone.end().await;
}

#[tokio::test]
async fn input_beyond_the_window_is_refused_and_signals_pass_what_waits() {
    let site = Site::start().await;
    site.create("one").await;
    let full = vec![b'x'; 64 * 1024];
    for past in [false, true] {
        let count = 10 * WINDOW_BYTES / full.len();
        let (frames, sent) = mpsc::channel(2 * count);
        frames.send(wanted("trap '' PIPE; exec sleep 1000")).await.unwrap();
        let mut received =
            site.client.frames(Method::POST, &exec_of("one"), ReceiverStream::new(sent)).await.unwrap();
        // What the pipe and the link hold is taken; then as much as the window holds may be sent.
        let mut room = WINDOW_BYTES / full.len();
        for _ in 0..count {
            while let Ok(Ok(Some(Frame::Taken(_)))) =
                tokio::time::timeout(std::time::Duration::from_millis(200), received.next()).await
            {
                room += 1;
            }
            if room == 0 {
                break;
            }
            room -= 1;

            frames.send(Frame::Stdin(full.clone().into())).await.unwrap();
        }
        if past {
            frames.send(Frame::Stdin(full.clone().into())).await.unwrap();
        } else {
            frames.send(Frame::Signal("TERM".into())).await.unwrap();
        }
        let last = loop {
            match received.next().await.unwrap().unwrap() {
                Frame::Taken(_) => {}
                last => break last,
            }
        };
        match last {
            Frame::Exit(json) if !past => {
                assert_eq!(serde_json::from_slice::<ExitView>(&json).unwrap().exit_code, 143);
            }
            Frame::Error(json) if past => {
                let failure: FailureView = serde_json::from_slice(&json).unwrap();
                assert!(failure.error.contains("bytes of input wait"), "{failure:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    site.alone.end().await;
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_the_program_along() {
    let site = Site::start().await;
    site.create("one").await;
    let script = "echo $$; exec sleep 1000";
    let (frames, sent) = mpsc::channel(1);
    frames.send(wanted(script)).await.unwrap();
    let mut received =
        site.client.frames(Method::POST, &exec_of("one"), ReceiverStream::new(sent)).await.unwrap();
    let Some(Frame::Stdout(pid)) = received.next().await.unwrap() else { panic!("it printed nothing") };
    let pid = String::from_utf8(pid.to_vec()).unwrap();
    drop(frames);
    drop(received);
    let check = format!("while kill -0 {} 2>/dev/null; do sleep 0.05; done", pid.trim());
    let mut gone =
        site.client.frames(Method::POST, &exec_of("one"), stream::iter([wanted(&check)])).await.unwrap();
    assert!(matches!(gone.next().await.unwrap(), Some(Frame::Exit(_))));
    site.alone.end().await;
}

#[tokio::test]
async fn files_go_both_ways_with_their_permissions() {
    let site = Site::start().await;
    site.create("one").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep/fi le");
    let file = file.to_str().unwrap();
    let at =
        |verb: &str, of: &str, mode: &str| path(&["sandboxes", "one", verb], &[("path", of), ("mode", mode)]);
    let of = |verb: &str, of: &str| path(&["sandboxes", "one", verb], &[("path", of)]);
    let parts = ["abc", "def"].map(|part| Ok(Bytes::from(part)));
    site.client.upload::<serde_json::Value>(&at("file", file, "493"), stream::iter(parts)).await.unwrap();
    let parent = dir.path().join("deep");
    let listing: ListingView = site.client.get(&of("files", parent.to_str().unwrap())).await.unwrap();
    assert_eq!((listing.entries[0].name.as_str(), listing.entries[0].mode), ("fi le", 0o755));
    let mut content = site.client.download(&of("file", file)).await.unwrap();
    let mut read = Vec::new();
    while let Some(bytes) = content.next().await {
        read.extend(bytes.unwrap());
    }
    assert_eq!(read, b"abcdef");
    assert_eq!(site.refused(Method::GET, &of("files", file)).await.kind, "wrong_kind");
    assert_eq!(site.refused(Method::GET, &of("file", "/no/where")).await.kind, "no_file");
    site.client.act(Method::POST, &of("files", parent.join("empty/er").to_str().unwrap())).await.unwrap();
    assert!(parent.join("empty/er").is_dir());
    site.alone.end().await;
}

#[tokio::test]
async fn created_sandbox_is_renamed_and_started() {
    let site = Site::start().await;
    let mut config = BoxConfig { name: "one".into(), privileged: true, ..BoxConfig::default() };
    config.network = NetworkMode::None;
    config.labels.insert("a".into(), "1".into());
    let made: SandboxView =
        site.client.call(Method::POST, "/v1/sandboxes?start=false", Some(&config)).await.unwrap();
    assert_eq!((made.state.as_str(), made.started_at.as_deref()), ("created", None));
    assert_eq!(made.labels["a"], "1");
    let live: Vec<SandboxView> = site.client.get("/v1/sandboxes").await.unwrap();
    assert!(live.is_empty(), "it holds no VM");
    assert_eq!(site.refused(Method::GET, "/v1/sandboxes/one/stat?path=/").await.kind, "stopped");
    site.create("two").await;
    assert_eq!(site.refused(Method::POST, "/v1/sandboxes/one/rename?name=two").await.kind, "name_taken");
    assert_eq!(site.refused(Method::POST, "/v1/sandboxes/one/rename?name=-").await.kind, "invalid");
    site.client.act(Method::POST, "/v1/sandboxes/one/rename?name=three").await.unwrap();
    assert_eq!(site.refused(Method::GET, "/v1/sandboxes/one").await.kind, "not_found");
    site.client.act(Method::POST, "/v1/sandboxes/three/start").await.unwrap();
    let started: SandboxView = site.client.get("/v1/sandboxes/three").await.unwrap();
    assert_eq!((started.name.as_str(), started.state.as_str()), ("three", "running"));
    assert!(started.started_at.is_some() && started.finished_at.is_none());
    let info: InfoView = site.client.get("/v1/info").await.unwrap();
    assert_eq!((info.engine.as_str(), info.sandboxes, info.sandboxes_running), ("fake", 2, 2));
    site.alone.end().await;
}

#[tokio::test]
async fn failed_sandbox_is_restarted_until_stopped() {
    let site = Site::start().await;
    let mut config = BoxConfig { name: "one".into(), privileged: true, ..BoxConfig::default() };
    config.network = NetworkMode::None;
    config.restart = "sometimes".into();
    let made = site.client.call::<SandboxView>(Method::POST, "/v1/sandboxes", Some(&config)).await;
    assert!(matches!(made, Err(CallError::Refused(failure)) if failure.kind == "invalid"));
    config.restart = "always".into();
    site.client.call::<SandboxView>(Method::POST, "/v1/sandboxes", Some(&config)).await.unwrap();
    let mut events = site.client.lines::<EventView>(Method::GET, "/v1/events", NOTHING).await.unwrap();
    // Without a VM its guest is the parent of what runs in it.
    let frames = stream::iter([wanted("kill -9 $PPID")]);
    // The call may end before it has begun.
    if let Ok(mut killed) = site.client.frames(Method::POST, &exec_of("one"), frames).await {
        while let Ok(Some(_)) = killed.next().await {}
    }
    for wanted in ["fail", "start"] {
        assert_eq!(events.next().await.unwrap().unwrap().what["event"], wanted);
    }
    let again: SandboxView = site.client.get("/v1/sandboxes/one").await.unwrap();
    assert_eq!((again.state.as_str(), again.restarts, again.restarting), ("running", 1, false));
    assert!(again.finished_at.is_some());
    site.client.act(Method::POST, "/v1/sandboxes/one/stop?grace_secs=0").await.unwrap();
    let stopped: SandboxView = site.client.get("/v1/sandboxes/one").await.unwrap();
    assert_eq!((stopped.state.as_str(), stopped.restarting), ("stopped", false));
    site.alone.end().await;
}

async fn packed(site: &Site, sandbox: &str, of: &str, name: &str) -> Result<Vec<u8>, FailureView> {
    let at = path(&["sandboxes", sandbox, "archive"], &[("path", of), ("name", name)]);
    let frames = site.client.frames(Method::GET, &at, stream::empty()).await;
    let mut frames = match frames {
        Err(CallError::Refused(failure)) => return Err(failure),
        frames => frames.unwrap(),
    };
    let mut archive = Vec::new();
    loop {
        match frames.next().await.unwrap() {
            Some(Frame::Stdout(data)) => archive.extend(data),
            Some(Frame::Exit(_)) => return Ok(archive),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn trees_are_copied_also_from_stopped_sandboxes() {
    let site = Site::start().await;
    site.create("one").await;
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/f"), "1").unwrap();
    std::os::unix::fs::symlink("f", tree.join("sub/l")).unwrap();
    let (tree, into) = (tree.to_str().unwrap(), dir.path().to_str().unwrap());
    let stat = async |of: String| {
        site.client.get::<StatView>(&path(&["sandboxes", "one", "stat"], &[("path", &of)])).await
    };
    let link = stat(format!("{tree}/sub/l")).await.unwrap();
    assert_eq!((link.kind.as_str(), link.target_kind.as_deref()), ("symlink", Some("file")));
    assert_eq!((link.link_target.as_str(), link.target.ends_with("/sub/f")), ("f", true));
    let none = stat("/no/where".into()).await;
    assert!(matches!(none, Err(CallError::Refused(failure)) if failure.kind == "no_file"));

    let archive = packed(&site, "one", tree, "copy").await.unwrap();
    let put = async |to: &str, name: &str| {
        let at =
            path(&["sandboxes", "one", "archive"], &[("path", to), ("name", name), ("keep_owners", "true")]);
        let content = stream::iter([Ok(Bytes::from(archive.clone()))]);
        site.client.upload::<UnpackedView>(&at, content).await
    };
    assert_eq!(put(into, "copy").await.unwrap().entries, 4);
    assert_eq!(std::fs::read_to_string(dir.path().join("copy/sub/l")).unwrap(), "1");
    let refused = |put: Result<UnpackedView, CallError>| match put {
        Err(CallError::Refused(failure)) => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(put(into, "other").await).kind, "wrong_kind", "no other name");
    assert_eq!(refused(put("/no/where", "").await).kind, "no_file");

    site.client.act(Method::POST, "/v1/sandboxes/one/stop?grace_secs=0").await.unwrap();
    assert_eq!(packed(&site, "one", tree, "copy").await.unwrap(), archive, "its disk is kept");
    assert!(refused(put(into, "copy").await).error.contains("its next start would discard"));
    assert_eq!(site.refused(Method::GET, "/v1/sandboxes/one/files?path=/").await.kind, "stopped");
    site.client.act(Method::POST, "/v1/sandboxes/one/start").await.unwrap();
    assert_eq!(packed(&site, "one", tree, "copy").await.unwrap(), archive);
    site.client.act(Method::DELETE, "/v1/sandboxes/one?force=true").await.unwrap();
    site.alone.end().await;
}

#[tokio::test]
async fn a_sandbox_without_a_sidecar_says_so() {
    let site = Site::start().await;
    let sandbox = site.create("plain").await;
    let failure = site.refused(Method::POST, &path(&["sandboxes", &sandbox.id, "sidecar"], &[])).await;
    assert_eq!((failure.kind.as_str(), failure.error.as_str()), ("no_sidecar", "the sandbox has no sidecar"));
    assert!(failure.hint.contains("bouvet run --sidecar"));
    site.alone.end().await;
}
