//! What is kept and found damaged: noticed before it is used, and set aside with the reason.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tracing::warn;

use super::check::{self, Depth};
use super::record::{self, Broken};
use super::{
    ABOUT, About, ImageInfo, Pulled, READABLE_VERSIONS, ROOTFS, Store, key_at, parse_key, references_of,
    remove_file,
};
use crate::digest::Digest;
use crate::reference::Reference;

impl Store {
    /// Sets aside what another version wrote or what is broken, and forgets references to images that are gone.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for kept in self.images.kept()? {
            if parse_key(&kept.key).is_none() {
                self.set_aside(&kept.key, "it is of another version of Bouvet")?;
            }
        }
        for entry in fs::read_dir(&self.references)? {
            let path = entry?.path();
            if let Some(pulled) = self.read_reference(&path)?
                && self.kept_key(&pulled.id).is_none()
                && self.damage_of(&pulled.id).is_none()
            {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Moves an image out of the way. Returns whether it is gone: it stays while something uses it.
    pub(crate) fn set_aside(&self, key: &str, reason: &str) -> io::Result<bool> {
        self.images.set_aside(key, |path| {
            let here = self.aside.take(path, key, reason)?;
            warn!(image = key, reason, moved_to = %here.display(), "an image in the cache is damaged");
            Ok(())
        })
    }

    /// What was wrong with an image that was set aside and not replaced.
    pub(crate) fn damage_of(&self, id: &Digest) -> Option<String> {
        READABLE_VERSIONS.iter().find_map(|version| self.aside.reason(&key_at(id, *version)))
    }

    /// What was wrong with the image that a reference meant, if it was set aside.
    pub(crate) fn damage_of_reference(&self, reference: &Reference) -> Option<String> {
        let pulled = self.read_reference(&self.reference_path(&reference.normalized())).ok()??;
        self.damage_of(&pulled.id)
    }

    /// What is noted of a reference; `None` if it is not known. A broken record is set aside, as its image may be had again.
    pub(super) fn read_reference(&self, path: &Path) -> io::Result<Option<Pulled>> {
        if !path.exists() {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let reason = match record::read::<Pulled>(path) {
            // The name of the file is the digest of the reference.
            Ok(pulled) if Digest::of(pulled.reference.as_bytes()).hex() == name => return Ok(Some(pulled)),
            Ok(_) => "it is of another reference than its name says".to_owned(),
            // Others write and remove them too.
            Err(_) if !path.exists() => return Ok(None),
            Err(Broken::Damaged(reason)) => reason,
            Err(Broken::Unreadable(error)) => return Err(error),
        };
        let here = self.aside.take(path, &format!("reference-{name}"), &reason)?;
        warn!(reason, moved_to = %here.display(), "what an image was called is lost: its record is damaged");
        Ok(None)
    }

    /// What is noted of an image that is sound, and what its root file system takes on disk. Notes what version 0.1.0 did
    /// not.
    pub(super) fn checked(&self, key: &str, depth: Depth) -> Result<(About, u64), Broken> {
        let dir = self.images.path(key);
        let mut about: About = record::read(&dir.join(ABOUT))?;
        let sound = check::check(&dir.join(ROOTFS), about.rootfs.as_ref(), depth)?;
        if sound.renewed.is_some() {
            about.rootfs = sound.renewed;
            // It is sound whether or not that can be noted.
            if let Err(error) = record::write(&dir.join(ABOUT), &about) {
                warn!(image = key, %error, "could not note the checksum of an image");
            }
        }
        Ok((about, sound.size_bytes))
    }

    /// Compares every image with its checksums, and sets aside what is damaged. Returns all that is, in use or not.
    pub(crate) fn verify(&self) -> io::Result<Vec<ImageInfo>> {
        for kept in self.images.kept()? {
            // Whoever makes or removes it now knows what it is.
            let Some(lease) = self.images.lease(&kept.key)? else { continue };
            match self.checked(&kept.key, Depth::Whole) {
                Ok(_) => {}
                Err(Broken::Unreadable(error)) => return Err(error),
                Err(Broken::Damaged(reason)) => {
                    drop(lease);
                    if !self.set_aside(&kept.key, &reason)? {
                        warn!(image = kept.key, reason, "an image that is in use is damaged");
                    }
                }
            }
        }
        Ok(self.list()?.into_iter().filter(|image| image.damaged.is_some()).collect())
    }

    /// Removes a damaged image and what it was called. Returns whether `what` is one, and not an image that is there.
    pub(super) fn forget_damaged(&self, what: &str) -> io::Result<bool> {
        let pulled = self.pulled()?;
        let named = what.parse::<Reference>().map(|reference| reference.normalized()).ok();
        let digits = what.strip_prefix("sha256:").unwrap_or(what);
        let is_meant = |image: &ImageInfo| {
            named.as_ref().is_some_and(|named| image.references.contains(named)) || image.id.hex() == digits
        };
        let Some(image) = self.damaged(&pulled)?.into_iter().find(is_meant) else { return Ok(false) };
        for (path, _) in pulled.iter().filter(|(_, pulled)| pulled.id == image.id) {
            remove_file(path)?;
        }
        self.replaced(&image.id)?;
        Ok(true)
    }

    /// Removes all that was set aside.
    pub(super) fn forget_all_damaged(&self) -> io::Result<()> {
        self.aside.all()?.iter().try_for_each(|aside| self.aside.forget(&aside.name))
    }

    /// Forgets what was damaged of an image that is sound again.
    pub(crate) fn replaced(&self, id: &Digest) -> io::Result<()> {
        READABLE_VERSIONS.iter().try_for_each(|version| self.aside.forget(&key_at(id, *version)))
    }

    /// Images that were set aside and not replaced.
    pub(super) fn damaged(&self, pulled: &[(PathBuf, Pulled)]) -> io::Result<Vec<ImageInfo>> {
        let all = self.aside.all()?.into_iter().filter_map(|aside| {
            let (id, _) = parse_key(&aside.name)?;
            self.kept_key(&id).is_none().then(|| ImageInfo {
                references: references_of(pulled, &id),
                id,
                size_bytes: 0,
                created: None,
                last_used: SystemTime::UNIX_EPOCH,
                in_use: false,
                damaged: Some(aside.reason),
            })
        });
        Ok(all.collect())
    }
}
