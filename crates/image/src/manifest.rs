//! Manifests and indexes: which blobs an image consists of, and which image is for this machine.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::{Digest, shortened};

/// Media types that are asked for: image and index, of OCI and of Docker's schema 2.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// The annotation by which a layout names its images.
const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// The same with registry and tag, as containerd and Docker write it.
const CONTAINERD_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no JSON of the form that was expected.
    #[error("could not read the {0} of the image")]
    Malformed(&'static str, #[source] serde_json::Error),
    /// A form of manifest that has no verifiable contents.
    #[error("the manifest has the unsupported schema version {0}")]
    Schema(u64),
    /// A layer that is no file system, or is encrypted.
    #[error("the layer `{layer}` has the unsupported media type `{media_type}`")]
    MediaType {
        /// The layer's digest.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The image is for other machines.
    #[error("the image is not there for `{wanted}`, but for {}", listed(.there))]
    Platform {
        /// This machine.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// Indexes in indexes, deeper than anybody needs.
    #[error("the indexes of the image are nested more than {0} deep")]
    Nested(usize),
    /// More layers than an image may have.
    #[error("the image has {0} layers, more than the limit of {1}")]
    Layers(usize, usize),
    /// Configuration and manifest do not fit together.
    #[error("the manifest names {layers} layers, and the image's configuration {diff_ids}")]
    Count {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the configuration.
        diff_ids: usize,
    },
}

fn listed(platforms: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = platforms.iter().take(SHOWN).map(|platform| format!("`{platform}`")).collect();
    let more = if platforms.len() > SHOWN { " and more" } else { "" };
    if shown.is_empty() { "no platform".to_owned() } else { format!("{}{more}", shown.join(", ")) }
}

/// A manifest or an index.
#[derive(Debug)]
pub(crate) enum Manifest {
    Image(Image),
    Index(Vec<Descriptor>),
}

/// An image's blobs.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) config: Descriptor,
    /// The lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// What names a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// The name that a layout gives it.
    pub(crate) fn name(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(NAME_ANNOTATION).map(String::as_str)
    }

    /// A name that means the image outside its layout too: `v1` alone does not.
    pub(crate) fn full_name(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        let full = annotations.get(CONTAINERD_NAME_ANNOTATION).map(String::as_str);
        full.or_else(|| self.name().filter(|name| name.contains(['/', ':'])))
    }
}

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Platform {
    /// What the guests of this machine are.
    pub(crate) fn ours() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    pub(crate) fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// How well an image for `self` fits `wanted`: the plain architecture before a variant of it; `None` if it does
    /// not run there.
    fn fit(&self, wanted: &Self) -> Option<u8> {
        if (&self.os, &self.architecture) != (&wanted.os, &wanted.architecture) {
            return None;
        }
        match self.variant.as_deref() {
            None | Some("") => Some(0),
            // Every arm64 is a v8, every amd64 a v1; newer ones may not be what we run on.
            Some("v8" | "v1") => Some(1),
            Some(_) => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let variant = self.variant.as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
        f.write_str(&shortened(&format!("{}/{}{variant}", self.os, self.architecture)))
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    use serde::de::Error as _;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        schema_version: u64,
    }
    let malformed = |error| ManifestError::Malformed("manifest", error);
    // The first version looks quite different.
    let Version { schema_version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if schema_version != 2 {
        return Err(ManifestError::Schema(schema_version));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(malformed)?;
    match document {
        // A document that could be read as both is one by which somebody means to deceive (CVE-2021-41190).
        Document { manifests: Some(manifests), config: None, layers: None } => Ok(Manifest::Index(manifests)),
        Document { manifests: None, config: Some(config), layers: Some(layers) } => {
            Ok(Manifest::Image(Image { config, layers }))
        }
        _ => {
            let unclear = serde_json::Error::custom("it is neither a manifest nor an index");
            Err(malformed(unclear))
        }
    }
}

/// The entry of an index that is for `wanted`.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    let fits = |entry: &Descriptor| match &entry.platform {
        Some(platform) => platform.fit(wanted),
        // A layout of one image need not say what it is for; its configuration will.
        None => Some(9),
    };
    let best = entries.iter().filter_map(|entry| Some((fits(entry)?, entry))).min_by_key(|(fit, _)| *fit);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        // Builders add entries for what is no platform, such as attestations.
        let there = entries.iter().filter_map(|entry| entry.platform.as_ref());
        let there = there.filter(|platform| platform.os != "unknown").map(ToString::to_string).collect();
        ManifestError::Platform { wanted: wanted.to_string(), there }
    })
}

/// Refuses an image that has too many layers, or other ones than file systems.
pub(crate) fn check(image: &Image, max_layers: usize) -> Result<(), ManifestError> {
    if image.layers.len() > max_layers {
        return Err(ManifestError::Layers(image.layers.len(), max_layers));
    }
    let other = image.layers.iter().find(|layer| !is_layer(&layer.media_type));
    other.map_or(Ok(()), |layer| {
        let (media_type, layer) = (shortened(&layer.media_type), layer.digest.clone());
        Err(ManifestError::MediaType { layer, media_type })
    })
}

fn is_layer(media_type: &str) -> bool {
    let kinds = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
    ];
    let compression = kinds.iter().find_map(|kind| media_type.strip_prefix(kind));
    matches!(compression, Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(extra: &str) -> String {
        let digest = Digest::of(extra.as_bytes());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":1{extra}}}"#
        )
    }

    fn index(platforms: &[&str]) -> Vec<Descriptor> {
        let entries: Vec<_> =
            platforms.iter().map(|platform| descriptor(&format!(r#","platform":{platform}"#))).collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match parse(text.as_bytes()).unwrap() {
            Manifest::Index(entries) => entries,
            Manifest::Image(_) => panic!("an index"),
        }
    }

    const AMD64: &str = r#"{"os":"linux","architecture":"amd64"}"#;
    const ARM64_V8: &str = r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#;
    const AMD64_V3: &str = r#"{"os":"linux","architecture":"amd64","variant":"v3"}"#;
    const ATTESTATION: &str = r#"{"os":"unknown","architecture":"unknown"}"#;

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let entries = index(&[ATTESTATION, AMD64_V3, ARM64_V8, AMD64]);
        let chosen = |architecture: &str| {
            choose(&entries, &Platform::new("linux", architecture)).unwrap().digest.clone()
        };
        assert_eq!(chosen("amd64"), entries[3].digest);
        assert_eq!(chosen("arm64"), entries[2].digest);
    }

    #[test]
    fn an_error_names_the_platforms_that_there_are() {
        let entries = index(&[ATTESTATION, ARM64_V8, r#"{"os":"windows","architecture":"amd64"}"#]);
        let error = choose(&entries, &Platform::new("linux", "amd64")).unwrap_err();
        let text = "the image is not there for `linux/amd64`, but for `linux/arm64/v8`, `windows/amd64`";
        assert_eq!(error.to_string(), text);
        assert!(choose(&[], &Platform::ours()).unwrap_err().to_string().ends_with("but for no platform"));
    }

    #[test]
    fn what_could_be_two_things_is_neither() {
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}}"#, descriptor(""));
        assert!(matches!(parse(both.as_bytes()), Err(ManifestError::Malformed(..))));
        assert!(matches!(parse(br#"{"schemaVersion":2}"#), Err(ManifestError::Malformed(..))));
        assert!(matches!(parse(br#"{"schemaVersion":1,"fsLayers":[]}"#), Err(ManifestError::Schema(1))));
        assert!(parse(b"<html>").is_err());
    }

    #[test]
    fn layers_are_limited_and_file_systems() {
        let layer = descriptor("");
        let text = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer},{layer}]}}"#);
        let Manifest::Image(image) = parse(text.as_bytes()).unwrap() else { panic!("an image") };
        assert!(check(&image, 2).is_ok());
        assert!(matches!(check(&image, 1), Err(ManifestError::Layers(2, 1))));
        let text = text.replace("layer.v1.tar", "layer.v1.tar+encrypted");
        let Manifest::Image(image) = parse(text.as_bytes()).unwrap() else { panic!("an image") };
        assert!(matches!(check(&image, 2), Err(ManifestError::MediaType { .. })));
        assert!(is_layer("application/vnd.docker.image.rootfs.diff.tar.gzip"));
        assert!(is_layer("application/vnd.oci.image.layer.v1.tar+zstd"));
        assert!(!is_layer("application/json"));
    }
}
