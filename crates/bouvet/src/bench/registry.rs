//! A registry to pull from: Debian's `docker-registry`, on a port of its own, with images that `umoci` makes and
//! `skopeo` pushes.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr};

use super::{program, sample};

const TOOLS: [&str; 4] = ["docker-registry", "umoci", "skopeo", "ldd"];
/// To compress a layer, or to push an image.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(600);
/// Layers of an image, beside the one with its program.
const LAYERS: u64 = 4;

/// What is not installed of what this needs.
pub(super) fn missing() -> Option<String> {
    let tool = TOOLS.into_iter().find(|tool| program::find(tool).is_none());
    tool.map(|tool| format!("{tool}: not installed"))
}

/// A registry, for as long as this is held.
#[derive(Debug)]
pub(super) struct Registry {
    _process: Child,
    dir: TempDir,
    /// Host and port.
    address: String,
}

impl Registry {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("could not make a directory for a registry")?;
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n",
            storage.display()
        );
        std::fs::write(&config, text)?;
        let mut command = program::command("docker-registry", &["serve", &config.to_string_lossy()]);
        let mut process = command.spawn().context("could not start docker-registry")?;
        let log = BufReader::new(process.stderr.take().context("standard error")?);
        let address = tokio::time::timeout(program::SHORT, listening(log)).await;
        let address = address.context("docker-registry did not start")??;
        Ok(Self { _process: process, dir, address })
    }

    /// Makes an image with `bytes` of files and the program `echo`, and returns by what it can be pulled.
    pub(super) async fn publish(&self, name: &str, bytes: u64) -> anyhow::Result<String> {
        let scratch = tempfile::tempdir_in(self.dir.path())?;
        let layout = scratch.path().join("layout").display().to_string();
        let image = format!("{layout}:{name}");
        umoci(&["init", "--layout", &layout]).await?;
        umoci(&["new", "--image", &image]).await?;
        let layer = scratch.path().join("layer.tar");
        let echo = program::find("echo").context("echo: not installed")?;
        let linked = program::run("ldd", &[&echo.to_string_lossy()], program::SHORT).await?;
        sample::write_program("echo", &echo, &sample::libraries(&linked), File::create(&layer)?)?;
        add(&image, &layer).await?;
        for number in 1..=LAYERS {
            let file = std::io::BufWriter::new(File::create(&layer)?);
            let written = move || sample::write_layer(number, bytes / LAYERS, file);
            tokio::task::spawn_blocking(written).await??;
            add(&image, &layer).await?;
        }
        let reference = format!("{}/{name}", self.address);
        let (from, to) = (format!("oci:{image}"), format!("docker://{reference}"));
        let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", &from, &to];
        program::run("skopeo", &copy, PUBLISH_DEADLINE).await?;
        Ok(reference)
    }
}

async fn add(image: &str, layer: &Path) -> anyhow::Result<()> {
    umoci(&["raw", "add-layer", "--image", image, &layer.to_string_lossy()]).await
}

async fn umoci(arguments: &[&str]) -> anyhow::Result<()> {
    program::run("umoci", arguments, PUBLISH_DEADLINE).await.map(drop)
}

/// Reads the log up to the line that has the address; the rest goes to nobody.
async fn listening(mut log: BufReader<ChildStderr>) -> anyhow::Result<String> {
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(log.read_line(&mut line).await? > 0, "docker-registry ended before it listened");
        if let Some(address) = address(&line) {
            tokio::spawn(async move { tokio::io::copy(&mut log, &mut tokio::io::sink()).await });
            return Ok(address);
        }
    }
}

/// The address in a line of its log, if it says there where it listens.
fn address(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("listening on ")?;
    Some(rest.chars().take_while(|char| char.is_ascii_digit() || matches!(char, '.' | ':')).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_where_it_listens() {
        let line = "time=\"2026-01-01T00:00:00Z\" level=info msg=\"listening on 127.0.0.1:45678\" go.version=go1.19\n";
        assert_eq!(address(line).as_deref(), Some("127.0.0.1:45678"));
        assert_eq!(address("level=info msg=\"using inmemory blob descriptor cache\"\n"), None);
    }
}
