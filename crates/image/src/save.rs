//! Images written as an archive that Docker, podman and skopeo read.
//!
//! The cache keeps root file systems, not the layers that they were made from. A saved image therefore has one layer with
//! all its files, and a configuration without the history of the others: it runs as the image did, and has another id.
//! The archive is a layout of the OCI, with the `manifest.json` of `docker save` beside it.

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use erofs_rs::r#async::EroFS;
use erofs_rs::backend::AsyncImage;
use erofs_rs::types::Inode;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::Reference;
use crate::cache::CacheError;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::images::{Home, Image, Images};
use crate::pull::blocking;

/// Read at a time.
const PIECE_BYTES: usize = 128 << 10;
/// Bytes of a header's own field for a name or a link.
const MAX_SHORT_NAME: usize = 100;

/// Why an image cannot be saved.
///
/// ```no_run
/// use bouvet_image::save::SaveError;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// match images.save(&["app:1".into()], std::io::sink()).await {
///     Err(SaveError::Cache(error)) => eprintln!("it is not here: {error}"),
///     other => other?,
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The root file system cannot be read.
    #[error("could not read the root file system of the image `{id}`")]
    Rootfs {
        /// The image.
        id: Digest,
        /// The cause.
        #[source]
        source: erofs_rs::Error,
    },
    /// The archive cannot be written.
    #[error("could not write the archive")]
    Write(#[from] io::Error),
    /// It is not in the cache, or the cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Images {
    /// The images called so, held until they are saved.
    pub(crate) async fn hold(&self, names: &[String]) -> Result<Vec<(Image, Vec<String>)>, CacheError> {
        let mut held: Vec<(Image, Vec<String>)> = Vec::new();
        for name in names {
            let image = self.get(name).await?;
            let image = image.ok_or_else(|| CacheError::Unknown(crate::digest::shortened(name)))?;
            let is_id = image.id.hex().starts_with(name.trim_start_matches("sha256:"));
            let reference = name.parse::<Reference>().ok().filter(|reference| reference.is_tag() && !is_id);
            let reference = reference.map(|reference| reference.normalized());
            match held.iter_mut().find(|(known, _)| known.id == image.id) {
                Some((_, names)) => names.extend(reference),
                None => held.push((image, reference.into_iter().collect())),
            }
        }
        Ok(held)
    }

    /// Writes images as an archive that [`load`](Self::load), Docker, podman and skopeo read. One that was asked for by its
    /// id has no name there.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// images.save(&["nginx:alpine".into()], std::fs::File::create("nginx.tar")?).await?;
    /// # Ok(()) }
    /// ```
    pub async fn save(&self, names: &[String], into: impl Write + Send + 'static) -> Result<(), SaveError> {
        let held = self.hold(names).await?;
        let Home::Cache(store) = &self.shared.home else { return Ok(()) };
        let dir = store.options.dir.clone();
        blocking(move || {
            let saved: Vec<Saved<'_>> = held
                .iter()
                .map(|(image, names)| Saved {
                    id: &image.id,
                    rootfs: &image.rootfs,
                    config: &image.config,
                    names: names.clone(),
                })
                .collect();
            write(&saved, &dir, into)
        })
        .await
    }
}

/// An image that is to be saved.
pub(crate) struct Saved<'a> {
    pub(crate) id: &'a Digest,
    pub(crate) rootfs: &'a Path,
    pub(crate) config: &'a ImageConfig,
    /// In normal form.
    pub(crate) names: Vec<String>,
}

/// A root file system that is read without a map of it in memory.
struct Rootfs(File);

impl AsyncImage for Rootfs {
    async fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> erofs_rs::Result<()> {
        self.0.read_exact_at(buffer, offset).map_err(|error| erofs_rs::Error::OutOfBounds(error.to_string()))
    }
}

/// The result of a future of the reader, which is always ready: reads of a file do not wait.
fn ready<T>(future: impl Future<Output = erofs_rs::Result<T>>) -> erofs_rs::Result<T> {
    future.now_or_never().unwrap_or(Err(erofs_rs::Error::NotSupported("a read that waits".to_owned())))
}

/// Writes the archive. Layers wait in files without names in `dir`.
pub(crate) fn write(images: &[Saved<'_>], dir: &Path, into: impl Write) -> Result<(), SaveError> {
    let mut archive = Builder::new(into);
    let mut written: HashMap<Digest, u64> = HashMap::new();
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for image in images {
        let (layer, diff_id) = layer(image, dir)?;
        let size = layer.metadata()?.len();
        blob(&mut archive, &mut written, &diff_id, size, layer)?;
        let mut put = |kind: &str, value: &Value| -> io::Result<Value> {
            let bytes = serde_json::to_vec(value)?;
            let digest = Digest::of(&bytes);
            blob(&mut archive, &mut written, &digest, bytes.len() as u64, &bytes[..])?;
            Ok(descriptor(kind, &digest, bytes.len() as u64))
        };
        let config = put("config.v1+json", &configuration(image.config, &diff_id))?;
        let layers = [descriptor("layer.v1.tar", &diff_id, size)];
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        let manifest = put("manifest.v1+json", &manifest)?;
        index.extend(entries(&manifest, image));
        docker.push(json!({
            "Config": blob_path(config["digest"].as_str().unwrap_or_default()),
            "RepoTags": image.names.iter().filter(|name| !name.contains('@')).collect::<Vec<_>>(),
            "Layers": [blob_path(&diff_id.to_string())],
        }));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": index,
    });
    document(&mut archive, "index.json", &index)?;
    document(&mut archive, "manifest.json", &Value::Array(docker))?;
    document(&mut archive, "oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// An image in an index: once for each of its names.
fn entries(manifest: &Value, image: &Saved<'_>) -> Vec<Value> {
    let entry = |name: Option<&String>| {
        let mut entry = manifest.clone();
        entry["platform"] = json!({ "os": "linux", "architecture": image.config.architecture });
        if let Some(name) = name {
            let annotations =
                [("io.containerd.image.name", name), ("org.opencontainers.image.ref.name", name)];
            entry["annotations"] = json!(HashMap::from(annotations));
        }
        entry
    };
    match image.names.is_empty() {
        true => vec![entry(None)],
        false => image.names.iter().map(|name| entry(Some(name))).collect(),
    }
}

fn descriptor(kind: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size })
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

fn blob(
    archive: &mut Builder<impl Write>,
    written: &mut HashMap<Digest, u64>,
    digest: &Digest,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    if written.insert(digest.clone(), size).is_some() {
        return Ok(());
    }
    part(archive, &blob_path(&digest.to_string()), size, content)
}

fn document(archive: &mut Builder<impl Write>, name: &str, value: &Value) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    part(archive, name, bytes.len() as u64, &bytes[..])
}

fn part(archive: &mut Builder<impl Write>, name: &str, size: u64, content: impl Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    archive.append_data(&mut header, name, content)
}

/// The document by which the saved image runs as the image did.
fn configuration(config: &ImageConfig, diff_id: &Digest) -> Value {
    let env: Vec<String> = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let set = |names: &[String]| -> Value {
        names.iter().map(|name| (name.clone(), json!({}))).collect::<serde_json::Map<_, _>>().into()
    };
    let mut run = json!({ "Env": env, "Cmd": config.cmd });
    let mut add = |key: &str, is_set: bool, value: Value| {
        if is_set {
            run[key] = value;
        }
    };
    add("Entrypoint", !config.entrypoint.is_empty(), json!(config.entrypoint));
    add("WorkingDir", !config.working_dir.is_empty(), json!(config.working_dir));
    add("User", !config.user.is_empty(), json!(config.user));
    add("StopSignal", config.stop_signal.is_some(), json!(config.stop_signal));
    add("ExposedPorts", !config.exposed_ports.is_empty(), set(&config.exposed_ports));
    add("Volumes", !config.volumes.is_empty(), set(&config.volumes));
    add("Labels", !config.labels.is_empty(), json!(config.labels));
    let mut document = json!({
        "architecture": config.architecture,
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": "bouvet save" }],
    });
    if let Some(created) = &config.created {
        document["created"] = json!(created);
        document["history"][0]["created"] = json!(created);
    }
    document
}

/// All files of an image as one layer, in a file without a name, and its digest.
fn layer(image: &Saved<'_>, dir: &Path) -> Result<(File, Digest), SaveError> {
    let hashing = Hashing {
        into: BufWriter::with_capacity(PIECE_BYTES, tempfile::tempfile_in(dir)?),
        hasher: Sha256::new(),
    };
    let rootfs = File::open(image.rootfs)?;
    let hashing = write_layer(rootfs, Builder::new(hashing)).map_err(|error| match error {
        EntryError::Read(source) => SaveError::Rootfs { id: image.id.clone(), source },
        EntryError::Write(error) => SaveError::Write(error),
    })?;
    let Hashing { into, hasher } = hashing;
    let mut layer = into.into_inner().map_err(io::IntoInnerError::into_error)?;
    layer.rewind()?;
    Ok((layer, Digest::from_hasher(hasher)))
}

fn write_layer<W: Write>(rootfs: File, archive: Builder<W>) -> Result<W, EntryError> {
    let rootfs = ready(EroFS::new(Rootfs(rootfs)))?;
    let mut writer = LayerWriter { rootfs: &rootfs, archive, names: HashMap::new() };
    let root = ready(rootfs.get_inode(rootfs.super_block().root_inode_id()))?;
    writer.add(b"./", &root)?;
    let mut walk = ready(rootfs.walk_dir("/"))?;
    while let Some(entry) = ready(walk.next_entry().map(Ok))? {
        let entry = entry?;
        let path = entry.dir_entry.path();
        let name = path.as_bytes().strip_prefix(b"/").unwrap_or(path.as_bytes());
        writer.add(name, &entry.inode)?;
    }
    Ok(writer.archive.into_inner()?)
}

/// Why an entry cannot be written.
enum EntryError {
    Read(erofs_rs::Error),
    Write(io::Error),
}

impl From<erofs_rs::Error> for EntryError {
    fn from(error: erofs_rs::Error) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for EntryError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

type Record = (Vec<u8>, Vec<u8>);

struct LayerWriter<'a, W: Write> {
    rootfs: &'a EroFS<Rootfs>,
    archive: Builder<W>,
    /// The first names of files that have several, by number.
    names: HashMap<u64, Vec<u8>>,
}

impl<W: Write> LayerWriter<'_, W> {
    fn add(&mut self, name: &[u8], inode: &Inode) -> Result<(), EntryError> {
        let mut header = Header::new_gnu();
        header.set_mode(inode.permissions().mode() & 0o7777);
        header.set_uid(inode.uid().into());
        header.set_gid(inode.gid().into());
        header.set_size(0);
        let mut records = Vec::new();
        let (secs, nanos) = inode.modified_unix();
        header.set_mtime(u64::try_from(secs).unwrap_or(0));
        if secs < 0 || nanos > 0 {
            records.push((b"mtime".to_vec(), time(secs, nanos).into_bytes()));
        }
        let has_names = !inode.is_dir() && inode.nlink() > 1;
        if let Some(first) = self.names.get(&inode.id()).filter(|_| has_names) {
            header.set_entry_type(EntryType::Link);
            let first = first.clone();
            return Ok(self.write(header, records, name, &first, io::empty())?);
        }
        if has_names {
            self.names.insert(inode.id(), name.to_vec());
        }
        for (key, value) in ready(self.rootfs.xattrs_inode(*inode))? {
            records.push(([b"SCHILY.xattr.", &key[..]].concat(), value));
        }
        self.add_kind(header, records, name, inode)
    }

    fn add_kind(
        &mut self,
        mut header: Header,
        records: Vec<Record>,
        name: &[u8],
        inode: &Inode,
    ) -> Result<(), EntryError> {
        let mut link = Vec::new();
        let kind = if inode.is_file() {
            let file = self.rootfs.open_inode_file(*inode)?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(file.size());
            return Ok(self.write(header, records, name, &link, Content { file, at: 0 })?);
        } else if inode.is_dir() {
            EntryType::Directory
        } else if inode.is_symlink() {
            link = ready(self.rootfs.read_link_inode(*inode))?.into_vec();
            EntryType::Symlink
        } else if let Some((major, minor)) = inode.device() {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
            if inode.file_type().is_block_device() { EntryType::Block } else { EntryType::Char }
        } else {
            EntryType::Fifo
        };
        header.set_entry_type(kind);
        Ok(self.write(header, records, name, &link, io::empty())?)
    }

    /// Writes one entry, with PAX records for what does not fit a header.
    fn write(
        &mut self,
        mut header: Header,
        mut records: Vec<Record>,
        name: &[u8],
        link: &[u8],
        content: impl Read,
    ) -> io::Result<()> {
        let gnu = header.as_gnu_mut().ok_or(io::ErrorKind::InvalidInput)?;
        for (field, value, key) in [(&mut gnu.name, name, "path"), (&mut gnu.linkname, link, "linkpath")] {
            let fits = value.len().min(MAX_SHORT_NAME);
            field[..fits].copy_from_slice(&value[..fits]);
            if fits < value.len() {
                records.push((key.into(), value.to_vec()));
            }
        }
        if !records.is_empty() {
            let mut data = Vec::new();
            for (key, value) in &records {
                push_record(&mut data, key, value);
            }
            let mut extension = Header::new_ustar();
            extension.set_entry_type(EntryType::XHeader);
            extension.set_path("PaxHeaders")?;
            extension.set_mode(0o644);
            extension.set_size(data.len() as u64);
            extension.set_cksum();
            self.archive.append(&extension, &data[..])?;
        }
        header.set_cksum();
        self.archive.append(&header, content)
    }
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn push_record(data: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    data.extend_from_slice(format!("{length} ").as_bytes());
    data.extend_from_slice(key);
    data.push(b'=');
    data.extend_from_slice(value);
    data.push(b'\n');
}

/// Seconds since 1970 with their fraction: half a second before it is `-0.5`.
fn time(secs: i64, nanos: u32) -> String {
    match (secs, nanos) {
        (secs, 0) => secs.to_string(),
        (0.., nanos) => format!("{secs}.{nanos:09}"),
        (..0, nanos) => format!("-{}.{:09}", -(secs + 1), 1_000_000_000 - nanos),
    }
}

/// The bytes of a file; its holes are zeros.
struct Content<'a> {
    file: erofs_rs::r#async::File<'a, Rootfs>,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = ready(self.file.read_at(buffer, self.at)).map_err(io::Error::other)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Takes the digest of what is written.
struct Hashing<W> {
    into: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.into.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}
