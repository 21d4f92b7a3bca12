//! What an image says about how it is to be run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// How an image is to be run: the part of its configuration that is about its containers.
///
/// ```no_run
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// let Some(image) = images.get("nginx:alpine").await? else { return Ok(()) };
/// println!("it runs {:?} {:?} as {:?}", image.config.entrypoint, image.config.cmd, image.config.user);
/// println!("and stops by {:?}", image.config.stop_signal);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program, before [`cmd`](Self::cmd).
    pub entrypoint: Vec<String>,
    /// The program, or its default arguments where there is an entry point.
    pub cmd: Vec<String>,
    /// The environment, in order.
    pub env: Vec<(String, String)>,
    /// The working directory; empty for the root.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`, by the image's own `/etc/passwd`; empty for root.
    pub user: String,
    /// The signal that asks it to stop: a name or a number.
    pub stop_signal: Option<String>,
    /// `80/tcp`, `53/udp`, …
    pub exposed_ports: Vec<String>,
    /// Directories that are meant to hold data.
    pub volumes: Vec<String>,
    /// Free words about the image.
    pub labels: BTreeMap<String, String>,
    /// The architecture, in the names of Go: `amd64`, `arm64`.
    pub architecture: String,
    /// When it was built, as it says itself (RFC 3339).
    pub created: Option<String>,
}

/// The configuration as it is stored, with what only unpacking needs.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) run: ImageConfig,
    pub(crate) os: String,
    /// The digests of the layers unpacked, the lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// The document of the image specification ("OCI Image Configuration"). Docker writes `null` for what is empty.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<Run>,
    rootfs: Rootfs,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Configuration, serde_json::Error> {
    let document: Document = serde_json::from_slice(bytes)?;
    let run = document.config.unwrap_or_default();
    let env = run.env.unwrap_or_default().into_iter().map(|variable| match variable.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (variable, String::new()),
    });
    Ok(Configuration {
        run: ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: env.collect(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: run.volumes.unwrap_or_default().into_keys().collect(),
            labels: run.labels.unwrap_or_default(),
            architecture: document.architecture.unwrap_or_default(),
            created: document.created,
        },
        os: document.os.unwrap_or_default(),
        diff_ids: document.rootfs.diff_ids.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_leaves_empty_is_empty() {
        let nulls = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":null,"Env":null,"Labels":null,
            "ExposedPorts":null,"StopSignal":""},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let parsed = parse(nulls).unwrap();
        assert_eq!(parsed.run, ImageConfig { architecture: "amd64".to_owned(), ..ImageConfig::default() });
        assert!(parse(br#"{"rootfs":{}}"#).unwrap().diff_ids.is_empty());
    }

    #[test]
    fn all_fields_are_read() {
        let full = br#"{"architecture":"arm64","os":"linux","created":"2026-01-01T00:00:00Z","config":{
            "Entrypoint":["/e"],"Cmd":["c","d"],"Env":["A=1=2","B"],"WorkingDir":"/w","User":"1000:50",
            "StopSignal":"SIGINT","ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"Labels":{"l":"v"}},
            "rootfs":{"type":"layers","diff_ids":[]},"history":[{}]}"#;
        let run = parse(full).unwrap().run;
        assert_eq!(
            (&run.entrypoint[..], &run.cmd[..]),
            (&["/e".to_owned()][..], &["c".to_owned(), "d".to_owned()][..])
        );
        let env = [("A".to_owned(), "1=2".to_owned()), ("B".to_owned(), String::new())];
        assert_eq!((run.env, &*run.working_dir, &*run.user), (env.to_vec(), "/w", "1000:50"));
        assert_eq!(
            (run.stop_signal.as_deref(), run.exposed_ports, run.volumes),
            (Some("SIGINT"), vec!["80/tcp".to_owned()], vec!["/data".to_owned()])
        );
        assert_eq!((&*run.labels["l"], run.created.as_deref()), ("v", Some("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn digests_that_are_none_are_refused() {
        assert!(parse(br#"{"rootfs":{"diff_ids":["../../x"]}}"#).is_err());
        assert!(parse(br#"[]"#).is_err());
    }
}
