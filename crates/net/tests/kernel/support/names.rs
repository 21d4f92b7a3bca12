//! Names: who answers for them on the internet, and how they are asked for.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::{DEADLINE, SERVERS, World};

/// Where the guest asks.
pub(crate) const GATEWAY: &str = "10.0.2.2:53";

impl World {
    /// Answers for these names, and no other.
    pub(crate) async fn serve_names(&self, names: &[(&str, &str)]) {
        let names: HashMap<Name, IpAddr> =
            names.iter().map(|(name, address)| (absolute(name), address.parse().unwrap())).collect();
        let at: SocketAddr = format!("{}:53", SERVERS[1]).parse().unwrap();
        self.internet(async move {
            let socket = UdpSocket::bind(at).await.unwrap();
            tokio::spawn(async move {
                let mut query = vec![0; 4096];
                while let Ok((length, from)) = socket.recv_from(&mut query).await {
                    let answer = answer(&query[..length], &names);
                    socket.send_to(&answer, from).await.ok();
                }
            });
        })
        .await;
    }
}

fn answer(query: &[u8], names: &HashMap<Name, IpAddr>) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let question = query.queries.first().unwrap().clone();
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    match names.get(&question.name().to_lowercase()) {
        Some(IpAddr::V4(address)) if question.query_type() == RecordType::A => {
            let data = RData::A(A(*address));
            answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
        }
        Some(_) => {}
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    answer.add_query(question);
    answer.to_vec().unwrap()
}

fn absolute(name: &str) -> Name {
    let mut name = Name::from_utf8(name).unwrap().to_lowercase();
    name.set_fqdn(true);
    name
}

/// Asks for the IPv4 addresses of `name`.
pub(crate) fn query(name: &str) -> Vec<u8> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(absolute(name), RecordType::A));
    query.to_vec().unwrap()
}

/// The addresses in an answer.
pub(crate) fn addresses(answer: &[u8]) -> Vec<IpAddr> {
    let answer = Message::from_vec(answer).unwrap();
    answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// The addresses of `name`, as the guest is told at `gateway`.
pub(crate) async fn resolve(gateway: &'static str, name: &'static str) -> Vec<IpAddr> {
    let gateway: SocketAddr = gateway.parse().unwrap();
    let any = if gateway.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.unwrap();
    socket.connect(gateway).await.unwrap();
    socket.send(&query(name)).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = tokio::time::timeout(DEADLINE, socket.recv(&mut answer)).await.unwrap().unwrap();
    addresses(&answer[..length])
}
