//! Ports of the host that lead into sandboxes.

use axum::extract::rejection::JsonRejection;
use axum::extract::{Json, Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use bouvet_host::{Host, InvalidConfig, PortProtocol, PortSpec};
use serde_json::json;

use super::shape::{ExposeView, PortView};
use super::{Answered, said, told};

/// `GET /v1/sandboxes/{sandbox}/ports`
pub(super) async fn list(State(host): State<Host>, Path(name): Path<String>) -> Answered {
    let ports = host.find(&name)?.ports();
    Ok(said(&ports.iter().map(PortView::from).collect::<Vec<_>>()))
}

/// `POST /v1/sandboxes/{sandbox}/ports`
pub(super) async fn expose(
    State(host): State<Host>,
    Path(name): Path<String>,
    wanted: Result<Json<ExposeView>, JsonRejection>,
) -> Answered {
    let wanted: PortSpec = told(wanted)?.port.parse()?;
    let port = host.find(&name)?.expose(wanted)?;
    Ok((StatusCode::CREATED, said(&PortView::from(&port))).into_response())
}

/// `DELETE /v1/sandboxes/{sandbox}/ports/{port}`
pub(super) async fn unexpose(
    State(host): State<Host>,
    Path((name, port)): Path<(String, String)>,
) -> Answered {
    let (guest, protocol) = guest_port(&port)?;
    host.find(&name)?.unexpose(guest, protocol).await?;
    Ok(said(&json!({})))
}

/// `PORT[/PROTOCOL]` of a sandbox.
pub(crate) fn guest_port(text: &str) -> Result<(u16, PortProtocol), InvalidConfig> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let wrong = || InvalidConfig {
        field: "port",
        value: format!("`{}`", text.escape_debug()),
        allowed: "1 to 65535 are allowed, with or without `/tcp` or `/udp`".into(),
    };
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    Ok((port, protocol.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_a_sandbox_is_a_number_and_perhaps_what_it_carries() {
        for (text, expected) in [
            ("80", Some((80, PortProtocol::Tcp))),
            ("80/tcp", Some((80, PortProtocol::Tcp))),
            ("53/udp", Some((53, PortProtocol::Udp))),
            ("65535", Some((65_535, PortProtocol::Tcp))),
            ("0", None),
            ("65536", None),
            ("80/", None),
            ("80/sctp", None),
            ("http", None),
            ("", None),
        ] {
            assert_eq!(guest_port(text).ok(), expected, "{text}");
        }
    }
}
