//! What people type for an image: which one is meant, and where it is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, shortened};

/// The registry of a reference that names none, and where it answers.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
pub(crate) const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// The repositories of the default registry that have one word.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// Bytes of a reference that was typed.
pub const MAX_REFERENCE_BYTES: usize = 4096;
/// Characters of registry and repository, and of a tag (the distribution specification).
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// An image, as people name it.
///
/// In a registry: `nginx:alpine`, `ghcr.io/org/app@sha256:…`, `localhost:5000/a/b:tag`. On this machine:
/// `oci:/path[:tag]`, a directory or archive in the OCI image layout, and `docker-archive:/path[:reference]`,
/// what `docker save` writes. A path is absolute and has no colon.
///
/// ```
/// use bouvet_image::Reference;
///
/// let reference: Reference = "nginx".parse()?;
/// assert_eq!(reference.normalized(), "docker.io/library/nginx:latest");
/// assert_eq!("localhost:5000/a/b".parse::<Reference>()?.registry(), Some("localhost:5000"));
/// assert_eq!("oci:/srv/layout:1".parse::<Reference>()?.registry(), None);
/// # Ok::<(), bouvet_image::reference::ReferenceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    typed: String,
    source: Source,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// In a registry.
    Registry(Remote),
    /// In a directory or archive in the OCI layout.
    Layout { path: PathBuf, tag: Option<String> },
    /// In an archive of `docker save`.
    DockerArchive { path: PathBuf, image: Option<String> },
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Remote {
    /// Host, and port if one was given.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

/// Why a text is no reference.
///
/// ```
/// use bouvet_image::Reference;
///
/// let error = "Nginx".parse::<Reference>().unwrap_err();
/// assert!(error.to_string().starts_with("`Nginx` is not a reference to an image: "));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a reference to an image: {reason}")]
pub struct ReferenceError {
    /// What was typed.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Reference {
    /// The reference with all that was left out: `docker.io/library/nginx:latest` for `nginx`. Two references
    /// with the same normal form mean the same image.
    pub fn normalized(&self) -> String {
        match &self.source {
            Source::Registry(remote) => remote.to_string(),
            Source::Layout { path, tag } => local("oci", path, tag.as_ref()),
            Source::DockerArchive { path, image } => local("docker-archive", path, image.as_ref()),
        }
    }

    /// The host of its registry, with the port if one was given; `None` for an image on this machine.
    pub fn registry(&self) -> Option<&str> {
        match &self.source {
            Source::Registry(remote) => Some(&remote.registry),
            Source::Layout { .. } | Source::DockerArchive { .. } => None,
        }
    }

    /// Whether it is a name with a tag, which an image in the cache can be given.
    pub(crate) fn is_tag(&self) -> bool {
        matches!(&self.source, Source::Registry(Remote { digest: None, .. }))
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }
}

fn local(kind: &str, path: &Path, part: Option<&String>) -> String {
    let path = path.display();
    part.map_or_else(|| format!("{kind}:{path}"), |part| format!("{kind}:{path}:{part}"))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let source = parse(text).map_err(|reason| ReferenceError { text: shortened(text), reason })?;
        Ok(Self { typed: text.to_owned(), source })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.typed
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

impl Remote {
    /// Host and port that answer for the registry.
    pub(crate) fn host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { &self.registry }
    }

    /// What the registry is asked for: the digest where there is one, as a tag may have moved.
    pub(crate) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.wanted()),
        }
    }
}

fn parse(text: &str) -> Result<Source, &'static str> {
    if text.len() > MAX_REFERENCE_BYTES {
        return Err("it is too long");
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        let (path, tag) = split_path(rest)?;
        return Ok(Source::Layout { path, tag });
    }
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        let (path, image) = split_path(rest)?;
        let image = image.map(|image| remote(&image).map(|remote| remote.to_string())).transpose()?;
        return Ok(Source::DockerArchive { path, image });
    }
    remote(text).map(Source::Registry)
}

fn split_path(rest: &str) -> Result<(PathBuf, Option<String>), &'static str> {
    let (path, part) = match rest.split_once(':') {
        Some((path, part)) => (path, Some(part.to_owned())),
        None => (rest, None),
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err("its path is not absolute");
    }
    if part.as_ref().is_some_and(String::is_empty) {
        return Err("nothing follows the path's colon");
    }
    Ok((PathBuf::from(path), part))
}

fn remote(text: &str) -> Result<Remote, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| "its digest is not a SHA-256")?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // The colon of a port has a path after it.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag has other characters than letters, digits, `_`, `.`, `-`, or too many");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if names_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !is_host(registry) {
        return Err("its registry is not a host name");
    }
    if !path.split('/').all(is_component) || registry.len() + path.len() >= MAX_NAME {
        return Err(
            "its name has other characters than lower-case letters, digits and separators, or too many",
        );
    }
    let registry = registry.to_ascii_lowercase();
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { registry };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{DEFAULT_NAMESPACE}/{path}")
    } else {
        path.to_owned()
    };
    Ok(Remote { registry, repository, tag: tag.map(str::to_owned), digest })
}

/// Whether the first part of a name is a registry, and not a part of the default registry's names.
fn names_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.starts_with('+') || port.parse::<u16>().is_err()) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// Lower-case words with `.`, `_`, `__` or dashes between them.
fn is_component(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = component.split(|char: char| char.is_ascii() && plain(char as u8));
    let ends = component.bytes().next().is_some_and(plain) && component.bytes().last().is_some_and(plain);
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    ends && separators.into_iter().all(is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.to_string(), text, "what was typed is shown");
        let normal = reference.normalized();
        assert_eq!(normal.parse::<Reference>().unwrap().normalized(), normal, "the normal form is one");
        normal
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        assert_eq!(normal("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(normal("nginx:alpine"), "docker.io/library/nginx:alpine");
        assert_eq!(normal("org/app"), "docker.io/org/app:latest");
        assert_eq!(normal("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(normal("localhost/a"), "localhost/a:latest");
        assert_eq!(normal("localhost:5000/a/b:tag"), "localhost:5000/a/b:tag");
        assert_eq!(normal("[::1]:5000/a"), "[::1]:5000/a:latest");
        assert_eq!(normal("GHCR.io/a__b/c-d.e"), "ghcr.io/a__b/c-d.e:latest");
        assert_eq!(normal("oci:/a/b:v1"), "oci:/a/b:v1");
        assert_eq!(normal("oci:/a/b.tar"), "oci:/a/b.tar");
        assert_eq!(normal("docker-archive:/a.tar:app:v1"), "docker-archive:/a.tar:docker.io/library/app:v1");
    }

    #[test]
    fn a_digest_goes_before_a_tag() {
        let digest = Digest::of(b"");
        assert_eq!(normal(&format!("ghcr.io/a/b@{digest}")), format!("ghcr.io/a/b@{digest}"));
        assert_eq!(normal(&format!("ghcr.io/a/b:v1@{digest}")), format!("ghcr.io/a/b@{digest}"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(256);
        for text in [
            "",
            " ",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:b:c/",
            "a b",
            "a/../b",
            "a/.b",
            "a/b_",
            "a/b___c",
            "a.b:x/c",
            "a.b:+80/c",
            "a.b:99999/c",
            "a.b:/c",
            "-a.b/c",
            "[::g]/a",
            "a?b",
            "user@host/a",
            "a@sha256:12",
            "oci:relative",
            "oci:",
            "oci:/a:",
            "docker-archive:/a:Bad Name",
            "http://a.b/c",
            "a.b/c:ü",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!("a".repeat(240).parse::<Reference>().is_ok());
        assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    #[test]
    fn it_is_text_in_json() {
        let reference: Reference = serde_json::from_str("\"nginx:alpine\"").unwrap();
        assert_eq!(serde_json::to_string(&reference).unwrap(), "\"nginx:alpine\"");
        assert!(serde_json::from_str::<Reference>("\"a b\"").is_err());
    }
}
