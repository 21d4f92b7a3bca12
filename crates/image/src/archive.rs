//! Images on this machine: directories and archives in the OCI layout, and archives of `docker save`.
//!
//! An archive is read like a layer: its entries become a tree in memory, and names in it are looked up there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::Limits;
use crate::digest::{Digest, shortened};
use crate::layer::entries::{self, Allowance, ArchiveError, Extent};
use crate::layer::{self, Transferred};
use crate::limits::MAX_DOCUMENT_BYTES;
use crate::manifest::{self, Descriptor, Manifest, ManifestError, Platform};
use crate::reference::Reference;
use crate::tree::{MergeError, Tree};

/// Images of one archive that are loaded.
pub(crate) const MAX_LOADED_IMAGES: usize = 256;
/// Names of all images of one archive that are loaded. Each is a file in the cache.
pub(crate) const MAX_LOADED_NAMES: usize = 1024;
/// Indexes that may be in indexes.
pub(crate) const MAX_NESTED: usize = 3;

/// Why an image on this machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file cannot be read.
    #[error("could not read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is no archive.
    #[error("could not read the archive `{path}`")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ArchiveError,
    },
    /// Its entries make no tree.
    #[error("could not read the archive `{path}`")]
    Tree {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: MergeError,
    },
    /// A part is missing.
    #[error("`{path}` has no `{name}`")]
    Missing {
        /// The directory or archive.
        path: PathBuf,
        /// What is missing.
        name: String,
    },
    /// A document that no image needs.
    #[error("`{name}` in `{path}` has more than the limit of {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge {
        /// The directory or archive.
        path: PathBuf,
        /// The document.
        name: String,
    },
    /// A blob is not what its name says.
    #[error("the content of `{expected}` in `{path}` is `{found}`")]
    Digest {
        /// The directory or archive.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Its documents are not those of an image for this machine.
    #[error("could not use the image in `{path}`")]
    Manifest {
        /// The directory or archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// `manifest.json` is not what Docker writes.
    #[error("could not read `manifest.json` in `{path}`")]
    Malformed {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// More than one archive may have.
    #[error("`{path}` has more than the limit of {max} {what}")]
    TooMany {
        /// The archive.
        path: PathBuf,
        /// Images, or their names.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Not that image.
    #[error("`{path}` has no image `{wanted}`; it has {}", names(.there))]
    NoImage {
        /// The directory or archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// The names of those that it has.
        there: Vec<String>,
    },
    /// Several images, and none was named.
    #[error("`{path}` has several images, of which one must be named: {}", names(.there))]
    Several {
        /// The directory or archive.
        path: PathBuf,
        /// Their names.
        there: Vec<String>,
    },
}

fn names(there: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = there.iter().take(SHOWN).map(|name| format!("`{}`", shortened(name))).collect();
    if shown.is_empty() { "none with a name".to_owned() } else { shown.join(", ") }
}

/// An image that was found.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) config: Vec<u8>,
    /// The lowest first.
    pub(crate) layers: Vec<LocalLayer>,
    files: Arc<Files>,
}

#[derive(Debug)]
pub(crate) struct LocalLayer {
    pub(crate) bytes: u64,
    /// What it must be; archives of `docker save` do not say.
    digest: Option<Digest>,
    part: Part,
}

impl LocalLayer {
    /// The digest by which the layer is known.
    pub(crate) fn name(&self, diff_id: &Digest) -> Digest {
        self.digest.clone().unwrap_or_else(|| diff_id.clone())
    }
}

impl Local {
    /// Layer number `index`, whose archive must be `diff_id`.
    pub(crate) fn transferred(
        &self,
        index: usize,
        diff_id: &Digest,
    ) -> io::Result<Transferred<impl Read + use<>>> {
        let layer = &self.layers[index];
        let from = layer.part.reader(&self.files)?;
        Ok(Transferred { from, bytes: layer.bytes, digest: layer.digest.clone(), diff_id: diff_id.clone() })
    }
}

/// Which image of a place is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pick {
    /// The only one.
    Only,
    /// That of this name.
    Named(String),
    /// By its place in `manifest.json`.
    Number(usize),
}

impl From<Option<String>> for Pick {
    fn from(name: Option<String>) -> Self {
        name.map_or(Self::Only, Self::Named)
    }
}

/// An image of an archive, and the names under which it is to be known.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) pick: Pick,
    pub(crate) names: Vec<Reference>,
}

/// A directory or an archive that was read once, however many of its images are used.
#[derive(Debug)]
pub(crate) struct Opened {
    files: Arc<Files>,
    contents: Contents,
}

/// The description of the images.
#[derive(Debug)]
enum Contents {
    /// As by `docker save`.
    Docker(Vec<DockerImage>),
    /// In the OCI layout.
    Layout(Manifest),
}

impl Opened {
    /// Opens an archive of `docker save`. A compressed one is unpacked into a file in `dir`.
    pub(crate) fn docker(path: &Path, dir: &Path, limits: &Limits) -> Result<Self, LocalError> {
        let files = Files::open(path, dir, limits)?;
        // Names in such an archive are free, and in a directory would lead anywhere.
        if matches!(files.kind, FilesKind::Directory) {
            let source = io::ErrorKind::IsADirectory.into();
            return Err(LocalError::Read { path: path.to_owned(), source });
        }
        Ok(Self { contents: Contents::Docker(files.docker_images()?), files: Arc::new(files) })
    }

    /// An OCI layout; `dir` as for [`Opened::docker`].
    pub(crate) fn layout(path: &Path, dir: &Path, limits: &Limits) -> Result<Self, LocalError> {
        let files = Files::open(path, dir, limits)?;
        Ok(Self { contents: Contents::Layout(files.index()?), files: Arc::new(files) })
    }

    /// An archive of either kind that is not compressed; `name` is for messages.
    pub(crate) fn archive(name: &str, file: File, len: u64, limits: &Limits) -> Result<Self, LocalError> {
        let files = Files::archive(Path::new(name), file, len, limits)?;
        let contents = match files.part("manifest.json") {
            Ok(_) => Contents::Docker(files.docker_images()?),
            Err(_) => Contents::Layout(files.index()?),
        };
        Ok(Self { contents, files: Arc::new(files) })
    }

    /// All images for this machine, within the limits on their number and on that of their names.
    pub(crate) fn listed(&self) -> Result<Vec<Listed>, LocalError> {
        let path = &self.files.path;
        let listed = match &self.contents {
            Contents::Docker(images) => {
                self.check_number("images", images.len(), MAX_LOADED_IMAGES)?;
                let numbered = images.iter().enumerate().map(|(number, image)| Listed {
                    pick: Pick::Number(number),
                    names: references(image.repo_tags.iter().flatten().map(String::as_str)),
                });
                numbered.collect()
            }
            Contents::Layout(Manifest::Index(entries)) => by_name(entries),
            Contents::Layout(Manifest::Image(_)) => {
                let name = "index of images".to_owned();
                return Err(LocalError::Missing { path: path.clone(), name });
            }
        };
        self.check_number("images", listed.len(), MAX_LOADED_IMAGES)?;
        let names = listed.iter().map(|image: &Listed| image.names.len()).sum();
        self.check_number("names of images", names, MAX_LOADED_NAMES)?;
        Ok(listed)
    }

    fn check_number(&self, what: &'static str, number: usize, max: usize) -> Result<(), LocalError> {
        match number > max {
            true => Err(LocalError::TooMany { path: self.files.path.clone(), what, max }),
            false => Ok(()),
        }
    }

    /// The image that is meant, for this machine.
    pub(crate) fn image(&self, pick: &Pick, limits: &Limits) -> Result<Local, LocalError> {
        match &self.contents {
            Contents::Docker(images) => self.docker_image(images, pick, limits),
            Contents::Layout(index) => self.layout_image(index, pick, limits),
        }
    }
}

/// The images of an index, each with all its names.
fn by_name(entries: &[Descriptor]) -> Vec<Listed> {
    let mut named: BTreeMap<&str, Vec<Reference>> = BTreeMap::new();
    for entry in entries {
        if let Some(name) = entry.name() {
            named.entry(name).or_default().extend(references(entry.full_name()));
        }
    }
    if named.is_empty() && !entries.is_empty() {
        return vec![Listed { pick: Pick::Only, names: Vec::new() }];
    }
    let listed = |(name, mut names): (&str, Vec<Reference>)| {
        names.dedup();
        Listed { pick: Pick::Named(name.to_owned()), names }
    };
    named.into_iter().map(listed).collect()
}

/// Those that name an image in a registry: others mean nothing outside their archive.
fn references<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Reference> {
    let parsed = names.into_iter().filter_map(|name| name.parse::<Reference>().ok());
    parsed.filter(|reference| reference.registry().is_some()).collect()
}

impl Opened {
    fn layout_image(&self, index: &Manifest, pick: &Pick, limits: &Limits) -> Result<Local, LocalError> {
        let (files, wanted) = (&self.files, Platform::ours());
        let tag = match pick {
            Pick::Named(tag) => Some(tag.as_str()),
            Pick::Only | Pick::Number(_) => None,
        };
        let unfit = |source| LocalError::Manifest { path: files.path.clone(), source };
        let mut entries = match index {
            Manifest::Index(entries) => named(&files.path, entries, tag)?,
            Manifest::Image(_) => Vec::new(),
        };
        for _ in 0..MAX_NESTED {
            let chosen = manifest::choose(&entries, &wanted).map_err(unfit)?.digest.clone();
            match manifest::parse(&files.verified(&chosen)?).map_err(unfit)? {
                Manifest::Index(inner) => entries = inner,
                Manifest::Image(image) => {
                    manifest::check(&image, limits.max_layers).map_err(unfit)?;
                    return self.blobs(&image);
                }
            }
        }
        Err(unfit(ManifestError::Nested(MAX_NESTED)))
    }

    fn blobs(&self, image: &manifest::Image) -> Result<Local, LocalError> {
        let config = self.files.verified(&image.config.digest)?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let part = self.files.part(&blob_name(&layer.digest))?;
            layers.push(LocalLayer { bytes: part.len(), digest: Some(layer.digest.clone()), part });
        }
        Ok(Local { config, layers, files: Arc::clone(&self.files) })
    }

    fn docker_image(
        &self,
        images: &[DockerImage],
        pick: &Pick,
        limits: &Limits,
    ) -> Result<Local, LocalError> {
        let files = &self.files;
        let there = || images.iter().flat_map(DockerImage::tags).collect();
        let (image, wanted) = match pick {
            Pick::Named(wanted) => {
                (images.iter().find(|image| image.tags().any(|tag| tag == *wanted)), wanted.clone())
            }
            Pick::Only if images.len() > 1 => {
                return Err(LocalError::Several { path: files.path.clone(), there: there() });
            }
            Pick::Only => (images.first(), String::new()),
            Pick::Number(number) => (images.get(*number), number.to_string()),
        };
        let Some(image) = image else {
            return Err(LocalError::NoImage { path: files.path.clone(), wanted, there: there() });
        };
        let config = files.document(&image.config)?;
        let mut layers = Vec::new();
        for name in image.layers.iter().take(limits.max_layers + 1) {
            let part = files.part(name)?;
            layers.push(LocalLayer { bytes: part.len(), digest: None, part });
        }
        Ok(Local { config, layers, files: Arc::clone(files) })
    }
}

/// The entries called `tag`, or all if there is one image only.
fn named(path: &Path, entries: &[Descriptor], tag: Option<&str>) -> Result<Vec<Descriptor>, LocalError> {
    let mine = |entry: &&Descriptor| tag.is_none() || entry.name() == tag;
    let found: Vec<Descriptor> = entries.iter().filter(mine).cloned().collect();
    if tag.is_some() && !found.is_empty() {
        return Ok(found);
    }
    let mut there: Vec<String> = entries.iter().filter_map(|entry| entry.name().map(str::to_owned)).collect();
    there.sort();
    there.dedup();
    match tag {
        Some(tag) => Err(LocalError::NoImage { path: path.to_owned(), wanted: tag.to_owned(), there }),
        None if there.len() > 1 => Err(LocalError::Several { path: path.to_owned(), there }),
        None => Ok(found),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerImage {
    /// Names in normal form.
    fn tags(&self) -> impl Iterator<Item = String> {
        let normal =
            |tag: &String| tag.parse().map_or_else(|_| tag.clone(), |tag: Reference| tag.normalized());
        self.repo_tags.iter().flatten().map(normal)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Named parts of a directory or an archive.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    kind: FilesKind,
}

#[derive(Debug)]
enum FilesKind {
    Directory,
    Archive { file: File, tree: Tree },
}

/// One of them.
#[derive(Debug)]
enum Part {
    /// A file in the directory. Opened when it is needed: an image may have more than may be open at once.
    File {
        path: PathBuf,
        len: u64,
    },
    /// A stretch of the archive.
    Stretch(Extent),
    Empty,
}

impl Files {
    fn open(path: &Path, dir: &Path, limits: &Limits) -> Result<Self, LocalError> {
        let failed = |source| LocalError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.is_dir() {
            return Ok(Self { path: path.to_owned(), kind: FilesKind::Directory });
        }
        if !metadata.is_file() {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is neither a file nor a directory",
            )));
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut len = metadata.len();
        let mut start = Vec::new();
        (&file).take(4).read_to_end(&mut start).map_err(failed)?;
        io::Seek::rewind(&mut file).map_err(failed)?;
        if layer::is_compressed(&start) {
            let inflated = layer::inflate(&file, dir, limits.max_image_bytes).map_err(failed)?;
            (file, len) = (inflated.file, inflated.len);
        }
        Self::archive(path, file, len, limits)
    }

    fn archive(path: &Path, mut file: File, len: u64, limits: &Limits) -> Result<Self, LocalError> {
        let failed = |source| LocalError::Read { path: path.to_owned(), source };
        io::Seek::rewind(&mut file).map_err(failed)?;
        let mut allowance = Allowance::new(limits);
        let entries = entries::read(&file, len, 0, &mut allowance);
        let entries = entries.map_err(|source| LocalError::Archive { path: path.to_owned(), source })?;
        let mut tree = Tree::default();
        let applied = tree.apply(entries, &mut allowance);
        applied.map_err(|source| LocalError::Tree { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), kind: FilesKind::Archive { file, tree } })
    }

    fn part(&self, name: &str) -> Result<Part, LocalError> {
        let missing = || LocalError::Missing { path: self.path.clone(), name: shortened(name) };
        match &self.kind {
            FilesKind::Directory => {
                // All names that are looked for in a directory are ours, or made of digests.
                let path = self.path.join(name);
                let len = std::fs::metadata(&path)
                    .ok()
                    .filter(std::fs::Metadata::is_file)
                    .ok_or_else(missing)?
                    .len();
                Ok(Part::File { path, len })
            }
            FilesKind::Archive { tree, .. } => match tree.file(name.as_bytes()) {
                Some(content) if content.size == 0 => Ok(Part::Empty),
                Some(content) => match &content.extents[..] {
                    [extent] if extent.len == content.size => Ok(Part::Stretch(extent.clone())),
                    _ => Err(missing()),
                },
                None => Err(missing()),
            },
        }
    }

    fn index(&self) -> Result<Manifest, LocalError> {
        let unfit = |source| LocalError::Manifest { path: self.path.clone(), source };
        manifest::parse(&self.document("index.json")?).map_err(unfit)
    }

    /// The images that `manifest.json` lists.
    fn docker_images(&self) -> Result<Vec<DockerImage>, LocalError> {
        let text = self.document("manifest.json")?;
        serde_json::from_slice(&text)
            .map_err(|source| LocalError::Malformed { path: self.path.clone(), source })
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, LocalError> {
        let part = self.part(name)?;
        if part.len() > MAX_DOCUMENT_BYTES {
            return Err(LocalError::TooLarge { path: self.path.clone(), name: shortened(name) });
        }
        let mut bytes = Vec::new();
        let read =
            part.reader(self).and_then(|reader| reader.take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes));
        read.map_err(|source| LocalError::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }

    fn verified(&self, digest: &Digest) -> Result<Vec<u8>, LocalError> {
        let bytes = self.document(&blob_name(digest))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(LocalError::Digest { path: self.path.clone(), expected: digest.clone(), found });
        }
        Ok(bytes)
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Stretch(extent) => extent.len,
            Self::Empty => 0,
        }
    }

    fn reader(&self, files: &Files) -> io::Result<Stretch> {
        match (self, &files.kind) {
            (Self::File { path, len }, _) => Ok(Stretch { file: File::open(path)?, at: 0, end: *len }),
            (Self::Stretch(extent), FilesKind::Archive { file, .. }) => {
                Ok(Stretch { file: file.try_clone()?, at: extent.from, end: extent.from + extent.len })
            }
            _ => Ok(Stretch { file: File::open("/dev/null")?, at: 0, end: 0 }),
        }
    }
}

/// Reads a stretch of a file that others read too.
struct Stretch {
    file: File,
    at: u64,
    end: u64,
}

impl Read for Stretch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let max = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..max], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
