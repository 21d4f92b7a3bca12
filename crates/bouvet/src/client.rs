//! A small MCP client over HTTP, and a server to use it on: what `demo` and `bench` are made of.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rmcp::model::CallToolRequestParams;
use rmcp::service::RunningService;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{RoleClient, ServiceExt as _};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, ToSocketAddrs};

/// A server answers its health within this time, or is not going to.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Clones that wait are made within this time, their template included, and this for each of them.
const POOL_DEADLINE: Duration = Duration::from_secs(300);
const CLONE_DEADLINE: Duration = Duration::from_secs(20);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// A program that has a port answers as a Bouvet server within this time, or is not one.
const IS_BOUVET_DEADLINE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Chooses who encrypts for HTTP clients of this process, which refuse to be made before, even where nothing is to be
/// encrypted.
pub(crate) fn prepare_tls() {
    // Somebody else in this process may have chosen already.
    rustls::crypto::ring::default_provider().install_default().ok();
}

/// A connected MCP client.
#[derive(Debug)]
pub struct Client(RunningService<RoleClient, ()>);

impl Client {
    /// Connects to the MCP endpoint at `url`.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        prepare_tls();
        let transport = StreamableHttpClientTransport::from_uri(url);
        let running = ().serve(transport).await.with_context(|| format!("could not connect to {url}"))?;
        Ok(Self(running))
    }

    /// Calls `tool`, and returns its structured result. A result that is an error is an error here.
    pub async fn call(&self, tool: &'static str, arguments: Value) -> anyhow::Result<Value> {
        let Value::Object(arguments) = arguments else { bail!("arguments are an object") };
        let request = CallToolRequestParams::new(tool).with_arguments(arguments);
        let result = self.0.call_tool(request).await.with_context(|| format!("could not call {tool}"))?;
        if result.is_error == Some(true) {
            let texts = result.content.iter().filter_map(|content| content.as_text());
            bail!("{tool}: {}", texts.map(|text| text.text.as_str()).collect::<Vec<_>>().join(" "));
        }
        result.structured_content.with_context(|| format!("{tool} returned no structured content"))
    }

    /// Ends the session.
    pub async fn close(self) {
        // The session ends with its connection, whatever this says.
        self.0.cancel().await.ok();
    }
}

/// A server process of our own, on a free port of the loopback interface. Killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    /// Starts this same binary as a server, with the environment's configuration but for `variables`, transport
    /// and address, and waits until it is healthy.
    pub async fn start(variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        // The port is free again when the server binds it, unless somebody is very quick.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        #[expect(clippy::disallowed_methods, reason = "this is not a VM; it is our own server")]
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null());
        command.env("BOUVET_SOCKET", "off").envs(variables.iter().copied()).env("BOUVET_TRANSPORT", "http");
        command.env("BOUVET_HTTP_HOST", "127.0.0.1").env("BOUVET_HTTP_PORT", address.port().to_string());
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        let child = command.spawn().context("could not start the server")?;
        let mut server = Self { child, address };
        server.wait_until_healthy().await?;
        Ok(server)
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn wait_until_healthy(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while !self.is_healthy().await {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended ({status}); what it said is above");
            }
            ensure!(Instant::now() < deadline, "the server was not healthy within {START_DEADLINE:?}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    async fn is_healthy(&self) -> bool {
        self.health().await.is_ok_and(|health| health["status"] == "healthy")
    }

    /// Waits until as many sandboxes wait ready as should; not at all where none should.
    pub async fn wait_until_pooled(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let health = self.health().await?;
            let size = &health["pool"]["size"];
            if &health["pool"]["ready"] == size {
                return Ok(());
            }
            let clones = size.as_u64().and_then(|size| u32::try_from(size).ok()).unwrap_or(0);
            let deadline = POOL_DEADLINE + CLONE_DEADLINE * clones;
            ensure!(started.elapsed() < deadline, "the pool was not full within {deadline:?}: {health}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// What it says of itself under `/health?details`.
    pub async fn health(&self) -> anyhow::Result<Value> {
        health(self.address).await
    }

    /// Ends the server as its operator would, and waits until it is gone.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        terminate(pid)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server ended badly: {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the server did not end within {STOP_DEADLINE:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What the server at `address` says of itself under `/health?details`.
pub async fn health(address: impl ToSocketAddrs) -> anyhow::Result<Value> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health?details HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok(serde_json::from_str(body)?)
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await?
}

/// Whether a Bouvet server listens on `address`, by its answer to `/health?details`.
pub(crate) async fn is_bouvet(address: SocketAddr) -> bool {
    let mut reached = address;
    if address.ip().is_unspecified() {
        reached.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let answered = tokio::time::timeout(IS_BOUVET_DEADLINE, health(reached)).await;
    matches!(answered, Ok(Ok(health)) if health.get("engine").is_some())
}

fn terminate(pid: i32) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("could not stop the server")
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Gone already after a `stop`; its VMs die with it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
