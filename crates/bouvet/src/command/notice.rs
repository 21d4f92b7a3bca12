//! Tells a person at a terminal why a sandbox takes long.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use bouvet_host::ResourceConfig;
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::table;
use crate::api::client::{Client, path};

/// A template that is made takes at least some seconds; what is faster needs no words.
const POLL: Duration = Duration::from_millis(500);
/// Templates are begun when images are there; from then on at most so many polls find one.
const POLLS: u32 = 40;

/// Text for a person who waits.
pub(crate) const FIRST_OF_ITS_SIZE: &str =
    "making the first sandbox of this size, about a minute; the next take a second";

/// Watches the creation of a sandbox, for as long as it lives.
#[derive(Debug)]
pub(super) struct Notice(Option<JoinHandle<()>>);

#[derive(Deserialize)]
struct Template {
    making: bool,
}

impl Notice {
    /// Watches the creation of a sandbox with `resources`. Silent without a terminal: the server logs the same.
    pub(super) fn watch(client: &Client, resources: &ResourceConfig) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let ResourceConfig { vcpus, memory_mb, disk_mb, .. } = resources;
        let query = [("vcpus", vcpus), ("memory_mb", memory_mb), ("disk_mb", disk_mb)];
        let query = query.map(|(name, value)| (name, value.to_string()));
        let query = query.each_ref().map(|(name, value)| (*name, value.as_str()));
        let (client, path) = (client.clone(), path(&["template"], &query));
        Self(Some(tokio::spawn(async move {
            for _ in 0..POLLS {
                tokio::time::sleep(POLL).await;
                match client.get::<Template>(&path).await {
                    Ok(Template { making: false }) => {}
                    Ok(Template { making: true }) => {
                        // A terminal may be in raw mode already.
                        table::note(&format!("{FIRST_OF_ITS_SIZE}\r"));
                        return;
                    }
                    // The command itself meets it too, or the server is older.
                    Err(_) => return,
                }
            }
        })))
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
