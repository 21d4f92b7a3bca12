//! Images taken from an archive of `docker save`, or of an OCI layout, that is read once.

use std::io::{self, Read};
use std::sync::Arc;

use crate::archive::{LocalError, Opened};
use crate::cache::Found;
use crate::digest::Digest;
use crate::images::{Home, Images, Shared};
use crate::layer;
use crate::progress::PullEvent;
use crate::pull::{Pull, PullCause, Wanted, blocking};

/// Why an archive's images were not loaded.
///
/// ```no_run
/// use bouvet_image::load::LoadError;
///
/// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
/// match images.load("app.tar", std::fs::File::open("app.tar")?, |_| ()).await {
///     Ok(loaded) => println!("{loaded:?}"),
///     Err(LoadError::Empty(name)) => eprintln!("{name} is the archive of something else"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive does not arrive, or cannot be unpacked.
    #[error("could not read the archive `{name}`")]
    Read {
        /// Name of the file.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not an archive of images.
    #[error("could not find the images in `{name}`")]
    Contents {
        /// Name of the file.
        name: String,
        /// The cause.
        #[source]
        source: LocalError,
    },
    /// There is nothing in it.
    #[error("`{0}` has no image")]
    Empty(String),
    /// One of its images cannot be used.
    #[error("could not load an image of `{name}`")]
    Image {
        /// Name of the archive.
        name: String,
        /// The cause.
        #[source]
        source: PullCause,
    },
    /// There is no cache to load it into.
    #[error("images cannot be loaded without a cache")]
    NoCache,
}

/// An image that was loaded.
///
/// ```
/// use bouvet_image::{Digest, load::LoadedImage};
///
/// let names = vec!["docker.io/library/app:1".to_owned()];
/// let loaded = LoadedImage { id: Digest::of(b"its configuration"), references: names };
/// assert_eq!(loaded.references.len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    /// The digest of its configuration.
    pub id: Digest,
    /// The names that the archive gives it, in normal form. An image without one is known by its id.
    pub references: Vec<String>,
}

impl Images {
    /// Loads all images of an archive for this machine: of `docker save`, `podman save`, `bouvet save`, or an archive of
    /// the OCI layout, compressed or not. `name` is for messages.
    ///
    /// ```no_run
    /// # async fn example(images: &bouvet_image::Images) -> Result<(), Box<dyn std::error::Error>> {
    /// for image in images.load("app.tar", std::fs::File::open("app.tar")?, |_| ()).await? {
    ///     println!("{} {:?}", image.id, image.references);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn load(
        &self,
        name: &str,
        archive: impl Read + Send + 'static,
        progress: impl Fn(PullEvent) + Send + Sync + 'static,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        let Shared { home, client, limits } = &*self.shared;
        let Home::Cache(store) = home else { return Err(LoadError::NoCache) };
        let (dir, max_bytes) = (store.options.dir.clone(), limits.max_image_bytes);
        let unpacked = blocking(move || layer::inflate(archive, &dir, max_bytes)).await;
        let unpacked = unpacked.map_err(|source| LoadError::Read { name: name.to_owned(), source })?;
        let (named, limited) = (name.to_owned(), limits.clone());
        // Once for all its images: a scan takes as long as the archive has entries.
        let opened = blocking(move || {
            let opened = Opened::archive(&named, unpacked.file, unpacked.len, &limited)?;
            let contents = opened.listed()?;
            Ok((Arc::new(opened), contents))
        });
        let opened = opened.await.map_err(|source| LoadError::Contents { name: name.to_owned(), source });
        let (opened, contents) = opened?;
        if contents.is_empty() {
            return Err(LoadError::Empty(name.to_owned()));
        }
        let progress: Arc<dyn Fn(PullEvent) + Send + Sync> = Arc::new(progress);
        let mut loaded: Vec<LoadedImage> = Vec::new();
        for listed in &contents {
            let (from, progress) = (Wanted::Archive(&opened, listed), Arc::clone(&progress));
            let pull = Pull { client, limits, store: store.clone(), from, progress };
            let pulled: Result<(Digest, Found), PullCause> = pull.run().await;
            let (id, _) = pulled.map_err(|source| LoadError::Image { name: name.to_owned(), source })?;
            let names = listed.names.iter().map(crate::Reference::normalized);
            match loaded.iter_mut().find(|known| known.id == id) {
                Some(known) => known.references.extend(names),
                None => loaded.push(LoadedImage { id, references: names.collect() }),
            }
        }
        Ok(loaded)
    }
}
