//! Networks of sandboxes, in real VMs, to an internet of the test's own.

use bouvet_e2e::drive::sh;
use bouvet_e2e::internet::{Internet, NAME_SERVER, with_internet};
use bouvet_e2e::site::{Site, small};
use bouvet_host::{BoxConfig, NetworkMode};

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

#[test]
fn a_sandbox_reaches_the_internet_by_name() {
    with_internet(async |internet: Internet| {
        let Some(site) = Site::qemu().await else { return };
        internet.zone().set("www.example.com", &["93.184.215.14", "2606:2800:21f::14"], 60);
        internet.listen(80, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        let sandbox = site.host.create(networked(&[], &[])).await.unwrap();
        for family in ["-4", "-6"] {
            let page = sh(&sandbox, &format!("curl -sS {family} -m 20 http://www.example.com/")).await;
            assert_eq!(page, "hello", "{family}");
        }
        let counts = sandbox.network().unwrap().counts();
        assert_eq!((counts.connections, counts.refused.len()), (2, 0), "{counts:?}");
        sandbox.destroy().await;
        site.end().await;
    });
}
