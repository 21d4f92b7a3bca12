//! Why something is refused.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $text:literal;)+) => {
        /// Why something is refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Refusal {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Refusal {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// A word for programs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for Refusal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)+
                })
            }
        }
    };
}

refusals! {
    /// A loopback address.
    Loopback = "loopback", "loopback addresses are not reached";
    /// A private, shared or unique-local address that no rule names.
    Private = "private", "private addresses are reached by a rule that names them";
    /// A link-local address that no rule names.
    LinkLocal = "link_local", "link-local addresses are reached by a rule that names them";
    /// A metadata service that no rule names.
    Metadata = "metadata", "a metadata service is reached by a rule that names its address";
    /// An address of the host's own.
    Host = "host", "the host's own addresses are reached by a rule for `host`";
    /// An address of another sandbox, or of nobody, on the sandbox's own network.
    Sandbox = "sandbox", "other sandboxes are reached on a network that they share";
    /// An address that is no one machine's, or has another in it.
    Special = "special", "multicast, reserved and translated addresses are not reached";
    /// A rule of `deny` is about it.
    Denied = "denied", "a rule denies it";
    /// No rule of `allow` is about it.
    NotAllowed = "not_allowed", "no rule allows it";
    /// QUIC, whose names cannot be read.
    Quic = "quic", "QUIC is reached by a rule that says its port";
    /// Names asked for elsewhere than at the gateway.
    Dns = "dns", "names are asked for at the gateway; other resolvers are reached by a rule that says their port";
    /// What a connection says it is for is not what its address was resolved for.
    NameMismatch = "name_mismatch", "the name in the connection is not one that its address was resolved for";
    /// A connection does not say what it is for, where it must.
    Nameless = "nameless", "the connection does not say a name, by which alone it is allowed";
    /// A fragment of a packet.
    Fragment = "fragment", "fragments are not carried";
    /// A packet from another address than the sandbox's.
    Source = "source", "the source is not the sandbox's address";
    /// A packet that breaks the rules of its protocol.
    Malformed = "malformed", "the packet is malformed";
    /// A packet with options or extension headers.
    Options = "options", "packets with options are not carried";
    /// A protocol that is not carried.
    Protocol = "protocol", "TCP, UDP and ICMP echo are carried, and nothing else";
    /// More at once than the limits allow.
    Limit = "limit", "a limit of the sandbox's network is reached";
    /// The host may not ping.
    NoPing = "no_ping", "the host's system does not let the server ping";
    /// A query that is none, or of a kind that is not answered.
    Query = "query", "the query for a name is not one that is answered";
}

impl std::error::Error for Refusal {}
