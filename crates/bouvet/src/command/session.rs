//! Forwards input, output, signals and the terminal between this process and a program in a sandbox.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::notice::Notice;
use super::outcome::Failed;
use super::signals::{self, Signals};
use super::terminal::{self, DetachKeys, Raw};
use crate::api::client::{Client, Frames};
use crate::api::frame::Frame;
use crate::api::shape::{ExitView, SandboxView};
use crate::api::{WINDOW_BYTES, cost_bytes};

/// Frames that wait to be sent.
const OUTGOING_QUEUE_FRAMES: usize = 64;
/// The SIGINT or SIGTERM that ends the command itself at once.
const MAX_END_SIGNALS: u32 = 3;
/// Time that a program has to end after the first signal that asks it to: as long as `bouvet stop` gives it.
const END_GRACE: Duration = Duration::from_secs(10);
/// Time in which a killed program's end is reported.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const SIGHUP: i32 = SignalKind::hangup().as_raw_value();
const SIGINT: i32 = SignalKind::interrupt().as_raw_value();
const SIGTERM: i32 = SignalKind::terminate().as_raw_value();
const SIGKILL: i32 = 9;

/// What is forwarded to the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Terms {
    /// Whether standard input is forwarded.
    pub(super) input: bool,
    /// Whether the program's input is at its end from the beginning.
    pub(super) closed: bool,
    /// Whether the program has a terminal.
    pub(super) terminal: bool,
    /// Whether the program goes on when two keys were typed.
    pub(super) detachable: bool,
    /// Whether a program is killed that does not end within the grace period of a signal. Else it is left running.
    pub(super) kills: bool,
}

impl Terms {
    /// Refuses to forward keys where there is no terminal.
    pub(super) fn check(self) -> Result<(), Failed> {
        match self.input && self.terminal && !terminal::is_input() {
            true => Err(Failed::new("standard input is not a terminal").hint("omit `-t`")),
            false => Ok(()),
        }
    }

    /// Whether a signal starts the grace period. SIGINT does not where somebody may type: an interpreter handles it, and
    /// takes the next line.
    fn ends(self, number: i32) -> bool {
        matches!(number, SIGTERM | SIGHUP) || (number == SIGINT && !self.input)
    }
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// With the program.
    Exit(ExitView),
    /// By the keys for that.
    Left,
    /// By a signal, before the program had begun or since it does not end.
    Signal(i32),
}

impl Ended {
    /// This process's exit code, which is the program's.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Exit(exit) => {
                if exit.out_of_memory {
                    super::table::note("the sandbox ran out of memory");
                }
                if exit.timed_out {
                    super::table::note("the program's time limit was reached");
                }
                // As wait(2) cuts it.
                u8::try_from(exit.exit_code & 0xff).unwrap_or(u8::MAX)
            }
            Self::Left => 0,
            Self::Signal(number) => signals::code(*number),
        }
    }
}

/// A call that is answered when its program has started.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) path: String,
    /// The first frame's content, where the call has one.
    pub(super) start: Option<Bytes>,
    /// Lasts until the program has started.
    pub(super) notice: Option<Notice>,
}

/// Makes the call, and forwards input, output and signals until the program or this process ends.
pub(super) async fn run(
    client: &Client,
    call: Call,
    terms: Terms,
    signals: &mut Signals,
) -> Result<Ended, Failed> {
    let (frames, sent) = mpsc::channel(OUTGOING_QUEUE_FRAMES);
    for frame in call
        .start
        .map(Frame::Start)
        .into_iter()
        .chain(size(terms))
        .chain(terms.closed.then_some(Frame::CloseStdin))
    {
        // There is room.
        frames.try_send(frame).ok();
    }
    let received = tokio::select! {
        received = client.frames(Method::POST, &call.path, ReceiverStream::new(sent)) => received?,
        number = signals.next() => return Ok(Ended::Signal(number)),
    };
    drop(call.notice);
    let _raw = match terms.input && terms.terminal {
        true => Some(Raw::new()?),
        false => None,
    };
    Session { frames, window: Arc::new(Semaphore::new(WINDOW_BYTES)) }.forward(received, terms, signals).await
}

fn size(terms: Terms) -> Option<Frame> {
    let (rows, columns) = terminal::size().filter(|_| terms.terminal)?;
    Some(Frame::Resize { rows, columns })
}

/// A program that was asked to end.
#[derive(Debug, Clone, Copy)]
struct Ending {
    /// The first signal that asked.
    number: i32,
    /// When the program is killed or, once it was killed, left.
    at: Instant,
    killed: bool,
}

impl Ending {
    /// Waits until its time is over. Returns the signal.
    async fn wait(ending: Option<Self>) -> i32 {
        match ending {
            Some(ending) => {
                tokio::time::sleep_until(ending.at).await;
                ending.number
            }
            None => std::future::pending().await,
        }
    }

    /// The end of a program that was killed: the signal is what ended it.
    fn after_kill(self) -> Option<Ended> {
        self.killed.then_some(Ended::Signal(self.number))
    }
}

struct Session {
    frames: mpsc::Sender<Frame>,
    /// Bytes of input that may be sent.
    window: Arc<Semaphore>,
}

impl Session {
    async fn forward(self, received: Frames, terms: Terms, signals: &mut Signals) -> Result<Ended, Failed> {
        let mut resized = signal(SignalKind::window_change())?;
        // Output that nobody reads must not hold signals up.
        let mut output = std::pin::pin!(self.output(received));
        let (mut typing, mut typed) = (std::pin::pin!(self.type_in(terms)), false);
        let (mut asked, mut ending) = (0, None::<Ending>);
        loop {
            tokio::select! {
                exit = &mut output => {
                    let exit = exit?;
                    return Ok(ending.and_then(Ending::after_kill).unwrap_or(Ended::Exit(exit)));
                }
                left = &mut typing, if !typed => {
                    typed = true;
                    if left? {
                        return Ok(Ended::Left);
                    }
                }
                number = signals.next() => {
                    asked += u32::from(matches!(number, SIGINT | SIGTERM));
                    if asked >= MAX_END_SIGNALS {
                        return Ok(Ended::Signal(number));
                    }
                    if ending.is_none() && terms.ends(number) {
                        ending = Some(Ending { number, at: Instant::now() + END_GRACE, killed: false });
                    }
                    self.send(Frame::Signal(number.to_string())).await;
                }
                number = Ending::wait(ending) => match ending.as_mut() {
                    Some(ending) if terms.kills && !ending.killed => {
                        ending.killed = true;
                        ending.at = Instant::now() + KILL_TIMEOUT;
                        self.send(Frame::Signal(SIGKILL.to_string())).await;
                    }
                    _ => return Ok(Ended::Signal(number)),
                },
                _ = resized.recv() => if let Some(size) = size(terms) {
                    self.send(size).await;
                }
            }
        }
    }

    /// Prints what the program prints, until it has ended.
    async fn output(&self, mut received: Frames) -> Result<ExitView, Failed> {
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        loop {
            match received.next().await? {
                Some(Frame::Stdout(data)) => print(&mut stdout, &data).await?,
                Some(Frame::Stderr(data)) => print(&mut stderr, &data).await?,
                Some(Frame::Taken(bytes)) => self.window.add_permits(bytes as usize),
                Some(Frame::Exit(json)) => return read(&json),
                Some(Frame::Error(json)) => {
                    return Err(read::<crate::api::shape::FailureView>(&json)?.into());
                }
                Some(Frame::Sandbox(json)) => drop(read::<SandboxView>(&json)?),
                Some(_) => return Err(Failed::new("unexpected frame from the server")),
                None => return Err(Failed::new("the server closed the connection before the program ended")),
            }
        }
    }

    /// Forwards standard input. Returns whether the detach keys were typed.
    async fn type_in(&self, terms: Terms) -> Result<bool, Failed> {
        if !terms.input {
            return Ok(false);
        }
        let (mut input, mut keys) = (terminal::input()?, DetachKeys::default());
        let looks = terms.detachable && terms.terminal;
        while let Some(data) = input.recv().await {
            let (data, left) = if looks { keys.filter(&data) } else { (data.to_vec(), false) };
            if left {
                return Ok(true);
            }
            if data.is_empty() {
                continue;
            }
            let Ok(room) = self.window.acquire_many(cost_bytes(data.len())).await else { return Ok(false) };
            room.forget();
            self.send(Frame::Stdin(data.into())).await;
        }
        self.send(Frame::CloseStdin).await;
        Ok(false)
    }

    async fn send(&self, frame: Frame) {
        // A server that has gone says so where its frames are read.
        self.frames.send(frame).await.ok();
    }
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Failed> {
    serde_json::from_slice(json)
        .map_err(|error| Failed::new(format!("the server's answer is not understood: {error}")))
}

/// Prints at once: whoever reads may be a person.
pub(super) async fn print(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), Failed> {
    to.write_all(data).await?;
    to.flush().await?;
    Ok(())
}
