//! The log of a server, for its operator: its configuration, and the life of its sandboxes.

use bouvet_host::{Happening, Host, HostEvent, State, Watched};
use tracing::{error, info, warn};

use crate::config::{Config, Unknown};
use crate::doctor::{self, Level};

/// Logs version, configuration and limits, and what is wrong with them on this machine.
pub(crate) fn report(config: &Config, unknown: &[Unknown]) {
    let list = |values: &[(&str, String)]| {
        values.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    info!(version = env!("CARGO_PKG_VERSION"), configuration = list(&config.set), "starting");
    let (host, resources) = (&config.host, &config.sandbox.resources);
    info!(
        max_sandboxes = host.max_sandboxes,
        pool = host.pool.as_ref().map_or(0, |pool| pool.size),
        sandbox_memory_mib = resources.memory_mb,
        sandbox_vcpus = resources.vcpus,
        sandbox_disk_mib = resources.disk_mb,
        sandbox_timeout_secs = resources.timeout.as_secs(),
        "limits"
    );
    for finding in doctor::examine_setup(config, unknown) {
        let advice = finding.advice.as_deref().unwrap_or_default();
        match finding.level {
            Level::Ok if finding.subject == "defaults" => info!("{}: {}", finding.subject, finding.text),
            Level::Ok => {}
            Level::Warning => warn!(advice, "{}: {}", finding.subject, finding.text),
            Level::Error => error!(advice, "{}: {}", finding.subject, finding.text),
        }
    }
}

/// Logs variables that are not known, where the configuration cannot be read: one may be the cause.
pub(crate) fn warn_of_unknown(unknown: &[Unknown]) {
    for variable in unknown {
        warn!("{variable}");
    }
}

/// Logs what happens to the sandboxes of `host`, for as long as this is polled. The host itself logs how they are made
/// and how they end.
pub(crate) async fn log_lives(host: &Host) {
    let mut events = host.events();
    for sandbox in host.list() {
        if matches!(sandbox.state, State::Failed(_)) {
            let name = &sandbox.config.name;
            // The reason may repeat the command that could not be run.
            warn!(sandbox = %sandbox.id, name, "a persistent sandbox has failed; `bouvet start` starts it again, `bouvet inspect` states why");
        }
    }
    while let Some(event) = events.next().await {
        let Watched::Event(HostEvent { sandbox: id, happening, .. }) = event else { continue };
        let Some(sandbox) = host.get(id) else { continue };
        let name = sandbox.info().config.name;
        match happening {
            Happening::Start => info!(sandbox = %id, name, "sandbox started"),
            Happening::Pause => info!(sandbox = %id, name, "sandbox paused"),
            Happening::Resume => info!(sandbox = %id, name, "sandbox resumed"),
            // The host logs these.
            Happening::Create | Happening::Stop(_) | Happening::Fail { .. } | Happening::Destroy => {}
        }
    }
}
