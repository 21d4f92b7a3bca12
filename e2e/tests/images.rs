//! Images from real registries and archives, made by tools that know nothing of us, and read back by this machine's
//! kernel.

#![expect(clippy::unwrap_used, reason = "test code: a panic is how it reports")]

use std::error::Error as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bouvet_e2e::registry::{self, Access, Layout, Mounted, PASSWORD, Registry, USER, command, run};
use bouvet_e2e::skip::skipped;
use bouvet_image::{CacheOptions, Image, Images, ImagesOptions, PullEvent, Reference, RegistryOptions};
use tar::{EntryType, Header};

/// A layer in the making.
#[derive(Default)]
struct Layer {
    archive: Option<tar::Builder<Vec<u8>>>,
}

impl Layer {
    fn entry(mut self, kind: EntryType, path: &str, data: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        let archive = self.archive.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        archive.append_data(&mut header, path, data).unwrap();
        self
    }

    fn directory(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, b"", |_| ())
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, path, data.as_bytes(), |_| ())
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        let archive = self.archive.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        archive.append_link(&mut header, path, target).unwrap();
        self
    }

    fn pax(mut self, key: &str, value: &[u8]) -> Self {
        let archive = self.archive.get_or_insert_with(|| tar::Builder::new(Vec::new()));
        archive.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.archive.unwrap().into_inner().unwrap()
    }
}

/// A cache for one test.
struct Cache {
    dir: tempfile::TempDir,
    images: Images,
}

impl Cache {
    fn new(registry: RegistryOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = ImagesOptions { registry, ..ImagesOptions::default() };
        let images = Images::open(CacheOptions::new(dir.path().join("images")), options).unwrap();
        Self { dir, images }
    }

    async fn pull(&self, reference: &Reference) -> Image {
        self.images.pull(reference, |_| ()).await.unwrap()
    }

    /// All that the error of a pull says.
    async fn refused(&self, reference: &Reference) -> String {
        let error = self.images.pull(reference, |_| ()).await.unwrap_err();
        let mut told = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            told = format!("{told}: {error}");
            cause = error.source();
        }
        told
    }

    /// Layers that are kept.
    fn blobs(&self) -> usize {
        let blobs = std::fs::read_dir(self.dir.path().join("images/blobs")).unwrap();
        let names = blobs.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).count()
    }
}

/// A small image of one layer.
fn small(text: &str) -> Vec<Vec<u8>> {
    vec![Layer::default().directory("etc").file("etc/text", text).finish()]
}

/// What the tests without a registry need, or why they are skipped.
fn has_tools() -> bool {
    let missing = registry::missing_tool();
    if let Some(tool) = missing {
        skipped(registry::REQUIRE, &format!("there is no `{tool}`"));
    }
    missing.is_none()
}

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0";

fn three_layers() -> Vec<Vec<u8>> {
    let first = Layer::default()
        .directory("bin")
        .entry(EntryType::Regular, "bin/tool", b"tool", |header| {
            header.set_mode(0o4755);
            header.set_uid(1000);
            header.set_gid(70_000);
        })
        .link(EntryType::Link, "bin/other", "bin/tool")
        .directory("data")
        .file("data/kept", "1")
        .file("data/removed", "1")
        .directory("data/emptied")
        .file("data/emptied/old", "1")
        .file("replaced", "a file");
    let second = Layer::default()
        .file("data/.wh.removed", "")
        .file("data/emptied/new", "2")
        .file("data/emptied/.wh..wh..opq", "")
        .directory("replaced")
        .file("replaced/inside", "2")
        .link(EntryType::Link, "bin/third", "bin/tool")
        .link(EntryType::Symlink, "link", "/bin/tool");
    let third = Layer::default()
        .file("bin/.wh.tool", "")
        .pax("SCHILY.xattr.security.capability", CAPABILITY)
        .file("capable", "3")
        .entry(EntryType::Fifo, "pipe", b"", |_| ())
        .entry(EntryType::Char, "null", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        });
    [first, second, third].map(Layer::finish).to_vec()
}

fn check_three_layers(mounted: &Mounted) {
    let expected = [
        "/bin",
        "/bin/other",
        "/bin/third",
        "/capable",
        "/data",
        "/data/emptied",
        "/data/emptied/new",
        "/data/kept",
        "/dev",
        "/etc",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/machine-id",
        "/etc/resolv.conf",
        "/link",
        "/null",
        "/pipe",
        "/proc",
        "/replaced",
        "/replaced/inside",
        "/run",
        "/sys",
        "/tmp",
    ];
    assert_eq!(mounted.paths(), expected);
    let metadata = |path: &str| std::fs::symlink_metadata(mounted.path().join(path)).unwrap();
    let (other, third) = (metadata("bin/other"), metadata("bin/third"));
    assert_eq!((other.ino(), other.nlink()), (third.ino(), 2), "hard links over layers");
    assert_eq!((other.mode() & 0o7777, other.uid(), other.gid()), (0o4755, 1000, 70_000));
    assert_eq!((mounted.text("bin/third"), other.mtime()), ("tool".to_owned(), 1_700_000_000));
    assert_eq!(std::fs::read_link(mounted.path().join("link")).unwrap(), Path::new("/bin/tool"));
    assert_eq!(mounted.xattr("capable", "security.capability"), CAPABILITY);
    assert!(metadata("pipe").file_type().is_fifo());
    assert!(
        metadata("null").file_type().is_char_device() && metadata("null").rdev() == rustix::fs::makedev(1, 3)
    );
    assert_eq!(metadata("tmp").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(metadata("etc/hosts").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_from_a_registry_become_what_the_kernel_mounts() {
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    layout.image("v1", &three_layers());
    layout.configure(
        "v1",
        &[
            "--config.user=1000:50",
            "--config.entrypoint=/bin/third",
            "--config.cmd=serve",
            "--config.env=A=b=c",
            "--config.workingdir=/data",
            "--config.exposedports=80/tcp",
            "--config.stopsignal=SIGINT",
        ],
    );
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let cache = Cache::new(RegistryOptions::default());
    let image = cache.pull(&registry.reference("app:v1")).await;
    let config = &image.config;
    assert_eq!(
        (&*config.user, &*config.working_dir, config.stop_signal.as_deref()),
        ("1000:50", "/data", Some("SIGINT"))
    );
    assert_eq!(
        (&config.entrypoint[..], &config.cmd[..]),
        (&["/bin/third".to_owned()][..], &["serve".to_owned()][..])
    );
    assert!(config.env.contains(&("A".to_owned(), "b=c".to_owned())));
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert_eq!(cache.blobs(), 3);
    let Some(mounted) = Mounted::new(&image.rootfs) else { return };
    check_three_layers(&mounted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_gives_the_same_tree() {
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    layout.image("v1", &three_layers());
    registry.push(&layout.name("v1"), "app:docker", &["--format=v2s2"]);
    registry.push(&layout.name("v1"), "app:zstd", &["--dest-compress-format=zstd", "--format=oci"]);
    let archive = |kind: &str| layout.path().join(format!("../{kind}.tar"));
    let copy = |to: &str, kind: &str| {
        let to = format!("{to}:{}:app:v1", archive(kind).display());
        run(command("skopeo").args(["--insecure-policy", "copy", "--quiet", &layout.name("v1"), &to]));
    };
    copy("docker-archive", "docker");
    copy("oci-archive", "oci");
    let cache = Cache::new(RegistryOptions::default());
    let real = |kind: &str| std::fs::canonicalize(archive(kind)).unwrap().display().to_string();
    let references = [
        registry.reference("app:docker"),
        registry.reference("app:zstd"),
        layout.name("v1").parse().unwrap(),
        format!("docker-archive:{}", real("docker")).parse().unwrap(),
        format!("docker-archive:{}:app:v1", real("docker")).parse().unwrap(),
        format!("oci:{}", real("oci")).parse().unwrap(),
    ];
    let mut first: Option<Vec<u8>> = None;
    for reference in references {
        let bytes = std::fs::read(cache.pull(&reference).await.rootfs).unwrap();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{reference}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_for_this_machine_is_taken_from_an_index() {
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    for architecture in ["amd64", "arm64", "s390x"] {
        layout.image(architecture, &small(architecture));
        layout.configure(architecture, &[&format!("--architecture={architecture}")]);
    }
    layout.index("all", &["s390x", "arm64", "amd64"]);
    layout.index("none", &["s390x"]);
    registry.push(&layout.name("all"), "app:all", &["--all"]);
    registry.push(&layout.name("none"), "app:none", &["--all"]);
    let cache = Cache::new(RegistryOptions::default());
    let image = cache.pull(&registry.reference("app:all")).await;
    let ours = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    assert_eq!(image.config.architecture, ours);
    let told = cache.refused(&registry.reference("app:none")).await;
    assert!(told.ends_with(&format!("not there for `linux/{ours}`, but for `linux/s390x`")), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_the_registry_spoiled_is_named_and_not_kept() {
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    layout.image("v1", &three_layers());
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let spoiled = layout.layers("v1")[1].clone();
    let stored = registry.stored(&spoiled);
    let whole = std::fs::read(&stored).unwrap();
    let mut bytes = whole.clone();
    bytes[20] ^= 1;
    std::fs::write(&stored, bytes).unwrap();
    let cache = Cache::new(RegistryOptions::default());
    let told = cache.refused(&registry.reference("app:v1")).await;
    assert!(told.contains(&format!("for `{spoiled}`")), "{told}");
    assert!(!cache.dir.path().join("images/blobs").join(&spoiled[7..]).exists());
    assert!(cache.images.list().await.unwrap().is_empty());
    std::fs::write(&stored, whole).unwrap();
    cache.pull(&registry.reference("app:v1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_went_bad_in_the_cache_is_had_anew() {
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    layout.image("v1", &small("1"));
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let cache = Cache::new(RegistryOptions::default());
    let id = cache.pull(&registry.reference("app:v1")).await.id;
    cache.images.remove(&id.to_string(), false).await.unwrap();
    let blob = cache.dir.path().join("images/blobs").join(&layout.layers("v1")[0][7..]);
    std::fs::write(blob, "spoiled").unwrap();
    assert_eq!(cache.pull(&registry.reference("app:v1")).await.id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_is_what_the_registry_says_now_and_a_digest_what_it_was() {
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    layout.image("v1", &small("1"));
    layout.image("v2", &[small("1"), small("2")].concat());
    registry.push(&layout.name("v1"), "app:latest", &[]);
    let cache = Cache::new(RegistryOptions::default());
    let reference = registry.reference("app");
    let first = cache.pull(&reference).await;
    let from = format!("docker://{}/app", registry.address);
    let inspected =
        run(command("skopeo").args(["inspect", "--tls-verify=false", "--format={{.Digest}}", &from]));
    let digest = String::from_utf8(inspected.stdout).unwrap();
    registry.push(&layout.name("v2"), "app:latest", &[]);

    assert_eq!(cache.images.get(&reference.to_string()).await.unwrap().unwrap().id, first.id, "no network");
    let events: Arc<Mutex<Vec<PullEvent>>> = Arc::default();
    let told = Arc::clone(&events);
    let second = cache.images.pull(&reference, move |event| told.lock().unwrap().push(event)).await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(cache.blobs(), 2, "the layer that both have was not downloaded twice");
    assert!(matches!(&events.lock().unwrap()[1], PullEvent::Resolved { layers, .. } if layers.len() == 2));
    let pinned = cache.pull(&registry.reference(&format!("app@{}", digest.trim()))).await;
    assert_eq!(pinned.id, first.id);
    let wrong = bouvet_image::Digest::of(b"nothing");
    let told = cache.refused(&registry.reference(&format!("app@{wrong}"))).await;
    assert!(told.contains("does not have `app/manifests/sha256:"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_registries_want_credentials() {
    use base64::Engine as _;

    let Some(registry) = Registry::start(Access::Private) else { return };
    let layout = Layout::default();
    layout.image("v1", &small("private"));
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let reference = registry.reference("app:v1");
    let told = Cache::new(RegistryOptions::default()).refused(&reference).await;
    assert!(told.contains("does not let us read `app/manifests/v1`"), "{told}");

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    let with = |text: String| {
        std::fs::write(&config, text).unwrap();
        let dirs = vec![dir.path().to_owned()];
        Cache::new(RegistryOptions {
            docker_config: Some(config.clone()),
            credential_helper_dirs: dirs,
            ..RegistryOptions::default()
        })
    };
    let encode = |pair: String| base64::engine::general_purpose::STANDARD.encode(pair);
    let auths =
        |pair: String| format!(r#"{{"auths":{{"{}":{{"auth":"{}"}}}}}}"#, registry.address, encode(pair));
    with(auths(format!("{USER}:{PASSWORD}"))).pull(&reference).await;
    let told = with(auths(format!("{USER}:wrong-word"))).refused(&reference).await;
    assert!(told.contains("does not let us read") && !told.contains("wrong-word"), "{told}");

    let helper = dir.path().join("docker-credential-test");
    let script = format!("#!/bin/sh\necho '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}'\n");
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    with(format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, registry.address)).pull(&reference).await;
    with(r#"{"credsStore":"test"}"#.to_owned()).pull(&reference).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_of_ones_own_are_trusted_when_they_are_named() {
    let Some(registry) = Registry::start(Access::Tls) else { return };
    let layout = Layout::default();
    layout.image("v1", &small("secure"));
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let reference = registry.reference("app:v1");
    let told = Cache::new(RegistryOptions::default()).refused(&reference).await;
    assert!(told.contains("certificate"), "{told}");
    let roots = vec![registry.authority()];
    Cache::new(RegistryOptions { root_certificates: roots, ..RegistryOptions::default() })
        .pull(&reference)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cache_nothing_is_left() {
    if !has_tools() {
        return;
    }
    let Some(registry) = Registry::start(Access::Open) else { return };
    let layout = Layout::default();
    layout.image("v1", &small("1"));
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let dir = tempfile::tempdir().unwrap();
    let images = Images::uncached(dir.path(), ImagesOptions::default()).unwrap();
    let image = images.pull(&registry.reference("app:v1"), |_| ()).await.unwrap();
    let blobs = image.rootfs.ancestors().nth(3).unwrap().join("blobs");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0, "layers go as soon as they are merged");
    drop(image);
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_system_survives_the_way() {
    if !has_tools() {
        return;
    }
    let system = Path::new("/usr/share/doc");
    let packed = run(command("tar")
        .args(["--create", "--xattrs", "--format=pax", "--file=-", "--directory"])
        .arg(system)
        .arg("."));
    let layout = Layout::default();
    layout.image("v1", &[packed.stdout]);
    let cache = Cache::new(RegistryOptions::default());
    let image = cache.pull(&layout.name("v1").parse().unwrap()).await;
    let Some(mounted) = Mounted::new(&image.rootfs) else { return };
    let compared = command("diff")
        .args(["--recursive", "--no-dereference"])
        .arg(system)
        .arg(mounted.path())
        .output()
        .unwrap();
    let differences = String::from_utf8_lossy(&compared.stdout);
    // What a guest needs and this directory lacks.
    let ours = |line: &&str| !line.starts_with(&format!("Only in {}:", mounted.path().display()));
    assert_eq!(differences.lines().filter(ours).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_files_of_gnu_tar_are_unpacked() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    // More stretches than one header of old GNU tar has, with a hole before, between and behind.
    for part in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[b'a'; 5000], 65_536 + part * 65_536).unwrap();
    }
    file.set_len(8 << 20).unwrap();
    std::fs::File::create(dir.path().join("holes-only")).unwrap().set_len(1 << 20).unwrap();
    let cache = Cache::new(RegistryOptions::default());
    for format in ["gnu", "posix 0.0", "posix 0.1", "posix 1.0"] {
        let (kind, version) = format.split_once(' ').unwrap_or((format, "1.0"));
        let packed = run(command("tar")
            .args(["--create", "--sparse", "--hole-detection=raw", &format!("--format={kind}")])
            .arg(format!("--sparse-version={version}"))
            .args(["--file=-", "--directory"])
            .arg(dir.path())
            .args(["sparse", "holes-only"]));
        assert!(packed.stdout.len() < 1 << 20, "{format}: the archive has no holes");
        let layout = Layout::default();
        layout.image("v1", &[packed.stdout]);
        let image = cache.pull(&layout.name("v1").parse().unwrap()).await;
        let Some(mounted) = Mounted::new(&image.rootfs) else { return };
        for name in ["sparse", "holes-only"] {
            let same = std::fs::read(dir.path().join(name)).unwrap()
                == std::fs::read(mounted.path().join(name)).unwrap();
            assert!(same, "{format}: {name}");
        }
        assert!(image.size_bytes < 1 << 20, "{format}: holes take no room");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_images_are_read_by_skopeo_and_loaded() {
    if !has_tools() {
        return;
    }
    let layout = Layout::default();
    layout.image("v1", &three_layers());
    layout.configure("v1", &["--config.user=1000:50", "--config.cmd=serve", "--config.env=A=b=c"]);
    let cache = Cache::new(RegistryOptions::default());
    let image = cache.pull(&layout.name("v1").parse().unwrap()).await;
    cache.images.tag(&image.id.to_string(), &"app:v1".parse().unwrap()).await.unwrap();
    let archive = cache.dir.path().join("app.tar");
    cache.images.save(&["app:v1".to_owned()], std::fs::File::create(&archive).unwrap()).await.unwrap();

    let rootfs = std::fs::read(&image.rootfs).unwrap();
    let other = Cache::new(RegistryOptions::default());
    for (kind, tag) in [("docker-archive", ":app:v1"), ("docker-archive", ""), ("oci-archive", "")] {
        let from = format!("{kind}:{}{tag}", archive.display());
        let inspected = run(command("skopeo").args(["--insecure-policy", "inspect", "--config", &from]));
        let config: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!(
            (&config["config"]["User"], &config["config"]["Cmd"][0]),
            (&"1000:50".into(), &"serve".into())
        );
        let to = format!("oci:{}:copy", cache.dir.path().join("copied").display());
        run(command("skopeo").args(["--insecure-policy", "copy", "--quiet", &from, &to]));
        let copied = other.pull(&to.parse().unwrap()).await;
        assert!(std::fs::read(&copied.rootfs).unwrap() == rootfs, "{from}");
    }
    let archive = std::fs::File::open(&archive).unwrap();
    let loaded = other.images.load("app.tar", archive, |_| ()).await.unwrap();
    assert_eq!(loaded[0].references, ["docker.io/library/app:v1"]);

    // Archives of other tools are loaded.
    let theirs = cache.dir.path().join("theirs.tar");
    layout.save("v1", &theirs);
    let unnamed =
        other.images.load("theirs.tar", std::fs::File::open(&theirs).unwrap(), |_| ()).await.unwrap();
    assert_eq!(unnamed[0].id, image.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_open_private_registries() {
    let Some(registry) = Registry::start(Access::Private) else { return };
    let layout = Layout::default();
    layout.image("v1", &small("private"));
    registry.push(&layout.name("v1"), "app:v1", &[]);
    let dir = tempfile::tempdir().unwrap();
    let docker_config = Some(dir.path().join("config.json"));
    let cache = Cache::new(RegistryOptions { docker_config, ..RegistryOptions::default() });
    let reference = registry.reference("app:v1");
    let refused = cache.images.login(&registry.address, USER, "wrong-word".to_owned()).await.unwrap_err();
    assert!(refused.to_string().contains("does not accept"), "{refused}");
    cache.refused(&reference).await;
    cache.images.login(&registry.address, USER, PASSWORD.to_owned()).await.unwrap();
    cache.pull(&reference).await;
    // skopeo finds the password where we have put it.
    let from = format!("docker://{}/app:v1", registry.address);
    run(command("skopeo")
        .args(["inspect", "--tls-verify=false", "--authfile"])
        .arg(dir.path().join("config.json"))
        .arg(&from));
    assert!(cache.images.logout(&registry.address).await.unwrap().1);
    cache.refused(&reference).await;
}
