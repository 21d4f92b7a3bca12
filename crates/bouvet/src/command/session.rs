//! This process stands for a program in a sandbox: its input, output, signals and terminal are passed on.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::outcome::Failed;
use super::signals::{self, Signals};
use super::terminal::{self, DetachKeys, Raw};
use crate::api::client::{Client, Frames};
use crate::api::frame::Frame;
use crate::api::shape::{ExitView, SandboxView};
use crate::api::{WINDOW_BYTES, cost_bytes};

/// Frames that wait to be sent.
const WAITING: usize = 64;
/// Whoever sends so many signals that ask a program to end wants out.
const IMPATIENT: u32 = 3;

/// How this process stands for the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Terms {
    /// Whether it hands on its standard input.
    pub(super) input: bool,
    /// Whether the program's input is at its end from the beginning.
    pub(super) closed: bool,
    /// Whether the program has a terminal.
    pub(super) terminal: bool,
    /// Whether the program goes on when two keys were typed.
    pub(super) detachable: bool,
}

impl Terms {
    /// Refuses to hand on keys where there are none.
    pub(super) fn check(self) -> Result<(), Failed> {
        match self.input && self.terminal && !terminal::is_input() {
            true => Err(Failed::new("standard input is no terminal").hint("leave `-t` away")),
            false => Ok(()),
        }
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
                    super::table::note("the program's time was over");
                }
                // As wait(2) cuts it.
                u8::try_from(exit.exit_code & 0xff).unwrap_or(u8::MAX)
            }
            Self::Left => 0,
            Self::Signal(number) => signals::code(*number),
        }
    }
}

/// Calls `path` with `start`, and stands for the program that it is about until one of them ends.
pub(super) async fn run(
    client: &Client,
    path: &str,
    start: Option<Bytes>,
    terms: Terms,
    signals: &mut Signals,
) -> Result<Ended, Failed> {
    let (frames, sent) = mpsc::channel(WAITING);
    for frame in start
        .map(Frame::Start)
        .into_iter()
        .chain(size(terms))
        .chain(terms.closed.then_some(Frame::CloseStdin))
    {
        // There is room.
        frames.try_send(frame).ok();
    }
    let received = tokio::select! {
        received = client.frames(Method::POST, path, ReceiverStream::new(sent)) => received?,
        number = signals.next() => return Ok(Ended::Signal(number)),
    };
    let _raw = match terms.input && terms.terminal {
        true => Some(Raw::new()?),
        false => None,
    };
    Session { frames, window: Arc::new(Semaphore::new(WINDOW_BYTES)) }.stand(received, terms, signals).await
}

fn size(terms: Terms) -> Option<Frame> {
    let (rows, columns) = terminal::size().filter(|_| terms.terminal)?;
    Some(Frame::Resize { rows, columns })
}

struct Session {
    frames: mpsc::Sender<Frame>,
    /// Bytes of input that may be sent.
    window: Arc<Semaphore>,
}

impl Session {
    async fn stand(self, mut received: Frames, terms: Terms, signals: &mut Signals) -> Result<Ended, Failed> {
        let mut resized = signal(SignalKind::window_change())?;
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        let (mut typing, mut asked) = (std::pin::pin!(self.type_in(terms)), 0);
        let mut typed = false;
        loop {
            tokio::select! {
                frame = received.next() => match frame? {
                    Some(Frame::Stdout(data)) => print(&mut stdout, &data).await?,
                    Some(Frame::Stderr(data)) => print(&mut stderr, &data).await?,
                    Some(Frame::Taken(bytes)) => self.window.add_permits(bytes as usize),
                    Some(Frame::Exit(json)) => return Ok(Ended::Exit(read(&json)?)),
                    Some(Frame::Error(json)) => {
                        return Err(read::<crate::api::shape::FailureView>(&json)?.into());
                    }
                    Some(Frame::Sandbox(json)) => drop(read::<SandboxView>(&json)?),
                    Some(_) => return Err(Failed::new("the server sent what is none of its frames")),
                    None => return Err(Failed::new("the server went away before the program had ended")),
                },
                left = &mut typing, if !typed => {
                    typed = true;
                    if left? {
                        return Ok(Ended::Left);
                    }
                }
                number = signals.next() => {
                    asked += u32::from(matches!(number, 2 | 15));
                    if asked >= IMPATIENT {
                        return Ok(Ended::Signal(number));
                    }
                    self.send(Frame::Signal(number.to_string())).await;
                }
                _ = resized.recv() => if let Some(size) = size(terms) {
                    self.send(size).await;
                }
            }
        }
    }

    /// Hands on what is typed. Whether it was the keys to leave.
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
