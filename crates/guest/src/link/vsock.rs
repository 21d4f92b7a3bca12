//! The link's stream in VMs of Firecracker: a vsock connection, made by the host.
//!
//! A VM that is frozen loses its connections, and keeps its listeners: a clone waits for its own host to connect.

use std::io;

use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};

use crate::service::Service;

/// Where the host's connections arrive.
#[derive(Debug)]
pub(crate) struct Listener(VsockListener);

impl Listener {
    /// Listens on `port`.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).map(Self)
    }

    /// Serves one connection of the host at a time, the newest.
    pub(crate) async fn serve(self, service: Service) -> io::Result<()> {
        let mut current: Option<tokio::task::JoinHandle<()>> = None;
        loop {
            let (stream, peer) = self.0.accept().await?;
            // Programs of the sandbox can connect too, and are not the host.
            if peer.cid() != VMADDR_CID_HOST {
                continue;
            }
            if let Some(old) = current.take() {
                old.abort();
                // It was aborted: waiting only makes sure that it is gone.
                old.await.ok();
            }
            let service = service.clone();
            current = Some(tokio::spawn(async move {
                // How a connection ends is the host's business; the next one begins afresh.
                super::serve(stream, service).await.ok();
            }));
        }
    }
}
