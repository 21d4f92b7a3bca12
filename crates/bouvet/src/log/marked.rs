//! Every surface is given marked contents, with the log at every level: no mark may be in the log.
#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bouvet_host::{BoxConfig, NetworkMode};
use bytes::Bytes;
use futures_util::stream;
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::api::client::path;
use crate::api::frame::Frame;
use crate::api::shape::{ExecView, SandboxView};
use crate::{api, http, mcp, serve};

const MARK: &str = "marked-7f3a";

#[derive(Debug, Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Written {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn call(id: u32, method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()
}

async fn over_http(site: &http::tests::Site) {
    let env = json!({ "TOKEN": MARK });
    let made = site.tool("create_sandbox", json!({ "env": env })).await.unwrap();
    let id = made["sandbox_id"].as_str().unwrap().to_owned();
    let code = format!("cat; echo $TOKEN; echo {MARK} >&2; exit 3");
    let run = json!({ "sandbox_id": id, "command": code, "stdin": MARK, "env": env });
    assert_eq!(site.tool("run_command", run).await.unwrap()["exit_code"], 3);
    for language in ["bash", "python"] {
        let run = json!({ "sandbox_id": id, "language": language, "code": MARK, "stdin": MARK, "env": env });
        site.tool("execute_code", run).await.unwrap();
    }
    let file = json!({ "sandbox_id": id, "path": MARK, "content": MARK });
    site.tool("write_file", file).await.unwrap();
    site.tool("read_file", json!({ "sandbox_id": id, "path": MARK })).await.unwrap();
    // What is refused.
    for (tool, arguments) in [
        ("run_command", json!({ "sandbox_id": id, "command": format!("{MARK}\0") })),
        ("run_command", json!({ "sandbox_id": id, "command": MARK, "env": { MARK: format!("{MARK}\0") } })),
        ("run_command", json!({ "sandbox_id": id, "command": [MARK] })),
        ("run_command", json!({ "sandbox_id": id, "command": MARK, "cwd": format!("/{MARK}") })),
        ("run_command", json!({ "sandbox_id": MARK, "command": MARK })),
        ("execute_code", json!({ "sandbox_id": id, "language": MARK, "code": MARK })),
        ("create_sandbox", json!({ MARK: MARK })),
        ("create_sandbox", json!({ "env": { "A": format!("{MARK}\0") } })),
        ("create_sandbox", json!({ "working_dir": MARK, "user": format!("{MARK}:a:b") })),
        ("create_sandbox", json!({ "user": MARK })),
        (MARK, json!({ MARK: MARK })),
    ] {
        let answered = site.tool(tool, arguments).await;
        assert!(answered.is_err() || answered == Ok(Value::Null), "{tool}: {answered:?}");
    }
    let post = "POST /mcp HTTP/1.1\r\nhost: localhost";
    for body in [
        format!("{{\"{MARK}"),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{MARK}","params":{{"a":"{MARK}"}}}}"#),
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":7,"a":"{MARK}"}}}}"#),
    ] {
        site.raw(post, &body).await;
    }
    let put = format!("PUT /sandboxes/{id}/file?path={MARK} HTTP/1.1\r\nhost: localhost");
    assert_eq!(site.raw(&put, MARK).await.0, 200);
    site.tool("destroy_sandbox", json!({ "sandbox_id": id })).await.unwrap();
}

async fn over_stdio(server: &mcp::Server) {
    let client = json!({ "name": "test", "version": "1" });
    let begin = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
    let begun = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let tool = call(2, "tools/call", &json!({ "name": "create_sandbox", "arguments": { "env": MARK } }));
    for lines in [
        vec![call(1, "tools/list", &json!({ "cursor": MARK })), MARK.to_owned()],
        vec![
            call(1, "initialize", &begin),
            begun.to_owned(),
            format!("{{\"{MARK}\""),
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"{MARK}":1}}}}"#),
            format!(r#"{{"jsonrpc":"2.0","id":"{MARK}","error":"{MARK}"}}"#),
            call(9, MARK, &json!({ "a": MARK })),
            tool,
        ],
    ] {
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        let (input, output) = tokio::io::split(theirs);
        let transport = mcp::stdio::Stdio::new(input, output);
        ours.write_all((lines.join("\n") + "\n").as_bytes()).await.unwrap();
        ours.shutdown().await.unwrap();
        serve::attend(server.clone(), transport, &CancellationToken::new()).await;
        ours.read_to_end(&mut Vec::new()).await.unwrap();
    }
}

async fn over_api(site: &api::tests::Site) {
    let env = vec![("TOKEN".to_owned(), MARK.to_owned())];
    let usual = BoxConfig {
        privileged: true,
        extra_env: env,
        name: "one".into(),
        network: NetworkMode::None,
        ..BoxConfig::default()
    };
    let create = path(&["sandboxes"], &[]);
    site.client.call::<SandboxView>(Method::POST, &create, Some(&usual)).await.unwrap();
    for cmd in [format!("/{MARK}"), format!("{MARK}\0")] {
        let config = BoxConfig { cmd: vec![cmd], name: "two".into(), ..usual.clone() };
        assert!(site.client.call::<SandboxView>(Method::POST, &create, Some(&config)).await.is_err());
    }
    assert!(
        site.client.call::<SandboxView>(Method::POST, &create, Some(&json!({ MARK: MARK }))).await.is_err()
    );
    for command in [vec!["cat".to_owned()], vec![format!("/{MARK}")]] {
        let view = ExecView { command, env: [(MARK.into(), MARK.into())].into(), ..ExecView::default() };
        let start = Frame::Start(serde_json::to_vec(&view).unwrap().into());
        let sent = stream::iter([start, Frame::Stdin(Bytes::from(MARK)), Frame::CloseStdin]);
        let exec = path(&["sandboxes", "one", "exec"], &[]);
        if let Ok(mut frames) = site.client.frames(Method::POST, &exec, sent).await {
            while let Ok(Some(_)) = frames.next().await {}
        }
    }
    site.client.act(Method::DELETE, "/v1/sandboxes/one?force=true").await.unwrap();
}

#[tokio::test]
async fn contents_are_not_logged() {
    let (front, api) = (http::tests::Site::start().await, api::tests::Site::start().await);
    for filter in [
        "error",
        "warn",
        "info",
        "bouvet_mcp=debug,info",
        "debug",
        "trace",
        "trace,rmcp=trace,hyper=trace,h2=trace",
    ] {
        let written = Written::default();
        let log = super::subscriber(EnvFilter::new(super::adapted(filter)), written.clone(), false);
        let guard = tracing::subscriber::set_default(log);
        over_http(&front).await;
        over_stdio(&front.server).await;
        over_api(&api).await;
        drop(guard);
        let text = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&text);
        let marked: Vec<_> = text.lines().filter(|line| line.contains(MARK)).collect();
        assert!(marked.is_empty(), "at {filter}: {marked:#?}");
        let is_detailed = filter.contains("debug") || filter.contains("trace");
        assert_eq!(text.contains("bytes, sha256"), is_detailed, "at {filter}: {text}");
    }
    front.stop().await;
    api.alone.end().await;
}
