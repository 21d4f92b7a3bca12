//! Connections of the host to where a program of the sandbox listens.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bouvet_wire::limits::MAX_CONNECTIONS;
use bouvet_wire::v1::{self, connect_input::Input, connect_output::Output};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_vsock::{VMADDR_CID_LOCAL, VsockAddr, VsockStream};
use tonic::{Status, Streaming};

use crate::answers::Answers;

/// Within the VM: whoever listens answers at once, or not at all.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest part that is sent at once.
const PART_BYTES: usize = 32 * 1024;
/// Parts that wait for the link.
const PARTS: usize = 4;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects to the port that the first message says, and passes bytes both ways until both directions have ended or the
/// host gives the call up.
pub(crate) async fn connect(
    connections: &Arc<Semaphore>,
    mut input: Streaming<v1::ConnectInput>,
) -> Result<Answers<v1::ConnectOutput>, Status> {
    let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
        return Err(Status::invalid_argument("the first message must be `start`"));
    };
    let permit = connections.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        Status::resource_exhausted(format!("{MAX_CONNECTIONS} connections are open, which is the limit"))
    })?;
    let stream = tokio::time::timeout(DEADLINE, dial(start.port)).await;
    let refused = |why: String| Status::unavailable(format!("nobody listens on port {}: {why}", start.port));
    let stream = stream.map_err(|_| refused(format!("no answer within {DEADLINE:?}")))?;
    let stream = stream.map_err(|error| refused(error.to_string()))?;
    let (outputs, answers) = mpsc::channel(PARTS);
    // There is room: nothing was sent yet.
    outputs.try_send(Ok(output(Output::Connected(v1::Connected {})))).ok();
    tokio::spawn(pass(stream, input, outputs, permit));
    Ok(ReceiverStream::new(answers))
}

async fn dial(port: u32) -> io::Result<Box<dyn Stream>> {
    if let Ok(stream) = VsockStream::connect(VsockAddr::new(VMADDR_CID_LOCAL, port)).await {
        return Ok(Box::new(stream));
    }
    let port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    Ok(Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?))
}

async fn pass(
    stream: Box<dyn Stream>,
    input: Streaming<v1::ConnectInput>,
    outputs: mpsc::Sender<Result<v1::ConnectOutput, Status>>,
    _permit: OwnedSemaphorePermit,
) {
    let (reader, writer) = tokio::io::split(stream);
    let gone = outputs.clone();
    tokio::select! {
        // What breaks ends both directions.
        _ = async { tokio::try_join!(upload(input, writer), download(reader, outputs)) } => {}
        // The host has given it up.
        () = gone.closed() => {}
    }
}

/// What the host sends, to the end of it. A program that reads no more is not an error.
async fn upload(
    mut input: Streaming<v1::ConnectInput>,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Ok(Some(message)) = input.message().await {
        let Some(Input::Data(data)) = message.input else { break };
        if writer.write_all(&data).await.is_err() {
            return Ok(());
        }
    }
    // What is closed already needs no closing.
    writer.shutdown().await.ok();
    Ok(())
}

async fn download(
    mut reader: impl AsyncRead + Unpin,
    outputs: mpsc::Sender<Result<v1::ConnectOutput, Status>>,
) -> io::Result<()> {
    loop {
        let mut part = BytesMut::with_capacity(PART_BYTES);
        let last = match reader.read_buf(&mut part).await {
            Ok(0) => output(Output::Ended(v1::Ended {})),
            Ok(_) => match outputs.send(Ok(output(Output::Data(part.freeze())))).await {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
            Err(error) => {
                // The host may have gone meanwhile.
                outputs.send(Err(Status::aborted(error.to_string()))).await.ok();
                return Err(error);
            }
        };
        outputs.send(Ok(last)).await.ok();
        return Ok(());
    }
}

fn output(output: Output) -> v1::ConnectOutput {
    v1::ConnectOutput { output: Some(output) }
}
