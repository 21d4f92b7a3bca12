//! What a guest asks: one question of the Internet's class, strictly read. Pure.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;

use crate::name::Name;

/// The largest question that is read: a name has 255 bytes at most, and options are few.
pub(super) const MAX_QUESTION_BYTES: usize = 1232;
/// The header of a message (RFC 1035, 4.1.1): id, flags, and the four counts.
const HEADER_BYTES: usize = 12;
/// Answers over UDP to those who announce no size (RFC 1035, 4.2.1), and the most that anybody gets.
const PLAIN_PAYLOAD_BYTES: u16 = 512;
const MAX_PAYLOAD_BYTES: u16 = 4096;

/// One question as it was asked.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) id: u16,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    /// With the letters as they were written, which some clients compare.
    pub(super) query: Query,
    /// The size of answers over UDP, of those who know EDNS.
    pub(super) payload_bytes: Option<u16>,
}

impl Question {
    /// How long an answer over UDP may be, in bytes.
    pub(super) fn datagram_bytes(&self) -> u16 {
        self.payload_bytes.unwrap_or(PLAIN_PAYLOAD_BYTES).clamp(PLAIN_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES)
    }

    /// The name that was asked for, if names of the Internet look like that: labels of letters, digits, `-` and `_`.
    pub(super) fn name(&self) -> Option<Name> {
        plain(&self.query.name)
    }
}

/// A name of DNS, whose labels may be any bytes, as one of the Internet's.
pub(super) fn plain(name: &hickory_proto::rr::Name) -> Option<Name> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let labels: Option<Vec<_>> =
        name.iter().map(|label| str::from_utf8(label).ok().filter(|_| label.iter().all(is_plain))).collect();
    labels?.join(".").parse().ok()
}

/// Why bytes are no question that is answered by name.
#[derive(Debug)]
pub(super) enum Unread {
    /// Not even an error is sent back: too short for an id, or an answer itself.
    Ignored,
    /// This code is.
    Rejected { id: u16, op_code: OpCode, code: ResponseCode },
    /// This code is, to somebody whose question was understood.
    Refused { question: Box<Question>, code: ResponseCode },
}

/// Reads what a guest sent.
pub(super) fn read(bytes: &[u8]) -> Result<Question, Unread> {
    let Some((&[id_high, id_low, flags, _, counts @ ..], _)) = bytes.split_first_chunk::<HEADER_BYTES>()
    else {
        return Err(Unread::Ignored);
    };
    let id = u16::from_be_bytes([id_high, id_low]);
    // An answer to an answer would be answered again.
    if flags & 0x80 != 0 {
        return Err(Unread::Ignored);
    }
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let rejected = |code| Unread::Rejected { id, op_code, code };
    if op_code != OpCode::Query {
        return Err(rejected(ResponseCode::NotImp));
    }
    // One question, no answers, no authorities, and nothing additional but EDNS: before anything is made room for.
    if bytes.len() > MAX_QUESTION_BYTES || counts[..7] != [0, 1, 0, 0, 0, 0, 0] || counts[7] > 1 {
        return Err(rejected(ResponseCode::FormErr));
    }
    let message = Message::from_vec(bytes).map_err(|_| rejected(ResponseCode::FormErr))?;
    let expected = message.metadata.message_type == MessageType::Query
        && message.additionals.is_empty()
        && message.signature.is_none();
    let (true, [query]) = (expected, message.queries.as_slice()) else {
        return Err(rejected(ResponseCode::FormErr));
    };
    let edns = message.edns.as_ref();
    let question = Question {
        id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        query: query.clone(),
        payload_bytes: edns.map(hickory_proto::op::Edns::max_payload),
    };
    let refused = |code| Unread::Refused { question: Box::new(question.clone()), code };
    if edns.is_some_and(|edns| edns.version() != 0) {
        return Err(refused(ResponseCode::BADVERS));
    }
    if query.query_class != DNSClass::IN {
        return Err(refused(ResponseCode::Refused));
    }
    Ok(question)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Edns;
    use hickory_proto::rr::RecordType;
    use proptest::prelude::*;

    fn asked(name: &str) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        let name = hickory_proto::rr::Name::from_ascii(name).expect("a name");
        message.add_query(Query::query(name, RecordType::A));
        message
    }

    fn code(bytes: &[u8]) -> Option<ResponseCode> {
        match read(bytes) {
            Ok(_) => Some(ResponseCode::NoError),
            Err(Unread::Ignored) => None,
            Err(Unread::Rejected { id: 7, code, .. }) => Some(code),
            Err(Unread::Refused { question, code }) if question.id == 7 => Some(code),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().expect("encoded")
    }

    #[test]
    fn a_question_is_read_as_it_was_asked() {
        let mut message = asked("Www.Example.COM.");
        message.metadata.recursion_desired = true;
        let question = read(&bytes(&message)).expect("a question");
        assert!(question.recursion_desired && !question.checking_disabled);
        assert_eq!(question.query.name.to_ascii(), "Www.Example.COM.");
        assert_eq!(question.name().expect("a name").as_str(), "www.example.com");
        assert_eq!((question.payload_bytes, question.datagram_bytes()), (None, 512));
        for (announced, given) in [(0, 512), (512, 512), (1232, 1232), (4096, 4096), (65_535, 4096)] {
            let mut edns = Edns::new();
            edns.set_max_payload(announced);
            message.set_edns(edns);
            let question = read(&bytes(&message)).expect("a question");
            assert_eq!(question.datagram_bytes(), given);
        }
    }

    #[test]
    fn what_is_no_plain_question_gets_an_error_or_nothing() {
        assert_eq!(code(&[]), None);
        assert_eq!(code(&bytes(&asked("a."))[..11]), None);
        let mut answer = asked("a.");
        answer.metadata.message_type = MessageType::Response;
        assert_eq!(code(&bytes(&answer)), None);
        for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update, OpCode::Unknown(15)] {
            let mut message = asked("a.");
            message.metadata.op_code = op_code;
            assert_eq!(code(&bytes(&message)), Some(ResponseCode::NotImp));
        }
        let mut two = asked("a.");
        two.add_query(Query::query(hickory_proto::rr::Name::root(), RecordType::NS));
        let mut none = asked("a.");
        none.queries.clear();
        let mut answered = asked("a.");
        answered.add_answer(hickory_proto::rr::Record::from_rdata(
            hickory_proto::rr::Name::root(),
            0,
            hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(10, 0, 0, 1)),
        ));
        let mut cut = bytes(&asked("example.com."));
        cut.truncate(20);
        for wrong in [bytes(&two), bytes(&none), bytes(&answered), cut] {
            assert_eq!(code(&wrong), Some(ResponseCode::FormErr));
        }
    }

    #[test]
    fn other_classes_and_versions_are_refused() {
        for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE] {
            let mut message = asked("version.bind.");
            message.queries[0].set_query_class(class);
            assert_eq!(code(&bytes(&message)), Some(ResponseCode::Refused));
        }
        let mut message = asked("a.");
        let mut edns = Edns::new();
        edns.set_version(1);
        message.set_edns(edns);
        assert_eq!(code(&bytes(&message)), Some(ResponseCode::BADVERS));
    }

    #[test]
    fn the_longest_question_is_read_and_one_byte_more_is_not() {
        let padded = |length: usize| {
            let mut message = asked("example.com.");
            message.set_edns(Edns::new());
            let empty = bytes(&message).len();
            let mut edns = Edns::new();
            let padding = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(12, vec![0; length - empty - 4]);
            edns.options_mut().insert(padding);
            message.set_edns(edns);
            bytes(&message)
        };
        assert_eq!(padded(MAX_QUESTION_BYTES).len(), MAX_QUESTION_BYTES);
        assert_eq!(code(&padded(MAX_QUESTION_BYTES)), Some(ResponseCode::NoError));
        assert_eq!(code(&padded(MAX_QUESTION_BYTES + 1)), Some(ResponseCode::FormErr));
    }

    #[test]
    fn names_of_odd_bytes_are_none_of_the_internets() {
        let named = |labels: &[&[u8]]| {
            plain(&hickory_proto::rr::Name::from_labels(labels.iter().copied()).expect("a name"))
                .map(|name| name.to_string())
        };
        assert_eq!(named(&[b"_dmarc", b"Example", b"com"]), Some("_dmarc.example.com".into()));
        assert_eq!(named(&[b"evil.com\0", b"example", b"com"]), None);
        assert_eq!(named(&[b"a.b", b"com"]), None);
        assert_eq!(named(&[b"*", b"com"]), None);
        assert_eq!(named(&["ü".as_bytes(), b"com"]), None);
        assert_eq!(named(&[]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1400)) {
            drop(read(&bytes));
        }

        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300), more in 0..2_u8) {
            let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, more];
            bytes.extend(body);
            drop(read(&bytes));
        }
    }
}
