//! Who we are to a registry: from the files and helper programs that Docker keeps credentials in.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::limits::MAX_DOCUMENT_BYTES;

/// How long a helper may take: some ask a service, none should ask a person.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
/// What a helper may print.
const MAX_HELPER_BYTES: u64 = 64 << 10;

/// The names by which the default registry is known in these files.
const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_REGISTRY_KEY: &str = "https://index.docker.io/v1/";
/// The user name of a secret that is a refresh token.
const TOKEN_USER: &str = "<token>";

/// Why credentials could not be had. No message has one in it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("could not read the credentials in `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is not what Docker writes.
    #[error("the credentials in `{0}` are not in the form of Docker's configuration")]
    Malformed(PathBuf),
    /// The helper's name could be another program.
    #[error("`{0}` is not the name of a credential helper")]
    HelperName(String),
    /// The helper cannot be run.
    #[error("could not run `{program}`")]
    Helper {
        /// The program.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The helper takes too long.
    #[error("`{0}` did not answer within {HELPER_DEADLINE:?}")]
    Deadline(String),
    /// The helper did not do what it was asked for.
    #[error("`{0}` could not change the credentials that it keeps")]
    Refused(String),
    /// The helper's answer is none.
    #[error("`{0}` answered something else than credentials")]
    Answer(String),
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What we show to a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Anonymous,
    Basic {
        username: String,
        password: Secret,
    },
    /// A token to get others with.
    Refresh(Secret),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

impl DockerConfig {
    /// The helper that has the credentials for a registry.
    fn helper(&self, registry: &str) -> Option<&str> {
        let own = self.cred_helpers.iter().find(|(key, _)| names(key, registry)).map(|(_, helper)| helper);
        own.or(self.creds_store.as_ref()).map(String::as_str).filter(|helper| !helper.is_empty())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// The credential for `registry` in the file `config`: from the helper that the file names for it, else from the
/// file itself. No file, no credential.
pub(crate) async fn find(
    config: Option<&Path>,
    helper_dirs: &[PathBuf],
    registry: &str,
) -> Result<Credential, CredentialsError> {
    let Some(path) = config else { return Ok(Credential::Anonymous) };
    let Some(config) = load(path)? else { return Ok(Credential::Anonymous) };
    if let Some(helper) = config.helper(registry) {
        let found = ask(helper, helper_dirs, registry).await?;
        if found != Credential::Anonymous {
            return Ok(found);
        }
    }
    let auth = config.auths.into_iter().find(|(key, _)| names(key, registry)).map(|(_, auth)| auth);
    auth.map_or(Ok(Credential::Anonymous), read).map_err(|()| CredentialsError::Malformed(path.to_owned()))
}

fn load(path: &Path) -> Result<Option<DockerConfig>, CredentialsError> {
    use std::io::Read as _;

    let failed = |source| CredentialsError::File { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = Vec::new();
    file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text).map_err(failed)?;
    // The cause is left out: it may quote the file.
    serde_json::from_slice(&text).map(Some).map_err(|_| CredentialsError::Malformed(path.to_owned()))
}

/// The helper that the file names for a registry.
pub(crate) fn helper(path: &Path, registry: &str) -> Result<Option<String>, CredentialsError> {
    Ok(load(path)?.and_then(|config| config.helper(registry).map(str::to_owned)))
}

/// The key of a registry's credentials, as Docker writes it.
pub(crate) fn key(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_KEY } else { registry }
}

/// Whether a key of the file means `registry`: it may be a URL, as old versions wrote.
pub(crate) fn names(key: &str, registry: &str) -> bool {
    let host = key.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    host == registry
        || registry == DEFAULT_REGISTRY && matches!(host, "index.docker.io" | "registry-1.docker.io")
}

fn read(auth: Auth) -> Result<Credential, ()> {
    if let Some(token) = auth.identitytoken.filter(|token| !token.0.is_empty()) {
        return Ok(Credential::Refresh(token));
    }
    if let Some(encoded) = auth.auth.filter(|auth| !auth.0.is_empty()) {
        let decoded = STANDARD.decode(encoded.0.trim()).map_err(drop)?;
        let decoded = String::from_utf8(decoded).map_err(drop)?;
        // Docker ends some with a zero.
        let (username, password) = decoded.trim_end_matches('\0').split_once(':').ok_or(())?;
        return Ok(Credential::Basic {
            username: username.to_owned(),
            password: Secret(password.to_owned()),
        });
    }
    match (auth.username, auth.password) {
        (Some(username), Some(password)) => Ok(Credential::Basic { username, password }),
        _ => Ok(Credential::Anonymous),
    }
}

/// Asks a helper. One that knows nothing of the registry says so by failing.
async fn ask(helper: &str, dirs: &[PathBuf], registry: &str) -> Result<Credential, CredentialsError> {
    let (program, answer) = call(helper, dirs, "get", key(registry).as_bytes()).await?;
    let Some(answer) = answer else { return Ok(Credential::Anonymous) };
    let Answer { username, secret } =
        serde_json::from_slice(&answer).map_err(|_| CredentialsError::Answer(program))?;
    Ok(match &*username {
        TOKEN_USER => Credential::Refresh(secret),
        _ => Credential::Basic { username, password: secret },
    })
}

/// Gives a helper the credentials for a registry.
pub(crate) async fn store(
    helper: &str,
    dirs: &[PathBuf],
    registry: &str,
    username: &str,
    password: &str,
) -> Result<(), CredentialsError> {
    let told = serde_json::json!({ "ServerURL": key(registry), "Username": username, "Secret": password });
    let (program, answer) = call(helper, dirs, "store", told.to_string().as_bytes()).await?;
    answer.map(drop).ok_or(CredentialsError::Refused(program))
}

/// Makes a helper forget a registry. Says whether it knew it.
pub(crate) async fn erase(helper: &str, dirs: &[PathBuf], registry: &str) -> Result<bool, CredentialsError> {
    let known = ask(helper, dirs, registry).await? != Credential::Anonymous;
    if known {
        let (program, answer) = call(helper, dirs, "erase", key(registry).as_bytes()).await?;
        answer.ok_or(CredentialsError::Refused(program))?;
    }
    Ok(known)
}

/// Runs a helper within its deadline. Returns its program's name, and what it prints unless it fails.
async fn call(
    helper: &str,
    dirs: &[PathBuf],
    verb: &str,
    told: &[u8],
) -> Result<(String, Option<Vec<u8>>), CredentialsError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !helper.bytes().all(is_plain) {
        return Err(CredentialsError::HelperName(crate::digest::shortened(helper)));
    }
    let program = format!("docker-credential-{helper}");
    let path = dirs.iter().map(|dir| dir.join(&program)).find(|path| path.is_file());
    let path = path.unwrap_or_else(|| PathBuf::from(&program));
    let answer = tokio::time::timeout(HELPER_DEADLINE, run(&path, verb, told)).await;
    let answer = answer.map_err(|_| CredentialsError::Deadline(program.clone()))?;
    let answer = answer.map_err(|source| CredentialsError::Helper { program: program.clone(), source })?;
    Ok((program, answer))
}

/// Returns the program's output; nothing if it fails. It keeps our environment, by which such programs find the account that
/// they speak for.
async fn run(path: &Path, verb: &str, told: &[u8]) -> io::Result<Option<Vec<u8>>> {
    #[expect(clippy::disallowed_methods, reason = "the one place in this crate that starts processes")]
    let mut command = Command::new(path);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(told).await {
            // It need not read to know that it has nothing.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_HELPER_BYTES).read_to_end(&mut answer).await?;
    }
    Ok(child.wait().await?.success().then_some(answer))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(config: &str) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            std::fs::write(place.0.path().join("config.json"), config).unwrap();
            place
        }

        fn helper(self, name: &str, script: &str) -> Self {
            let path = self.0.path().join(format!("docker-credential-{name}"));
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            self
        }

        async fn find(&self, registry: &str) -> Result<Credential, CredentialsError> {
            find(Some(&self.0.path().join("config.json")), &[self.0.path().to_owned()], registry).await
        }
    }

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: Secret(password.to_owned()) }
    }

    #[tokio::test]
    async fn credentials_come_from_the_file() {
        let place = Place::new(
            r#"{"auths":{"ghcr.io":{"auth":"YWxpY2U6c2VjOnJldA=="},"https://index.docker.io/v1/":{"auth":"Ym9iOng="},
            "a.b:5000":{"username":"u","password":"p"},"t.example":{"identitytoken":"tok"},"e.example":{}}}"#,
        );
        assert_eq!(place.find("ghcr.io").await.unwrap(), basic("alice", "sec:ret"));
        assert_eq!(place.find("docker.io").await.unwrap(), basic("bob", "x"));
        assert_eq!(place.find("a.b:5000").await.unwrap(), basic("u", "p"));
        assert_eq!(place.find("t.example").await.unwrap(), Credential::Refresh(Secret("tok".to_owned())));
        for none in ["e.example", "a.b", "ghcr.io.evil.example"] {
            assert_eq!(place.find(none).await.unwrap(), Credential::Anonymous, "{none}");
        }
    }

    #[tokio::test]
    async fn no_file_is_no_credential_and_a_broken_one_an_error() {
        assert_eq!(find(None, &[], "a").await.unwrap(), Credential::Anonymous);
        assert_eq!(find(Some(Path::new("/nonexistent/x")), &[], "a").await.unwrap(), Credential::Anonymous);
        for broken in
            ["{", r#"{"auths":{"a.b":{"auth":"***secret***"}}}"#, r#"{"auths":{"a.b":{"auth":"YWJj"}}}"#]
        {
            let error = Place::new(broken).find("a.b").await.unwrap_err();
            assert!(matches!(error, CredentialsError::Malformed(_)));
            assert!(!format!("{error:?} {error}").contains("secret"));
        }
    }

    #[tokio::test]
    async fn helpers_are_asked_for_their_registries() {
        let answer =
            r#"server=$(cat); echo "{\"ServerURL\":\"$server\",\"Username\":\"$1\",\"Secret\":\"$server\"}""#;
        let place = Place::new(
            r#"{"credHelpers":{"a.b":"mine"},"credsStore":"all","auths":{"c.d":{"auth":"Ym9iOng="}}}"#,
        )
        .helper("mine", answer)
        .helper("all", "echo 'credentials not found'; exit 1");
        assert_eq!(place.find("a.b").await.unwrap(), basic("get", "a.b"));
        assert_eq!(
            place.find("c.d").await.unwrap(),
            basic("bob", "x"),
            "what the helper lacks may be in the file"
        );
        assert_eq!(place.find("e.f").await.unwrap(), Credential::Anonymous);
        let place =
            Place::new(r#"{"credsStore":"t"}"#).helper("t", r#"echo '{"Username":"<token>","Secret":"s"}'"#);
        assert_eq!(place.find("a.b").await.unwrap(), Credential::Refresh(Secret("s".to_owned())));
    }

    #[tokio::test]
    async fn helpers_that_misbehave_are_errors_without_what_they_said() {
        let place = Place::new(r#"{"credsStore":"h"}"#).helper("h", "echo not-json-but-secret");
        let error = place.find("a.b").await.unwrap_err();
        assert!(matches!(error, CredentialsError::Answer(_)) && !format!("{error:?}").contains("secret"));
        let place = Place::new(r#"{"credsStore":"h"}"#).helper("h", "exec cat /dev/zero");
        assert!(
            place.find("a.b").await.is_ok_and(|found| found == Credential::Anonymous),
            "ends by a broken pipe"
        );
        let place = Place::new(r#"{"credsStore":"none-such"}"#);
        assert!(matches!(place.find("a.b").await, Err(CredentialsError::Helper { .. })));
        let place = Place::new(r#"{"credsStore":"../../bin/sh"}"#);
        assert!(matches!(place.find("a.b").await, Err(CredentialsError::HelperName(_))));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", basic("u", "hunter2")).contains("hunter2"));
    }
}
