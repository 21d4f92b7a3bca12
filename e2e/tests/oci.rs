//! Boxes of OCI images: real ones, from real registries, in real VMs.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use bouvet_e2e::drive::{eventually, patient, sh};
use bouvet_e2e::registry::{Access, Layout, Registry};
use bouvet_e2e::site::{Site, Vmm, small};
use bouvet_e2e::system;
use bouvet_host::{
    BoxConfig, CacheConfig, ConnectError, CreateError, ExecRequest, Host, LogOptions, LogStream, NetworkMode,
    PoolConfig, Program, Sandbox, SidecarConfig, State, Stop,
};
use tar::{Builder, EntryType, Header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A layer of text files.
fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn of(image: impl Into<String>) -> BoxConfig {
    BoxConfig { image: image.into(), privileged: false, ..small() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

async fn log(sandbox: &Sandbox) -> String {
    let (mut log, mut text) = (sandbox.logs(LogOptions::default()), Vec::new());
    while let Some(record) = log.next().await {
        text.extend_from_slice(&record.data);
    }
    String::from_utf8(text).unwrap()
}

/// What a main program prints that ends by itself, and how it ended.
async fn ran(host: &Host, config: BoxConfig) -> (String, i32) {
    let sandbox = host.create(config).await.unwrap();
    let stop = sandbox.wait().await.unwrap();
    let printed = log(&sandbox).await;
    sandbox.destroy().await;
    (printed, stop.exit_code)
}

/// Waits until the sidecar has printed `what` on its standard output, and nothing else.
async fn sidecar_says(sandbox: &Sandbox, what: &str) {
    let mut log = sandbox.sidecar_logs(LogOptions { follow: true, ..LogOptions::default() });
    let mut said = String::new();
    let all = async {
        while said.len() < what.len()
            && let Some(record) = log.next().await
        {
            if record.stream == LogStream::Stdout {
                said.push_str(&String::from_utf8_lossy(&record.data));
            }
        }
    };
    let waited = tokio::time::timeout(patient(60), all).await;
    assert!(waited.is_ok() && said == what, "it said {said:?}, and not {what:?}");
}

/// An image of the system with one more layer, configured by arguments of `umoci config`.
fn derived(layout: &Layout, tag: &str, files: &[(&str, &str)], arguments: &[&str]) {
    layout.derive(system::TAG, tag);
    layout.add(tag, &layer(files));
    layout.configure(tag, arguments);
}

const NGINX: &str = "daemon off;
worker_processes 1;
events {}
http {
    access_log /dev/stdout;
    error_log /dev/stderr;
    server { listen 80; root /srv/www; }
}
";

const GET: &str =
    r"exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && tail -n 1 <&3 | grep .";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nginx_from_a_registry_serves_and_stops_as_its_image_says() {
    let (Some(registry), Some(layout)) = (Registry::start(Access::Open), system::layout()) else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    let files = [("etc/nginx/nginx.conf", NGINX), ("srv/www/index.html", "hello from an image")];
    let run = ["--config.entrypoint=nginx", "--config.stopsignal=SIGQUIT", "--config.env=LANG=C.UTF-8"];
    derived(&layout, "nginx", &files, &run);
    registry.push(&layout.name("nginx"), "nginx:1", &[]);

    let image = registry.reference("nginx:1").to_string();
    let sandbox = site.host.create(BoxConfig { read_only: false, ..of(&image) }).await.unwrap();
    eventually(&sandbox, GET).await;
    assert_eq!(sh(&sandbox, GET).await, "hello from an image");
    assert!(log(&sandbox).await.contains("\"GET / HTTP/1.0\" 200"), "its log is its output");
    assert_eq!(sh(&sandbox, "cat /proc/1/comm; echo $LANG").await, "nginx\nC.UTF-8");
    sandbox.stop(patient(30)).await.unwrap();
    assert_eq!(sandbox.state(), State::Stopped(Stop { exit_code: 0, out_of_memory: false }), "gracefully");

    // From the cache, without the registry; and its template is there.
    drop(registry);
    let again = site.host.create(of(&image)).await.unwrap();
    eventually(&again, GET).await;
    let error = site.host.remove_image(&image, false).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    again.destroy().await;
    sandbox.destroy().await;
    assert_eq!(site.host.list_images().await.unwrap().len(), 1);
    site.host.remove_image(&image, false).await.unwrap();
    assert!(site.host.create(of(&image)).await.is_err(), "neither here nor there");
    site.end().await;
}

const SERVICE: &str = "import os, sys
print(os.getuid(), os.getgid(), os.getcwd(), os.environ['HOME'], os.environ.get('WHO'), sys.argv[1:], flush=True)
print('again', file=open('/dev/stdout', 'w'), flush=True)
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_service_runs_as_its_image_and_its_caller_say() {
    let Some(layout) = system::layout() else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    let files =
        [("srv/app/service.py", SERVICE), ("etc/passwd", passwd), ("etc/group", "root:x:0:\napp:x:1001:\n")];
    let run = [
        "--config.entrypoint=python3",
        "--config.entrypoint=service.py",
        "--config.cmd=one",
        "--config.cmd=two",
        "--config.user=app",
        "--config.workingdir=/srv/app",
        "--config.env=WHO=image",
    ];
    derived(&layout, "service", &files, &run);
    let image = format!("oci:{}:service", layout.path().display());
    let host = &site.host;
    let first = ran(host, of(&image)).await;
    assert_eq!(first, ("1000 1001 /srv/app /home/app image ['one', 'two']\nagain\n".into(), 0));
    let config = BoxConfig {
        cmd: words(&["three"]),
        extra_env: vec![("WHO".into(), "caller".into())],
        user: "0".into(),
        ..of(&image)
    };
    assert_eq!(ran(host, config).await.0, "0 0 /srv/app /root caller ['three']\nagain\n");
    let config = BoxConfig {
        entrypoint_override: Some(words(&["sh", "-c", "pwd; exit 9"])),
        working_dir: "/etc".into(),
        ..of(&image)
    };
    assert_eq!(ran(host, config).await, ("/etc\n".into(), 9));

    // The languages of the base image work in others, where they are; and as the image's user.
    let config = BoxConfig { entrypoint_override: Some(words(&["sleep", "1000"])), ..of(&image) };
    let sandbox = host.create(config).await.unwrap();
    let request = ExecRequest::new(Program::Python, "import os; print(os.getuid(), os.environ['WHO'])");
    let result = sandbox.exec(request).await.unwrap().finish().await.unwrap();
    assert_eq!(result.stdout.text(), "1000 image\n", "{}", result.stderr.text());
    let error = sandbox.exec(ExecRequest::arguments(["node"]).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("there is no program `node`"), "{error}");
    site.end().await;
}

/// Listens on vsock, or on the loopback interface where it is told so, and answers each connection once.
const SIDECAR: &str = "import os, signal, socket, sys
def end(*_):
    print('asked to end', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
port = int(os.environ['PORT'])
if os.environ['KIND'] == 'vsock':
    server = socket.socket(socket.AF_VSOCK)
    server.bind((socket.VMADDR_CID_ANY, port))
else:
    server = socket.socket()
    server.bind(('127.0.0.1', port))
server.listen()
open('/dev/shm/mine', 'w').write('x')
print('first', os.getpid(), os.getuid(), os.getcwd(), os.environ.get('WHO'), os.path.exists('/main'), flush=True)
while True:
    connection = server.accept()[0]
    asked = b''
    while part := connection.recv(65536):
        asked += part
    if asked == b'die':
        sys.exit(3)
    try:
        connection.sendall(asked.upper() + open('/etc/own').read().encode())
    except OSError:
        pass
    connection.close()
";

/// What the sidecar answers to `order`.
async fn told(sandbox: &Sandbox, order: &[u8]) -> Vec<u8> {
    let deadline = std::time::Instant::now() + patient(30);
    let mut tunnel = loop {
        match sandbox.connect_sidecar().await {
            Ok(tunnel) => break tunnel,
            // It was started; that it listens comes later.
            Err(ConnectError::NotListening(_) | ConnectError::TooMany(_))
                if std::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    tunnel.write_all(order).await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tunnel.read_to_end(&mut answer).await.unwrap();
    answer
}

/// A layer with what systems have where a guest mounts or writes: directories of services below `/run`, and links to
/// what other services would write.
fn run_and_links() -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o2750);
    header.set_uid(33);
    archive.append_data(&mut header, "run/db", &[][..]).unwrap();
    let links = [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("etc/hostname", "/nowhere/hostname"),
        ("etc/hosts", "hosts.of.the.image"),
        ("etc/machine-id", "/var/lib/dbus/machine-id"),
        ("srv/run", "/run"),
    ];
    for (path, target) in links {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, path, target).unwrap();
    }
    archive.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_keeps_its_run_and_loses_links_at_names() {
    let Some(layout) = system::layout() else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    let files =
        [("etc/hosts.of.the.image", "kept\n"), ("workspace/file", "of the image\n"), ("run/pid", "7\n")];
    derived(&layout, "run", &files, &["--config.user=www-data"]);
    layout.add("run", &run_and_links());
    let main = "stat -c '%a %u' /run/db /var/run/db && cat /run/pid /workspace/file && touch /srv/run/db/x /var/lock/y && \
                cat /etc/hosts.of.the.image && ls -d /nowhere /var/lib/dbus/machine-id /run/systemd 2>/dev/null; \
                for file in hostname hosts machine-id resolv.conf; do test -L /etc/$file && echo link; \
                test -s /etc/$file || echo empty; done; cat /etc/hostname";
    let config = BoxConfig {
        cmd: words(&["sh", "-c", main]),
        hostname: "web".into(),
        network: NetworkMode::Tsi,
        ..of(format!("oci:{}:run", layout.path().display()))
    };
    let expected = "2750 33\n2750 33\n7\nof the image\nkept\nweb\n";
    assert_eq!(ran(&site.host, config).await, (expected.into(), 0));
    site.end().await;
}

async fn sidecar_log(sandbox: &Sandbox) -> String {
    let (mut log, mut text) = (sandbox.sidecar_logs(LogOptions::default()), Vec::new());
    while let Some(record) = log.next().await {
        text.extend_from_slice(&record.data);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_is_there_first_and_takes_orders() {
    let Some(layout) = system::layout() else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    let files = [("srv/sidecar.py", SIDECAR), ("etc/own", " of the sidecar")];
    let run = ["--config.entrypoint=python3", "--config.cmd=/srv/sidecar.py", "--config.workingdir=/made/up"];
    derived(&layout, "sidecar", &files, &run);
    // A hostile link leads nowhere but into its own root.
    let mut links = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    links.append_link(&mut header, "etc/hostname", "/led-astray").unwrap();
    layout.add("sidecar", &links.into_inner().unwrap());
    let with = |kind: &str, port: u32| SidecarConfig {
        image: format!("oci:{}:sidecar", layout.path().display()),
        vsock_port: port,
        env: [("KIND", kind.to_owned()), ("PORT", port.to_string())]
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
    };
    let main = "touch /main; test -e /led-astray && echo seen; for file in /run/bouvet/sidecar/*; do test -e $file && echo seen; done; \
                ls /proc/*/cmdline /dev/shm; echo up; trap exit TERM; sleep 1000 & wait";
    let config = BoxConfig {
        cmd: words(&["sh", "-c", main]),
        extra_env: vec![("WHO".into(), "main".into())],
        sidecar: Some(with("vsock", SidecarConfig::default().vsock_port)),
        ..of("")
    };
    let sandbox = site.host.create(config.clone()).await.unwrap();
    assert_eq!(told(&sandbox, b"hello").await, b"HELLO of the sidecar");
    assert_eq!(sidecar_log(&sandbox).await, "first 1 0 /made/up None False\n");
    eventually(&sandbox, "test -e /main").await;
    let seen = log(&sandbox).await;
    assert!(!seen.contains("seen") && !seen.contains("mine"), "its files and memory are its own: {seen}");
    let large = vec![b'a'; 3 << 20];
    let answer = told(&sandbox, &large).await;
    assert_eq!(answer.len(), large.len() + " of the sidecar".len());
    let mut open = Vec::new();
    let limit = loop {
        match sandbox.connect_sidecar().await {
            Ok(tunnel) => open.push(tunnel),
            Err(ConnectError::TooMany(limit)) => break limit,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(open.len(), limit);
    drop(open);
    sandbox.pause().await.unwrap();
    sandbox.resume().await.unwrap();
    assert_eq!(told(&sandbox, b"again").await, b"AGAIN of the sidecar");
    sandbox.stop(patient(30)).await.unwrap();
    assert_eq!(sidecar_log(&sandbox).await, "first 1 0 /made/up None False\nasked to end\n");

    // Where there is no vsock, it is a port of the loopback interface. Its end is the sandbox's failure.
    let config = BoxConfig { sidecar: Some(with("tcp", 99)), ..config };
    let sandbox = site.host.create(config).await.unwrap();
    assert_eq!(told(&sandbox, b"x").await, b"X of the sidecar");
    let mut cut_off = sandbox.connect_sidecar().await.unwrap();
    let mut last = sandbox.connect_sidecar().await.unwrap();
    cut_off.shutdown().await.unwrap();
    assert_eq!(cut_off.read_to_end(&mut Vec::new()).await.unwrap(), " of the sidecar".len());
    let mut waiting = sandbox.connect_sidecar().await.unwrap();
    last.write_all(b"die").await.unwrap();
    last.shutdown().await.unwrap();
    // It had not answered: that is no end.
    assert!(waiting.read_to_end(&mut Vec::new()).await.is_err());
    let error = sandbox.wait().await.unwrap_err();
    assert!(error.to_string().contains("its sidecar ended with the exit code 3"), "{error}");

    let alone = site.host.create(of("")).await.unwrap();
    assert!(matches!(alone.connect_sidecar().await, Err(ConnectError::NoSidecar)));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persistent_sandbox_keeps_what_its_sidecar_wrote() {
    let Some(layout) = system::layout() else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    let script = "cat /kept; echo kept >> /kept; echo ready; trap exit TERM; sleep 1000 & wait";
    layout.derive(system::TAG, "keeper");
    layout.configure(
        "keeper",
        &["--config.entrypoint=sh", "--config.cmd=-c", &format!("--config.cmd={script}")],
    );
    let image = format!("oci:{}:keeper", layout.path().display());
    for (persistent, kept) in [(true, "kept\n"), (false, "")] {
        let sidecar = Some(SidecarConfig { image: image.clone(), ..SidecarConfig::default() });
        let cmd = words(&["sh", "-c", "trap exit TERM; sleep 1000 & wait"]);
        let sandbox = site.host.create(BoxConfig { cmd, sidecar, persistent, ..of("") }).await.unwrap();
        sidecar_says(&sandbox, "ready\n").await;
        sandbox.stop(patient(30)).await.unwrap();
        sandbox.start().await.unwrap();
        sidecar_says(&sandbox, &format!("ready\n{kept}ready\n")).await;
        sandbox.destroy().await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boxes_of_an_image_wait_ready_where_its_description_says_so() {
    let Some(layout) = system::layout() else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    derived(
        &layout,
        "pooled",
        &[("srv/file", "of the image")],
        &["--config.cmd=cat", "--config.cmd=/srv/file"],
    );
    let pool = PoolConfig { enabled: true, min_idle: 2, ..PoolConfig::default() };
    let config = BoxConfig { pool, ..of(format!("oci:{}:pooled", layout.path().display())) };
    let wait = async || {
        let deadline = std::time::Instant::now() + patient(120);
        while site.host.pool() != (2, 2) {
            assert!(std::time::Instant::now() < deadline, "{:?} wait", site.host.pool());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert_eq!(
        ran(&site.host, config.clone()).await,
        ("of the image".into(), 0),
        "the first is none of them"
    );
    wait().await;
    // What waits becomes whatever else is asked of the image: here another program, and less of it.
    let other = BoxConfig {
        cmd: words(&["sh", "-c", "hostname; echo $A; touch /x"]),
        extra_env: vec![("A".into(), "b".into())],
        read_only: true,
        name: "claimed".into(),
        ..config
    };
    let sandbox = site.host.create(other).await.unwrap();
    assert_eq!(site.host.pool().0, 1, "it was one of them");
    assert_eq!(sandbox.wait().await.unwrap().exit_code, 1);
    assert!(log(&sandbox).await.starts_with("claimed\nb\n"), "{}", log(&sandbox).await);
    wait().await;
    site.end().await;
}

/// Three layers with everything that layers do to each other.
fn layers() -> Vec<Vec<u8>> {
    let mut links = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Link);
    header.set_mode(0o644);
    header.set_size(0);
    links.append_link(&mut header, "opt/linked", "opt/kept").unwrap();
    vec![
        layer(&[("opt/kept", "kept"), ("opt/removed", "x"), ("opt/dir/below", "x"), ("opt/changed", "old")]),
        layer(&[
            ("opt/.wh.removed", ""),
            ("opt/dir/.wh..wh..opq", ""),
            ("opt/dir/new", "new"),
            ("opt/changed", "new"),
        ]),
        links.into_inner().unwrap(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_whiteouts_and_hard_links_arrive_in_the_vm() {
    let (Some(registry), Some(layout)) = (Registry::start(Access::Private), system::layout()) else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    layout.derive(system::TAG, "layers");
    layers().iter().for_each(|layer| layout.add("layers", layer));
    registry.push(&layout.name("layers"), "team/layers:1", &[]);
    let image = registry.reference("team/layers:1").to_string();
    let refused = site.host.create(of(&image)).await.unwrap_err();
    assert!(matches!(&refused, CreateError::Image(_)), "it is private: {refused}");

    // From an archive, as it came from `docker save`.
    let archive = tempfile::NamedTempFile::with_suffix(".tar").unwrap();
    std::fs::remove_file(archive.path()).unwrap();
    layout.save("layers", archive.path());
    let config = BoxConfig {
        cmd: words(&[
            "sh",
            "-c",
            "cd /opt; cat kept changed dir/new; ls . dir; stat -c %h kept linked; id -u",
        ]),
        ..of(format!("docker-archive:{}", archive.path().display()))
    };
    let expected = "keptnewnew.:\nchanged\ndir\nkept\nlinked\n\ndir:\nnew\n2\n2\n0\n";
    assert_eq!(ran(&site.host, config).await, (expected.into(), 0));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_image_is_said_and_leaves_nothing() {
    let (Some(registry), Some(layout)) = (Registry::start(Access::Open), system::layout()) else { return };
    let Some(site) = Site::pooled(Vmm::Qemu, None).await else { return };
    layout.image("small", &[layer(&[("file", "text")])]);
    registry.push(&layout.name("small"), "broken:1", &[]);
    let digest = layout.layers("small").remove(0);
    let mut spoiled = std::fs::read(registry.stored(&digest)).unwrap();
    let middle = spoiled.len() / 2;
    spoiled[middle] ^= 1;
    std::fs::write(registry.stored(&digest), spoiled).unwrap();
    let create = async |image: &str| {
        let error = site.host.create(of(image)).await.unwrap_err();
        bouvet_host::chain(&error)
    };
    let error = create(&registry.reference("broken:1").to_string()).await;
    assert!(error.contains(&digest), "{error}");
    let error = create(&registry.reference("no/such:image").to_string()).await;
    assert!(error.contains("no/such"), "{error}");
    let error = create("not a reference").await;
    assert!(error.starts_with("`image` is `not a reference`"), "{error}");
    let error = create(&format!("oci:{}:small", layout.path().display())).await;
    assert!(error.starts_with("`cmd` is empty"), "an image that names no program: {error}");
    assert!(site.host.list().is_empty());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persistent_box_keeps_its_image_and_its_files() {
    let Some(layout) = system::layout() else { return };
    let (data, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(site) = Site::with_boxes(Vmm::Qemu, data.path()).await else { return };
    derived(
        &layout,
        "counter",
        &[("srv/n", "")],
        &["--config.cmd=sh", "--config.cmd=-c", "--config.cmd=echo x >>/srv/n; wc -l </srv/n"],
    );
    let image = format!("oci:{}:counter", layout.path().display());
    let cache = CacheConfig {
        cache_dir: Some(own.path().join("cache")),
        max_rootfs_entries: 1,
        ..CacheConfig::default()
    };
    let config = BoxConfig { persistent: true, name: "counter".into(), cache, ..of(&image) };
    let sandbox = site.host.create(config).await.unwrap();
    assert_eq!(sandbox.wait().await.unwrap().exit_code, 0);
    sandbox.start().await.unwrap();
    sandbox.wait().await.unwrap();
    site.end().await;

    let Some(site) = Site::with_boxes(Vmm::Qemu, data.path()).await else { return };
    let sandbox = site.host.find("counter").unwrap();
    sandbox.start().await.unwrap();
    sandbox.wait().await.unwrap();
    assert_eq!(log(&sandbox).await, "1\n2\n3\n");
    assert!(own.path().join("cache").exists(), "its image is where it was to be kept");
    sandbox.destroy().await;

    // Without a cache, an image is gone with its sandbox.
    let uncached = CacheConfig { enabled: false, ..CacheConfig::default() };
    let sandbox = site.host.create(BoxConfig { cache: uncached, ..of(&image) }).await.unwrap();
    sandbox.wait().await.unwrap();
    sandbox.destroy().await;
    assert!(site.host.list_images().await.unwrap().is_empty());
    let left = std::fs::read_dir(Path::new(&site.dir()).join("host-0/images")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect();
    assert!(left.is_empty(), "{left:?}");
    site.end().await;
}
