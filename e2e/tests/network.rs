//! Networks of sandboxes, in real VMs, to an internet of the test's own.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::Ipv4Addr;

use bouvet_e2e::drive::{eventually, patient, printed, run, sh};
use bouvet_e2e::internet::{Internet, NAME_SERVER, with_internet};
use bouvet_e2e::site::{Site, Vmm, small};
use bouvet_e2e::tls;
use bouvet_host::{
    BoxConfig, ExecRequest, NetworkLimits, NetworkMode, NetworkRefusal as Refusal, Program, Sandbox,
    SecretConfig, StreamEvent,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

/// A sandbox with a network and these rules.
fn networked(allow: &[&str], deny: &[&str]) -> BoxConfig {
    let words = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    BoxConfig {
        network: NetworkMode::Tsi,
        dns: vec![NAME_SERVER.into()],
        allow: words(allow),
        deny: words(deny),
        ..small()
    }
}

/// Runs `test` with an internet and a sandbox that is `config`.
fn with_box(config: BoxConfig, test: impl AsyncFnOnce(&Internet, &Sandbox) + Send + 'static) {
    with_internet(async move |internet: Internet| {
        let Some(site) = Site::qemu().await else { return };
        in_box(site, config, async |sandbox| test(&internet, sandbox).await).await;
    });
}

/// Runs `test` with a sandbox of `site`, which ends then and has nothing left.
async fn in_box(site: Site, config: BoxConfig, test: impl AsyncFnOnce(&Sandbox)) {
    let sandbox = site.host.create(config).await.unwrap();
    test(&sandbox).await;
    sandbox.destroy().await;
    site.end().await;
}

/// Prints what the server on port 7 answers.
const ASK: &str = "python3 -c \"import socket; s = socket.create_connection(('93.184.215.14', 7), 20); s.sendall(b'x'); \
    print(s.recv(9).decode())\"";

fn refused(sandbox: &Sandbox, refusal: Refusal) -> u64 {
    sandbox.network().unwrap().counts().refused.get(&refusal).copied().unwrap_or_default()
}

#[test]
fn a_sandbox_reaches_the_internet_by_name() {
    let config =
        BoxConfig { read_only: true, privileged: false, user: "nobody".into(), ..networked(&[], &[]) };
    with_box(config, async |internet, sandbox| {
        internet.zone().set("www.example.com", &["93.184.215.14", "2606:2800:21f::14"], 60);
        internet.listen(80, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        for family in ["-4", "-6"] {
            let page = sh(sandbox, &format!("curl -sS {family} -m 20 http://www.example.com/")).await;
            assert_eq!(page, "hello", "{family}");
        }
        let counts = sandbox.network().unwrap().counts();
        assert_eq!((counts.connections, counts.refused.len()), (2, 0), "{counts:?}");
    });
}

/// Its operator may have taken it away, by BOUVET_KERNEL_ARGS.
#[test]
fn a_sandbox_whose_kernel_has_no_ipv6_has_its_network_without() {
    with_internet(async |internet: Internet| {
        let Some(site) = Site::with_kernel_args(Vmm::Qemu, "ipv6.disable=1").await else { return };
        internet.zone().set("www.example.com", &["93.184.215.14", "2606:2800:21f::14"], 60);
        internet.listen(80, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        in_box(site, networked(&[], &[]), async |sandbox| {
            assert_eq!(sh(sandbox, "ls -d /proc/sys/net/ipv6 2>&1 | grep -c 'No such file'").await, "1");
            assert_eq!(sh(sandbox, "curl -sS -m 20 http://www.example.com/").await, "hello");
            assert_eq!(sh(sandbox, "cat /etc/resolv.conf").await, "nameserver 10.0.2.2");
        })
        .await;
    });
}

#[test]
fn echoes_and_datagrams_go_both_ways_over_both_families() {
    with_box(networked(&[], &[]), async |internet, sandbox| {
        internet.listen(7, b"answer");
        for address in ["93.184.215.14", "2606:2800:21f::14"] {
            let source = format!(
                "import socket\nf = socket.AF_INET6 if ':' in '{address}' else socket.AF_INET\n\
                 s = socket.socket(f, socket.SOCK_DGRAM)\ns.settimeout(20)\ns.sendto(b'x' * 60000, ('{address}', 7))\n\
                 print(s.recvfrom(99))"
            );
            let heard = printed(sandbox, Program::Python, &source).await;
            assert!(heard.contains("answer") && heard.contains(address), "{heard}");
            let kind = if address.contains(':') { 128 } else { 8 };
            let source = format!(
                "import socket, struct\nv6 = ':' in '{address}'\n\
                 s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM,\n\
                 \x20   socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP)\ns.settimeout(20)\n\
                 s.sendto(struct.pack('!BBHHH', {kind}, 0, 0, 0, 9) + b'payload', ('{address}', 0))\nprint(s.recv(99))"
            );
            let heard = printed(sandbox, Program::Python, &source).await;
            assert!(heard.contains("payload"), "{heard}");
        }
        let largest = internet.seen().into_iter().find(|seen| seen.protocol == "udp").unwrap();
        assert_eq!(largest.bytes.len(), 60_000, "it was not fragmented");
        let nobody = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(20)\n\
            s.connect(('93.184.215.14', 9))\ns.send(b'x')\n\
            try:\n    s.recv(9)\nexcept ConnectionRefusedError:\n    print('refused')";
        assert_eq!(printed(sandbox, Program::Python, nobody).await, "refused");
        let nobody = run(sandbox, Program::Command, "curl -sS -m 20 http://93.184.215.14:9/").await;
        assert_eq!(nobody.exit.exit_code, 7, "curl's word for it: {}", nobody.stderr.text());
    });
}

#[test]
fn bytes_arrive_as_they_were_and_each_direction_ends_by_itself() {
    with_box(networked(&[], &[]), async |internet, sandbox| {
        // Takes all, then says how much it was, then sends as much.
        internet.serve(9, async |mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream.write_all(format!("{} ", all.len()).as_bytes()).await?;
            stream.write_all(&all).await?;
            stream.shutdown().await
        });
        let source = "import socket, os, hashlib, time\ndata = os.urandom(8 << 20)\n\
            s = socket.create_connection(('93.184.215.14', 9), 60)\ns.sendall(data)\ns.shutdown(socket.SHUT_WR)\n\
            time.sleep(1)\nback = b''\nwhile part := s.recv(1 << 20):\n    back += part\n\
            length, _, back = back.partition(b' ')\nprint(int(length), back == data)";
        assert_eq!(printed(sandbox, Program::Python, source).await, format!("{} True", 8 << 20));
        // What the other side breaks off is broken off here.
        internet.serve(10, async |mut stream| {
            stream.read_u8().await?;
            let zero = Some(std::time::Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&stream, zero).map_err(std::io::Error::from)
        });
        let source = "import socket\ns = socket.create_connection(('93.184.215.14', 10), 20)\n\
            s.sendall(b'x')\ntry:\n    print(s.recv(9))\nexcept ConnectionResetError:\n    print('reset')";
        assert_eq!(printed(sandbox, Program::Python, source).await, "reset");
    });
}

#[test]
fn a_network_has_limits_and_works_on_past_them() {
    let network_limits = NetworkLimits {
        max_connections: 8,
        max_datagram_flows: 4,
        queries_per_s: 5,
        echoes_per_s: 2,
        ..NetworkLimits::default()
    };
    let config = BoxConfig { network_limits, ..networked(&[], &[]) };
    with_box(config, async |internet, sandbox| {
        internet.listen(7, b"answer");
        internet.zone().set("www.example.com", &["93.184.215.14"], 60);
        let source = "import socket\nheld, refused = [], 0\nfor _ in range(10):\n    try:\n        \
            held.append(socket.create_connection(('93.184.215.14', 7), 20))\n    except ConnectionRefusedError:\n        \
            refused += 1\nprint(len(held), refused)\n\
            for s in held:\n    s.sendall(b'x')\n    assert s.recv(9) == b'answer'";
        assert_eq!(printed(sandbox, Program::Python, source).await, "8 2");
        assert_eq!(refused(sandbox, Refusal::Limit), 2);
        eventually(sandbox, ASK).await;
        let source = "import socket\nanswered = 0\nfor n in range(6):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n    \
            s.settimeout(5)\n    s.bind(('', 2000 + n))\n    s.connect(('93.184.215.14', 7))\n    try:\n        \
            s.send(b'x')\n        answered += s.recv(9) == b'answer'\n    except OSError:\n        pass\nprint(answered)";
        assert_eq!(printed(sandbox, Program::Python, source).await, "4");
        let flood = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
            query = b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3www\\7example\\3com\\0\\0\\1\\0\\1'\n\
            for _ in range(50):\n    s.sendto(query, ('10.0.2.2', 53))";
        printed(sandbox, Program::Python, flood).await;
        eventually(sandbox, "getent hosts www.example.com").await;
        let before = internet.zone().asked().len();
        assert!(before < 50, "{before} questions went out");
        assert!(refused(sandbox, Refusal::Limit) >= 4 + 20, "{:?}", sandbox.network().unwrap().counts());
    });
}

#[test]
fn a_policy_can_be_changed_and_ends_what_it_does_not_allow() {
    with_box(networked(&["*.example.com"], &[]), async |internet, sandbox| {
        internet.zone().set("www.example.com", &["93.184.215.14"], 60);
        internet.zone().set("api.example.com", &["93.184.215.15"], 60);
        internet.listen(7, b"answer");
        let source = "import socket, sys\n\
            held = {name: socket.create_connection((name, 7), 20) for name in ('www.example.com', 'api.example.com')}\n\
            for s in held.values():\n    s.sendall(b'hello\\n'); s.recv(9)\nprint('connected', flush=True)\n\
            try:\n    print(held['www.example.com'].recv(9))\nexcept ConnectionResetError:\n    print('reset')\n\
            held['api.example.com'].sendall(b'hello\\n')\nprint(held['api.example.com'].recv(9).decode())";
        let request = ExecRequest { timeout: patient(60), ..ExecRequest::new(Program::Python, source) };
        let mut client = sandbox.exec_stream(request).await.unwrap();
        let mut heard = String::new();
        while let Some(event) = client.next().await.unwrap() {
            match event {
                StreamEvent::Stdout(data) => heard.push_str(&String::from_utf8_lossy(&data)),
                StreamEvent::Stderr(data) => panic!("{}", String::from_utf8_lossy(&data)),
                StreamEvent::Exit(_) => break,
            }
            if heard == "connected\n" {
                sandbox.network().unwrap().set_policy(&["api.example.com".into()], &[]).unwrap();
            }
        }
        assert_eq!(heard, "connected\nreset\nanswer\n");
        assert_eq!(refused(sandbox, Refusal::NotAllowed), 1);
        let denied = run(sandbox, Program::Command, "getent hosts www.example.com").await;
        assert_ne!(denied.exit.exit_code, 0);
        let wrong = sandbox.network().unwrap().set_policy(&["10.0.0.0/33".into()], &[]);
        assert!(wrong.is_err());
        assert_eq!(sandbox.network().unwrap().policy().allow.len(), 1, "it is as it was");
    });
}

#[test]
fn a_name_that_comes_to_lie_inside_is_not_followed() {
    with_box(networked(&["rebind.example"], &[]), async |internet, sandbox| {
        internet.listen(80, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        internet.zone().set("rebind.example", &["93.184.215.14"], 0);
        assert_eq!(sh(sandbox, "curl -sS -m 20 http://rebind.example/").await, "ok");
        internet.zone().set("rebind.example", &["10.9.9.9", "169.254.169.254"], 0);
        for _ in 0..3 {
            let again = run(sandbox, Program::Command, "curl -sS -m 20 http://rebind.example/").await;
            assert_ne!(again.exit.exit_code, 0, "{}", again.stdout.text());
        }
        let inside = ["10.9.9.9", "169.254.169.254"].map(|address| address.parse().unwrap());
        assert!(internet.seen().iter().all(|seen| !inside.contains(&seen.to.ip())));
        assert!(refused(sandbox, Refusal::Metadata) + refused(sandbox, Refusal::Private) >= 3);
    });
}

#[test]
fn the_hosts_loopback_is_reached_where_a_rule_says_so() {
    with_box(networked(&["host:8123"], &[]), async |_internet, sandbox| {
        let (tcp, udp) = (
            TcpListener::bind((Ipv4Addr::LOCALHOST, 8123)).await.unwrap(),
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 8123)).await.unwrap(),
        );
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhost").await.ok();
                stream.shutdown().await.ok();
            }
        });
        tokio::spawn(async move {
            let mut bytes = [0; 99];
            while let Ok((_, from)) = udp.recv_from(&mut bytes).await {
                udp.send_to(b"host", from).await.ok();
            }
        });
        assert_eq!(sh(sandbox, "curl -sS -m 20 http://host.bouvet.internal:8123/").await, "host");
        let source = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(20)\n\
            s.sendto(b'x', ('host.bouvet.internal', 8123))\nprint(s.recv(9).decode())";
        assert_eq!(printed(sandbox, Program::Python, source).await, "host");
        let other = run(sandbox, Program::Command, "curl -sS -m 20 http://host.bouvet.internal:8124/").await;
        assert_eq!(other.exit.exit_code, 7, "curl's word for it: {}", other.stderr.text());
    });
}

#[test]
fn connections_outlive_a_pause_and_a_sandbox_that_starts_again_has_its_network() {
    with_box(networked(&[], &[]), async |internet, sandbox| {
        internet.listen(7, b"answer");
        let source = "import socket\ns = socket.create_connection(('93.184.215.14', 7), 60)\nprint('connected', flush=True)\n\
            input()\ns.sendall(b'x')\nprint(s.recv(9).decode())";
        let request = ExecRequest { timeout: patient(60), ..ExecRequest::new(Program::Python, source) };
        let mut client = sandbox.exec_stream(request).await.unwrap();
        let mut heard = String::new();
        while let Some(event) = client.next().await.unwrap() {
            match event {
                StreamEvent::Stdout(data) => heard.push_str(&String::from_utf8_lossy(&data)),
                StreamEvent::Stderr(data) => panic!("{}", String::from_utf8_lossy(&data)),
                StreamEvent::Exit(_) => break,
            }
            if heard == "connected\n" {
                sandbox.pause().await.unwrap();
                sandbox.resume().await.unwrap();
                client.control().write("\n".into()).await.unwrap();
            }
        }
        assert_eq!(heard, "connected\nanswer\n");
        sandbox.stop(std::time::Duration::ZERO).await.unwrap();
        assert_eq!(sandbox.network().unwrap().counts().open_connections, 0);
        sandbox.start().await.unwrap();
        assert_eq!(sh(sandbox, ASK).await, "answer");
    });
}

#[test]
fn secrets_go_where_they_are_for_and_never_into_the_sandbox() {
    with_internet(async |internet: Internet| {
        let authority = tls::Authority::new();
        let Some(site) = Site::with_authority(Vmm::Qemu, authority.path()).await else { return };
        for (name, address) in [("api.example.com", "93.184.215.14"), ("www.example.com", "93.184.215.15")] {
            internet.zone().set(name, &[address], 60);
        }
        let seen = authority.serve(&internet, &["api.example.com", "www.example.com"]);
        let secret = SecretConfig {
            name: "API_KEY".into(),
            value: "hunter2".to_owned().into(),
            domains: vec!["api.example.com".into()],
        };
        let config = BoxConfig { secrets: vec![secret], ..networked(&[], &[]) };
        in_box(site, config, async |sandbox| {
        let placeholder = sh(sandbox, "echo $API_KEY").await;
        assert!(placeholder.starts_with("bouvet-secret-"), "{placeholder}");
        let shown = serde_json::to_string(&sandbox.info().config).unwrap();
        assert!(!shown.contains("hunter2") && shown.contains("API_KEY"), "{shown}");
        let curl = "curl -sS -m 30 https://api.example.com/curl -H \"Authorization: Bearer $API_KEY\" -d \"$API_KEY\"";
        assert_eq!(sh(sandbox, curl).await, "ok");
        let python = "import os, urllib.request\n\
            request = urllib.request.Request('https://api.example.com/python', headers={'x-key': os.environ['API_KEY']})\n\
            print(urllib.request.urlopen(request, timeout=30).read().decode())";
        assert_eq!(printed(sandbox, Program::Python, python).await, "ok");
        let node = "fetch('https://api.example.com/node', {headers: {'x-key': process.env.API_KEY}})\n\
            .then(r => r.text()).then(text => console.log(text))";
        assert_eq!(printed(sandbox, Program::Node, node).await, "ok");
        // Elsewhere it is what it is. The server's own authority is none of the sandbox's.
        let elsewhere =
            "curl -sSk -m 30 https://www.example.com/elsewhere -H \"Authorization: Bearer $API_KEY\"";
        assert_eq!(sh(sandbox, elsewhere).await, "ok");
        let fronted = "curl -sSk -m 30 -o /dev/null -w '%{http_code}' https://api.example.com/fronted -H 'Host: www.example.com'";
        assert_eq!(sh(sandbox, fronted).await, "421", "TLS for one, HTTP for another");
        let seen = seen.lock().unwrap().clone();
        let request = |path: &str| {
            seen.iter().find(|request| request.contains(path)).unwrap_or_else(|| panic!("{path}: {seen:?}"))
        };
        assert!(request("/curl").contains("Bearer hunter2") && request("/curl").ends_with(&placeholder));
        assert!(request("/python").to_lowercase().contains("x-key: hunter2"), "{seen:?}");
        assert!(request("/node").to_lowercase().contains("x-key: hunter2"), "{seen:?}");
        assert!(request("/elsewhere").contains(&format!("Bearer {placeholder}")));
        assert!(!seen.iter().any(|request| request.contains("/fronted")));
        let found = run(
            sandbox,
            Program::Command,
            "grep -rl hunter2 /proc/*/environ /etc /root /tmp /run 2>/dev/null",
        )
        .await;
        assert_eq!(found.stdout.text(), "");
        }).await;
    });
}
