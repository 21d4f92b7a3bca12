//! Questions put to the name servers of the host's side, over UDP and, where an answer does not fit, over TCP.
//!
//! An answer counts if it comes from the address that was asked, to the port that asked, with the id and the question
//! that were sent (RFC 5452, 9): ports are the kernel's random ones, ids are random, and each question has both anew.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::servers::{Servers, Upstream};

/// From a question to its answer or to giving up, however many servers are asked: the longest that a C library waits for
/// one server (`RES_MAXRETRANS`). A client that gives up earlier asks again.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time for several servers together to answer, before they are asked again. A single one has all the time.
const ROUNDS: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(15)];
/// When a datagram is repeated that got no answer; each further time after twice as long.
const REPEAT_AFTER: Duration = Duration::from_millis(2500);
/// Least number of attempts of a question that fails at once; there are more with more servers.
const MIN_ATTEMPTS: usize = 2;
/// Questions that wait for name servers at once. Others wait for their turn, within the deadline.
const MAX_IN_FLIGHT: usize = 64;
/// The size of answers over UDP that we announce: what fits into a packet everywhere (DNS flag day 2020).
const PAYLOAD_BYTES: u16 = 1232;
/// What of a datagram is read. Longer ones are no answers.
const DATAGRAM_BYTES: usize = 4096;
/// Datagrams that answer something else, until an attempt is given up: somebody guesses.
const MAX_STRANGERS: usize = 64;
/// The header of a message (RFC 1035, 4.1.1).
const HEADER_BYTES: usize = 12;

/// Asks name servers.
///
/// ```
/// use bouvet_net::dns::Resolver;
///
/// let of_the_host = Resolver::of_file("/etc/resolv.conf");
/// let of_a_description = Resolver::of_servers(vec!["9.9.9.9".parse()?]);
/// # Ok::<(), bouvet_net::dns::UpstreamError>(())
/// ```
#[derive(Debug)]
pub struct Resolver {
    servers: Servers,
    in_flight: Semaphore,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no name server answered within {0:?}")]
    Deadline(Duration),
    #[error("`{server}` could not be asked")]
    Io { server: SocketAddr, source: io::Error },
    #[error("`{server}` did not answer what it was asked")]
    Strange { server: SocketAddr },
    #[error("`{server}` answered {code}")]
    Failed { server: SocketAddr, code: ResponseCode },
}

impl Resolver {
    /// One that asks `servers`, in this order, three at most. Without any it asks as if the host named none.
    pub fn of_servers(servers: Vec<Upstream>) -> Self {
        match servers.is_empty() {
            true => Self::new(Servers::File(PathBuf::new())),
            false => Self::new(Servers::Named(servers.into_iter().map(SocketAddr::from).collect())),
        }
    }

    /// One that asks those that the file `path`, a `resolv.conf`, names when a question is put. If it names none, a
    /// public one is asked: 8.8.8.8.
    pub fn of_file(path: impl Into<PathBuf>) -> Self {
        Self::new(Servers::File(path.into()))
    }

    fn new(servers: Servers) -> Self {
        Self { servers, in_flight: Semaphore::new(MAX_IN_FLIGHT) }
    }

    /// The answer to `question`: a message without errors, or one that says that there is no such name.
    pub(super) async fn ask(&self, question: &Query) -> Result<Message, AskError> {
        let asked = async {
            // Never closed.
            let _turn = self.in_flight.acquire().await;
            self.try_servers(question).await
        };
        timeout(DEADLINE, asked).await.unwrap_or(Err(AskError::Deadline(DEADLINE)))
    }

    async fn try_servers(&self, question: &Query) -> Result<Message, AskError> {
        let servers = self.servers.now().await;
        let (mut attempts, mut failure, mut extended) = (0, None, true);
        for round in ROUNDS {
            let patience = match u32::try_from(servers.len()) {
                Ok(count @ 2..) => round / count,
                _ => DEADLINE,
            };
            for &server in &servers {
                attempts += 1;
                let answer = match timeout(patience, exchange(server, question, extended)).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => {
                        failure = Some(error);
                        continue;
                    }
                    Err(_) => continue,
                };
                match answer.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer),
                    code => {
                        // Servers that do not know EDNS say so in one of these ways (RFC 6891, 7).
                        extended &= !matches!(code, ResponseCode::FormErr | ResponseCode::NotImp);
                        failure = Some(AskError::Failed { server, code });
                    }
                }
            }
            // Only those that said nothing may have more to say.
            if let Some(failure) = failure.take_if(|_| attempts >= MIN_ATTEMPTS) {
                return Err(failure);
            }
        }
        Err(failure.unwrap_or(AskError::Deadline(DEADLINE)))
    }
}

/// Puts `question` to one server: over UDP, and over TCP if it says that its answer does not fit.
async fn exchange(server: SocketAddr, question: &Query, extended: bool) -> Result<Message, AskError> {
    let failed = |source| AskError::Io { server, source };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    if extended {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD_BYTES);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().map_err(|error| failed(io::Error::other(error)))?;
    let answer = by_datagram(server, &bytes, &message).await.map_err(failed)?;
    let answer = answer.ok_or(AskError::Strange { server })?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let answer = by_stream(server, &bytes).await.map_err(failed)?;
    read(&answer, &message).ok_or(AskError::Strange { server })
}

async fn by_datagram(server: SocketAddr, bytes: &[u8], message: &Message) -> io::Result<Option<Message>> {
    // The kernel draws the port, and lets through what comes from the server only.
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let answer = async {
        let mut datagram = vec![0; DATAGRAM_BYTES];
        for _ in 0..MAX_STRANGERS {
            let length = socket.recv(&mut datagram).await?;
            if let Some(answer) = read(&datagram[..length], message) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    };
    let mut wait = REPEAT_AFTER;
    tokio::pin!(answer);
    loop {
        socket.send(bytes).await?;
        if let Ok(answer) = timeout(wait, &mut answer).await {
            return answer;
        }
        wait *= 2;
    }
}

/// The answer over TCP, where each message has its length before it (RFC 1035, 4.2.2).
async fn by_stream(server: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The answer to `asked` in `bytes`, if it is that.
fn read(bytes: &[u8], asked: &Message) -> Option<Message> {
    // One question, before anything is made room for.
    if bytes.len() < HEADER_BYTES || bytes[4..6] != [0, 1] {
        return None;
    }
    let answer = Message::from_vec(bytes).ok()?;
    let fits = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && answer.queries == asked.queries;
    fits.then_some(answer)
}
