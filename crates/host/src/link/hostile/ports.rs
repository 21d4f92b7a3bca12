//! Guests that do not keep to the rules of connections and datagrams.

use std::net::SocketAddr;
use std::sync::Mutex;

use bouvet_wire::limits::TUNNEL_WINDOW_BYTES;
use bouvet_wire::v1::connect_output::Output;
use bouvet_wire::v1::{Connected, Ended, datagrams_output};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::*;
use crate::boxconfig::{PortProtocol, PortSpec};
use crate::ports::{Claim, Entrance, Led, Ports};
use crate::sandbox::Ends;
use crate::sandbox::state::State;
use crate::tunnel::{Call, Unread};

fn said(output: Output) -> Frame<Bytes> {
    prefixed(&v1::ConnectOutput { output: Some(output) })
}

fn data(bytes: usize) -> Output {
    Output::Data(vec![b'x'; bytes].into())
}

#[tokio::test]
async fn connections_that_break_the_rules_break_and_nothing_else() {
    let connected = Output::Connected(Connected {});
    let ended = Output::Ended(Ended {});
    // But for the rule that it breaks, each is complete.
    let wrong = [
        ("data before an answer", vec![data(1), ended.clone()]),
        ("two answers", vec![connected.clone(), connected.clone(), ended.clone()]),
        ("data of nothing", vec![connected.clone(), data(0), ended.clone()]),
        ("data after the end", vec![connected.clone(), ended.clone(), data(1)]),
        ("two ends", vec![connected.clone(), ended.clone(), ended.clone()]),
        ("no end", vec![connected.clone(), data(1)]),
        // One byte more may be about to be sent.
        ("more taken than was sent", vec![connected.clone(), Output::Taken(4), ended.clone()]),
        ("all taken that there is", vec![connected.clone(), Output::Taken(u32::MAX), ended.clone()]),
        ("nothing taken", vec![connected.clone(), Output::Taken(0), ended.clone()]),
    ];
    for (what, outputs) in wrong {
        let link = hasty(move |_| {
            let outputs: Vec<_> = outputs.iter().cloned().map(said).chain([success()]).collect();
            response(stream::iter(outputs))
        })
        .await;
        let mut call = Call::begin(link.client(), v1::ConnectStart { port: 80, tcp: true });
        let over = CancellationToken::new();
        let passed = call.carry(&b"xy"[..], Vec::new(), Unread::Breaks, &over).await;
        assert!(passed.is_err(), "{what}");
        call.farewell().await;
    }
    let link = hasty(move |_| {
        let outputs = [connected.clone(), data(2), ended.clone()].map(said);
        response(stream::iter(outputs.into_iter().chain([success()])))
    })
    .await;
    let mut call = Call::begin(link.client(), v1::ConnectStart { port: 80, tcp: true });
    let mut came = Vec::new();
    call.carry(&b""[..], &mut came, Unread::Breaks, &CancellationToken::new()).await.unwrap();
    assert_eq!(came, b"xx");
}

#[tokio::test]
async fn what_nobody_reads_is_not_held() {
    let link = hasty(|_| {
        let endless = stream::repeat(()).map(|()| said(data(16 * 1024)));
        response(stream::iter([said(Output::Connected(Connected {}))]).chain(endless))
    })
    .await;
    let mut call = Call::begin(link.client(), v1::ConnectStart { port: 80, tcp: true });
    let (near, mut far) = tokio::io::duplex(1);
    let (reader, writer) = tokio::io::split(near);
    let over = CancellationToken::new();
    let (passed, read) = {
        let carry = call.carry(reader, writer, Unread::Breaks, &over);
        let give_up = async {
            // Enough for it to have filled all that it may.
            let mut some = vec![0; 4 * TUNNEL_WINDOW_BYTES];
            let read = far.read_exact(&mut some).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            over.cancel();
            read
        };
        tokio::join!(carry, give_up)
    };
    assert_eq!(read.unwrap(), 4 * TUNNEL_WINDOW_BYTES);
    assert!(passed.is_err());
    // It never ends by itself: from here on time passes only when nothing else can happen.
    drop(far);
    tokio::time::timeout(Duration::from_secs(30), call.farewell()).await.expect("it is cut off");
}

#[tokio::test]
async fn answers_to_nobody_go_nowhere() {
    let link = hasty(|path| {
        assert!(path.ends_with("/Datagrams"), "{path}");
        let datagrams = [
            (77, Bytes::from_static(b"to nobody")),
            (u32::MAX, Bytes::new()),
            // More than a datagram holds.
            (0, vec![b'x'; 100_000].into()),
            (0, Bytes::from_static(b"to whoever asked")),
        ];
        let answer = |(peer, data)| {
            let datagram = datagrams_output::Output::Datagram(v1::Datagram { peer, data });
            prefixed(&v1::DatagramsOutput { output: Some(datagram) })
        };
        response(stream::iter(datagrams.map(answer).into_iter().chain([success()])))
    })
    .await;
    let (_state, state) = watch::channel(State::Running);
    let ends = Ends { client: Some(link.client()), ..Ends::default() };
    let entrance = Entrance::new(state, Arc::new(Mutex::new(ends)));
    let port = PortSpec { host: "127.0.0.1:0".parse().unwrap(), guest: 53, protocol: PortProtocol::Udp };
    let ports = Ports::new(vec![Claim::stake(port)], entrance, Led::default());
    let host = ports.list()[0].host;
    let bystander = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // The guest ends the call each time; the next datagram begins another.
    for _ in 0..2 {
        asker.send_to(b"who?", host).await.unwrap();
        let mut answer = [0; 1000];
        let answered = asker.recv_from(&mut answer);
        let answered: std::io::Result<(usize, SocketAddr)> =
            tokio::time::timeout(Duration::from_secs(30), answered).await.expect("no answer came");
        let (length, from) = answered.unwrap();
        assert_eq!((&answer[..length], from), (&b"to whoever asked"[..], host));
    }
    bystander.try_recv(&mut [0; 100]).unwrap_err();
    ports.close().await;
    UdpSocket::bind(host).await.expect("it is free");
}
