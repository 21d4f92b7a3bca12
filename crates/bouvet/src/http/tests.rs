//! The HTTP server over the engine without VMs: real sockets, router, host and guest.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::net::SocketAddr;

use axum::body::Body;
use bouvet_host::Host;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::tests::fake_config;
use crate::mcp::{Grants, Server};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// A server of its own.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    host: Host,
    pub(crate) server: Server,
    end: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with_connections(1000).await
    }

    async fn with_connections(max_connections: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = [
            ("BOUVET_POOL_ENABLED", "false".to_owned()),
            ("BOUVET_ALLOWED_HOSTS", "sandbox.example".to_owned()),
        ];
        let config = fake_config(dir.path(), more);
        let host = Host::start(config.host).await.unwrap();
        let grants = Grants { registries: config.registries, egress: config.egress, expose: config.expose };
        let server = Server::new(host.clone(), config.sandbox, grants);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, end) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(super::serve(
            listener,
            config.http,
            host.clone(),
            server.clone(),
            end.clone(),
            max_connections,
        ));
        Self { address, host, server, end, serving, _dir: dir }
    }

    pub(crate) async fn stop(self) {
        self.end.cancel();
        self.serving.await.unwrap().unwrap();
        self.host.shut_down().await;
    }

    /// The status and body that answer `head`, the lines of a request over HTTP/1.1, with `body`.
    pub(crate) async fn raw(&self, head: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.unwrap_or_else(|| panic!("{head}: {answer}")), body.unwrap_or_default())
    }

    /// The result of a tool, or the text of its error.
    pub(crate) async fn tool(&self, name: &str, arguments: Value) -> Result<Value, String> {
        let params = json!({ "name": name, "arguments": arguments });
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
        let (_, body) = self.raw("POST /mcp HTTP/1.1\r\nhost: localhost", &request.to_string()).await;
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{name}: {body}"));
        let result = &answer["result"];
        match result["isError"] == true {
            true => Err(result["content"][0]["text"].as_str().unwrap_or_default().to_owned()),
            false => Ok(result["structuredContent"].clone()),
        }
    }

    /// The status of a request over HTTP/2 whose `:authority` is that of `uri`, and with these `Host` headers.
    async fn second(&self, uri: &str, hosts: &[&str]) -> u16 {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = hyper::Request::post(uri).header("content-type", "application/json");
        for host in hosts {
            request = request.header("host", *host);
        }
        let response = sender.send_request(request.body(Body::from(PING)).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        drop(sender);
        connection.await.unwrap().unwrap();
        status
    }
}

#[tokio::test]
async fn foreign_names_are_refused_over_each_version() {
    let site = Site::start().await;
    for (target, hosts, expected) in [
        ("/mcp", &["localhost"][..], 200),
        ("/mcp", &["LOCALHOST.:1"], 200),
        ("/mcp", &["[::1]:9"], 200),
        ("/mcp", &["SANDBOX.example."], 200),
        ("/mcp", &["evil.example"], 403),
        ("/mcp", &["EVIL.example.:8080"], 403),
        ("/sandboxes/x/file?path=a", &["evil.example"], 403),
        ("/mcp", &[], 400),
        ("/mcp", &["localhost", "localhost"], 400),
        ("/mcp", &["localhost:65536"], 400),
        ("http://evil.example/mcp", &["localhost"], 403),
        ("http://localhost/mcp", &["evil.example"], 200),
        ("http://localhost/mcp", &["localhost", "evil.example"], 400),
    ] {
        let hosts_text: String = hosts.iter().map(|host| format!("\r\nhost: {host}")).collect();
        let (status, body) = site.raw(&format!("POST {target} HTTP/1.1{hosts_text}"), PING).await;
        assert_eq!(status, expected, "HTTP/1.1 {target} {hosts:?}: {body}");
    }
    for (uri, hosts, expected) in [
        ("http://localhost/mcp", &[][..], 200),
        ("http://127.0.0.1:1/mcp", &[], 200),
        ("http://[::1]:8080/mcp", &["[::1]:8080"], 200),
        ("http://sandbox.EXAMPLE./mcp", &[], 200),
        ("http://evil.example/mcp", &[], 403),
        ("http://EVIL.example.:80/mcp", &[], 403),
        ("http://evil.example/sandboxes/x/file?path=a", &[], 403),
        ("http://evil.example/mcp", &["localhost"], 400),
        ("http://localhost/mcp", &["evil.example"], 400),
        ("http://localhost/mcp", &["localhost", "localhost"], 400),
    ] {
        assert_eq!(site.second(uri, hosts).await, expected, "HTTP/2 {uri} {hosts:?}");
    }
    site.stop().await;
}

#[tokio::test]
async fn health_is_answered_when_all_connections_are_busy() {
    let site = Site::with_connections(2).await;
    let connect = || TcpStream::connect(site.address);
    // Idle ones make room, the oldest first.
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(connect().await.unwrap());
        assert_eq!(site.raw("GET /health HTTP/1.1\r\nhost: x", "").await.0, 200);
    }
    assert_eq!(idle[0].read(&mut [0]).await.unwrap(), 0);
    drop(idle);
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut stream = connect().await.unwrap();
        stream
            .write_all(b"GET /mcp HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
            .await
            .unwrap();
        let mut status = [0; 15];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200 OK");
        busy.push(stream);
    }
    let post = "POST /mcp HTTP/1.1\r\nhost: localhost";
    for _ in 0..20 {
        assert_eq!(site.raw(post, PING).await.0, 503);
        assert_eq!(site.raw("GET /health HTTP/1.1\r\nhost: x", "").await.0, 200);
    }
    drop(busy);
    let served = async {
        while site.raw(post, PING).await.0 != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), served).await.unwrap();
    site.stop().await;
}

#[tokio::test]
async fn bodies_are_refused_by_length_before_they_come() {
    let site = Site::start().await;
    let limit = 6 * 1024 * 1024;
    for length in [limit + 1, 200 << 20] {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        let head = format!("POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{PING}");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The beginning, by which the method is known; nothing of the rest.
        stream.write_all(&vec![b' '; 70 * 1024]).await.unwrap();
        let mut status = [0; 12];
        let read = stream.read_exact(&mut status);
        tokio::time::timeout(std::time::Duration::from_secs(20), read).await.unwrap().unwrap();
        assert_eq!(&status, b"HTTP/1.1 413", "{length}");
    }
    site.stop().await;
}

/// Each number that a tool takes: a call at the bound, and how one past it is refused. A bound that is a limit of this
/// server's configuration is in the test of that.
#[tokio::test]
async fn numbers_of_tools_are_bounded_by_name() {
    let site = Site::start().await;
    let made = site.tool("create_sandbox", json!({ "timeout_secs": 3600 })).await.unwrap();
    let id = made["sandbox_id"].clone();
    let text = json!({ "sandbox_id": id, "path": "a", "content": "text" });
    site.tool("write_file", text).await.unwrap();
    let with = |base: Value, name: &str, value: Value| {
        let mut arguments = base;
        arguments[name] = value;
        arguments
    };
    let run = json!({ "sandbox_id": id, "command": "true" });
    let code = json!({ "sandbox_id": id, "language": "bash", "code": "true" });
    let read = json!({ "sandbox_id": id, "path": "a" });
    let (create, most) = (json!({}), 10 * 1024 * 1024);
    let huge = json!(u64::MAX);
    for (tool, base, name, past, words) in [
        ("create_sandbox", &create, "memory_mib", json!((1 << 20) + 1), "128 to 1048576 MiB"),
        ("create_sandbox", &create, "memory_mib", huge.clone(), "up to 1048576"),
        ("create_sandbox", &create, "vcpu_count", json!(33), "1 to 32"),
        ("create_sandbox", &create, "disk_mib", json!(2049), "1 to 2048 MiB"),
        ("create_sandbox", &create, "timeout_secs", json!(3601), "1 to 3600 s"),
        ("create_sandbox", &create, "timeout_secs", json!(1_u64 << 63), "1 to 3600 s"),
        ("read_file", &read, "offset", json!(1_u64 << 63), "0 to 17592186040320"),
        ("run_command", &run, "timeout_ms", json!(86_400_001), "24 h"),
        ("run_command", &run, "timeout_ms", huge.clone(), "86400000"),
        ("execute_code", &code, "timeout_ms", json!(86_400_001), "24 h"),
        ("execute_code", &code, "timeout_ms", json!(0), "1 ms to 24 h"),
        ("expose_port", &json!({ "sandbox_id": id }), "port", json!(65_536), "1 to 65535"),
        ("read_file", &read, "offset", json!((1_u64 << 44) - 4095), "0 to 17592186040320"),
        ("read_file", &read, "limit_bytes", json!(most + 1), "1 to 10485760"),
        ("read_file", &read, "limit_bytes", json!(0), "1 to 10485760"),
    ] {
        let error = site.tool(tool, with(base.clone(), name, past.clone())).await.unwrap_err();
        assert!(error.contains(words), "{tool} {name} {past}: {error}");
    }
    for (tool, base, name, bound) in [
        ("run_command", &run, "timeout_ms", json!(86_400_000)),
        ("execute_code", &code, "timeout_ms", json!(86_400_000)),
        ("read_file", &read, "offset", json!((1_u64 << 44) - 4096)),
        ("read_file", &read, "limit_bytes", json!(most)),
    ] {
        let result = site.tool(tool, with(base.clone(), name, bound.clone())).await;
        assert!(result.is_ok(), "{tool} {name} {bound}: {result:?}");
    }
    let list = site.tool("list_sandboxes", json!({})).await.unwrap();
    assert_eq!(list["sandboxes"].as_array().map(Vec::len), Some(1), "what was refused made nothing");
    site.tool("destroy_sandbox", json!({ "sandbox_id": id })).await.unwrap();
    site.stop().await;
}

#[test]
fn bounds_table_has_every_number_of_a_tool() {
    let of = |tool: &rmcp::model::Tool| {
        let properties = tool.input_schema["properties"].as_object().cloned().unwrap_or_default();
        let numbers = properties.into_iter().filter(|(_, schema)| schema["type"] == "integer");
        numbers.map(|(name, _)| format!("{} {name}", tool.name)).collect::<Vec<_>>()
    };
    let mut found: Vec<_> = crate::mcp::tools().iter().flat_map(of).collect();
    found.sort();
    assert_eq!(
        found,
        [
            "create_sandbox disk_mib",
            "create_sandbox memory_mib",
            "create_sandbox timeout_secs",
            "create_sandbox vcpu_count",
            "execute_code timeout_ms",
            "expose_port port",
            "read_file limit_bytes",
            "read_file offset",
            "run_command timeout_ms",
        ]
    );
}

#[tokio::test]
async fn wrong_requests_are_answered_in_json() {
    let site = Site::start().await;
    let post = |headers: &str| format!("POST /mcp HTTP/1.1\r\nhost: localhost{headers}");
    let lost = "\r\nmcp-session-id: gone";
    let of = |method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":4,"method":"{method}","params":{params}}}"#)
    };
    let cases = [
        ("GET /nosuch HTTP/1.1\r\nhost: localhost".to_owned(), String::new(), 404, "nothing at `/nosuch`"),
        ("POST /mcp/ HTTP/1.1\r\nhost: localhost".to_owned(), String::new(), 404, "has /mcp"),
        ("POST /health HTTP/1.1\r\nhost: localhost".to_owned(), String::new(), 405, "`Allow`"),
        ("GET /mcp HTTP/1.1\r\nhost: localhost".to_owned(), String::new(), 406, "text/event-stream"),
        (format!("GET /mcp HTTP/1.1\r\nhost: localhost{lost}"), String::new(), 404, "`initialize` again"),
        (post(lost), of("tools/list", "{}"), 404, "`initialize` again"),
        (post(""), of("initialize", "{}"), 200, "`params.protocolVersion`"),
        (post(""), of("tools/lst", "{}"), 200, "tools/list"),
        (post(""), of("tools/call", "{}"), 200, "`params.name`"),
        (post(""), of("tools/call", r#"{"name":"read_file","arguments":[]}"#), 200, "`params.arguments`"),
    ];
    for (head, body, status, words) in cases {
        let (answered, text) = site.raw(&head, &body).await;
        assert_eq!(answered, status, "{head}: {text}");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{head}: {text}"));
        assert!(answer["error"].to_string().contains(words), "{head}: {text}");
        assert!(body.is_empty() || answer["id"] == 4, "{head}: {text}");
    }
    site.stop().await;
}
