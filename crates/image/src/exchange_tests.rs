//! Images saved, loaded, named and pruned.

use std::io::Write as _;
use std::sync::Mutex;

use super::*;
use crate::handmade::{Archive, Layout};
use crate::load::LoadError;

/// Where an archive is written to.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn images(dir: &tempfile::TempDir) -> Images {
    Images::open(CacheOptions::new(dir.path().join("cache")), ImagesOptions::default()).unwrap()
}

async fn pull(images: &Images, layout: &Layout, tag: &str) -> Image {
    images.pull(&layout.reference(tag), |_| ()).await.unwrap()
}

async fn saved(images: &Images, names: &[&str]) -> Vec<u8> {
    let written = Written::default();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    images.save(&names, written.clone()).await.unwrap();
    written.0.lock().unwrap().clone()
}

async fn load(images: &Images, archive: Vec<u8>) -> Result<Vec<crate::load::LoadedImage>, LoadError> {
    images.load("app.tar", std::io::Cursor::new(archive), |_| ()).await
}

/// A layer with everything that an entry can be.
fn everything() -> Vec<u8> {
    let long = format!("{}/name", "directory/".repeat(30).trim_end_matches('/'));
    Archive::default()
        .changed(b'5', "./", "", b"", |header| header.set_mode(0o1751))
        .pax(&[
            ("uid", b"70000"),
            ("gid", b"2147483647"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.a", b"1\n2=\0"),
        ])
        .changed(b'0', "file", "", &[7; 9000], |header| header.set_mode(0o6755))
        .with(b'1', "other/name", "file", b"")
        .pax(&[("path", long.as_bytes()), ("mtime", b"5.25")])
        .file("x", b"long")
        .pax(&[("linkpath", long.as_bytes())])
        .with(b'2', "link", "x", b"")
        .changed(b'4', "disk", "", b"", |header| {
            header.set_device_major(259).unwrap();
            header.set_device_minor(70_000).unwrap();
        })
        .changed(b'3', "zero", "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(5).unwrap();
        })
        .with(b'6', "pipe", "", b"")
        .finish()
}

#[tokio::test]
async fn saved_images_load_with_every_file() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layout = Layout::new().image("a", &[everything(), Archive::default().file(".wh.zero", b"").finish()]);
    let images = images(&dir);
    let image = pull(&images, &layout, "a").await;
    images.tag(&image.id.to_string(), &"registry.example/team/app:1".parse().unwrap()).await.unwrap();
    let archive = saved(&images, &["registry.example/team/app:1"]).await;

    let elsewhere = self::images(&other);
    let loaded = load(&elsewhere, archive.clone()).await.unwrap();
    assert_eq!(loaded[0].references, ["registry.example/team/app:1"]);
    assert_ne!(loaded[0].id, image.id, "it has one layer now");
    let again = elsewhere.get("registry.example/team/app:1").await.unwrap().unwrap();
    assert_eq!(again.config, image.config);
    // The same tree makes the same file system, byte by byte.
    assert!(std::fs::read(&again.rootfs).unwrap() == std::fs::read(&image.rootfs).unwrap());

    // Two saves give the same archive; an image that is saved by its id has no name in it.
    assert!(saved(&elsewhere, &["registry.example/team/app:1"]).await == archive);
    let unnamed = saved(&images, &[&image.id.to_string()]).await;
    let third = tempfile::tempdir().unwrap();
    assert!(load(&self::images(&third), unnamed).await.unwrap()[0].references.is_empty());
}

#[tokio::test]
async fn archives_of_several_images_load_whole() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let layer = |name: &str| vec![Archive::default().file(name, name.as_bytes()).finish()];
    let layout = Layout::new().image("a", &layer("a")).image("b", &layer("b"));
    let images = images(&dir);
    for tag in ["a", "b"] {
        let id = pull(&images, &layout, tag).await.id.to_string();
        images.tag(&id, &format!("app:{tag}").parse().unwrap()).await.unwrap();
        images.tag(&id, &format!("copy:{tag}").parse().unwrap()).await.unwrap();
    }
    let archive = saved(&images, &["app:a", "app:b", "copy:a"]).await;
    let mut compressed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    compressed.write_all(&archive).unwrap();
    let elsewhere = self::images(&other);
    let loaded = load(&elsewhere, compressed.finish().unwrap()).await.unwrap();
    let names: Vec<Vec<&str>> =
        loaded.iter().map(|image| image.references.iter().map(String::as_str).collect()).collect();
    let [a, b, copy] = ["docker.io/library/app:a", "docker.io/library/app:b", "docker.io/library/copy:a"];
    assert_eq!(names, [vec![a, copy], vec![b]]);
    assert_eq!(elsewhere.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn archives_of_something_else_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(&dir);
    let error = load(&images, b"no archive".to_vec()).await.unwrap_err();
    assert!(matches!(&error, LoadError::Contents { name, .. } if name == "app.tar"), "{error}");
    let error = load(&images, Archive::default().file("readme", b"x").finish()).await.unwrap_err();
    assert!(matches!(error, LoadError::Contents { .. }));
    let error = load(&images, Archive::default().file("manifest.json", b"[]").finish()).await.unwrap_err();
    assert!(matches!(error, LoadError::Empty(_)));
    let limits = Limits { max_image_bytes: 1000, ..Limits::default() };
    let options = ImagesOptions { limits, ..ImagesOptions::default() };
    let limited = Images::open(CacheOptions::new(dir.path().join("limited")), options).unwrap();
    let error = load(&limited, vec![0; 1001]).await.unwrap_err();
    assert!(matches!(error, LoadError::Read { .. }), "{error}");
    assert!(images.list().await.unwrap().is_empty());
}

/// An archive of `docker save` without layers, whose images differ in their user alone.
fn many(images: usize, names_of_each: usize) -> Vec<u8> {
    let platform = crate::manifest::Platform::ours().to_string();
    let (os, architecture) = platform.split_once('/').unwrap();
    let mut archive = Archive::default();
    let mut manifest = Vec::new();
    for number in 0..images {
        let config = serde_json::json!({
            "os": os, "architecture": architecture, "config": { "User": number.to_string() },
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let (file, name) = (format!("{number}.json"), |tag| format!("app{number}:{tag}"));
        archive = archive.file(&file, config.to_string().as_bytes());
        let names: Vec<String> = (0..names_of_each).map(name).collect();
        manifest.push(serde_json::json!({ "Config": file, "RepoTags": names, "Layers": [] }));
    }
    archive.file("manifest.json", serde_json::to_string(&manifest).unwrap().as_bytes()).finish()
}

#[tokio::test]
async fn loaded_and_tagged_images_are_never_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions { max_rootfs_entries: 1, ..CacheOptions::new(dir.path().join("cache")) };
    let images = Images::open(options, ImagesOptions::default()).unwrap();
    let layer = |name: &str| Archive::default().file(name, b"1").finish();
    let tags = ["a", "b", "c"];
    let layout = tags.iter().fold(Layout::new(), |layout, tag| layout.image(tag, &[layer(tag)]));
    let tagged = pull(&images, &layout, "a").await.id.clone();
    images.tag(&tagged.to_string(), &"mine:1".parse().unwrap()).await.unwrap();
    // Some of them without a name.
    assert_eq!(load(&images, many(11, 1)).await.unwrap().len(), 11);
    assert_eq!(load(&images, many(12, 0)).await.unwrap().len(), 12);
    drop(pull(&images, &layout, "b").await);
    drop(pull(&images, &layout, "c").await);
    assert!(images.get("mine:1").await.unwrap().is_some());
    let ids: Vec<_> = images.list().await.unwrap().into_iter().map(|image| image.id).collect();
    assert_eq!(ids.len(), 1 + 12 + 1, "the older of the pulled ones is gone, and no other");
    assert!(images.get(&layout.reference("b").to_string()).await.unwrap().is_none());
    // The owner removes them.
    images.remove("app0:0", false).await.unwrap();
    assert!(images.get("app0:0").await.unwrap().is_none());
}

#[tokio::test]
async fn loads_beyond_the_cache_are_refused() {
    use crate::pull::PullCause;
    let sizes = tempfile::tempdir().unwrap();
    load(&images(&sizes), many(1, 1)).await.unwrap();
    let one = images(&sizes).list().await.unwrap()[0].size_bytes;
    for (max_cache_bytes, is_fine) in [(2 * one, true), (2 * one - 1, false)] {
        let dir = tempfile::tempdir().unwrap();
        let options = CacheOptions { max_cache_bytes, ..CacheOptions::new(dir.path().join("cache")) };
        let images = Images::open(options, ImagesOptions::default()).unwrap();
        let loaded = load(&images, many(2, 1)).await;
        assert_eq!(loaded.is_ok(), is_fine, "{loaded:?}");
        assert_eq!(images.list().await.unwrap().len(), if is_fine { 2 } else { 1 });
        assert_eq!(images.get("app1:0").await.unwrap().is_some(), is_fine);
        if let Err(LoadError::Image {
            source: PullCause::Cache(CacheError::Full { bytes, max_bytes }), ..
        }) = loaded
        {
            assert_eq!((bytes, max_bytes), (2 * one, max_cache_bytes));
            assert_eq!(load(&images, many(1, 2)).await.unwrap().len(), 1, "it is there already");
        } else {
            assert!(is_fine, "{loaded:?}");
        }
    }
}

#[tokio::test]
async fn loaded_images_and_names_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let images = images(&dir);
    let refused = |error: LoadError| match error {
        LoadError::Contents { source: crate::archive::LocalError::TooMany { what, max, .. }, .. } => {
            (what, max)
        }
        error => panic!("{error}"),
    };
    assert_eq!(refused(load(&images, many(257, 0)).await.unwrap_err()), ("images", 256));
    assert_eq!(refused(load(&images, many(25, 41)).await.unwrap_err()), ("names of images", 1024));
    assert!(images.list().await.unwrap().is_empty(), "nothing is loaded of an archive that is refused");
    let loaded = load(&images, many(8, 128)).await.unwrap();
    assert_eq!(loaded.iter().map(|image| image.references.len()).sum::<usize>(), 1024);
    assert_eq!(listed(256, 0), 256);
}

#[test]
fn archive_is_scanned_once_for_all_images() {
    let archive = many(3, 1);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive).unwrap();
    let limits = Limits::default();
    let opened =
        crate::archive::Opened::archive("x", file.try_clone().unwrap(), archive.len() as u64, &limits);
    let opened = opened.unwrap();
    // Without this header the archive cannot be scanned again.
    std::os::unix::fs::FileExt::write_all_at(&file, &[b'x'; 512], 0).unwrap();
    for listed in opened.listed().unwrap() {
        let config = opened.image(&listed.pick, &limits).unwrap().config;
        assert!(crate::config::parse(&config).is_ok());
    }
}

/// The number of images in an archive.
fn listed(images: usize, names_of_each: usize) -> usize {
    let archive = many(images, names_of_each);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&archive).unwrap();
    let opened = crate::archive::Opened::archive("x", file, archive.len() as u64, &Limits::default());
    opened.unwrap().listed().unwrap().len()
}

#[tokio::test]
async fn tags_move_between_images_and_need_a_tag() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |name: &str| vec![Archive::default().file(name, b"").finish()];
    let layout = Layout::new().image("a", &layer("a")).image("b", &layer("b"));
    let images = images(&dir);
    let name: Reference = "app:latest".parse().unwrap();
    for tag in ["a", "b"] {
        let image = pull(&images, &layout, tag).await;
        assert_eq!(images.tag(&layout.reference(tag).to_string(), &name).await.unwrap(), image.id);
        assert_eq!(images.get("app").await.unwrap().unwrap().id, image.id);
    }
    let digest = Digest::of(b"");
    for bad in [format!("app@{digest}"), "oci:/srv/layout:1".to_owned(), "docker-archive:/a.tar".to_owned()] {
        let refused = images.tag("app", &bad.parse().unwrap()).await;
        assert!(matches!(refused, Err(CacheError::NoTag(_))), "{bad}");
    }
    assert!(matches!(images.tag("other", &name).await, Err(CacheError::Unknown(_))));
}

#[tokio::test]
async fn forced_removal_of_used_images_takes_names() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new().image("a", &[Archive::default().file("a", b"").finish()]);
    let images = images(&dir);
    let image = pull(&images, &layout, "a").await;
    let name = layout.reference("a").to_string();
    assert!(matches!(images.remove(&name, false).await, Err(CacheError::InUse(_))));
    images.remove(&name, true).await.unwrap();
    assert!(images.get(&name).await.unwrap().is_none() && image.rootfs.exists());
    assert!(images.list().await.unwrap()[0].references.is_empty());
    assert_eq!(images.prune(true, BTreeSet::new()).await.unwrap().images.len(), 0, "it is in use");
    drop(image);
    assert_eq!(images.prune(false, BTreeSet::new()).await.unwrap().images.len(), 1);
    assert!(images.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn pruning_keeps_names_unless_all_go() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |name: &str| vec![Archive::default().file(name, b"").finish()];
    let layout = Layout::new().image("a", &layer("a")).image("b", &layer("b"));
    let images = images(&dir);
    let (a, b) = (pull(&images, &layout, "a").await.id, pull(&images, &layout, "b").await.id);
    assert!(images.prune(false, BTreeSet::new()).await.unwrap().images.is_empty());
    let pruned = images.prune(true, BTreeSet::from([a.clone()])).await.unwrap();
    assert_eq!(pruned.images.iter().map(|image| &image.id).collect::<Vec<_>>(), [&b]);
    assert!(pruned.bytes > 0);
    assert_eq!(images.list().await.unwrap()[0].id, a);
}
