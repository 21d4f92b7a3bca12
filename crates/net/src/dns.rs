//! Names for a sandbox: asked for at its gateway, allowed by its policy, answered by name servers of the host's side.
//!
//! ```text
//! a guest's bytes ─▶ question ─▶ policy ─▶ resolver ─▶ chain ─▶ policy ─▶ pins ─▶ reply ─▶ bytes of ours
//! ```
//!
//! An answer is the only way to an address that is allowed by name, so the addresses in it are pinned to the name before
//! the guest learns of them. What no answer says is as important: no address that could not be reached anyway, nothing
//! that was not asked for, and nothing that would let a connection hide its name.

mod chain;
mod client;
mod question;
mod reply;
mod resolver;
mod server;
mod servers;
#[cfg(test)]
mod tests;

pub use client::{ClientSettings, is_option, search_domain};
pub use resolver::Resolver;
#[cfg(fuzzing)]
pub use server::fuzz;
pub(crate) use server::{Answer, NameServer, Ours, Refused};
pub(crate) use servers::DNS_PORT;
pub use servers::{Upstream, UpstreamError};

/// What carries a question and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Datagrams, whose size is limited.
    Udp,
    /// A stream, of which these are messages without the length before them.
    Tcp,
}
