//! A host in the process of one command, which speaks to it as it would to a server.

use std::io;

use axum::serve::Listener;
use bouvet_host::{Host, HostOptions, StartError};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

use super::serve;

/// Bytes that wait between the two ends.
const STREAM_BYTES: usize = 256 * 1024;

/// A host that lives for one command.
#[derive(Debug)]
pub(crate) struct Alone {
    host: Host,
    end: CancellationToken,
}

impl Alone {
    /// Starts it. Returns the client's end too.
    pub(crate) async fn start(options: HostOptions) -> Result<(Self, DuplexStream), StartError> {
        // Clones for the next command would be made for nobody.
        let host = Host::start(HostOptions { pool: None, ..options }).await?;
        let end = CancellationToken::new();
        let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
        let serving = serve(One(Some(theirs)), host.clone(), end.clone(), 1);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "the server of this process failed");
            }
        });
        Ok((Self { host, end }, ours))
    }

    /// Ends it, with all sandboxes.
    pub(crate) async fn end(self) {
        self.end.cancel();
        self.host.shut_down().await;
    }
}

/// Accepts one connection, which is there already.
struct One(Option<DuplexStream>);

impl Listener for One {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.take() {
            Some(stream) => (stream, ()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
