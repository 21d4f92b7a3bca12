//! Programs whose callers stay attached: frames both ways.
//!
//! Input is sent only as fast as the program takes it: the server says how much was taken, and the client keeps
//! [`WINDOW_BYTES`] on their way at most. So a signal never waits behind input that nobody reads.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, BodyDataStream};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use bouvet_host::{
    Attachment, BoxConfig, ExecControl, ExecRequest, ExecStream, Host, LogOptions, Refusal, Sandbox, Signal,
    StreamEvent, WindowSize,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::frame::{Decoder, Frame, MAX_DATA_BYTES};
use super::shape::{ExecView, ExitView, SandboxView};
use super::{Answered, asked, end, logs, said};
use crate::failure::{Answer, Failure};
use crate::log;

/// Bytes of input that may be on their way to a program.
pub(crate) const WINDOW_BYTES: usize = 256 * 1024;
/// What a frame of input counts at least, so that those of single bytes are bounded too.
const MIN_COST_BYTES: usize = 64;
/// Frames of input that may so be on their way, and the ends of it.
const WINDOW_FRAMES: usize = WINDOW_BYTES / MIN_COST_BYTES + 16;
/// Frames of output that wait for the client.
const OUTPUT_FRAMES: usize = 8;
/// How long a client may take to say what it wants.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// What input of so many bytes counts towards the window.
pub(crate) fn cost_bytes(length: usize) -> u32 {
    // More than the window is never to be had.
    u32::try_from(length.max(MIN_COST_BYTES)).unwrap_or(u32::MAX)
}

/// What a client sends.
struct Input {
    body: BodyDataStream,
    decoder: Decoder,
}

impl Input {
    fn new(body: Body) -> Self {
        Self { body: body.into_data_stream(), decoder: Decoder::default() }
    }

    /// The next frame; `None` when there will be no more, whatever the reason.
    async fn next(&mut self) -> Result<Option<Frame>, Failure> {
        loop {
            if let Some(frame) = self.decoder.next().map_err(Failure::argument)? {
                return Ok(Some(frame));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.decoder.push(&bytes),
                // The client has gone.
                Some(Err(_)) => return Ok(None),
                None => return self.decoder.end().map(|()| None).map_err(Failure::argument),
            }
        }
    }

    /// What is wanted.
    async fn start<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let first = tokio::time::timeout(START_DEADLINE, self.next()).await;
        let late = || Failure::argument(format!("no frame of kind 0 came within {START_DEADLINE:?}"));
        match first.map_err(|_| late())?? {
            Some(Frame::Start(json)) => {
                debug!(start = log::digest(&json), "attached call");
                serde_json::from_slice(&json).map_err(|error| {
                    Failure::argument(format!("what is wanted is not as it must be: {error}"))
                })
            }
            _ => Err(Failure::argument("the first frame must be of kind 0")),
        }
    }
}

/// Where frames for the client go. Fails when it has gone.
type Output = mpsc::Sender<Frame>;

fn reply(frames: mpsc::Receiver<Frame>) -> Response {
    let frames = ReceiverStream::new(frames).map(|frame| Ok::<_, std::convert::Infallible>(frame.encode()));
    logs::framed(Body::from_stream(frames))
}

fn json_bytes(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn failed(error: impl Into<Answer>) -> Frame {
    Frame::Error(json_bytes(&error.into().view()))
}

/// `POST /v1/sandboxes/{sandbox}/exec`
pub(super) async fn exec(State(host): State<Host>, Path(name): Path<String>, body: Body) -> Answered {
    let mut input = Input::new(body);
    let wanted: ExecView = input.start().await?;
    let sandbox = host.find(&name)?;
    let request = ExecRequest {
        env: wanted.env,
        cwd: wanted.working_dir,
        user: wanted.user,
        terminal: wanted.terminal.map(|(rows, columns)| WindowSize { rows, columns }),
        timeout: Duration::from_secs(wanted.timeout_secs),
        ..ExecRequest::arguments(wanted.command)?
    };
    let stream = sandbox.exec_stream(request).await?;
    if wanted.detach {
        tokio::spawn(left_alone(stream));
        return Ok((StatusCode::ACCEPTED, said(&json!({}))).into_response());
    }
    let (output, frames) = mpsc::channel(OUTPUT_FRAMES);
    tokio::spawn(async move {
        let (control, gone) = (stream.control(), output.clone());
        // A caller who goes away takes the program along.
        tokio::select! {
            () = print(stream, &output) => {}
            () = async { listen(input, control, &output).await; std::future::pending().await } => {}
            () = gone.closed() => {}
        }
    });
    Ok(reply(frames))
}

/// Runs a program that nobody is attached to.
async fn left_alone(mut stream: ExecStream) {
    // It may have ended already, and then needs no input.
    stream.control().close_stdin().await.ok();
    while let Ok(Some(_)) = stream.next().await {}
}

/// Sends on what a program does, to its end.
async fn print(mut stream: ExecStream, output: &Output) {
    loop {
        let frames = match stream.next().await {
            Ok(Some(StreamEvent::Stdout(data))) => pieces(data, Frame::Stdout),
            Ok(Some(StreamEvent::Stderr(data))) => pieces(data, Frame::Stderr),
            Ok(Some(StreamEvent::Exit(exit))) => vec![Frame::Exit(json_bytes(&ExitView {
                exit_code: exit.exit_code,
                out_of_memory: exit.out_of_memory,
                timed_out: exit.timed_out,
            }))],
            Ok(None) => return,
            Err(error) => vec![failed(error)],
        };
        let is_last = matches!(frames.last(), Some(Frame::Exit(_) | Frame::Error(_)));
        if !send(output, frames).await || is_last {
            return;
        }
    }
}

fn pieces(mut data: Bytes, kind: fn(Bytes) -> Frame) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !data.is_empty() {
        frames.push(kind(data.split_to(data.len().min(MAX_DATA_BYTES))));
    }
    frames
}

/// Whether the client is still there.
async fn send(output: &Output, frames: Vec<Frame>) -> bool {
    for frame in frames {
        if output.send(frame).await.is_err() {
            return false;
        }
    }
    true
}

/// Does as the client says until it says no more.
async fn listen(mut input: Input, control: ExecControl, output: &Output) {
    let (queue, writes) = mpsc::channel(WINDOW_FRAMES);
    let window = Arc::new(Semaphore::new(WINDOW_BYTES));
    let typed = Typed { queue, window: window.clone() };
    let told = control.clone();
    let obey = async move {
        loop {
            match input.next().await {
                Ok(Some(frame)) => obey(frame, &told, &typed).await?,
                Ok(None) => return Ok(()),
                Err(failure) => return Err(failure),
            }
        }
    };
    let write = async {
        write(writes, &control, &window, output).await;
        Ok(())
    };
    // A client that breaks the rules learns it at once, whatever the program still takes.
    let obeyed = tokio::try_join!(obey, write);
    if let Err(failure) = obeyed {
        // A client that has gone need not know.
        output.send(failed(failure)).await.ok();
    }
}

/// Input that waits for its program.
struct Typed {
    /// `None`: it ends.
    queue: mpsc::Sender<Option<Bytes>>,
    /// Bytes that may wait yet.
    window: Arc<Semaphore>,
}

impl Typed {
    fn put(&self, data: Option<Bytes>) -> Result<(), Failure> {
        let full =
            || Failure::argument(format!("more than {WINDOW_BYTES} bytes of input wait for the program"));
        let cost = data.as_ref().map_or(0, |data| cost_bytes(data.len()));
        self.window.try_acquire_many(cost).map_err(|_| full())?.forget();
        self.queue.try_send(data).map_err(|_| full())
    }
}

async fn obey(frame: Frame, control: &ExecControl, typed: &Typed) -> Result<(), Failure> {
    match frame {
        Frame::Stdin(data) => typed.put(Some(data))?,
        Frame::CloseStdin => typed.put(None)?,
        // A program that has ended needs neither any more; its exit is on its way.
        Frame::Signal(name) => {
            let signal: Signal = name.parse().map_err(Failure::argument)?;
            control.signal(signal).await.ok();
        }
        Frame::Resize { rows, columns } => {
            control.resize(WindowSize { rows, columns }).await.ok();
        }
        _ => return Err(Failure::argument("this frame is none for a server")),
    }
    Ok(())
}

/// Writes input as the program takes it, and says so.
async fn write(
    mut writes: mpsc::Receiver<Option<Bytes>>,
    control: &ExecControl,
    window: &Semaphore,
    output: &Output,
) {
    while let Some(data) = writes.recv().await {
        let Some(data) = data else {
            // One that has ended reads no more.
            control.close_stdin().await.ok();
            continue;
        };
        let cost = cost_bytes(data.len());
        // The same: what is lost nobody would have read, and the client need not stop.
        control.write(data).await.ok();
        window.add_permits(cost as usize);
        if output.send(Frame::Taken(cost)).await.is_err() {
            return;
        }
    }
}

/// `POST /v1/run`: a new sandbox, and its main program from its first word to its last.
pub(super) async fn run(State(host): State<Host>, body: Body) -> Answered {
    let mut input = Input::new(body);
    let config: BoxConfig = input.start().await?;
    let events = host.events();
    let sandbox = host.create(config).await?;
    let end = end::ended(events, sandbox.clone());
    Ok(follow(sandbox, input, end, None))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachQuery {
    /// Starts it first, and is attached from its first word on.
    #[serde(default)]
    start: bool,
}

/// `POST /v1/sandboxes/{sandbox}/attach`
pub(super) async fn attach(
    State(host): State<Host>,
    Path(name): Path<String>,
    query: Result<Query<AttachQuery>, QueryRejection>,
    body: Body,
) -> Answered {
    let AttachQuery { start } = asked(query)?;
    let (events, since) = (host.events(), SystemTime::now());
    let sandbox = host.find(&name)?;
    if start {
        sandbox.start().await?;
    } else {
        // One that cannot be attached to says why.
        sandbox.attach()?;
    }
    let end = end::ended(events, sandbox.clone());
    Ok(follow(sandbox, Input::new(body), end, Some(since)))
}

/// Attaches the client to the main program of `sandbox`, to what it prints after `since`. The client may go, and the
/// program goes on.
fn follow(
    sandbox: Sandbox,
    input: Input,
    end: impl Future<Output = Result<bouvet_host::Stop, Refusal>> + Send + 'static,
    since: Option<SystemTime>,
) -> Response {
    let (output, frames) = mpsc::channel(OUTPUT_FRAMES);
    tokio::spawn(async move {
        let view = Frame::Sandbox(json_bytes(&SandboxView::from(&sandbox.info())));
        let gone = output.clone();
        let (reader, control) = match sandbox.attach() {
            Ok(Attachment { output, control }) => (output, Some(control)),
            // It has ended already: what it printed is there.
            Err(_) => (sandbox.logs(LogOptions { since, ..LogOptions::default() }), None),
        };
        let printed = async {
            let mut reader = reader;
            if !send(&output, vec![view]).await {
                return;
            }
            while let Some(record) = reader.next().await {
                let is_old = since.is_some_and(|since| record.time < since);
                if !is_old && !send(&output, logs::frames(&record)).await {
                    return;
                }
            }
        };
        let listening = async {
            if let Some(control) = control {
                listen(input, control, &output).await;
            }
            std::future::pending::<()>().await
        };
        let ended = async {
            // Both at once: events wait for nobody for long.
            let ((), end) = tokio::join!(printed, end);
            let last = match end {
                Ok(stop) => Frame::Exit(json_bytes(&ExitView::from(stop))),
                // As a program ends that is killed.
                Err(Refusal::Destroyed) => {
                    Frame::Exit(json_bytes(&ExitView { exit_code: 128 + 9, ..ExitView::default() }))
                }
                Err(refusal) => failed(refusal),
            };
            send(&output, vec![last]).await
        };
        tokio::select! {
            _ = ended => {}
            () = listening => {}
            () = gone.closed() => {}
        }
    });
    reply(frames)
}
