//! Real clients in real VMs, and real servers: on an internet of the test's own, and in the VMs.

#![expect(clippy::unwrap_used, reason = "tests")]

mod boxes;
mod outward;
mod web;

use std::sync::Arc;
use std::time::Duration;

use bouvet_e2e::drive::{run_at_most, sh};
use bouvet_e2e::internet::{Internet, NAME_SERVER, lacks, on_internet};
use bouvet_e2e::registry::Layout;
use bouvet_e2e::site::{Site, small};
use bouvet_e2e::system;
use bouvet_e2e::tls::Authority;
use bouvet_host::{BoxConfig, NetworkMode, NetworkRefusal as Refusal, Program, ResourceConfig, Sandbox};
use bytes::Bytes;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// What all tests have.
struct World {
    internet: Internet,
    site: Site,
    /// With the image of servers; `None` where it cannot be made.
    servers: Option<Layout>,
    authority: Authority,
    _web: web::Web,
    sandbox: OnceCell<Sandbox>,
}

/// Where the names are that are allowed.
const WEB: &str = "93.184.215.14";
/// Where the name is that is not allowed, and where nobody is to come.
const FORBIDDEN: &str = "93.184.215.15";
const ALLOWED: [&str; 4] = ["pypi.example.com", "npm.example.com", "git.example.com", "ws.example.com"];
/// More than any client should need to say that it was refused.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);

type Test = for<'a> fn(&'a World) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>>;

const TESTS: [(&str, Test); 6] = [
    ("pip_installs_from_an_index", |world| Box::pin(outward::pip(world))),
    ("npm_installs_from_a_registry", |world| Box::pin(outward::npm(world))),
    ("git_clones_over_http", |world| Box::pin(outward::git(world))),
    ("a_websocket_carries_messages_both_ways", |world| Box::pin(outward::websocket(world))),
    ("nginx_is_reached_from_this_machine", |world| Box::pin(boxes::nginx(world))),
    ("postgres_is_reached_by_psql", |world| Box::pin(boxes::postgres(world))),
];

/// With a network that reaches these names and no others.
fn networked(memory_mb: u32) -> BoxConfig {
    BoxConfig {
        resources: ResourceConfig { vcpus: 1, memory_mb, ..ResourceConfig::default() },
        network: NetworkMode::Tsi,
        dns: vec![NAME_SERVER.into()],
        allow: ALLOWED.map(str::to_owned).into(),
        ..small()
    }
}

impl World {
    async fn new(internet: Internet, site: Site, servers: Option<Layout>) -> Self {
        for name in ALLOWED {
            internet.zone().set(name, &[WEB], 3600);
        }
        internet.zone().set("ws.example.com", &[outward::ECHO], 3600);
        internet.zone().set("evil.example", &[FORBIDDEN], 3600);
        for port in [80, 443, 5432] {
            internet.listen_at(&[FORBIDDEN], port, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
        }
        let authority = Authority::new();
        let web = web::Web::start(&internet, WEB, &authority.issue(&ALLOWED));
        Self { internet, site, servers, authority, _web: web, sandbox: OnceCell::new() }
    }

    /// One of the base image, which trusts the authority.
    async fn sandbox(&self) -> &Sandbox {
        let make = async || {
            let sandbox = self.site.host.create(networked(512)).await.unwrap();
            let authority = std::fs::read(self.authority.path()).unwrap();
            sandbox.write("authority.pem", Bytes::from(authority), false).await.unwrap();
            sh(&sandbox, "cat authority.pem >>/etc/ssl/certs/ca-certificates.crt").await;
            sandbox
        };
        self.sandbox.get_or_init(make).await
    }

    /// Panics unless `command` fails soon and says `complaint`, its refusal was counted, and nothing of it arrived.
    async fn assert_refused(&self, sandbox: &Sandbox, command: &str, complaint: &str) {
        let count = || {
            let counts = sandbox.network().unwrap().counts();
            counts.refused.get(&Refusal::NotAllowed).copied().unwrap_or_default()
        };
        let before = count();
        let ran = run_at_most(sandbox, REFUSED_WITHIN.as_secs(), Program::Command, command).await;
        let said = format!("{}{}", ran.stdout.text(), ran.stderr.text());
        assert!(!ran.exit.timed_out, "`{command}` waits for what will not come: {said}");
        assert_ne!(ran.exit.exit_code, 0, "`{command}`: {said}");
        assert!(said.contains(complaint), "`{command}` does not say `{complaint}`: {said}");
        assert!(count() > before, "`{command}` was not counted: {said}");
        assert_eq!(self.internet.seen(), [], "`{command}` got through");
        let asked = self.internet.zone().asked();
        assert!(asked.iter().all(|(name, _)| name != "evil.example"), "the name got through: {asked:?}");
    }

    async fn end(self) {
        if let Some(sandbox) = self.sandbox.into_inner() {
            sandbox.destroy().await;
        }
        self.site.end().await;
    }
}

fn main() {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    if arguments.list {
        let trials = TESTS.map(|(name, _)| Trial::test(name, || Ok(())));
        libtest_mimic::run(&arguments, trials.into()).exit();
    }
    // Its packages come from where the internet of these tests does not lead.
    let servers = if lacks().is_none() { system::servers() } else { None };
    on_internet(move |internet, runtime| {
        let Some(site) = runtime.block_on(Site::qemu()) else { return };
        let world = Arc::new(runtime.block_on(World::new(internet, site, servers)));
        let trials = TESTS.map(|(name, test)| trial(name, test, &world, runtime));
        let conclusion = libtest_mimic::run(&arguments, trials.into());
        runtime.block_on(Arc::into_inner(world).unwrap().end());
        conclusion.exit_if_failed();
    });
}

fn trial(name: &str, test: Test, world: &Arc<World>, runtime: &Runtime) -> Trial {
    let (world, runtime) = (world.clone(), runtime.handle().clone());
    Trial::test(name, move || {
        runtime.block_on(test(&world));
        Ok::<_, Failed>(())
    })
}
