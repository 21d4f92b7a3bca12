//! `bouvet network`.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use hyper::Method;

use super::outcome::{Connection, Failed};
use super::table;
use super::without_server::WithoutServer;
use crate::api::client::{Client, path};
use crate::api::shape::{MemberView, NamedNetworkView, NetworkView, NewNetworkView, PolicyView};

#[derive(Debug, Args)]
pub(crate) struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a network for sandboxes of `bouvet run --network NAME`
    Create(CreateLine),
    /// List networks and their sandboxes
    Ls(LsLine),
    /// Remove unused networks
    Rm(RmLine),
    /// Show or change what a sandbox can reach, with refused connections
    Policy(PolicyLine),
}

#[derive(Debug, Args)]
struct CreateLine {
    /// Private IPv4 subnet, as in 10.1.2.0/24 [default: a free one]
    #[arg(long, value_name = "SUBNET")]
    subnet: Option<String>,
    /// Name of the network
    #[arg(value_name = "NETWORK")]
    name: String,
}

#[derive(Debug, Args)]
struct LsLine {
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RmLine {
    /// Networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "--allow, --deny and --clear replace the policy. Connections that the new policy does not allow are \
    closed."
)]
struct PolicyLine {
    /// Let it reach only this (may be repeated)
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    allow: Vec<String>,
    /// Do not let it reach this (may be repeated)
    #[arg(long, value_name = "TARGET[:PORTS][/PROTOCOL]")]
    deny: Vec<String>,
    /// Remove all rules (allow all public addresses)
    #[arg(long, conflicts_with_all = ["allow", "deny"])]
    clear: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Sandbox: its name, its id, or the first characters of its id
    sandbox: String,
}

impl Line {
    /// Networks are on disk; a policy is that of a running sandbox.
    pub(super) fn without_server(&self) -> WithoutServer {
        match self.verb {
            Verb::Create(_) | Verb::Ls(_) | Verb::Rm(_) => WithoutServer::Works,
            Verb::Policy(_) => WithoutServer::Fails,
        }
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    match &line.verb {
        Verb::Create(line) => create(line, connection).await,
        Verb::Ls(line) => list(line, connection).await,
        Verb::Rm(line) => remove(line, connection).await,
        Verb::Policy(line) => policy(line, connection).await,
    }
}

async fn create(line: &CreateLine, connection: &Connection) -> Result<u8, Failed> {
    let wanted = NewNetworkView { name: line.name.clone(), subnet: line.subnet.clone() };
    let made: NamedNetworkView =
        connection.client.call(Method::POST, &path(&["networks"], &[]), Some(&wanted)).await?;
    table::line(&made.name)?;
    Ok(0)
}

async fn list(line: &LsLine, connection: &Connection) -> Result<u8, Failed> {
    let networks: Vec<NamedNetworkView> = connection.client.get(&path(&["networks"], &[])).await?;
    if line.json {
        table::json(&networks)?;
    } else if line.quiet {
        networks.iter().try_for_each(|network| table::line(&network.name))?;
    } else {
        let rows = networks.iter().map(|network| row(network, SystemTime::now()));
        table::print(&["NETWORK", "IPV4", "IPV6", "CREATED", "SANDBOXES"], rows.collect())?;
    }
    Ok(0)
}

fn row(network: &NamedNetworkView, now: SystemTime) -> Vec<String> {
    let member = |member: &MemberView| {
        let called =
            if member.name.is_empty() { member.id.get(..8).unwrap_or_default() } else { &member.name };
        format!("{called} {}", member.addresses.first().map_or("", String::as_str))
    };
    let sandboxes: Vec<_> = network.sandboxes.iter().map(member).collect();
    let (ipv4, ipv6) = (network.ipv4.clone(), network.ipv6.clone());
    vec![network.name.clone(), ipv4, ipv6, table::ago(&network.created_at, now), sandboxes.join(", ")]
}

async fn remove(line: &RmLine, connection: &Connection) -> Result<u8, Failed> {
    let remove = async |client: &Client, name: &str| {
        Ok(client.act(Method::DELETE, &path(&["networks", name], &[])).await?)
    };
    connection.each(&line.networks, remove).await
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
        let at = crate::calendar::seconds(refused.at);
        let flow = refused.flow.map(|flow| format!("{} {}", flow.protocol, flow.destination));
        let name = refused.name.as_ref().map(ToString::to_string);
        let what: Vec<_> = flow.into_iter().chain(name).collect();
        table::line(&format!("{at} {} {} ({})", what.join(" "), refused.refusal.as_str(), refused.times))?;
    }
    Ok(())
}
