//! What sandboxes may reach, and what they did.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use bouvet_host::{Host, Sandbox};

use super::shape::{NetworkView, PolicyView};
use super::{Answered, said, told};
use crate::failure::Failure;

pub(super) async fn show(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    let sandbox = host.find(&name)?;
    view(&sandbox).map(|view| said(&view))
}

pub(super) async fn set_policy(
    State(host): State<Host>,
    Path(name): Path<String>,
    policy: Result<Json<PolicyView>, JsonRejection>,
) -> Answered {
    let PolicyView { allow, deny } = told(policy)?;
    let sandbox = host.find(&name)?;
    let network = sandbox.network().ok_or_else(Failure::no_network)?;
    network.set_policy(&allow, &deny).map_err(Failure::from)?;
    view(&sandbox).map(|view| said(&view))
}

fn view(sandbox: &Sandbox) -> Answered<NetworkView> {
    let network = sandbox.network().ok_or_else(Failure::no_network)?;
    Ok(NetworkView {
        addresses: network.addresses().map(|address| address.to_string()).into(),
        policy: network.policy().into(),
        counts: network.counts(),
        refusals: network.refusals(),
    })
}
