//! Reports on standard error why the creation of a sandbox takes long.

use std::time::Duration;

use bouvet_host::ResourceConfig;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::outcome::Failed;
use super::table;
use crate::api::client::{Client, path};

/// A template takes at least some seconds to make; a faster one needs no words.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Printed while the template of a size is made.
pub(crate) const FIRST_OF_ITS_SIZE: &str =
    "making the first sandbox of this size, about a minute; the next take a second";

/// Watches the creation or start of a sandbox until it is dropped, and prints one line if a template is made for it.
#[derive(Debug)]
pub(super) struct Notice(JoinHandle<()>);

#[derive(Deserialize)]
struct Template {
    making: bool,
}

impl Notice {
    /// Watches for a sandbox with `resources`, whose image is in the cache.
    pub(super) fn watch(client: &Client, resources: &ResourceConfig) -> Self {
        Self::of_size(client, [resources.vcpus, resources.memory_mb, resources.disk_mb])
    }

    /// Watches for a sandbox that exists. Fails where there is none.
    pub(super) async fn of(sandbox: &str, client: &Client) -> Result<Self, Failed> {
        let view: Value = client.get(&path(&["sandboxes", sandbox], &[])).await?;
        let resources: ResourceConfig =
            serde_json::from_value(view["config"]["resources"].clone()).map_err(Failed::new)?;
        Ok(Self::watch(client, &resources))
    }

    fn of_size(client: &Client, size: [u32; 3]) -> Self {
        let [vcpus, memory_mb, disk_mb] = size.map(|number| number.to_string());
        let query = [("vcpus", &vcpus[..]), ("memory_mb", &memory_mb), ("disk_mb", &disk_mb)];
        let (client, path) = (client.clone(), path(&["template"], &query));
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(POLL_INTERVAL).await;
                match client.get::<Template>(&path).await {
                    Ok(Template { making: false }) => {}
                    Ok(Template { making: true }) => return table::note(FIRST_OF_ITS_SIZE),
                    // The command itself meets it too, or the server is older.
                    Err(_) => return,
                }
            }
        }))
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        self.0.abort();
    }
}
