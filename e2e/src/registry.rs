//! Registries of images for tests: Debian's `docker-registry`, started on a port of its own. And images to put there,
//! made by `umoci` and pushed by `skopeo`.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::skip::skipped;

/// What these tests need.
const TOOLS: [&str; 4] = ["docker-registry", "skopeo", "umoci", "openssl"];
/// Makes a skip for lack of one of them a failure.
pub const REQUIRE: &str = "REQUIRE_REGISTRY";

/// Who may pull from a private registry.
pub const USER: &str = "alice";
/// Her password.
pub const PASSWORD: &str = "s3cret-word";
/// The line of `htpasswd` for both.
const HTPASSWD: &str = "alice:$2y$05$r.3ZdT6xln7SXq9ZciQa1uoh24p4S4RsJyi9IDhn1vr/uMoZUH8xK";

/// How a registry is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// By anybody, in plain text.
    Open,
    /// With a password, in plain text.
    Private,
    /// By anybody, over TLS, with a certificate of [`Registry::authority`].
    Tls,
}

/// A registry, for as long as this is held.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    dir: TempDir,
    access: Access,
    /// Host and port.
    pub address: String,
}

impl Registry {
    /// Starts one, or says that the test is skipped.
    pub fn start(access: Access) -> Option<Self> {
        if let Some(missing) = missing_tool() {
            skipped(REQUIRE, &format!("there is no `{missing}`"));
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n",
            path("storage")
        );
        match access {
            Access::Open => {}
            Access::Private => {
                std::fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
                config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path("htpasswd"));
            }
            Access::Tls => {
                make_certificates(dir.path());
                config +=
                    &format!("  tls: {{certificate: {}, key: {}}}\n", path("server.pem"), path("server.key"));
            }
        }
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut command = command("docker-registry");
        command.arg("serve").arg(dir.path().join("config.yml"));
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let address = listening(log);
        Some(Self { process, dir, access, address })
    }

    /// The certificate of the authority that vouches for a registry with [`Access::Tls`].
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The reference of an image here.
    pub fn reference(&self, name: &str) -> bouvet_image::Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    /// Pushes an image that `skopeo` knows as `from`, with more arguments.
    pub fn push(&self, from: &str, name: &str, arguments: &[&str]) {
        let to = format!("docker://{}/{name}", self.address);
        let mut command = command("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args(arguments);
        if self.access == Access::Private {
            command.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        run(command.arg(from).arg(to));
    }

    /// The file in which the registry keeps a blob.
    pub fn stored(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Reads the log up to the line that has the address; the rest goes to nobody.
fn listening(mut log: BufReader<std::process::ChildStderr>) -> String {
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended before it listened");
        if let Some((_, rest)) = line.split_once("listening on ") {
            break rest
                .chars()
                .take_while(|char| char.is_ascii_digit() || matches!(char, '.' | ':'))
                .collect();
        }
    };
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    address
}

/// An authority, and a certificate of it for 127.0.0.1.
fn make_certificates(dir: &Path) {
    let openssl = |arguments: &str| {
        run(command("openssl").current_dir(dir).args(arguments.split(' ')).stderr(Stdio::null()));
    };
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=registry -keyout server.key -out server.csr");
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
    );
}

/// What these tests need and this machine lacks.
pub fn missing_tool() -> Option<&'static str> {
    TOOLS.into_iter().find(|tool| !is_installed(tool))
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// A program to run.
#[expect(clippy::disallowed_methods, reason = "tests run tools that are no part of us")]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// An image in the making, in a directory in the OCI layout.
#[derive(Debug)]
pub struct Layout {
    dir: TempDir,
}

impl Default for Layout {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(command("umoci").args(["init", "--layout"]).arg(dir.path().join("layout")));
        Self { dir }
    }
}

impl Layout {
    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    /// Its name for `skopeo`.
    pub fn name(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path().display())
    }

    /// A new image of these layers, gzipped.
    pub fn image(&self, tag: &str, layers: &[Vec<u8>]) {
        let image = format!("{}:{tag}", self.path().display());
        run(command("umoci").args(["new", "--image", &image]));
        layers.iter().for_each(|layer| self.add(tag, layer));
    }

    /// One more layer of an image.
    pub fn add(&self, tag: &str, layer: &[u8]) {
        let image = format!("{}:{tag}", self.path().display());
        let path = self.dir.path().join("layer.tar");
        std::fs::write(&path, layer).unwrap();
        run(command("umoci").args(["raw", "add-layer", "--image", &image]).arg(&path));
    }

    /// Gives an image one more tag, under which it may become another.
    pub fn derive(&self, from: &str, tag: &str) {
        run(command("umoci").args(["tag", "--image", &format!("{}:{from}", self.path().display()), tag]));
    }

    /// Writes an image as `docker save` does.
    pub fn save(&self, tag: &str, to: &Path) {
        let to = format!("docker-archive:{}", to.display());
        run(command("skopeo").args(["--insecure-policy", "copy", "--quiet", &self.name(tag), &to]));
    }

    /// Changes the image's configuration, by arguments of `umoci config`.
    pub fn configure(&self, tag: &str, arguments: &[&str]) {
        let image = format!("{}:{tag}", self.path().display());
        run(command("umoci").args(["config", "--image", &image]).args(arguments));
    }

    /// An index called `tag` of images for the architectures that they are called after.
    pub fn index(&self, tag: &str, architectures: &[&str]) {
        let path = self.path().join("index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let entries = index["manifests"].as_array().unwrap().clone();
        let named = |tag: &str| {
            let is_it = |entry: &&serde_json::Value| {
                entry["annotations"]["org.opencontainers.image.ref.name"] == *tag
            };
            entries.iter().find(is_it).unwrap().clone()
        };
        let of = |architecture: &&str| {
            let mut entry = named(architecture);
            entry.as_object_mut().unwrap().remove("annotations");
            entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
            entry
        };
        let inner = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": architectures.iter().map(of).collect::<Vec<_>>(),
        });
        let inner = inner.to_string();
        let digest = bouvet_image::Digest::of(inner.as_bytes());
        std::fs::write(self.path().join("blobs/sha256").join(digest.hex()), &inner).unwrap();
        index["manifests"].as_array_mut().unwrap().push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest.to_string(),
            "size": inner.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }));
        std::fs::write(path, index.to_string()).unwrap();
    }

    /// The digests of an image's layers, as they are in the layout.
    pub fn layers(&self, tag: &str) -> Vec<String> {
        let output = run(command("skopeo").args(["--insecure-policy", "inspect", &self.name(tag)]));
        let inspected: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        inspected["Layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer.as_str().unwrap().to_owned())
            .collect()
    }
}

/// A root file system, mounted by this machine's kernel.
#[derive(Debug)]
pub struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// Mounts it, or says that the test is skipped.
    pub fn new(rootfs: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let readable = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !rustix::process::geteuid().is_root()
            || !readable.contains("erofs")
            || !Path::new("/dev/loop-control").exists()
        {
            skipped(REQUIRE, "this kernel mounts no EROFS image for us");
            return None;
        }
        run(command("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(rootfs).arg(dir.path()));
        Some(Self { dir })
    }

    /// Where.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Every path in it, sorted.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        let mut open = vec![self.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                paths.push(format!("/{}", path.strip_prefix(self.path()).unwrap().display()));
                if std::fs::symlink_metadata(&path).unwrap().is_dir() {
                    open.push(path);
                }
            }
        }
        paths.sort();
        paths
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }

    /// An extended attribute.
    pub fn xattr(&self, path: &str, name: &str) -> Vec<u8> {
        let file = File::open(self.path().join(path)).unwrap();
        let mut value = vec![0; 65_536];
        let len = rustix::fs::fgetxattr(&file, name, &mut value).unwrap();
        value.truncate(len);
        value
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(command("umount").arg(self.dir.path()));
    }
}
