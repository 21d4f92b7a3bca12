//! MCP over standard input and output: a message a line. Each line that is not a message gets an answer of JSON-RPC.

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rmcp::RoleServer;
use rmcp::model::{ClientRequest, ErrorCode, JsonObject, JsonRpcMessage};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio_util::codec::{Decoder, FramedRead};

use super::intake::{self, Incoming};
use super::message::{Malformed, without_mark};

/// How much of a line is looked at to find its bound.
const BEGINNING_BYTES: usize = 64 * 1024;

/// The lines of one client. `W` is `None` once it is closed.
pub(crate) struct Stdio<R, W> {
    lines: FramedRead<R, Lines>,
    output: Arc<Mutex<Option<W>>>,
    /// An answer to a line that is not a message. It is written before the next line is read.
    answering: Option<BoxFuture<'static, io::Result<()>>>,
}

/// A line without its end, or one that is longer than a message of its method may be.
#[derive(Debug, PartialEq)]
enum Line {
    Whole(Bytes),
    TooLong { bound: u64 },
}

/// Splits a stream into lines. A line that is too long is dropped as it comes.
#[derive(Debug, Default)]
struct Lines {
    /// Bytes of the line that have no end in them.
    scanned: usize,
    /// `None` until the beginning of the line is there.
    bound: Option<u64>,
    is_dropping: bool,
}

impl Lines {
    /// The bound of the line that begins `source`, if it is exceeded by `length`.
    fn exceeded(&mut self, source: &[u8], length: usize) -> Option<u64> {
        if length <= BEGINNING_BYTES {
            return None;
        }
        let bound = *self.bound.get_or_insert_with(|| intake::bound(&source[..BEGINNING_BYTES]));
        (length as u64 > bound).then_some(bound)
    }
}

impl Decoder for Lines {
    type Item = Line;
    type Error = io::Error;

    fn decode(&mut self, source: &mut BytesMut) -> io::Result<Option<Line>> {
        loop {
            let end =
                source[self.scanned..].iter().position(|byte| *byte == b'\n').map(|at| self.scanned + at);
            let exceeded = match self.is_dropping {
                true => None,
                false => self.exceeded(source, end.unwrap_or(source.len())),
            };
            let Some(end) = end else {
                self.scanned = source.len();
                if self.is_dropping || exceeded.is_some() {
                    self.is_dropping = true;
                    *source = BytesMut::new();
                    self.scanned = 0;
                }
                return Ok(exceeded.map(|bound| Line::TooLong { bound }));
            };
            let line = source.split_to(end + 1);
            // What follows a long line must not keep the memory of that.
            if line.len() > BEGINNING_BYTES {
                *source = BytesMut::from(&source[..]);
            }
            let was_dropping = self.is_dropping;
            *self = Self::default();
            match exceeded {
                _ if was_dropping => {}
                Some(bound) => return Ok(Some(Line::TooLong { bound })),
                None => return Ok(Some(Line::Whole(line.freeze().slice(..end)))),
            }
        }
    }

    /// The last line needs no end.
    fn decode_eof(&mut self, source: &mut BytesMut) -> io::Result<Option<Line>> {
        if let Some(line) = self.decode(source)? {
            return Ok(Some(line));
        }
        *self = Self::default();
        Ok((!source.is_empty()).then(|| Line::Whole(source.split().freeze())))
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + Send + 'static> Stdio<R, W> {
    pub(crate) fn new(input: R, output: W) -> Self {
        Self {
            lines: FramedRead::new(input, Lines::default()),
            output: Arc::new(Mutex::new(Some(output))),
            answering: None,
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
        let read = intake::read(line).and_then(|incoming| match incoming.initialize_fault() {
            Some(fault) => Err(fault),
            None => Ok(incoming),
        });
        let Incoming { envelope, message, arguments } = match read {
            Ok(incoming) => incoming,
            Err(malformed) => {
                self.answer(&malformed);
                return None;
            }
        };
        match serde_json::from_slice(&message) {
            Ok(message) => return Some(with_arguments(message, arguments)),
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

/// The call in `message` with its arguments, which were read apart from it.
fn with_arguments(
    mut message: RxJsonRpcMessage<RoleServer>,
    arguments: Option<JsonObject>,
) -> RxJsonRpcMessage<RoleServer> {
    if let JsonRpcMessage::Request(request) = &mut message
        && let ClientRequest::CallToolRequest(call) = &mut request.request
        && arguments.is_some()
    {
        call.params.arguments = arguments;
    }
    message
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
                Some(Ok(Line::Whole(line))) => {
                    if let Some(message) = self.read(&line) {
                        return Some(message);
                    }
                }
                Some(Ok(Line::TooLong { bound })) => self.answer(&intake::too_long(bound)),
                Some(Err(error)) => {
                    tracing::warn!(%error, "cannot read standard input");
                    return None;
                }
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

    /// The ids of the requests in `input`, and the answers to what is not one.
    async fn served(input: &[u8]) -> (Vec<Value>, Vec<Value>) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let mut stdio = Stdio::new(std::io::Cursor::new(input.to_vec()), ours);
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
    }

    #[tokio::test]
    async fn lines_are_bounded_by_their_method() {
        let ping = |length: usize| {
            let mut line = br#"{"jsonrpc":"2.0","id":7,"method":"ping","params":{"a":""#.to_vec();
            line.resize(length - 3, b' ');
            [&line[..], b"\"}}"].concat()
        };
        let most = usize::try_from(intake::bound(&ping(BEGINNING_BYTES))).unwrap();
        let longest = [PING, &b" ".repeat(most - PING.len()), b"\n", PING].concat();
        assert_eq!(served(&longest).await, (vec![json!(7), json!(7)], vec![]), "at the limit");
        for end in [&b"\n"[..], b" \n"] {
            let (ids, answers) = served(&[&ping(most + 1), end, PING].concat()).await;
            assert_eq!((ids, answers.len()), (vec![json!(7)], 1), "the next line is served");
            let error = &answers[0]["error"];
            assert_eq!(error["code"], -32600);
            assert!(error["message"].as_str().unwrap().contains(&most.to_string()), "{error}");
        }
        // Decoded it is too large, though it is not too long.
        let (ids, answers) = served(&[&ping(2 << 20), &b"\n"[..], PING].concat()).await;
        assert_eq!((ids, &answers[0]["id"]), (vec![json!(7)], &json!(7)));
    }

    #[tokio::test]
    async fn calls_keep_their_arguments() {
        let text = "x".repeat(1 << 20);
        let params = json!({ "name": "run_command", "arguments": { "command": text } });
        let line = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string();
        let (ours, _theirs) = tokio::io::duplex(1024);
        let mut stdio = Stdio::new(std::io::Cursor::new(line.into_bytes()), ours);
        let message = serde_json::to_value(stdio.receive().await.unwrap()).unwrap();
        assert_eq!(message["params"]["arguments"]["command"], text);
    }
}
