//! Names for tests: a name server that answers what it was told, and remembers what it was asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Aliases that are followed in one answer.
const MAX_ALIASES: usize = 8;

/// The names, and the questions.
#[derive(Debug, Clone, Default)]
pub struct Zone(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    records: HashMap<Name, Vec<Record>>,
    asked: Vec<(String, RecordType)>,
}

impl Zone {
    /// Has `name` be at `addresses`, and nowhere else, for `ttl_s`.
    pub fn set(&self, name: &str, addresses: &[&str], ttl_s: u32) {
        let data = addresses.iter().map(|address| match address.parse().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        });
        self.put(name, data.collect(), ttl_s);
    }

    /// Has `name` be another name of `target`.
    pub fn alias(&self, name: &str, target: &str) {
        self.put(name, vec![RData::CNAME(CNAME(absolute(target)))], 60);
    }

    /// Has `name` have a text.
    pub fn text(&self, name: &str, text: &str) {
        self.put(name, vec![RData::TXT(TXT::new(vec![text.to_owned()]))], 60);
    }

    fn put(&self, name: &str, data: Vec<RData>, ttl_s: u32) {
        let name = absolute(name);
        let records = data.into_iter().map(|data| Record::from_rdata(name.clone(), ttl_s, data)).collect();
        self.inner().records.insert(name, records);
    }

    /// What was asked for so far, without the last dot.
    pub fn asked(&self) -> Vec<(String, RecordType)> {
        self.inner().asked.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Answers on port 53 of `address`, over UDP and TCP.
    pub(crate) async fn serve(self, address: IpAddr) {
        let udp = UdpSocket::bind((address, 53)).await.unwrap();
        let tcp = TcpListener::bind((address, 53)).await.unwrap();
        let zone = self.clone();
        tokio::spawn(async move {
            let mut query = vec![0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut query).await {
                if let Some(answer) = zone.answer(&query[..length]) {
                    udp.send_to(&answer, from).await.ok();
                }
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                let zone = self.clone();
                tokio::spawn(async move { zone.serve_stream(stream).await.ok() });
            }
        });
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let mut query = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut query).await?;
            let Some(answer) = self.answer(&query) else { return Ok(()) };
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
            stream.write_all(&answer).await?;
        }
    }

    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let mut inner = self.inner();
        let asked = question.name().to_lowercase();
        inner.asked.push((asked.to_string().trim_end_matches('.').to_owned(), question.query_type()));
        let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_desired = true;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        let (mut name, mut known) = (asked, false);
        for _ in 0..MAX_ALIASES {
            let Some(records) = inner.records.get(&name) else { break };
            known = true;
            let mut next = None;
            for record in records {
                if record.record_type() == question.query_type() || record.record_type() == RecordType::CNAME
                {
                    answer.add_answer(record.clone());
                }
                if let RData::CNAME(CNAME(target)) = &record.data {
                    next = Some(target.to_lowercase());
                }
            }
            match next {
                Some(target) => name = target,
                None => break,
            }
        }
        if !known {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.to_vec().ok()
    }
}

fn absolute(name: &str) -> Name {
    let mut name = Name::from_utf8(name).unwrap().to_lowercase();
    name.set_fqdn(true);
    name
}
