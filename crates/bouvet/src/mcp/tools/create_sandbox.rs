//! `create_sandbox`.

use std::collections::BTreeMap;
use std::time::Duration;

use bouvet_host::{
    BASE_IMAGE, BoxConfig, FULL_BASE_IMAGE, InvalidConfig, MAX_LIFETIME_SECS, NetworkMode, Reference,
    ResourceConfig,
};
use rmcp::RoleServer;
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::service::RequestContext;
use rmcp::{tool, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar;
use crate::config::Registries;
use crate::failure::Failure;
use crate::mcp::progress::Progress;
use crate::mcp::{Grants, Server};

/// Of a [`BoxConfig`] what is a client's to say: nothing of the host's files, and no more than its operator gives.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Args {
    /// Memory in MiB.
    #[schemars(with = "u32", range(min = 128, max = 1_048_576), extend("default" = 256))]
    memory_mib: Option<u32>,
    /// Virtual CPUs.
    #[schemars(with = "u32", range(min = 1, max = 32), extend("default" = 1))]
    vcpu_count: Option<u32>,
    /// OCI image whose files the sandbox has instead of the usual ones, like `alpine:3` or `ghcr.io/org/app@sha256:…`.
    /// Its variables, user and working directory hold; its own program is not started. `devbox-full` is a larger one of
    /// the server itself, with g++, cmake, scipy, scikit-learn, plotly and sympy.
    image: String,
    /// Variables for every program in the sandbox.
    env: BTreeMap<String, String>,
    /// Directory in which programs start that name none.
    working_dir: String,
    /// Who programs run as: `user`, `uid`, `user:group` or `uid:gid`.
    user: String,
    /// A name for people, unique on the server.
    name: String,
    /// Size of the writable disk in MiB, up to what the server gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 64, max = 1_048_576))]
    disk_mib: Option<u32>,
    /// Seconds after which the sandbox is destroyed, up to what the server gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 1))]
    timeout_secs: Option<u64>,
    /// File systems in memory: `/path`, or `/path:size=100m`.
    tmpfs: Vec<String>,
    /// Nobody may write to the root file system.
    #[schemars(extend("default" = false))]
    read_only: bool,
    /// What it can reach: `none`, or `tsi` for the internet. `tsi` if `allow` is given.
    #[schemars(with = "String", extend("enum" = ["none", "tsi"], "default" = "none"))]
    network: Option<String>,
    /// What of the internet it can reach, and nothing else: rules like `pypi.org`, `*.github.com:443`, `192.0.2.0/24`. What
    /// the server's operator does not let be reached is not.
    allow: Vec<String>,
    /// What it cannot reach, whatever is allowed: rules of the same form.
    deny: Vec<String>,
}

impl Args {
    /// The sandbox that is asked for, where one without wishes is `usual`.
    fn describe(self, usual: &BoxConfig, grants: &Grants) -> Result<BoxConfig, InvalidConfig> {
        let given = &usual.resources;
        let timeout = match self.timeout_secs {
            Some(secs) => at_most("resources.timeout", secs, limit(given.timeout.as_secs()), " s")?,
            None => given.timeout.as_secs(),
        };
        let resources = ResourceConfig {
            memory_mb: self.memory_mib.unwrap_or(given.memory_mb),
            vcpus: self.vcpu_count.unwrap_or(given.vcpus),
            disk_mb: match self.disk_mib {
                Some(mib) => at_most("resources.disk_mb", mib, given.disk_mb, " MiB")?,
                None => given.disk_mb,
            },
            timeout: Duration::from_secs(timeout),
        };
        let image = match self.image.as_str() {
            "" | BASE_IMAGE => String::new(),
            FULL_BASE_IMAGE => FULL_BASE_IMAGE.to_owned(),
            image => allowed_image(image, &grants.registries)?,
        };
        let network = match self.network.as_deref() {
            Some("none") => NetworkMode::None,
            Some("tsi") => NetworkMode::Tsi,
            None if self.allow.is_empty() => NetworkMode::None,
            None => NetworkMode::Tsi,
            Some(other) => return Err(invalid("network", other, "`none` and `tsi` are allowed")),
        };
        if network != NetworkMode::None && grants.egress.is_none() {
            let allowed = "this server gives sandboxes no network; its operator sets BOUVET_ALLOWED_EGRESS";
            return Err(invalid("network", "tsi", allowed));
        }
        Ok(BoxConfig {
            network,
            allow: self.allow,
            deny: self.deny,
            network_bound: grants.egress.clone(),
            idle: !image.is_empty(),
            image,
            resources,
            extra_env: self.env.into_iter().collect(),
            working_dir: self.working_dir,
            user: self.user,
            name: self.name,
            tmpfs: self.tmpfs,
            read_only: self.read_only,
            ..usual.clone()
        })
    }
}

fn invalid(field: &'static str, value: &str, allowed: &str) -> InvalidConfig {
    InvalidConfig { field, value: format!("`{}`", value.escape_debug()), allowed: allowed.into() }
}

/// The longest life of a sandbox where the server's own limit is `secs`; 0 is none.
fn limit(secs: u64) -> u64 {
    if secs == 0 { MAX_LIFETIME_SECS } else { secs }
}

fn at_most<N: Copy + PartialOrd + From<u8> + std::fmt::Display>(
    field: &'static str,
    asked: N,
    most: N,
    unit: &str,
) -> Result<N, InvalidConfig> {
    if asked >= N::from(1) && asked <= most {
        return Ok(asked);
    }
    Err(InvalidConfig {
        field,
        value: format!("{asked}{unit}"),
        allowed: format!("1 to {most}{unit} are allowed"),
    })
}

/// The normal form of a reference that a client may use. It may not have the server read its own files, or speak to whom
/// its operator did not mean; nor name what others have pulled by its id, as any short reference of hex digits would.
fn allowed_image(image: &str, registries: &Registries) -> Result<String, InvalidConfig> {
    let wrong = |allowed: String| InvalidConfig {
        field: "image",
        value: format!("`{}`", image.escape_debug()),
        allowed,
    };
    let reference: Reference =
        image.parse().map_err(|error: bouvet_host::ReferenceError| wrong(error.reason.into()))?;
    let registry = reference.registry().ok_or_else(|| wrong("an image in a registry is allowed".into()))?;
    match registries.allow(registry) {
        true => Ok(reference.normalized()),
        false => Err(wrong(format!(
            "this server takes images from {}; its operator sets BOUVET_ALLOWED_REGISTRIES",
            match registries.to_string() {
                none if none.is_empty() => "no registry".into(),
                some => some,
            }
        ))),
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct Created {
    /// Names the sandbox in every later call.
    sandbox_id: String,
    /// Its memory in MiB.
    memory_mib: u32,
    /// Its virtual CPUs.
    vcpu_count: u32,
    /// When it will be destroyed at the latest, in RFC 3339; left out if never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    expires_at: Option<String>,
}

#[tool_router(router = create_sandbox_tool, vis = "pub(super)")]
impl Server {
    /// Create a new isolated sandbox: a Linux virtual machine of its own, with Python 3.11, Node.js 20, Bash
    /// and Rust, root rights, a disk and, unless asked for, no network; or with what is in an OCI image. Returns its sandbox_id. It lives,
    /// with its files and background processes, until destroy_sandbox or its expires_at.
    #[tool(annotations(
        title = "Create a sandbox",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = false,
        open_world_hint = true
    ))]
    async fn create_sandbox(
        &self,
        Parameters(args): Parameters<Args>,
        context: RequestContext<RoleServer>,
    ) -> Result<Json<Created>, Failure> {
        let config = args.describe(&self.sandbox, &self.grants)?;
        let resources = config.resources.clone();
        let made = self.host.create(config);
        let info = Progress::new(&context).while_made(&self.host, &resources, made).await?.info();
        Ok(Json(Created {
            sandbox_id: info.id.to_string(),
            memory_mib: info.config.resources.memory_mb,
            vcpu_count: info.config.resources.vcpus,
            expires_at: info.expires_at.map(calendar::seconds),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(json: serde_json::Value, registries: &str) -> Result<BoxConfig, InvalidConfig> {
        describe_with(json, registries, "*")
    }

    fn describe_with(
        json: serde_json::Value,
        registries: &str,
        egress: &str,
    ) -> Result<BoxConfig, InvalidConfig> {
        let resources =
            ResourceConfig { disk_mb: 2048, timeout: Duration::from_secs(60), ..Default::default() };
        let network = NetworkMode::None;
        let usual = BoxConfig { resources, privileged: true, network, ..BoxConfig::default() };
        let set = |name: &str| match name {
            "BOUVET_ALLOWED_REGISTRIES" => Some(registries.to_owned()),
            "BOUVET_ALLOWED_EGRESS" => Some(egress.to_owned()),
            _ => None,
        };
        let crate::config::Config { registries, egress, expose, .. } =
            crate::config::Config::load(set).unwrap();
        let grants = Grants { registries, egress, expose };
        serde_json::from_value::<Args>(json).unwrap().describe(&usual, &grants)
    }

    #[test]
    fn what_is_said_is_a_description() {
        let json = serde_json::json!({
            "image": "alpine:3", "env": {"A": "1"}, "working_dir": "/srv", "user": "nobody", "name": "box",
            "disk_mib": 64, "timeout_secs": 30, "tmpfs": ["/t"], "read_only": true, "vcpu_count": 3,
        });
        let config = describe(json, "*").unwrap();
        assert!(config.idle && config.privileged && config.read_only);
        assert_eq!(
            (&config.image[..], &config.user[..], &config.name[..]),
            ("docker.io/library/alpine:3", "nobody", "box")
        );
        assert_eq!((config.resources.disk_mb, config.resources.timeout.as_secs()), (64, 30));
        assert_eq!(config.extra_env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!((config.tmpfs, config.resources.vcpus), (vec!["/t".to_owned()], 3));
        let usual = describe(serde_json::json!({}), "*").unwrap();
        assert!(!usual.idle && usual.image.is_empty());
        assert_eq!(describe(serde_json::json!({"image": "base"}), "none").unwrap().image, "");
        // A base image is the server's own: no registry has to be allowed for it.
        let full = describe(serde_json::json!({"image": "devbox-full"}), "none").unwrap();
        assert_eq!(full.image, "devbox-full");
        assert_eq!((usual.resources.disk_mb, usual.resources.timeout.as_secs()), (2048, 60));
    }

    #[test]
    fn a_network_is_asked_for_and_bounded_by_the_operator() {
        let network = |json, egress: &str| describe_with(json, "*", egress).map(|config| config.network);
        assert_eq!(network(serde_json::json!({}), "*"), Ok(NetworkMode::None));
        assert_eq!(network(serde_json::json!({"network": "tsi"}), "*"), Ok(NetworkMode::Tsi));
        assert_eq!(network(serde_json::json!({"allow": ["pypi.org"]}), "*"), Ok(NetworkMode::Tsi));
        assert_eq!(network(serde_json::json!({"network": "tsi"}), "none").unwrap_err().field, "network");
        assert_eq!(network(serde_json::json!({}), "none"), Ok(NetworkMode::None));
        assert_eq!(network(serde_json::json!({"network": "host"}), "*").unwrap_err().field, "network");
        let config = describe_with(serde_json::json!({"network": "tsi"}), "*", "*.example.com,10.0.0.0/8");
        let bound = config.unwrap().network_bound.unwrap();
        assert_eq!(bound, ["*.example.com", "10.0.0.0/8"]);
    }

    #[test]
    fn a_client_gets_no_more_than_the_operator_gives() {
        let refused = |json| describe(json, "docker.io").unwrap_err();
        assert_eq!(refused(serde_json::json!({"disk_mib": 2049})).field, "resources.disk_mb");
        assert_eq!(refused(serde_json::json!({"timeout_secs": 61})).field, "resources.timeout");
        assert_eq!(refused(serde_json::json!({"timeout_secs": 0})).field, "resources.timeout");
        for image in
            ["oci:/etc", "docker-archive:/etc/shadow", "localhost:5000/a", "10.0.0.1/a", "UPPER/x", "a b"]
        {
            let error = refused(serde_json::json!({"image": image}));
            assert_eq!(error.field, "image", "{image}: {error}");
        }
        let by_id = describe(serde_json::json!({"image": "0123456789ab"}), "docker.io").unwrap();
        assert_eq!(
            by_id.image, "docker.io/library/0123456789ab:latest",
            "not what is in the cache by that id"
        );
        let none = describe(serde_json::json!({"image": "alpine"}), "none").unwrap_err();
        assert!(none.to_string().contains("no registry"), "{none}");
    }
}
