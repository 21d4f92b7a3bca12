//! Servers in boxes, and clients on this machine.

use bouvet_e2e::drive::{eventually, sh};
use bouvet_e2e::registry::{Layout, REQUIRE, command};
use bouvet_e2e::skip::skipped;
use bouvet_e2e::system;
use bouvet_host::{BoxConfig, Sandbox};
use tar::{Builder, Header};

use super::{FORBIDDEN, World, networked};

/// Serves a file, and passes on what two others say: one that it may reach, and one that it may not.
const NGINX: &str = "daemon off;
worker_processes 1;
events {}
http {
    access_log off;
    error_log /dev/stderr;
    server {
        listen 80;
        root /srv/www;
        location /index/ { proxy_pass http://pypi.example.com/simple/hello-bouvet/; }
        location /elsewhere/ { proxy_pass http://93.184.215.15/; }
    }
}
";

/// A box of that image, with a port of this machine that leads to `guest` in it, and the network of [`networked`].
fn of(layout: &Layout, tag: &str, guest: u16) -> BoxConfig {
    BoxConfig {
        image: format!("oci:{}:{tag}", layout.path().display()),
        port_map: vec![format!("0:{guest}")],
        privileged: false,
        ..networked(256)
    }
}

fn port(sandbox: &Sandbox) -> u16 {
    sandbox.ports()[0].host.port()
}

/// Runs a program of this machine, which has its own namespace, and says what it printed, or complained of.
async fn here(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut program = command(program);
    program.args(arguments);
    let output = tokio::task::spawn_blocking(move || program.output()).await.unwrap().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

pub(crate) async fn nginx(world: &World) {
    let Some(layout) = &world.servers else { return };
    let mut files = Builder::new(Vec::new());
    for (path, text) in [("etc/nginx/nginx.conf", NGINX), ("srv/www/index.html", "hello from a box\n")] {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        files.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    layout.derive(system::TAG, "nginx");
    layout.add("nginx", &files.into_inner().unwrap());
    layout.configure("nginx", &["--config.entrypoint=nginx"]);

    let sandbox = world.site.host.create(of(layout, "nginx", 80)).await.unwrap();
    let curl = ["--silent", "--show-error", "--fail", "--max-time", "60"];
    let get = async |path: &str, options: &[&str]| {
        let page = format!("http://127.0.0.1:{}/{path}", port(&sandbox));
        here("curl", &[&curl[..], options, &[&page]].concat()).await
    };
    // It takes its time to start.
    let until_it_listens = ["--retry", "60", "--retry-delay", "1", "--retry-all-errors"];
    assert_eq!(get("", &until_it_listens).await.as_deref(), Ok("hello from a box\n"));
    let index = get("index/", &[]).await.unwrap();
    assert!(index.contains("hello_bouvet-1.0.0-py3-none-any.whl"), "{index}");
    let elsewhere = get("elsewhere/", &[]).await.unwrap_err();
    assert!(elsewhere.contains("502"), "{elsewhere}");
    assert_eq!(world.internet.seen(), [], "it got through");
    sandbox.destroy().await;
}

pub(crate) async fn postgres(world: &World) {
    if let Err(error) = command("psql").arg("--version").output() {
        return skipped(REQUIRE, &format!("`psql` does not start, {error}: postgresql-client has it"));
    }
    let Some(layout) = &world.servers else { return };
    layout.derive(system::TAG, "postgres");
    layout.configure("postgres", &["--config.user=postgres"]);
    let main = "exec /usr/lib/postgresql/15/bin/postgres -D /etc/postgresql/15/main \
        -c unix_socket_directories=/tmp -c external_pid_file=/tmp/pid";
    let words = ["sh", "-c", main].map(str::to_owned);
    let config = BoxConfig { entrypoint_override: Some(words.into()), ..of(layout, "postgres", 5432) };
    let sandbox = world.site.host.create(config).await.unwrap();
    eventually(&sandbox, "psql -h /tmp -c \"alter user postgres password 'secret'\"").await;

    let server = format!(
        "host=127.0.0.1 port={} user=postgres password=secret sslmode=require connect_timeout=60",
        port(&sandbox)
    );
    let psql = ["--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"];
    let sql = async |sql: &str| here("psql", &[&psql[..], &["--command", sql, &server]].concat()).await;
    let filled = sql("create table words as select n, repeat(md5(n::text), 100) as word \
        from generate_series(1, 500) as n")
    .await;
    assert_eq!(filled.as_deref(), Ok("SELECT 500\n"));
    assert_eq!(sql("select count(*), sum(length(word)) from words").await.as_deref(), Ok("500|1600000\n"));
    let all = sql("select word from words order by n").await.unwrap();
    assert_eq!(all.len(), 500 * 3201, "more than a megabyte comes whole");
    let wrong = here("psql", &["--command", "select 1", &server.replace("secret", "guess")]).await;
    assert!(wrong.as_ref().is_err_and(|said| said.contains("password authentication failed")), "{wrong:?}");

    let elsewhere = format!("psql \"host={FORBIDDEN} user=postgres connect_timeout=30\" -c 'select 1'");
    world.assert_refused(&sandbox, &elsewhere, "connection to server at \"93.184.215.15\"").await;
    assert_eq!(sh(&sandbox, "whoami").await, "postgres");
    sandbox.destroy().await;
}
