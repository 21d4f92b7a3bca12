//! `bouvet network`.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::table;
use crate::api::client::path;
use crate::api::shape::{NetworkView, PolicyView};

/// What is typed after `bouvet network`.
#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show or change what a sandbox can reach, and show what was refused it
    Policy(PolicyLine),
}

/// What is typed after `bouvet network policy`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --allow, --deny or --clear the policy is replaced by what is said; connections that it does \
    not allow are broken off."
)]
struct PolicyLine {
    /// Reach what the rule says, and nothing else that no other rule says
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    allow: Vec<String>,
    /// Do not reach what the rule says
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    deny: Vec<String>,
    /// Have no rules: all that is public can be reached
    #[arg(long, conflicts_with_all = ["allow", "deny"])]
    clear: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    sandbox: String,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    match &line.verb {
        Verb::Policy(line) => policy(line, connection).await,
    }
}

async fn policy(line: &PolicyLine, connection: &Connection) -> Result<u8, Failed> {
    let client = &connection.client;
    let changes = line.clear || !line.allow.is_empty() || !line.deny.is_empty();
    let view: NetworkView = if changes {
        let policy = PolicyView { allow: line.allow.clone(), deny: line.deny.clone() };
        let path = path(&["sandboxes", &line.sandbox, "network", "policy"], &[]);
        client.call(Method::PUT, &path, Some(&policy)).await?
    } else {
        client.get(&path(&["sandboxes", &line.sandbox, "network"], &[])).await?
    };
    if line.json {
        table::json(&view)?;
    } else {
        show(&view)?;
    }
    Ok(0)
}

fn show(view: &NetworkView) -> Result<(), Failed> {
    let or = |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(", ") };
    table::line(&format!("allow: {}", or(&view.policy.allow, "all that is public")))?;
    table::line(&format!("deny:  {}", or(&view.policy.deny, "nothing")))?;
    let counts = &view.counts;
    table::line(&format!(
        "sent:  {} bytes; received: {}; open: {} connections, {} flows of datagrams",
        counts.sent_bytes, counts.received_bytes, counts.open_connections, counts.open_datagram_flows
    ))?;
    for (refusal, times) in &counts.refused {
        table::line(&format!("refused {times} times: {refusal}"))?;
    }
    for refused in &view.refusals {
        let at = humantime::format_rfc3339_seconds(SystemTime::max(refused.at, SystemTime::UNIX_EPOCH));
        let flow = refused.flow.map(|flow| format!("{} {}", flow.protocol, flow.destination));
        let name = refused.name.as_ref().map(ToString::to_string);
        let what: Vec<_> = flow.into_iter().chain(name).collect();
        table::line(&format!("{at} {} {} ({})", what.join(" "), refused.refusal.as_str(), refused.times))?;
    }
    Ok(())
}
