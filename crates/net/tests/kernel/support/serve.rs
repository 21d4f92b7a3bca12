//! Servers of the internet, and what is said to them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::World;

/// What nothing else looks like, wherever some of it is missing.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0_u32..).flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()).take(bytes).collect()
}

impl World {
    /// Has `serve` take each connection to `address`. What it comes to can be received.
    pub(crate) async fn serve<S, F, T>(&self, address: &str, serve: S) -> mpsc::UnboundedReceiver<T>
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let (done, results) = mpsc::unbounded_channel();
        let address: SocketAddr = address.parse().unwrap();
        self.internet(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (done, served) = (done.clone(), serve(stream));
                    tokio::spawn(async move { done.send(served.await).ok() });
                }
            });
        })
        .await;
        results
    }

    /// Says back whatever is said to `address`, by both protocols.
    pub(crate) async fn serve_echo(&self, address: &str) {
        drop(self.serve(address, echo).await);
        let address: SocketAddr = address.parse().unwrap();
        self.internet(async move {
            let socket = UdpSocket::bind(address).await.unwrap();
            tokio::spawn(async move {
                let mut datagram = vec![0; 65_536];
                while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
                    socket.send_to(&datagram[..length], from).await.ok();
                }
            });
        })
        .await;
    }
}

/// Says back whatever is said.
pub(crate) async fn echo(mut stream: TcpStream) -> io::Result<u64> {
    let (mut reader, mut writer) = stream.split();
    let length = tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await?;
    Ok(length)
}

/// Connects to `address`.
pub(crate) async fn connect(address: &str) -> io::Result<TcpStream> {
    TcpStream::connect(address.parse::<SocketAddr>().unwrap()).await
}

/// Says `said`, and that it is all, while it hears what is answered.
pub(crate) async fn converse(mut stream: TcpStream, said: &[u8]) -> io::Result<Vec<u8>> {
    let (mut reader, mut writer) = stream.split();
    let mut heard = Vec::new();
    let speak = async {
        writer.write_all(said).await?;
        writer.shutdown().await
    };
    tokio::try_join!(speak, reader.read_to_end(&mut heard))?;
    Ok(heard)
}

/// Has what is said to `stream` wait in little room.
pub(crate) fn narrow(stream: &TcpStream) {
    SockRef::from(stream).set_recv_buffer_size(16 * 1024).unwrap();
}
