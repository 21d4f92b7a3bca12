//! What goes over the control socket of a context: see `runners/context.py`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use bouvet_wire::limits::{
    MAX_PATH_BYTES, MAX_RESULT_BYTES, MAX_RESULT_ID_BYTES, MAX_RESULT_PARTS, MAX_RESULT_TEXT_BYTES,
};
use bouvet_wire::mime::is_mime_type;
use bouvet_wire::v1;
use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedWriteHalf, pipe};
use tokio::sync::mpsc;

use super::process::Ends;
use super::relay::{Earlier, Relay};

/// The line before a result: a name, a length and perhaps a path for each of its forms.
const MAX_HEADER_BYTES: u64 = 16 * 1024;

/// What a context says.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The cell shows a value.
    Result(v1::ExecResult),
    /// The cell drops what it has shown so far.
    Clear,
    /// The cell has ended, with this exit code.
    Done(u8),
}

/// The service's end of the control socket.
#[derive(Debug)]
pub(super) struct Talk {
    socket: OwnedWriteHalf,
    messages: mpsc::Receiver<Message>,
    /// Relays of the standard output and errors that the process was started with.
    outputs: [Relay; 2],
    /// Whether it is sent the standard input of each run.
    takes_input: bool,
}

impl Talk {
    pub(super) fn new(socket: UnixStream, outputs: [Relay; 2], takes_input: bool) -> Self {
        let (reader, socket) = socket.into_split();
        // Results wait at the context's end, rather than here.
        let (sender, messages) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut reader = BufReader::new(reader);
            // What is not understood ends the conversation, as the socket's end does.
            while let Ok(message) = receive(&mut reader).await {
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Self { socket, messages, outputs, takes_input }
    }

    /// Requests the run of the cell in `file`, whose results are bounded by `limits`, with `ends` for standard streams.
    /// Returns how much of its output and errors came before it.
    pub(super) async fn begin(
        &self,
        file: &Path,
        limits: v1::ResultLimits,
        ends: Ends,
    ) -> io::Result<[Earlier; 2]> {
        let [stdout, stderr] = &self.outputs;
        let stdout = stdout.switch(Some(pipe::Sender::from_owned_fd(ends.stdout)?)).await;
        let stderr = stderr.switch(Some(pipe::Sender::from_owned_fd(ends.stderr)?)).await;
        let v1::ResultLimits { form_bytes, forms_bytes, images_bytes } = limits;
        let room = json!({ "form": form_bytes, "forms": forms_bytes, "images": images_bytes });
        let mut request = json!({ "cell": file, "room": room }).to_string();
        request.push('\n');
        self.send(&request, Some(ends.stdin).filter(|_| self.takes_input).as_ref())?;
        Ok([stdout, stderr])
    }

    /// One request and its answers are under way at a time, so the socket has room for all of it.
    fn send(&self, request: &str, stdin: Option<&OwnedFd>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = stdin.map(|stdin| [stdin.as_fd()]);
        if let Some(fds) = &fds
            && !control.push(SendAncillaryMessage::ScmRights(fds))
        {
            return Err(io::Error::other("too many descriptors"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let message = [IoSlice::new(request.as_bytes())];
        let sent = rustix::net::sendmsg(self.socket.as_ref().as_fd(), &message, &mut control, flags)?;
        if sent == request.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// What it says next; `None` if it will say no more. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }

    /// Says that the run has ended: what was printed so far is all of its output.
    pub(super) async fn end(&self) {
        for output in &self.outputs {
            output.switch(None).await;
        }
    }
}

async fn receive(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Message> {
    let mut line = Vec::new();
    (&mut *reader).take(MAX_HEADER_BYTES).read_until(b'\n', &mut line).await?;
    let header: Value = serde_json::from_slice(&line)?;
    if let Some(code) = header["done"].as_u64() {
        return u8::try_from(code).map(Message::Done).map_err(io::Error::other);
    }
    if header["clear"] == true {
        return Ok(Message::Clear);
    }
    let parts = header["result"].as_array().ok_or(io::ErrorKind::InvalidData)?;
    let mut result = v1::ExecResult {
        id: header["id"].as_str().filter(|id| id.len() <= MAX_RESULT_ID_BYTES).unwrap_or_default().to_owned(),
        update: header["update"] == true,
        earlier: header["earlier"] == true,
        parts: Vec::new(),
    };
    let mut room = MAX_RESULT_BYTES;
    for part in parts {
        let mime_type = part[0].as_str().ok_or(io::ErrorKind::InvalidData)?;
        let bytes = part[1].as_u64().ok_or(io::ErrorKind::InvalidData)?;
        let kept = kept(mime_type, bytes, room);
        let data = body(reader, bytes, kept).await?;
        room -= data.len();
        if result.parts.len() < MAX_RESULT_PARTS && is_mime_type(mime_type) {
            // A form of which only the beginning follows states how long all of it is, and which file has it.
            let all = part[2].as_u64().unwrap_or(bytes).max(bytes);
            let path = part[3].as_str().filter(|path| path.len() <= MAX_PATH_BYTES).unwrap_or_default();
            let (mime_type, omitted_bytes) = (mime_type.to_owned(), all - data.len() as u64);
            result.parts.push(v1::ResultPart { mime_type, data, omitted_bytes, path: path.to_owned() });
        }
    }
    Ok(Message::Result(result))
}

/// How much of a form is kept: all or, but for plain text, nothing.
fn kept(mime_type: &str, bytes: u64, room: usize) -> usize {
    match usize::try_from(bytes) {
        _ if mime_type == "text/plain" => {
            usize::try_from(bytes).unwrap_or(usize::MAX).min(MAX_RESULT_TEXT_BYTES).min(room)
        }
        Ok(bytes) if bytes <= room => bytes,
        _ => 0,
    }
}

/// Reads `bytes`, and keeps the first `kept` of them.
async fn body(reader: &mut (impl AsyncBufRead + Unpin), bytes: u64, kept: usize) -> io::Result<Bytes> {
    let mut data = vec![0; kept];
    reader.read_exact(&mut data).await?;
    let rest = bytes - kept as u64;
    let skipped = tokio::io::copy(&mut (&mut *reader).take(rest), &mut tokio::io::sink()).await?;
    if skipped == rest { Ok(data.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(header: &str, body: &[u8]) -> io::Result<Message> {
        let bytes = [header.as_bytes(), b"\n", body].concat();
        let mut reader = &bytes[..];
        let message = receive(&mut reader).await?;
        assert!(reader.is_empty(), "it read its own bytes and no others");
        Ok(message)
    }

    #[tokio::test]
    async fn forms_in_files_name_them() {
        let path = format!("/{:x<1$}", "", MAX_PATH_BYTES - 1);
        let header = format!(r#"{{"result": [["a/b", 1, 9, "{path}"], ["a/c", 1, 0, "{path}y"]]}}"#);
        let Message::Result(result) = of(&header, b"xy").await.unwrap() else { panic!("it is a result") };
        let omitted: Vec<_> = result.parts.iter().map(|part| (&*part.path, part.omitted_bytes)).collect();
        assert_eq!(omitted, [(&*path, 8), ("", 0)]);
    }

    #[tokio::test]
    async fn results_can_be_replaced_and_dropped() {
        let header = r#"{"result": [], "id": "a", "update": true}"#;
        let (id, update) = ("a".to_owned(), true);
        let result = v1::ExecResult { id, update, ..v1::ExecResult::default() };
        assert_eq!(of(header, b"").await.unwrap(), Message::Result(result));
        assert_eq!(of(r#"{"clear": true}"#, b"").await.unwrap(), Message::Clear);
        for (length, kept) in [(MAX_RESULT_ID_BYTES, MAX_RESULT_ID_BYTES), (MAX_RESULT_ID_BYTES + 1, 0)] {
            let header = format!(r#"{{"result": [], "id": "{:x<length$}"}}"#, "");
            let Message::Result(result) = of(&header, b"").await.unwrap() else { panic!("it is a result") };
            assert_eq!(result.id.len(), kept);
        }
    }

    async fn parts(header: &str, body: &[u8]) -> Vec<(String, usize, u64)> {
        let Message::Result(result) = of(header, body).await.unwrap() else { panic!("it is a result") };
        let parts = result.parts.into_iter();
        parts.map(|part| (part.mime_type, part.data.len(), part.omitted_bytes)).collect()
    }

    #[tokio::test]
    async fn results_hold_at_their_limits_and_not_past_them() {
        let of =
            |mime: &str, bytes: usize| (format!(r#"{{"result": [["{mime}", {bytes}]]}}"#), vec![b'x'; bytes]);
        let (header, body) = of("text/html", MAX_RESULT_BYTES);
        assert_eq!(parts(&header, &body).await, [("text/html".into(), MAX_RESULT_BYTES, 0)]);
        let (header, body) = of("text/html", MAX_RESULT_BYTES + 1);
        assert_eq!(parts(&header, &body).await, [("text/html".into(), 0, MAX_RESULT_BYTES as u64 + 1)]);
        let (header, body) = of("text/plain", MAX_RESULT_TEXT_BYTES + 1);
        assert_eq!(parts(&header, &body).await, [("text/plain".into(), MAX_RESULT_TEXT_BYTES, 1)]);
        let many = vec![r#"["a/b", 1]"#; MAX_RESULT_PARTS + 1].join(",");
        let kept = parts(&format!(r#"{{"result": [{many}]}}"#), &[b'x'; MAX_RESULT_PARTS + 1]).await;
        assert_eq!(kept.len(), MAX_RESULT_PARTS);
        assert_eq!(parts(r#"{"result": [["a/ b", 1], ["", 0]]}"#, b"x").await, []);
    }

    #[tokio::test]
    async fn what_is_not_understood_is_an_error() {
        assert_eq!(of(r#"{"done": 3}"#, b"").await.unwrap(), Message::Done(3));
        for header in [
            "",
            "no JSON",
            "{}",
            r#"{"done": 256}"#,
            r#"{"result": [[1, 1]]}"#,
            r#"{"result": [["a/b", -1]]}"#,
        ] {
            assert!(of(header, b"x").await.is_err(), "{header}");
        }
        assert!(of(r#"{"result": [["a/b", 2]]}"#, b"x").await.is_err(), "it ends too early");
        assert!(of(&format!(r#"{{"done": 0{}}}"#, " ".repeat(20_000)), b"").await.is_err(), "too long");
    }
}
