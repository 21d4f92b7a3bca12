//! The client of the API.

mod answering;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use self::answering::{Answering, Silence};
use super::API_VERSION;
use super::frame::{Decoder, Frame, FrameError};
use super::shape::FailureView;
use crate::config::{ROOT_SOCKET, SocketChoice};
use crate::failure::Kind;

/// An answer that is one JSON value, at most: a list of everything.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// A line of a stream of JSON.
const MAX_LINE_BYTES: usize = 1024 * 1024;
/// What may be on its way to us in one stream.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// A server that accepted a connection sends its first bytes within this time.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

type Content = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The server says so.
    #[error("{}", .0.error)]
    Refused(FailureView),
    /// There is no server at a place that was named, or it will not have us.
    #[error("could not connect to the server at `{0}`")]
    Connect(PathBuf, #[source] std::io::Error),
    /// A server accepted the connection and sent nothing.
    #[error(
        "the server at `{0}` did not answer within {timeout} s",
        timeout = FIRST_ANSWER_TIMEOUT.as_secs()
    )]
    Silent(PathBuf),
    /// What was sent or came is not HTTP.
    #[error("the connection to the server failed")]
    Http(#[from] hyper::Error),
    /// It cannot be asked.
    #[error("the request could not be made")]
    Request(#[from] hyper::http::Error),
    /// What came is not what the API says.
    #[error("the server's answer is not understood: {0}")]
    Answer(String),
    /// There is no server, and what was named is not among what a command finds by itself.
    #[error(transparent)]
    NoServer(#[from] NoServer),
}

/// No server answers at any place where it could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no bouvet server is running ({tried}). Start one: bouvet serve")]
pub(crate) struct NoServer {
    /// The sockets, in words.
    tried: String,
}

impl NoServer {
    /// `tried` has why nobody answered at each socket.
    fn at(tried: &[(PathBuf, std::io::Error)]) -> Self {
        let name = |(path, error): &(PathBuf, std::io::Error)| match is_nobody(error) {
            true => path.display().to_string(),
            false => format!("{}: {error}", path.display()),
        };
        let names: Vec<_> = tried.iter().map(name).collect();
        let tried = match names.is_empty() {
            true => "BOUVET_SOCKET is off".to_owned(),
            false => format!("socket {}", names.join("; ")),
        };
        Self { tried }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody answers.
    #[error(transparent)]
    NoServer(#[from] NoServer),
    /// A server may be there, and does not serve this user.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl From<FrameError> for CallError {
    fn from(error: FrameError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<serde_json::Error> for CallError {
    fn from(error: serde_json::Error) -> Self {
        Self::Answer(error.to_string())
    }
}

/// Speaks to a server. Cheap to clone; every clone uses the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    sender: SendRequest<Content>,
    /// The socket of a server that may prove silent.
    silence: Option<Arc<Silence>>,
    /// Why this process is the server itself: the reason why running sandboxes are not found.
    alone: Option<NoServer>,
}

impl Client {
    /// Connects to the server that is meant.
    pub(crate) async fn connect(choice: &SocketChoice) -> Result<Self, ConnectError> {
        let (mut paths, is_named) = match choice {
            SocketChoice::Off => (Vec::new(), true),
            SocketChoice::At(path) => (vec![path.clone()], true),
            SocketChoice::Auto(own) => {
                let root = PathBuf::from(ROOT_SOCKET);
                (vec![own.clone(), root], false)
            }
        };
        paths.dedup();
        let mut tried = Vec::new();
        for path in paths {
            match UnixStream::connect(&path).await {
                Ok(stream) => return Ok(Self::over_socket(stream, path).await?),
                Err(error) if is_named && !is_nobody(&error) => {
                    return Err(CallError::Connect(path, error).into());
                }
                Err(error) => tried.push((path, error)),
            }
        }
        Err(NoServer::at(&tried).into())
    }

    /// The same client of a host in this process, which has no other sandboxes than those that have stopped.
    pub(crate) fn alone(self, reason: NoServer) -> Self {
        Self { alone: Some(reason), ..self }
    }

    /// The reason why this process is the server itself, if it is.
    pub(crate) fn no_server(&self) -> Option<&NoServer> {
        self.alone.as_ref()
    }

    /// Speaks over `stream` to the server at `path`, which must not be silent.
    async fn over_socket(stream: UnixStream, path: PathBuf) -> Result<Self, CallError> {
        let silence = Arc::new(Silence { path, is_over_time: AtomicBool::new(false) });
        let (reading, writing) = stream.into_split();
        let stream = tokio::io::join(Answering::new(reading, silence.clone()), writing);
        let client = Self::over(stream).await.map_err(|error| silence.explain(error))?;
        Ok(Self { silence: Some(silence), ..client })
    }

    /// Speaks over `stream`.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, CallError> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(4 * WINDOW_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Calls under way say what went wrong.
            connection.await.ok();
        });
        Ok(Self { sender, silence: None, alone: None })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Content,
    ) -> Result<Response<Incoming>, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://bouvet{path}"))
            .header("content-type", kind)
            .body(body)?;
        let explained = |error: hyper::Error| match &self.silence {
            Some(silence) => silence.explain(error.into()),
            None => error.into(),
        };
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(explained)?;
        let response = sender.send_request(request).await.map_err(explained)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(match (refusal(response).await, &self.alone) {
            (CallError::Refused(failure), Some(reason)) if failure.kind == NOT_FOUND => reason.clone().into(),
            (error, _) => error,
        })
    }

    /// Calls with `told` as JSON, and reads the answer as JSON.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        told: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, CallError> {
        let body = told.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let response = self.send(method, path, "application/json", full(body.into())).await?;
        Ok(serde_json::from_slice(&whole(response).await?)?)
    }

    /// `GET`s JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        self.call(Method::GET, path, NOTHING).await
    }

    /// Has something done that has no answer.
    pub(crate) async fn act(&self, method: Method, path: &str) -> Result<(), CallError> {
        let response = self.send(method, path, "application/json", full(Bytes::new())).await?;
        whole(response).await.map(drop)
    }

    /// `GET`s bytes of any length.
    #[cfg(all(test, feature = "fake"))]
    pub(crate) async fn download(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + Unpin + use<>, CallError> {
        let response = self.send(Method::GET, path, "application/json", full(Bytes::new())).await?;
        Ok(data(response))
    }

    /// `POST`s JSON for bytes of any length.
    pub(crate) async fn fetch(
        &self,
        path: &str,
        told: &serde_json::Value,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + Unpin + use<>, CallError> {
        let body = full(serde_json::to_vec(told)?.into());
        Ok(data(self.send(Method::POST, path, "application/json", body).await?))
    }

    /// `POST`s bytes of any length for JSON values, one in each line.
    pub(crate) async fn upload_for_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Lines<T>, CallError> {
        let body = Content::new(StreamBody::new(content.map_ok(BodyFrame::data)));
        let response = self.send(Method::POST, path, "application/octet-stream", body).await?;
        Ok(Lines { data: Box::pin(data(response)), waiting: Vec::new(), of: std::marker::PhantomData })
    }

    /// `PUT`s bytes of any length.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, CallError> {
        let body = Content::new(StreamBody::new(content.map_ok(BodyFrame::data)));
        let response = self.send(Method::PUT, path, "application/octet-stream", body).await?;
        Ok(serde_json::from_slice(&whole(response).await?)?)
    }

    /// Calls for bytes of any length, and sends others meanwhile.
    pub(crate) async fn exchange(
        &self,
        path: &str,
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<Bytes, CallError>> + Unpin, CallError> {
        let body = Content::new(StreamBody::new(content.map_ok(BodyFrame::data)));
        Ok(data(self.send(Method::POST, path, "application/octet-stream", body).await?))
    }

    /// Calls for JSON values, one in each line.
    pub(crate) async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        told: Option<&(impl Serialize + Sync)>,
    ) -> Result<Lines<T>, CallError> {
        let body = told.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let response = self.send(method, path, "application/json", full(body.into())).await?;
        Ok(Lines { data: Box::pin(data(response)), waiting: Vec::new(), of: std::marker::PhantomData })
    }

    /// Calls for frames, and sends `frames`.
    pub(crate) async fn frames(
        &self,
        method: Method,
        path: &str,
        frames: impl Stream<Item = Frame> + Send + 'static,
    ) -> Result<Frames, CallError> {
        let body = frames.map(|frame| Ok(BodyFrame::data(frame.encode())));
        let body = Content::new(StreamBody::new(body));
        let response = self.send(method, path, "application/vnd.bouvet.frames", body).await?;
        Ok(Frames { data: Box::pin(data(response)), decoder: Decoder::default() })
    }
}

/// The kind of the failure to find a sandbox.
pub(crate) const NOT_FOUND: &str = Kind::NotFound.name();

/// Calls that tell nothing.
pub(crate) const NOTHING: Option<&()> = None;

/// Whether nobody listens there.
fn is_nobody(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

fn full(bytes: Bytes) -> Content {
    Content::new(Full::new(bytes).map_err(|never| match never {}))
}

fn data(response: Response<Incoming>) -> impl Stream<Item = Result<Bytes, CallError>> + Unpin {
    BodyStream::new(response.into_body()).map(|frame| Ok(frame?.into_data().unwrap_or_default()))
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, CallError> {
    let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let collected = limited.collect().await.map_err(|error| CallError::Answer(error.to_string()))?;
    Ok(collected.to_bytes())
}

async fn refusal(response: Response<Incoming>) -> CallError {
    let status = response.status();
    let body = match whole(response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let unclear = || FailureView { error: words(status, &body), kind: String::new(), hint: String::new() };
    CallError::Refused(serde_json::from_slice(&body).unwrap_or_else(|_| unclear()))
}

fn words(status: StatusCode, body: &[u8]) -> String {
    format!(
        "the server answered {status}: {}",
        String::from_utf8_lossy(body).chars().take(200).collect::<String>()
    )
}

type Data = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, CallError>> + Send>>;

/// JSON values that come line by line.
pub(crate) struct Lines<T> {
    data: Data,
    waiting: Vec<u8>,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, CallError> {
        loop {
            if let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.waiting.len() > MAX_LINE_BYTES {
                return Err(CallError::Answer(format!("a line has more than {MAX_LINE_BYTES} bytes")));
            }
            match self.data.next().await {
                Some(bytes) => self.waiting.extend_from_slice(&bytes?),
                None => return Ok(None),
            }
        }
    }
}

/// Frames that come.
pub(crate) struct Frames {
    data: Data,
    decoder: Decoder,
}

impl Frames {
    /// The next; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, CallError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(Some(frame));
            }
            match self.data.next().await {
                Some(bytes) => self.decoder.push(&bytes?),
                None => return self.decoder.end().map(|()| None).map_err(CallError::from),
            }
        }
    }
}

/// A path of the API with its arguments: `name` and values may have any characters.
pub(crate) fn path(parts: &[&str], query: &[(&str, &str)]) -> String {
    let mut text = format!("/v{API_VERSION}");
    for part in parts {
        text.push('/');
        escape(part, &mut text);
    }
    for (index, (name, value)) in query.iter().enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        escape(value, &mut text);
    }
    text
}

fn escape(part: &str, text: &mut String) {
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte))
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_typed_is_one_part_of_the_path() {
        assert_eq!(
            path(&["sandboxes", "a/b ?ü"], &[("path", "/x&y=z")]),
            "/v1/sandboxes/a%2Fb%20%3F%C3%BC?path=%2Fx%26y%3Dz"
        );
        assert_eq!(path(&["sandboxes"], &[]), "/v1/sandboxes");
    }
}
