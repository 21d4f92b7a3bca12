//! Connections of the host to where a program of the sandbox listens.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bouvet_wire::limits::{MAX_CONNECTIONS, MAX_PORT_CONNECTIONS, TUNNEL_WINDOW_BYTES};
use bouvet_wire::v1::{self, connect_input::Input, connect_output::Output};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_vsock::{VMADDR_CID_LOCAL, VsockAddr, VsockStream};
use tonic::{Status, Streaming};

use crate::answers::Answers;

/// Within the VM: whoever listens answers at once, or not at all. The host counts its connections itself, so that one
/// for which there is no room yet waits only for another that is just ending.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest part that is sent at once.
const PART_BYTES: usize = 32 * 1024;
/// Parts that wait for the link.
const PARTS: usize = 2;
/// Bytes that are passed on before the host is told.
const TAKEN_BYTES: usize = TUNNEL_WINDOW_BYTES / 2;

/// Room for the connections of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    control: Arc<Semaphore>,
    ports: Arc<Semaphore>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            control: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            ports: Arc::new(Semaphore::new(MAX_PORT_CONNECTIONS)),
        }
    }
}

impl Connections {
    async fn room(&self, tcp: bool) -> Result<OwnedSemaphorePermit, Status> {
        let (room, most) = match tcp {
            true => (&self.ports, MAX_PORT_CONNECTIONS),
            false => (&self.control, MAX_CONNECTIONS),
        };
        match tokio::time::timeout(DEADLINE, room.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Status::resource_exhausted(format!("{most} connections are open, which is the limit"))),
        }
    }
}

/// A connection to a program.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// What its drop is to the program: that it was broken off, or its end.
    fn set_abrupt(&self, abrupt: bool);
}

impl Stream for TcpStream {
    fn set_abrupt(&self, abrupt: bool) {
        let linger = abrupt.then_some(Duration::ZERO);
        // At worst it looks like an end.
        rustix::net::sockopt::set_socket_linger(self, linger).ok();
    }
}

impl Stream for VsockStream {
    fn set_abrupt(&self, _: bool) {}
}

/// Connects to the port that the first message says, at the first of `addresses` where a program listens, and passes
/// bytes both ways until both directions have ended or the host gives it up.
pub(crate) async fn connect(
    connections: &Connections,
    addresses: Vec<IpAddr>,
    mut input: Streaming<v1::ConnectInput>,
) -> Result<Answers<v1::ConnectOutput>, Status> {
    let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    let permit = connections.room(start.tcp).await?;
    let stream = tokio::time::timeout(DEADLINE, dial(&start, &addresses)).await;
    let refused = |why: String| Status::unavailable(format!("nobody listens on port {}: {why}", start.port));
    let stream = stream.map_err(|_| refused(format!("no answer within {DEADLINE:?}")))?;
    let stream = stream.map_err(|error| refused(error.to_string()))?;
    let (outputs, answers) = mpsc::channel(PARTS);
    // There is room: nothing was sent yet.
    outputs.try_send(Ok(output(Output::Connected(v1::Connected {})))).ok();
    tokio::spawn(async move {
        let _permit = permit;
        pass(stream, input, outputs).await;
    });
    Ok(ReceiverStream::new(answers))
}

async fn dial(start: &v1::ConnectStart, addresses: &[IpAddr]) -> io::Result<Box<dyn Stream>> {
    if !start.tcp
        && let Ok(stream) = VsockStream::connect(VsockAddr::new(VMADDR_CID_LOCAL, start.port)).await
    {
        return Ok(Box::new(stream));
    }
    let port = u16::try_from(start.port).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    // A sidecar's orders come by the loopback interface alone.
    let addresses = addresses.iter().filter(|address| start.tcp || address.is_loopback());
    let mut refused = None;
    for address in addresses {
        match TcpStream::connect((*address, port)).await {
            Ok(stream) => {
                // The sender at the other end decides how much it sends at a time.
                stream.set_nodelay(true)?;
                return Ok(Box::new(stream));
            }
            // The first reason is the best: few programs listen elsewhere alone.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()))
}

/// What ends a connection before its end.
#[derive(Debug)]
struct Broken;

type Outputs = mpsc::Sender<Result<v1::ConnectOutput, Status>>;

async fn pass(stream: Box<dyn Stream>, input: Streaming<v1::ConnectInput>, outputs: Outputs) {
    stream.set_abrupt(true);
    let (mut reader, mut writer) = tokio::io::split(stream);
    // What the host sent and the program has not read.
    let (buffer, unread) = tokio::io::duplex(TUNNEL_WINDOW_BYTES);
    let allowed = Semaphore::new(TUNNEL_WINDOW_BYTES);
    let ended = {
        let both = async {
            tokio::try_join!(
                deliver(unread, &mut writer, &outputs),
                download(&mut reader, &outputs, &allowed),
            )
        };
        tokio::select! {
            both = both => both.is_ok(),
            // It ends only if the host gives it up.
            Broken = receive(input, buffer, &allowed) => false,
            () = outputs.closed() => false,
        }
    };
    if ended {
        reader.unsplit(writer).set_abrupt(false);
    }
}

/// Reads all that the host says at once, whether or not the program reads: there is room for what it may send.
async fn receive(
    mut input: Streaming<v1::ConnectInput>,
    buffer: DuplexStream,
    allowed: &Semaphore,
) -> Broken {
    let mut buffer = Some(buffer);
    while let Ok(Some(message)) = input.message().await {
        match (message.input, &mut buffer) {
            (Some(Input::Data(data)), Some(buffer)) => {
                if buffer.write_all(&data).await.is_err() {
                    break;
                }
            }
            (Some(Input::Ended(_)), Some(_)) => buffer = None,
            (Some(Input::Taken(bytes)), _) => {
                let bytes = bytes as usize;
                if bytes > TUNNEL_WINDOW_BYTES.saturating_sub(allowed.available_permits()) {
                    break;
                }
                allowed.add_permits(bytes);
            }
            _ => break,
        }
    }
    Broken
}

/// Gives the program what waits for it, to the end of that. What a program does not want that has closed its end is taken
/// all the same: it may still have an answer on its way, or have the connection broken off.
async fn deliver(
    mut unread: DuplexStream,
    writer: &mut (impl AsyncWrite + Unpin),
    outputs: &Outputs,
) -> Result<(), Broken> {
    let (mut part, mut taken, mut wanted) = (BytesMut::with_capacity(PART_BYTES), 0, true);
    loop {
        part.clear();
        let length = unread.read_buf(&mut part).await.map_err(|_| Broken)?;
        if length == 0 {
            break;
        }
        wanted = wanted && writer.write_all(&part).await.is_ok();
        taken += length;
        if taken >= TAKEN_BYTES {
            let bytes = u32::try_from(taken).unwrap_or(u32::MAX);
            outputs.send(Ok(output(Output::Taken(bytes)))).await.map_err(|_| Broken)?;
            taken = 0;
        }
    }
    // What is closed already needs no closing.
    writer.shutdown().await.ok();
    Ok(())
}

/// Sends what comes from the program, to the end of that, as far as the host has room for it.
async fn download(
    reader: &mut (impl AsyncRead + Unpin),
    outputs: &Outputs,
    allowed: &Semaphore,
) -> Result<(), Broken> {
    loop {
        let Ok(first) = allowed.acquire().await else { return Err(Broken) };
        // Only this takes of it.
        let most = (1 + allowed.available_permits()).min(PART_BYTES);
        let mut part = BytesMut::with_capacity(most);
        let read = (&mut *reader).take(most as u64).read_buf(&mut part).await;
        let (message, ended) = match read {
            Ok(0) => (Ok(output(Output::Ended(v1::Ended {}))), Some(Ok(()))),
            Ok(length) => {
                first.forget();
                allowed.forget_permits(length - 1);
                (Ok(output(Output::Data(part.freeze()))), None)
            }
            Err(error) => (Err(Status::aborted(error.to_string())), Some(Err(Broken))),
        };
        // The host may have gone meanwhile.
        outputs.send(message).await.map_err(|_| Broken)?;
        if let Some(ended) = ended {
            return ended;
        }
    }
}

fn output(output: Output) -> v1::ConnectOutput {
    v1::ConnectOutput { output: Some(output) }
}
