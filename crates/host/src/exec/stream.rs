//! Programs whose callers stay attached: their output as it comes, their input as it is typed.

use std::time::Duration;

use bouvet_wire::v1::{self, exec_input::Input, exec_output::Output};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::request::{chunks, message};
use super::{ExecError, ExecExit, ExecRequest, GRACE, Place, Signal, WindowSize};
use crate::boxconfig::InvalidConfig;
use crate::link::Client;

/// Messages of input that wait for the link.
const INPUT_MESSAGES: usize = 8;
/// From the call to the start of the program: its executable may have to be read from disk, emulated.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// Signals and sizes are small words.
const CONTROL_DEADLINE: Duration = Duration::from_secs(30);

/// What a program is to its sandbox.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Role {
    /// The one with which it ends.
    Main,
    /// The one of the second image, so confined.
    Sidecar(v1::Confinement),
    /// One of many.
    Other,
}

/// What a program does to whose output somebody is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// It printed.
    Stdout(Bytes),
    /// It printed errors. Never, where it has a terminal.
    Stderr(Bytes),
    /// It ended. Always the last.
    Exit(ExecExit),
}

/// A running program to which its caller is attached. Dropping it kills the program and all that it started. What it
/// prints waits until it is taken, and then the program waits too.
#[derive(Debug)]
pub struct ExecStream {
    outputs: Streaming<v1::ExecOutput>,
    control: ExecControl,
    ended: bool,
    place: Option<Place>,
}

impl ExecStream {
    pub(crate) async fn start(client: Client, request: ExecRequest, role: Role) -> Result<Self, ExecError> {
        request.validate_attached()?;
        if request.context.is_some() {
            let allowed = "a program in a context has no attached caller".into();
            return Err(InvalidConfig { field: "context", value: "set".into(), allowed }.into());
        }
        let start = tokio::time::timeout(START_DEADLINE, Self::begin(client, request, role)).await;
        start.map_err(|_| ExecError::Deadline(START_DEADLINE + GRACE))?
    }

    async fn begin(client: Client, request: ExecRequest, role: Role) -> Result<Self, ExecError> {
        let mut start = v1::ExecStart { attached: true, ..v1::ExecStart::default() };
        match role {
            Role::Main => start.main = true,
            Role::Sidecar(confinement) => start.sidecar = Some(confinement),
            Role::Other => {}
        }
        let (begin, stdin) = request.into_parts(&start);
        let (input, later) = mpsc::channel(INPUT_MESSAGES);
        let inputs = tokio_stream::iter(begin.chain(stdin)).chain(ReceiverStream::new(later));
        let mut calls = client.clone();
        let mut outputs = calls.exec(inputs).await?.into_inner();
        // The guest says first that the program runs, and which number it has.
        let first = outputs.message().await?.and_then(|message| message.output);
        let Some(Output::Started(v1::ExecStarted { pid })) = first else {
            return Err(ExecError::Link("it did not say that the program has started".into()));
        };
        let control = ExecControl { client, pid, input };
        Ok(Self { outputs, control, ended: false, place: None })
    }

    pub(crate) fn at(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// What speaks to the program, also while this is listened to.
    pub fn control(&self) -> ExecControl {
        self.control.clone()
    }

    /// What the program does next; `None` after its exit.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, ExecError> {
        let received = self.receive().await;
        Place::explained(self.place.as_ref(), received).await
    }

    async fn receive(&mut self) -> Result<Option<StreamEvent>, ExecError> {
        while !self.ended {
            let message = self.outputs.message().await?;
            match message.and_then(|message| message.output) {
                Some(Output::Stdout(data)) => return Ok(Some(StreamEvent::Stdout(data))),
                Some(Output::Stderr(data)) => return Ok(Some(StreamEvent::Stderr(data))),
                Some(Output::Exit(exit)) => {
                    self.ended = true;
                    return Ok(Some(StreamEvent::Exit(exit.into())));
                }
                Some(Output::Started(_) | Output::Result(_)) => {}
                None => return Err(ExecError::Link("it ended the call without an exit".into())),
            }
        }
        Ok(None)
    }
}

impl From<v1::ExecExit> for ExecExit {
    fn from(exit: v1::ExecExit) -> Self {
        Self {
            exit_code: exit.exit_code,
            timed_out: exit.timed_out,
            out_of_memory: exit.out_of_memory,
            duration: Duration::from_micros(exit.duration_us),
            context_death: None,
        }
    }
}

/// Speaks to a running program. Cheap to clone; it does not keep the program alive.
#[derive(Debug, Clone)]
pub struct ExecControl {
    client: Client,
    pid: u32,
    input: mpsc::Sender<v1::ExecInput>,
}

impl ExecControl {
    /// Writes to its standard input. Waits while the program does not read.
    pub async fn write(&self, data: Bytes) -> Result<(), ExecError> {
        for chunk in chunks(data) {
            self.input.send(message(Input::Stdin(chunk))).await.map_err(|_| ExecError::Ended)?;
        }
        Ok(())
    }

    /// Ends its standard input, as Ctrl-D does at a terminal.
    pub async fn close_stdin(&self) -> Result<(), ExecError> {
        let close = message(Input::CloseStdin(v1::CloseStdin {}));
        self.input.send(close).await.map_err(|_| ExecError::Ended)
    }

    /// Sends it a signal.
    pub async fn signal(&self, signal: Signal) -> Result<(), ExecError> {
        let request = v1::SignalRequest { pid: self.pid, signal: signal.number() };
        let mut client = self.client.clone();
        answered(async move { client.signal(request).await.map(drop) }).await
    }

    /// Says how large its terminal is now.
    pub async fn resize(&self, size: WindowSize) -> Result<(), ExecError> {
        let request = v1::ResizeRequest { pid: self.pid, terminal: Some(size.into()) };
        let mut client = self.client.clone();
        answered(async move { client.resize(request).await.map(drop) }).await
    }
}

async fn answered(call: impl Future<Output = Result<(), tonic::Status>>) -> Result<(), ExecError> {
    match tokio::time::timeout(CONTROL_DEADLINE, call).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(status)) => match ExecError::from(status) {
            ExecError::NoProgram(_) => Err(ExecError::Ended),
            error => Err(error),
        },
        Err(_) => Err(ExecError::Deadline(CONTROL_DEADLINE)),
    }
}
