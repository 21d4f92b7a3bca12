//! `bouvet network`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bouvet_host::Refused;
use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::filter::PruneFilter;
use super::outcome::{Connection, Failed};
use super::template::{Format, Template};
use super::without_server::WithoutServer;
use super::{table, usage};
use crate::api::client::{CallError, Client, path};
use crate::api::shape::{MemberView, NamedNetworkView, NetworkView, NewNetworkView, PolicyView};
use crate::calendar;
use crate::failure::Kind;

/// What fields of a template are called above their column.
const HEADS: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("CreatedAt", "CREATED AT"),
    ("Sandboxes", "SANDBOXES"),
];

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
    #[command(visible_alias = "list")]
    Ls(LsLine),
    /// Show details of networks, as JSON
    Inspect(InspectLine),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(RmLine),
    /// Remove networks that no sandbox is on
    Prune(PruneLine),
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
    /// Do not shorten: accepted for compatibility, nothing is shortened
    #[arg(long)]
    no_trunc: bool,
    /// Show only matching networks (may be repeated)
    #[arg(short, long, value_name = "name=PART|dangling=true|dangling=false")]
    filter: Vec<String>,
    /// Go template for each line, `table TEMPLATE`, or `json`: ID, Name, Driver, Scope, IPv4, IPv6, CreatedAt, Sandboxes
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Args)]
struct InspectLine {
    /// Go template, as in `{{.ipv4}}` or `{{json .Containers}}`
    #[arg(short, long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Show more: accepted for compatibility, everything is shown
    #[arg(short, long)]
    verbose: bool,
    /// Networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
struct PruneLine {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
    /// Remove only networks that are older than this age; networks have no labels
    #[arg(long, value_name = "until=AGE")]
    filter: Vec<String>,
}

#[derive(Debug, Args)]
struct RmLine {
    /// Do not fail for networks that do not exist
    #[arg(short, long)]
    force: bool,
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
    /// The sandbox as it was typed.
    pub(super) fn sandbox(&self) -> Option<&str> {
        match &self.verb {
            Verb::Policy(line) => Some(&line.sandbox),
            _ => None,
        }
    }

    /// Networks are on disk; a policy is that of a running sandbox.
    pub(super) fn without_server(&self) -> WithoutServer {
        match self.verb {
            Verb::Create(_) | Verb::Ls(_) | Verb::Inspect(_) | Verb::Rm(_) | Verb::Prune(_) => {
                WithoutServer::Works
            }
            Verb::Policy(_) => WithoutServer::Fails,
        }
    }

    /// Whether it makes sense.
    pub(super) fn check(&self) -> Result<(), Failed> {
        match &self.verb {
            Verb::Ls(line) => {
                NetworkFilter::all(&line.filter)?;
                line.template().map(drop)
            }
            Verb::Inspect(line) => line.template().map(drop),
            Verb::Prune(line) => PruneFilter::all(&line.filter).map(drop),
            Verb::Create(_) | Verb::Rm(_) | Verb::Policy(_) => Ok(()),
        }
    }
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    match &line.verb {
        Verb::Create(line) => create(line, connection).await,
        Verb::Ls(line) => list(line, connection).await,
        Verb::Inspect(line) => inspect(line, connection).await,
        Verb::Rm(line) => remove(line, connection).await,
        Verb::Prune(line) => prune(line, connection).await,
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

/// A condition of `network ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NetworkFilter {
    /// A part of the name.
    Name(String),
    /// Whether no sandbox is on it.
    Dangling(bool),
}

impl NetworkFilter {
    fn all(texts: &[String]) -> Result<Vec<Self>, Failed> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    fn parse(text: &str) -> Result<Self, Failed> {
        match text.split_once('=') {
            Some(("name" | "id", part)) => Ok(Self::Name(part.to_owned())),
            Some(("dangling", "true" | "1")) => Ok(Self::Dangling(true)),
            Some(("dangling", "false" | "0")) => Ok(Self::Dangling(false)),
            _ => Err(usage::wrong(
                "--filter",
                text,
                "`name=PART`, `dangling=true` and `dangling=false` are allowed",
            )),
        }
    }

    fn takes(&self, network: &NamedNetworkView) -> bool {
        match self {
            Self::Name(part) => network.name.contains(part),
            Self::Dangling(wanted) => network.sandboxes.is_empty() == *wanted,
        }
    }
}

/// Whether a network is listed: names are alternatives, as docker has it.
fn is_listed(filters: &[NetworkFilter], network: &NamedNetworkView) -> bool {
    let is_alike = |one: &NetworkFilter, other: &NetworkFilter| {
        std::mem::discriminant(one) == std::mem::discriminant(other)
    };
    filters.iter().all(|filter| filters.iter().any(|other| is_alike(filter, other) && other.takes(network)))
}

impl LsLine {
    fn template(&self) -> Result<Option<Format>, Failed> {
        Ok(self.format.as_deref().map(Format::parse).transpose()?.flatten())
    }
}

impl InspectLine {
    fn template(&self) -> Result<Option<Template>, Failed> {
        // As docker has it.
        let format =
            self.format.as_deref().map(|format| if format == "json" { "{{json .}}" } else { format });
        format.map(Template::parse).transpose()
    }
}

async fn all(connection: &Connection) -> Result<Vec<NamedNetworkView>, Failed> {
    Ok(connection.client.get(&path(&["networks"], &[])).await?)
}

async fn list(line: &LsLine, connection: &Connection) -> Result<u8, Failed> {
    let filters = NetworkFilter::all(&line.filter)?;
    let mut networks = all(connection).await?;
    networks.retain(|network| is_listed(&filters, network));
    if line.json {
        table::json(&networks)?;
    } else if line.quiet {
        networks.iter().try_for_each(|network| table::line(&network.name))?;
    } else if let Some(format) = line.template()? {
        let rows: Vec<_> = networks.iter().map(fields).collect();
        format.print(HEADS, &rows)?;
    } else {
        let rows = networks.iter().map(|network| row(network, SystemTime::now()));
        table::print(&["NETWORK", "IPV4", "IPV6", "CREATED", "SANDBOXES"], rows.collect())?;
    }
    Ok(0)
}

/// A network as templates have it.
fn fields(network: &NamedNetworkView) -> Value {
    let sandboxes: Vec<_> = network.sandboxes.iter().map(called).collect();
    json!({
        "ID": network.name,
        "Name": network.name,
        "Driver": "bridge",
        "Scope": "local",
        "IPv4": network.ipv4,
        "IPv6": network.ipv6,
        "CreatedAt": network.created_at,
        "Sandboxes": sandboxes.join(", "),
    })
}

async fn inspect(line: &InspectLine, connection: &Connection) -> Result<u8, Failed> {
    let template = line.template()?;
    let networks = all(connection).await?;
    let mut found = Vec::new();
    for name in &line.networks {
        let missing = || {
            Failed::new(format!("there is no network `{}`", name.escape_debug()))
                .hint("`bouvet network ls` lists those that are here")
        };
        let network = networks.iter().find(|network| network.name == *name).ok_or_else(missing)?;
        match &template {
            Some(template) => table::line(&template.render(&details(network)?)?)?,
            None => found.push(details(network)?),
        }
    }
    if template.is_none() {
        table::json(&found)?;
    }
    Ok(0)
}

/// Our own fields of a network, and docker's.
fn details(network: &NamedNetworkView) -> Result<Value, Failed> {
    let member = |member: &MemberView| {
        let address = |v6: bool| member.addresses.iter().find(|address| address.contains(':') == v6);
        let address = |v6| address(v6).cloned().unwrap_or_default();
        let fields =
            json!({ "Name": member.name, "IPv4Address": address(false), "IPv6Address": address(true) });
        (member.id.clone(), fields)
    };
    let docker = json!({
        "Id": network.name,
        "Name": network.name,
        "Created": network.created_at,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": true,
        "IPAM": { "Config": [{ "Subnet": network.ipv4 }, { "Subnet": network.ipv6 }] },
        "Containers": network.sandboxes.iter().map(member).collect::<Map<_, _>>(),
    });
    Ok(super::inspect::merged(serde_json::to_value(network).map_err(Failed::new)?, docker))
}

/// The name of a sandbox; without one, the first digits of its id.
fn called(member: &MemberView) -> String {
    match member.name.as_str() {
        "" => member.id.get(..8).unwrap_or_default().to_owned(),
        name => name.to_owned(),
    }
}

fn row(network: &NamedNetworkView, now: SystemTime) -> Vec<String> {
    let member = |member: &MemberView| {
        format!("{} {}", called(member), member.addresses.first().map_or("", String::as_str))
    };
    let sandboxes: Vec<_> = network.sandboxes.iter().map(member).collect();
    let (ipv4, ipv6) = (network.ipv4.clone(), network.ipv6.clone());
    vec![network.name.clone(), ipv4, ipv6, table::ago(&network.created_at, now), sandboxes.join(", ")]
}

async fn remove(line: &RmLine, connection: &Connection) -> Result<u8, Failed> {
    let remove = async |client: &Client, name: &str| match client
        .act(Method::DELETE, &path(&["networks", name], &[]))
        .await
    {
        Err(CallError::Refused(failure)) if line.force && failure.kind == Kind::NoNamedNetwork.name() => {
            Err(Failed::not_needed(failure.error))
        }
        Err(CallError::Refused(failure)) if failure.kind == Kind::NoNamedNetwork.name() => {
            Err(Failed::new(failure.error).hint("`bouvet network ls` lists those that are here"))
        }
        done => Ok(done?),
    };
    connection.each(&line.networks, remove).await
}

async fn prune(line: &PruneLine, connection: &Connection) -> Result<u8, Failed> {
    let filters = PruneFilter::all(&line.filter)?;
    let warning = "WARNING! This will remove all networks that no sandbox is on.";
    if !line.force && !super::prune::confirm(warning)? {
        return Ok(0);
    }
    remove_unused(connection, &filters).await?;
    Ok(0)
}

/// Removes networks that no sandbox is on and that fit all `filters`, and prints them.
pub(super) async fn remove_unused(connection: &Connection, filters: &[PruneFilter]) -> Result<(), Failed> {
    let now = SystemTime::now();
    let is_meant = |network: &&NamedNetworkView| {
        let fits = |filter: &PruneFilter| filter.takes(&network.created_at, &BTreeMap::new(), now);
        network.sandboxes.is_empty() && filters.iter().all(fits)
    };
    for network in all(connection).await?.iter().filter(is_meant) {
        match connection.client.act(Method::DELETE, &path(&["networks", &network.name], &[])).await {
            Ok(()) => table::line(&network.name)?,
            // It is used or gone in the meantime.
            Err(CallError::Refused(failure)) => table::complain(&failure.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    if !counts.refused.is_empty() {
        let reasons = counts.refused.iter().map(|(refusal, times)| format!("{} {times}", refusal.as_str()));
        table::line(&format!("refused: {}", reasons.collect::<Vec<_>>().join(", ")))?;
    }
    view.refusals.iter().try_for_each(|refused| table::line(&refusal(refused)))?;
    Ok(())
}

/// When something was refused, how often, to which destination and why.
fn refusal(refused: &Refused) -> String {
    let at = calendar::seconds(refused.at);
    let times = if refused.times == 1 { "once".to_owned() } else { format!("{} times", refused.times) };
    let flow = refused.flow.map(|flow| format!("{} {}", flow.protocol, flow.destination));
    let destination = match (&refused.name, flow) {
        (Some(name), Some(flow)) => format!("{name} ({flow})"),
        (Some(name), None) => name.to_string(),
        (None, Some(flow)) => flow,
        (None, None) => "a destination".to_owned(),
    };
    format!("{at} {times}: {destination} {}", refused.refusal.predicate())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_their_destination() {
        let refused: Refused = serde_json::from_value(json!({
            "at": SystemTime::UNIX_EPOCH, "refusal": "special", "flow": null, "name": "box.example", "times": 2,
        }))
        .unwrap();
        let text =
            "1970-01-01T00:00:00Z 2 times: box.example has a reserved address, which sandboxes never reach";
        assert_eq!(refusal(&refused), text);
        let unnamed = Refused { name: None, times: 1, ..refused };
        assert!(
            refusal(&unnamed).starts_with("1970-01-01T00:00:00Z once: a destination has "),
            "{unnamed:?}"
        );
    }

    #[test]
    fn networks_are_filtered_and_have_dockers_fields() {
        let member = MemberView {
            id: "0123456789".into(),
            name: "web".into(),
            addresses: vec!["10.1.0.2".into(), "fd00::2".into()],
        };
        let network = NamedNetworkView {
            name: "back".into(),
            ipv4: "10.1.0.0/24".into(),
            ipv6: "fd00::/64".into(),
            created_at: "1970-01-01T00:00:00Z".into(),
            sandboxes: vec![member],
        };
        let takes = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
            is_listed(&NetworkFilter::all(&texts).unwrap(), &network)
        };
        assert!(takes(&[]) && takes(&["name=ac"]) && takes(&["name=x", "name=back"]));
        assert!(!takes(&["name=x"]) && !takes(&["dangling=true"]) && takes(&["dangling=false", "name=back"]));
        for wrong in ["driver=bridge", "dangling=maybe", "name"] {
            assert!(NetworkFilter::parse(wrong).is_err(), "{wrong}");
        }
        let details = details(&network).unwrap();
        assert_eq!(details["Containers"]["0123456789"]["IPv4Address"], "10.1.0.2");
        assert_eq!(details["IPAM"]["Config"][0]["Subnet"], details["ipv4"]);
        let fields = fields(&network);
        for (head, _) in HEADS {
            assert!(fields.get(head).is_some(), "{head}");
        }
    }
}
