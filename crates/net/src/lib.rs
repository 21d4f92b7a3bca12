//! The network of one sandbox, in user space: packets in, socket operations out, and the policy between them.
//!
//! ```text
//! a sandbox's packets ─▶ router ─┬─ a connection: TCP ended here ─▶ what it says it is for ─▶ a socket of the host
//!                                ├─ datagrams ─▶ a socket of the host
//!                                ├─ an echo ─▶ one of the host's
//!                                ├─ to a sandbox on the same network: as it is
//!                                └─ the gateway: names
//! ```
//!
//! Nothing that a sandbox sends is trusted: packets are read by [`packet`], judged by [`Policy`], and bounded by
//! [`Limits`] before anything is done for them. See `docs/NETWORK.md` for what a policy means.

mod address;
mod authority;
pub mod claim;
mod count;
pub mod dns;
mod flow;
mod gateway;
pub mod intercept;
mod judge;
mod limit;
mod name;
mod names;
mod network;
mod own;
pub mod packet;
mod ping;
mod policy;
mod refusal;
mod reply;
mod resolvers;
mod router;
mod rule;
pub mod secret;
mod shared;
mod sockets;
mod switch;
mod tcp;
mod udp;

pub use count::{Counts, MAX_REFUSALS, Refused};
pub use flow::{Flow, Protocol};
pub use limit::{LimitError, Limits};
pub use name::{Name, NameError};
pub use network::{Ended, Inbound, Network, NetworkOptions, Outbound};
pub use policy::{Claimed, Grant, MAX_RULES, Policy, Surroundings};
pub use refusal::Refusal;
pub use rule::{Rule, RuleError};
pub use shared::Addresses;
pub use sockets::Sockets;
pub use switch::{Crowded, Member, Subnet, SubnetError, Switch};
