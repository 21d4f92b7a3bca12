//! The name server at a sandbox's gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::sync::{Semaphore, watch};

use super::Transport;
use super::chain::{self, Chain};
use super::question::{self, Unread};
use super::reply::{self, Reason, Reply};
use super::resolver::Resolver;
use crate::address::Class;
use crate::judge::Judge;
use crate::name::Name;
use crate::names::{self, Names};
use crate::own;
#[cfg(fuzzing)]
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::switch::Member;

/// Questions of one sandbox that are being answered; those beyond are not answered at all.
const MAX_PENDING: usize = 256;
/// What an address stays pinned beyond the time that its answer says, for a connection that is only just in time.
const GRACE: Duration = Duration::from_secs(5);
/// The machine that the sandbox is on, at the gateway's address.
const HOST: &str = "host.bouvet.internal";
/// The names that only we give.
const OURS: &str = "bouvet.internal";
/// Names that are nobody's, or each machine's own, and are asked of nobody (RFC 6761, 6.3 and 6.4; RFC 7686, 2). The
/// last tells browsers by its absence that names are answered by policy, and not to ask elsewhere.
const NOBODYS: [&str; 4] = ["localhost", "invalid", "onion", "use-application-dns.net"];

/// Answers one sandbox's questions for names.
#[derive(Debug)]
pub(crate) struct NameServer {
    resolver: Resolver,
    ours: Ours,
    policy: watch::Receiver<Arc<Judge>>,
    names: Arc<Mutex<Names>>,
    pending: Semaphore,
}

/// Who has names that nobody else gives.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) gateway: (Ipv4Addr, Ipv6Addr),
    /// Knows the sandboxes on the same network.
    pub(crate) member: Option<Arc<Member>>,
}

/// What goes back to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The message.
    pub(crate) bytes: Vec<u8>,
    /// What the guest did not get of what it wanted, for whoever counts.
    pub(crate) refused: Option<Refused>,
}

/// A question that was refused, wholly or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What was asked for, if it is a name.
    pub(crate) name: Option<Name>,
    /// Why not.
    pub(crate) refusal: Refusal,
}

/// A reply, and why it says less than it could.
type Judged = (Reply, Option<Refusal>);

impl NameServer {
    /// One that knows `ours`, asks `resolver` what `policy` allows, and pins in `names` what it is told.
    pub(crate) fn new(
        resolver: Resolver,
        ours: Ours,
        policy: watch::Receiver<Arc<Judge>>,
        names: Arc<Mutex<Names>>,
    ) -> Self {
        Self { resolver, ours, policy, names, pending: Semaphore::new(MAX_PENDING) }
    }

    /// The answer to the bytes of a question. Nothing if they are none, or if too many wait for answers; no answer takes
    /// longer than 30 s.
    pub(crate) async fn answer(&self, query: &[u8], transport: Transport) -> Option<Answer> {
        let _pending = self.pending.try_acquire().ok()?;
        let unread =
            |bytes| Some(Answer { bytes, refused: Some(Refused { name: None, refusal: Refusal::Query }) });
        let question = match question::read(query) {
            Ok(question) => question,
            Err(Unread::Ignored) => return None,
            Err(Unread::Rejected { id, op_code, code }) => {
                return unread(reply::rejection(id, op_code, code));
            }
            Err(Unread::Refused { question, code }) => {
                return unread(Reply::empty(code).encode(&question, transport));
            }
        };
        let name = question.name();
        let (reply, refusal) = match &name {
            Some(name) => self.judge(&question.query, name).await,
            None if question.query.name.is_root() => (Reply::empty(ResponseCode::NoError), None),
            // Names of other bytes, and what programs would take for an address.
            None => (Reply::empty(ResponseCode::NXDomain), Some(Refusal::Query)),
        };
        let refused = refusal.map(|refusal| Refused { name, refusal });
        Some(Answer { bytes: reply.encode(&question, transport), refused })
    }

    async fn judge(&self, query: &Query, name: &Name) -> Judged {
        let policy = self.policy();
        if let Some(reply) = self.of_ours(query, name, &policy) {
            return reply;
        }
        if let Err(refusal) = policy.resolve(name) {
            return refused(refusal);
        }
        if !chain::is_passed_on(query.query_type) {
            return (Reply::empty(ResponseCode::NoError), None);
        }
        // In the letters that we write, which are all that is the guest's in what goes out.
        let asked = Query::query(query.name.to_lowercase(), query.query_type);
        match self.resolver.ask(&asked).await {
            Ok(answer) => self.pass_on(query, name, &answer),
            Err(error) => {
                tracing::debug!(%name, error = &error as &dyn std::error::Error, "a name was not resolved");
                let reply = Reply::empty(ResponseCode::ServFail);
                (reply.because(Reason::NoReachableAuthority, "no name server answered"), None)
            }
        }
    }

    /// What of an answer the guest gets, by the policy as it is now that the answer is there.
    pub(super) fn pass_on(&self, query: &Query, name: &Name, answer: &Message) -> Judged {
        let Ok(Chain { mut records, names }) = chain::follow(query, &answer.answers) else {
            return (Reply::empty(ResponseCode::ServFail), None);
        };
        let policy = self.policy();
        // Who is denied is not to be reached by another name either. Those that lead there need not be allowed, too.
        let denial =
            |alias: Name| policy.resolve(&alias).err().filter(|refusal| *refusal != Refusal::NotAllowed);
        let mut aliases = names.iter().filter_map(question::plain);
        if let Some(refusal) = policy.resolve(name).err().or_else(|| aliases.find_map(denial)) {
            return refused(refusal);
        }
        let mut withheld = None;
        records.retain(|record| {
            let Some(address) = address(record) else { return true };
            let is_host = own::is_own(address);
            let admitted = policy.admits_answer(address, is_host);
            if !admitted {
                withheld = Some(of_class(address));
            }
            admitted
        });
        self.pin(name, &mut records);
        let reply = Reply { code: answer.metadata.response_code, records, explanation: None };
        match withheld {
            Some(refusal) => (reply.because(Reason::Blocked, text(refusal)), Some(refusal)),
            None => (reply, None),
        }
    }

    /// Pins the addresses among `records` to `name`, and makes all of them last as long.
    fn pin(&self, name: &Name, records: &mut [Record]) {
        let Some(ttl_s) = records.iter().map(|record| record.ttl).min() else { return };
        let ttl = names::ttl(Duration::from_secs(ttl_s.into()));
        for record in records.iter_mut() {
            record.ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        }
        let addresses: Vec<_> = records.iter().filter_map(address).collect();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.pin(name, &addresses, ttl + GRACE, Instant::now());
    }

    /// The reply to questions that go nowhere: for names that we give, and for such as nobody has.
    fn of_ours(&self, query: &Query, name: &Name, policy: &Judge) -> Option<Judged> {
        let is_within = |zone: &str| {
            name.as_str().strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let nobody = || Some((Reply::empty(ResponseCode::NXDomain), None));
        if name.as_str() == HOST {
            return match policy.opens_host() {
                true => Some((of_addresses(query, self.ours.gateway), None)),
                false => Some(refused(Refusal::Host)),
            };
        }
        if is_within(OURS) || NOBODYS.into_iter().any(is_within) {
            return nobody();
        }
        if is_within("in-addr.arpa") || is_within("ip6.arpa") {
            let net = query.name.parse_arpa_name().ok();
            let address = net.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr());
            // Whose machines have which addresses is nobody's business out there.
            return match address.map(Class::of) {
                Some(Class::Public) => None,
                _ => nobody(),
            };
        }
        // What has a dot may be somebody's out there.
        let member = self.ours.member.as_ref().filter(|_| !name.as_str().contains('.'))?;
        let addresses = member.find(name)?;
        Some((of_addresses(query, (addresses.ipv4.0, addresses.ipv6.0)), None))
    }

    fn policy(&self) -> Arc<Judge> {
        Arc::clone(&self.policy.borrow())
    }
}

fn of_addresses(query: &Query, (ipv4, ipv6): (Ipv4Addr, Ipv6Addr)) -> Reply {
    let data = match query.query_type {
        RecordType::A => Some(RData::A(A(ipv4))),
        RecordType::AAAA => Some(RData::AAAA(AAAA(ipv6))),
        _ => None,
    };
    let ttl_s = u32::try_from(names::MIN_TTL.as_secs()).unwrap_or(0);
    let record = data.map(|data| Record::from_rdata(query.name.clone(), ttl_s, data));
    Reply { records: record.into_iter().collect(), ..Reply::empty(ResponseCode::NoError) }
}

/// The reply to who may not ask: that there is no such name, and why in truth.
///
/// REFUSED would be the truer code, but says that this server does not answer: clients go on to ask their next one, and
/// wait and ask again when there is none. That there is no such name they believe at once.
fn refused(refusal: Refusal) -> Judged {
    (Reply::empty(ResponseCode::NXDomain).because(Reason::Blocked, text(refusal)), Some(refusal))
}

fn text(refusal: Refusal) -> String {
    format!("the sandbox's policy: {refusal}")
}

fn address(record: &Record) -> Option<IpAddr> {
    match record.data {
        RData::A(A(address)) => Some(address.into()),
        RData::AAAA(AAAA(address)) => Some(address.into()),
        _ => None,
    }
}

/// Why an address is not told.
fn of_class(address: IpAddr) -> Refusal {
    match Class::of(address) {
        Class::Loopback => Refusal::Loopback,
        Class::Private => Refusal::Private,
        Class::LinkLocal => Refusal::LinkLocal,
        Class::Metadata => Refusal::Metadata,
        Class::Special => Refusal::Special,
        Class::Public => Refusal::Host,
    }
}

/// The answer to `query` where a name server says `upstream`: what is between the bytes of both, without a socket.
/// Records of the root are taken for such of the name that was asked for.
#[cfg(fuzzing)]
pub fn fuzz(query: &[u8], upstream: &[u8], policy: &Policy) -> Option<Vec<u8>> {
    let judge = Judge { own: policy.clone(), bound: None };
    let (_judge, current) = watch::channel(Arc::new(judge));
    let ours = Ours { gateway: (Ipv4Addr::new(10, 0, 2, 2), Ipv6Addr::LOCALHOST), member: None };
    let server = NameServer::new(Resolver::of_servers(Vec::new()), ours, current, Arc::default());
    let question = question::read(query).ok()?;
    let name = question.name()?;
    let ours = server.of_ours(&question.query, &name, &server.policy());
    let (reply, _) = ours.or_else(|| {
        let mut answer = Message::from_vec(upstream).ok()?;
        // As the resolver has it; other messages may have records without data.
        if answer.metadata.op_code != hickory_proto::op::OpCode::Query {
            return None;
        }
        for record in answer.answers.iter_mut().filter(|record| record.name.is_root()) {
            record.name = question.query.name.clone();
        }
        Some(server.pass_on(&question.query, &name, &answer))
    })?;
    Some(reply.encode(&question, Transport::Udp))
}
