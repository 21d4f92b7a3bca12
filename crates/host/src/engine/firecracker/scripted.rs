//! A server that behaves as a test has written down: what Firecracker may answer, and what it never should.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What is done about one request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// These bytes are sent.
    Say(String),
    /// Nothing is, for good.
    Hang,
    /// The connection is closed.
    Close,
}

impl Act {
    /// An answer of HTTP.
    pub(super) fn answer(status: u16, body: &str) -> Self {
        Self::Say(format!(
            "HTTP/1.1 {status} So\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// What Firecracker says of a call that it has done.
    pub(super) fn done() -> Self {
        Self::Say("HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".into())
    }
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: serde_json::Value,
}

/// Serves one connection at `path` by `script`, and returns what it was asked.
pub(super) fn serve(path: &Path, script: Vec<Act>) -> JoinHandle<Vec<Asked>> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        let mut asked = Vec::new();
        for act in script {
            let Some(request) = read(&mut stream).await else { break };
            asked.push(request);
            match act {
                Act::Say(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                Act::Hang => tokio::time::sleep(Duration::from_secs(24 * 3600)).await,
                Act::Close => break,
            }
        }
        asked
    })
}

/// One request; `None` at the connection's end.
async fn read(stream: &mut BufReader<UnixStream>) -> Option<Asked> {
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).await.ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let mut words = first.split(' ');
    Some(Asked {
        method: words.next().unwrap().parse().unwrap(),
        path: words.next().unwrap().into(),
        body: match length {
            0 => serde_json::Value::Null,
            _ => serde_json::from_slice(&body).unwrap(),
        },
    })
}
