//! `network_policy`.

use std::collections::BTreeMap;

use bouvet_host::{BoxConfig, Policy};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar;
use crate::failure::Failure;
use crate::mcp::Server;

/// Refusals that are told at once; there may be more.
const MAX_TOLD: usize = 32;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// What it can reach from now on, and nothing else: rules like `pypi.org`, `*.github.com:443`, `192.0.2.0/24`. Empty:
    /// all that is public. Left out: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>")]
    allow: Option<Vec<String>>,
    /// What it cannot reach from now on, whatever is allowed: rules of the same form. Left out: as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>")]
    deny: Option<Vec<String>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Answer {
    /// What it can reach; empty: all that is public. The server's operator may let it reach less.
    allow: Vec<String>,
    /// What it cannot, whatever is allowed.
    deny: Vec<String>,
    /// How often what was refused, by the reason.
    refused: BTreeMap<String, u64>,
    /// What was refused last, the oldest first.
    last_refused: Vec<RefusedView>,
}

/// Something that was refused.
#[derive(Debug, Serialize, JsonSchema)]
struct RefusedView {
    /// When, last, in RFC 3339.
    at: String,
    /// A word for why.
    reason: String,
    /// Why.
    explanation: String,
    /// `tcp`, `udp` or `icmp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    protocol: Option<String>,
    /// Where it was to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    destination: Option<String>,
    /// The name that was asked for, or that a connection said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    name: Option<String>,
    /// How often in a row.
    times: u64,
}

#[tool_router(router = network_policy_tool, vis = "pub(super)")]
impl Server {
    /// Show what a sandbox can reach, and what was refused it and why; with allow or deny, change it first. Connections that
    /// the new rules do not allow are broken off. Only what create_sandbox made can be changed.
    #[tool(annotations(
        title = "Show or change what a sandbox can reach",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn network_policy(&self, Parameters(args): Parameters<Args>) -> Result<Json<Answer>, Failure> {
        let sandbox = self.find(&args.sandbox_id)?;
        let network = sandbox.network().ok_or_else(Failure::no_network)?;
        let texts = |policy: &Policy| {
            let texts =
                |rules: &[bouvet_host::Rule]| rules.iter().map(ToString::to_string).collect::<Vec<_>>();
            (texts(&policy.allow), texts(&policy.deny))
        };
        let (allow, deny) = texts(&network.policy());
        if args.allow.is_some() || args.deny.is_some() {
            check_bounded(sandbox.config())?;
            network.set_policy(&args.allow.unwrap_or(allow), &args.deny.unwrap_or(deny))?;
        }
        let (allow, deny) = texts(&network.policy());
        let refused = network.counts().refused.into_iter();
        let last = network.refusals();
        let last_refused = last[last.len().saturating_sub(MAX_TOLD)..].iter().map(|refused| RefusedView {
            at: calendar::seconds(refused.at),
            reason: refused.refusal.as_str().to_owned(),
            explanation: refused.refusal.to_string(),
            protocol: refused.flow.map(|flow| flow.protocol.to_string()),
            destination: refused.flow.map(|flow| flow.destination.to_string()),
            name: refused.name.as_ref().map(ToString::to_string),
            times: refused.times,
        });
        Ok(Json(Answer {
            allow,
            deny,
            refused: refused.map(|(refusal, times)| (refusal.as_str().to_owned(), times)).collect(),
            last_refused: last_refused.collect(),
        }))
    }
}

/// Whether clients may change what such a sandbox reaches: nothing but its bound keeps them to what the server's operator
/// lets them have, and one that was not made for them has none.
fn check_bounded(config: &BoxConfig) -> Result<(), Failure> {
    config.network_bound.as_ref().map(drop).ok_or_else(Failure::unbounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_bound_is_changed() {
        let bounded = BoxConfig { network_bound: Some(vec!["*".into()]), ..BoxConfig::default() };
        assert_eq!(check_bounded(&bounded), Ok(()));
        let reaches_nothing = BoxConfig { network_bound: Some(Vec::new()), ..BoxConfig::default() };
        assert_eq!(check_bounded(&reaches_nothing), Ok(()));
        assert_eq!(check_bounded(&BoxConfig::default()), Err(Failure::unbounded()));
    }
}
