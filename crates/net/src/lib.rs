//! The network of one sandbox, in user space: packets in, socket operations out, and the policy between them.
//!
//! ```text
//! a sandbox's packets ─▶ router ─┬─ a connection: TCP ended here ─▶ what it says it is for ─▶ a socket of the host
//!                                ├─ datagrams ─▶ a socket of the host
//!                                ├─ an echo ─▶ one of the host's
//!                                └─ the gateway: names
//! ```
//!
//! Nothing that a sandbox sends is trusted: packets are read by [`packet`], judged by [`Policy`], and bounded by
//! [`Limits`] before anything is done for them. See `docs/NETWORK.md` for what a policy means.

mod address;
pub mod claim;
pub mod dns;
mod flow;
mod judge;
mod name;
pub mod names;
mod own;
pub mod packet;
mod policy;
mod refusal;
mod resolvers;
mod rule;

pub use flow::{Flow, Protocol};
pub use name::{Name, NameError};
pub use policy::{Claimed, Grant, MAX_RULES, Policy, Surroundings};
pub use refusal::Refusal;
pub use rule::{Rule, RuleError};
