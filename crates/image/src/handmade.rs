//! Archives made by hand, for tests: also such as no program would write.

use std::io::Cursor;

use tar::{EntryType, Header};

use crate::Reference;
use crate::digest::Digest;
use crate::layer::entries::{self, Allowance, ArchiveError, Entry};
use crate::manifest::Platform;

/// An archive that grows.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    /// One entry with the usual metadata.
    pub(crate) fn with(self, kind: u8, name: &str, link: &str, data: &[u8]) -> Self {
        self.changed(kind, name, link, data, |_| ())
    }

    /// One entry whose header `change` may spoil.
    pub(crate) fn changed(
        mut self,
        kind: u8,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.padded(data)
    }

    /// PAX records about the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let digits = (1..).find(|digits| (body + digits).to_string().len() == *digits).unwrap();
            data.extend_from_slice(format!("{} {key}=", body + digits).as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.with(b'x', "pax", "", &data)
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.with(b'5', name, "", b"")
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.with(b'0', name, "", data)
    }

    pub(crate) fn padded(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// What was written so far, without an end mark.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    read_within(bytes, &crate::Limits::default())
}

pub(crate) fn read_within(bytes: &[u8], limits: &crate::Limits) -> Result<Vec<Entry>, ArchiveError> {
    entries::read(Cursor::new(bytes), bytes.len() as u64, 0, &mut Allowance::new(limits))
}

/// The default allowance of an image.
pub(crate) fn allowance() -> Allowance {
    Allowance::new(&crate::Limits::default())
}

/// A directory in the OCI layout.
pub(crate) struct Layout {
    pub(crate) dir: tempfile::TempDir,
    entries: Vec<String>,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        Self { dir, entries: Vec::new() }
    }

    /// Puts a blob there; returns its descriptor but for the last brace.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes);
        std::fs::write(self.dir.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}"#, bytes.len())
    }

    /// An image of uncompressed layers for this machine.
    pub(crate) fn image(self, tag: &str, layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        self.image_with(tag, layers, &diff_ids, &Platform::ours())
    }

    pub(crate) fn image_with(
        mut self,
        tag: &str,
        layers: &[Vec<u8>],
        diff_ids: &[Digest],
        platform: &Platform,
    ) -> Self {
        let ids: Vec<String> = diff_ids.iter().map(|id| format!("\"{id}\"")).collect();
        let platform = platform.to_string();
        let (os, architecture) = platform.split_once('/').unwrap();
        let config = format!(
            r#"{{"os":"{os}","architecture":"{architecture}","created":"2026-01-02T03:04:05Z","config":{{"User":"{tag}"}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
        let layers: Vec<String> = layers
            .iter()
            .map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", layer) + "}")
            .collect();
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{config}}},"layers":[{}]}}"#, layers.join(","));
        let manifest = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        let name = format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}"#);
        self.entries.push(manifest + &name);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, self.entries.join(","));
        std::fs::write(self.dir.path().join("index.json"), index).unwrap();
        self
    }

    pub(crate) fn reference(&self, tag: &str) -> Reference {
        format!("oci:{}:{tag}", self.dir.path().display()).parse().unwrap()
    }
}
