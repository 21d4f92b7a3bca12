//! Ways around a policy that lead through names.

use super::*;
use proptest::prelude::*;

#[tokio::test]
async fn addresses_that_are_not_to_be_reached_are_not_told() {
    for (kind, data, refusal) in [
        ("A", "127.0.0.1", Refusal::Loopback),
        ("A", "0.0.0.0", Refusal::Special),
        ("A", "10.0.0.1", Refusal::Private),
        ("A", "192.168.1.1", Refusal::Private),
        ("A", "100.64.0.1", Refusal::Private),
        ("A", "169.254.1.1", Refusal::LinkLocal),
        ("A", "169.254.169.254", Refusal::Metadata),
        ("A", "224.0.0.251", Refusal::Special),
        ("AAAA", "::1", Refusal::Loopback),
        ("AAAA", "::ffff:127.0.0.1", Refusal::Special),
        ("AAAA", "::ffff:93.184.215.14", Refusal::Special),
        ("AAAA", "::7f00:1", Refusal::Special),
        ("AAAA", "64:ff9b::a00:1", Refusal::Special),
        ("AAAA", "64:ff9b:1::a00:1", Refusal::Special),
        ("AAAA", "2002:7f00:1::", Refusal::Special),
        ("AAAA", "fe80::1", Refusal::LinkLocal),
        ("AAAA", "fd00::1", Refusal::Private),
        ("AAAA", "fd00:ec2::254", Refusal::Metadata),
    ] {
        for rules in [policy(&[], &[]), policy(&["*", "*.example", "0.0.0.0/0", "::/0"], &[])] {
            let upstream = Scripted::start(move |asked, _| {
                let alone = format!("internal.b.example 60 {kind} {data}");
                vec![bytes(&answered(asked, &["a.b.example 60 CNAME internal.b.example", &alone]))]
            });
            let site = Site::new(&[&upstream.await], rules);
            let kind = if kind == "A" { RecordType::A } else { RecordType::AAAA };
            let (reply, refused) = site.ask("a.b.example", kind).await;
            assert_eq!(
                (reply.metadata.response_code, addresses(&reply)),
                (ResponseCode::NoError, vec![]),
                "{data}"
            );
            assert_eq!(refused, Some(refusal), "{data}");
            assert_eq!(extended(&reply), Some((15, format!("the sandbox's policy: {refusal}"))));
            assert!(site.pinned(data).is_empty(), "{data}");
        }
    }
}

#[tokio::test]
async fn a_name_that_moves_inside_loses_its_address_there() {
    let upstream = Scripted::start(|asked, _| {
        static TURN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let turns = ["a.example 0 A 93.184.215.14", "a.example 0 A 10.0.0.1"];
        let turn = TURN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        vec![bytes(&answered(asked, &turns[turn..=turn]))]
    });
    let site = Site::new(&[&upstream.await], policy(&["a.example"], &[]));
    let (reply, _) = site.ask("a.example", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.215.14"]);
    let (reply, refusal) = site.ask("a.example", RecordType::A).await;
    assert_eq!((addresses(&reply), refusal), (vec![], Some(Refusal::Private)));
    assert!(site.pinned("10.0.0.1").is_empty());
}

#[tokio::test]
async fn of_many_addresses_those_are_told_that_may_be_reached() {
    let upstream = Scripted::of_records(&[
        "a.example 60 A 10.0.0.1",
        "a.example 60 A 93.184.215.14",
        "a.example 60 A 127.0.0.1",
    ]);
    let site = Site::new(&[&upstream.await], policy(&["a.example", "10.0.0.0/24"], &[]));
    let (reply, refusal) = site.ask("a.example", RecordType::A).await;
    assert_eq!(addresses(&reply), ["10.0.0.1", "93.184.215.14"]);
    assert_eq!(refusal, Some(Refusal::Loopback));
    assert_eq!(site.pinned("10.0.0.1"), ["a.example"]);
}

#[tokio::test]
async fn no_question_leaves_for_a_name_that_is_not_allowed() {
    let upstream = Scripted::of_records(&[]).await;
    let site =
        Site::new(&[&upstream], policy(&["pypi.org", "*.pythonhosted.org"], &["evil.pythonhosted.org"]));
    for n in 0..5000 {
        // As data would be carried out, piece by piece.
        let name = format!("{:08x}.{:056x}.tunnel.example", n * 7919, u64::MAX - n);
        let kind = [RecordType::A, RecordType::TXT, RecordType::NS, RecordType::HTTPS][(n % 4) as usize];
        let (reply, refusal) = site.ask(&name, kind).await;
        assert_eq!(
            (reply.metadata.response_code, refusal),
            (ResponseCode::NXDomain, Some(Refusal::NotAllowed))
        );
    }
    for (name, refusal) in [
        ("example.com", Refusal::NotAllowed),
        ("pypi.org.example.com", Refusal::NotAllowed),
        ("www.pypi.org", Refusal::NotAllowed),
        ("pythonhosted.org", Refusal::NotAllowed),
        ("org", Refusal::NotAllowed),
        ("evil.pythonhosted.org", Refusal::Denied),
        ("dns.google", Refusal::Dns),
        ("4.3.2.1.in-addr.arpa", Refusal::NotAllowed),
    ] {
        let (reply, refused) = site.ask(name, RecordType::TXT).await;
        assert_eq!(
            (reply.metadata.response_code, refused),
            (ResponseCode::NXDomain, Some(refusal)),
            "{name}"
        );
        assert_eq!(extended(&reply), Some((15, format!("the sandbox's policy: {refusal}"))));
    }
    assert_eq!(upstream.asked().len(), 0);
    site.ask("pypi.org", RecordType::TXT).await;
    site.ask("files.pythonhosted.org", RecordType::A).await;
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn an_alias_of_what_is_denied_is_denied() {
    let upstream = Scripted::of_records(&[
        "a.example 60 CNAME evil.example",
        "evil.example 60 A 93.184.215.14",
        "b.example 60 CNAME dns.google",
        "dns.google 60 A 93.184.215.15",
    ]);
    let site = Site::new(&[&upstream.await], policy(&[], &["evil.example"]));
    for (name, refusal) in [("a.example", Refusal::Denied), ("b.example", Refusal::Dns)] {
        let (reply, refused) = site.ask(name, RecordType::A).await;
        assert_eq!((reply.metadata.response_code, refused), (ResponseCode::NXDomain, Some(refusal)));
        assert_eq!(reply.answers.len(), 0);
    }
    assert!(site.pinned("93.184.215.14").is_empty() && site.pinned("93.184.215.15").is_empty());
}

#[tokio::test]
async fn the_policy_that_counts_is_that_of_the_answers_time() {
    let (give, given) = std::sync::mpsc::channel::<Arc<watch::Sender<Arc<Judge>>>>();
    let given = Mutex::new(given);
    let upstream = Scripted::start(move |asked, _| {
        let current = given.lock().unwrap().recv().expect("the policy");
        current.send_replace(judge(policy(&[], &["a.example"])));
        vec![bytes(&answered(asked, &["a.example 60 A 93.184.215.14"]))]
    });
    let site = Site::new(&[&upstream.await], Policy::default());
    give.send(Arc::clone(&site.policy)).expect("a script");
    let (reply, refusal) = site.ask("a.example", RecordType::A).await;
    assert_eq!((reply.metadata.response_code, refusal), (ResponseCode::NXDomain, Some(Refusal::Denied)));
    assert!(site.pinned("93.184.215.14").is_empty());
}

#[tokio::test]
async fn names_that_are_nobodys_do_not_leave() {
    let upstream = Scripted::of_records(&[]).await;
    let site = Site::new(&[&upstream], policy(&["*", "localhost", "*.localhost", "*.in-addr.arpa"], &[]));
    for name in [
        "localhost",
        "a.localhost",
        "x.invalid",
        "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion",
        "use-application-dns.net",
        "bouvet.internal",
        "other.bouvet.internal",
        "1.0.0.10.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
        "254.169.254.169.in-addr.arpa",
        "0.10.in-addr.arpa",
        "in-addr.arpa",
        "8.8.8.in-addr.arpa",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
        "1.0.0.0.ip6.arpa",
    ] {
        let (reply, refusal) = site.ask(name, RecordType::PTR).await;
        assert_eq!((reply.metadata.response_code, refusal), (ResponseCode::NXDomain, None), "{name}");
    }
    assert_eq!(upstream.asked().len(), 0);
    let site = Site::new(&[&upstream], Policy::default());
    site.ask("8.8.8.8.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn what_programs_take_for_an_address_is_no_name() {
    let upstream = Scripted::of_records(&[]).await;
    let site = Site::new(&[&upstream], policy(&["*"], &[]));
    for name in ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "a.1", "*.example"] {
        let (reply, refusal) = site.ask(name, RecordType::A).await;
        assert_eq!(
            (reply.metadata.response_code, refusal),
            (ResponseCode::NXDomain, Some(Refusal::Query)),
            "{name}"
        );
    }
    assert_eq!(upstream.asked().len(), 0);
}

#[tokio::test]
async fn the_host_has_a_name_where_a_rule_opens_it() {
    let upstream = Scripted::of_records(&[]).await;
    let site = Site::new(&[&upstream], policy(&["host:8080"], &[]));
    for (kind, expected) in [
        (RecordType::A, vec!["10.0.2.2".to_owned()]),
        (RecordType::AAAA, vec!["fd00:b0e7::2".to_owned()]),
        (RecordType::TXT, vec![]),
    ] {
        let (reply, refusal) = site.ask("Host.Bouvet.Internal", kind).await;
        assert_eq!((addresses(&reply), refusal), (expected, None));
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
    site.policy.send_replace(judge(policy(&["*"], &[])));
    let (reply, refusal) = site.ask("host.bouvet.internal", RecordType::A).await;
    assert_eq!((reply.metadata.response_code, refusal), (ResponseCode::NXDomain, Some(Refusal::Host)));
    assert_eq!(upstream.asked().len(), 0);
}

fn any_rdata() -> impl Strategy<Value = RData> {
    let names = prop::sample::select(vec!["a.example", "b.example", "evil.example", "c.a.example"]);
    let near: Vec<IpAddr> = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"]
        .map(|address| address.parse().expect("an address"))
        .into();
    let data = |address: IpAddr| match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    prop_oneof![
        any::<[u8; 4]>().prop_map(move |address| data(address.into())),
        any::<[u8; 16]>().prop_map(move |address| data(address.into())),
        prop::sample::select(near).prop_map(data),
        names.prop_map(|target| RData::CNAME(CNAME(name(target)))),
    ]
}

fn any_record() -> impl Strategy<Value = Record> {
    let names = prop::sample::select(vec!["a.example", "b.example", "evil.example", "c.a.example"]);
    (names, any::<u32>(), any_rdata()).prop_map(|(of, ttl, data)| Record::from_rdata(name(of), ttl, data))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_tells_an_address_that_the_policy_does_not_admit(
        records in proptest::collection::vec(any_record(), 0..12),
        wide in any::<bool>(), ipv6 in any::<bool>(), code in 0..6_u8,
    ) {
        let rules = policy(if wide { &["*", "10.0.0.0/8"] } else { &["a.example", "fd00::1"] }, &["evil.example"]);
        let site = Site::of_resolver(Resolver::of_servers(vec![]), rules.clone());
        let asked = question("a.example", if ipv6 { RecordType::AAAA } else { RecordType::A });
        let mut answer = answered(&asked, &[]);
        answer.insert_answers(records.clone());
        answer.metadata.response_code = ResponseCode::from_low(code);
        let of = "a.example".parse().expect("a name");
        let (reply, _) = site.server.pass_on(&asked.queries[0], &of, &answer);
        let told: Vec<_> = reply.records.iter().filter_map(address).collect();
        for address in records.iter().filter_map(address) {
            let expected: &[&str] = if told.contains(&address) { &["a.example"] } else { &[] };
            prop_assert_eq!(site.pinned(&address.to_string()), expected);
        }
        for address in told {
            prop_assert!(rules.admits_answer(address, false), "{}", address);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..64), body in any::<bool>()) {
        let header = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let bytes = if body { [&header[..], &bytes].concat() } else { bytes };
        // Nobody listens on port 1.
        let resolver = Resolver::of_servers(vec!["127.0.0.1:1".parse().expect("an upstream")]);
        let site = Site::of_resolver(resolver, Policy::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        if let Some(answer) = runtime.block_on(site.server.answer(&bytes, Transport::Udp)) {
            prop_assert_eq!(&answer.bytes[..2], &bytes[..2]);
            prop_assert!(answer.bytes.len() <= 4096 && answer.bytes[2] & 0x80 != 0);
        }
    }
}
