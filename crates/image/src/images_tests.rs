//! Pulls of images made by hand, into caches and without. `e2e/tests/images.rs` has real registries.

use std::error::Error as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use super::*;
use crate::handmade::{Archive, Layout};
use crate::manifest::Platform;
use crate::pull::PullCause;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> CacheOptions {
        CacheOptions::new(self.dir.path().join("cache"))
    }

    fn images(&self) -> Images {
        Images::open(self.options(), ImagesOptions::default()).unwrap()
    }

    fn limited(&self, change: impl FnOnce(&mut CacheOptions)) -> Images {
        let mut options = self.options();
        change(&mut options);
        Images::open(options, ImagesOptions::default()).unwrap()
    }

    /// What is on the cache's shelves, locks aside.
    fn kept(&self) -> Vec<String> {
        let shelves =
            ["images", "blobs", "references"].map(|shelf| self.dir.path().join("cache").join(shelf));
        let entries = shelves.iter().flat_map(|shelf| fs::read_dir(shelf).unwrap());
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.ends_with(".lock")).collect()
    }
}

fn layer(name: &str) -> Vec<u8> {
    Archive::default().directory("etc").file(&format!("etc/{name}"), name.as_bytes()).finish()
}

fn layout(tags: &[&str]) -> Layout {
    tags.iter().fold(Layout::new(), |layout, tag| layout.image(tag, &[layer(tag)]))
}

async fn pull(images: &Images, reference: &Reference) -> Image {
    images.pull(reference, |_| ()).await.unwrap()
}

/// All that an error says, causes included.
fn told(error: &PullError) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

async fn refused(layout: &Layout, tag: &str, limits: Limits) -> String {
    let place = Place::new();
    let options = ImagesOptions { limits, ..ImagesOptions::default() };
    let images = Images::open(place.options(), options).unwrap();
    let error = images.pull(&layout.reference(tag), |_| ()).await.unwrap_err();
    assert_eq!(place.kept(), Vec::<String>::new(), "nothing of it stays");
    told(&error)
}

#[tokio::test]
async fn an_image_is_pulled_told_of_and_found_again() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    let (images, reference) = (place.images(), layout.reference("a"));
    assert!(images.get(&reference.to_string()).await.unwrap().is_none());
    let events: Arc<Mutex<Vec<PullEvent>>> = Arc::default();
    let told = Arc::clone(&events);
    let image = images.pull(&reference, move |event| told.lock().unwrap().push(event)).await.unwrap();
    let events = std::mem::take(&mut *events.lock().unwrap());
    assert!(matches!(&events[0], PullEvent::Resolved { id, layers } if *id == image.id && layers.len() == 1));
    assert!(
        matches!(&events[1], PullEvent::Layer { done_bytes, total_bytes, .. } if done_bytes == total_bytes)
    );
    assert!(
        matches!(events.last(), Some(PullEvent::Converting { done_bytes, total_bytes }) if done_bytes == total_bytes)
    );
    assert_eq!((image.config.user.as_str(), image.reference), ("a", reference.to_string()));
    let metadata = fs::metadata(&image.rootfs).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o444);
    let bytes = fs::read(&image.rootfs).unwrap();
    assert_eq!(&bytes[1024..1028], &0xE0F5_E1E2_u32.to_le_bytes());

    let hex = image.id.hex().to_owned();
    for what in [reference.to_string(), image.id.to_string(), hex.clone(), hex[..12].to_owned()] {
        assert_eq!(images.get(&what).await.unwrap().unwrap().id, image.id, "{what}");
    }
    for what in [&hex[..11], "no such", "other:tag", &"0".repeat(64)] {
        assert!(images.get(what).await.unwrap().is_none(), "{what}");
    }
    let list = images.list().await.unwrap();
    assert_eq!((list.len(), &list[0].id, list[0].in_use), (1, &image.id, true));
    assert_eq!(
        (&list[0].references[..], list[0].created.as_deref()),
        (&[reference.normalized()][..], Some("2026-01-02T03:04:05Z"))
    );
    assert!(list[0].size_bytes >= image.size_bytes && image.size_bytes > 0);
}

#[tokio::test]
async fn many_pulls_of_one_image_share_the_work() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    // Each with descriptors of its own, as other processes have.
    let all = (0..8).map(|_| {
        let (images, reference) = (place.images(), layout.reference("a"));
        async move {
            let converted = Arc::new(Mutex::new(0));
            let count = Arc::clone(&converted);
            let progress = move |event| {
                if matches!(event, PullEvent::Converting { done_bytes, total_bytes } if done_bytes == total_bytes) {
                    *count.lock().unwrap() = 1;
                }
            };
            let image = images.pull(&reference, progress).await.unwrap();
            let converted = *converted.lock().unwrap();
            (image, converted)
        }
    });
    let done = futures_util::future::join_all(all).await;
    assert_eq!(done.iter().map(|(_, converted)| converted).sum::<i32>(), 1);
    assert!(done.iter().all(|(image, _)| image.rootfs == done[0].0.rootfs));
}

#[tokio::test]
async fn the_longest_unused_go_and_what_is_in_use_stays() {
    let (place, layout) = (Place::new(), layout(&["a", "b", "c", "d"]));
    let images = place.limited(|options| options.max_rootfs_entries = 2);
    let a = pull(&images, &layout.reference("a")).await;
    drop(pull(&images, &layout.reference("b")).await);
    drop(pull(&images, &layout.reference("c")).await);
    let there = async |tag: &str| images.get(&layout.reference(tag).to_string()).await.unwrap().is_some();
    assert!(there("a").await && !there("b").await && there("c").await);
    drop(a);
    for (tag, age) in [("a", 20), ("c", 10)] {
        let image = images.get(&layout.reference(tag).to_string()).await.unwrap().unwrap();
        let dir = File::open(image.rootfs.parent().unwrap()).unwrap();
        dir.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    drop(pull(&images, &layout.reference("d")).await);
    assert!(!there("a").await && there("c").await && there("d").await);
    assert_eq!(images.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn bytes_are_limited_too() {
    let (place, layout) = (Place::new(), layout(&["a", "b"]));
    let images = place.limited(|options| options.max_cache_bytes = 1);
    drop(pull(&images, &layout.reference("a")).await);
    let b = pull(&images, &layout.reference("b")).await;
    let list = images.list().await.unwrap();
    assert_eq!((list.len(), &list[0].id), (1, &b.id), "the one in use is more than may be, and stays");
}

#[tokio::test]
async fn images_are_removed_unless_they_are_in_use() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    let (images, reference) = (place.images(), layout.reference("a").to_string());
    let image = pull(&images, &layout.reference("a")).await;
    assert!(matches!(images.remove(&reference, false).await, Err(CacheError::InUse(id)) if id == image.id));
    assert!(image.rootfs.exists());
    let id = image.id.to_string();
    drop(image);
    images.remove(&reference, false).await.unwrap();
    assert!(matches!(images.remove(&id, false).await, Err(CacheError::Unknown(_))));
    assert_eq!(place.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn a_reference_goes_before_its_image() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    let images = place.images();
    let without_tag: Reference = format!("oci:{}", layout.dir.path().display()).parse().unwrap();
    let image = pull(&images, &layout.reference("a")).await;
    assert_eq!(pull(&images, &without_tag).await.id, image.id);
    images.remove(&without_tag.to_string(), false).await.unwrap();
    assert_eq!(images.list().await.unwrap()[0].references, [layout.reference("a").normalized()]);
    drop(image);
    let id = images.list().await.unwrap()[0].id.clone();
    images.remove(&id.hex()[..12], false).await.unwrap();
    assert!(images.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleared() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    let image = pull(&place.images(), &layout.reference("a")).await;
    let cache = place.dir.path().join("cache");
    let other = cache.join("images").join(format!("{}-0", "1".repeat(64)));
    for dir in [cache.join("images/half.new"), other.clone()] {
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("rootfs.erofs"), "x").unwrap();
    }
    fs::write(cache.join("blobs/half.new"), "x").unwrap();
    fs::write(cache.join("references/broken"), "{").unwrap();
    let images = place.images();
    assert!(!other.exists(), "written by another version");
    assert_eq!(place.kept().len(), 2, "the image and its reference");
    assert!(images.get(&image.id.to_string()).await.unwrap().is_some());
}

#[tokio::test]
async fn without_a_cache_an_image_is_gone_when_it_is_dropped() {
    let (dir, layout) = (tempfile::tempdir().unwrap(), layout(&["a"]));
    let images = Images::uncached(dir.path(), ImagesOptions::default()).unwrap();
    let image = pull(&images, &layout.reference("a")).await;
    let again = pull(&images, &layout.reference("a")).await;
    assert!(image.rootfs.exists() && image.rootfs != again.rootfs);
    assert!(images.get(&image.id.to_string()).await.unwrap().is_none());
    // Another one that starts leaves it alone.
    drop(Images::uncached(dir.path(), ImagesOptions::default()).unwrap());
    assert!(image.rootfs.exists());
    drop((image, again));
    let pulls =
        || fs::read_dir(dir.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(pulls(), 0);
    // What a killed process left.
    fs::create_dir(dir.path().join("pull-dead")).unwrap();
    drop(Images::uncached(dir.path(), ImagesOptions::default()).unwrap());
    assert_eq!(pulls(), 0);
}

#[tokio::test]
async fn a_cache_that_others_could_write_to_is_not_used() {
    let place = Place::new();
    fs::create_dir(place.dir.path().join("cache")).unwrap();
    drop(place.images());
    let mode = fs::metadata(place.dir.path().join("cache")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(place.dir.path().join("cache"), &link).unwrap();
    let opened = Images::open(CacheOptions::new(link), ImagesOptions::default());
    assert!(matches!(opened, Err(OpenError::Cache(CacheError::Foreign(_)))));
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let wrong = Digest::of(b"other");
    let layout =
        Layout::new().image_with("a", &[layer("a")], std::slice::from_ref(&wrong), &Platform::ours());
    let told = refused(&layout, "a", Limits::default()).await;
    let layer = Digest::of(&layer("a"));
    assert!(told.contains(&format!("the layer `{layer}` unpacks to `{layer}`, but")), "{told}");
    let layout = Layout::new().image_with("a", &[super::tests::layer("a")], &[], &Platform::ours());
    let told = refused(&layout, "a", Limits::default()).await;
    assert!(told.ends_with("the manifest names 1 layers, and the image's configuration 0"), "{told}");
}

#[tokio::test]
async fn damaged_blobs_are_named() {
    let layout = layout(&["a"]);
    let damaged = Digest::of(&layer("a"));
    let blob = layout.dir.path().join("blobs/sha256").join(damaged.hex());
    fs::write(blob, layer("b")).unwrap();
    let told = refused(&layout, "a", Limits::default()).await;
    assert!(told.contains(&format!("the layer `{damaged}` was transferred as")), "{told}");
}

#[tokio::test]
async fn images_for_other_machines_are_refused() {
    let diff_ids = [Digest::of(&layer("a"))];
    let layout = Layout::new().image_with("a", &[layer("a")], &diff_ids, &Platform::new("linux", "s390x"));
    let told = refused(&layout, "a", Limits::default()).await;
    assert!(told.ends_with("but for `linux/s390x`"), "{told}");
}

#[tokio::test]
async fn hostile_layers_are_refused() {
    let one = |archive: Archive| Layout::new().image("a", &[archive.finish()]);
    let told = refused(&one(Archive::default().file("../x", b"")), "a", Limits::default()).await;
    assert!(told.ends_with("the entry `../x` leads out of the file system"), "{told}");
    let link = Archive::default().with(b'1', "h", "none", b"");
    let told = refused(&one(link), "a", Limits::default()).await;
    assert!(told.ends_with("the hard link `h` is to `none`, which is no file of the image"), "{told}");
    let limits = Limits { max_layers: 1, ..Limits::default() };
    let two = Layout::new().image("a", &[layer("a"), layer("b")]);
    let told = refused(&two, "a", limits).await;
    assert!(told.ends_with("the image has 2 layers, more than the limit of 1"), "{told}");
}

#[tokio::test]
async fn files_in_the_way_of_furniture_are_refused() {
    for place in ["etc", "run"] {
        let layout = Layout::new().image("a", &[Archive::default().file(place, b"").finish()]);
        let told = refused(&layout, "a", Limits::default()).await;
        assert!(told.contains(&format!(": `/{place}` of the image is not a directory: ")), "{told}");
    }
}

#[tokio::test]
async fn layouts_say_what_they_have() {
    let layout = layout(&["a", "b"]);
    let told = refused(&layout, "c", Limits::default()).await;
    assert!(told.ends_with("has no image `c`; it has `a`, `b`"), "{told}");
    let any: Reference = format!("oci:{}", layout.dir.path().display()).parse().unwrap();
    let place = Place::new();
    let error = place.images().pull(&any, |_| ()).await.unwrap_err();
    assert!(super::tests::told(&error).ends_with("of which one must be named: `a`, `b`"));
    let nowhere: Reference = "oci:/nonexistent".parse().unwrap();
    let error = place.images().pull(&nowhere, |_| ()).await.unwrap_err();
    assert!(matches!(error.cause, PullCause::Local(_)));
}

#[tokio::test]
async fn an_archive_of_the_layout_is_the_layout() {
    let layout = layout(&["a"]);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", layout.dir.path()).unwrap();
    let path = layout.dir.path().join("archive.tar");
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let reference: Reference = format!("oci:{}:a", path.display()).parse().unwrap();
    let place = Place::new();
    let images = place.images();
    let image = pull(&images, &reference).await;
    assert_eq!(image.id, pull(&images, &layout.reference("a")).await.id);
}

#[tokio::test]
async fn a_pull_that_is_given_up_leaves_nothing_in_the_way() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    let images = place.images();
    let reference = layout.reference("a");
    let given_up = tokio::time::timeout(Duration::ZERO, images.pull(&reference, |_| ()));
    drop(given_up.await);
    drop(pull(&images, &reference).await);
    assert_eq!(place.kept().len(), 2);
}

/// An archive as `docker save` writes it, of two images that share a layer by a symbolic link.
fn docker_archive() -> Vec<u8> {
    let layer = layer("a");
    let (platform, diff_id) = (Platform::ours().to_string(), Digest::of(&layer));
    let (os, architecture) = platform.split_once('/').unwrap();
    let config = |user: &str| {
        format!(
            r#"{{"os":"{os}","architecture":"{architecture}","config":{{"User":"{user}"}},"rootfs":{{"diff_ids":["{diff_id}"]}}}}"#
        )
    };
    let manifest = br#"[{"Config":"1.json","RepoTags":["app:v1"],"Layers":["x/layer.tar"]},
        {"Config":"2.json","RepoTags":["ghcr.io/b/app:v2"],"Layers":["y/layer.tar"]},
        {"Config":"../../etc/passwd","RepoTags":["bad:v1"],"Layers":["../layer.tar"]}]"#;
    Archive::default()
        .file("x/layer.tar", &layer)
        .with(b'2', "y/layer.tar", "../x/layer.tar", b"")
        .file("1.json", config("one").as_bytes())
        .file("2.json", config("two").as_bytes())
        .file("manifest.json", manifest)
        .finish()
}

#[tokio::test]
async fn archives_of_docker_may_have_several_images() {
    let place = Place::new();
    let path = place.dir.path().join("saved.tar");
    fs::write(&path, docker_archive()).unwrap();
    let images = place.images();
    let reference =
        |image: &str| -> Reference { format!("docker-archive:{}{image}", path.display()).parse().unwrap() };
    for (image, user) in
        [(":app:v1", "one"), (":docker.io/library/app:v1", "one"), (":ghcr.io/b/app:v2", "two")]
    {
        assert_eq!(pull(&images, &reference(image)).await.config.user, user);
    }
    let refused = async |image: &str| told(&images.pull(&reference(image), |_| ()).await.unwrap_err());
    let all = "`docker.io/library/app:v1`, `ghcr.io/b/app:v2`, `docker.io/library/bad:v1`";
    assert!(refused("").await.ends_with(&format!("of which one must be named: {all}")));
    assert!(
        refused(":app:v3").await.ends_with(&format!("has no image `docker.io/library/app:v3`; it has {all}"))
    );
    assert!(refused(":bad:v1").await.contains("has no `../../etc/passwd`"));
    let directory: Reference = format!("docker-archive:{}", place.dir.path().display()).parse().unwrap();
    let error = images.pull(&directory, |_| ()).await.unwrap_err();
    assert!(matches!(error.cause, PullCause::Local(_)));
}

#[tokio::test]
async fn changed_archives_and_layouts_are_read_again() {
    let place = Place::new();
    let images = place.images();
    let layout = layout(&["a"]);
    let reference = layout.reference("a");
    let first = pull(&images, &reference).await.id;
    assert_eq!(images.get_unchanged(&reference).await.unwrap().unwrap().id, first);
    // The index is another file with the same content, as a tool that writes the layout again leaves it.
    let index = layout.dir.path().join("index.json");
    let text = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    fs::write(&index, &text).unwrap();
    assert!(images.get_unchanged(&reference).await.unwrap().is_none());
    assert_eq!(pull(&images, &reference).await.id, first);
    assert!(images.get_unchanged(&reference).await.unwrap().is_some());

    // Another image under the same tag, with the index's old time.
    let modified = fs::metadata(&index).unwrap().modified().unwrap();
    let other = self::layout(&["a", "b"]).image("a", &[layer("other")]);
    fs::write(&index, fs::read_to_string(other.dir.path().join("index.json")).unwrap()).unwrap();
    File::open(&index).unwrap().set_modified(modified).unwrap();
    assert!(images.get_unchanged(&reference).await.unwrap().is_none());
    // The old image can still be looked up.
    assert_eq!(images.get(&reference.to_string()).await.unwrap().unwrap().id, first);
    // A file that is gone has not changed.
    fs::remove_file(&index).unwrap();
    assert_eq!(images.get_unchanged(&reference).await.unwrap().unwrap().id, first);
}

#[tokio::test]
async fn images_of_version_one_stay_until_pulled_again() {
    let (place, layout) = (Place::new(), layout(&["a"]));
    let (images, reference) = (place.images(), layout.reference("a"));
    let image = pull(&images, &reference).await;
    let (id, new) = (image.id.clone(), image.rootfs.parent().unwrap().to_owned());
    drop(image);
    let old = new.with_file_name(format!("{}-1", id.hex()));
    let rename_lock = |from: &std::path::Path, to: &std::path::Path| {
        let lock = |path: &std::path::Path| format!("{}.lock", path.display());
        fs::rename(from, to).unwrap();
        fs::rename(lock(from), lock(to)).unwrap();
    };
    rename_lock(&new, &old);

    let images = place.images();
    let found = images.get(&reference.to_string()).await.unwrap().unwrap();
    assert!(found.is_outdated && found.rootfs.starts_with(&old));
    assert_eq!(images.list().await.unwrap().len(), 1);
    let pulled = pull(&images, &reference).await;
    assert!(!pulled.is_outdated && pulled.id == id && pulled.rootfs_identity() != found.rootfs_identity());
    assert!(found.rootfs.exists(), "it is in use");
    assert_eq!(images.list().await.unwrap().len(), 1, "both are one image");
    drop(found);
    drop(pull(&images, &reference).await);
    assert!(!old.exists());
    drop(pulled);
    // By its id, both versions go.
    fs::create_dir(&old).unwrap();
    images.remove(&id.to_string(), false).await.unwrap();
    assert!(!old.exists() && !new.exists() && images.list().await.unwrap().is_empty());
}
