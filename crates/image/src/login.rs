//! Credentials checked with a registry, and kept where Docker keeps them: its `config.json`, or the helper named there.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FlockOperation;
use serde_json::{Map, Value, json};

use crate::credentials::{self, Credential, CredentialsError, Secret};
use crate::images::Images;
use crate::pull::blocking;
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::registry::RegistryError;

/// The file's permissions: passwords in it are only encoded.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Deadline for the lock of the file, which another login or logout may hold, and the time between two attempts.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why there was no login or logout. No message has a password in it.
///
/// ```no_run
/// use bouvet_image::login::LoginError;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// if let Err(LoginError::Refused(registry)) = images.login("ghcr.io", "alice", "a word".into()).await {
///     eprintln!("{registry} knows another password");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It cannot be the name of a registry.
    #[error("`{0}` is not the name of a registry: it is a host, or host:port")]
    Name(String),
    /// A user name that the form of credentials cannot hold.
    #[error("a user name cannot be empty or have a colon, and a password cannot be empty")]
    User,
    /// The registry does not accept the credentials.
    #[error("the registry `{0}` does not accept this user name and password")]
    Refused(String),
    /// The registry cannot be asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no place for credentials.
    #[error("there is no place for credentials: neither DOCKER_CONFIG nor HOME is set")]
    NoFile,
    /// The file or the helper failed.
    #[error(transparent)]
    Store(#[from] CredentialsError),
    /// The file cannot be written.
    #[error("could not write the credentials to `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another login or logout holds the lock of the file.
    #[error("another process has held `{0}` for {LOCK_TIMEOUT:?}")]
    Locked(PathBuf),
}

impl Images {
    /// Checks a password with a registry, and keeps it for later pulls, as `docker login` does. Returns the registry's
    /// name.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// images.login("ghcr.io", "alice", std::fs::read_to_string("token")?.trim().into()).await?;
    /// # Ok(()) }
    /// ```
    pub async fn login(
        &self,
        registry: &str,
        username: &str,
        password: String,
    ) -> Result<String, LoginError> {
        let probe = named(registry)?;
        if username.is_empty() || username.contains(':') || password.is_empty() {
            return Err(LoginError::User);
        }
        let path = self.docker_config()?.to_owned();
        let registry = probe.registry.clone();
        let credential =
            Credential::Basic { username: username.to_owned(), password: Secret::from(password.clone()) };
        self.shared.client.check(&probe, credential).await.map_err(|error| match error {
            RegistryError::Denied { .. } => LoginError::Refused(registry.clone()),
            error => LoginError::Registry(error),
        })?;
        let dirs = &self.shared.client.options().credential_helper_dirs;
        let helper = helper(&path, &registry).await?;
        let entry = match &helper {
            Some(helper) => {
                credentials::store(helper, dirs, &registry, username, &password).await?;
                // Docker's mark of a registry whose credentials a helper has.
                json!({})
            }
            None => json!({ "auth": STANDARD.encode(format!("{username}:{password}")) }),
        };
        change(path, move |auths| {
            auths.retain(|key, _| !credentials::names(key, &registry));
            auths.insert(credentials::key(&registry).to_owned(), entry);
            registry
        })
        .await
    }

    /// Forgets the credentials for a registry. Returns its name, and whether there were any.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// let (registry, was_known) = images.logout("ghcr.io").await?;
    /// # Ok(()) }
    /// ```
    pub async fn logout(&self, registry: &str) -> Result<(String, bool), LoginError> {
        let registry = named(registry)?.registry;
        let path = self.docker_config()?.to_owned();
        let mut was_known = false;
        if let Some(helper) = helper(&path, &registry).await? {
            let dirs = &self.shared.client.options().credential_helper_dirs;
            was_known |= credentials::erase(&helper, dirs, &registry).await?;
        }
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            let removed = registry.clone();
            was_known |= change(path, move |auths| {
                let before = auths.len();
                auths.retain(|key, _| !credentials::names(key, &removed));
                auths.len() < before
            })
            .await?;
        }
        Ok((registry, was_known))
    }

    fn docker_config(&self) -> Result<&Path, LoginError> {
        self.shared.client.options().docker_config.as_deref().ok_or(LoginError::NoFile)
    }
}

/// The registry that people mean by a host, or by the address that Docker writes for the default one.
fn named(typed: &str) -> Result<crate::reference::Remote, LoginError> {
    let wrong = || LoginError::Name(crate::digest::shortened(typed));
    let host = typed.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let host = host.strip_suffix("/v1").or_else(|| host.strip_suffix("/v2")).unwrap_or(host);
    let is_default = credentials::names(host, DEFAULT_REGISTRY);
    let host = if is_default { DEFAULT_REGISTRY } else { host };
    let reference: Reference = format!("{host}/login").parse().map_err(|_| wrong())?;
    match reference.source() {
        crate::reference::Source::Registry(remote) if remote.registry == host => {
            Ok(crate::reference::Remote { repository: String::new(), ..remote.clone() })
        }
        _ => Err(wrong()),
    }
}

/// The helper that Docker's file names for a registry.
async fn helper(path: &Path, registry: &str) -> Result<Option<String>, CredentialsError> {
    let (path, registry) = (path.to_owned(), registry.to_owned());
    blocking(move || credentials::helper(&path, &registry)).await
}

/// Changes the `auths` of Docker's file, whose other contents stay. It is whole at every moment, and nobody else of this
/// program changes it meanwhile.
async fn change<T: Send + 'static>(
    path: PathBuf,
    change: impl FnOnce(&mut Map<String, Value>) -> T + Send + 'static,
) -> Result<T, LoginError> {
    // A link stays one: people keep this file elsewhere.
    let path = tokio::fs::canonicalize(&path).await.unwrap_or(path);
    let lock = lock(&path).await?;
    blocking(move || {
        let changed = change_locked(&path, change);
        drop(lock);
        changed
    })
    .await
}

/// Locks the file by one beside it, which stays: whoever removed it would take the lock from those who wait. The lock
/// belongs to the open file, so it works between processes as within one.
async fn lock(path: &Path) -> Result<fs::File, LoginError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let failed = |source| LoginError::Write { path: name.clone(), source };
    let opened = name.clone();
    let file = blocking(move || {
        let dir = opened.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(dir)?;
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&opened)
    });
    let file = file.await.map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LoginError::Locked(name)),
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn change_locked<T>(path: &Path, change: impl FnOnce(&mut Map<String, Value>) -> T) -> Result<T, LoginError> {
    let mut document = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({}),
        Err(source) => return Err(CredentialsError::File { path: path.to_owned(), source }.into()),
        Ok(text) if text.trim_ascii().is_empty() => json!({}),
        Ok(text) => {
            serde_json::from_slice(&text).map_err(|_| CredentialsError::Malformed(path.to_owned()))?
        }
    };
    let auths = document.as_object_mut().map(|document| document.entry("auths").or_insert_with(|| json!({})));
    let auths = auths.and_then(Value::as_object_mut);
    let changed = change(auths.ok_or_else(|| CredentialsError::Malformed(path.to_owned()))?);
    write(path, &document).map_err(|source| LoginError::Write { path: path.to_owned(), source })?;
    Ok(changed)
}

fn write(path: &Path, document: &Value) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let file = tempfile::NamedTempFile::new_in(dir)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    serde_json::to_writer_pretty(&file, document)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImagesOptions, RegistryOptions};

    struct Place(tempfile::TempDir);

    impl Place {
        fn config(&self) -> PathBuf {
            self.0.path().join("docker/config.json")
        }

        fn images(&self) -> Images {
            let registry = RegistryOptions {
                docker_config: Some(self.config()),
                credential_helper_dirs: vec![self.0.path().to_owned()],
                ..RegistryOptions::default()
            };
            let options = ImagesOptions { registry, ..ImagesOptions::default() };
            Images::uncached(self.0.path().join("images"), options).unwrap()
        }

        fn document(&self) -> Value {
            serde_json::from_slice(&fs::read(self.config()).unwrap()).unwrap()
        }
    }

    /// A registry that lets alice in by her password, on plain HTTP.
    async fn registry() -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let right = format!("authorization: Basic {}", STANDARD.encode("alice:se:cret"));
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let answer = match request.lines().any(|line| line.eq_ignore_ascii_case(&right)) {
                    true => "HTTP/1.1 200 OK\r\n",
                    false => "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"\r\n",
                };
                let answer = format!("{answer}content-length: 2\r\nconnection: close\r\n\r\n{{}}");
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        address
    }

    #[tokio::test]
    async fn logins_are_kept_as_docker_keeps_them() {
        let (place, registry) = (Place(tempfile::tempdir().unwrap()), registry().await);
        let images = place.images();
        let refused = images.login(&registry, "alice", "wrong".into()).await.unwrap_err();
        assert!(matches!(&refused, LoginError::Refused(name) if *name == registry), "{refused}");
        assert!(!place.config().exists(), "nothing is kept");
        images.login(&registry, "alice", "se:cret".into()).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&place.config()), mode(place.config().parent().unwrap())), (0o600, 0o700));
        let auth = STANDARD.encode("alice:se:cret");
        assert_eq!(place.document(), json!({ "auths": { &registry: { "auth": auth } } }));

        // Other entries of the file stay; an older spelling of the registry is removed.
        let old = format!("http://{registry}/v1/");
        let text = json!({ "auths": { &old: {}, "other": { "auth": "x" } }, "psFormat": "table" });
        fs::write(place.config(), text.to_string()).unwrap();
        images.login(&format!("http://{registry}/"), "alice", "se:cret".into()).await.unwrap();
        let expected = json!({ "auths": { &registry: { "auth": auth }, "other": { "auth": "x" } }, "psFormat": "table" });
        assert_eq!(place.document(), expected);
        assert_eq!(images.logout(&registry).await.unwrap(), (registry.clone(), true));
        assert_eq!(images.logout(&registry).await.unwrap(), (registry, false));
        assert_eq!(place.document(), json!({ "auths": { "other": { "auth": "x" } }, "psFormat": "table" }));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn logins_at_once_are_all_kept() {
        const LOGINS: usize = 12;
        let place = Place(tempfile::tempdir().unwrap());
        let mut registries = Vec::new();
        for _ in 0..LOGINS {
            registries.push(registry().await);
        }
        // As many servers as logins: between processes it is the same lock.
        let logins = registries.iter().map(|registry| {
            let images = place.images();
            async move { images.login(registry, "alice", "se:cret".into()).await }
        });
        futures_util::future::try_join_all(logins).await.unwrap();
        let document = place.document();
        let mut kept: Vec<&String> = document["auths"].as_object().unwrap().keys().collect();
        kept.sort();
        registries.sort();
        assert_eq!(kept, registries.iter().collect::<Vec<_>>());
        // A program that is stuck delays a login, and does not lose it.
        let lock = fs::File::open(place.0.path().join("docker/config.json.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let images = place.images();
        let mut logout = std::pin::pin!(images.logout(&registries[0]));
        let waited = tokio::time::timeout(4 * LOCK_POLL, &mut logout).await;
        assert!(waited.is_err(), "the lock is held");
        drop(lock);
        assert_eq!(logout.await.unwrap(), (registries[0].clone(), true));
        assert_eq!(place.document()["auths"].as_object().unwrap().len(), LOGINS - 1);
    }

    #[tokio::test]
    async fn helpers_keep_the_passwords_of_their_registries() {
        let (place, registry) = (Place(tempfile::tempdir().unwrap()), registry().await);
        let helper = place.0.path().join("docker-credential-test");
        let script = format!(
            "#!/bin/sh\ncd {} && case $1 in store) cat >kept ;; get) cat >/dev/null; cat kept ;; erase) rm kept ;; esac\n",
            place.0.path().display()
        );
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(place.config().parent().unwrap()).unwrap();
        fs::write(place.config(), json!({ "credHelpers": { &registry: "test" } }).to_string()).unwrap();
        let images = place.images();
        images.login(&registry, "alice", "se:cret".into()).await.unwrap();
        let kept: Value = serde_json::from_slice(&fs::read(place.0.path().join("kept")).unwrap()).unwrap();
        assert_eq!(kept, json!({ "ServerURL": registry, "Username": "alice", "Secret": "se:cret" }));
        assert_eq!(place.document()["auths"], json!({ &registry: {} }), "no password is in the file");
        assert_eq!(images.logout(&registry).await.unwrap(), (registry.clone(), true));
        assert!(!place.0.path().join("kept").exists());
    }

    #[tokio::test]
    async fn links_and_broken_files_are_respected() {
        let (place, registry) = (Place(tempfile::tempdir().unwrap()), registry().await);
        let real = place.0.path().join("real.json");
        fs::write(&real, "{}").unwrap();
        fs::create_dir(place.config().parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&real, place.config()).unwrap();
        let images = place.images();
        images.login(&registry, "alice", "se:cret".into()).await.unwrap();
        assert!(fs::symlink_metadata(place.config()).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("auth"));
        fs::write(&real, "{ broken").unwrap();
        let error = images.login(&registry, "alice", "se:cret".into()).await.unwrap_err();
        assert!(matches!(error, LoginError::Store(CredentialsError::Malformed(_))), "{error}");
        assert_eq!(fs::read_to_string(&real).unwrap(), "{ broken");
    }

    #[test]
    fn registries_have_several_spellings() {
        for (typed, registry) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://registry.example/v2/", "registry.example"),
        ] {
            assert_eq!(named(typed).unwrap().registry, registry, "{typed}");
        }
        for typed in ["", "nginx", "a b.c", "registry.example/team", "Registry?"] {
            assert!(matches!(named(typed), Err(LoginError::Name(_))), "{typed}");
        }
    }

    #[tokio::test]
    async fn user_names_without_a_form_are_refused() {
        let place = Place(tempfile::tempdir().unwrap());
        for (username, password) in [("", "p"), ("a:b", "p"), ("a", "")] {
            let refused = place.images().login("registry.example", username, password.into()).await;
            assert!(matches!(refused, Err(LoginError::User)), "{username:?}");
        }
    }
}
