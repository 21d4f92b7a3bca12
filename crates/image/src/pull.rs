//! One pull: from a reference to a root file system in the cache.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::Limits;
use crate::archive::{Listed, Local, LocalError, MAX_NESTED, Opened, Pick};
use crate::cache::record::Broken;
use crate::cache::shelf::{Lease, Maker, Taken};
use crate::cache::{self, CacheError, Found, Store};
use crate::config::{self, Configuration, ImageConfig};
use crate::digest::Digest;
use crate::erofs::{self, WriteError};
use crate::layer::entries::{self, Allowance, ArchiveError};
use crate::layer::{self, Budget, LayerError, Transferred, Unpacked};
use crate::manifest::{self, Descriptor, Manifest, ManifestError, Platform};
use crate::progress::PullEvent;
use crate::reference::{Reference, Remote, Source};
use crate::registry::{Client, RegistryError, Session};
use crate::tree::{MergeError, Tree};
use crate::writeback;

/// Layers that are transferred and unpacked at once.
const LAYERS_AT_ONCE: usize = 3;
/// How often it is tried to replace a damaged image that is in use: somebody may only look whether it is.
const IN_USE_POLL: Duration = Duration::from_millis(20);
/// Bytes between two events about the same thing.
const EVENT_BYTES: u64 = 1 << 20;

/// Why an image could not be pulled.
///
/// ```no_run
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// if let Err(error) = images.pull(&"nginx:alpine".parse()?, |_| ()).await {
///     eprintln!("could not pull {}: {}", error.reference, error.cause);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
#[error("could not pull the image `{reference}`{}", and_why(.damaged))]
pub struct PullError {
    /// What was asked for.
    pub reference: String,
    /// What was wrong with its copy in the cache, if that was damaged.
    pub damaged: Option<String>,
    /// The cause.
    #[source]
    pub cause: PullCause,
}

fn and_why(damaged: &Option<String>) -> String {
    damaged
        .as_ref()
        .map(|reason| format!(", whose copy in the cache is damaged ({reason})"))
        .unwrap_or_default()
}

/// What went wrong in a pull.
///
/// ```no_run
/// use bouvet_image::pull::PullCause;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// match images.pull(&"oci:/srv/layout:1".parse()?, |_| ()).await {
///     Ok(image) => println!("{}", image.id),
///     Err(error) => match error.cause {
///         PullCause::Local(why) => eprintln!("it is not there: {why}"),
///         why => eprintln!("it is no image for this machine: {why}"),
///     },
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum PullCause {
    /// The registry did not give the image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is not in the file or directory that was named.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Its manifest or configuration is not that of an image for this machine.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer is not what it should be.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A layer is no archive, or a hostile one.
    #[error("could not read the layer that unpacks to `{diff_id}`")]
    Archive {
        /// The layer.
        diff_id: Digest,
        /// The cause.
        #[source]
        source: ArchiveError,
    },
    /// The layers do not fit on each other.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// The root file system could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

pub(crate) type Progress = dyn Fn(PullEvent) + Send + Sync;

/// One pull.
pub(crate) struct Pull<'a> {
    pub(crate) client: &'a Client,
    pub(crate) limits: &'a Limits,
    pub(crate) store: Store,
    pub(crate) from: Wanted<'a>,
    pub(crate) progress: Arc<Progress>,
}

/// The image to pull, and the names that it gets.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The image of a reference, under that reference.
    Reference(&'a Reference),
    /// An image of an archive, under the archive's names.
    Archive(&'a Arc<Opened>, &'a Listed),
}

impl<'a> Wanted<'a> {
    fn names(self) -> &'a [Reference] {
        match self {
            Self::Reference(reference) => std::slice::from_ref(reference),
            Self::Archive(_, listed) => &listed.names,
        }
    }
}

/// An image in the cache.
enum Kept {
    Sound(Box<Found>),
    Missing(Maker),
}

/// Where an image's layers come from.
enum Origin<'a> {
    Registry(Box<Session<'a>>, Vec<Descriptor>),
    Local(Arc<Local>),
}

impl Pull<'_> {
    /// The image that the reference means now.
    pub(crate) async fn run(&self) -> Result<(Digest, Found), PullCause> {
        // Before the file is read: what changes later is noticed.
        let names = self.from.names().to_vec();
        let stamps: Vec<_> = names.iter().map(cache::stamp).collect();
        let (origin, config) = self.resolve().await?;
        let id = Digest::of(&config);
        let Configuration { run, diff_ids, .. } = self.checked(&config, &origin)?;
        (self.progress)(PullEvent::Resolved { id: id.clone(), layers: sizes(&origin, &diff_ids) });
        let mut is_new = false;
        let found = match self.take(&id).await? {
            Kept::Sound(found) => *found,
            Kept::Missing(maker) => {
                let layers = self.layers(&origin, &diff_ids).await?;
                drop(origin);
                let lease = self.convert(maker, layers, diff_ids, run).await?;
                is_new = true;
                self.found(&id, lease).await?.map_err(|reason| self.damaged(&id, reason))?
            }
        };
        let found = self.pinned(&id, found, is_new).await?;
        let store = self.store.clone();
        let kept = id.clone();
        let noted = blocking(move || {
            for (name, stamp) in names.iter().zip(stamps) {
                store.remember(name, &kept, stamp)?;
            }
            store.retire(&kept)?;
            store.replaced(&kept)?;
            store.evict();
            Ok(())
        });
        noted.await.map_err(|error| self.unkept(error))?;
        Ok((id, found))
    }

    /// Pins an image of an archive. One that is refused goes if it was made for this.
    async fn pinned(&self, id: &Digest, found: Found, is_new: bool) -> Result<Found, PullCause> {
        if !matches!(self.from, Wanted::Archive(..)) {
            return Ok(found);
        }
        let (store, id) = (self.store.clone(), id.clone());
        let pinned = blocking(move || {
            let pinned = store.pin(&id);
            if matches!(pinned, Err(CacheError::Full { .. })) && is_new {
                drop(found);
                store.images.remove(&cache::key_of(&id)).map_err(|error| store.failed(error))?;
                return pinned.map(|()| None);
            }
            pinned.map(|()| Some(found))
        });
        pinned.await?.ok_or_else(|| self.unkept(std::io::ErrorKind::NotFound.into()))
    }

    /// The image from the cache if it is there and sound, else the right to make it.
    async fn take(&self, id: &Digest) -> Result<Kept, PullCause> {
        let key = cache::key_of(id);
        let waiting = || (self.progress)(PullEvent::Waiting);
        let deadline = Instant::now() + cache::DAMAGED_DEADLINE;
        loop {
            let taken = self.store.images.take(&key, &waiting).await.map_err(|error| self.unkept(error))?;
            let lease = match taken {
                Taken::There(lease) => lease,
                Taken::Missing(maker) => return Ok(Kept::Missing(maker)),
            };
            let reason = match self.found(id, lease).await? {
                Ok(found) => return Ok(Kept::Sound(Box::new(found))),
                Err(reason) => reason,
            };
            let is_gone = self.store.set_aside(&key, &reason).map_err(|error| self.unkept(error))?;
            if !is_gone && Instant::now() > deadline {
                return Err(self.damaged(id, reason));
            }
            if !is_gone {
                tokio::time::sleep(IN_USE_POLL).await;
            }
        }
    }

    /// An image that is there; or what is wrong with it.
    async fn found(&self, id: &Digest, lease: Lease) -> Result<Result<Found, String>, PullCause> {
        let (store, id) = (self.store.clone(), id.clone());
        match blocking(move || store.found(&id, lease)).await {
            Ok(found) => Ok(Ok(found)),
            Err(Broken::Damaged(reason)) => Ok(Err(reason)),
            Err(Broken::Unreadable(error)) => Err(self.unkept(error)),
        }
    }

    fn damaged(&self, id: &Digest, reason: String) -> PullCause {
        CacheError::Damaged { id: id.clone(), reason }.into()
    }

    fn unkept(&self, source: io::Error) -> PullCause {
        self.store.failed(source).into()
    }

    /// Finds the image, and reads its configuration.
    async fn resolve(&self) -> Result<(Origin<'_>, Vec<u8>), PullCause> {
        let (dir, limits) = (self.store.options.dir.clone(), self.limits.clone());
        let mut local = match self.from {
            Wanted::Archive(opened, listed) => {
                let (opened, pick) = (Arc::clone(opened), listed.pick.clone());
                blocking(move || opened.image(&pick, &limits)).await?
            }
            Wanted::Reference(reference) => match reference.source().clone() {
                Source::Registry(remote) => return self.ask(&remote).await,
                Source::Layout { path, tag } => {
                    let open = move || Opened::layout(&path, &dir, &limits)?.image(&Pick::from(tag), &limits);
                    blocking(open).await?
                }
                Source::DockerArchive { path, image } => {
                    let open =
                        move || Opened::docker(&path, &dir, &limits)?.image(&Pick::from(image), &limits);
                    blocking(open).await?
                }
            },
        };
        let config = std::mem::take(&mut local.config);
        Ok((Origin::Local(Arc::new(local)), config))
    }

    /// Asks a registry what its image is now.
    async fn ask(&self, remote: &Remote) -> Result<(Origin<'_>, Vec<u8>), PullCause> {
        (self.progress)(PullEvent::Asking { registry: remote.registry.clone() });
        let session = self.client.session(remote).await?;
        let mut wanted = remote.wanted();
        for _ in 0..MAX_NESTED {
            let document = session.manifest(&wanted).await?;
            match manifest::parse(&document)? {
                Manifest::Index(entries) => {
                    let chosen = manifest::choose(&entries, &Platform::ours())?;
                    wanted = chosen.digest.to_string();
                }
                Manifest::Image(image) => {
                    manifest::check(&image, self.limits.max_layers)?;
                    let config = session.small_blob(&image.config.digest).await;
                    let config = config?;
                    return Ok((Origin::Registry(Box::new(session), image.layers), config));
                }
            }
        }
        Err(ManifestError::Nested(MAX_NESTED).into())
    }

    /// The configuration, if the image is for this machine and has the layers that it should.
    fn checked(&self, config: &[u8], origin: &Origin<'_>) -> Result<Configuration, PullCause> {
        let malformed = |error| ManifestError::Malformed("configuration", error);
        let configuration = config::parse(config).map_err(malformed)?;
        let (layers, max) = (origin.layers(), self.limits.max_layers);
        if layers > max {
            return Err(ManifestError::Layers(layers, max).into());
        }
        let diff_ids = configuration.diff_ids.len();
        if layers != diff_ids {
            return Err(ManifestError::Count { layers, diff_ids }.into());
        }
        let (is, ours) =
            (Platform::new(&configuration.os, &configuration.run.architecture), Platform::ours());
        // Images made by hand do not always say.
        if is != ours && is != Platform::new("", "") {
            return Err(
                ManifestError::Platform { wanted: ours.to_string(), there: vec![is.to_string()] }.into()
            );
        }
        Ok(configuration)
    }

    /// All layers unpacked, in order. Several come at once, as one waits for the network and another for the processor.
    async fn layers(&self, origin: &Origin<'_>, diff_ids: &[Digest]) -> Result<Vec<Unpacked>, PullCause> {
        let budget = Arc::new(Budget::new(self.limits));
        let mut each: Vec<BoxFuture<'_, _>> = Vec::with_capacity(diff_ids.len());
        for (index, diff_id) in diff_ids.iter().enumerate() {
            let budget = Arc::clone(&budget);
            // Boxed: of what a closure returned, the compiler could not say that it may go from thread to thread.
            each.push(Box::pin(async move {
                match origin {
                    Origin::Registry(session, layers) => {
                        self.transferred(session, &layers[index], diff_id, budget).await
                    }
                    Origin::Local(local) => self.local(local, index, diff_id, budget).await,
                }
            }));
        }
        stream::iter(each).buffered(LAYERS_AT_ONCE).try_collect().await
    }

    async fn local(
        &self,
        local: &Arc<Local>,
        index: usize,
        diff_id: &Digest,
        budget: Arc<Budget>,
    ) -> Result<Unpacked, PullCause> {
        let layer = local.transferred(index, diff_id).map_err(|error| self.unkept(error))?;
        let (digest, bytes) = (layer.name().clone(), layer.bytes);
        let unpacked = self.unpack(layer, budget).await?;
        (self.progress)(PullEvent::Layer { digest, done_bytes: bytes, total_bytes: bytes });
        Ok(unpacked)
    }

    async fn unpack<R: io::Read + Send + 'static>(
        &self,
        layer: Transferred<R>,
        budget: Arc<Budget>,
    ) -> Result<Unpacked, PullCause> {
        let dir = self.store.options.dir.clone();
        let unpacked = blocking(move || layer::unpack(layer, &dir, &budget)).await;
        Ok(unpacked?)
    }

    /// A layer of a registry's image, from the cache if it is there.
    async fn transferred(
        &self,
        session: &Session<'_>,
        layer: &Descriptor,
        diff_id: &Digest,
        budget: Arc<Budget>,
    ) -> Result<Unpacked, PullCause> {
        let key = layer.digest.hex();
        loop {
            let waiting = || (self.progress)(PullEvent::Waiting);
            let taken = self.store.blobs.take(key, &waiting).await.map_err(|error| self.unkept(error))?;
            let (lease, was_there) = match taken {
                Taken::There(lease) => (lease, true),
                Taken::Missing(maker) => (self.download(session, layer, maker).await?, false),
            };
            (self.progress)(PullEvent::Layer {
                digest: layer.digest.clone(),
                done_bytes: layer.size,
                total_bytes: layer.size,
            });
            let file = File::open(self.store.blobs.path(key)).map_err(|error| self.unkept(error))?;
            let bytes = file.metadata().map_err(|error| self.unkept(error))?.len();
            let transferred = Transferred {
                from: file,
                bytes,
                digest: Some(layer.digest.clone()),
                diff_id: diff_id.clone(),
            };
            let error = match self.unpack(transferred, Arc::clone(&budget)).await {
                Ok(unpacked) => return Ok(unpacked),
                Err(error) => error,
            };
            drop(lease);
            let removed = self.store.blobs.remove(key).map_err(|error| self.unkept(error))?;
            // It may have been damaged on our disk, where a compressed stream fails before its digest is known.
            if !(was_there && removed) {
                return Err(error);
            }
            tracing::warn!(layer = key, %error, "a layer in the cache is damaged: it is downloaded again");
        }
    }

    async fn download(
        &self,
        session: &Session<'_>,
        layer: &Descriptor,
        maker: Maker,
    ) -> Result<Lease, PullCause> {
        let max_bytes = self.limits.max_layer_bytes;
        if layer.size > max_bytes {
            return Err(LayerError::TooLarge { layer: layer.digest.clone(), max_bytes }.into());
        }
        let file = File::options().read(true).write(true).create_new(true).open(maker.path());
        let file = file.map_err(|error| self.unkept(error))?;
        let copy = file.try_clone().map_err(|error| self.unkept(error))?;
        let digest = layer.digest.clone();
        let total_bytes = layer.size;
        let told = AtomicU64::new(0);
        let progress = move |done_bytes: u64| {
            if done_bytes.abs_diff(told.load(Ordering::Relaxed)) >= EVENT_BYTES {
                told.store(done_bytes, Ordering::Relaxed);
                (self.progress)(PullEvent::Layer { digest: digest.clone(), done_bytes, total_bytes });
            }
        };
        session.blob(layer, copy, &progress).await?;
        let kept = blocking(move || file.sync_all().and_then(|()| maker.finish()));
        kept.await.map_err(|error| self.unkept(error))
    }

    /// Merges the layers and writes the root file system.
    async fn convert(
        &self,
        maker: Maker,
        layers: Vec<Unpacked>,
        diff_ids: Vec<Digest>,
        run: ImageConfig,
    ) -> Result<Lease, PullCause> {
        let (limits, store, progress) = (self.limits.clone(), self.store.clone(), Arc::clone(&self.progress));
        blocking(move || {
            let tree = merge(&layers, &diff_ids, &limits)?;
            let files: Vec<File> = layers.into_iter().map(|layer| layer.file).collect();
            write(&tree, &files, &maker.path(), &run, &*progress)?;
            Ok(maker.finish().map_err(|error| store.failed(error))?)
        })
        .await
    }
}

impl Origin<'_> {
    fn layers(&self) -> usize {
        match self {
            Self::Registry(_, layers) => layers.len(),
            Self::Local(local) => local.layers.len(),
        }
    }
}

/// The layers as they are transferred.
fn sizes(origin: &Origin<'_>, diff_ids: &[Digest]) -> Vec<(Digest, u64)> {
    match origin {
        Origin::Registry(_, layers) => {
            layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect()
        }
        Origin::Local(local) => local
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| (layer.name(diff_id), layer.bytes))
            .collect(),
    }
}

fn merge(layers: &[Unpacked], diff_ids: &[Digest], limits: &Limits) -> Result<Tree, PullCause> {
    let mut tree = Tree::default();
    let mut allowance = Allowance::new(limits);
    for (number, (layer, diff_id)) in layers.iter().zip(diff_ids).enumerate() {
        let mut file = &layer.file;
        let entries = io::Seek::rewind(&mut file)
            .map_err(ArchiveError::Read)
            .and_then(|()| entries::read(file, layer.len, number, &mut allowance));
        let entries = entries.map_err(|source| PullCause::Archive { diff_id: diff_id.clone(), source })?;
        tree.apply(entries, &mut allowance)?;
    }
    tree.furnish()?;
    tree.check_size(limits.max_image_bytes)?;
    Ok(tree)
}

/// Writes an image's directory, as the cache has it.
fn write(
    tree: &Tree,
    layers: &[File],
    dir: &Path,
    run: &ImageConfig,
    progress: &Progress,
) -> Result<(), WriteError> {
    fs::create_dir(dir)?;
    let rootfs = File::options().read(true).write(true).create_new(true).open(dir.join(cache::ROOTFS))?;
    let told = AtomicU64::new(0);
    writeback::while_written(&rootfs, |writeback| {
        erofs::write(tree, layers, &rootfs, &|done_bytes, total_bytes| {
            if done_bytes - told.load(Ordering::Relaxed) >= EVENT_BYTES || done_bytes == total_bytes {
                told.store(done_bytes, Ordering::Relaxed);
                writeback.wrote(done_bytes);
                progress(PullEvent::Converting { done_bytes, total_bytes });
            }
        })
    })?;
    // The directory above is ours alone; VMs may be shown the file.
    rootfs.set_permissions(fs::Permissions::from_mode(0o444))?;
    rootfs.sync_all()?;
    cache::write_about(dir, run, &rootfs)?;
    Ok(())
}

/// What a pull does with layers once they are unpacked: merges them and writes an image into the empty file `into`. For
/// the fuzz target `layers`; images come from [`Images::pull`](crate::Images::pull).
#[doc(hidden)]
pub fn convert_layers(layers: &[Vec<u8>], into: &File) -> Result<(), PullCause> {
    let limits = Limits { max_image_bytes: 16 << 20, ..Limits::default() };
    let unpacked = layers.iter().map(|layer| {
        let mut file = tempfile::tempfile()?;
        io::Write::write_all(&mut file, layer)?;
        Ok(Unpacked { file, len: layer.len() as u64 })
    });
    let unpacked: Vec<Unpacked> = unpacked.collect::<io::Result<_>>().map_err(WriteError::File)?;
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let tree = merge(&unpacked, &diff_ids, &limits)?;
    let files: Vec<File> = unpacked.into_iter().map(|layer| layer.file).collect();
    Ok(erofs::write(&tree, &files, into, &|_, _| ())?)
}
