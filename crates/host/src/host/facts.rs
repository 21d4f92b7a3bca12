//! Facts about a host, for its operator.

use std::path::PathBuf;

use super::Host;

/// Facts about a host.
///
/// ```no_run
/// # fn example(host: &bouvet_host::Host) {
/// let facts = host.facts();
/// println!("{} {}, at most {} sandboxes", facts.engine, facts.engine_version, facts.max_sandboxes);
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Engine that makes the VMs: `qemu`.
    pub engine: &'static str,
    /// Version of that.
    pub engine_version: String,
    /// Sandboxes that may exist at once.
    pub max_sandboxes: u32,
    /// Where the host works.
    pub dir: PathBuf,
    /// Where persistent sandboxes are kept.
    pub boxes: Option<PathBuf>,
}

impl Host {
    /// Reports the facts about this host.
    ///
    /// ```no_run
    /// # fn example(host: &bouvet_host::Host) {
    /// println!("working in {}", host.facts().dir.display());
    /// # }
    /// ```
    pub fn facts(&self) -> HostFacts {
        HostFacts {
            engine: self.0.engine.name(),
            engine_version: self.0.engine.version(),
            max_sandboxes: self.0.max_sandboxes,
            dir: self.0.dir.clone(),
            boxes: self.0.boxes.as_ref().map(|boxes| boxes.dir().to_owned()),
        }
    }
}
