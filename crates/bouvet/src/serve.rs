//! Runs the server from its configuration to its end.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::Duration;

use bouvet_host::{Host, StartError};
use rmcp::ServiceExt as _;
use rmcp::service::ServerInitializeError;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::socket::Socket;
pub use crate::api::socket::SocketError;
use crate::api::{self};
use crate::config::{Config, SocketChoice, Transport};
use crate::http;
pub use crate::http::ListenError;
use crate::http::connections::Shares;
pub use crate::http::connections::TooFewDescriptors;
use crate::mcp::stdio::Stdio;
use crate::mcp::{Grants, Server};
use crate::{signals, started};

/// How long requests under way may take to finish once the server is to end.
const GRACE: Duration = Duration::from_secs(5);

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The port could not be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The socket could not be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The HTTP server failed.
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
    /// The system would not say when to end.
    #[error("could not wait for signals")]
    Signal(#[source] std::io::Error),
    /// Too few files may be open.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
}

/// Serves until a signal, or until standard input ends where that is the only way in. Then destroys all
/// sandboxes.
pub async fn serve(mut config: Config) -> Result<(), Error> {
    let shares = Shares::here()?;
    let (end, haste) = (CancellationToken::new(), CancellationToken::new());
    signals::listen(config.transport, &end, &haste).map_err(Error::Signal)?;
    // Taken first: it is what fails most often.
    let listener = match config.transport.http() {
        true => Some(http::listen(&config.http).await?),
        false => None,
    };
    let socket = bind(&config.socket).await?;
    if socket.is_none() {
        // Nobody could start persistent sandboxes here, and no other host could have them.
        config.host.boxes = None;
    }
    let host = Host::start(config.host).await?;
    host.start_kept();
    let grants = Grants { registries: config.registries, egress: config.egress, expose: config.expose };
    let server = Server::new(host.clone(), config.sandbox, grants);

    let http = async {
        match listener {
            Some(listener) => {
                info!(address = %config.http.address, "serving MCP over HTTP at /mcp");
                let serving = http::serve(
                    listener,
                    config.http,
                    host.clone(),
                    server.clone(),
                    end.clone(),
                    shares.http,
                );
                within_grace(&end, &haste, serving).await.unwrap_or(Ok(())).map_err(Error::Http)
            }
            None => Ok(()),
        }
    };
    let api = async {
        // Its file stays until the server has ended.
        let Some((_file, listener)) = socket else { return };
        let serving = api::serve(listener, host.clone(), end.clone(), shares.commands);
        if let Some(Err(error)) = within_grace(&end, &haste, serving).await {
            warn!(%error, "the socket is not served any more");
        }
    };
    let lives = async {
        tokio::select! {
            () = started::log_lives(&host) => {}
            () = end.cancelled() => {}
        }
    };
    let stdio = async {
        if serves_stdio(config.transport, std::io::stdin().is_terminal()) {
            serve_stdio(server.clone(), &end).await;
            if !config.transport.http() {
                end.cancel();
            }
        }
    };
    let (served, (), (), ()) = tokio::join!(http, stdio, api, lives);
    info!("destroying all sandboxes");
    shut_down(&host, &haste).await;
    served
}

/// Ends `host`, without grace for programs after `haste`.
async fn shut_down(host: &Host, haste: &CancellationToken) {
    let hastened = async {
        haste.cancelled().await;
        host.hasten().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = host.shut_down() => {}
        () = hastened => {}
    }
}

/// The socket for the `bouvet` commands. Where nobody named one the server can do without: MCP clients start servers
/// beside each other, and only one of them can have it.
async fn bind(choice: &SocketChoice) -> Result<Option<(Socket, UnixListener)>, SocketError> {
    let (path, is_named) = match choice {
        SocketChoice::Off => return Ok(None),
        SocketChoice::Auto(path) => (path, false),
        SocketChoice::At(path) => (path, true),
    };
    match Socket::bind(path).await {
        Ok(bound) => {
            info!(socket = %path.display(), "serving the `bouvet` commands");
            Ok(Some(bound))
        }
        Err(error) if is_named => Err(error),
        Err(error) => {
            let reason = bouvet_host::chain(&error);
            warn!(%reason, "`bouvet` commands do not reach this server; BOUVET_SOCKET names another socket");
            Ok(None)
        }
    }
}

/// Whether an MCP client may be at the other end of standard input. A shell stops a background job that reads its terminal
/// (SIGTTIN), so a terminal is read only where the operator chose stdio alone.
fn serves_stdio(transport: Transport, is_terminal: bool) -> bool {
    if transport == Transport::Both && is_terminal {
        info!("MCP over stdio is not served: standard input is a terminal");
        return false;
    }
    transport.stdio()
}

async fn serve_stdio(server: Server, end: &CancellationToken) {
    let (input, output) = rmcp::transport::stdio_pipes();
    attend(server, Stdio::new(input, output), end).await;
}

/// Serves the client at the other end of `transport` until it leaves, or until `end`.
pub(crate) async fn attend<T>(server: Server, transport: T, end: &CancellationToken)
where
    T: rmcp::transport::Transport<rmcp::RoleServer> + 'static,
{
    match server.serve_with_ct(transport, end.child_token()).await {
        Ok(running) => match running.waiting().await {
            Ok(reason) => info!(?reason, "standard input has ended"),
            Err(error) => warn!(%error, "the stdio server failed"),
        },
        // Under a service manager there is nobody at the other end, and that is no fault.
        Err(error) => info!(reason = not_begun(&error), "no MCP client on standard input"),
    }
}

/// Why a client did not begin, without the message that it sent instead.
fn not_begun(error: &ServerInitializeError) -> String {
    match error {
        ServerInitializeError::ConnectionClosed(context) => format!("the connection was closed: {context}"),
        ServerInitializeError::Cancelled => "the server ends".into(),
        ServerInitializeError::TransportError { context, .. } => {
            format!("the answer was not sent: {context}")
        }
        _ => "the first message was not `initialize`".into(),
    }
}

/// Runs `serving` to its end, but no longer than the grace period after `end`, or until `haste`.
async fn within_grace<T>(
    end: &CancellationToken,
    haste: &CancellationToken,
    serving: impl Future<Output = T>,
) -> Option<T> {
    let grace = async {
        end.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(GRACE) => {}
            () = haste.cancelled() => {}
        }
    };
    tokio::select! {
        result = serving => Some(result),
        () = grace => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_read_for_stdio_alone() {
        let cases = [
            (Transport::Stdio, true, true),
            (Transport::Stdio, false, true),
            (Transport::Both, true, false),
            (Transport::Both, false, true),
            (Transport::Http, true, false),
            (Transport::Http, false, false),
        ];
        for (transport, is_terminal, is_served) in cases {
            assert_eq!(
                serves_stdio(transport, is_terminal),
                is_served,
                "{transport:?}, terminal: {is_terminal}"
            );
        }
    }
}
