//! What a guest is answered: a message of our own, with nothing in it that we did not put there. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};

use super::Transport;
use super::question::Question;

/// The size of questions over UDP that we announce.
const PAYLOAD_BYTES: u16 = 1232;
/// The option for extended errors (RFC 8914, 2).
const EXTENDED_ERROR: u16 = 15;

/// Why there is no answer or less of it, for those who understand extended errors (RFC 8914, 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Explanation {
    pub(super) reason: Reason,
    pub(super) text: String,
}

/// The reasons of RFC 8914 that we give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Whoever runs this name server does not want it answered: the policy.
    Blocked = 15,
    /// Upstream, nobody answers.
    NoReachableAuthority = 22,
}

/// An answer to be.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    pub(super) records: Vec<Record>,
    pub(super) explanation: Option<Explanation>,
}

impl Reply {
    pub(super) fn empty(code: ResponseCode) -> Self {
        Self { code, records: Vec::new(), explanation: None }
    }

    pub(super) fn because(mut self, reason: Reason, text: impl Into<String>) -> Self {
        self.explanation = Some(Explanation { reason, text: text.into() });
        self
    }

    /// The bytes of the answer to `question`. What does not fit into a datagram is left out whole, and has to be asked
    /// for over TCP.
    pub(super) fn encode(self, question: &Question, transport: Transport) -> Vec<u8> {
        let message = self.message(question);
        let limit = match transport {
            Transport::Udp => question.datagram_bytes(),
            Transport::Tcp => u16::MAX,
        };
        if let Some(bytes) = within(limit, &message) {
            return bytes;
        }
        let mut shorter = message.truncate();
        if transport == Transport::Tcp {
            // There is no third way.
            shorter.metadata.truncation = false;
            shorter.metadata.response_code = ResponseCode::ServFail;
        }
        within(limit, &shorter).unwrap_or_else(|| {
            // A question and an explanation have fewer bytes than the smallest limit, but it is not ours to panic.
            rejection(question.id, OpCode::Query, ResponseCode::ServFail)
        })
    }

    fn message(self, question: &Question) -> Message {
        let mut message = Message::new(question.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = question.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = question.checking_disabled;
        message.metadata.response_code = self.code;
        message.add_query(question.query.clone());
        message.insert_answers(self.records);
        if question.payload_bytes.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD_BYTES);
            edns.set_rcode_high(self.code.high());
            if let Some(Explanation { reason, text }) = self.explanation {
                let data = [&(reason as u16).to_be_bytes()[..], text.as_bytes()].concat();
                edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
            }
            message.set_edns(edns);
        }
        message
    }
}

fn within(limit_bytes: u16, message: &Message) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    message.emit(&mut encoder).ok()?;
    (bytes.len() <= usize::from(limit_bytes)).then_some(bytes)
}

/// An error to whom nothing else was understood.
pub(super) fn rejection(id: u16, op_code: OpCode, code: ResponseCode) -> Vec<u8> {
    let message = Message::error_msg(id, op_code, code);
    message.to_vec().unwrap_or_default()
}
