//! What a sandbox's root is made of: the host's base image, or an OCI image from a cache or a registry.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bouvet_image::cache::CacheError;
use bouvet_image::images::OpenError;
use bouvet_image::load::LoadError;
use bouvet_image::login::LoginError;
use bouvet_image::pull::PullError;
use bouvet_image::reference::ReferenceError;
use bouvet_image::save::SaveError;
use bouvet_image::{
    CacheOptions, Digest, Image, ImageConfig, ImageInfo, Images, ImagesOptions, PullEvent, Reference,
};
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::{CreateError, Host, bases};
use crate::blueprint::{Blueprint, ImageWords};
use crate::boxconfig::{BoxConfig, CacheConfig, InvalidConfig};
use crate::boxes::KeepError;
use crate::engine::{EngineError, Rootfs};

/// Configurations of caches that are kept open: there is mostly one.
const MAX_OPENED: usize = 16;

/// Where a host's images are kept, and how they are pulled.
///
/// ```
/// use bouvet_host::{HostOptions, ImageOptions, ImagesOptions};
///
/// let mut pull = ImagesOptions::default();
/// pull.registry.insecure_registries.push("registry.lan:5000".into());
/// let images = Some(ImageOptions { dir: "/var/cache/images".into(), pull });
/// let options = HostOptions { images, ..HostOptions::new("/var/lib/agents", "vmlinux", "base.ext4") };
/// ```
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// The directory of the cache, made for the first image.
    pub dir: PathBuf,
    /// Which registries are spoken with, and what an image may cost.
    pub pull: ImagesOptions,
}

/// Caches that were opened: each has looked for what killed processes left, and has its connections to registries.
#[derive(Debug, Default)]
pub(super) struct Opened {
    caches: Mutex<Vec<(CacheConfig, Images)>>,
    /// Outdated images that this process has tried to pull again: a host without a network does not try each time.
    tried: Mutex<HashSet<Digest>>,
}

impl Opened {
    fn get(
        &self,
        config: &CacheConfig,
        open: impl FnOnce() -> Result<Images, ImageError>,
    ) -> Result<Images, ImageError> {
        let mut opened = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, images)) = opened.iter().find(|(known, _)| known == config) {
            return Ok(images.clone());
        }
        let images = open()?;
        if opened.len() == MAX_OPENED {
            opened.remove(0);
        }
        opened.push((config.clone(), images.clone()));
        Ok(images)
    }

    /// Whether nobody has tried yet to pull an outdated image again.
    fn is_first_try(&self, image: &Image) -> bool {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).insert(image.id.clone())
    }
}

/// Why an image could not be had.
///
/// ```no_run
/// use bouvet_host::{ImageError, PullCause};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// match host.pull("nginx:alpine", |_| ()).await {
///     Ok(image) => println!("{}", image.id),
///     Err(ImageError::Pull(error)) if matches!(error.cause, PullCause::Registry(_)) => {
///         println!("its registry does not give it: {}", bouvet_host::chain(&error));
///     }
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// This host has no place for images.
    #[error("this host has no directory for images")]
    NoCache,
    /// It is not named as images are.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The cache or the certificates cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The cache did not do it.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It could not be pulled.
    #[error(transparent)]
    Pull(Box<PullError>),
    /// A base image of the host is missing, or is not a root file system.
    #[error("the base image `{name}` cannot be used")]
    Base {
        /// Name of the base image.
        name: &'static str,
        /// The fault of its file.
        source: EngineError,
    },
    /// An archive's images could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It could not be saved.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A registry's password could not be kept or forgotten.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// It is not known which images persistent sandboxes need.
    #[error("no image was removed, as it is not known which ones persistent sandboxes need")]
    InUse(#[source] KeepError),
    /// What a persistent sandbox was made from is neither in the cache nor what its reference means now.
    #[error("the image {id} is not in the cache any more, and `{reference}` is another one now")]
    Gone {
        /// Its digest.
        id: String,
        /// By which it was pulled.
        reference: String,
    },
}

impl From<PullError> for ImageError {
    fn from(error: PullError) -> Self {
        Self::Pull(Box::new(error))
    }
}

/// What is written of the image of a persistent sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: String,
    pub(crate) words: ImageWords,
}

impl From<&Image> for ImageRecord {
    fn from(image: &Image) -> Self {
        Self { id: image.id.to_string(), words: ImageWords::from(&image.config) }
    }
}

/// The same of all images that it is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroundRecord {
    /// `None` for the base image.
    pub(crate) image: Option<ImageRecord>,
    #[serde(default)]
    pub(crate) sidecar: Option<ImageRecord>,
}

impl GroundRecord {
    /// A sandbox of `config`.
    pub(super) fn blueprint(&self, config: BoxConfig) -> Result<Blueprint, InvalidConfig> {
        let image = self.image.as_ref().map(|record| &record.words);
        let sidecar = self.sidecar.as_ref().map(|record| &record.words);
        if let (Some(words), Some(_)) = (sidecar, &config.sidecar) {
            words.check_user("sidecar.image")?;
        }
        Blueprint::new(config, image)?.beside(sidecar)
    }

    /// The same of a sandbox that was kept, perhaps by version 0.1.0, which took TERM where an image names a signal that
    /// does not exist, any number as a user, and durations and sizes of any length.
    pub(super) fn kept_blueprint(&self, config: BoxConfig) -> Result<Blueprint, InvalidConfig> {
        let usable = |record: &Option<ImageRecord>| {
            let words = record.as_ref().map(|record| record.words.clone())?;
            let stop_signal = words.stop_signal.clone().filter(|_| words.has_usable_signal());
            Some(ImageWords { stop_signal, ..words })
        };
        let (image, sidecar) = (usable(&self.image), usable(&self.sidecar));
        Blueprint::kept(config.within_bounds(), image.as_ref())?.beside(sidecar.as_ref())
    }
}

/// What a sandbox's root is made of, and its sidecar's.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) rootfs: Rootfs,
    pub(super) record: GroundRecord,
    /// Keeps them in the cache.
    _images: Vec<Image>,
}

impl Ground {
    pub(super) fn base(rootfs: Rootfs) -> Self {
        Self { rootfs, record: GroundRecord::default(), _images: Vec::new() }
    }

    fn of(image: Image) -> Self {
        let record = ImageRecord::from(&image);
        let (path, identity) = (image.rootfs.clone(), image.rootfs_identity());
        let rootfs = Rootfs { path, identity, is_base: false, sidecar: None };
        Self { rootfs, record: GroundRecord { image: Some(record), sidecar: None }, _images: vec![image] }
    }

    fn with_sidecar(mut self, image: Image) -> Self {
        let record = ImageRecord::from(&image);
        self.rootfs.identity = format!("{} beside {}", self.rootfs.identity, image.rootfs_identity());
        self.rootfs.sidecar = Some(image.rootfs.clone());
        self.record.sidecar = Some(record);
        self._images.push(image);
        self
    }
}

impl From<&ImageConfig> for ImageWords {
    fn from(config: &ImageConfig) -> Self {
        Self {
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            working_dir: config.working_dir.clone(),
            user: config.user.clone(),
            stop_signal: config.stop_signal.clone(),
        }
    }
}

impl Host {
    /// Pulls an image into the cache; `progress` is told how far that is.
    ///
    /// ```no_run
    /// use bouvet_host::PullEvent;
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let progress = |event| {
    ///     if let PullEvent::Layer { digest, done_bytes, total_bytes } = event {
    ///         println!("{digest}: {done_bytes} of {total_bytes} bytes");
    ///     }
    /// };
    /// let image = host.pull("nginx:alpine", progress).await?;
    /// println!("{} runs {:?}", image.reference, image.config.cmd);
    /// # Ok(()) }
    /// ```
    pub async fn pull(
        &self,
        reference: &str,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        Ok(self.images(&CacheConfig::default())?.pull(&reference, progress).await?)
    }

    /// The image that a reference meant when it was pulled last, or that has this id, if it is in the cache.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// match host.image("nginx:alpine").await? {
    ///     Some(image) => println!("{} takes {} bytes", image.id, image.size_bytes),
    ///     None => println!("it was not pulled yet"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn image(&self, what: &str) -> Result<Option<Image>, ImageError> {
        Ok(self.images(&CacheConfig::default())?.get(what).await?)
    }

    /// The images in the cache, the longest unused first.
    ///
    /// ```no_run
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// for image in host.list_images().await? {
    ///     println!("{} {:?} {} bytes", image.id, image.references, image.size_bytes);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn list_images(&self) -> Result<Vec<ImageInfo>, ImageError> {
        Ok(self.images(&CacheConfig::default())?.list().await?)
    }

    /// The images as `config` has them kept.
    pub(super) fn images(&self, config: &CacheConfig) -> Result<Images, ImageError> {
        let options = self.0.images.as_ref().ok_or(ImageError::NoCache)?;
        self.0.opened.get(config, || {
            let pull = options.pull.clone();
            if !config.enabled {
                return Ok(Images::uncached(self.0.dir.with_file_name("images"), pull)?);
            }
            let CacheConfig { max_rootfs_entries, max_cache_bytes, .. } = *config;
            let dir = config.cache_dir.clone().unwrap_or_else(|| options.dir.clone());
            Ok(Images::open(CacheOptions { dir, max_rootfs_entries, max_cache_bytes }, pull)?)
        })
    }

    /// What a sandbox is made of that is to be as `config` says: what is in the cache, or else what a registry has.
    pub(super) async fn ground(&self, config: &BoxConfig) -> Result<Ground, CreateError> {
        let reference = |field, text: &str| {
            text.parse::<Reference>()
                .map_err(|error: ReferenceError| InvalidConfig::text(field, text, error.reason))
        };
        let sidecar = config.sidecar.as_ref().map(|sidecar| reference("sidecar.image", &sidecar.image));
        let sidecar = sidecar.transpose()?;
        let image = config.image.as_str();
        let ground = match bases::find(image, &self.0.base).await? {
            Some(rootfs) => Ground::base(rootfs),
            None => Ground::of(self.find_image(&reference("image", image)?, &config.cache).await?),
        };
        match sidecar {
            None => Ok(ground),
            Some(sidecar) => Ok(ground.with_sidecar(self.find_image(&sidecar, &config.cache).await?)),
        }
    }

    async fn find_image(&self, reference: &Reference, cache: &CacheConfig) -> Result<Image, ImageError> {
        let images = self.images(cache)?;
        let found = images.get_unchanged(reference).await?;
        let outdated = match found {
            Some(image) if !image.is_outdated || !self.0.opened.is_first_try(&image) => return Ok(image),
            found => found,
        };
        info!(image = %reference, "pulling an image");
        match (images.pull(reference, |event| debug!(?event, "pulling")).await, outdated) {
            (Err(error), Some(image)) => {
                warn!(
                    image = %reference,
                    error = crate::chain(&error),
                    "an older version of Bouvet converted this image, and files of it may be missing; it could not be pulled again"
                );
                Ok(image)
            }
            (pulled, _) => Ok(pulled?),
        }
    }

    /// The ground of a persistent sandbox that was made from `record`.
    pub(super) async fn same_ground(
        &self,
        record: &GroundRecord,
        config: &BoxConfig,
    ) -> Result<Ground, ImageError> {
        let ground = match &record.image {
            None => {
                let rootfs = bases::find(&config.image, &self.0.base).await?;
                Ground::base(rootfs.unwrap_or_else(|| self.0.base.clone()))
            }
            Some(record) => Ground::of(self.same_image(record, &config.image, &config.cache).await?),
        };
        match (&record.sidecar, &config.sidecar) {
            (Some(record), Some(sidecar)) => {
                let image = self.same_image(record, &sidecar.image, &config.cache).await?;
                Ok(ground.with_sidecar(image))
            }
            _ => Ok(ground),
        }
    }

    async fn same_image(
        &self,
        record: &ImageRecord,
        reference: &str,
        cache: &CacheConfig,
    ) -> Result<Image, ImageError> {
        if let Some(image) = self.images(cache)?.get(&record.id).await? {
            return Ok(image);
        }
        let image = self.find_image(&reference.parse()?, cache).await?;
        match image.id.to_string() == record.id {
            true => Ok(image),
            false => Err(ImageError::Gone { id: record.id.clone(), reference: image.reference }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxconfig::SidecarConfig;

    /// Sandboxes of version 0.1.0 were left out for words of their images that this version refuses.
    #[test]
    fn kept_sandboxes_survive_words_of_their_images() {
        let words = ImageWords {
            cmd: vec!["serve".into()],
            user: "4294967294".into(),
            stop_signal: Some("STOPP".into()),
            ..ImageWords::default()
        };
        let usable = ImageWords { user: String::new(), stop_signal: None, ..words.clone() };
        let record = |words: &ImageWords| Some(ImageRecord { id: "sha256:0".into(), words: words.clone() });
        let sidecar = Some(SidecarConfig { image: "proxy".into(), ..SidecarConfig::default() });
        let config = BoxConfig { sidecar, ..BoxConfig::default() };
        for (image, sidecar) in [(&words, &usable), (&usable, &words), (&words, &words)] {
            let ground = GroundRecord { image: record(image), sidecar: record(sidecar) };
            assert!(ground.blueprint(config.clone()).is_err(), "a new one is refused");
            let kept = ground.kept_blueprint(config.clone()).unwrap();
            let beside = kept.sidecar.as_ref().unwrap();
            let main = kept.main.as_ref().unwrap();
            assert_eq!((main.stop_signal.number(), beside.stop_signal.number()), (15, 15));
            let or = |user: &str, otherwise: &str| {
                if user.is_empty() { otherwise.to_owned() } else { user.to_owned() }
            };
            assert_eq!((kept.user(), beside.user.clone()), (image.user.as_str(), or(&sidecar.user, "0")));
        }
    }
}
