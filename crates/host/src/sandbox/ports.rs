//! Ports of the host that lead into a sandbox, as its handle has them.

use super::Sandbox;
use crate::boxconfig::{PortProtocol, PortSpec};
use crate::ports::{MappedPort, PortError};

impl Sandbox {
    /// The ports of the host that lead into it: those of its description first.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// for port in sandbox.ports() {
    ///     println!("{} -> {}/{}", port.host, port.guest, port.protocol.name());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn ports(&self) -> Vec<MappedPort> {
        self.0.ports.list()
    }

    /// Has one more port of the host lead into it, until that is closed or the sandbox is destroyed. It is no part of its
    /// description: a persistent sandbox is without it when its host has ended.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let port = sandbox.expose("8000".parse()?)?;
    /// println!("http://{}/", port.host);
    /// # Ok(()) }
    /// ```
    pub fn expose(&self, port: PortSpec) -> Result<MappedPort, PortError> {
        self.0.ports.expose(port)
    }

    /// Closes the ports of the host that lead to `guest`, and breaks off what comes through them.
    ///
    /// ```no_run
    /// use bouvet_host::PortProtocol;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.unexpose(8000, PortProtocol::Tcp).await?;
    /// # Ok(()) }
    /// ```
    pub async fn unexpose(&self, guest: u16, protocol: PortProtocol) -> Result<(), PortError> {
        self.0.ports.unexpose(guest, protocol).await
    }

    /// Listens where that could not be done when it was taken in.
    pub(crate) fn retry_ports(&self) -> Result<(), PortError> {
        self.0.ports.retry()
    }

    /// Closes all its ports, for good.
    pub(crate) async fn close_ports(&self) {
        self.0.ports.close().await;
    }
}
