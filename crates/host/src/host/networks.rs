//! Named networks of a host.

use std::time::SystemTime;

use super::Host;
use crate::boxconfig::NetworkMode;
use crate::network::named::{NamedNetworkError, NetworkRecord};
use crate::sandbox::{Sandbox, SandboxId};

/// A named network.
///
/// ```no_run
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// for network in host.list_networks()? {
///     println!("{} {} {} sandboxes", network.name, network.ipv4, network.sandboxes.len());
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkInfo {
    /// What it is called.
    pub name: String,
    /// Its addresses: `10.213.0.0/24`.
    pub ipv4: String,
    /// See [`NetworkInfo::ipv4`].
    pub ipv6: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// The sandboxes of this host that are on it, whatever their state.
    pub sandboxes: Vec<SandboxId>,
}

impl Host {
    /// Makes a network, at `subnet` or where no other is, which sandboxes can be on. It outlives the host.
    ///
    /// ```no_run
    /// use bouvet_host::{BoxConfig, NetworkMode};
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// host.create_network("shop", None)?;
    /// let network = NetworkMode::Bridge { network: "shop".into() };
    /// let db = BoxConfig { name: "db".into(), network: network.clone(), ..BoxConfig::default() };
    /// let db = host.create(db).await?;
    /// // In this one, `db` is the name of the other.
    /// let web = host.create(BoxConfig { network, ..BoxConfig::default() }).await?;
    /// # Ok(()) }
    /// ```
    pub fn create_network(&self, name: &str, subnet: Option<&str>) -> Result<NetworkInfo, NamedNetworkError> {
        Ok(self.network_info(self.0.networks.create(name, subnet)?))
    }

    /// All named networks, by name.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// assert!(host.list_networks()?.iter().any(|network| network.name == "shop"));
    /// # Ok(()) }
    /// ```
    pub fn list_networks(&self) -> Result<Vec<NetworkInfo>, NamedNetworkError> {
        Ok(self.0.networks.list()?.into_iter().map(|record| self.network_info(record)).collect())
    }

    /// Removes a network that no sandbox is on.
    ///
    /// ```no_run
    /// use bouvet_host::NamedNetworkError;
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// match host.remove_network("shop") {
    ///     Err(NamedNetworkError::InUse { by, .. }) => println!("{by} must go first"),
    ///     removed => removed?,
    /// }
    /// # Ok(()) }
    /// ```
    pub fn remove_network(&self, name: &str) -> Result<(), NamedNetworkError> {
        self.0.networks.remove(name).map_err(|error| match (error, self.known_on(name)) {
            (NamedNetworkError::InUse { name, .. }, on) if !on.is_empty() => {
                let by: Vec<_> = on.iter().map(Sandbox::known_as).collect();
                NamedNetworkError::InUse { name, by: by.join(", ") }
            }
            (error, _) => error,
        })
    }

    fn network_info(&self, record: NetworkRecord) -> NetworkInfo {
        let sandboxes = self.known_on(&record.name).iter().map(Sandbox::id).collect();
        let NetworkRecord { name, subnet, created_at } = record;
        NetworkInfo { name, ipv4: subnet.to_string(), ipv6: subnet.ipv6(), created_at, sandboxes }
    }

    fn known_on(&self, name: &str) -> Vec<Sandbox> {
        let is_on = |sandbox: &&Sandbox| matches!(&sandbox.config().network, NetworkMode::Bridge { network } if network == name);
        let mut on: Vec<_> = self.registry().sandboxes.values().filter(is_on).cloned().collect();
        on.sort_by_key(|sandbox| sandbox.info().created_at);
        on
    }
}
