//! Guests that do not keep to the rules of networks.

use bouvet_net::dns::{ClientSettings, Resolver};
use bouvet_net::{Network, NetworkOptions, Policy, Refusal, Sockets};
use bouvet_wire::limits::MAX_PACKETS_BYTES;
use bouvet_wire::v1::network_output::Output;

use super::*;
use crate::network::attach::{Attached, MAX_PACKETS};

fn network() -> Network {
    Network::new(NetworkOptions {
        member: None,
        policy: Policy::default(),
        bound: None,
        limits: bouvet_net::Limits::default(),
        sockets: Sockets::new(8),
        resolver: Resolver::of_servers(Vec::new()),
        interceptor: None,
    })
}

fn said(output: Option<Output>) -> Frame<Bytes> {
    prefixed(&v1::NetworkOutput { output })
}

fn ready() -> Option<Output> {
    Some(Output::Ready(v1::NetworkReady {}))
}

fn packets(count: usize, bytes: usize) -> Option<Output> {
    Some(Output::Packets(v1::Packets { packets: vec![vec![0; bytes].into(); count] }))
}

/// A link to a guest that says `outputs`, and no more.
async fn saying(outputs: Vec<Option<Output>>) -> Link {
    hasty(move |path| {
        assert!(path.ends_with("/Network"), "{path}");
        let outputs: Vec<_> = outputs.iter().cloned().map(said).collect();
        response(stream::iter(outputs).chain(stream::pending()))
    })
    .await
}

async fn attached(link: &Link, network: &Network) -> Result<Attached, String> {
    Attached::new(link.client(), SandboxId::random(), network, ClientSettings::default()).await
}

#[tokio::test]
async fn a_guest_that_does_not_say_that_its_interface_is_ready_has_no_network() {
    for (what, first) in [("packets", packets(1, 40)), ("nothing", None)] {
        let link = saying(vec![first, ready()]).await;
        let why = attached(&link, &network()).await.unwrap_err();
        assert!(why.contains("ready"), "{what}: {why}");
    }
    let link = hasty(|_| response(stream::iter([success()]))).await;
    let why = attached(&link, &network()).await.unwrap_err();
    assert!(why.contains("ready"), "{why}");
    let link = hasty(|_| {
        let mut response = response(stream::empty());
        response.headers_mut().insert("grpc-status", http::HeaderValue::from_static("9"));
        response.headers_mut().insert("grpc-message", http::HeaderValue::from_static("no%1b[31mTUN"));
        response
    })
    .await;
    let why = attached(&link, &network()).await.unwrap_err();
    assert!(why.contains("TUN") && !why.contains('\u{1b}'), "{why:?}");
}

#[tokio::test]
async fn a_guest_that_says_nothing_of_its_interface_meets_the_deadline() {
    let link = saying(Vec::new()).await;
    // From here on time passes only when nothing else can happen.
    tokio::time::pause();
    let why = attached(&link, &network()).await.unwrap_err();
    assert!(why.contains("no answer within 60s"), "{why}");
}

#[tokio::test]
async fn who_breaks_the_rules_of_packets_has_no_network_any_more() {
    let most = MAX_PACKETS_BYTES / 2;
    // Each is followed by what would be counted.
    let wrong = [
        ("ready twice", ready()),
        ("nothing", None),
        ("too many packets", packets(MAX_PACKETS + 1, 1)),
        ("too many packets of nothing", packets(MAX_PACKETS + 1, 0)),
        (
            "too many bytes",
            Some(Output::Packets(v1::Packets {
                packets: vec![vec![0; most].into(), vec![0; most + 1].into()],
            })),
        ),
    ];
    for (what, output) in wrong {
        let (link, network) = (saying(vec![ready(), output, packets(1, 40)]).await, network());
        let mut attached = attached(&link, &network).await.unwrap();
        let over = tokio::time::timeout(Duration::from_secs(60), attached.over()).await;
        over.unwrap_or_else(|_| panic!("{what}: it goes on"));
        assert_eq!(network.counts().sent_packets, 0, "{what}");
    }
}

#[tokio::test]
async fn as_much_as_may_be_at_once_is_taken() {
    let outputs = vec![ready(), packets(MAX_PACKETS, 0), packets(2, MAX_PACKETS_BYTES / 2), packets(0, 0)];
    let (link, network) = (saying(outputs).await, network());
    let mut attached = attached(&link, &network).await.unwrap();
    let all = MAX_PACKETS as u64 + 2;
    let taken = async {
        while network.counts().refused.get(&Refusal::Malformed) != Some(&all) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        taken = tokio::time::timeout(Duration::from_secs(60), taken) => taken.expect("they were taken"),
        () = attached.over() => panic!("it ended"),
    }
    assert_eq!(network.counts().sent_bytes, MAX_PACKETS_BYTES as u64);
}
