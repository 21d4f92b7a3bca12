//! The resolver: which answers count, and what is done where none comes.

use super::*;

const RIGHT: &[&str] = &["a.example 60 A 93.184.215.14"];

async fn resolved(upstreams: &[&Scripted]) -> Vec<String> {
    let (reply, _) = Site::new(upstreams, Policy::default()).ask("a.example", RecordType::A).await;
    match reply.metadata.response_code {
        ResponseCode::NoError => addresses(&reply),
        ResponseCode::ServFail => {
            let (code, _) = extended(&reply).expect("an extended error");
            vec![format!("failed, {code}")]
        }
        code => panic!("{code}"),
    }
}

#[tokio::test]
async fn a_question_goes_out_with_an_id_and_a_port_of_its_own() {
    let upstream = Scripted::of_records(RIGHT).await;
    let site = Site::new(&[&upstream], Policy::default());
    for _ in 0..8 {
        let mut asked = question("A.eXample", RecordType::A);
        asked.metadata.checking_disabled = true;
        site.put(&asked, Transport::Udp).await;
    }
    let asked = upstream.asked();
    let ids: std::collections::HashSet<_> = asked.iter().map(|asked| asked.metadata.id).collect();
    assert!(ids.len() >= 7, "{ids:?}");
    for asked in asked {
        assert!(asked.metadata.recursion_desired && !asked.metadata.checking_disabled);
        assert_eq!(asked.queries[0].name.to_ascii(), "a.example.");
        let edns = asked.edns.expect("EDNS");
        assert_eq!((edns.max_payload(), edns.options().options.len()), (1232, 0));
    }
}

#[tokio::test]
async fn only_the_answer_to_what_was_asked_counts() {
    let upstream = Scripted::start(|asked, _| {
        let wrong = |change: fn(&mut Message)| {
            let mut answer = answered(asked, &["a.example 60 A 198.41.0.4"]);
            change(&mut answer);
            bytes(&answer)
        };
        vec![
            wrong(|answer| answer.metadata.id = answer.metadata.id.wrapping_add(1)),
            wrong(|answer| answer.metadata.message_type = MessageType::Query),
            wrong(|answer| answer.metadata.op_code = OpCode::Notify),
            wrong(|answer| {
                answer.queries[0].set_name(name("b.example"));
            }),
            wrong(|answer| {
                answer.queries[0].set_query_type(RecordType::AAAA);
            }),
            wrong(|answer| answer.queries.clear()),
            wrong(|answer| answer.queries.push(answer.queries[0].clone())),
            vec![],
            vec![0; 11],
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            wrong(|_| {})[..30].to_vec(),
            bytes(&answered(asked, RIGHT)),
            wrong(|_| {}),
        ]
    });
    assert_eq!(resolved(&[&upstream.await]).await, ["93.184.215.14"]);
}

#[tokio::test]
async fn an_answer_from_another_address_does_not_count() {
    let other = Arc::new(std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket"));
    let upstream = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let address = upstream.local_addr().expect("an address").to_string();
    let answers = async {
        let mut buffer = vec![0; 4096];
        let (length, from) = upstream.recv_from(&mut buffer).await.expect("a question");
        let asked = Message::from_vec(&buffer[..length]).expect("a question");
        let spoofed = answered(&asked, &["a.example 60 A 198.41.0.4"]);
        other.send_to(&bytes(&spoofed), from).expect("sent");
        upstream.send_to(&bytes(&answered(&asked, RIGHT)), from).await.expect("sent");
    };
    let resolver = Resolver::of_servers(vec![address.parse().expect("an upstream")]);
    let site = Site::of_resolver(resolver, Policy::default());
    let ((), (reply, _)) = tokio::join!(answers, site.ask("a.example", RecordType::A));
    assert_eq!(addresses(&reply), ["93.184.215.14"]);
}

#[tokio::test]
async fn guessing_ends_an_attempt() {
    let upstream = Scripted::start(|asked, _| {
        let mut guess = answered(asked, &["a.example 60 A 198.41.0.4"]);
        guess.metadata.id = guess.metadata.id.wrapping_add(1);
        vec![bytes(&guess); 64]
    });
    let upstream = upstream.await;
    assert_eq!(resolved(&[&upstream]).await, ["failed, 22"]);
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn what_does_not_fit_a_datagram_is_asked_for_by_tcp() {
    let upstream = Scripted::start(|asked, transport| {
        let mut answer = answered(asked, RIGHT);
        if transport == Transport::Udp {
            answer = answered(asked, &["a.example 60 A 198.41.0.4"]);
            answer.metadata.truncation = true;
        }
        vec![bytes(&answer)]
    });
    let upstream = upstream.await;
    assert_eq!(resolved(&[&upstream]).await, ["93.184.215.14"]);
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn what_comes_by_tcp_is_judged_alike() {
    for kind in 0..3 {
        let upstream = Scripted::start(move |asked, transport| {
            let mut answer = answered(asked, &["a.example 60 A 198.41.0.4"]);
            match (transport, kind) {
                (Transport::Udp, _) => answer.metadata.truncation = true,
                (Transport::Tcp, 0) => answer.metadata.id = answer.metadata.id.wrapping_add(1),
                (Transport::Tcp, 1) => return vec![b"garbage".to_vec()],
                (Transport::Tcp, _) => return vec![],
            }
            vec![bytes(&answer)]
        });
        assert_eq!(resolved(&[&upstream.await]).await, ["failed, 22"], "{kind}");
    }
}

#[tokio::test]
async fn servers_that_do_not_know_edns_are_asked_without() {
    for code in [ResponseCode::FormErr, ResponseCode::NotImp] {
        let upstream = Scripted::start(move |asked, _| match &asked.edns {
            Some(_) => vec![bytes(&failed(asked, code))],
            None => vec![bytes(&answered(asked, RIGHT))],
        });
        assert_eq!(resolved(&[&upstream.await]).await, ["93.184.215.14"], "{code}");
    }
}

#[tokio::test]
async fn another_server_is_asked_where_one_fails() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotAuth] {
        let failing = Scripted::start(move |asked, _| vec![bytes(&failed(asked, code))]).await;
        let upstream = Scripted::of_records(RIGHT).await;
        assert_eq!(resolved(&[&failing, &upstream]).await, ["93.184.215.14"], "{code}");
        assert_eq!((failing.asked().len(), upstream.asked().len()), (1, 1));
    }
}

#[tokio::test]
async fn a_port_without_a_server_is_no_wait() {
    let nobody = UdpSocket::bind("127.0.0.1:0").await.expect("a socket").local_addr().expect("an address");
    let upstream = Scripted::of_records(RIGHT).await;
    let servers = [nobody, upstream.address].map(|address| address.to_string().parse().expect("an upstream"));
    let site = Site::of_resolver(Resolver::of_servers(servers.into()), Policy::default());
    let began = Instant::now();
    let (reply, _) = site.ask("a.example", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.215.14"]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_answer_in_the_end() {
    let upstreams = [Scripted::start(|_, _| vec![]).await, Scripted::start(|_, _| vec![]).await];
    let began = tokio::time::Instant::now();
    assert_eq!(resolved(&[&upstreams[0], &upstreams[1]]).await, ["failed, 22"]);
    assert!(began.elapsed() <= Duration::from_millis(30_001), "{:?}", began.elapsed());
    assert!(upstreams.iter().all(|upstream| upstream.asked().len() >= 3), "each round asks again");
}

/// A server whose answers take `delay`.
async fn slow(delay: Duration) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a socket"));
    let address = socket.local_addr().expect("an address");
    let serve = async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).expect("a question");
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                // The caller may have been dropped.
                socket.send_to(&bytes(&answered(&asked, RIGHT)), from).await.ok();
            });
        }
    };
    (address, tokio::spawn(serve))
}

#[tokio::test(start_paused = true)]
async fn slow_answer_arrives_within_the_deadline() {
    // One server, however slow; and one of two, while the other says nothing.
    for (delay_s, silent) in [(4, false), (29, false), (4, true)] {
        let (address, task) = slow(Duration::from_secs(delay_s)).await;
        let nobody = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let mut servers = vec![address];
        servers.extend(silent.then(|| nobody.local_addr().expect("an address")));
        let servers = servers.iter().map(|address| address.to_string().parse().expect("an upstream"));
        let site = Site::of_resolver(Resolver::of_servers(servers.collect()), Policy::default());
        let began = tokio::time::Instant::now();
        let (reply, _) = site.ask("a.example", RecordType::A).await;
        assert_eq!(addresses(&reply), ["93.184.215.14"], "{delay_s} s, {silent}");
        let most = if silent { 10 } else { delay_s };
        assert!(began.elapsed() <= Duration::from_millis(most * 1000 + 100), "{:?}", began.elapsed());
        task.abort();
    }
}

#[tokio::test]
async fn so_many_questions_are_put_at_once_and_no_more() {
    const MOST: usize = 64;
    let (release, released) = watch::channel(false);
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a socket"));
    let address = socket.local_addr().expect("an address").to_string();
    let (arrived, mut arrivals) = watch::channel(0);
    let server = tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            arrived.send_modify(|count| *count += 1);
            let asked = Message::from_vec(&buffer[..length]).expect("a question");
            let (socket, mut released) = (Arc::clone(&socket), released.clone());
            tokio::spawn(async move {
                released.wait_for(|released| *released).await.expect("released");
                socket.send_to(&bytes(&answered(&asked, RIGHT)), from).await.expect("sent");
            });
        }
    });
    let resolver = Resolver::of_servers(vec![address.parse().expect("an upstream")]);
    let site = Arc::new(Site::of_resolver(resolver, Policy::default()));
    let mut asking = JoinSet::new();
    for _ in 0..=MOST {
        let site = Arc::clone(&site);
        asking.spawn(async move { addresses(&site.ask("a.example", RecordType::A).await.0) });
    }
    arrivals.wait_for(|count| *count == MOST).await.expect("as many as may");
    tokio::task::yield_now().await;
    assert_eq!(*arrivals.borrow(), MOST);
    release.send(true).expect("waiting");
    for answer in asking.join_all().await {
        assert_eq!(answer, ["93.184.215.14"]);
    }
    assert_eq!(*arrivals.borrow(), MOST + 1);
    server.abort();
}
