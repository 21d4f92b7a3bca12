//! `expose_port`.

use std::net::{IpAddr, SocketAddr};

use bouvet_host::{InvalidConfig, MappedPort, PortProtocol, PortSpec, Refusal, Sandbox, State};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::mcp::Server;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The sandbox, as create_sandbox named it.
    sandbox_id: String,
    /// The port on which a program of the sandbox listens, or will.
    #[schemars(range(min = 1, max = 65535))]
    port: u32,
    /// What it speaks.
    #[serde(default)]
    #[schemars(extend("default" = "tcp"))]
    protocol: Protocol,
}

impl Args {
    fn wanted(&self, address: IpAddr) -> Result<PortSpec, InvalidConfig> {
        let guest = u16::try_from(self.port).ok().filter(|port| *port != 0);
        let guest = guest.ok_or_else(|| InvalidConfig {
            field: "port",
            value: self.port.to_string(),
            allowed: "1 to 65535 are allowed".into(),
        })?;
        Ok(PortSpec { host: SocketAddr::new(address, 0), guest, protocol: self.protocol.into() })
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Protocol {
    #[default]
    Tcp,
    Udp,
}

impl From<Protocol> for PortProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct Exposed {
    /// The address of the server's machine on which it is reached. 127.0.0.1 is that machine alone.
    host: String,
    /// The port there.
    port: u16,
    /// The same for a browser, if it speaks HTTP; left out for udp.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    url: Option<String>,
}

impl From<&MappedPort> for Exposed {
    fn from(port: &MappedPort) -> Self {
        let browsable = port.protocol == PortProtocol::Tcp && !port.host.ip().is_unspecified();
        Self {
            host: port.host.ip().to_string(),
            port: port.host.port(),
            url: browsable.then(|| format!("http://{}/", port.host)),
        }
    }
}

#[tool_router(router = expose_port_tool, vis = "pub(super)")]
impl Server {
    /// Make a server that runs in a sandbox reachable from the machine that Bouvet runs on: a port there leads to the
    /// port of the sandbox, until the sandbox is destroyed. Returns its address. Exposing a port again returns the same.
    #[tool(annotations(
        title = "Expose a port",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn expose_port(&self, Parameters(args): Parameters<Args>) -> Result<Json<Exposed>, Failure> {
        let address = self.grants.expose.ok_or_else(Failure::unexposed)?;
        let sandbox = self.find(&args.sandbox_id)?;
        if let State::Failed(reason) = sandbox.state() {
            return Err(Refusal::Failed(reason).into());
        }
        let wanted = args.wanted(address)?;
        let port = match exposed(&sandbox, wanted, address) {
            Some(port) => port,
            None => sandbox.expose(wanted)?,
        };
        Ok(Json(Exposed::from(&port)))
    }
}

/// The port that leads there already.
fn exposed(sandbox: &Sandbox, wanted: PortSpec, address: IpAddr) -> Option<MappedPort> {
    let is_same = |port: &MappedPort| {
        (port.guest, port.protocol, port.host.ip()) == (wanted.guest, wanted.protocol, address)
            && port.error.is_none()
    };
    sandbox.ports().into_iter().find(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_one_that_a_browser_can_open() {
        let url = |host: &str, protocol| {
            let port = MappedPort { host: host.parse().unwrap(), guest: 80, protocol, error: None };
            Exposed::from(&port).url
        };
        assert_eq!(url("127.0.0.1:4321", PortProtocol::Tcp).as_deref(), Some("http://127.0.0.1:4321/"));
        assert_eq!(url("[::1]:4321", PortProtocol::Tcp).as_deref(), Some("http://[::1]:4321/"));
        assert_eq!(url("127.0.0.1:4321", PortProtocol::Udp), None);
        assert_eq!(url("0.0.0.0:4321", PortProtocol::Tcp), None, "that is every address, and none to open");
    }

    #[test]
    fn arguments_are_read() {
        let read = |json| serde_json::from_value::<Args>(json).unwrap().wanted(IpAddr::from([127, 0, 0, 1]));
        let wanted = |text: &str| Ok(text.parse::<PortSpec>().unwrap());
        assert_eq!(read(serde_json::json!({"sandbox_id": "x", "port": 80})), wanted("127.0.0.1:0:80/tcp"));
        let udp = read(serde_json::json!({"sandbox_id": "x", "port": 65_535, "protocol": "udp"}));
        assert_eq!(udp, wanted("127.0.0.1:0:65535/udp"));
        for port in [0, 65_536] {
            let error = read(serde_json::json!({"sandbox_id": "x", "port": port})).unwrap_err();
            assert_eq!(error.to_string(), format!("`port` is {port}; 1 to 65535 are allowed"));
        }
        for more in [serde_json::json!({"protocol": "sctp"}), serde_json::json!({"host": "0.0.0.0"})] {
            let mut json = serde_json::json!({"sandbox_id": "x", "port": 80});
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            assert!(serde_json::from_value::<Args>(json).is_err(), "{more}");
        }
    }
}
