//! What is kept on disk: root file systems, the layers that they were made from, and which references mean which.
//!
//! ```text
//! DIR/images/ID-VERSION/rootfs.erofs   what VMs mount, by the digest of the image's configuration and the version of
//!                      /image.json     the writer; and how the image is to be run
//!                      /pinned         empty: the image was loaded or tagged, and no registry need have it
//! DIR/blobs/DIGEST                     layers as they were transferred
//! DIR/references/DIGEST                a reference and its image, by the digest of the reference
//! DIR/damaged/                         what was found damaged, with the reason
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::erofs;
use crate::reference::{Reference, Source};

mod aside;
mod check;
mod damage;
pub(crate) mod record;
pub(crate) mod scratch;
pub(crate) mod shelf;

use aside::Aside;
use check::Seal;
pub(crate) use check::{Depth, Stamp};
use record::Broken;
use shelf::{Lease, Shelf};

/// Versions of the writer whose images can be booted, the newest first. Version 1 merged layers wrongly: its images may
/// lack files, and are converted again when that is possible.
const READABLE_VERSIONS: [u32; 2] = [erofs::VERSION, 1];
/// The files of an image.
pub(crate) const ROOTFS: &str = "rootfs.erofs";
const ABOUT: &str = "image.json";
const PIN: &str = "pinned";
/// Digits of an image's id that may stand for it, at least.
const MIN_ID_DIGITS: usize = 12;
/// How long somebody may look whether an image is in use.
const GLANCE_DEADLINE: Duration = Duration::from_secs(10);
const GLANCE_POLL: Duration = Duration::from_millis(5);
/// The same for an image that is damaged.
pub(crate) const DAMAGED_DEADLINE: Duration = Duration::from_secs(1);

/// Where images are kept, and how many.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// The directory, made if it is missing. It must be ours: whoever can write there chooses what VMs boot.
    pub dir: PathBuf,
    /// Root file systems of pulled images that are kept; beyond that the longest unused go. Loaded and tagged images
    /// do not count: they stay until they are removed.
    pub max_rootfs_entries: usize,
    /// Bytes that are kept: the longest unused layers go first, then the longest unused root file systems of pulled
    /// images. An image that would make the loaded and tagged ones larger than this is not loaded or tagged.
    pub max_cache_bytes: u64,
}

impl CacheOptions {
    /// A cache in `dir` of the usual size: 10 root file systems, 10 GB.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), max_rootfs_entries: 10, max_cache_bytes: 10_000_000_000 }
    }
}

/// Why the cache did not do something.
///
/// ```no_run
/// use bouvet_image::cache::CacheError;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// match images.remove("nginx:alpine", false).await {
///     Ok(()) => println!("removed"),
///     Err(CacheError::InUse(id)) => println!("a sandbox is made of {id}"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file or directory of it failed.
    #[error("could not use the image cache `{dir}`")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have put things there.
    #[error("the image cache `{0}` belongs to another user")]
    Foreign(PathBuf),
    /// An image is damaged, and cannot be replaced while something uses it.
    #[error("the image `{id}` is damaged, and in use: {reason}")]
    Damaged {
        /// The image.
        id: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// Something uses the image: a VM, or a pull.
    #[error("the image `{0}` is in use")]
    InUse(Digest),
    /// No such image.
    #[error("there is no image `{0}` in the cache")]
    Unknown(String),
    /// Something that an image cannot be called.
    #[error(
        "`{0}` cannot be the name of an image in the cache: a name has a tag, and neither a digest nor a path"
    )]
    NoTag(String),
    /// Loaded and tagged images would take too much.
    #[error(
        "loaded and tagged images would take {bytes} bytes with this one; the image cache may have {max_bytes}"
    )]
    Full {
        /// Bytes of all such images and this one.
        bytes: u64,
        /// See [`CacheOptions::max_cache_bytes`].
        max_bytes: u64,
    },
    /// The start of an id of several.
    #[error("`{0}` is the start of several images' ids")]
    Ambiguous(String),
}

/// An image in the cache.
///
/// ```no_run
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// for image in images.list().await?.iter().filter(|image| !image.in_use) {
///     println!("{} was used last at {:?}", image.id, image.last_used);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct ImageInfo {
    /// The digest of its configuration.
    pub id: Digest,
    /// The references by which it was pulled last, in normal form.
    pub references: Vec<String>,
    /// What it takes on disk.
    pub size_bytes: u64,
    /// When it was built, as it says itself (RFC 3339).
    pub created: Option<String>,
    /// When it was used last.
    pub last_used: SystemTime,
    /// Whether it is in use now.
    pub in_use: bool,
    /// What is wrong with it, if it is damaged: it has to be pulled or loaded again.
    pub damaged: Option<String>,
}

/// Unused images that were removed.
///
/// ```
/// assert_eq!(bouvet_image::cache::Pruned::default().bytes, 0);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// The images.
    pub images: Vec<ImageInfo>,
    /// Bytes on disk of these images and of layers.
    pub bytes: u64,
}

/// `image.json`
#[derive(Debug, Serialize, Deserialize)]
struct About {
    config: ImageConfig,
    /// `None`: version 0.1.0 wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rootfs: Option<Seal>,
}

/// A file in `references`.
#[derive(Debug, Serialize, Deserialize)]
struct Pulled {
    reference: String,
    id: Digest,
    /// Stamp of the file that a local reference was read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<Stamp>,
}

/// The stamp of the archive that a reference names, or of the layout's index. `None` if it means a registry, or the file
/// cannot be looked at.
pub(crate) fn stamp(reference: &Reference) -> Option<Stamp> {
    let path = match reference.source() {
        Source::Registry(_) => return None,
        Source::Layout { path, .. } | Source::DockerArchive { path, .. } => path,
    };
    let metadata = fs::metadata(path).ok()?;
    let metadata = if metadata.is_dir() { fs::metadata(path.join("index.json")).ok()? } else { metadata };
    Some(Stamp::from(&metadata))
}

/// An image that was found, and stays while this is held.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) rootfs: PathBuf,
    pub(crate) config: ImageConfig,
    pub(crate) size_bytes: u64,
    /// Whether an older version of the writer made it.
    pub(crate) is_outdated: bool,
    pub(crate) lease: Lease,
}

/// The cache on disk. All of it blocks but where it says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) options: CacheOptions,
    pub(crate) images: Shelf,
    pub(crate) blobs: Shelf,
    references: PathBuf,
    aside: Aside,
}

impl Store {
    /// Makes what is missing, and removes what was left half made.
    pub(crate) fn open(options: CacheOptions) -> Result<Self, CacheError> {
        prepare(&options.dir)?;
        let failed = |source| CacheError::Directory { dir: options.dir.clone(), source };
        let images = Shelf::open(options.dir.join("images")).map_err(failed)?;
        let blobs = Shelf::open(options.dir.join("blobs")).map_err(failed)?;
        let references = options.dir.join("references");
        fs::create_dir_all(&references).map_err(failed)?;
        let aside = Aside::new(options.dir.join("damaged"));
        let store = Self { options, images, blobs, references, aside };
        store.sweep().map_err(|source| store.failed(source))?;
        Ok(store)
    }

    pub(crate) fn failed(&self, source: io::Error) -> CacheError {
        CacheError::Directory { dir: self.options.dir.clone(), source }
    }

    /// The newest version of an image that is there.
    fn kept_key(&self, id: &Digest) -> Option<String> {
        let keys = READABLE_VERSIONS.iter().map(|version| key_at(id, *version));
        keys.into_iter().find(|key| self.images.path(key).exists())
    }

    /// Describes an image that is there, of the version that is written now.
    pub(crate) fn found(&self, id: &Digest, lease: Lease) -> Result<Found, Broken> {
        self.found_at(&key_of(id), lease)
    }

    fn found_at(&self, key: &str, lease: Lease) -> Result<Found, Broken> {
        let (About { config, .. }, size_bytes) = self.checked(key, Depth::Quick)?;
        let rootfs = self.images.path(key).join(ROOTFS);
        let is_outdated = parse_key(key).is_none_or(|(_, version)| version != erofs::VERSION);
        Ok(Found { rootfs, config, size_bytes, is_outdated, lease })
    }

    /// The image called `what`, if it is there. Does not block for long; not to be called from a runtime's thread.
    pub(crate) async fn get(&self, what: &str) -> Result<Option<(Digest, Found)>, CacheError> {
        let Some(id) = self.find(what)? else { return Ok(None) };
        let started = std::time::Instant::now();
        loop {
            let Some(key) = self.kept_key(&id) else { return Ok(None) };
            let mut damage = None;
            if let Some(lease) = self.images.lease(&key).map_err(|error| self.failed(error))? {
                let (store, at) = (self.clone(), key.clone());
                match crate::pull::blocking(move || store.found_at(&at, lease)).await {
                    Ok(found) => return Ok(Some((id, found))),
                    Err(Broken::Unreadable(error)) => return Err(self.failed(error)),
                    Err(Broken::Damaged(reason)) => {
                        if self.set_aside(&key, &reason).map_err(|error| self.failed(error))? {
                            continue;
                        }
                        damage = Some(reason);
                    }
                }
            }
            // Somebody looks whether it is in use, or removes it.
            match damage {
                Some(reason) if started.elapsed() > DAMAGED_DEADLINE => {
                    return Err(CacheError::Damaged { id, reason });
                }
                None if started.elapsed() > GLANCE_DEADLINE => return Err(CacheError::InUse(id)),
                _ => {}
            }
            tokio::time::sleep(GLANCE_POLL).await;
        }
    }

    /// The id of the image that a reference, an id or the start of one means, if it is there.
    fn find(&self, what: &str) -> Result<Option<Digest>, CacheError> {
        if let Ok(reference) = what.parse::<Reference>()
            && let Ok(Some(pulled)) = self.read_reference(&self.reference_path(&reference.normalized()))
            && self.kept_key(&pulled.id).is_some()
        {
            return Ok(Some(pulled.id));
        }
        let digits = what.strip_prefix("sha256:").unwrap_or(what);
        if digits.len() < MIN_ID_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let ids = self.ids().map_err(|error| self.failed(error))?;
        let mut matching = ids.into_iter().filter(|id| id.hex().starts_with(&digits.to_ascii_lowercase()));
        match (matching.next(), matching.next()) {
            (Some(_), Some(_)) => Err(CacheError::Ambiguous(what.to_owned())),
            (found, _) => Ok(found),
        }
    }

    fn ids(&self) -> io::Result<Vec<Digest>> {
        let kept = self.images.kept()?;
        let ids: BTreeSet<Digest> =
            kept.iter().filter_map(|kept| parse_key(&kept.key)).map(|(id, _)| id).collect();
        Ok(ids.into_iter().collect())
    }

    /// Whether the file that a local reference was read from is another one now. One that is gone has not changed.
    pub(crate) fn has_changed(&self, reference: &Reference) -> bool {
        let Some(now) = stamp(reference) else { return false };
        let pulled = self.read_reference(&self.reference_path(&reference.normalized()));
        pulled.is_ok_and(|pulled| pulled.is_some_and(|pulled| pulled.stamp != Some(now)))
    }

    /// Removes what older versions made of an image that is there now, unless it is in use.
    pub(crate) fn retire(&self, id: &Digest) -> io::Result<()> {
        let older = READABLE_VERSIONS.iter().filter(|version| **version != erofs::VERSION);
        for key in older.map(|version| key_at(id, *version)) {
            if self.images.path(&key).exists() {
                self.images.remove(&key)?;
            }
        }
        Ok(())
    }

    fn reference_path(&self, normalized: &str) -> PathBuf {
        self.references.join(Digest::of(normalized.as_bytes()).hex())
    }

    /// Notes that a reference meant this image when it was asked for last.
    pub(crate) fn remember(
        &self,
        reference: &Reference,
        id: &Digest,
        stamp: Option<Stamp>,
    ) -> io::Result<()> {
        let reference = reference.normalized();
        let path = self.reference_path(&reference);
        record::write(&path, &Pulled { reference, id: id.clone(), stamp })
    }

    fn pulled(&self) -> io::Result<Vec<(PathBuf, Pulled)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.references)? {
            let path = entry?.path();
            if let Some(pulled) = self.read_reference(&path)? {
                all.push((path, pulled));
            }
        }
        Ok(all)
    }

    /// All images, the longest unused first.
    pub(crate) fn list(&self) -> io::Result<Vec<ImageInfo>> {
        let pulled = self.pulled()?;
        let mut list = Vec::new();
        for kept in self.images.kept()? {
            let Some((id, _)) = parse_key(&kept.key) else { continue };
            if self.kept_key(&id).is_some_and(|newest| newest != kept.key) {
                continue;
            }
            // At the next use it is set aside.
            let (created, damaged) = match self.checked(&kept.key, Depth::Length) {
                Ok((about, _)) => (about.config.created, None),
                Err(broken) => (None, Some(broken.to_string())),
            };
            list.push(ImageInfo {
                in_use: self.images.is_held(&kept.key)?,
                references: references_of(&pulled, &id),
                id,
                size_bytes: kept.bytes,
                created,
                last_used: kept.used,
                damaged,
            });
        }
        list.extend(self.damaged(&pulled)?);
        Ok(list)
    }

    /// Forgets a reference, and removes its image if that was the last; or removes the image with an id, and all
    /// references to it. With `force`, an image that is in use loses its references.
    pub(crate) fn remove(&self, what: &str, force: bool) -> Result<(), CacheError> {
        let failed = |error| self.failed(error);
        if self.forget_damaged(what).map_err(failed)? {
            return Ok(());
        }
        let id = self.known(what)?;
        let named = what.parse::<Reference>().map(|reference| reference.normalized()).ok();
        let pulled = self.pulled().map_err(failed)?;
        let ours: Vec<_> = pulled.into_iter().filter(|(_, pulled)| pulled.id == id).collect();
        let meant = ours.iter().find(|(_, pulled)| Some(&pulled.reference) == named.as_ref());
        if let Some((path, _)) = meant.filter(|_| ours.len() > 1) {
            return remove_file(path).map_err(failed);
        }
        while let Some(key) = self.kept_key(&id) {
            if self.images.remove(&key).map_err(failed)? {
                continue;
            }
            if !force {
                return Err(CacheError::InUse(id));
            }
            break;
        }
        ours.iter().try_for_each(|(path, _)| remove_file(path)).map_err(failed)
    }

    fn known(&self, what: &str) -> Result<Digest, CacheError> {
        self.find(what)?.ok_or_else(|| CacheError::Unknown(crate::digest::shortened(what)))
    }

    /// Gives an image one more name.
    pub(crate) fn tag(&self, what: &str, name: &Reference) -> Result<Digest, CacheError> {
        let id = self.known(what)?;
        self.pin(&id)?;
        self.remember(name, &id, None).map_err(|error| self.failed(error))?;
        Ok(id)
    }

    fn is_pinned(&self, key: &str) -> bool {
        self.images.path(key).join(PIN).exists()
    }

    /// Keeps an image until somebody removes it: it was loaded or tagged, so that no registry need have it. Refused
    /// where such images would take more than the cache may have; nothing is changed then.
    pub(crate) fn pin(&self, id: &Digest) -> Result<(), CacheError> {
        let failed = |error| self.failed(error);
        let Some(key) = self.kept_key(id) else { return Err(CacheError::Unknown(id.to_string())) };
        if self.is_pinned(&key) {
            return Ok(());
        }
        let kept = self.images.kept().map_err(failed)?;
        let pinned = kept.iter().filter(|kept| kept.key == key || self.is_pinned(&kept.key));
        let (bytes, max_bytes) = (pinned.map(|kept| kept.bytes).sum(), self.options.max_cache_bytes);
        if bytes > max_bytes {
            return Err(CacheError::Full { bytes, max_bytes });
        }
        let dir = self.images.path(&key);
        let made = File::create(dir.join(PIN)).and_then(|_| File::open(&dir)?.sync_all());
        made.map_err(failed)
    }

    /// Removes what [`Images::prune`](crate::Images::prune) says.
    pub(crate) fn prune(&self, all: bool, keep: &BTreeSet<Digest>) -> io::Result<Pruned> {
        let mut pruned = Pruned::default();
        for info in self.list()? {
            if info.in_use || keep.contains(&info.id) || !(all || info.references.is_empty()) {
                continue;
            }
            match self.remove(&info.id.to_string(), false) {
                Ok(()) => {
                    pruned.bytes += info.size_bytes;
                    pruned.images.push(info);
                }
                // Somebody has begun to use it, or has removed it.
                Err(CacheError::InUse(_) | CacheError::Unknown(_)) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        if all {
            self.forget_all_damaged()?;
        }
        let blobs = if all { self.blobs.kept()? } else { Vec::new() };
        for blob in blobs {
            if self.blobs.remove(&blob.key)? {
                pruned.bytes += blob.bytes;
            }
        }
        Ok(pruned)
    }

    /// Removes what was not used for longest, until the cache is within its limits or all that is left is pinned or in
    /// use.
    pub(crate) fn evict(&self) {
        if let Err(error) = self.try_evict() {
            warn!(%error, dir = %self.options.dir.display(), "could not make room in the image cache");
        }
    }

    fn try_evict(&self) -> io::Result<()> {
        let (images, blobs) = (self.images.kept()?, self.blobs.kept()?);
        let mut bytes: u64 = images.iter().chain(&blobs).map(|kept| kept.bytes).sum();
        let pulled: Vec<_> = images.iter().filter(|kept| !self.is_pinned(&kept.key)).collect();
        let mut count = pulled.len();
        let layers = blobs.iter().map(|kept| (&self.blobs, kept, false));
        for (shelf, kept, is_image) in layers.chain(pulled.into_iter().map(|kept| (&self.images, kept, true)))
        {
            let too_many = is_image && count > self.options.max_rootfs_entries;
            if (bytes > self.options.max_cache_bytes || too_many) && shelf.remove(&kept.key)? {
                debug!(key = kept.key, "removed from the image cache what was not used for long");
                bytes -= kept.bytes;
                count -= usize::from(is_image);
            }
        }
        Ok(())
    }
}

fn references_of(pulled: &[(PathBuf, Pulled)], id: &Digest) -> Vec<String> {
    let ours = pulled.iter().filter(|(_, pulled)| pulled.id == *id);
    let mut references: Vec<String> = ours.map(|(_, pulled)| pulled.reference.clone()).collect();
    references.sort();
    references
}

/// Writes how the image in `dir` is to be run, and what its root file system is.
pub(crate) fn write_about(dir: &Path, config: &ImageConfig, rootfs: &File) -> io::Result<()> {
    let rootfs = Some(check::seal(rootfs)?);
    record::write(&dir.join(ABOUT), &About { config: config.clone(), rootfs })
}

/// The name of an image on disk.
pub(crate) fn key_of(id: &Digest) -> String {
    key_at(id, erofs::VERSION)
}

fn key_at(id: &Digest, version: u32) -> String {
    format!("{}-{version}", id.hex())
}

/// The image and the version that a name on disk means.
fn parse_key(key: &str) -> Option<(Digest, u32)> {
    let (hex, version) = key.split_once('-')?;
    let version = READABLE_VERSIONS.into_iter().find(|readable| readable.to_string() == version)?;
    Some((format!("sha256:{hex}").parse().ok()?, version))
}

/// Makes `dir` if need be, and sees to it that nobody else can put things there.
pub(crate) fn prepare(dir: &Path) -> Result<(), CacheError> {
    let failed = |source| CacheError::Directory { dir: dir.to_owned(), source };
    if let Some(above) = dir.parent() {
        fs::create_dir_all(above).map_err(failed)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(CacheError::Foreign(dir.to_owned()));
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
