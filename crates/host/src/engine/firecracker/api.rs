//! A client of Firecracker's API: HTTP/1.1 with JSON, over a Unix socket. Each call has a deadline, and what the VMM
//! answers is bounded: a guest that has taken it over speaks through it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::calls::{Call, Version};

/// How long the VMM may take to open its socket, and how often we look.
const SOCKET_DEADLINE: Duration = Duration::from_secs(10);
const SOCKET_POLL: Duration = Duration::from_millis(1);
/// An answer is a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why the VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Its socket was not there, or could not be connected to.
    #[error("could not connect to the VMM's API at `{0}`")]
    Connect(PathBuf, #[source] io::Error),
    /// HTTP failed: most often because the VMM has ended.
    #[error("the VMM did not answer `{call}`")]
    Http {
        /// What was asked.
        call: &'static str,
        /// What HTTP says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the VMM did not answer `{call}` within {deadline:?}")]
    Deadline {
        /// What was asked.
        call: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// It refused, in its own words.
    #[error("the VMM refused `{call}` ({status}): {message}")]
    Fault {
        /// What was asked.
        call: &'static str,
        /// The status of HTTP.
        status: StatusCode,
        /// Its `fault_message`.
        message: String,
    },
    /// Its answer is none that its API knows.
    #[error("the VMM's answer to `{call}` cannot be read")]
    Garbage {
        /// What was asked.
        call: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// The form of every refusal: `Error` in the API's description.
#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

/// A connection to one VMM.
#[derive(Debug)]
pub(super) struct Api(SendRequest<Full<Bytes>>);

impl Api {
    /// Connects to the socket at `path`, once it is there.
    pub(super) async fn connect(path: &Path) -> Result<Self, ApiError> {
        let stream = connect_when_there(path).await;
        let stream = stream.map_err(|error| ApiError::Connect(path.to_owned(), error))?;
        let shaken = handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            shaken.map_err(|error| ApiError::Connect(path.to_owned(), io::Error::other(error)))?;
        // It ends with the VMM; calls under way hear of it.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// What the VMM is: `GET /version`, which every release since 1.0 has.
    pub(super) async fn version(&mut self) -> Result<Version, ApiError> {
        let (call, deadline) = ("GET /version", Duration::from_secs(5));
        let answer = self.exchange(call, Method::GET, "/version", Bytes::new(), deadline).await?;
        serde_json::from_slice(&answer).map_err(|source| ApiError::Garbage { call, source })
    }

    /// Makes `call`, and waits until the VMM says that it is done.
    pub(super) async fn make(&mut self, call: &Call<'_>) -> Result<(), ApiError> {
        let name = call.name();
        let body = call.body().map_err(|source| ApiError::Garbage { call: name, source })?;
        self.exchange(name, call.method(), call.path(), body.into(), call.deadline()).await.map(drop)
    }

    async fn exchange(
        &mut self,
        call: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ApiError> {
        let failed = |source| ApiError::Http { call, source };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| failed(error.into()))?;
        let answered = tokio::time::timeout(deadline, async {
            self.0.ready().await.map_err(|error| failed(error.into()))?;
            let answer = self.0.send_request(request).await.map_err(|error| failed(error.into()))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(failed)?;
            Ok((status, body.to_bytes()))
        });
        let (status, body) = answered.await.map_err(|_| ApiError::Deadline { call, deadline })??;
        if status.is_success() {
            return Ok(body);
        }
        let message = match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => fault.fault_message,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        };
        Err(ApiError::Fault { call, status, message })
    }
}

/// Connects to a socket that is about to be there.
async fn connect_when_there(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + SOCKET_DEADLINE;
    loop {
        match connect(path).await {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    tokio::time::sleep(SOCKET_POLL).await;
                }
                _ => return Err(error),
            },
            Ok(stream) => return Ok(stream),
        }
    }
}

/// Connects to the socket at `path`: itself, and not what a taken-over VMM, whose directory this is, may have linked
/// there. By its descriptor the path is also short enough, wherever it lies: the limit is 107 bytes (unix(7)).
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode).is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "what the VMM left there is no socket"));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Act, Asked, serve};
    use super::*;

    /// What comes of the call Pause when `act` is what is done about it.
    async fn pause_answered_by(act: Act) -> Result<(), ApiError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let served = serve(&socket, vec![act]);
        let mut api = Api::connect(&socket).await.unwrap();
        let made = api.make(&Call::Pause).await;
        served.abort();
        made
    }

    #[tokio::test]
    async fn a_call_is_asked_as_it_is_and_answered() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let version = Act::answer(200, r#"{"firecracker_version":"1.16.1"}"#);
        let served = serve(&socket, vec![version, Act::done()]);
        let mut api = Api::connect(&socket).await.unwrap();
        assert_eq!(api.version().await.unwrap().firecracker_version, "1.16.1");
        api.make(&Call::Pause).await.unwrap();
        let get = Asked { method: Method::GET, path: "/version".into(), body: serde_json::Value::Null };
        let body = serde_json::json!({ "state": "Paused" });
        let patch = Asked { method: Method::PATCH, path: "/vm".into(), body };
        assert_eq!(served.await.unwrap(), [get, patch]);
    }

    #[tokio::test]
    async fn a_fault_is_told_in_firecracker_s_words() {
        let fault = Act::answer(400, r#"{"fault_message":"Invalid memory size"}"#);
        let error = pause_answered_by(fault).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(text, "the VMM refused `PATCH /vm Paused` (400 Bad Request): Invalid memory size");
    }

    #[tokio::test]
    async fn a_fault_in_no_known_form_is_told_as_it_came() {
        let error = pause_answered_by(Act::answer(503, "try later")).await.unwrap_err();
        assert!(matches!(&error, ApiError::Fault { message, .. } if message == "try later"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_does_not_answer_is_given_up() {
        let error = pause_answered_by(Act::Hang).await.unwrap_err();
        assert!(matches!(error, ApiError::Deadline { call: "PATCH /vm Paused", .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_stops_amid_its_answer_is_given_up() {
        let half = Act::Say("HTTP/1.1 400 Bad\r\nContent-Length: 50\r\n\r\n{\"fault".into());
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let _served = serve(&socket, vec![half, Act::Hang]);
        let mut api = Api::connect(&socket).await.unwrap();
        let error = api.make(&Call::Pause).await.unwrap_err();
        assert!(matches!(error, ApiError::Deadline { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_vmm_that_ends_or_speaks_no_http_is_noticed() {
        let says =
            ["", "not http\r\n\r\n", "HTTP/1.1 204", "HTTP/1.1 400 Bad\r\nContent-Length: 50\r\n\r\n{"];
        let acts = says.into_iter().map(|say| Act::Say(say.into())).chain([Act::Close]);
        for act in acts {
            let error = pause_answered_by(act.clone()).await.unwrap_err();
            assert!(matches!(error, ApiError::Http { call: "PATCH /vm Paused", .. }), "{act:?}: {error}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_kept() {
        let endless = "x".repeat(MAX_ANSWER_BYTES + 1);
        let error = pause_answered_by(Act::answer(400, &endless)).await.unwrap_err();
        assert!(matches!(error, ApiError::Http { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_version_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (index, body) in ["", "[]", "{}", r#"{"firecracker_version":1}"#].into_iter().enumerate() {
            let socket = dir.path().join(index.to_string());
            let _served = serve(&socket, vec![Act::answer(200, body)]);
            let error = Api::connect(&socket).await.unwrap().version().await.unwrap_err();
            assert!(matches!(error, ApiError::Garbage { call: "GET /version", .. }), "{body}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let error = Api::connect(&socket).await.unwrap_err();
        assert!(matches!(error, ApiError::Connect(..)), "{error}");
        let (connected, _served) = tokio::join!(Api::connect(&socket), async {
            tokio::time::sleep(SOCKET_DEADLINE / 2).await;
            drop(serve(&socket, Vec::new()));
        });
        connected.unwrap();
    }

    #[tokio::test]
    async fn a_link_in_a_socket_s_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (elsewhere, link) = (dir.path().join("of-the-host"), dir.path().join("api.sock"));
        let served = serve(&elsewhere, Vec::new());
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert_eq!(connect(&link).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::fs::remove_file(&link).unwrap();
        std::fs::write(&link, "a file").unwrap();
        assert_eq!(connect(&link).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(!served.is_finished(), "nobody has connected");
    }

    #[tokio::test]
    async fn sockets_in_deep_directories_can_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let _served = serve(&dir.path().join("api.sock"), Vec::new());
        std::fs::rename(dir.path().join("api.sock"), deep.join("api.sock")).unwrap();
        Api::connect(&deep.join("api.sock")).await.unwrap();
    }
}
