//! Connections from a port of the host to one of a sandbox.

use std::io;
use std::time::Duration;

use bouvet_wire::v1;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::entrance::{Door, Entrance};
use crate::link::Client;
use crate::tunnel::{Call, Unread};

/// How long the host accepts nothing once it could not: for want of descriptors, most likely.
const RESPITE: Duration = Duration::from_secs(1);
/// A peer that says nothing for so long is asked whether it is still there, and then four times more.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Accepts while its sandbox runs, and refuses while that has no VM.
pub(super) async fn serve(
    listener: TcpListener,
    guest: u16,
    mut entrance: Entrance,
    closed: CancellationToken,
) {
    loop {
        let door = entrance.door();
        let accepted = tokio::select! {
            biased;
            () = closed.cancelled() => return,
            changed = entrance.changed() => match changed {
                true => continue,
                false => return,
            },
            accepted = listener.accept(), if !matches!(door, Door::Ajar) => accepted,
        };
        match (accepted, door) {
            (Ok((stream, _)), Door::Open(client)) => {
                tokio::spawn(admit(stream, *client, guest, entrance.clone(), closed.clone()));
            }
            (Ok((stream, _)), _) => break_off(stream),
            (Err(error), _) => {
                warn!(guest, %error, "could not accept a connection to a sandbox's port");
                tokio::time::sleep(RESPITE).await;
            }
        }
    }
}

/// Carries a connection, if there is room for it.
async fn admit(
    stream: TcpStream,
    client: Client,
    guest: u16,
    mut entrance: Entrance,
    closed: CancellationToken,
) {
    let Some(_permit) = entrance.room().await else { return break_off(stream) };
    let call = carry(stream, client, guest, closed).await;
    // A guest that stands still cannot see that a connection was given up.
    entrance.awake().await;
    if let Some(call) = call {
        call.farewell().await;
    }
}

/// Whoever connected sees a reset, not an end.
#[expect(clippy::needless_pass_by_value, reason = "it is gone with it")]
fn break_off(stream: TcpStream) {
    // At worst it is an end.
    set_abrupt(&stream, true).ok();
}

fn set_abrupt(stream: &TcpStream, abrupt: bool) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(stream, abrupt.then_some(Duration::ZERO))?)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Until both directions have ended, what ends it is no end.
    set_abrupt(stream, true)?;
    // Whoever sends little at a time has decided so at the other end.
    stream.set_nodelay(true)?;
    // A peer whose machine is gone holds no place for ever.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    Ok(sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?)
}

/// Carries a connection to its end, and leaves the call that it took.
async fn carry(mut stream: TcpStream, client: Client, guest: u16, closed: CancellationToken) -> Option<Call> {
    if let Err(error) = prepare(&stream) {
        debug!(guest, %error, "a connection to a sandbox's port was gone at once");
        return None;
    }
    let mut call = Call::begin(client, v1::ConnectStart { port: guest.into(), tcp: true });
    let (reader, writer) = stream.split();
    match call.carry(reader, writer, Unread::Breaks, &closed).await {
        // At worst it looks broken off.
        Ok(()) => drop(set_abrupt(&stream, false)),
        Err(error) => debug!(guest, %error, "a connection to a sandbox's port broke"),
    }
    Some(call)
}
