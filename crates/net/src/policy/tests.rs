use proptest::prelude::*;

use super::*;
use crate::rule::tests::any_rule;

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Policy { allow: rules(allow), deny: rules(deny) }
}

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn open(policy: &Policy, protocol: Protocol, destination: &str, names: &[Name]) -> Result<Grant, Refusal> {
    policy.open(protocol, destination.parse().unwrap(), Surroundings { is_host: false, names })
}

fn tcp(policy: &Policy, destination: &str) -> Result<Grant, Refusal> {
    open(policy, Protocol::Tcp, destination, &[])
}

#[test]
fn without_rules_it_is_the_public_internet() {
    let policy = Policy::default();
    assert_eq!(tcp(&policy, "93.184.215.14:443"), Ok(Grant::ByAddress));
    assert_eq!(open(&policy, Protocol::Udp, "93.184.215.14:123", &[]), Ok(Grant::ByAddress));
    assert_eq!(open(&policy, Protocol::Icmp, "93.184.215.14:0", &[]), Ok(Grant::ByAddress));
    for (destination, refusal) in [
        ("127.0.0.1:80", Refusal::Loopback),
        ("[::1]:80", Refusal::Loopback),
        ("10.0.0.1:80", Refusal::Private),
        ("[fd00::1]:80", Refusal::Private),
        ("169.254.0.1:80", Refusal::LinkLocal),
        ("169.254.169.254:80", Refusal::Metadata),
        ("[::ffff:10.0.0.1]:80", Refusal::Special),
        ("[64:ff9b::a00:1]:80", Refusal::Special),
        ("224.0.0.1:80", Refusal::Special),
        ("93.184.215.14:53", Refusal::Dns),
        ("93.184.215.14:853", Refusal::Dns),
        ("1.1.1.1:443", Refusal::Dns),
    ] {
        assert_eq!(tcp(&policy, destination), Err(refusal), "{destination}");
    }
    assert_eq!(open(&policy, Protocol::Udp, "93.184.215.14:443", &[]), Err(Refusal::Quic));
    let host = Surroundings { is_host: true, names: &[] };
    assert_eq!(policy.open(Protocol::Tcp, "93.184.215.14:22".parse().unwrap(), host), Err(Refusal::Host));
    assert!(policy.resolve(&"example.com".parse().unwrap()).is_ok());
    assert_eq!(policy.resolve(&"dns.google".parse().unwrap()), Err(Refusal::Dns));
}

#[test]
fn what_is_closed_opens_by_its_port() {
    let policy = policy(&["*", "*:443/udp", "*:53", "1.1.1.1:443", "dns.google"], &[]);
    assert!(open(&policy, Protocol::Udp, "93.184.215.14:443", &[]).is_ok());
    assert_eq!(open(&policy, Protocol::Udp, "93.184.215.14:80", &[]), Err(Refusal::Quic));
    assert!(tcp(&policy, "93.184.215.14:53").is_ok());
    assert_eq!(tcp(&policy, "93.184.215.14:853"), Err(Refusal::Dns));
    assert!(tcp(&policy, "1.1.1.1:443").is_ok());
    assert_eq!(tcp(&policy, "1.0.0.1:443"), Err(Refusal::Dns));
    assert!(policy.resolve(&"dns.google".parse().unwrap()).is_ok());
}

#[test]
fn what_is_closed_opens_for_what_the_rule_is_about() {
    let policy = policy(&["a.example:53", "b.example", "dns.google"], &[]);
    let at = |name: &str| open(&policy, Protocol::Tcp, "93.184.215.14:53", &names(&[name]));
    assert!(at("a.example").is_ok());
    assert_eq!(at("b.example"), Err(Refusal::Dns));
    let google = names(&["dns.google"]);
    assert!(open(&policy, Protocol::Tcp, "8.8.8.8:443", &google).is_ok());
    assert_eq!(open(&policy, Protocol::Tcp, "8.8.8.8:443", &names(&["b.example"])), Err(Refusal::Dns));
    assert_eq!(open(&policy, Protocol::Udp, "8.8.8.8:53", &google), Err(Refusal::Dns));
}

#[test]
fn somebodys_addresses_open_by_what_is_meant_for_them() {
    for (allow, destination, allowed) in [
        ("10.0.0.0/8", "10.1.2.3:80", true),
        ("0.0.0.0/0", "10.1.2.3:80", false),
        ("0.0.0.0/0", "93.184.215.14:80", true),
        ("0.0.0.0/0", "[2606:2800:21f::14]:80", false),
        ("::/0", "[fd00::1]:80", false),
        ("*", "10.1.2.3:80", false),
        ("169.254.0.0/16", "169.254.169.254:80", false),
        ("169.254.0.0/16", "169.254.1.1:80", true),
        ("169.254.169.254", "169.254.169.254:80", true),
        ("169.254.169.254:80", "169.254.169.254:81", false),
        ("127.0.0.0/8", "127.0.0.1:80", false),
        ("127.0.0.1", "127.0.0.1:80", false),
        ("host", "127.0.0.1:80", false),
        ("224.0.0.0/4", "224.0.0.1:80", false),
        ("::ffff:10.0.0.1", "[::ffff:10.0.0.1]:80", false),
    ] {
        assert_eq!(tcp(&policy(&[allow], &[]), destination).is_ok(), allowed, "{allow} {destination}");
    }
    let host = Surroundings { is_host: true, names: &[] };
    let at = "10.1.2.3:80".parse().unwrap();
    assert_eq!(policy(&["10.0.0.0/8"], &[]).open(Protocol::Tcp, at, host), Err(Refusal::Host));
    assert!(policy(&["10.1.2.3"], &[]).open(Protocol::Tcp, at, host).is_ok());
}

#[test]
fn by_name_an_address_is_reached_that_a_name_was_resolved_to() {
    let policy = policy(&["*.example.com:443", "example.org"], &["evil.example.com"]);
    let at = "93.184.215.14:443";
    assert_eq!(tcp(&policy, at), Err(Refusal::NotAllowed));
    let good = names(&["a.example.com"]);
    assert_eq!(open(&policy, Protocol::Tcp, at, &good), Ok(Grant::ByName(good.clone())));
    assert_eq!(open(&policy, Protocol::Tcp, "93.184.215.14:80", &good), Err(Refusal::NotAllowed));
    assert_eq!(open(&policy, Protocol::Tcp, at, &names(&["evil.example.com"])), Err(Refusal::NotAllowed));
    assert_eq!(open(&policy, Protocol::Tcp, "10.0.0.1:443", &good), Err(Refusal::Private));
    assert_eq!(open(&policy, Protocol::Udp, at, &good), Err(Refusal::Quic), "a port alone says TCP");
    for (name, allowed) in [
        ("a.example.com", true),
        ("example.com", false),
        ("evil.example.com", false),
        ("example.org", true),
        ("x.example.org", false),
        ("example.net", false),
    ] {
        assert_eq!(policy.resolve(&name.parse().unwrap()).is_ok(), allowed, "{name}");
    }
}

#[test]
fn what_a_connection_says_must_agree() {
    let policy = policy(&["example.com", "example.org"], &[]);
    let grant = Grant::ByName(names(&["example.com"]));
    let [com, org, net] =
        ["example.com", "example.org", "example.net"].map(|text| text.parse::<Name>().unwrap());
    let at = |port: u16| SocketAddr::from(([93, 184, 215, 14], port));
    let claim = |port, claimed| policy.claim(&grant, at(port), claimed);
    assert_eq!(claim(443, Claimed::Tls(Some(&com))), Ok(()));
    assert_eq!(claim(8443, Claimed::Http(Some(&com))), Ok(()));
    assert_eq!(claim(443, Claimed::Tls(Some(&org))), Err(Refusal::NameMismatch), "allowed, but elsewhere");
    assert_eq!(claim(443, Claimed::Tls(Some(&net))), Err(Refusal::NameMismatch));
    assert_eq!(claim(443, Claimed::Tls(None)), Err(Refusal::Nameless));
    assert_eq!(claim(8080, Claimed::Http(None)), Err(Refusal::Nameless));
    assert_eq!(claim(443, Claimed::Nothing), Err(Refusal::Nameless));
    assert_eq!(claim(80, Claimed::Nothing), Err(Refusal::Nameless));
    assert_eq!(claim(22, Claimed::Nothing), Ok(()));
}

#[test]
fn a_name_that_is_denied_is_denied_in_every_connection() {
    let policy = policy(&[], &["evil.example", "*.evil.example"]);
    let evil: Name = "a.evil.example".parse().unwrap();
    assert_eq!(policy.resolve(&evil), Err(Refusal::Denied));
    let at = "93.184.215.14:443".parse().unwrap();
    assert_eq!(policy.claim(&Grant::ByAddress, at, Claimed::Tls(Some(&evil))), Err(Refusal::Denied));
    assert_eq!(policy.claim(&Grant::ByAddress, at, Claimed::Nothing), Ok(()));
    assert!(
        policy.judges_requests(&Grant::ByAddress) && !Policy::default().judges_requests(&Grant::ByAddress)
    );
}

#[test]
fn the_hosts_loopback_opens_by_its_own_rule() {
    let policy = policy(&["host:8000-8999"], &["host:8080"]);
    assert_eq!(policy.host(Protocol::Tcp, 8000), Ok(()));
    assert_eq!(policy.host(Protocol::Tcp, 8080), Err(Refusal::Denied));
    assert_eq!(policy.host(Protocol::Tcp, 7999), Err(Refusal::Host));
    assert_eq!(Policy::default().host(Protocol::Tcp, 8000), Err(Refusal::Host));
    assert!(policy.opens_host() && !Policy::default().opens_host());
}

#[test]
fn answers_have_no_address_that_could_not_be_reached() {
    let admits = |policy: &Policy, address: &str| policy.admits_answer(address.parse().unwrap(), false);
    let open = Policy::default();
    assert!(admits(&open, "93.184.215.14"));
    for address in
        ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "::ffff:93.184.215.14", "64:ff9b::1", "0.0.0.0"]
    {
        assert!(!admits(&open, address), "{address}");
    }
    assert!(!open.admits_answer("93.184.215.14".parse().unwrap(), true));
    assert!(admits(&policy(&["a.example", "10.0.0.0/8"], &[]), "10.0.0.1"));
    assert!(!admits(&policy(&["127.0.0.1"], &[]), "127.0.0.1"));
}

#[test]
fn a_name_that_is_denied_at_one_port_may_be_asked_for_for_another() {
    let some = policy(&[], &["mail.example:25", "quiet.example/udp", "evil.example"]);
    let [mail, quiet, evil] =
        ["mail.example", "quiet.example", "evil.example"].map(|text| text.parse::<Name>().unwrap());
    assert_eq!((some.resolve(&mail), some.resolve(&quiet)), (Ok(()), Ok(())));
    assert_eq!(some.resolve(&evil), Err(Refusal::Denied));
    let pinned = std::slice::from_ref(&mail);
    assert_eq!(open(&some, Protocol::Tcp, "93.184.215.14:25", pinned), Err(Refusal::Denied));
    assert_eq!(open(&some, Protocol::Tcp, "93.184.215.14:443", pinned), Ok(Grant::ByAddress));
    let claim = |port: u16, name| {
        let at = SocketAddr::from(([93, 184, 215, 14], port));
        some.claim(&Grant::ByAddress, at, Claimed::Tls(Some(name)))
    };
    assert_eq!((claim(25, &mail), claim(443, &mail)), (Err(Refusal::Denied), Ok(())));
}

#[test]
fn where_nothing_public_is_to_be_reached_no_question_leaves() {
    let [one, other] = ["a.example", "b.example"].map(|text| text.parse::<Name>().unwrap());
    for allow in [&[][..], &["*"], &["10.0.0.0/8"]] {
        assert_eq!(policy(allow, &["*"]).resolve(&one), Err(Refusal::NotAllowed), "{allow:?}");
    }
    // A name that is said may be somebody's.
    let mixed = policy(&["10.0.0.0/8", "a.example"], &["*"]);
    assert_eq!((mixed.resolve(&one), mixed.resolve(&other)), (Ok(()), Err(Refusal::NotAllowed)));
    assert_eq!(policy(&[], &["*:25", "*/udp"]).resolve(&one), Ok(()), "some of it may be");
}

#[test]
fn a_resolver_opens_by_its_address_whatever_it_is_called() {
    let policy = policy(&["*", "8.8.8.8:443"], &["bad.example"]);
    let [google, bad] = ["dns.google", "bad.example"].map(|text| text.parse::<Name>().unwrap());
    let claim = |at: &str, name| {
        let grant = tcp(&policy, at)?;
        policy.claim(&grant, at.parse().unwrap(), Claimed::Tls(Some(name)))
    };
    assert_eq!(claim("8.8.8.8:443", &google), Ok(()));
    assert_eq!(claim("8.8.8.8:443", &bad), Err(Refusal::Denied));
    assert_eq!(claim("93.184.215.14:443", &google), Err(Refusal::Dns));
    assert_eq!(claim("8.8.4.4:443", &google), Err(Refusal::Dns));
}

#[test]
fn names_are_one_however_they_are_written() {
    let rules = policy(&["Example.COM.", "b\u{fc}cher.example", "*.Wild.example"], &["EVIL.wild.example"]);
    for (text, expected) in [
        ("example.com", Ok(())),
        ("EXAMPLE.com.", Ok(())),
        ("xn--bcher-kva.example", Ok(())),
        ("XN--BCHER-KVA.Example.", Ok(())),
        ("bucher.example", Err(Refusal::NotAllowed)),
        // With a Cyrillic letter each.
        ("ex\u{430}mple.com", Err(Refusal::NotAllowed)),
        ("b\u{fc}\u{441}her.example", Err(Refusal::NotAllowed)),
        ("a.b.WILD.example.", Ok(())),
        ("wild.example", Err(Refusal::NotAllowed)),
        ("evil.wild.EXAMPLE.", Err(Refusal::Denied)),
        ("awild.example", Err(Refusal::NotAllowed)),
    ] {
        assert_eq!(rules.resolve(&text.parse().unwrap()), expected, "{text}");
    }
    let everything_below = policy(&["*.example"], &[]);
    assert_eq!(everything_below.resolve(&"a.b.example".parse().unwrap()), Ok(()), "a TLD is a name");
}

prop_compose! {
    fn any_policy()(allow in prop::collection::vec(any_rule(), 0..6), deny in prop::collection::vec(any_rule(), 0..6)) -> Policy {
        Policy { allow, deny }
    }
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u16; 8]>().prop_map(IpAddr::from),
        prop::sample::select(vec![
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "fd00::1",
            "::1",
            "93.184.215.14",
            "100.64.0.1"
        ])
        .prop_map(|text| text.parse().unwrap()),
    ]
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Icmp])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn one_more_denial_opens_nothing(
        policy in any_policy(), rule in any_rule(), protocol in any_protocol(), address in any_address(), port: u16,
        label in prop::sample::select(vec!["a.example", "b.example"]),
    ) {
        let names = names(&[label]);
        let surroundings = Surroundings { is_host: false, names: &names };
        let at = SocketAddr::new(address, port);
        let mut stricter = policy.clone();
        stricter.deny.push(rule);
        if policy.open(protocol, at, surroundings).is_err() {
            prop_assert!(stricter.open(protocol, at, surroundings).is_err());
        }
        if policy.resolve(&names[0]).is_err() {
            prop_assert!(stricter.resolve(&names[0]).is_err());
        }
    }

    #[test]
    fn nothing_of_somebodys_is_opened_by_what_is_not_meant_for_it(
        policy in any_policy(), protocol in any_protocol(), address in any_address(), port: u16, is_host: bool,
    ) {
        let names = names(&["a.example"]);
        let at = SocketAddr::new(address, port);
        if policy.open(protocol, at, Surroundings { is_host, names: &names }).is_ok() {
            let class = Class::of(address);
            prop_assert!(!matches!(class, Class::Loopback | Class::Special));
            let meant = policy.allow.iter().any(|rule| rule.is_meant_for_somebodys() && rule.is_about_address(address));
            prop_assert!(class == Class::Public || meant);
            let exactly = policy.allow.iter().any(|rule| rule.is_exactly(address));
            prop_assert!((class != Class::Metadata && !is_host) || exactly);
            prop_assert!(!policy.deny.iter().any(|rule| rule.is_about(protocol, port) && rule.is_about_address(address)));
        }
    }

    #[test]
    fn names_open_nothing_but_what_is_public(
        labels in prop::collection::vec(prop::sample::select(vec!["a.example", "*.example", "*", "b.a.example:443/udp", "*:1-65535"]), 1..5),
        protocol in any_protocol(), address in any_address(), port: u16, is_host: bool,
    ) {
        let policy = policy(&labels, &[]);
        let names = names(&["a.example", "b.a.example"]);
        let opened = policy.open(protocol, SocketAddr::new(address, port), Surroundings { is_host, names: &names });
        prop_assert!(opened.is_err() || Class::of(address) == Class::Public && !is_host);
        prop_assert!(!policy.admits_answer(address, is_host) || Class::of(address) == Class::Public && !is_host);
        prop_assert!(policy.host(protocol, port).is_err());
    }

    #[test]
    fn what_is_granted_by_name_is_claimed_by_it_alone(
        policy in any_policy(), protocol in any_protocol(), address in any_address(), port: u16,
        label in prop::sample::select(vec!["a.example", "b.example", "dns.google"]),
    ) {
        let (names, at) = (names(&["a.example", "dns.google"]), SocketAddr::new(address, port));
        let Ok(Grant::ByName(granted)) = policy.open(protocol, at, Surroundings { is_host: false, names: &names }) else { return Ok(()) };
        let name: Name = label.parse().unwrap();
        let grant = Grant::ByName(granted.clone());
        prop_assert!(!granted.is_empty() && granted.iter().all(|one| names.contains(one)));
        for claimed in [Claimed::Tls(Some(&name)), Claimed::Http(Some(&name))] {
            prop_assert!(policy.claim(&grant, at, claimed).is_err() || granted.contains(&name));
        }
        prop_assert!(policy.claim(&grant, at, Claimed::Tls(None)).is_err());
        prop_assert!(policy.claim(&grant, at, Claimed::Http(None)).is_err());
    }

    #[test]
    fn one_more_denial_makes_no_claim_good(
        policy in any_policy(), rule in any_rule(), address in any_address(), port: u16,
        label in prop::sample::select(vec!["a.example", "b.example", "dns.google"]),
    ) {
        let (name, at): (Name, _) = (label.parse().unwrap(), SocketAddr::new(address, port));
        let mut stricter = policy.clone();
        stricter.deny.push(rule);
        for grant in [Grant::ByAddress, Grant::ByName(vec![name.clone()])] {
            for claimed in [Claimed::Tls(Some(&name)), Claimed::Http(None), Claimed::Nothing] {
                prop_assert!(policy.claim(&grant, at, claimed).is_ok() || stricter.claim(&grant, at, claimed).is_err());
            }
            prop_assert!(stricter.judges_requests(&grant) || !policy.judges_requests(&grant));
        }
        prop_assert!(policy.host(Protocol::Tcp, port).is_ok() || stricter.host(Protocol::Tcp, port).is_err());
        prop_assert!(policy.admits_answer(address, false) || !stricter.admits_answer(address, false));
    }

    #[test]
    fn what_is_denied_is_denied(rule in any_rule(), address in any_address(), port: u16, protocol in any_protocol()) {
        let policy = Policy { allow: vec![rule.clone()], deny: vec![rule] };
        let names = names(&["a.example"]);
        let opened = policy.open(protocol, SocketAddr::new(address, port), Surroundings { is_host: false, names: &names });
        prop_assert!(opened.is_err());
    }

    #[test]
    fn no_answer_has_an_address_of_no_machine(policy in any_policy(), address in any_address(), is_host: bool) {
        if policy.admits_answer(address, is_host) {
            prop_assert!(!matches!(Class::of(address), Class::Loopback | Class::Special));
        }
    }

    #[test]
    fn a_policy_is_read_as_it_is_written(policy in any_policy()) {
        let text = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    }
}
