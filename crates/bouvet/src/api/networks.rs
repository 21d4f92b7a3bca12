//! Named networks.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use bouvet_host::{Host, NetworkInfo};
use serde_json::json;

use super::shape::{MemberView, NamedNetworkView, NewNetworkView};
use super::{Answered, said, told};

/// `GET /v1/networks`
pub(super) async fn list(State(host): State<Host>) -> Answered {
    let networks = host.list_networks()?;
    Ok(said(&networks.into_iter().map(|network| view(&host, network)).collect::<Vec<_>>()))
}

/// `POST /v1/networks`
pub(super) async fn create(
    State(host): State<Host>,
    wanted: Result<Json<NewNetworkView>, JsonRejection>,
) -> Answered {
    let NewNetworkView { name, subnet } = told(wanted)?;
    let network = host.create_network(&name, subnet.as_deref())?;
    Ok((StatusCode::CREATED, said(&view(&host, network))).into_response())
}

/// `DELETE /v1/networks/{network}`
pub(super) async fn remove(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    host.remove_network(&name)?;
    Ok(said(&json!({})))
}

fn view(host: &Host, network: NetworkInfo) -> NamedNetworkView {
    let on = network.sandboxes.into_iter().filter_map(|id| host.get(id));
    let member = |sandbox: bouvet_host::Sandbox| {
        let addresses = sandbox.network().map(bouvet_host::NetworkControl::addresses)?;
        let (id, name) = (sandbox.id().to_string(), sandbox.name());
        Some(MemberView { id, name, addresses: addresses.map(|address| address.to_string()).into() })
    };
    NamedNetworkView {
        name: network.name,
        ipv4: network.ipv4,
        ipv6: network.ipv6,
        created_at: crate::calendar::seconds(network.created_at),
        sandboxes: on.filter_map(member).collect(),
    }
}
