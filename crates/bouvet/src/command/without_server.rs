//! The rule of each command where no server answers.

use super::Command;

/// The rule of a command where no server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithoutServer {
    /// Works: the command does what it needs itself.
    Works,
    /// Works for what is on disk: persistent sandboxes that have stopped.
    WorksForStopped,
    /// Ends with an error: only a server has running sandboxes.
    Fails,
}

impl Command {
    /// The rule where no server answers.
    pub(crate) fn without_server(&self) -> WithoutServer {
        use WithoutServer::{Fails, Works, WorksForStopped};
        match self {
            Self::Run(line) if line.is_detached() => Fails,
            Self::Ps(line) if !line.lists_stopped() => Fails,
            Self::Run(_)
            | Self::Ps(_)
            | Self::Images(_)
            | Self::Pull(_)
            | Self::Rmi(_)
            | Self::Load(_)
            | Self::Save(_)
            | Self::Tag(_)
            | Self::ImagePrune(_)
            | Self::SystemPrune(_)
            | Self::Login(_)
            | Self::Logout(_)
            | Self::Completions(_) => Works,
            Self::Network(line) => line.without_server(),
            Self::Start(line) if !line.is_attached() => Fails,
            Self::Start(_)
            | Self::Inspect(_)
            | Self::Logs(_)
            | Self::Cp(_)
            | Self::Rm(_)
            | Self::Prune(_)
            | Self::Stop(_)
            | Self::Wait(_) => WorksForStopped,
            Self::Create(_)
            | Self::Rename(_)
            | Self::Top(_)
            | Self::Info(_)
            | Self::Version(_)
            | Self::Exec(_)
            | Self::Attach(_)
            | Self::Attest(_)
            | Self::Sidecar(_)
            | Self::Port(_)
            | Self::Restart(_)
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::Kill(_)
            | Self::Stats(_)
            | Self::Events(_) => Fails,
        }
    }
}

/// An example of each command, as the reference shows it. Tested against [`Command::without_server`].
#[cfg(test)]
pub(crate) const EXAMPLES: &[(&str, WithoutServer)] = {
    use WithoutServer::{Fails, Works, WorksForStopped};
    &[
        ("run IMAGE", Works),
        ("run --detach IMAGE", Fails),
        ("ps --all", Works),
        ("ps --filter state=stopped", Works),
        ("ps", Fails),
        ("images", Works),
        ("pull IMAGE", Works),
        ("rmi IMAGE", Works),
        ("load", Works),
        ("save IMAGE", Works),
        ("tag SOURCE TARGET", Works),
        ("image ls", Works),
        ("image prune", Works),
        ("login REGISTRY", Works),
        ("logout REGISTRY", Works),
        ("system prune", Works),
        ("system info", Fails),
        ("system events", Fails),
        ("container ls", Fails),
        ("container prune", WorksForStopped),
        ("container run IMAGE", Works),
        ("network create NETWORK", Works),
        ("network ls", Works),
        ("network rm NETWORK", Works),
        ("network prune", Works),
        ("network policy SANDBOX", Fails),
        ("completions bash", Works),
        ("start --attach SANDBOX", WorksForStopped),
        ("start SANDBOX", Fails),
        ("inspect NAME", WorksForStopped),
        ("logs SANDBOX", WorksForStopped),
        ("cp SANDBOX:/from to", WorksForStopped),
        ("rm SANDBOX", WorksForStopped),
        ("prune", WorksForStopped),
        ("stop SANDBOX", WorksForStopped),
        ("wait SANDBOX", WorksForStopped),
        ("create IMAGE", Fails),
        ("rename SANDBOX NAME", Fails),
        ("top SANDBOX", Fails),
        ("info", Fails),
        ("version", Fails),
        ("exec SANDBOX CMD", Fails),
        ("attach SANDBOX", Fails),
        ("attest SANDBOX", Fails),
        ("sidecar SANDBOX", Fails),
        ("port SANDBOX", Fails),
        ("restart SANDBOX", Fails),
        ("pause SANDBOX", Fails),
        ("resume SANDBOX", Fails),
        ("kill SANDBOX", Fails),
        ("stats", Fails),
        ("events", Fails),
    ]
};
