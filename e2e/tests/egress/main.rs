//! Ways around a policy. Each is tried in a real VM, against an internet of the test's own, and must be refused: nothing
//! of it arrives, and its reason is counted.

mod cases;

use bouvet_e2e::drive::run;
use bouvet_e2e::internet::{Internet, NAME_SERVER, Seen, on_internet};
use bouvet_e2e::site::{Site, small};
use bouvet_host::{BoxConfig, NetworkMode, NetworkRefusal as Refusal, Program, Sandbox};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Handle;

/// What every case has.
#[derive(Clone)]
struct World {
    internet: Internet,
    /// With the public internet.
    open: Sandbox,
    /// With a few names, a few ports, and one network of its own.
    strict: Sandbox,
    /// With IPv4 alone.
    ipv4: Sandbox,
}

/// A way around.
struct Case {
    name: &'static str,
    sandbox: fn(&World) -> &Sandbox,
    program: Program,
    /// It must fail, or print nothing but `refused`.
    source: &'static str,
    /// `None` where its own kernel, or nobody at all, is in the way.
    refusal: Option<Refusal>,
}

/// What must not arrive, wherever it goes.
const MARK: &str = "contraband";

impl Case {
    async fn check(&self, world: &World) -> Result<(), Failed> {
        let sandbox = (self.sandbox)(world);
        let count = || {
            let network = sandbox.network().expect("it has one");
            self.refusal.map(|refusal| network.counts().refused.get(&refusal).copied().unwrap_or_default())
        };
        let before = count();
        let ran = run(sandbox, self.program, self.source).await;
        let (printed, complained) = (ran.stdout.text(), ran.stderr.text());
        let said = format!("exit code {}: {printed} {complained}", ran.exit.exit_code);
        if ran.exit.exit_code == 0 && printed.trim() != "refused" {
            return Err(format!("it was not refused: {said}").into());
        }
        let is_through = |seen: &Seen| String::from_utf8_lossy(&seen.bytes).contains(MARK);
        if let Some(seen) = world.internet.seen().into_iter().find(is_through) {
            return Err(format!("it got through to {}: {said}", seen.to).into());
        }
        if self.refusal.is_some() && count() == before {
            let network = sandbox.network().expect("it has one");
            let last: Vec<_> = network.refusals().into_iter().rev().take(3).collect();
            return Err(format!("{:?} was not counted: {said}; last {last:?}", self.refusal).into());
        }
        Ok(())
    }
}

fn networked(allow: &[&str]) -> BoxConfig {
    let allow = allow.iter().map(|text| (*text).to_owned()).collect();
    BoxConfig { network: NetworkMode::Tsi, dns: vec![NAME_SERVER.into()], allow, ..small() }
}

async fn begin(internet: Internet, site: &Site) -> World {
    let zone = internet.zone();
    zone.set("www.example.com", &["93.184.215.14"], 60);
    zone.set("evil.example", &["93.184.215.15"], 60);
    zone.set("dns.google", &["93.184.215.15"], 60);
    zone.set("inside.example.com", &["10.9.9.9", "fd12:3456::9", "169.254.169.254", "127.0.0.1"], 60);
    zone.set("mapped.example.com", &["::ffff:10.9.9.9", "64:ff9b::a09:909"], 60);
    zone.alias("alias.example.com", "other.example.com");
    zone.alias("other.example.com", "inside.example.com");
    for port in [22, 25, 443, 853, 3000, 5353, 8080] {
        internet.listen(port, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    }
    internet.listen(53, b"nothing that would be DNS");
    // As open a server as can be: it sends everybody to a private address, and keeps its connections.
    internet.listen(
        80,
        b"HTTP/1.1 302 Found\r\nLocation: http://10.9.9.9:8080/contraband\r\nContent-Length: 0\r\n\r\n",
    );
    internet.watch_echoes();
    let open = site.host.create(networked(&[])).await.expect("a sandbox");
    let strict = ["*.example.com:80", "*.example.com:443", "*.example.com:22", "192.168.9.0/24:3000"];
    let strict = site.host.create(networked(&strict)).await.expect("a sandbox");
    let ipv4 = site.host.create(networked(&["0.0.0.0/0"])).await.expect("a sandbox");
    World { internet, open, strict, ipv4 }
}

fn main() {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let names: Vec<_> = cases::CASES.iter().map(|case| case.name).collect();
    if arguments.list {
        let trials = names.into_iter().map(|name| Trial::test(name, || Ok(()))).collect();
        libtest_mimic::run(&arguments, trials).exit();
    }
    on_internet(move |internet, runtime| {
        let Some(site) = runtime.block_on(Site::qemu()) else { return };
        let world = runtime.block_on(begin(internet, &site));
        let trials = cases::CASES.iter().map(|case| trial(case, &world, runtime.handle())).collect();
        let conclusion = libtest_mimic::run(&arguments, trials);
        let World { open, strict, ipv4, .. } = world;
        runtime.block_on(async {
            for sandbox in [open, strict, ipv4] {
                sandbox.destroy().await;
            }
            site.end().await;
        });
        conclusion.exit_if_failed();
    });
}

fn trial(case: &'static Case, world: &World, runtime: &Handle) -> Trial {
    let (world, runtime) = (world.clone(), runtime.clone());
    Trial::test(case.name, move || runtime.block_on(case.check(&world)))
}
