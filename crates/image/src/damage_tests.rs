//! Whatever is kept can be damaged. It is never used like that, and had again where that is possible.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::cache::Stamp;
use crate::cache::record;
use crate::handmade::{Archive, Layout};

const WAYS: [&str; 6] = ["cut", "emptied", "flipped", "removed", "garbage", "of another version"];

fn damage(path: &Path, way: &str) {
    let mut bytes = fs::read(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    match way {
        "cut" => bytes.truncate(bytes.len() / 2),
        "emptied" => bytes.clear(),
        "flipped" => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
        }
        "removed" => return fs::remove_file(path).unwrap(),
        "garbage" => bytes.fill(0xa5),
        _ => match serde_json::from_slice::<Value>(&bytes) {
            Ok(mut document) => {
                document["format"] = json!(9);
                document.as_object_mut().unwrap().remove("checksum");
                bytes = document.to_string().into_bytes();
            }
            // The version of the format of a root file system is in its superblock.
            Err(_) => bytes[1024 + 80] ^= 1,
        },
    }
    fs::write(path, bytes).unwrap();
}

/// A cache with one image of a layout.
struct Place {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Place {
    fn new() -> Self {
        let layer = Archive::default().file("etc/x", &[7; 10_000]).finish();
        Self { dir: tempfile::tempdir().unwrap(), layout: Layout::new().image("a", &[layer]) }
    }

    fn images(&self) -> Images {
        let cache = CacheOptions::new(self.dir.path().join("cache"));
        Images::open(cache, ImagesOptions::default()).unwrap()
    }

    fn reference(&self) -> Reference {
        self.layout.reference("a")
    }

    async fn pull(&self, images: &Images) -> Image {
        images.pull(&self.reference(), |_| ()).await.unwrap()
    }

    async fn get(&self, images: &Images) -> Option<Image> {
        images.get(&self.reference().to_string()).await.unwrap()
    }

    /// What is set aside.
    fn aside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("cache/damaged")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn file(&self, rootfs: &Path, name: &str) -> PathBuf {
        match name {
            "reference" => {
                let dir = fs::read_dir(self.dir.path().join("cache/references")).unwrap();
                dir.map(|entry| entry.unwrap().path()).next().unwrap()
            }
            name => rootfs.with_file_name(name),
        }
    }
}

#[tokio::test]
async fn damaged_files_are_noticed_and_pulled_again() {
    for name in ["rootfs.erofs", "image.json", "reference"] {
        for way in WAYS {
            for restarted in [false, true] {
                let place = Place::new();
                let images = place.images();
                let image = place.pull(&images).await;
                let (rootfs, config) = (image.rootfs.clone(), image.config.clone());
                let content = fs::read(&rootfs).unwrap();
                drop(image);
                damage(&place.file(&rootfs, name), way);
                let images = if restarted { place.images() } else { images };
                let case = format!("{name} {way} {restarted}");
                let listed = images.list().await.unwrap();
                // A flipped bit shows when the image is used, as its length is right.
                let is_shown = listed[0].damaged.is_some();
                assert!(is_shown || name == "reference" || name == "rootfs.erofs", "{case}");
                assert!(place.get(&images).await.is_none(), "{case}");
                let is_known = name == "reference" && way == "removed";
                assert_eq!(place.aside().is_empty(), is_known, "{case}: set aside");
                if name != "reference" {
                    let listed = images.list().await.unwrap();
                    assert!(listed.len() == 1 && listed[0].damaged.is_some(), "{case}");
                }
                let again = place.pull(&images).await;
                assert!(fs::read(&again.rootfs).unwrap() == content && again.config == config, "{case}");
                drop(again);
                assert!(place.get(&images).await.is_some(), "{case}");
                let listed = images.list().await.unwrap();
                assert!(listed.len() == 1 && listed[0].damaged.is_none(), "{case}");
                assert!(!place.aside().iter().any(|name| !name.starts_with("reference-")), "{case}");
            }
        }
    }
}

#[tokio::test]
async fn pull_replaces_a_damaged_image() {
    let place = Place::new();
    let images = place.images();
    let rootfs = place.pull(&images).await.rootfs.clone();
    let content = fs::read(&rootfs).unwrap();
    damage(&rootfs, "flipped");
    let again = place.pull(&images).await;
    assert!(fs::read(&again.rootfs).unwrap() == content);
}

#[tokio::test]
async fn damaged_image_is_listed_if_lost() {
    let place = Place::new();
    let images = place.images();
    let rootfs = place.pull(&images).await.rootfs.clone();
    damage(&rootfs, "cut");
    fs::remove_file(place.layout.dir.path().join("index.json")).unwrap();
    assert!(place.get(&images).await.is_none());
    // Also after the next start.
    let images = place.images();
    let listed = images.list().await.unwrap();
    let reason = listed[0].damaged.clone().unwrap();
    assert!(reason.starts_with("`rootfs.erofs` has "), "{reason}");
    assert_eq!(listed[0].references, [place.reference().normalized()]);
    let error = images.pull(&place.reference(), |_| ()).await.unwrap_err();
    assert!(
        error.to_string().ends_with(&format!("whose copy in the cache is damaged ({reason})")),
        "{error}"
    );
    images.remove(&place.reference().to_string(), false).await.unwrap();
    assert!(images.list().await.unwrap().is_empty() && place.aside().is_empty());
}

#[tokio::test]
async fn damaged_image_in_use_is_named() {
    let place = Place::new();
    let images = place.images();
    let image = place.pull(&images).await;
    damage(&image.rootfs, "emptied");
    let error = images.get(&place.reference().to_string()).await.unwrap_err();
    assert!(matches!(&error, CacheError::Damaged { id, .. } if *id == image.id), "{error}");
    let error = images.pull(&place.reference(), |_| ()).await.unwrap_err();
    assert!(matches!(error.cause, crate::pull::PullCause::Cache(CacheError::Damaged { .. })), "{error}");
    drop(image);
    assert!(place.get(&images).await.is_none());
}

/// Makes the records those of version 0.1.0, which had no checksums.
fn age(place: &Place, rootfs: &Path) {
    for name in ["image.json", "reference"] {
        let path = place.file(rootfs, name);
        let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for field in ["format", "checksum", "rootfs"] {
            document.as_object_mut().unwrap().remove(field);
        }
        fs::write(&path, document.to_string()).unwrap();
    }
}

#[tokio::test]
async fn images_without_checksums_are_upgraded() {
    let place = Place::new();
    let rootfs = place.pull(&place.images()).await.rootfs.clone();
    age(&place, &rootfs);
    let images = place.images();
    assert!(images.list().await.unwrap()[0].damaged.is_none());
    drop(place.get(&images).await.unwrap());
    let about = fs::read_to_string(rootfs.with_file_name("image.json")).unwrap();
    assert!(about.contains("\"checksum\"") && about.contains("\"digest\""), "{about}");
    damage(&rootfs, "flipped");
    assert!(place.get(&images).await.is_none(), "it has a checksum now");
    // Without one, what is not whole is noticed.
    for way in ["cut", "emptied", "removed", "garbage"] {
        let place = Place::new();
        let rootfs = place.pull(&place.images()).await.rootfs.clone();
        age(&place, &rootfs);
        damage(&rootfs, way);
        assert!(place.get(&place.images()).await.is_none(), "{way}");
    }
}

#[tokio::test]
async fn lost_bits_are_found_by_verification() {
    let place = Place::new();
    let images = place.images();
    let rootfs = place.pull(&images).await.rootfs.clone();
    assert!(images.verify().await.unwrap().is_empty());
    damage(&rootfs, "flipped");
    // As if the device had lost it: the times are those that were noted.
    let path = rootfs.with_file_name("image.json");
    let mut about: Value = record::read(&path).unwrap();
    about["rootfs"]["stamp"] = serde_json::to_value(Stamp::from(&fs::metadata(&rootfs).unwrap())).unwrap();
    for field in ["format", "checksum"] {
        about.as_object_mut().unwrap().remove(field);
    }
    record::write(&path, &about).unwrap();
    assert!(place.get(&images).await.is_some(), "nothing that is cheap to look at has changed");
    let damaged = images.verify().await.unwrap();
    assert!(damaged.len() == 1 && damaged[0].references == [place.reference().normalized()]);
    assert!(place.get(&images).await.is_none());
    drop(place.pull(&images).await);
    assert!(images.verify().await.unwrap().is_empty());
}

/// A registry that has one image, on plain HTTP.
async fn registry(layout: &Layout) -> Reference {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let dir = layout.dir.path().to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let file = match path.rsplit_once('/') {
                Some((_, name)) if path.contains("/sha256:") || name.starts_with("sha256:") => {
                    dir.join("blobs/sha256").join(name.trim_start_matches("sha256:"))
                }
                _ => dir.join("index.json"),
            };
            let body = if path == "/v2/" { b"{}".to_vec() } else { fs::read(file).unwrap_or_default() };
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), &body].concat()).await.ok();
        }
    });
    format!("{address}/a:a").parse().unwrap()
}

#[tokio::test]
async fn damaged_layers_are_downloaded_again() {
    use std::io::Write as _;

    let plain = Archive::default().file("etc/x", &[7; 10_000]).finish();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain).unwrap();
    let packed = encoder.finish().unwrap();
    let platform = crate::manifest::Platform::ours();
    let layout = Layout::new().image_with("a", &[packed], &[Digest::of(&plain)], &platform);
    let reference = registry(&layout).await;
    for way in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(CacheOptions::new(dir.path()), ImagesOptions::default()).unwrap();
        let image = images.pull(&reference, |_| ()).await.unwrap();
        let (id, content) = (image.id.to_string(), fs::read(&image.rootfs).unwrap());
        drop(image);
        // The layer stays when its image goes.
        images.remove(&id, false).await.unwrap();
        let mut blobs = fs::read_dir(dir.path().join("blobs")).unwrap().map(|entry| entry.unwrap().path());
        let blob = blobs.find(|path| path.extension().is_none()).unwrap();
        damage(&blob, if way == WAYS[5] { "garbage" } else { way });
        let again = images.pull(&reference, |_| ()).await.unwrap();
        assert!(fs::read(&again.rootfs).unwrap() == content, "{way}");
    }
}
