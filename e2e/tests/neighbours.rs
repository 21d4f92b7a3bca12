//! Sandboxes on named networks, in real VMs: each other's servers by name and address, and nobody else's.

#![expect(clippy::unwrap_used, reason = "tests")]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use bouvet_e2e::drive::{eventually, printed, run, sh};
use bouvet_e2e::site::{Site, Vmm, small};
use bouvet_host::{
    BoxConfig, CreateError, NamedNetworkError, NetworkError, NetworkMode, NetworkRefusal as Refusal, Program,
    Sandbox,
};

fn on(network: &str, name: &str) -> BoxConfig {
    BoxConfig {
        network: NetworkMode::Bridge { network: network.into() },
        name: name.into(),
        // Nobody answers for names there, and says so at once.
        dns: vec!["127.0.0.1:1".into()],
        ..small()
    }
}

/// Serves its own name on port 80, and ends datagrams of port 7 with `!`.
async fn serve(sandbox: &Sandbox, name: &str) {
    let source = format!(
        "mkdir -p /srv && cd /srv && echo {name} > index.html && \
         (python3 -m http.server --bind :: 80 >/dev/null 2>&1 &)\n\
         cat > /srv/echo.py <<'END'\n\
         import socket\n\
         s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
         s.bind(('::', 7))\n\
         while True:\n\
         \x20   data, whom = s.recvfrom(65535)\n\
         \x20   s.sendto(data + b'!', whom)\n\
         END\n\
         (python3 /srv/echo.py >/dev/null 2>&1 &)"
    );
    sh(sandbox, &source).await;
    eventually(sandbox, "curl -sS http://[::1]/ && ss -uln | grep -q ':7 '").await;
}

async fn page(sandbox: &Sandbox, url: &str) -> String {
    sh(sandbox, &format!("curl -sS -m 30 {url}")).await
}

/// A server that listens at the sandbox's own name is reached, through a port of the host too. Names without dots are asked
/// for as they are.
async fn own_name_is_its_address(sandbox: &Sandbox) {
    let [ipv4, ipv6] = sandbox.network().unwrap().addresses().map(|address| address.to_string());
    let own = "import socket\nname = socket.gethostname()\nprint(socket.gethostbyname(name))\n\
        print(socket.getaddrinfo(name, 1, socket.AF_INET6)[0][4][0])";
    assert_eq!(printed(sandbox, Program::Python, own).await, format!("{ipv4}\n{ipv6}"));
    sh(sandbox, "cd /srv && (python3 -m http.server --bind $(hostname) 81 >/dev/null 2>&1 &)").await;
    eventually(sandbox, "curl -sS http://$(hostname):81/").await;
    let port = sandbox.expose("81".parse().unwrap()).unwrap().host;
    let mut stream = tokio::net::TcpStream::connect(port).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    assert!(page.starts_with("HTTP/1.0 200"), "{page}");
    assert!(sh(sandbox, "grep ^options /etc/resolv.conf").await.contains("ndots:"));
}

/// Curl's exit code.
async fn code(sandbox: &Sandbox, url: &str) -> i32 {
    run(sandbox, Program::Command, &format!("curl -sS -m 30 {url}")).await.exit.exit_code
}

fn refused(sandbox: &Sandbox, refusal: Refusal) -> u64 {
    sandbox.network().unwrap().counts().refused.get(&refusal).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_on_a_network_reach_each_other_and_nobody_else_does() {
    const COULD_NOT_RESOLVE: i32 = 6;
    const COULD_NOT_CONNECT: i32 = 7;
    let Some(site) = Site::qemu().await else { return };
    let host = &site.host;
    host.create_network("shop", None).unwrap();
    host.create_network("other", None).unwrap();
    let db = host.create(on("shop", "db")).await.unwrap();
    let web = host.create(on("shop", "web")).await.unwrap();
    let spy = host.create(on("other", "spy")).await.unwrap();
    let alone = host
        .create(BoxConfig { network: NetworkMode::Tsi, name: "alone".into(), ..on("", "") })
        .await
        .unwrap();
    for (sandbox, name) in [(&db, "db"), (&web, "web")] {
        serve(sandbox, name).await;
    }
    let addresses = db.network().unwrap().addresses();
    let [ipv4, ipv6] = addresses.map(|address| address.to_string());
    // By name, by both families, by id and by address; each is a server and a client.
    for url in ["http://db/", "-4 http://DB./", "-6 http://db/", &format!("http://{}/", db.id())] {
        assert_eq!(page(&web, url).await, "db", "{url}");
    }
    assert_eq!(page(&web, &format!("http://{ipv4}/")).await, "db");
    assert_eq!(page(&web, &format!("http://[{ipv6}]/")).await, "db");
    assert_eq!(page(&db, "http://web/").await, "web");
    // Datagrams, the largest too, echoes, and what says that nobody listens.
    let source = "import socket\n\
        for family in (socket.AF_INET, socket.AF_INET6):\n\
        \x20   to = socket.getaddrinfo('db', 7, family, socket.SOCK_DGRAM)[0][4]\n\
        \x20   s = socket.socket(family, socket.SOCK_DGRAM)\n    s.settimeout(20)\n\
        \x20   s.sendto(b'x' * 65000, to)\n    print(len(s.recv(65535)))\n\
        \x20   s = socket.socket(family, socket.SOCK_DGRAM)\n    s.settimeout(20)\n\
        \x20   s.connect((to[0], 9))\n    s.send(b'x')\n\
        \x20   try:\n        s.recv(9)\n    except ConnectionRefusedError:\n        print('refused')";
    assert_eq!(printed(&web, Program::Python, source).await, "65001\nrefused\n65001\nrefused");
    sh(&web, "ping -c 2 -W 20 db && ping -6 -c 2 -W 20 db").await;
    assert_eq!(code(&web, "http://db:81/").await, COULD_NOT_CONNECT, "its own kernel refuses");
    assert_eq!(refused(&web, Refusal::Sandbox), 0);
    // Many bytes, whole.
    sh(&db, "head -c 32M /dev/urandom > /srv/data && cd /srv && sha256sum data > sum").await;
    sh(&web, "cd /tmp && curl -sS -m 120 -O http://db/data -O http://db/sum && sha256sum -c sum").await;
    // Who is elsewhere finds neither names nor addresses.
    for stranger in [&spy, &alone] {
        assert_eq!(code(stranger, "http://db/").await, COULD_NOT_RESOLVE);
        assert_eq!(code(stranger, &format!("http://{ipv4}/")).await, COULD_NOT_CONNECT);
        assert_eq!(code(stranger, &format!("http://[{ipv6}]/")).await, COULD_NOT_CONNECT);
        assert_eq!(refused(stranger, Refusal::Private), 2, "{:?}", stranger.network().unwrap().refusals());
    }
    // Nor does who takes an address that is not its own.
    sh(&spy, &format!("ip addr add {ipv4}/16 dev eth0")).await;
    let web_ipv4 = web.network().unwrap().addresses()[0];
    assert_eq!(
        code(&spy, &format!("-m 5 --interface {ipv4} http://{web_ipv4}/")).await,
        28,
        "no answer, in time"
    );
    assert!(refused(&spy, Refusal::Source) > 0);
    let listed = host.list_networks().unwrap();
    let shop = listed.iter().find(|network| network.name == "shop").unwrap();
    assert_eq!(shop.sandboxes, [db.id(), web.id()]);
    // What is used is not removed.
    let Err(NamedNetworkError::InUse { by, .. }) = host.remove_network("shop") else {
        panic!("it was removed")
    };
    assert_eq!(by, "db, web");
    for sandbox in [db, web, spy, alone] {
        sandbox.destroy().await;
    }
    for network in ["shop", "other"] {
        host.remove_network(network).unwrap();
    }
    let gone = host.create(on("shop", "db")).await.unwrap_err();
    assert!(
        matches!(&gone, CreateError::Network(NetworkError::Named(NamedNetworkError::None(name))) if name == "shop")
    );
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_sandbox_is_on_its_network_again_when_it_is_started_again() {
    let boxes = tempfile::tempdir().unwrap();
    let Some(site) = Site::with_boxes(Vmm::Qemu, boxes.path()).await else { return };
    let host = &site.host;
    host.create_network("shop", Some("10.9.8.0/29")).unwrap();
    let db = host.create(BoxConfig { persistent: true, ..on("shop", "db") }).await.unwrap();
    let web = host.create(on("shop", "web")).await.unwrap();
    serve(&db, "db").await;
    assert_eq!(page(&web, "http://db/").await, "db");
    let before = db.network().unwrap().addresses();
    assert_eq!(before[0].to_string(), "10.9.8.2");
    own_name_is_its_address(&db).await;
    db.stop(std::time::Duration::from_secs(20)).await.unwrap();
    assert_eq!(code(&web, "http://10.9.8.2/").await, 7, "nobody is there");
    db.start().await.unwrap();
    assert_eq!(db.network().unwrap().addresses(), before);
    serve(&db, "db").await;
    assert_eq!(page(&web, "http://db/").await, "db");
    db.destroy().await;
    web.destroy().await;
    host.remove_network("shop").unwrap();
    site.end().await;
}
