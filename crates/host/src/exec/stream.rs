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
///
/// ```no_run
/// use bouvet_host::{ExecRequest, StreamEvent};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut program = sandbox.exec_stream(ExecRequest::arguments(["vmstat", "1", "5"])?).await?;
/// while let Some(event) = program.next().await? {
///     match event {
///         StreamEvent::Stdout(data) => print!("{}", String::from_utf8_lossy(&data)),
///         StreamEvent::Stderr(data) => eprint!("{}", String::from_utf8_lossy(&data)),
///         StreamEvent::Exit(exit) => println!("exit code {}", exit.exit_code),
///     }
/// }
/// # Ok(()) }
/// ```
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
///
/// ```no_run
/// use bouvet_host::ExecRequest;
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut program = sandbox.exec_stream(ExecRequest::arguments(["sort"])?).await?;
/// let control = program.control();
/// control.write("b\na\n".into()).await?;
/// control.close_stdin().await?;
/// while let Some(event) = program.next().await? {
///     println!("{event:?}");
/// }
/// # Ok(()) }
/// ```
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
    ///
    /// ```no_run
    /// use bouvet_host::{ExecRequest, StreamEvent};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut program = sandbox.exec_stream(ExecRequest::arguments(["tail", "-f", "/var/log/app"])?).await?;
    /// while let Some(StreamEvent::Stdout(data)) = program.next().await? {
    ///     print!("{}", String::from_utf8_lossy(&data));
    /// }
    /// # Ok(()) }
    /// ```
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
                Some(Output::Started(_) | Output::Result(_) | Output::ClearResults(_)) => {}
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
///
/// ```no_run
/// use bouvet_host::{ExecRequest, Signal};
///
/// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let program = sandbox.exec_stream(ExecRequest::arguments(["sleep", "1000"])?).await?;
/// let control = program.control();
/// tokio::spawn(async move { control.signal(Signal::INT).await });
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct ExecControl {
    client: Client,
    pid: u32,
    input: mpsc::Sender<v1::ExecInput>,
}

impl ExecControl {
    /// Writes to its standard input. Waits while the program does not read.
    ///
    /// ```no_run
    /// use bouvet_host::ExecRequest;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let program = sandbox.exec_stream(ExecRequest::arguments(["python3", "-i"])?).await?;
    /// program.control().write("print(6 * 7)\n".into()).await?;
    /// # Ok(()) }
    /// ```
    pub async fn write(&self, data: Bytes) -> Result<(), ExecError> {
        for chunk in chunks(data) {
            self.input.send(message(Input::Stdin(chunk))).await.map_err(|_| ExecError::Ended)?;
        }
        Ok(())
    }

    /// Ends its standard input, as Ctrl-D does at a terminal.
    ///
    /// ```no_run
    /// use bouvet_host::ExecRequest;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let program = sandbox.exec_stream(ExecRequest::arguments(["wc", "-l"])?).await?;
    /// program.control().write("one line\n".into()).await?;
    /// program.control().close_stdin().await?;
    /// # Ok(()) }
    /// ```
    pub async fn close_stdin(&self) -> Result<(), ExecError> {
        let close = message(Input::CloseStdin(v1::CloseStdin {}));
        self.input.send(close).await.map_err(|_| ExecError::Ended)
    }

    /// Sends it a signal.
    ///
    /// ```no_run
    /// use bouvet_host::{ExecError, ExecRequest, Signal};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let program = sandbox.exec_stream(ExecRequest::arguments(["sleep", "1"])?).await?;
    /// match program.control().signal(Signal::TERM).await {
    ///     Ok(()) => println!("it was asked to end"),
    ///     Err(ExecError::Ended) => println!("it had ended"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn signal(&self, signal: Signal) -> Result<(), ExecError> {
        let request = v1::SignalRequest { pid: self.pid, signal: signal.number() };
        let mut client = self.client.clone();
        answered(async move { client.signal(request).await.map(drop) }).await
    }

    /// Says how large its terminal is now.
    ///
    /// ```no_run
    /// use bouvet_host::{ExecRequest, WindowSize};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let terminal = Some(WindowSize::default());
    /// let request = ExecRequest { terminal, ..ExecRequest::arguments(["top"])? };
    /// let program = sandbox.exec_stream(request).await?;
    /// program.control().resize(WindowSize { rows: 50, columns: 132 }).await?;
    /// # Ok(()) }
    /// ```
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
