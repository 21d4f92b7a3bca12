//! Datagrams between peers of the host's and where a program of the sandbox receives them.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bouvet_wire::limits::{MAX_DATAGRAM_BYTES, MAX_PEERS};
use bouvet_wire::v1::{self, datagrams_input::Input, datagrams_output::Output};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::answers::Answers;

/// Datagrams that wait for the link. Those beyond it are lost, as they are in networks.
const ANSWERS: usize = 16;
/// Datagrams that wait for one peer's socket.
const WAITING: usize = 4;

/// Room for the peers of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Peers(Arc<Semaphore>);

impl Default for Peers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_PEERS)))
    }
}

type Outputs = mpsc::Sender<Result<v1::DatagramsOutput, Status>>;

/// Passes datagrams to and from the port that the first message says, at the first of `addresses` where a program
/// receives them, until the host ends the call.
pub(crate) async fn pass(
    room: &Peers,
    addresses: Vec<IpAddr>,
    mut input: Streaming<v1::DatagramsInput>,
) -> Result<Answers<v1::DatagramsOutput>, Status> {
    let start = match input.message().await?.and_then(|message| message.input) {
        Some(Input::Start(start)) => u16::try_from(start.port).ok().filter(|port| *port != 0),
        _ => return Err(Status::invalid_argument("the first message must be `start`")),
    };
    let port = start.ok_or_else(|| Status::invalid_argument("there is no such port"))?;
    let (outputs, answers) = mpsc::channel(ANSWERS);
    tokio::spawn(distribute((port, addresses.into()), room.clone(), input, outputs));
    Ok(ReceiverStream::new(answers))
}

/// Gives each peer's datagrams to a socket of its own, by which answers find their way back.
async fn distribute(
    (port, addresses): (u16, Arc<[IpAddr]>),
    room: Peers,
    mut input: Streaming<v1::DatagramsInput>,
    outputs: Outputs,
) {
    // A peer's task ends when it is no more in here, and its place is free at once.
    let mut peers: HashMap<u32, (mpsc::Sender<Bytes>, OwnedSemaphorePermit)> = HashMap::new();
    while let Ok(Some(message)) = input.message().await {
        match message.input {
            Some(Input::Datagram(v1::Datagram { peer, data })) => {
                if peers.get(&peer).is_none_or(|(sender, _)| sender.is_closed()) {
                    peers.remove(&peer);
                    let Ok(permit) = room.0.clone().try_acquire_owned() else { continue };
                    let (sender, datagrams) = mpsc::channel(WAITING);
                    peers.insert(peer, (sender, permit));
                    let line = Line::open(port, addresses.clone());
                    tokio::spawn(serve(line, peer, datagrams, outputs.clone()));
                }
                // One that is lost is lost.
                peers.get(&peer).map(|(sender, _)| sender.try_send(data));
            }
            Some(Input::Forget(peer)) => drop(peers.remove(&peer)),
            Some(Input::Start(_)) | None => return,
        }
    }
}

async fn serve(
    line: impl Future<Output = io::Result<Line>>,
    peer: u32,
    mut datagrams: mpsc::Receiver<Bytes>,
    outputs: Outputs,
) {
    let Ok(mut line) = line.await else { return };
    loop {
        tokio::select! {
            datagram = datagrams.recv() => match datagram {
                Some(datagram) => line.send(datagram).await,
                None => return,
            },
            data = line.receive() => {
                let Some(data) = data else { continue };
                let output = Output::Datagram(v1::Datagram { peer, data });
                let sent = outputs.try_send(Ok(v1::DatagramsOutput { output: Some(output) }));
                if let Err(mpsc::error::TrySendError::Closed(_)) = sent {
                    return;
                }
            }
        }
    }
}

/// A peer's socket.
struct Line {
    port: u16,
    addresses: Arc<[IpAddr]>,
    /// Which of the addresses it is connected to.
    at: usize,
    socket: UdpSocket,
    last: Option<Unconfirmed>,
}

/// A datagram that may be refused yet, where it was sent.
struct Unconfirmed {
    data: Bytes,
    /// Number of other addresses that the datagram may be sent to.
    turns: usize,
}

impl Line {
    async fn open(port: u16, addresses: Arc<[IpAddr]>) -> io::Result<Self> {
        let first = addresses.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = connect(port, *first).await?;
        Ok(Self { port, addresses, at: 0, socket, last: None })
    }

    /// Sends `datagram`, which gets lost if it cannot be sent.
    async fn send(&mut self, datagram: Bytes) {
        let turns = self.addresses.len() - 1;
        let last = Some(Unconfirmed { data: datagram.clone(), turns });
        match self.socket.send(&datagram).await {
            // It is told of the datagram before this one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.last = last;
                self.turn().await;
            }
            _ => self.last = last,
        }
    }

    /// The next datagram, `None` if there is none after all.
    async fn receive(&mut self) -> Option<Bytes> {
        self.socket.readable().await.ok()?;
        // Room for the largest is held only now.
        let mut data = Vec::with_capacity(MAX_DATAGRAM_BYTES);
        match self.socket.try_recv_buf(&mut data) {
            Ok(_) => {
                self.last = None;
                Some(Bytes::copy_from_slice(&data))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.turn().await;
                None
            }
            Err(_) => None,
        }
    }

    /// Nobody is there: the last datagram goes to the next address, to each of them once at most. It is lost if nobody
    /// is at any.
    async fn turn(&mut self) {
        while let Some(Unconfirmed { data, turns }) = self.last.take().filter(|last| last.turns > 0) {
            self.at = (self.at + 1) % self.addresses.len();
            self.last = Some(Unconfirmed { data: data.clone(), turns: turns - 1 });
            // Without IPv6 one of them does not exist.
            let Ok(socket) = connect(self.port, self.addresses[self.at]).await else { continue };
            self.socket = socket;
            if self.socket.send(&data).await.is_ok() {
                return;
            }
        }
    }
}

async fn connect(port: u16, address: IpAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, 0)).await?;
    socket.connect((address, port)).await?;
    Ok(socket)
}
