//! The name server and its resolver against servers that say what they are told to, on loopback.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Answer, NameServer, Ours, Resolver, Transport};
use crate::judge::Judge;
use crate::names::Names;
use crate::policy::Policy;
use crate::refusal::Refusal;

mod answers;
mod policy;
mod upstream;

const GATEWAY: ([u8; 4], [u16; 8]) = ([10, 0, 2, 2], [0xfd00, 0xb0e7, 0, 0, 0, 0, 0, 2]);

/// A name server that answers as scripted, over UDP and TCP on one port, and remembers what it was asked.
#[derive(Clone)]
struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Message>>>,
    _tasks: Arc<JoinSet<()>>,
}

impl Scripted {
    /// The script makes datagrams, or TCP messages of which the first is sent, of what was asked.
    async fn start(script: impl Fn(&Message, Transport) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (listener, socket) = one_port().await;
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(script);
        let mut tasks = JoinSet::new();
        let (log, by_datagram) = (Arc::clone(&asked), Arc::clone(&script));
        tasks.spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let message = Message::from_vec(&buffer[..length]).expect("a question");
                log.lock().unwrap().push(message.clone());
                for datagram in by_datagram(&message, Transport::Udp) {
                    socket.send_to(&datagram, from).await.expect("sent");
                }
            }
        });
        let log = Arc::clone(&asked);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = stream.read_u16().await.expect("a length");
                let mut buffer = vec![0; length.into()];
                stream.read_exact(&mut buffer).await.expect("a question");
                let message = Message::from_vec(&buffer).expect("a question");
                log.lock().unwrap().push(message.clone());
                if let Some(answer) = script(&message, Transport::Tcp).first() {
                    stream.write_u16(answer.len().try_into().expect("short")).await.expect("sent");
                    stream.write_all(answer).await.expect("sent");
                }
            }
        });
        Self { address, asked, _tasks: tasks.into() }
    }

    /// One that answers every question with `records`.
    async fn of_records(records: &'static [&'static str]) -> Self {
        Self::start(|asked, _| vec![bytes(&answered(asked, records))]).await
    }

    fn asked(&self) -> Vec<Message> {
        self.asked.lock().unwrap().clone()
    }
}

/// The same port of TCP and UDP: the UDP port of the number may be somebody's.
async fn one_port() -> (TcpListener, UdpSocket) {
    for _ in 0..100 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a TCP port");
        let address = listener.local_addr().expect("an address");
        if let Ok(socket) = UdpSocket::bind(address).await {
            return (listener, socket);
        }
    }
    panic!("no port is free of both TCP and UDP");
}

/// A sandbox's name server, before a scripted one.
struct Site {
    server: NameServer,
    names: Arc<Mutex<Names>>,
    policy: Arc<watch::Sender<Arc<Judge>>>,
    /// For as long as it is asked.
    _upstreams: Vec<Scripted>,
}

impl Site {
    fn new(upstreams: &[&Scripted], policy: Policy) -> Self {
        let upstreams: Vec<_> = upstreams.iter().copied().cloned().collect();
        let addresses =
            upstreams.iter().map(|upstream| upstream.address.to_string().parse().expect("an upstream"));
        let site = Self::of_resolver(Resolver::of_servers(addresses.collect()), policy);
        Self { _upstreams: upstreams, ..site }
    }

    fn of_resolver(resolver: Resolver, policy: Policy) -> Self {
        let (policy, current) = watch::channel(judge(policy));
        let names = Arc::new(Mutex::new(Names::default()));
        let ours = Ours { gateway: (GATEWAY.0.into(), GATEWAY.1.into()), member: None };
        let server = NameServer::new(resolver, ours, current, Arc::clone(&names));
        Self { server, names, policy: Arc::new(policy), _upstreams: Vec::new() }
    }

    /// Asks over UDP, as somebody who knows EDNS.
    async fn ask(&self, name: &str, kind: RecordType) -> (Message, Option<Refusal>) {
        let mut message = question(name, kind);
        message.set_edns(Edns::new());
        self.put(&message, Transport::Udp).await
    }

    async fn put(&self, message: &Message, transport: Transport) -> (Message, Option<Refusal>) {
        let answer = self.server.answer(&bytes(message), transport).await.expect("an answer");
        let refusal = answer.refused.map(|refused| refused.refusal);
        let reply = Message::from_vec(&answer.bytes).expect("a message");
        assert_eq!(
            (reply.metadata.id, reply.metadata.message_type),
            (message.metadata.id, MessageType::Response)
        );
        (reply, refusal)
    }

    fn pinned(&self, address: &str) -> Vec<String> {
        let names = self.names.lock().unwrap().of(address.parse().expect("an address"), Instant::now());
        names.iter().map(ToString::to_string).collect()
    }
}

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy { allow: rules(allow), deny: rules(deny) }
}

fn judge(policy: Policy) -> Arc<Judge> {
    Arc::new(Judge { own: policy, bound: None })
}

fn name(text: &str) -> hickory_proto::rr::Name {
    hickory_proto::rr::Name::from_ascii(format!("{text}.")).expect("a name")
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    message
}

/// A record such as `www.example.com 60 A 93.184.215.14`.
fn record(text: &str) -> Record {
    let [of, ttl_s, kind, data] = text.splitn(4, ' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let data = match kind {
        "A" => RData::A(A(data.parse().expect("IPv4"))),
        "AAAA" => RData::AAAA(AAAA(data.parse().expect("IPv6"))),
        "CNAME" => RData::CNAME(CNAME(name(data))),
        "MX" => RData::MX(MX::new(10, name(data))),
        "TXT" => RData::TXT(TXT::new(vec![data.to_owned()])),
        _ => panic!("{text}"),
    };
    Record::from_rdata(name(of), ttl_s.parse().expect("seconds"), data)
}

/// The answer to `asked`, with `records` whether they belong to it or not.
fn answered(asked: &Message, records: &[&str]) -> Message {
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.add_query(asked.queries[0].clone());
    answer.add_answers(records.iter().map(|text| record(text)));
    answer
}

fn failed(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = answered(asked, &[]);
    answer.metadata.response_code = code;
    answer
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("encoded")
}

fn address(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// The addresses of an answer, in order.
fn addresses(reply: &Message) -> Vec<String> {
    reply.answers.iter().filter_map(address).map(|address| address.to_string()).collect()
}

/// The code and the text of an extended error (RFC 8914).
fn extended(reply: &Message) -> Option<(u16, String)> {
    let options = reply.edns.as_ref()?.options();
    options.options.iter().find_map(|(code, option)| match option {
        hickory_proto::rr::rdata::opt::EdnsOption::Unknown(15, data) => {
            let (code, text) = data.split_first_chunk()?;
            Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).expect("text")))
        }
        _ => panic!("{code:?}"),
    })
}
