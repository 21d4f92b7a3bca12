//! Sandboxes on one network, and on others.

use bouvet_net::{Limits, Refusal, Sockets, Switch};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use smoltcp::wire::TcpControl;

use crate::craft::{Segment, datagram, echo, tcp};
use crate::{Sandbox, is_reset};

const WEB: &str = "10.1.2.2";
const DB: &str = "10.1.2.3";
const GATEWAY: &str = "10.1.2.1";

fn on(switch: &Switch, name: &str) -> Sandbox {
    let sandbox = Sandbox::on(Some(switch.join().unwrap()), &Sockets::new(4096), &[], Limits::default());
    sandbox.network.set_names(vec![name.parse().unwrap()]);
    sandbox
}

/// `web` and `db` of one network, and one of another that has the same addresses.
fn three() -> (Sandbox, Sandbox, Sandbox) {
    let [one, other] = [(); 2].map(|()| Switch::new("10.1.2.0/24".parse().unwrap()));
    (on(&one, "web"), on(&one, "db"), on(&other, "db"))
}

fn syn(from: &str, to: &str) -> Segment<'static> {
    Segment {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        control: TcpControl::Syn,
        number: 1,
        answers: None,
        payload: &[],
    }
}

/// Has the gateway answer, after all that was sent before.
async fn hears_nothing(sandbox: &mut Sandbox, own: &str) {
    sandbox.send(echo(own, GATEWAY, b"last")).await;
    let packet = sandbox.hear().await;
    assert!(packet.ends_with(b"last") && packet[20] == 0, "{packet:?}");
}

async fn ask(sandbox: &mut Sandbox, name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let query = query.to_vec().unwrap();
    sandbox.send(datagram(&format!("{WEB}:1000"), &format!("{GATEWAY}:53"), &query)).await;
    let packet = sandbox.hear().await;
    Message::from_vec(&packet[28..]).unwrap()
}

#[tokio::test]
async fn packets_of_every_kind_reach_a_neighbour_as_they_are() {
    let (web, mut db, mut other) = three();
    let (from, to) = (format!("{WEB}:1000"), format!("{DB}:5432"));
    let echo_reply = {
        // As the kernel of a neighbour would answer.
        let mut bytes = echo(WEB, DB, b"ping").to_vec();
        bytes[20] = 0;
        bytes[22..24].fill(0);
        let sum: u32 = bytes[20..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        bytes[22..24].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    for packet in [
        tcp(&syn(&from, &to)),
        tcp(&Segment { control: TcpControl::Psh, answers: Some(9), payload: b"bytes", ..syn(&from, &to) }),
        datagram(&from, &to, b"datagram"),
        datagram("[fd00:b0e7:a01:200::2]:1", "[fd00:b0e7:a01:200::3]:2", b"datagram"),
        echo(WEB, DB, b"ping"),
        echo_reply.into(),
    ] {
        web.send(packet.clone()).await;
        assert_eq!(db.hear().await, packet);
    }
    assert_eq!(web.network.counts().refused, [].into());
    hears_nothing(&mut other, WEB).await;
}

#[tokio::test]
async fn who_is_not_on_it_is_refused() {
    let (mut web, mut db, _other) = three();
    // Nobody's address, and its last.
    for to in ["10.1.2.4:80", "10.1.2.255:80"] {
        web.send(tcp(&syn(&format!("{WEB}:1000"), to))).await;
        assert!(is_reset(&web.hear().await));
    }
    assert_eq!(web.refused(Refusal::Sandbox), 2);
    // In another's name.
    for from in ["10.1.2.3:1", "10.1.2.1:1", "10.0.2.15:1"] {
        web.send(datagram(from, &format!("{DB}:1"), b"lie")).await;
    }
    hears_nothing(&mut db, DB).await;
    hears_nothing(&mut web, WEB).await;
    assert_eq!(web.refused(Refusal::Source), 3);
    // What answers is for neighbours alone.
    let mut answer = echo(WEB, "93.184.215.14", b"").to_vec();
    (answer[20], answer[22]) = (0, answer[22] + 8);
    web.send(answer.into()).await;
    hears_nothing(&mut web, WEB).await;
    assert_eq!(web.refused(Refusal::Protocol), 1);
}

#[tokio::test]
async fn who_has_ended_or_left_is_not_reached() {
    let (mut web, db, _other) = three();
    let to = format!("{DB}:80");
    drop((db.inbound, db.outbound));
    web.send(tcp(&syn(&format!("{WEB}:1000"), &to))).await;
    assert!(is_reset(&web.hear().await), "it has stopped");
    let (inbound, outbound) = db.network.attach();
    let mut db = Sandbox { inbound, outbound, ..db };
    let packet = tcp(&syn(&format!("{WEB}:1000"), &to));
    web.send(packet.clone()).await;
    assert_eq!(db.hear().await, packet, "it was started again");
    db.network.leave();
    web.send(packet).await;
    assert!(is_reset(&web.hear().await));
}

#[tokio::test]
async fn neighbours_know_each_other_by_name() {
    let (mut web, db, _other) = three();
    let answer = ask(&mut web, "DB.", RecordType::A).await;
    assert!(matches!(answer.answers[0].data, RData::A(address) if address.to_string() == DB));
    let answer = ask(&mut web, "db.", RecordType::AAAA).await;
    assert!(
        matches!(answer.answers[0].data, RData::AAAA(address) if address.to_string() == "fd00:b0e7:a01:200::3")
    );
    assert!(ask(&mut web, "db.", RecordType::TXT).await.answers.is_empty());
    // A name that is somebody's is not a sandbox's to have.
    db.network.set_names(["localhost", "db.invalid"].map(|name| name.parse().unwrap()).into());
    for name in ["localhost.", "db.invalid."] {
        assert!(ask(&mut web, name, RecordType::A).await.answers.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn who_takes_nothing_keeps_no_neighbour_from_anything() {
    let (mut web, db, _other) = three();
    for _ in 0..2000 {
        web.send(datagram(&format!("{WEB}:1"), &format!("{DB}:1"), &[7; 1400])).await;
    }
    hears_nothing(&mut web, WEB).await;
    drop(db);
}
