//! Datagrams between peers of the host's and where a program of the sandbox receives them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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

/// Passes datagrams to and from the port that the first message says, until the host ends the call.
pub(crate) async fn pass(
    room: &Peers,
    mut input: Streaming<v1::DatagramsInput>,
) -> Result<Answers<v1::DatagramsOutput>, Status> {
    let start = match input.message().await?.and_then(|message| message.input) {
        Some(Input::Start(start)) => u16::try_from(start.port).ok().filter(|port| *port != 0),
        _ => return Err(Status::invalid_argument("the first message must be `start`")),
    };
    let port = start.ok_or_else(|| Status::invalid_argument("there is no such port"))?;
    let (outputs, answers) = mpsc::channel(ANSWERS);
    tokio::spawn(distribute(port, room.clone(), input, outputs));
    Ok(ReceiverStream::new(answers))
}

/// Gives each peer's datagrams to a socket of its own, by which answers find their way back.
async fn distribute(port: u16, room: Peers, mut input: Streaming<v1::DatagramsInput>, outputs: Outputs) {
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
                    tokio::spawn(serve(port, peer, datagrams, outputs.clone()));
                }
                // One that is lost is lost.
                peers.get(&peer).map(|(sender, _)| sender.try_send(data));
            }
            Some(Input::Forget(peer)) => drop(peers.remove(&peer)),
            Some(Input::Start(_)) | None => return,
        }
    }
}

async fn serve(port: u16, peer: u32, mut datagrams: mpsc::Receiver<Bytes>, outputs: Outputs) {
    let Ok(mut line) = Line::open(port).await else { return };
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
    socket: UdpSocket,
    is_v6: bool,
    /// What may have to be sent the other way, as it was refused this way.
    last: Option<Bytes>,
}

impl Line {
    async fn open(port: u16) -> io::Result<Self> {
        Ok(Self { port, socket: connect(port, false).await?, is_v6: false, last: None })
    }

    /// Sends `datagram`, which gets lost if it cannot be sent.
    async fn send(&mut self, datagram: Bytes) {
        match self.socket.send(&datagram).await {
            // It is told of the datagram before this one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.last = Some(datagram);
                self.turn().await;
            }
            _ => self.last = Some(datagram),
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

    /// Nobody is there: the last datagram goes to the other loopback address, once.
    async fn turn(&mut self) {
        let Some(last) = self.last.take() else { return };
        // Without IPv6 this way is the only one.
        if let Ok(socket) = connect(self.port, !self.is_v6).await {
            (self.socket, self.is_v6) = (socket, !self.is_v6);
            // It is lost if that is in vain too.
            self.socket.send(&last).await.ok();
        }
    }
}

async fn connect(port: u16, is_v6: bool) -> io::Result<UdpSocket> {
    let own: IpAddr = if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect((own, port)).await?;
    Ok(socket)
}
