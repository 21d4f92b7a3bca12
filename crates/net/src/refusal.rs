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

            /// The end of a sentence about the destination: `has a reserved address, which sandboxes never reach`.
            pub fn predicate(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl fmt::Display for Refusal {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the destination {}", self.predicate())
            }
        }
    };
}

refusals! {
    /// A loopback address.
    Loopback = "loopback", "has a loopback address, which sandboxes never reach";
    /// A private, shared or unique-local address that no rule names.
    Private = "private", "has a private address, which only a rule that names it allows";
    /// A link-local address that no rule names.
    LinkLocal = "link_local", "has a link-local address, which only a rule that names it allows";
    /// A metadata service that no rule names.
    Metadata = "metadata", "is a metadata service, which only a rule that names its address allows";
    /// An address of the host's own.
    Host = "host", "is an address of the host, which only a rule for `host` allows";
    /// An address of another sandbox, or of nobody, on the sandbox's own network.
    Sandbox = "sandbox", "is another sandbox, which only sandboxes on the same network reach";
    /// An address that is no one machine's, or has another in it.
    Special = "special", "has a reserved address, which sandboxes never reach";
    /// A rule of `deny` is about it.
    Denied = "denied", "is denied by a rule";
    /// No rule of `allow` is about it.
    NotAllowed = "not_allowed", "is not allowed by any rule";
    /// QUIC, whose names cannot be read.
    Quic = "quic", "was addressed by QUIC, which only a rule with its port allows";
    /// Names asked for elsewhere than at the gateway.
    Dns = "dns", "is a resolver other than the gateway, which only a rule with its port allows";
    /// What a connection says it is for is not what its address was resolved for.
    NameMismatch = "name_mismatch", "was addressed by a name that its address was not resolved for";
    /// A connection does not say what it is for, where it must.
    Nameless = "nameless", "was addressed without a name, and is allowed only by its name";
    /// A fragment of a packet.
    Fragment = "fragment", "was sent a fragment of a packet, which is not forwarded";
    /// A packet from another address than the sandbox's.
    Source = "source", "was sent a packet whose source is not the sandbox's address";
    /// A packet that breaks the rules of its protocol.
    Malformed = "malformed", "was sent a malformed packet";
    /// A packet with options or extension headers.
    Options = "options", "was sent a packet with options, which is not forwarded";
    /// A protocol that is not carried.
    Protocol = "protocol", "was sent another protocol than TCP, UDP and ICMP echo";
    /// More at once than the limits allow.
    Limit = "limit", "exceeds a limit of the sandbox's network";
    /// The host may not ping.
    NoPing = "no_ping", "cannot be pinged, as the host's system does not let the server ping";
    /// A query that is none, or of a kind that is not answered.
    Query = "query", "was looked up with a query that is not supported";
}

impl std::error::Error for Refusal {}
