//! Guests that do not keep to the rules: each must cost its own calls, and nothing else.
//!
//! A script plays the guest at the other end of a socket pair. It goes as far as the honest protocol takes
//! it to the place it attacks: the handshake, the frames, HTTP/2, gRPC, the messages.

mod network;
mod ports;
mod stops;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bouvet_wire::frame::MAX_DISCARDED_BYTES;
use bouvet_wire::limits::{
    MAX_CONTEXTS, MAX_LIST_ENTRIES, MAX_MESSAGE_BYTES, MAX_PATH_BYTES, MAX_RESULT_BYTES, MAX_RESULT_ID_BYTES,
};
use bouvet_wire::v1::{self, exec_output::Output};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::attest::Launch;
use crate::blueprint::Blueprint;
use crate::boxconfig::BoxConfig;
use crate::boxconfig::limits::Limits;
use crate::context::{self, ContextError, ContextId};
use crate::disk::Blanks;
use crate::engine::memory::Memory;
use crate::engine::{Acceleration, Engine, EngineError, Freezing, Frozen, Layer, Rootfs, Vm, VmSpec};
use crate::exec::{Exec, ExecError, ExecRequest, Program};
use crate::files::transfer::FileReader;
use crate::files::{self, FileError};
use crate::journal::Journals;
use crate::sandbox::SandboxId;
use crate::sandbox::create::{self, BringUpError, Origin, Site, Wanted};
use crate::undo::Undo;

/// A pair: the host's end of the stream, and the guest's.
fn streams() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

/// Reads the host's HELLO at the guest's end.
async fn hello(mut stream: UnixStream) -> (Preamble, Frames) {
    let (mut decoder, mut input) = (Decoder::guest(), BytesMut::new());
    let hello = loop {
        if let Some(Event::Preamble(hello)) = decoder.next(&mut input).unwrap() {
            break hello;
        }
        assert_ne!(stream.read_buf(&mut input).await.unwrap(), 0);
    };
    let (epoch, data, output) = (hello.epoch, Bytes::new(), BytesMut::new());
    (hello, Frames { stream, epoch, decoder, input, data, output })
}

/// The error of a handshake in which the guest answers `answer`, and then closes its end.
async fn handshake(answer: impl FnOnce(Preamble) -> Vec<u8>) -> LinkError {
    let (host, guest) = streams();
    let guest = async {
        let (preamble, mut frames) = hello(guest).await;
        // The host may have seen enough before all of it is sent.
        frames.stream.write_all(&answer(preamble)).await.ok();
    };
    let (link, ()) = tokio::join!(Link::connect(host, Duration::from_secs(60)), guest);
    link.unwrap_err()
}

#[tokio::test]
async fn a_handshake_that_goes_wrong_ends() {
    assert!(matches!(handshake(|_| Vec::new()).await, LinkError::Closed));
    assert!(matches!(handshake(|hello| hello.ack()[..20].to_vec()).await, LinkError::Closed));
    let garbage = handshake(|_| vec![0xB0; 2 * MAX_DISCARDED_BYTES]).await;
    assert!(matches!(garbage, LinkError::Violation(Violation::NoAck)), "{garbage:?}");
    let stale = |hello: Preamble| {
        let stale = Preamble { epoch: Epoch::new(1), ..hello }.ack();
        stale.repeat(2 * MAX_DISCARDED_BYTES / stale.len())
    };
    let stale = handshake(stale).await;
    assert!(matches!(stale, LinkError::Violation(Violation::NoAck)), "{stale:?}");
    let other = handshake(|hello| Preamble { generation: 7_000, ..hello }.ack()).await;
    assert!(matches!(other, LinkError::Generation(7_000)), "{other:?}");
}

#[tokio::test]
async fn a_guest_that_never_answers_meets_the_deadline() {
    let (host, _guest) = streams();
    let error = Link::connect(host, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, LinkError::Deadline(_)), "{error:?}");
}

/// A guest that keeps to the rules of the handshake, and then does `attack`.
async fn guest<A: Future<Output = ()>>(stream: UnixStream, attack: impl FnOnce(Frames) -> A) {
    let (preamble, mut frames) = hello(stream).await;
    frames.stream.write_all(&preamble.ack()).await.unwrap();
    attack(frames).await;
}

/// A link to such a guest.
async fn linked<A>(attack: impl FnOnce(Frames) -> A + Send + 'static) -> Link
where
    A: Future<Output = ()> + Send + 'static,
{
    let (host, theirs) = streams();
    tokio::spawn(guest(theirs, attack));
    Link::connect(host, Duration::from_secs(60)).await.unwrap()
}

async fn read(link: &Link) -> FileError {
    files::read(link.client(), "file".into(), 0, 1000).await.unwrap_err()
}

/// Asserts that these bytes after the handshake break the link.
async fn assert_breaks(bytes: impl FnOnce(Epoch) -> Vec<u8> + Send + 'static, expected: &str) {
    let mut link = linked(|mut frames| async move {
        let bytes = bytes(frames.epoch);
        frames.stream.write_all(&bytes).await.ok();
        // Held open: the bytes alone must do it.
        std::future::pending().await
    })
    .await;
    let error = read(&link).await;
    assert!(matches!(error, FileError::Link(_)), "{error:?}");
    let broken = link.broken().await;
    assert!(broken.contains(expected), "{broken}");
}

fn raw_header(epoch: u32, length: u32) -> Vec<u8> {
    [epoch.to_le_bytes(), length.to_le_bytes()].concat()
}

fn framed(epoch: Epoch, payload: &[u8]) -> Vec<u8> {
    [&frame::header(epoch, payload.len())[..], payload].concat()
}

#[tokio::test]
async fn frames_that_break_the_rules_break_the_link() {
    let number = |epoch| u32::from_le_bytes(*frame::header(epoch, 1).first_chunk().unwrap());
    assert_breaks(move |epoch| raw_header(number(epoch) ^ 1, 10), "unknown connection").await;
    assert_breaks(move |epoch| raw_header(number(epoch), 0), "a frame of 0 bytes").await;
    assert_breaks(move |epoch| raw_header(number(epoch), u32::MAX), "a frame of 4294967295 bytes").await;
    let past = u32::try_from(MAX_PAYLOAD_BYTES).unwrap() + 1;
    assert_breaks(move |epoch| raw_header(number(epoch), past), "a frame of 32761 bytes").await;
    assert_breaks(|epoch| framed(epoch, b"HTTP/1.1 200 OK\r\n\r\n"), "the link broke").await;
    // HTTP/2 frames: a length past the limit, and a stream that nobody asked for.
    assert_breaks(|epoch| framed(epoch, b"\xff\xff\xff\x04\x00\x00\x00\x00\x00"), "the link broke").await;
    assert_breaks(|epoch| framed(epoch, b"\0\0\x01\x00\x00\0\0\0\x63x"), "the link broke").await;
}

#[tokio::test]
async fn half_a_frame_and_then_the_end_breaks_the_link() {
    let mut link = linked(|mut frames| async move {
        // The link is up once HTTP/2 has begun.
        frames.stream.read_u8().await.unwrap();
        let frame = framed(frames.epoch, &[0; 100]);
        frames.stream.write_all(&frame[..50]).await.unwrap();
    })
    .await;
    assert!(matches!(read(&link).await, FileError::Link(_)));
    link.broken().await;
}

#[tokio::test]
async fn a_guest_that_falls_silent_meets_each_calls_deadline() {
    let link = linked(|frames| async move {
        let _held = frames;
        std::future::pending().await
    })
    .await;
    // From here on time passes only when nothing else can happen.
    tokio::time::pause();
    assert!(matches!(read(&link).await, FileError::Deadline));
    let error = Exec::start(link.client(), ExecRequest::new(Program::Command, "true")).await.unwrap_err();
    assert!(matches!(error, ExecError::Deadline(_)), "{error:?}");
}

/// What a guest sends without end, as HTTP/2 frames.
fn floods() -> Vec<Vec<u8>> {
    let settings = b"\0\0\0\x04\0\0\0\0\0".to_vec();
    let ping = b"\0\0\x08\x06\0\0\0\0\0bouvet!!".to_vec();
    let priority = b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\0".to_vec();
    vec![settings, ping, priority]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_hold_no_other_sandbox_up() {
    let mut flooded = Vec::new();
    for flood in floods() {
        let link = linked(|mut frames| async move {
            let hello = framed(frames.epoch, b"\0\0\0\x04\0\0\0\0\0");
            let repeated = framed(frames.epoch, &flood.repeat(1000));
            frames.stream.write_all(&hello).await.ok();
            // Until the host has had enough of it, or the test is over.
            while frames.stream.write_all(&repeated).await.is_ok() {
                let mut answers = [0; 65536];
                frames.stream.try_read(&mut answers).ok();
            }
        });
        flooded.push(link.await);
    }
    let honest = answering(|_| one_message(&v1::ListReply::default())).await;
    for _ in 0..100 {
        assert!(files::list(honest.client(), "/".into()).await.unwrap().entries.is_empty());
    }
}

type Chunks = stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

type Answer = http::Response<StreamBody<Chunks>>;

/// Speaks HTTP/2 by the rules, and answers every call with what `answer` makes of its path.
async fn serve(frames: Frames, answer: impl Fn(&str) -> Answer + Clone + Send + 'static) {
    let service = hyper::service::service_fn(move |call: http::Request<hyper::body::Incoming>| {
        let answer = answer(call.uri().path());
        async move {
            // Taken to its end, as an honest guest would.
            call.into_body().collect().await.ok();
            Ok::<_, Infallible>(answer)
        }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.serve_connection(TokioIo::new(frames), service).await.ok();
}

/// A link to a guest that does.
async fn answering(answer: impl Fn(&str) -> Answer + Clone + Send + 'static) -> Link {
    linked(|frames| serve(frames, answer)).await
}

/// A link to a guest that answers every call with what `answer` makes of its path, and does not wait for the call's end.
async fn hasty(answer: impl Fn(&str) -> Answer + Clone + Send + 'static) -> Link {
    linked(|frames| serve_hastily(frames, answer)).await
}

/// Like [`serve`], and does not wait for a call's end.
async fn serve_hastily(frames: Frames, answer: impl Fn(&str) -> Answer + Clone + Send + 'static) {
    let service = hyper::service::service_fn(move |call: http::Request<hyper::body::Incoming>| {
        let answer = answer(call.uri().path());
        tokio::spawn(call.into_body().collect());
        async move { Ok::<_, Infallible>(answer) }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    server.serve_connection(TokioIo::new(frames), service).await.ok();
}

fn response(chunks: impl futures_util::Stream<Item = Frame<Bytes>> + Send + 'static) -> Answer {
    let body = StreamBody::new(chunks.map(Ok).boxed());
    http::Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

/// `message` with gRPC's prefix: a flag, and its length.
fn prefixed(message: &impl prost::Message) -> Frame<Bytes> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap();
    Frame::data([&[0], &length.to_be_bytes()[..], &bytes].concat().into())
}

fn success() -> Frame<Bytes> {
    Frame::trailers(http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]))
}

fn one_message(message: &impl prost::Message) -> Answer {
    response(stream::iter([prefixed(message), success()]))
}

#[tokio::test]
async fn answers_that_are_no_grpc_fail_their_call() {
    let past = u32::try_from(MAX_MESSAGE_BYTES).unwrap() + 1;
    let raw = [
        ("a length of 4 GiB", b"\0\xff\xff\xff\xff".to_vec()),
        ("a length past the limit", [&[0], &past.to_be_bytes()[..]].concat()),
        ("a flag that means nothing", b"\x07\0\0\0\x01x".to_vec()),
        ("compression that nobody agreed on", b"\x01\0\0\0\x01x".to_vec()),
        ("a message that is none", b"\0\0\0\0\x03\xff\xff\xff".to_vec()),
    ];
    for (what, raw) in raw {
        let link =
            answering(move |_| response(stream::iter([Frame::data(raw.clone().into()), success()]))).await;
        let error = read(&link).await;
        assert!(matches!(error, FileError::Link(_)), "{what}: {error:?}");
    }
    let link = answering(|_| response(stream::iter([prefixed(&v1::ReadChunk::default())]))).await;
    let error = read(&link).await;
    assert!(matches!(&error, FileError::Failed(why) if why.contains("trailer")), "{error:?}");
}

/// A warning showed the `Debug` form of an error of hyper's.
#[tokio::test]
async fn broken_link_is_reported_in_words() {
    let link = linked(|mut frames| async move {
        // The link is up once HTTP/2 has begun.
        frames.stream.read_u8().await.unwrap();
    })
    .await;
    let status = link.client().sync(v1::SyncRequest {}).await.unwrap_err();
    assert!(is_broken(&status), "{status:?}");
    assert!(format!("{status:?}").contains("hyper::Error("), "it is one of those: {status:?}");
    let text = said(&status);
    for structure in ["hyper::", "Error", "Status", "{", "(", "metadata"] {
        assert!(!text.contains(structure), "{text}");
    }
    assert!(text.len() > 10, "{text}");

    let link = answering(|_| {
        let mut response = response(stream::empty());
        let headers = response.headers_mut();
        headers.insert("grpc-status", http::HeaderValue::from_static("13"));
        headers.insert("grpc-message", http::HeaderValue::from_static("no%1B[31m disk%0A"));
        response
    })
    .await;
    let status = link.client().sync(v1::SyncRequest {}).await.unwrap_err();
    assert!(!is_broken(&status), "the guest reported it");
    assert_eq!(said(&status), "no[31m disk");
}

#[tokio::test]
async fn headers_past_the_limit_fail_their_call() {
    let link = answering(|_| {
        let mut response = one_message(&v1::ListReply::default());
        let much = "x".repeat(2 * MAX_HEADER_BYTES as usize);
        response.headers_mut().insert("x-much", http::HeaderValue::try_from(much).unwrap());
        response
    })
    .await;
    assert!(matches!(read(&link).await, FileError::Link(_)));
}

#[tokio::test]
async fn more_than_was_asked_for_fails_the_call() {
    let endless = || {
        let chunk = v1::ReadChunk { file_bytes: 1, data: vec![b'x'; 300].into() };
        response(stream::repeat(()).map(move |()| prefixed(&chunk)))
    };
    let link = answering(move |_| endless()).await;
    let error = read(&link).await;
    assert!(matches!(&error, FileError::Link(fact) if fact.contains("more than was asked")), "{error:?}");

    let entries = vec![v1::ListEntry::default(); MAX_LIST_ENTRIES as usize + 1];
    let link =
        answering(move |_| one_message(&v1::ListReply { entries: entries.clone(), truncated: false })).await;
    let error = files::list(link.client(), "/".into()).await.unwrap_err();
    assert!(matches!(&error, FileError::Link(fact) if fact.contains("more than was asked")), "{error:?}");
}

#[tokio::test]
async fn chunks_of_nothing_fail_the_call() {
    let endless = || {
        let chunk = v1::ReadChunk { file_bytes: 1, ..v1::ReadChunk::default() };
        response(stream::repeat(()).map(move |()| prefixed(&chunk)))
    };
    let link = answering(move |_| endless()).await;
    let mut reader = FileReader::open(link.client(), "file".into(), 0, u64::MAX).await.unwrap();
    let error = reader.next().await.unwrap_err();
    assert!(matches!(&error, FileError::Link(fact) if fact.contains("nothing")), "{error:?}");
}

#[tokio::test]
async fn contexts_that_cannot_be_fail_the_call() {
    let info = v1::ContextInfo {
        id: uuid::Uuid::nil().to_string(),
        program: v1::Program::Python.into(),
        ..v1::ContextInfo::default()
    };
    let listed = async |contexts: Vec<v1::ContextInfo>| {
        let link =
            answering(move |_| one_message(&v1::ListContextsReply { contexts: contexts.clone() })).await;
        context::list(link.client()).await
    };
    assert_eq!(listed(vec![info.clone(); MAX_CONTEXTS]).await.unwrap().len(), MAX_CONTEXTS);
    for contexts in [
        vec![info.clone(); MAX_CONTEXTS + 1],
        vec![v1::ContextInfo { id: "\u{1b}[31m".into(), ..info.clone() }],
        vec![v1::ContextInfo { program: v1::Program::Rust.into(), ..info.clone() }],
        // Older than any clock.
        vec![v1::ContextInfo { age_ms: u64::MAX, ..info.clone() }],
    ] {
        let error = listed(contexts).await.unwrap_err();
        assert!(matches!(error, ContextError::Link(_)), "{error:?}");
    }
}

/// How a program of which the guest says `outputs` ends.
async fn exec(outputs: Vec<Output>) -> ExecError {
    exec_in(None, outputs).await
}

async fn exec_in(context: Option<ContextId>, outputs: Vec<Output>) -> ExecError {
    let link = answering(move |_| {
        let messages: Vec<_> =
            outputs.iter().map(|output| prefixed(&v1::ExecOutput { output: Some(output.clone()) })).collect();
        response(stream::iter(messages).chain(stream::iter([success()])))
    })
    .await;
    let request = ExecRequest { context, ..ExecRequest::new(Program::Python, "") };
    Exec::start(link.client(), request).await.unwrap().finish().await.unwrap_err()
}

#[tokio::test]
async fn a_program_that_was_never_run_like_that_fails_its_call() {
    let error = exec(vec![Output::Started(v1::ExecStarted { pid: 1 })]).await;
    assert!(matches!(&error, ExecError::Link(fact) if fact.contains("without an exit")), "{error:?}");

    let much = Output::Stdout(vec![b'x'; 100_000].into());
    let error = exec(vec![much; 100]).await;
    assert!(matches!(&error, ExecError::Link(fact) if fact.contains("more output")), "{error:?}");

    let tail = vec![b'x'; 1_000_000].into();
    let tail = v1::OutputTail { tail, dropped_bytes: u64::MAX, ..v1::OutputTail::default() };
    let exit = v1::ExecExit { stderr: Some(tail), duration_us: u64::MAX, ..v1::ExecExit::default() };
    let error = exec(vec![Output::Exit(exit)]).await;
    assert!(matches!(&error, ExecError::Link(fact) if fact.contains("more output")), "{error:?}");
}

#[tokio::test]
async fn results_that_nobody_asked_for_fail_their_call() {
    let result = |mime_type: &str, bytes: usize| {
        let data = vec![b'x'; bytes].into();
        let path = String::new();
        let part = v1::ResultPart { mime_type: mime_type.into(), data, omitted_bytes: u64::MAX, path };
        Output::Result(v1::ExecResult { parts: vec![part], ..v1::ExecResult::default() })
    };
    for output in [result("a/b", 1), Output::ClearResults(v1::ClearResults {})] {
        let error = exec(vec![output]).await;
        assert!(matches!(&error, ExecError::Link(fact) if fact.contains("no context")), "{error:?}");
    }
    let long_path = v1::ResultPart {
        mime_type: "a/b".into(),
        path: "x".repeat(MAX_PATH_BYTES + 1),
        ..v1::ResultPart::default()
    };
    let long_path = Output::Result(v1::ExecResult { parts: vec![long_path], ..v1::ExecResult::default() });
    let long_id = v1::ExecResult { id: "x".repeat(MAX_RESULT_ID_BYTES + 1), ..v1::ExecResult::default() };
    let context = Some(uuid::Uuid::nil().to_string().parse().unwrap());
    for outputs in [
        vec![Output::Result(long_id)],
        vec![result("a/b", 1); 33],
        vec![result("a/b", MAX_RESULT_BYTES); 5],
        vec![result("a/b\n", 1)],
        vec![result("left_out", 1)],
        vec![long_path],
    ] {
        let error = exec_in(context, outputs).await;
        assert!(matches!(&error, ExecError::Link(fact) if fact.contains("it sent")), "{error:?}");
    }
}

type Script = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// An engine whose VMs are scripted guests.
struct Scripted {
    /// Makes their answers of the calls' paths.
    script: Script,
    stopped: Arc<AtomicBool>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

#[async_trait::async_trait]
impl Engine for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn acceleration(&self) -> Acceleration {
        Acceleration::None
    }

    fn version(&self) -> String {
        "none".into()
    }

    fn confinement(&self) -> Vec<Layer> {
        Vec::new()
    }

    async fn boot(&self, _: VmSpec, _: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        let (host, theirs) = streams();
        let script = self.script.clone();
        tokio::spawn(guest(theirs, |frames| serve_hastily(frames, move |path: &str| script(path))));
        Ok(Box::new(ScriptedVm { link: Some(host), stopped: self.stopped.clone() }))
    }

    fn launch(&self, _: bool) -> Option<Launch> {
        None
    }

    fn freezes(&self) -> Option<Freezing> {
        None
    }

    async fn restore(&self, spec: VmSpec, _: &Frozen, undo: &mut Undo) -> Result<Box<dyn Vm>, EngineError> {
        self.boot(spec, undo).await
    }
}

#[derive(Debug)]
struct ScriptedVm {
    link: Option<UnixStream>,
    stopped: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Vm for ScriptedVm {
    async fn connect(&mut self) -> io::Result<UnixStream> {
        Ok(self.link.take().unwrap())
    }

    async fn exited(&mut self) -> String {
        std::future::pending().await
    }

    async fn pause(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn freeze(&mut self) -> Result<(Memory, Bytes), EngineError> {
        Err(EngineError::Freeze("it is scripted".into()))
    }

    async fn stop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}

/// Makes a sandbox of `config` on VMs of `engine`, whose disks go into `dir`.
async fn bring_up(
    engine: &Scripted,
    dir: &std::path::Path,
    id: SandboxId,
    config: BoxConfig,
) -> Result<create::Live, BringUpError> {
    let blanks = &Blanks::new(dir.to_owned());
    let rootfs = &Rootfs { path: dir.into(), identity: String::new(), is_base: true, sidecar: None };
    let (limits, closing) = (&Limits::default(), &CancellationToken::new());
    let site = Site { engine, blanks, rootfs, limits, aloud: false, dir, slot: 0, closing };
    let blueprint = &Blueprint::new(config, None).unwrap();
    let wanted = Wanted { id, blueprint, journals: Journals::default(), network: None };
    create::bring_up(site, wanted, Origin::Boot).await
}

fn personalised(generation: u32) -> Answer {
    one_message(&v1::PersonaliseReply { generation, ..v1::PersonaliseReply::default() })
}

#[tokio::test]
async fn a_vm_that_does_not_become_the_sandbox_s_own_is_not_handed_out() {
    let bring_up = async |generation| {
        let dir = tempfile::tempdir().unwrap();
        let engine =
            Scripted { script: Arc::new(move |_| personalised(generation)), stopped: Arc::default() };
        let live = bring_up(&engine, dir.path(), SandboxId::random(), BoxConfig::default()).await;
        (live.map(drop), engine.stopped.load(Ordering::Acquire))
    };
    let (handed_out, stopped) = bring_up(bouvet_wire::GENERATION).await;
    assert!(handed_out.is_ok() && !stopped, "{handed_out:?}");
    let (handed_out, stopped) = bring_up(bouvet_wire::GENERATION + 1).await;
    assert!(matches!(handed_out, Err(BringUpError::Personalise(_))) && stopped, "{handed_out:?}");
}
