//! What is allowed by name, and what becomes of connections when a policy changes.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use bouvet_net::Refusal;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use crate::support::{
    DEADLINE, GATEWAY, Wants, World, connect, converse, echo, joined, policy, resolve, with_world,
};

/// A name that was only said proves nothing of an address.
#[test]
fn a_new_policy_by_names_keeps_what_was_resolved_to_them_and_says_so() {
    with_world(Wants::default(), async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        for address in ["93.184.215.14:443", "93.184.215.15:443"] {
            drop(world.serve(address, hearing).await);
        }
        let (open, is_open) = tokio::sync::oneshot::channel();
        let (changed, is_changed) = tokio::sync::oneshot::channel::<()>();
        let guest = world.begin(async move {
            assert_eq!(resolve(GATEWAY, "www.example.com").await.len(), 1);
            let mut streams = Vec::new();
            for (address, said) in [
                ("93.184.215.14:443", greeting("www.example.com")),
                ("93.184.215.15:443", greeting("www.example.com")),
                ("93.184.215.14:443", greeting("93.184.215.14")),
                ("93.184.215.14:443", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
            ] {
                let mut stream = connect(address).await.unwrap();
                stream.write_all(&said).await.unwrap();
                stream.read_exact(&mut vec![0; said.len()]).await.unwrap();
                streams.push(stream);
            }
            open.send(()).unwrap();
            is_changed.await.unwrap();
            let [kept, broken @ ..] = &mut streams[..] else { panic!("there are four") };
            for stream in broken {
                let error = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            kept.write_u8(5).await.unwrap();
            kept.read_u8().await.unwrap()
        });
        is_open.await.unwrap();
        world.network.set_policy(policy(&["www.example.com"], &[]));
        changed.send(()).unwrap();
        assert_eq!(joined(guest).await, 5);
        assert_eq!((world.refused(Refusal::NotAllowed), world.refused(Refusal::Nameless)), (1, 2));
    });
}

/// The greeting of TLS with which a client begins that wants `server`.
fn greeting(server: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = ServerName::try_from(server.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Says `said` to `address` and hears as much back.
async fn say(world: &World, address: &'static str, said: Vec<u8>) -> io::Result<Vec<u8>> {
    world
        .guest(async move {
            let mut stream = connect(address).await?;
            stream.write_all(&said).await?;
            let mut heard = vec![0; said.len()];
            stream.read_exact(&mut heard).await?;
            Ok(heard)
        })
        .await
}

/// Everything that its servers heard, from the first byte to the end.
async fn hearing(stream: TcpStream) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let mut heard = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = reader.read(&mut buffer).await {
        heard.extend(&buffer[..length]);
        writer.write_all(&buffer[..length]).await.ok();
    }
    heard
}

#[test]
fn a_name_opens_its_address_to_who_says_it() {
    let policy = policy(&["www.example.com"], &[]);
    with_world(Wants { policy, ..Wants::default() }, async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14"), ("evil.example", "93.184.215.14")]).await;
        let mut heard = world.serve("93.184.215.14:443", hearing).await;
        let good = greeting("www.example.com");
        let error = say(&world, "93.184.215.14:443", good.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "it was not asked for");
        assert_eq!(world.guest(resolve(GATEWAY, "evil.example")).await, [] as [std::net::IpAddr; 0]);
        assert_eq!(world.guest(resolve(GATEWAY, "www.example.com")).await.len(), 1);
        assert!(say(&world, "93.184.215.14:443", good.clone()).await.unwrap() == good);
        assert!(heard.recv().await.unwrap() == good);

        for (said, why) in [
            (greeting("evil.example"), Refusal::NameMismatch),
            (greeting("93.184.215.14"), Refusal::Nameless),
            (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), Refusal::Nameless),
        ] {
            let before = world.refused(why);
            let error = say(&world, "93.184.215.14:443", said).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{why:?}");
            assert_eq!(world.refused(why), before + 1);
            assert_eq!(heard.recv().await.unwrap(), [], "{why:?}: not a byte was passed on");
        }
        let refused = world.network.refusals();
        let named = refused.iter().find(|refused| refused.refusal == Refusal::NameMismatch).unwrap();
        assert_eq!(named.name.as_ref().unwrap().to_string(), "evil.example");
    });
}

/// A greeting may come in as many pieces as it has bytes.
#[test]
fn a_greeting_in_pieces_is_read_before_any_of_it_is_passed_on() {
    let policy = policy(&["www.example.com"], &[]);
    with_world(Wants { policy, ..Wants::default() }, async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        let mut heard = world.serve("93.184.215.14:443", hearing).await;
        world.guest(resolve(GATEWAY, "www.example.com")).await;
        for (server, passes) in [("www.example.com", true), ("evil.example", false)] {
            let said = greeting(server);
            let expected = if passes { said.clone() } else { Vec::new() };
            world
                .guest(async move {
                    let mut stream = connect("93.184.215.14:443").await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    for byte in said {
                        // The last ones meet a connection that was broken off.
                        if stream.write_u8(byte).await.is_err() {
                            break;
                        }
                    }
                    stream.shutdown().await.ok();
                    stream.read_to_end(&mut Vec::new()).await.ok();
                })
                .await;
            assert!(heard.recv().await.unwrap() == expected, "{server}");
        }
    });
}

/// A protocol of text need not end a line before it is answered.
#[test]
fn text_that_is_no_line_yet_is_passed_on_where_names_do_not_matter() {
    with_world(Wants::default(), async |world| {
        world.serve_echo("93.184.215.14:7").await;
        assert_eq!(say(&world, "93.184.215.14:7", b"login: ".to_vec()).await.unwrap(), b"login: ");
        assert_eq!(say(&world, "93.184.215.14:7", b"\r\n".to_vec()).await.unwrap(), b"\r\n");
    });
}

#[test]
fn each_request_is_judged_and_not_only_the_first() {
    let policy = policy(&["www.example.com"], &[]);
    with_world(Wants { policy, ..Wants::default() }, async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        let (heard, mut requests) = tokio::sync::mpsc::unbounded_channel::<String>();
        let server = move |mut stream: TcpStream| {
            let heard = heard.clone();
            async move {
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    heard.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.ok();
                }
            }
        };
        drop(world.serve("93.184.215.14:80", server).await);
        world.guest(resolve(GATEWAY, "www.example.com")).await;
        let heard = world.guest(async {
            let mut stream = connect("93.184.215.14:80").await.unwrap();
            let request = |number: u8, host: &str, end: &str| {
                format!("GET /{number} HTTP/1.1\r\nHost: {host}\r\n{end}\r\n").into_bytes()
            };
            let requests = [
                request(1, "www.example.com", ""),
                request(2, "evil.example", ""),
                request(3, "www.example.com", "Connection: close\r\n"),
            ];
            stream.write_all(&requests.concat()).await.unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.unwrap();
            String::from_utf8(heard).unwrap()
        });
        let heard = heard.await;
        let statuses: Vec<_> =
            heard.split("HTTP/1.1 ").skip(1).filter_map(|response| response.get(..3)).collect();
        assert_eq!(statuses, ["200", "421", "200"], "{heard}");
        for number in ["1", "3"] {
            let request = requests.recv().await.unwrap();
            assert!(
                request.starts_with(&format!("GET /{number} ")) && !request.contains("evil"),
                "{request}"
            );
        }
        assert!(requests.try_recv().is_err());
        assert_eq!(world.refused(Refusal::NameMismatch), 1);
    });
}

/// A client may say that it has said all before it has heard anything.
#[test]
fn a_request_after_which_nothing_comes_is_answered() {
    let policy = policy(&["www.example.com"], &[]);
    with_world(Wants { policy, ..Wants::default() }, async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        let server = async |mut stream: TcpStream| {
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(buffer[..length].starts_with(b"GET / "));
            // The client's end is there long before the answer.
            tokio::time::sleep(Duration::from_millis(200)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        };
        drop(world.serve("93.184.215.14:80", server).await);
        world.guest(resolve(GATEWAY, "www.example.com")).await;
        let heard = world.guest(async {
            let request = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
            converse(connect("93.184.215.14:80").await?, request).await
        });
        let heard = String::from_utf8(heard.await.unwrap()).unwrap();
        assert!(heard.ends_with("\r\n\r\nhi"), "{heard}");
        world.counts("over", |counts| counts.open_connections == 0).await;
    });
}

/// Nobody waits for an answer any more, and the server learns it.
#[test]
fn a_request_that_is_broken_off_ends_with_its_connection() {
    let policy = policy(&["www.example.com"], &[]);
    with_world(Wants { policy, ..Wants::default() }, async |world| {
        world.serve_names(&[("www.example.com", "93.184.215.14")]).await;
        let (asked, mut is_asked) = tokio::sync::mpsc::unbounded_channel();
        let server = move |mut stream: TcpStream| {
            let asked = asked.clone();
            async move {
                assert_ne!(stream.read(&mut vec![0; 4096]).await.unwrap(), 0);
                asked.send(()).unwrap();
                // It never answers.
                stream.read(&mut [0]).await.unwrap_or(0)
            }
        };
        let mut ended = world.serve("93.184.215.14:80", server).await;
        world.guest(resolve(GATEWAY, "www.example.com")).await;
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let client = world.begin(async move {
            let mut stream = connect("93.184.215.14:80").await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n").await.unwrap();
            gone.await.unwrap();
            stream.set_zero_linger().unwrap();
        });
        is_asked.recv().await.unwrap();
        go.send(()).unwrap();
        joined(client).await;
        assert_eq!(tokio::time::timeout(DEADLINE, ended.recv()).await.unwrap(), Some(0));
        world.counts("over", |counts| counts.open_connections == 0).await;
    });
}

#[test]
fn what_a_new_policy_does_not_allow_is_broken_off_at_once() {
    with_world(Wants::default(), async |world| {
        let mut kept = world.serve("93.184.215.14:7", echo).await;
        let mut broken = world
            .serve("93.184.215.15:7", async |mut stream: TcpStream| {
                stream.write_u8(0).await.unwrap();
                stream.read_u8().await.unwrap();
                stream.read_u8().await.map_err(|error| error.kind())
            })
            .await;
        drop(world.serve("93.184.215.14:9", hearing).await);
        let (open, is_open) = tokio::sync::oneshot::channel();
        let (changed, is_changed) = tokio::sync::oneshot::channel::<()>();
        let guest = world.begin(async move {
            let mut allowed = connect("93.184.215.14:7").await.unwrap();
            let mut denied = connect("93.184.215.15:7").await.unwrap();
            denied.read_u8().await.unwrap();
            denied.write_u8(1).await.unwrap();
            let datagrams = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            datagrams.send_to(b"x", "93.184.215.15:9").await.unwrap();
            open.send(()).unwrap();
            is_changed.await.unwrap();
            let error = tokio::time::timeout(DEADLINE, denied.read_u8()).await.unwrap().unwrap_err();
            allowed.write_u8(5).await.unwrap();
            (error.kind(), allowed.read_u8().await.unwrap())
        });
        is_open.await.unwrap();
        world.counts("open", |counts| counts.open_datagram_flows == 1).await;
        world.network.set_policy(policy(&[], &["93.184.215.15"]));
        changed.send(()).unwrap();
        assert_eq!(joined(guest).await, (ErrorKind::ConnectionReset, 5));
        assert_eq!(broken.recv().await.unwrap(), Err(ErrorKind::ConnectionReset));
        assert_eq!(kept.recv().await.unwrap().unwrap(), 1);
        world.counts("over", |counts| counts.open_connections + counts.open_datagram_flows == 0).await;
        assert_eq!(world.refused(Refusal::Denied), 2);
    });
}
