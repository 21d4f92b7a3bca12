//! Names of registries looked up by this machine's resolver, with an error that can be told from others.

use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// There is no address for a name.
#[derive(Debug, thiserror::Error)]
#[error("there is no address for `{0}`")]
pub(super) struct NoAddress(pub(super) String);

/// Asks the system.
#[derive(Debug)]
pub(super) struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            // The port is put in by the client.
            let found = tokio::net::lookup_host((host.as_str(), 0)).await.map(Vec::from_iter);
            let found: Vec<SocketAddr> = found.map_err(|error| {
                tracing::debug!(%host, %error, "could not look up a registry");
                NoAddress(host)
            })?;
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}
