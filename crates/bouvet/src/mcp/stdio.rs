//! MCP over standard input and output: a message a line. Each line that is not a message gets an answer of JSON-RPC.

use std::future::Future;
use std::io;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rmcp::RoleServer;
use rmcp::model::ErrorCode;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use super::message::{Malformed, check, without_mark};

/// The lines of one client. `W` is `None` once it is closed.
pub(crate) struct Stdio<R, W> {
    lines: FramedRead<R, AnyDelimiterCodec>,
    max_line_bytes: usize,
    output: Arc<Mutex<Option<W>>>,
    /// An answer to a line that is not a message. It is written before the next line is read.
    answering: Option<BoxFuture<'static, io::Result<()>>>,
    /// Whether the stream of lines pauses once, as it does after an error.
    pauses: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + Send + 'static> Stdio<R, W> {
    pub(crate) fn new(input: R, output: W, max_line_bytes: usize) -> Self {
        let codec = AnyDelimiterCodec::new_with_max_length(b"\n".into(), b"\n".into(), max_line_bytes);
        Self {
            lines: FramedRead::new(input, codec),
            max_line_bytes,
            output: Arc::new(Mutex::new(Some(output))),
            answering: None,
            pauses: false,
        }
    }

    fn answer(&mut self, malformed: &Malformed) {
        if malformed.is_error {
            tracing::debug!(code = malformed.code.0, "ignoring a malformed error response");
            return;
        }
        self.answering = Some(Box::pin(write(self.output.clone(), malformed.answer())));
    }

    /// The message in `line`. Lines without one are answered, or ignored if they are notifications or empty.
    fn read(&mut self, line: &[u8]) -> Option<RxJsonRpcMessage<RoleServer>> {
        let line = without_mark(line).trim_ascii();
        if line.is_empty() {
            return None;
        }
        let envelope = match check(line) {
            Ok(envelope) => envelope,
            Err(malformed) => {
                self.answer(&malformed);
                return None;
            }
        };
        match serde_json::from_slice(line) {
            Ok(message) => return Some(message),
            Err(_) if envelope.method.is_none() || envelope.id.is_none() => {
                tracing::debug!(line = crate::log::digest(line), "ignoring what is not a message of MCP");
            }
            Err(error) => {
                let text = format!("this is not a message of MCP: {error}");
                let malformed = Malformed::new(ErrorCode::INVALID_REQUEST, text);
                self.answer(&Malformed { id: envelope.id, ..malformed });
            }
        }
        None
    }
}

/// Writes a message as a line.
async fn write<W: AsyncWrite + Unpin>(
    output: Arc<Mutex<Option<W>>>,
    message: impl Serialize,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(&message)?;
    line.push(b'\n');
    let mut output = output.lock().await;
    let output = output.as_mut().ok_or(io::ErrorKind::NotConnected)?;
    output.write_all(&line).await?;
    output.flush().await
}

impl<R, W> Transport<RoleServer> for Stdio<R, W>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        write(self.output.clone(), item)
    }

    /// May be dropped and called again: nothing is lost.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(answering) = &mut self.answering {
                let written = answering.await;
                self.answering = None;
                written.ok()?;
            }
            match self.lines.next().await {
                Some(Ok(line)) => {
                    if let Some(message) = self.read(&line) {
                        return Some(message);
                    }
                }
                Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                    self.pauses = true;
                    let text = format!("a message may have {} bytes", self.max_line_bytes);
                    self.answer(&Malformed::new(ErrorCode::INVALID_REQUEST, text));
                }
                Some(Err(AnyDelimiterCodecError::Io(error))) => {
                    tracing::warn!(%error, "cannot read standard input");
                    return None;
                }
                None if self.pauses => self.pauses = false,
                None => return None,
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.output.lock().await.take();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;

    const PING: &[u8] = br#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
    const MAX: usize = 200;

    /// The ids of the requests in `input`, and the answers to what is not one.
    async fn served(input: &[u8]) -> (Vec<Value>, Vec<Value>) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let mut stdio = Stdio::new(std::io::Cursor::new(input.to_vec()), ours, MAX);
        let mut ids = Vec::new();
        while let Some(message) = stdio.receive().await {
            ids.push(serde_json::to_value(message).unwrap()["id"].clone());
        }
        stdio.close().await.unwrap();
        drop(stdio);
        let mut lines = BufReader::new(theirs).lines();
        let mut answers = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            answers.push(serde_json::from_str(&line).unwrap());
        }
        (ids, answers)
    }

    #[tokio::test]
    async fn malformed_lines_get_json_rpc_errors() {
        for (line, code, id) in [
            (
                &br#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"\ud83d"}}"#[..],
                -32700,
                json!(5),
            ),
            (b"{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"\xff\"}", -32700, json!(5)),
            (b"hello", -32700, Value::Null),
            (b"[]", -32600, Value::Null),
            (b"3", -32600, Value::Null),
            (&[b'x'; MAX + 1], -32600, Value::Null),
        ] {
            let input = [line, b"\n", PING, b"\n"].concat();
            let (ids, answers) = served(&input).await;
            assert_eq!(ids, [json!(7)], "{}", line.escape_ascii());
            assert_eq!(answers.len(), 1, "{}", line.escape_ascii());
            assert_eq!((&answers[0]["error"]["code"], &answers[0]["id"]), (&json!(code), &id));
            assert!(answers[0].as_object().unwrap().contains_key("id"), "null, where it cannot be read");
        }
    }

    #[tokio::test]
    async fn lines_without_a_request_get_no_answer() {
        for line in [
            &b""[..],
            b"\r",
            b" \t",
            br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{}}"#,
            br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"ours"}}"#,
            br#"{"id":1,"error":{}}"#,
        ] {
            let (ids, answers) = served(&[line, b"\n", PING, b"\n"].concat()).await;
            assert!(ids.contains(&json!(7)) && answers.is_empty(), "{}: {answers:?}", line.escape_ascii());
        }
        let marked = [b"\xef\xbb\xbf", PING, b"\r\n"].concat();
        assert_eq!(served(&marked).await, (vec![json!(7)], vec![]), "a byte order mark is ignored");
        assert_eq!(served(PING).await, (vec![json!(7)], vec![]), "the last line needs no end");
        let longest = [PING, &b" ".repeat(MAX - PING.len()), b"\n"].concat();
        assert_eq!(served(&longest).await, (vec![json!(7)], vec![]), "at the limit");
    }
}
